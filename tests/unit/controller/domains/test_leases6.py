"""A VM with a lease of DHCPv6 in another domain: it keeps it, and renews it with its home's server."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address
from typing import Any

import pytest

from retinue.agent.renewal.service import lease6_of
from retinue.controller.domains.guests import held_by
from retinue.core.lease_renewal import renew_frame
from retinue.core.migration import MigrationState
from retinue.core.model import VM, Assignment, IAKind, ModelError
from retinue.core.model.link_local import group_mac, link_local
from retinue.core.packets.dhcp6 import (
    ALL_AGENTS_AND_SERVERS,
    DHCP6,
    MessageType6,
    Relayed6,
    dhcp6_frame,
    parse_dhcp6,
    parse_relayed6,
    parse_udp6_frame,
)
from retinue.core.packets.dhcp6_options import IA, IAAddress, Option6
from retinue.protocol.domains import Guest, GuestAddress, GuestLease6, GuestNIC
from retinue.protocol.renewals import RenewalOrder6
from support.fabric.domains import DHCP_AT, DHCP_MAC, GATEWAY_MACS, TUNNEL, nic, port, server_of
from support.fabric.two_controllers import VM_ID, TwoDomains, two_domains
from support.recent_events import recent
from support.virtual_time import run

NIC1 = nic("a", 1)
"""With a static address of IPv4, and none of IPv6."""
OWN = IPv6Address("fd00:a::150")
LEASE, PREFERRED, IAID = 600, 400, 7
AT_HOME, AWAY = ("a-edge1", port(NIC1)), ("b-edge2", port(NIC1))
DUID, SERVER_DUID = b"\0\2guest", b"\0\2server"
OPTIONS = ((int(Option6.OPTION_REQUEST), b"\0\x17"),)


def asks(kind: MessageType6, xid: int = 8, *ips: IPv6Address, ia: IAKind = IAKind.NA) -> DHCP6:
    named = SERVER_DUID if kind in (MessageType6.REQUEST, MessageType6.RENEW, MessageType6.RELEASE) else b""
    return DHCP6(kind, xid, DUID, named, (IA(IAID, tuple(map(IAAddress, ips)), kind=ia),), options=OPTIONS)


@dataclass
class Leased6:
    """VM vm-a1 with a lease of domain a's DHCPv6 server."""

    world: TwoDomains
    grants: IPv6Address = OWN
    asked: list[DHCP6] = field(default_factory=list)
    unanswered: list[Relayed6] = field(default_factory=list)

    def __post_init__(self) -> None:
        for domain in "ab":
            net = self.world.controller(domain).net
            net.add_subnet(replace(net.subnets["blue6"], dhcp6=domain == "a"))
        self.world.fakes["a"].hosts[DHCP_AT] = self._serve

    def _serve(self, frame: bytes) -> None:
        if frame[12:14] != b"\x86\xdd":
            return
        envelope = parse_relayed6(parse_udp6_frame(frame)[1].payload)
        asked = parse_dhcp6(envelope.message)
        self.asked.append(asked)
        kind = MessageType6.ADVERTISE if asked.type is MessageType6.SOLICIT else MessageType6.REPLY
        ias = tuple(
            IA(ia.iaid, (IAAddress(self.grants, PREFERRED, LEASE),), kind=ia.kind) for ia in asked.ias
        )
        if asked.type is MessageType6.RELEASE:
            ias = ()
        self.answer(envelope, DHCP6(kind, asked.xid, asked.client_id, SERVER_DUID, ias))

    def note(self, frame: bytes) -> None:
        """The server answers later."""
        if frame[12:14] == b"\x86\xdd":
            self.unanswered.append(parse_relayed6(parse_udp6_frame(frame)[1].payload))

    def answer(self, asked: Relayed6, answer: DHCP6) -> None:
        said = replace(asked, type=MessageType6.RELAY_REPL, message=answer.build(), options=())
        relay, own, mac = link_local(GATEWAY_MACS["a"]), link_local(DHCP_MAC), GATEWAY_MACS["a"]
        frame = dhcp6_frame(said.build(), DHCP_MAC, mac, own, relay, 547, 547)
        self.world.fakes["a"].send(*DHCP_AT, frame)

    async def boot(self) -> None:
        a = self.world.controller("a")
        a.inventory.register_vms([VM(VM_ID, (NIC1,), server_of("a", 1), memory_mib=128)])
        self.world.plug("a", server_of("a", 1))
        await self.settle()
        await self.ask_anew(AT_HOME)
        assert self.held("a") is not None

    async def ask_anew(self, at: tuple[str, int]) -> None:
        await self.say(asks(MessageType6.SOLICIT), at)
        await self.say(asks(MessageType6.REQUEST, 9, self.grants), at)

    async def say(self, dhcp: DHCP6, at: tuple[str, int] = AWAY, mac: str = NIC1.mac) -> None:
        to = ALL_AGENTS_AND_SERVERS
        frame = dhcp6_frame(dhcp.build(), mac, group_mac(to), link_local(mac), to, 546, 547)
        self.world.fakes[at[0][0]].send(*at, frame)
        await self.settle()

    async def settle(self) -> None:
        for domain in "abab":
            await self.world.fakes[domain].settle()

    def held(self, domain: str) -> Assignment | None:
        held = self.world.controller(domain).net.held_by(VM_ID)
        return next((one for one in held if one.lease6 is not None), None)

    def ends(self, domain: str) -> float:
        held = self.held(domain)
        assert held is not None and held.lease_end is not None
        return held.lease_end

    def heard(self, at: tuple[str, int] = AWAY) -> list[DHCP6]:
        found = []
        for switch, number, frame in self.world.fakes[at[0][0]].heard:
            if (switch, number) == at and frame[12:14] == b"\x86\xdd" and frame[20] == 17:
                found.append(parse_dhcp6(parse_udp6_frame(frame)[1].payload))
        return found


