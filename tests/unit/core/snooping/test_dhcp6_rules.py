"""DHCPv6 snooping: a VM's dialogue with a server makes, renews and ends bindings; nothing else does."""

from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network
from typing import Any

import pytest

from retinue.core.limits import MOST_DHCP6_ADDRESSES
from retinue.core.model import Assignment, BindingKind, Lease6, Network, Origin, Subnet
from retinue.core.model.link_local import UNSPECIFIED
from retinue.core.packets.dhcp6 import DHCP6, MessageType6, Relayed6
from retinue.core.packets.dhcp6_options import FOREVER6, Status
from retinue.core.snooping import Bind, Recorded, Rejected, Release, Suspicious, ToAgent
from retinue.core.snooping.dhcp6_messages import ClientMessage6, Effect6, ServerMessage6, ToServers6, ToVM6
from retinue.core.snooping.dhcp6_rules import Snooper6
from retinue.core.snooping.pending import PENDING_SECONDS
from support.fabric.dhcp6 import (
    IAID,
    PREFERRED,
    RAPID,
    SERVER_DUID,
    VALID,
    add_dhcp6,
    answers,
    asks,
    duid,
    ia,
    leased,
)
from support.fabric.ipv6 import vm_ip6, vm_local
from support.fabric.networks import GATEWAY6, add_vm, fabric, holding6, vm_ip, vm_mac, vm_port

NOW = 1000.0
S, REQ, CONF, REN, REB, REP, REL, DEC, REC, INF = (
    MessageType6.SOLICIT, MessageType6.REQUEST, MessageType6.CONFIRM, MessageType6.RENEW, MessageType6.REBIND,
    MessageType6.REPLY, MessageType6.RELEASE, MessageType6.DECLINE, MessageType6.RECONFIGURE,
    MessageType6.INFORMATION_REQUEST,
)  # fmt: skip


class Dialogue:
    def __init__(self) -> None:
        self.net: Network = fabric()
        add_dhcp6(self.net)
        for number in (1, 2):
            add_vm(self.net, number, at=number, ports_on=(3,))
        self.snooper = Snooper6(self.net)
        self.now = NOW

    def says(self, dhcp: DHCP6, vm: int = 1, **other: Any) -> list[Effect6]:
        seen = ClientMessage6(
            f"edge{vm}", vm_port(vm), vm_mac(vm), vm_local(vm), IPv6Address("ff02::1:2"), dhcp
        )
        return self.snooper.client(replace(seen, **other), self.now)

    def hears(self, dhcp: DHCP6, vm: int = 1, at: int = 0, **other: Any) -> list[Effect6]:
        circuit = f"edge{at or vm}:{vm_port(vm)}".encode()
        envelope = Relayed6(MessageType6.RELAY_REPL, 0, GATEWAY6, vm_local(vm), b"", circuit)
        said = ServerMessage6("dhcp", replace(envelope, **other), dhcp)
        return self.apply(self.snooper.server(said, self.now))

    def apply(self, effects: list[Effect6]) -> list[Effect6]:
        for effect in effects:
            if isinstance(effect, Release):
                self.net.unassign(effect.assignment.ip)
            if isinstance(effect, Bind):
                self.net.assign(effect.assignment)
        return effects

    def has_a_lease(self, vm: int = 1) -> Assignment:
        asked = asks(REQ, vm, leased(vm))
        self.says(asked, vm)
        self.hears(answers(asked, leased(vm)), vm)
        return self.net.assignments[leased(vm)]


@pytest.fixture
def talk() -> Dialogue:
    return Dialogue()


def rejected(effects: list[Effect6], why: str, *, spoofed: bool = False) -> None:
    (effect,) = effects
    assert isinstance(effect, Rejected), effect
    assert why in effect.reason
    assert effect.spoofed == spoofed


