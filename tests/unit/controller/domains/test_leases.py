"""A VM with a lease in another domain: it keeps it, and renews it with its home's DHCP server."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from retinue.controller.leases.renewal_orders import RenewalError
from retinue.core.migration import Migration
from retinue.core.model import VM, Assignment, BindingKind
from retinue.core.packets import (
    BROADCAST,
    DHCP,
    MessageType,
    ack,
    dhcp_frame,
    discover,
    nak,
    offer,
    parse_dhcp_frame,
    release,
    renewal,
    request,
)
from retinue.core.snooping.headers import owner_of_identifier
from retinue.core.snooping.messages import EVERYBODY, NO_ADDRESS
from retinue.protocol.domains import Prepare, Prepared
from retinue.protocol.renewals import RenewalOrder
from support.fabric.domains import (
    DHCP_AT,
    DHCP_MAC,
    DHCP_SERVER,
    SUBNETS,
    TUNNEL,
    nic,
    port,
    server_of,
)
from support.fabric.two_controllers import VM_ID, TwoDomains, two_domains
from support.recent_events import recent
from support.virtual_time import run

NIC1 = replace(nic("a", 1), addresses=())
OWN = IPv4Address("10.1.0.150")
LEASE = 600
AT_HOME, AWAY = ("a-edge1", port(NIC1)), ("b-edge2", port(NIC1))
CLIENT_ID = b"\0guest"


@dataclass
class Leased:
    """VM vm-a1 with a lease of domain a's DHCP server."""

    world: TwoDomains
    grants: IPv4Address = OWN
    refuses: bool = False
    asked: list[DHCP] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.world.fakes["a"].hosts[DHCP_AT] = self._serve

    def _serve(self, frame: bytes) -> None:
        _, _, asked = parse_dhcp_frame(frame)
        self.asked.append(asked)
        if asked.message_type is MessageType.DISCOVER:
            self._answer(offer(asked, self.grants, DHCP_SERVER, LEASE))
        elif asked.message_type is MessageType.REQUEST and self.refuses:
            self._answer(nak(asked, DHCP_SERVER))
        elif asked.message_type is MessageType.REQUEST:
            self._answer(ack(asked, self.grants, DHCP_SERVER, LEASE))

    def _answer(self, reply: DHCP) -> None:
        frame = dhcp_frame(reply, DHCP_MAC, reply.chaddr, DHCP_SERVER, reply.yiaddr, 67, 68)
        self.world.fakes["a"].send(*DHCP_AT, frame)

    async def boot(self) -> None:
        a = self.world.controller("a")
        a.inventory.register_vms([VM(VM_ID, (NIC1,), server_of("a", 1), memory_mib=128)])
        self.world.plug("a", server_of("a", 1))
        await self.world.fakes["a"].settle()
        await self.ask_anew(AT_HOME)
        assert self.held("a") is not None

    async def ask_anew(self, at: tuple[str, int]) -> None:
        for said in (
            discover(NIC1.mac, 7, client_id=CLIENT_ID),
            request(NIC1.mac, 7, self.grants, DHCP_SERVER, CLIENT_ID),
        ):
            await self.say(said, NO_ADDRESS, EVERYBODY, at)

    async def renews(self, at: tuple[str, int] = AWAY, xid: int = 8) -> None:
        await self.say(renewal(OWN, NIC1.mac, xid, CLIENT_ID), OWN, DHCP_SERVER, at)

    async def say(self, dhcp: DHCP, src: IPv4Address, dst: IPv4Address, at: tuple[str, int] = AWAY) -> None:
        domain = at[0][0]
        self.world.fakes[domain].send(*at, dhcp_frame(dhcp, NIC1.mac, BROADCAST, src, dst, 68, 67))
        await self.settle()

    async def settle(self) -> None:
        for domain in "abab":
            await self.world.fakes[domain].settle()

    def held(self, domain: str) -> Assignment | None:
        held = self.world.controller(domain).net.held_by(VM_ID)
        return next((one for one in held if one.kind is BindingKind.DYNAMIC), None)

    def ends(self, domain: str) -> float:
        held = self.held(domain)
        assert held is not None and held.lease_end is not None
        return held.lease_end

    def heard(self, at: tuple[str, int] = AWAY) -> list[DHCP]:
        frames = [frame for *where, frame in self.world.fakes[at[0][0]].heard if tuple(where) == at]
        return [parse_dhcp_frame(f)[2] for f in frames if f[12:14] == b"\x08\x00"]

    def renewals(self) -> list[Any]:
        return [
            event.data["renewal"] for event in recent(self.world.controller("b").events, "renewal.acked", 99)
        ]