def told(story: Callable[[Leased6], Coroutine[Any, Any, None]], *, away: bool = True) -> None:
    """In virtual time, with the VM in domain b."""

    async def run_it() -> None:
        async with two_domains(dual=True, dhcp=True) as world:
            leased = Leased6(world)
            await leased.boot()
            if away:
                await world.move("a", "b", server_of("b", 2))
                await leased.settle()
            await story(leased)

    run(run_it())


def test_a_lease_of_dhcpv6_goes_with_all_that_renews_it() -> None:
    async def story(leased: Leased6) -> None:
        await asyncio.sleep(100)
        before = leased.held("a")
        assert before is not None and before.lease6 is not None and before.lease_end is not None
        await leased.world.move("a", "b", server_of("b", 2))
        there = leased.held("b")
        assert there is not None and there.lease6 is not None and there.lease_end is not None
        assert there.lease_end == pytest.approx(before.lease_end, abs=1)
        assert there.lease6.preferred_end == pytest.approx(before.lease6.preferred_end, abs=1)
        assert (there.ip, there.client_id) == (OWN, DUID)
        assert replace(there.lease6, preferred_end=None) == replace(before.lease6, preferred_end=None)
        assert there.lease6.options == OPTIONS

    told(story, away=False)


@pytest.mark.parametrize("kind", [MessageType6.RENEW, MessageType6.REBIND])
def test_it_renews_by_itself_through_the_anchor(kind: MessageType6) -> None:
    async def story(leased: Leased6) -> None:
        await asyncio.sleep(200)
        before = leased.ends("a")
        await leased.say(asks(kind, 8, OWN))
        assert leased.asked[-1].type is kind
        (answer,) = leased.heard()
        assert (answer.type, answer.addresses) == (MessageType6.REPLY, (OWN,))
        assert leased.ends("a") > before + 100
        assert leased.ends("b") == pytest.approx(leased.ends("a"), abs=1)

    told(story)


def test_it_is_renewed_on_the_vms_behalf_by_the_home_server() -> None:
    """As after every migration; the VM hears of nothing."""

    async def story(leased: Leased6) -> None:
        await asyncio.sleep(200)
        b = leased.world.controller("b")
        order = b.renewals.renew(VM_ID)
        assert isinstance(order, RenewalOrder6)
        assert order.switch == AWAY[0]
        leased.world.fakes["b"].send(*AWAY, renew_frame(lease6_of(order), order.xid, 0.0))
        await leased.settle()
        assert leased.asked[-1].type is MessageType6.RENEW
        assert b.renewals.get(order.id).state == "acked"
        assert not leased.heard()
        for domain in "ab":
            assert leased.ends(domain) == pytest.approx(asyncio.get_running_loop().time() + LEASE, abs=2)

    told(story)