def test_a_vm_gets_a_lease_by_four_messages(talk: Dialogue) -> None:
    said = asks(S, options=((6, b"\0\x17"), (8, b"\0\0")))
    assert talk.says(said) == [ToServers6("vm1", vm_mac(1), vm_local(1), f"edge1:{vm_port(1)}", said)]
    offered = answers(said, leased(1))
    assert talk.hears(offered) == [ToVM6("vm1", vm_mac(1), vm_local(1), offered)]
    assert leased(1) not in talk.net.assignments, "an offer binds nothing"
    asked = asks(REQ, 1, leased(1), options=said.options)
    assert isinstance(talk.says(asked)[0], ToServers6)
    granted = answers(asked, leased(1))
    bind, to_vm = talk.hears(granted)
    lease6 = Lease6(SERVER_DUID, IAID, NOW + PREFERRED, ((6, b"\0\x17"),))
    lease = Assignment(
        leased(1), vm_mac(1), "vm1", BindingKind.DYNAMIC, Origin.CONTROLLER, NOW + VALID,
        client_id=duid(1), lease6=lease6,
    )  # fmt: skip
    assert bind == Bind(lease, renewed=False)
    assert to_vm == ToVM6("vm1", vm_mac(1), vm_local(1), granted)
    rejected(talk.hears(granted), "no VM asked")
    assert vm_ip(1) in talk.net.assignments, "its lease of IPv4 is another matter"


def test_rapid_commit_grants_at_once_if_both_say_so(talk: Dialogue) -> None:
    talk.says(asks(S))
    granted = answers(asks(S), leased(1), type=REP, options=RAPID)
    rejected(talk.hears(granted), "no VM asked")
    talk.says(asks(S, xid=2, options=RAPID))
    rejected(talk.hears(replace(granted, xid=2, options=())), "no VM asked")
    assert isinstance(talk.hears(replace(granted, xid=2))[0], Bind)


def test_a_lease_without_an_end(talk: Dialogue) -> None:
    asked = asks(REQ, 1, leased(1))
    talk.says(asked)
    talk.hears(answers(asked, leased(1), valid=FOREVER6, preferred=FOREVER6))
    lease = talk.net.assignments[leased(1)]
    assert (lease.lease_end, lease.lease6 and lease.lease6.preferred_end) == (None, None)


@pytest.mark.parametrize("kind", [REN, REB])
def test_it_is_renewed_and_rebound(talk: Dialogue, kind: MessageType6) -> None:
    talk.has_a_lease()
    talk.now += 300
    asked = asks(kind, 1, leased(1))
    assert isinstance(talk.says(asked)[0], ToServers6)
    bind, _ = talk.hears(answers(asked, leased(1)))
    assert isinstance(bind, Bind)
    assert (bind.renewed, bind.assignment.lease_end) == (True, NOW + 300 + VALID)


def test_no_binding_says_the_server_and_the_vm_hears_it_and_keeps_what_it_has(talk: Dialogue) -> None:
    talk.has_a_lease()
    asked = asks(REN, 1, leased(1))
    talk.says(asked)
    said = answers(asked, ias=(replace(ia(), status=Status(3, "never heard of it")),))
    assert talk.hears(said) == [ToVM6("vm1", vm_mac(1), vm_local(1), said)]
    assert leased(1) in talk.net.assignments


def test_what_ends_a_lease(talk: Dialogue) -> None:
    lease = talk.has_a_lease()
    asked = asks(REL, 1, leased(1))
    effects = talk.apply(talk.says(asked))
    assert effects[0] == Release(lease, "released by the VM")
    assert isinstance(effects[1], ToServers6)
    assert isinstance(talk.hears(answers(asked))[0], ToVM6), "its REPLY"
    rejected(talk.says(asked), "nothing to give back")

    lease = talk.has_a_lease()
    assert talk.apply(talk.says(asks(DEC, 1, leased(1), xid=9)))[0] == Release(lease, "declined by the VM")
    talk.has_a_lease()
    talk.now += 59
    rejected(talk.says(asks(DEC, 1, leased(1), xid=9)), "one in a minute", spoofed=True)
    talk.now += 1
    assert isinstance(talk.says(asks(DEC, 1, leased(1), xid=9))[0], Release)

    asked = asks(REN, 1, leased(1))
    talk.says(asked)
    taken_back = talk.hears(answers(asked, leased(1), valid=0, preferred=0))
    assert [type(effect) for effect in taken_back] == [Release, ToVM6]