def told(story: Callable[[Leased], Coroutine[Any, Any, None]], *, away: bool = True) -> None:
    """In virtual time, with the VM in domain b."""

    async def run_it() -> None:
        async with two_domains(dhcp=True) as world:
            leased = Leased(world)
            await leased.boot()
            if away:
                await world.move("a", "b", server_of("b", 2))
                await leased.settle()
            await story(leased)

    run(run_it())


def test_a_lease_goes_with_its_end_its_server_and_what_was_said_to_get_it() -> None:
    async def story(leased: Leased) -> None:
        await asyncio.sleep(100)
        before = leased.held("a")
        assert before is not None
        await leased.world.move("a", "b", server_of("b", 2))
        there = leased.held("b")
        assert there is not None and there.lease_end is not None and before.lease_end is not None
        assert there.lease_end == pytest.approx(before.lease_end, abs=1)
        assert (there.ip, there.server, there.client_id, there.options) == (
            OWN, DHCP_SERVER, CLIENT_ID, before.options,
        )  # fmt: skip

    told(story, away=False)


def test_it_is_renewed_on_the_vms_behalf_by_the_home_server() -> None:
    """As after every migration; in both domains it ends later then, and the VM hears of nothing."""

    async def story(leased: Leased) -> None:
        order = leased.world.controller("b").renewals.renew(VM_ID)
        assert isinstance(order, RenewalOrder)
        assert (order.dhcp_server, order.server) == (DHCP_SERVER, server_of("b", 2))
        await asyncio.sleep(200)
        order = leased.world.controller("b").renewals.renew(VM_ID)
        before = len(leased.heard())
        await leased.renews(xid=order.xid)
        assert leased.world.controller("b").renewals.get(order.id).state == "acked"
        now = leased.world.controller("b").context.clock()
        assert leased.ends("a") == leased.ends("b") == pytest.approx(now + LEASE, abs=1)
        assert len(leased.heard()) == before

    told(story)


def test_the_controller_orders_that_after_a_migration_there_and_not_at_home() -> None:
    async def story(leased: Leased) -> None:
        events = {d: recent(leased.world.controller(d).events, "vm.renew", 99) for d in "ab"}
        assert [event.data["server"] for event in events["b"]] == [server_of("b", 2)]
        assert not events["a"]
        assert not leased.world.controller("a").context.state.pending_renewals
        with pytest.raises(RenewalError, match="VM vm-a1 is in domain b; have its lease renewed there"):
            leased.world.controller("a").renewals.renew(VM_ID)

    told(story)


def test_it_renews_by_itself_through_the_anchor() -> None:
    async def story(leased: Leased) -> None:
        await asyncio.sleep(300)
        await leased.renews()
        now = leased.world.controller("b").context.clock()
        assert leased.asked[-1].ciaddr == OWN
        assert leased.heard()[-1].message_type is MessageType.ACK
        assert leased.ends("a") == leased.ends("b") == pytest.approx(now + LEASE, abs=1)

    told(story)


def test_it_asks_anew_and_its_home_answers() -> None:
    """As when it was started anew: by broadcast, and for whatever its home's server gives it."""

    async def story(leased: Leased) -> None:
        leased.grants = IPv4Address("10.1.0.151")
        await leased.ask_anew(AWAY)
        assert [one.message_type for one in leased.heard()] == [MessageType.OFFER, MessageType.ACK]
        for domain in "ab":
            held = leased.held(domain)
            assert held is not None and held.ip == leased.grants

    told(story)