def test_it_asks_anew_and_its_home_answers() -> None:
    """As after a reboot: the same exchange as at home, and another address if that is what is granted."""

    async def story(leased: Leased6) -> None:
        leased.grants = OWN + 1
        await leased.ask_anew(AWAY)
        assert [one.type for one in leased.heard()] == [MessageType6.ADVERTISE, MessageType6.REPLY]
        for domain in "ab":
            held = leased.held(domain)
            assert held is not None and held.ip == OWN + 1

    told(story)


def test_it_comes_home_with_what_it_was_granted_last() -> None:
    async def story(leased: Leased6) -> None:
        await leased.say(asks(MessageType6.RENEW, 8, OWN))
        await leased.world.move("b", "a", server_of("a", 2))
        await leased.settle()
        assert not leased.world.controller("b").net.vms
        await leased.say(asks(MessageType6.RENEW, 10, OWN), ("a-edge2", port(NIC1)))
        assert [one.type for one in leased.heard(("a-edge2", port(NIC1)))] == [MessageType6.REPLY]

    told(story)


@pytest.mark.parametrize("dies", ["a", "b"])
def test_a_controller_that_was_started_anew_knows_it_and_renews_it(dies: str) -> None:
    async def story(leased: Leased6) -> None:
        await leased.world.kill(dies)
        await leased.world.start_again(dies)
        if dies == "a":
            leased.world.fakes["a"].hosts[DHCP_AT] = leased._serve
        net = leased.world.controller(dies).net
        net.add_subnet(replace(net.subnets["blue6"], dhcp6=dies == "a"))
        controller = leased.world.controller(dies)
        await controller.context.install(net.everything())
        await leased.settle()
        assert leased.held(dies) is not None
        before = leased.ends("a")
        await asyncio.sleep(50)
        await leased.say(asks(MessageType6.RENEW, 8, OWN))
        assert leased.ends("a") > before
        assert leased.ends("b") > before

    told(story)


def test_what_it_gives_back_is_free_in_both() -> None:
    async def story(leased: Leased6) -> None:
        await leased.say(asks(MessageType6.RELEASE, 8, OWN))
        assert leased.asked[-1].type is MessageType6.RELEASE
        assert leased.held("a") is None
        assert leased.held("b") is None

    told(story)


def test_a_guest_that_is_removed_gives_it_back_at_home() -> None:
    async def story(leased: Leased6) -> None:
        await leased.world.controller("b").inventory.remove_vm(VM_ID)
        await leased.settle()
        assert leased.asked[-1].type is MessageType6.RELEASE

    told(story)


@pytest.mark.parametrize("ip", [IPv6Address("fd00:b::77"), IPv6Address("fd00:c::1")])
def test_its_home_gives_it_no_address_that_is_not_its_own_to_give(ip: IPv6Address) -> None:
    """Neither one of ours, nor one that is nobody's."""

    async def story(leased: Leased6) -> None:
        b = leased.world.controller("b")
        answer = DHCP6(
            MessageType6.REPLY, 8, DUID, SERVER_DUID, (IA(IAID, (IAAddress(ip, PREFERRED, LEASE),)),)
        )
        leased.world.fakes["b"].hosts["b-edge3", TUNNEL] = lambda frame: None
        await leased.say(asks(MessageType6.RENEW, 8, OWN))
        relay = link_local(GATEWAY_MACS["a"])
        frame = dhcp6_frame(
            answer.build(), GATEWAY_MACS["a"], NIC1.mac, relay, link_local(NIC1.mac), 547, 546
        )
        leased.world.fakes["b"].send("b-edge3", TUNNEL, frame)
        await leased.settle()
        assert not leased.heard()
        assert b.net.holder(ip) is None
        reasons = [event.data["reason"] for event in recent(b.events, "dhcp.rejected", 99)]
        assert any("domain a leases" in reason for reason in reasons), reasons

    told(story)