def test_another_lease_of_the_same_ia_takes_the_place_of_the_first(talk: Dialogue) -> None:
    first = talk.has_a_lease()
    other = asks(REQ, 1, leased(9), iaid=8)
    talk.says(other)
    assert [type(e) for e in talk.hears(answers(other, leased(9)))] == [Bind, ToVM6], "another IA"
    asked = asks(REQ, 1, leased(3), xid=5)
    talk.says(asked)
    effects = talk.hears(answers(asked, leased(3)))
    assert effects[0] == Release(first, f"replaced by {leased(3)}")
    assert {leased(3), leased(9)} <= talk.net.assignments.keys()


@pytest.mark.parametrize(
    ("said", "other", "why", "spoofed"),
    [
        (asks(S), {"eth_src": vm_mac(2)}, "for MAC", True),
        (asks(S), {"src": vm_local(2)}, "no link-local address", True),
        (asks(S), {"src": vm_ip6(1)}, "no link-local address", True),
        (asks(S), {"src": UNSPECIFIED}, "no link-local address", True),
        (asks(S), {"dst": IPv6Address("fe80::1")}, "not to ff02::1:2", False),
        (asks(S), {"port": 99}, "no VM is known", False),
        (asks(REP), {}, "server's message", True),
        (asks(REC), {}, "server's message", True),
        (asks(S, server=b"any"), {}, "with a server identifier", False),
        (asks(REQ, server=b""), {}, "without a server identifier", False),
        (replace(asks(S), client_id=b""), {}, "without a client identifier", False),
        (replace(asks(S), ias=()), {}, "without an IA", False),
        (asks(INF), {}, "with an IA", False),
        (asks(S, 2), {}, "(DUID) of vm2", True),
        (replace(asks(S), client_id=b"\0\1\0\1time" + duid(2)[4:]), {}, "(DUID) of vm2", True),
        (asks(REN, 1, vm_ip6(2)), {}, "held by another VM", True),
        (asks(REL, 1, vm_ip6(2)), {}, "held by another VM", True),
        (asks(REL, 1, leased(1)), {}, "nothing to give back", False),
        (asks(DEC, 1), {}, "nothing to give back", False),
    ],
)
def test_what_is_not_asked_so(
    talk: Dialogue, said: DHCP6, other: dict[str, Any], why: str, spoofed: bool
) -> None:
    talk.net.assign(holding6(2))
    rejected(talk.says(said, **other), why, spoofed=spoofed)
    assert not list(talk.snooper.questions)


def test_a_link_local_address_that_is_bound_is_its_own(talk: Dialogue) -> None:
    private = IPv6Address("fe80::abcd")
    talk.net.assign(Assignment(private, vm_mac(1), "vm1", BindingKind.SLAAC, Origin.CONTROLLER))
    talk.says(asks(S), src=private)
    assert isinstance(talk.hears(answers(asks(S), leased(1)), peer=private)[0], ToVM6)


def test_a_duid_belongs_to_who_has_a_lease_under_it(talk: Dialogue) -> None:
    copied = b"\0\4" + bytes(16)
    asked = replace(asks(REQ, 2, leased(2)), client_id=copied)
    talk.says(asked, 2)
    talk.hears(answers(asked, leased(2)), 2)
    rejected(talk.says(replace(asks(S), client_id=copied)), "(DUID) of vm2", spoofed=True)


def test_who_asks_for_anothers_address_is_noted_unless_a_server_offered_it(talk: Dialogue) -> None:
    talk.net.assign(holding6(2))
    note, to_servers = talk.says(asks(S, 1, vm_ip6(2)))
    assert isinstance(note, Suspicious)
    assert isinstance(to_servers, ToServers6)
    talk.net.unassign(vm_ip6(2))
    talk.hears(answers(asks(S), vm_ip6(2)))
    talk.net.assign(holding6(2))
    assert len(talk.says(asks(REQ, 1, vm_ip6(2)))) == 1