def test_it_comes_home_with_what_it_was_granted_last() -> None:
    async def story(leased: Leased) -> None:
        await asyncio.sleep(300)
        await leased.renews()
        ends = leased.ends("b")
        await leased.world.move("b", "a", server_of("a", 1))
        assert leased.ends("a") == ends
        assert not leased.world.controller("b").net.held_by(VM_ID)
        assert leased.world.controller("a").net.vms[VM_ID].server == server_of("a", 1)
        await leased.renews(AT_HOME, 9)
        assert leased.heard(AT_HOME)[-1].message_type is MessageType.ACK

    told(story)


@pytest.mark.parametrize("dies", ["a", "b"])
def test_a_controller_that_was_started_anew_knows_it_and_renews_it(dies: str) -> None:
    """While it is away the lease goes on; what is asked meanwhile is asked again."""

    async def story(leased: Leased) -> None:
        before = {domain: leased.held(domain) for domain in "ab"}
        await leased.world.kill(dies)
        await asyncio.sleep(100)
        await leased.world.start_again(dies)
        await leased.settle()
        assert {domain: leased.held(domain) for domain in "ab"} == before
        await asyncio.sleep(100)
        await leased.renews()
        now = leased.world.controller("b").context.clock()
        assert leased.heard()[-1].message_type is MessageType.ACK
        assert leased.ends("a") == leased.ends("b") == pytest.approx(now + LEASE, abs=1)

    told(story)


async def move_and_renew_on_the_way(leased: Leased) -> None:
    """The VM renews at home when its place at the other domain has been booked."""
    door = leased.world.doors["b"]
    prepare = door.prepare

    async def renewed_then(wanted: Prepare) -> Prepared:
        booked = await prepare(wanted)
        asked = renewal(OWN, NIC1.mac, 8, CLIENT_ID)
        frame = dhcp_frame(asked, NIC1.mac, BROADCAST, OWN, DHCP_SERVER, 68, 67)
        leased.world.fakes["a"].send(*AT_HOME, frame)
        return booked

    door.prepare = renewed_then  # type: ignore[method-assign]
    await leased.world.move("a", "b", server_of("b", 2))


def test_what_was_renewed_on_the_way_goes_along() -> None:
    """The other domain was told what was left when the place was booked, and is told once more."""

    async def story(leased: Leased) -> None:
        await asyncio.sleep(300)
        await move_and_renew_on_the_way(leased)
        assert leased.ends("b") == pytest.approx(leased.ends("a"), abs=1)

    told(story, away=False)


def test_one_that_has_ended_on_the_way_comes_back() -> None:
    """The VM has renewed it after that was told: only the domain where it is has it as it was before."""

    async def told_before(migration: Migration) -> None:
        pass

    async def story(leased: Leased) -> None:
        leased.world.controller("a").domains.saying._tell_what_it_holds = told_before  # type: ignore[method-assign]
        await asyncio.sleep(LEASE - 5)
        await move_and_renew_on_the_way(leased)
        await asyncio.sleep(10)
        assert leased.held("a") is not None and leased.held("b") is None
        order = leased.world.controller("b").renewals.renew(VM_ID)
        frame = dhcp_frame(
            renewal(OWN, NIC1.mac, order.xid, CLIENT_ID), NIC1.mac, BROADCAST, OWN, DHCP_SERVER, 68, 67
        )
        leased.world.fakes["b"].send(*AWAY, frame)
        await leased.settle()
        assert leased.world.controller("b").renewals.get(order.id).state == "acked"
        assert leased.ends("b") == leased.ends("a")

    told(story, away=False)


def test_a_lease_that_ends_ends_in_both() -> None:
    async def story(leased: Leased) -> None:
        await asyncio.sleep(LEASE + 2)
        await leased.settle()
        assert leased.held("a") is None and leased.held("b") is None

    told(story)


def test_what_its_server_refuses_is_over_in_both() -> None:
    async def story(leased: Leased) -> None:
        leased.refuses = True
        await leased.renews()
        assert leased.heard()[-1].message_type is MessageType.NAK
        assert leased.held("a") is None and leased.held("b") is None

    told(story)