def test_of_its_own_vms_a_domain_hears_nothing_by_the_tunnel() -> None:
    """Neither as a client's words, nor as a server's."""

    async def story(leased: Leased6) -> None:
        asked = len(leased.asked)
        own = nic("a", 2)
        vm = VM("vm-a2", (own,), server_of("a", 2))
        leased.world.controller("a").inventory.register_vms([vm])
        leased.world.plug("a", server_of("a", 2), 2)
        await leased.settle()
        await leased.say(asks(MessageType6.RENEW, 8, OWN), ("a-edge3", TUNNEL), mac=own.mac)
        assert len(leased.asked) == asked

    told(story)


def test_no_prefix_is_delegated_between_domains() -> None:
    async def story(leased: Leased6) -> None:
        asked = len(leased.asked)
        await leased.say(asks(MessageType6.SOLICIT, 8, ia=IAKind.PD))
        await leased.say(asks(MessageType6.SOLICIT, 8, ia=IAKind.PD), ("a-edge3", TUNNEL))
        assert len(leased.asked) == asked

    told(story)


def test_no_prefix_is_delegated_on_the_way_to_another_domain() -> None:
    """One that has a prefix stays; so it gets none while it is copied, nor by an answer that comes then."""

    async def story(leased: Leased6) -> None:
        net = leased.world.controller("a").net
        await leased.say(asks(MessageType6.SOLICIT, 8, ia=IAKind.PD), AT_HOME)
        assert leased.asked[-1].ias[0].kind is IAKind.PD
        leased.world.fakes["a"].hosts[DHCP_AT] = leased.note
        await leased.say(asks(MessageType6.REQUEST, 9, ia=IAKind.PD), AT_HOME)
        (envelope,) = leased.unanswered
        leased.world.fails = "before it converges"
        leased.world.begin("b", server_of("b", 2))
        await leased.world.until("a", MigrationState.COPYING)
        await leased.say(asks(MessageType6.SOLICIT, 10, ia=IAKind.PD), AT_HOME)
        assert len(leased.unanswered) == 1
        given = IAAddress(IPv6Address("fd00:99::"), PREFERRED, LEASE, length=64)
        its = IA(IAID, (given,), kind=IAKind.PD)
        leased.answer(envelope, DHCP6(MessageType6.REPLY, 9, DUID, SERVER_DUID, (its,)))
        await leased.settle()
        assert not [one for one in net.held_by(VM_ID) if one.prefix is not None]

    told(story, away=False)


def test_of_one_guest_little_goes_into_the_tunnel() -> None:
    async def story(leased: Leased6) -> None:
        asked = len(leased.asked)
        for n in range(30):
            await leased.say(asks(MessageType6.RENEW, 100 + n, OWN))
        assert len(leased.asked) - asked == 10

    told(story)


@pytest.mark.parametrize(
    "held",
    [
        GuestAddress("10.1.0.9", leased=True, dhcp6=GuestLease6("0001", 7)),
        GuestAddress("fd00:a::9", leased=True),
        GuestAddress("fd00:a::9", leased=True, dhcp6=GuestLease6("0001", 7, options="00")),
    ],
)
def test_what_is_no_lease_is_refused(held: GuestAddress) -> None:
    guest = Guest(VM_ID, [GuestNIC("52:54:00:00:00:01", VM_ID, [], held=[held])], is_home=False)
    with pytest.raises(ModelError, match="VM vm-a1: the lease of"):
        list(held_by(guest, 0.0))


def test_what_is_renewed_while_it_is_copied_goes_along() -> None:
    """For longer than the lease went on when the place was booked: there it has ended meanwhile."""

    async def story(leased: Leased6) -> None:
        world = leased.world
        world.fails = "before it converges"
        await asyncio.sleep(LEASE / 2)
        world.begin(server=server_of("b", 2))
        copying = await world.until("a", MigrationState.COPYING)
        await asyncio.sleep(LEASE * 0.4)
        await leased.say(asks(MessageType6.RENEW, 10, OWN), AT_HOME)
        await asyncio.sleep(LEASE * 0.4)
        assert leased.held("b") is None
        world.fails = ""
        agents = world.agents["a"]
        agents._spawn(agents._copy(copying))
        await world.until("a", MigrationState.DONE)
        await world.until("b", MigrationState.DONE)
        await leased.settle()
        assert leased.ends("b") == pytest.approx(leased.ends("a"))

    told(story, away=False)