def test_no_nic_asks_for_more_than_its_share(talk: Dialogue) -> None:
    for number in range(MOST_DHCP6_ADDRESSES):
        asked = asks(REQ, 1, leased(0x10 + number), iaid=number)
        talk.says(asked)
        talk.hears(answers(asked, leased(0x10 + number)))
    rejected(talk.says(asks(REQ, 1, iaid=99)), "asks for more than")
    rejected(talk.says(replace(asks(S, iaid=0), client_id=b"\0\2another")), "asks for more than")
    asked = asks(REN, 1, leased(0x10), iaid=0)
    assert isinstance(talk.says(asked)[0], ToServers6)
    rejected(talk.hears(answers(asked, leased(0x10), leased(0x99))), "more than")


REQUEST = asks(REQ, 1, leased(1))


@pytest.mark.parametrize(
    ("answer", "other"),
    [
        (answers(REQUEST, leased(1), xid=2), {}),
        (answers(REQUEST, leased(1), client_id=duid(2)), {}),
        (answers(REQUEST, leased(1), server_id=b"another"), {}),
        (answers(REQUEST, leased(1), server_id=b""), {}),
        (answers(REQUEST, leased(1), type=MessageType6.ADVERTISE), {}),
        (answers(REQUEST, ias=(ia(leased(1), valid=9, iaid=99),)), {}),
        (answers(REQUEST, leased(1)), {"peer": vm_local(2)}),
        (answers(REQUEST, leased(1)), {"interface_id": b"edge2:10"}),
    ],
)
def test_an_answer_fits_its_question(talk: Dialogue, answer: DHCP6, other: dict[str, Any]) -> None:
    talk.says(REQUEST)
    rejected(talk.hears(answer, **other), "no VM asked")
    assert isinstance(talk.hears(answers(REQUEST, leased(1)))[0], Bind), "the question waits on"


def test_a_question_is_not_answered_too_late(talk: Dialogue) -> None:
    talk.says(REQUEST)
    talk.now += PENDING_SECONDS + 1
    rejected(talk.hears(answers(REQUEST, leased(1))), "no VM asked")
    talk.snooper.expire(talk.now)
    assert not list(talk.snooper.questions)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (answers(REQUEST, vm_ip6(2)), "but vm2 holds it"),
        (answers(REQUEST, GATEWAY6), "the gateway of subnet blue6"),
        (answers(REQUEST, IPv6Address("fd00:9::1")), "in no subnet of DHCPv6"),
        (answers(REQUEST, IPv6Address("fd00:2::1")), "in no subnet of DHCPv6"),
        (answers(REQUEST, leased(1), valid=1, preferred=2), "preferred for longer than valid"),
    ],
)
def test_what_a_server_may_not_grant(talk: Dialogue, answer: DHCP6, why: str) -> None:
    talk.net.assign(holding6(2))
    talk.net.add_subnet(Subnet("other", IPv6Network("fd00:2::/64"), IPv6Address("fd00:2::fe")))
    talk.says(REQUEST)
    before = dict(talk.net.assignments)
    rejected(talk.hears(answer), why)
    assert talk.net.assignments == before


def test_an_offer_of_anothers_address_is_not_handed_on(talk: Dialogue) -> None:
    talk.net.assign(holding6(2))
    talk.says(asks(S))
    rejected(talk.hears(answers(asks(S), vm_ip6(2))), "but vm2 holds it")


@pytest.mark.parametrize("kind", [REC, S])
def test_what_is_no_answer_of_a_server(talk: Dialogue, kind: MessageType6) -> None:
    talk.says(REQUEST)
    rejected(talk.hears(answers(REQUEST, leased(1), type=kind)), "which is no answer")


def test_information_and_confirmation_bind_nothing(talk: Dialogue) -> None:
    talk.has_a_lease()
    before = dict(talk.net.assignments)
    for asked in (replace(asks(INF), ias=()), asks(CONF, 1, leased(1), xid=3)):
        assert isinstance(talk.says(asked)[0], ToServers6)
        said = answers(asked)
        assert talk.hears(said) == [ToVM6("vm1", vm_mac(1), vm_local(1), said)]
    assert talk.net.assignments == before