def test_what_it_gives_back_is_free() -> None:
    async def story(leased: Leased) -> None:
        await leased.say(release(OWN, NIC1.mac, 9, DHCP_SERVER, CLIENT_ID), OWN, DHCP_SERVER)
        assert leased.asked[-1].message_type is MessageType.RELEASE
        assert leased.held("a") is None and leased.held("b") is None

    told(story)


def test_of_a_guest_that_is_removed_its_home_gives_it_back() -> None:
    async def story(leased: Leased) -> None:
        await leased.world.controller("b").inventory.remove_vm(VM_ID)
        await leased.settle()
        assert [one.message_type for one in leased.asked].count(MessageType.RELEASE) == 1

    told(story)


def test_another_domains_vm_takes_no_client_identifier_from_ours() -> None:
    """Its home says under which it has its lease, and is believed; the DHCP servers here have never heard of
    it."""

    async def story(leased: Leased) -> None:
        b = leased.world.controller("b")
        own = replace(nic("b", 2), addresses=())
        vm = VM("vm-b2", (own,), server_of("b", 1))
        b.inventory.register_vms([vm])
        assert leased.held("b") is not None
        assert owner_of_identifier(b.net, CLIENT_ID, vm, own.mac) == ""
        a = leased.world.controller("a")
        neighbour = VM("vm-a2", (replace(nic("a", 2), addresses=()),), server_of("a", 1))
        a.inventory.register_vms([neighbour])
        assert owner_of_identifier(a.net, CLIENT_ID, neighbour, neighbour.nic.mac) == VM_ID

    told(story)


@pytest.mark.parametrize("ip", [SUBNETS["b"][77], IPv4Address("10.7.0.1")])
def test_its_home_gives_it_no_address_that_is_not_its_own_to_give(ip: IPv4Address) -> None:
    async def story(leased: Leased) -> None:
        before = leased.held("b")
        question = request(NIC1.mac, 11, ip, DHCP_SERVER, CLIENT_ID)
        leased.world.fakes["b"].send(
            *AWAY, dhcp_frame(question, NIC1.mac, BROADCAST, NO_ADDRESS, EVERYBODY, 68, 67)
        )
        said = dhcp_frame(
            ack(question, ip, DHCP_SERVER, LEASE), "00:00:de:ad:0a:00", NIC1.mac, DHCP_SERVER, ip, 67, 68
        )
        leased.world.fakes["b"].send("b-edge3", TUNNEL, said)
        await leased.settle()
        assert leased.held("b") == before
        assert ip not in [one.yiaddr for one in leased.heard()]

    told(story)


def test_of_its_own_vms_a_domain_hears_nothing_by_the_tunnel() -> None:
    """An answer to one of them, that its home's servers would have to give."""

    async def story(leased: Leased) -> None:
        b = leased.world.controller("b")
        own = replace(nic("b", 2), addresses=())
        b.inventory.register_vms([VM("vm-b2", (own,), server_of("b", 1))])
        b.net.set_vm_port("vm-b2", "b-edge1", b.net.vm_ports["vm-a1"]["b-edge2"])
        await b.context.install(b.net.everything())
        question = discover(own.mac, 21)
        leased.world.fakes["b"].send(
            "b-edge1", port(NIC1), dhcp_frame(question, own.mac, BROADCAST, NO_ADDRESS, EVERYBODY, 68, 67)
        )
        for mac in (own.mac, NIC1.mac):
            said = offer(question, SUBNETS["b"][50], DHCP_SERVER, LEASE)
            frame = dhcp_frame(said, "00:00:de:ad:0a:00", mac, DHCP_SERVER, SUBNETS["b"][50], 67, 68)
            leased.world.fakes["b"].send("b-edge3", TUNNEL, frame)
            await leased.settle()
        assert not leased.heard(("b-edge1", port(NIC1)))

    told(story)


def test_a_vm_whose_lease_has_ended_stays() -> None:
    async def story(leased: Leased) -> None:
        await asyncio.sleep(LEASE + 2)
        leased.world.begin("b", server_of("b", 2))
        raise AssertionError("it went")

    with pytest.raises(Exception, match="has no address, static or by a lease that goes on"):
        told(story, away=False)