def test_a_static_address_stays_one(talk: Dialogue) -> None:
    talk.net.assign(replace(holding6(1, None), kind=BindingKind.STATIC))
    asked = asks(REQ, 1, vm_ip6(1))
    talk.says(asked)
    assert [type(effect) for effect in talk.hears(answers(asked, vm_ip6(1)))] == [ToVM6]


def test_where_a_vm_does_not_run_it_ends_nothing(talk: Dialogue) -> None:
    lease = talk.has_a_lease()
    rejected(talk.says(asks(REL, 1, leased(1)), runs_here=False), "does not run", spoofed=True)
    asked = asks(REQ, 1, leased(3), xid=4)
    talk.says(asked, runs_here=False)
    rejected(talk.hears(answers(asked, leased(3))), "does not run")
    asked = asks(REN, 1, leased(1), xid=5)
    talk.says(asked, runs_here=False)
    talk.hears(answers(asked, leased(1), valid=1, preferred=1))
    assert talk.net.assignments[leased(1)] == lease, "it is not made shorter either"


# ---- on the VM's behalf ----


def announced(talk: Dialogue) -> DHCP6:
    talk.has_a_lease()
    talk.now += 60
    talk.snooper.announced.announce("vm1", vm_mac(1), leased(1), 77, "edge1", talk.now)
    return asks(REN, 1, leased(1), xid=77)


def test_the_agents_renewal_is_recorded_and_its_answer_is_the_agents(talk: Dialogue) -> None:
    asked = announced(talk)
    recorded, to_servers = talk.says(asked)
    assert recorded == Recorded("vm1", 77, "edge1", vm_port(1))
    assert isinstance(to_servers, ToServers6)
    bind, to_agent = talk.hears(answers(asked, leased(1)))
    assert isinstance(bind, Bind)
    assert (bind.renewed, bind.assignment.lease_end) == (True, talk.now + VALID)
    assert to_agent == ToAgent("vm1", 77)
    assert talk.says(asked) == [], "late, and known as its own"
    assert talk.hears(answers(asked, leased(1))) == []


def test_an_answer_before_the_agent_has_asked_is_nobodys(talk: Dialogue) -> None:
    asked = announced(talk)
    rejected(talk.hears(answers(asked, leased(1))), "no VM asked")
    talk.says(asked)
    assert isinstance(talk.hears(answers(asked, leased(1)))[0], Bind)


def test_what_the_agent_has_asked_is_withdrawn_with_its_order_and_the_vms_own_question_not(
    talk: Dialogue,
) -> None:
    asked = announced(talk)
    talk.says(asked)
    own = asks(REN, 1, leased(1), xid=78)
    talk.says(own)
    talk.snooper.withdraw(vm_mac(1), 77, talk.now)
    assert talk.hears(answers(asked, leased(1))) == [], "it comes too late"
    assert isinstance(talk.hears(answers(own, leased(1)))[0], Bind)


@pytest.mark.parametrize("valid", [0, None])
def test_the_agent_hears_why_not_and_the_vm_keeps_its_address(talk: Dialogue, valid: int | None) -> None:
    asked = announced(talk)
    talk.says(asked)
    said = answers(asked, ias=(replace(ia(), status=Status(3, "unknown")),))
    if valid is not None:
        said = answers(asked, leased(1), valid=0, preferred=0)
    no, to_agent = talk.hears(said)
    assert isinstance(no, Rejected)
    assert isinstance(to_agent, ToAgent)
    assert "does not renew" in to_agent.rejection
    assert ("status 3 unknown" in to_agent.rejection) == (valid is None)
    assert leased(1) in talk.net.assignments


def test_only_what_was_announced_is_the_agents(talk: Dialogue) -> None:
    asked = announced(talk)
    rejected(talk.says(replace(asked, type=REQ)), "not the renewal", spoofed=True)
    rejected(talk.says(asks(REN, 1, leased(3), xid=77)), "not the renewal", spoofed=True)
    elsewhere = replace(talk.net.vms["vm1"], also=frozenset({"server3"}))
    talk.net.put_vm(elsewhere)
    rejected(talk.says(asked, switch="edge3"), "came in at edge3", spoofed=True)
    talk.snooper.withdraw(vm_mac(1), 77, talk.now)
    assert talk.says(asked) == []
