"""DHCP snooping as dialogues: a message in, effects out."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from retinue.core.model import BindingKind, Network, VMPort
from retinue.core.packets import (
    DHCP,
    MessageType,
    ack,
    decline,
    discover,
    nak,
    offer,
    release,
    renewal,
    request,
)
from retinue.core.snooping import (
    Bind,
    ClientMessage,
    Disagreement,
    Effect,
    Recorded,
    Rejected,
    Release,
    ServerMessage,
    Snooper,
    ToAgent,
    ToServers,
    ToVM,
)
from retinue.core.snooping.messages import ToldOtherwise
from retinue.core.snooping.renewed import told_otherwise
from support.fabric import networks

SERVER = IPv4Address("10.1.0.2")
IP = networks.vm_ip(1)
MAC = networks.vm_mac(1)
LEASE = 600


@pytest.fixture
def net() -> Network:
    net = networks.fabric()
    networks.add_vm(net, 1, at=1, bound=False)
    networks.add_vm(net, 2, at=1)
    return net


@pytest.fixture
def snooper(net: Network) -> Snooper:
    return Snooper(net)


def from_vm(dhcp: DHCP, vm: int = 1, eth_src: str = MAC) -> ClientMessage:
    return ClientMessage("edge1", networks.vm_port(vm), eth_src, dhcp)


def from_server(dhcp: DHCP) -> ServerMessage:
    return ServerMessage("dhcp", dhcp)


def boot(snooper: Snooper, now: float = 1000.0) -> Bind:
    """The whole exchange of a first boot; returns the binding it makes."""
    first = discover(MAC, 7)
    assert snooper.client(from_vm(first), now) == [ToServers("vm1")]
    assert snooper.server(from_server(offer(first, IP, SERVER, LEASE)), now) == [ToVM("vm1")]
    second = request(MAC, 7, IP, SERVER)
    assert snooper.client(from_vm(second), now) == [ToServers("vm1")]
    bind, to_vm = snooper.server(from_server(ack(second, IP, SERVER, LEASE)), now)
    assert isinstance(bind, Bind)
    assert to_vm == ToVM("vm1")
    snooper.net.assign(bind.assignment)
    return bind


def test_first_boot_makes_the_binding_from_the_ack(snooper: Snooper) -> None:
    bind = boot(snooper)
    assert (bind.assignment.ip, bind.assignment.mac, bind.assignment.vm) == (IP, MAC, "vm1")
    assert bind.assignment.lease_end == 1000.0 + LEASE
    assert not bind.renewed


def test_a_vm_may_not_speak_as_a_relay_agent(snooper: Snooper) -> None:
    """RFC 3046 section 2.1: option 82 from an untrusted circuit is not believed, with or without giaddr."""
    with_option = discover(MAC, 7).with_option(82, b"\x01\x04evil")
    through_relay = replace(discover(MAC, 7), giaddr=IPv4Address("10.1.0.9"))
    for message in (with_option, through_relay, request(MAC, 7, IP, SERVER).with_option(82, b"")):
        (rejected,) = snooper.client(from_vm(message), 1000.0)
        assert isinstance(rejected, Rejected)
        assert rejected.spoofed
        assert "relay" in rejected.reason


def test_a_request_alone_binds_nothing(snooper: Snooper) -> None:
    effects = snooper.client(from_vm(request(MAC, 7, IP, SERVER)), 0.0)
    assert effects == [ToServers("vm1")]
    assert snooper.net.held_by("vm1") == ()


def test_an_answer_to_a_vm_that_is_gone_is_nobodys(snooper: Snooper) -> None:
    asked = request(MAC, 7, IP, SERVER)
    assert snooper.client(from_vm(asked), 0.0) == [ToServers("vm1")]
    snooper.net.remove_vm("vm1")
    answers = (ack(asked, IP, SERVER, LEASE), nak(asked, SERVER), offer(asked, IP, SERVER, LEASE))
    for answer in answers:
        (rejected,) = snooper.server(from_server(answer), 1.0)
        assert isinstance(rejected, Rejected)
        assert "no VM asked" in rejected.reason


def test_renewal_extends_the_lease(snooper: Snooper) -> None:
    boot(snooper)
    ask = renewal(IP, MAC, 8)
    assert snooper.client(from_vm(ask), 1300.0) == [ToServers("vm1")]
    bind, _ = snooper.server(from_server(ack(ask, IP, SERVER, LEASE)), 1300.0)
    assert isinstance(bind, Bind)
    assert bind.renewed
    assert bind.assignment.lease_end == 1900.0


def test_release_and_decline_end_the_binding(snooper: Snooper) -> None:
    held = boot(snooper).assignment
    assert snooper.client(from_vm(release(IP, MAC, 9, SERVER)), 1001.0) == [
        Release(held, "released by the VM"), ToServers("vm1"),
    ]  # fmt: skip
    assert snooper.client(from_vm(decline(MAC, 9, IP, SERVER)), 1001.0) == [
        Release(held, "declined by the VM"), ToServers("vm1"),
    ]  # fmt: skip


def test_nak_ends_the_binding_asked_for(snooper: Snooper) -> None:
    held = boot(snooper).assignment
    ask = renewal(IP, MAC, 8)
    snooper.client(from_vm(ask), 1300.0)
    ended, to_vm = snooper.server(from_server(nak(ask, SERVER)), 1300.0)
    assert ended == Release(held, "rejected by DHCP server dhcp")
    assert to_vm == ToVM("vm1")


def test_nak_to_a_renewal_ends_no_other_lease(snooper: Snooper) -> None:
    """A VM may hold several; a renewal names its own by ciaddr, and has no option 50."""
    held = boot(snooper).assignment
    second = IPv4Address("10.1.0.77")
    other = replace(held, ip=second)
    snooper.net.assign(other)
    ask = renewal(second, MAC, 8)
    snooper.client(from_vm(ask), 1300.0)
    ended, to_vm = snooper.server(from_server(nak(ask, SERVER)), 1300.0)
    assert ended == Release(other, "rejected by DHCP server dhcp")
    assert to_vm == ToVM("vm1")
    assert held != other


def test_lease_end_ends_the_binding(snooper: Snooper) -> None:
    held = boot(snooper).assignment
    assert snooper.next_end() == 1600.0
    assert snooper.expire(1599.9) == []
    assert snooper.expire(1600.0) == [Release(held, "the lease ended")]


def test_another_address_replaces_the_first(snooper: Snooper) -> None:
    held = boot(snooper).assignment
    other = IPv4Address("10.1.0.77")
    ask = request(MAC, 9, other, SERVER)
    snooper.client(from_vm(ask), 1100.0)
    effects = snooper.server(from_server(ack(ask, other, SERVER, LEASE)), 1100.0)
    assert effects[0] == Release(held, f"replaced by {other}")
    assert isinstance(effects[1], Bind)


def test_an_ack_nobody_asked_for_is_rejected(snooper: Snooper) -> None:
    effects = snooper.server(from_server(ack(request(MAC, 7, IP, SERVER), IP, SERVER, LEASE)), 0.0)
    assert [type(e) for e in effects] == [Rejected]


def test_an_ack_that_grants_nothing_binds_nothing(snooper: Snooper) -> None:
    """Without an address, or without an end and not for ever (RFC 2131, 4.3.1 table 3)."""
    ask = request(MAC, 7, IP, SERVER)
    granted = ack(ask, IP, SERVER, LEASE)
    for answer in (replace(granted, yiaddr=IPv4Address(0)), granted.without_option(51)):
        snooper.client(from_vm(ask), 1000.0)
        (rejected,) = snooper.server(from_server(answer), 1000.0)
        assert isinstance(rejected, Rejected)
        assert "without an address or a lease time" in rejected.reason
        assert not rejected.spoofed


def test_an_ack_too_late_is_rejected(snooper: Snooper) -> None:
    ask = request(MAC, 7, IP, SERVER)
    snooper.client(from_vm(ask), 0.0)
    assert [type(e) for e in snooper.server(from_server(ack(ask, IP, SERVER, LEASE)), 61.0)] == [Rejected]


def test_an_address_held_by_another_is_never_taken(snooper: Snooper) -> None:
    theirs = networks.vm_ip(2)
    ask = request(MAC, 7, theirs, SERVER)
    snooper.client(from_vm(ask), 0.0)
    effects = snooper.server(from_server(ack(ask, theirs, SERVER, LEASE)), 0.0)
    assert [type(e) for e in effects] == [Rejected, Disagreement]
    assert snooper.net.assignments[theirs].vm == "vm2"


def spoofed(snooper: Snooper, message: ClientMessage) -> str:
    effects = snooper.client(message, 1000.0)
    assert len(effects) == 1
    assert isinstance(effects[0], Rejected)
    assert effects[0].spoofed
    return effects[0].reason


def test_a_vm_speaks_only_for_itself(snooper: Snooper) -> None:
    theirs, their_ip = networks.vm_mac(2), networks.vm_ip(2)
    assert theirs in spoofed(snooper, from_vm(discover(theirs, 1)))
    assert theirs in spoofed(snooper, from_vm(discover(MAC, 1), eth_src=theirs))
    spoofed(snooper, from_vm(renewal(their_ip, MAC, 1)))
    spoofed(snooper, from_vm(release(their_ip, MAC, 1, SERVER)))
    spoofed(snooper, from_vm(replace(discover(MAC, 1), giaddr=IPv4Address("10.1.0.9"))))
    spoofed(snooper, from_vm(offer(discover(MAC, 1), IP, SERVER, LEASE)))


def test_a_port_without_a_vm_is_rejected(snooper: Snooper) -> None:
    effects = snooper.client(ClientMessage("edge1", 99, MAC, discover(MAC, 1)), 0.0)
    assert [type(e) for e in effects] == [Rejected]


def test_the_managers_word_stands_over_a_lease(snooper: Snooper) -> None:
    net = snooper.net
    net.assign(replace(networks.assignment(1), kind=BindingKind.STATIC, lease_end=None))
    ask = request(MAC, 7, IP, SERVER)
    snooper.client(from_vm(ask), 0.0)
    assert snooper.server(from_server(ack(ask, IP, SERVER, LEASE)), 0.0) == [ToVM("vm1")]
    assert snooper.client(from_vm(release(IP, MAC, 8, SERVER)), 1.0)[0] != ToServers("vm1")


def test_questions_are_bounded(snooper: Snooper) -> None:
    for xid in range(1000):
        snooper.client(from_vm(discover(MAC, xid)), 0.0)
    assert [q.asked.xid for q in snooper.questions] == list(range(992, 1000)), "the eight last ones"
    snooper.expire(60.0)
    assert len(list(snooper.questions)) == 8
    snooper.expire(60.1)
    assert not list(snooper.questions)


def test_a_question_is_remembered_while_its_answer_may_come(snooper: Snooper) -> None:
    """Leases are looked at from time to time, also between a REQUEST and its ACK."""
    ask = request(MAC, 7, IP, SERVER)
    snooper.client(from_vm(ask), 1000.0)
    assert snooper.expire(1059.0) == []
    bind, to_vm = snooper.server(from_server(ack(ask, IP, SERVER, LEASE)), 1059.5)
    assert isinstance(bind, Bind)
    assert to_vm == ToVM("vm1")


def test_a_vm_with_fewer_questions_keeps_them_all(snooper: Snooper) -> None:
    asked = [request(MAC, xid, IP, SERVER) for xid in range(8)]
    for ask in asked:
        snooper.client(from_vm(ask), 0.0)
    theirs = discover(networks.vm_mac(2), 99)
    snooper.client(from_vm(theirs, vm=2, eth_src=networks.vm_mac(2)), 0.0)
    for ask in asked:
        assert isinstance(snooper.server(from_server(ack(ask, IP, SERVER, LEASE)), 1.0)[0], Bind)


# ---- the agent's renewal ----


def announced(snooper: Snooper, xid: int = 8, switch: str = "edge1") -> DHCP:
    snooper.announced.announce("vm1", MAC, IP, xid, switch, 1100.0)
    return renewal(IP, MAC, xid, b"\x01me")


def test_the_agents_renewal_is_recorded_and_answered_to_the_agent(snooper: Snooper) -> None:
    """The port from the request, the binding from the ACK, the ACK not for the VM."""
    boot(snooper)
    ask = announced(snooper)
    assert snooper.client(from_vm(ask), 1200.0) == [
        Recorded("vm1", 8, "edge1", networks.vm_port(1)), ToServers("vm1"),
    ]  # fmt: skip
    assert snooper.net.assignments[IP].lease_end == 1600.0, "the request alone binds nothing"
    bind, told = snooper.server(from_server(ack(ask, IP, SERVER, LEASE)), 1200.5)
    assert isinstance(bind, Bind)
    assert (bind.assignment.lease_end, bind.assignment.server, bind.assignment.client_id) == (
        1200.5 + LEASE, SERVER, b"",
    )  # fmt: skip
    assert told == ToAgent("vm1", 8)


DNS, OTHER_DNS, WINS = bytes([10, 1, 0, 5]), bytes([10, 1, 0, 6, 10, 1, 0, 7]), bytes([10, 1, 0, 8])


def granted(snooper: Snooper, asked: DHCP, now: float, *told: tuple[int, bytes]) -> list[Effect]:
    """The server's ACK with these options: what it leads to, and the binding is made."""
    effects = snooper.server(from_server(ack(asked, IP, SERVER, LEASE, told)), now)
    (bind,) = [effect for effect in effects if isinstance(effect, Bind)]
    snooper.net.assign(bind.assignment)
    return [effect for effect in effects if not isinstance(effect, Bind)]


def renewed_by_agent(snooper: Snooper, xid: int, *told: tuple[int, bytes]) -> list[Effect]:
    ask = announced(snooper, xid)
    snooper.client(from_vm(ask), 1100.0 + xid)
    return granted(snooper, ask, 1100.0 + xid, *told)


def asked_by_vm(snooper: Snooper, xid: int) -> DHCP:
    ask = renewal(IP, MAC, xid)
    snooper.client(from_vm(ask), 1100.0 + xid)
    return ask


def test_name_servers_that_the_vm_does_not_hear_of_are_told_once(snooper: Snooper) -> None:
    """The guest sees no ACK to the agent: it goes on asking the old DNS server."""
    boot(snooper)
    assert granted(snooper, asked_by_vm(snooper, 8), 1108.0, (6, DNS), (44, WINS)) == [ToVM("vm1")]
    assert renewed_by_agent(snooper, 9, (44, WINS), (6, DNS)) == [ToAgent("vm1", 9)], "nothing is different"
    differs, to_agent = renewed_by_agent(snooper, 10, (6, OTHER_DNS))
    words = (
        f"{IP}: the DHCP server now names DNS 10.1.0.6, 10.1.0.7; the VM was told DNS 10.1.0.5; WINS "
        "10.1.0.8, and hears of it when it renews by itself"
    )
    assert (differs, to_agent) == (ToldOtherwise("vm1", IP, words), ToAgent("vm1", 10))
    assert told_otherwise(snooper.net.assignments[IP]) == words
    assert renewed_by_agent(snooper, 11, (6, OTHER_DNS)) == [ToAgent("vm1", 11)], "it has been said"
    (differs, _) = renewed_by_agent(snooper, 12)
    assert isinstance(differs, ToldOtherwise) and "now names none" in differs.reason
    assert renewed_by_agent(snooper, 13, (6, DNS), (44, WINS)) == [ToAgent("vm1", 13)]
    assert told_otherwise(snooper.net.assignments[IP]) == "", "it is as the VM knows it"
    assert len(renewed_by_agent(snooper, 14, (6, OTHER_DNS))) == 2
    granted(snooper, asked_by_vm(snooper, 15), 1115.0, (6, OTHER_DNS))
    assert told_otherwise(snooper.net.assignments[IP]) == "", "the VM has heard of it"


def test_of_a_vm_that_was_told_none_nobody_knows_what_it_uses(snooper: Snooper) -> None:
    boot(snooper)
    assert renewed_by_agent(snooper, 9, (6, DNS)) == [ToAgent("vm1", 9)]


def test_a_second_answer_to_the_agents_renewal_is_dropped_quietly(snooper: Snooper) -> None:
    boot(snooper)
    ask = announced(snooper)
    for _ in range(2):
        assert snooper.client(from_vm(ask), 1200.0)[1:] == [ToServers("vm1")]
    assert len(snooper.server(from_server(ack(ask, IP, SERVER, LEASE)), 1200.5)) == 2
    snooper.withdraw(MAC, 8, 1200.5)
    assert snooper.server(from_server(ack(ask, IP, SERVER, LEASE)), 1200.6) == []
    assert snooper.client(from_vm(ask), 1200.7) == []


def test_answers_that_come_once_more_are_known_for_a_minute(snooper: Snooper) -> None:
    """They are no spoofing, and nothing to report, before the agent has heard of the first and after."""
    boot(snooper)
    ask = announced(snooper)
    answer = from_server(ack(ask, IP, SERVER, LEASE))
    snooper.client(from_vm(ask), 1200.0)
    assert len(snooper.server(answer, 1200.5)) == 2
    assert snooper.server(answer, 1200.6) == [], "nobody has withdrawn it yet"
    assert snooper.client(from_vm(ask), 1200.6) == []
    snooper.withdraw(MAC, 8, 1201.0)
    snooper.announced.announce("vm1", MAC, IP, 9, "edge1", 1261.0)
    assert snooper.server(answer, 1261.0) == []
    snooper.announced.announce("vm1", MAC, IP, 10, "edge1", 1261.1)
    assert [type(effect) for effect in snooper.server(answer, 1261.1)] == [Rejected]
    assert {xid for xid, _ in snooper.announced._of} == {9, 10}, "those that are open stay"


def test_a_nak_to_the_agent_takes_nothing_away_before_the_lease_ends(snooper: Snooper) -> None:
    held = boot(snooper).assignment
    ask = announced(snooper)
    snooper.client(from_vm(ask), 1200.0)
    said = "rejected by DHCP server dhcp: not here; the VM keeps its address until the lease ends"
    assert snooper.server(from_server(nak(ask, SERVER, "not here")), 1200.5) == [ToAgent("vm1", 8, said)]
    assert snooper.net.assignments[IP] == held
    assert snooper.expire(1600.0) == [Release(held, "the lease ended")]


def test_a_lease_that_has_ended_may_be_renewed_or_not_as_the_server_says(snooper: Snooper) -> None:
    ask = announced(snooper)
    snooper.client(from_vm(ask), 1200.0)
    bind, told = snooper.server(from_server(ack(ask, IP, SERVER, LEASE)), 1200.5)
    assert isinstance(bind, Bind)
    assert not bind.renewed
    assert told == ToAgent("vm1", 8)
    ask = announced(snooper, xid=9)
    snooper.client(from_vm(ask), 1300.0)
    (told,) = snooper.server(from_server(nak(ask, SERVER)), 1300.5)
    assert told == ToAgent("vm1", 9, "rejected by DHCP server dhcp")


def test_a_renewal_with_another_address_than_was_asked_for_binds_nothing(snooper: Snooper) -> None:
    ask = announced(snooper)
    snooper.client(from_vm(ask), 1200.0)
    other = IPv4Address("10.1.0.77")
    rejected, told = snooper.server(from_server(ack(ask, other, SERVER, LEASE)), 1200.5)
    assert isinstance(rejected, Rejected)
    assert isinstance(told, ToAgent)
    assert "10.1.0.77" in told.rejection


def test_a_renewal_cannot_be_spoofed(snooper: Snooper) -> None:
    """By another VM, from another switch than announced, or with another content."""
    boot(snooper)
    before = list(snooper.questions)
    ask = announced(snooper)
    theirs = networks.vm_mac(2)
    assert MAC in spoofed(snooper, from_vm(ask, vm=2))
    assert MAC in spoofed(snooper, from_vm(ask, vm=2, eth_src=theirs))
    assert "held by another VM" in spoofed(snooper, from_vm(renewal(IP, theirs, 8), vm=2, eth_src=theirs))
    networks.add_vm(snooper.net, 3, at=2, bound=False)
    informs = renewal(IP, MAC, 8).without_option(53).with_option(53, bytes([MessageType.INFORM]))
    for message in (
        renewal(IPv4Address("10.1.0.77"), MAC, 8),
        discover(MAC, 8),
        request(MAC, 8, IP, SERVER),
        informs,
    ):
        assert "announced" in spoofed(snooper, from_vm(message))
    assert list(snooper.questions) == before, "none of it is a question"


def test_a_renewal_counts_only_at_the_switch_it_was_announced_for(snooper: Snooper) -> None:
    """During a migration the VM has a port on two switches; it has arrived at one."""
    net = snooper.net
    net.put_vm(replace(net.vms["vm1"], also=frozenset({"server2"})))
    net.set_vm_port("vm1", "edge2", VMPort(33, "tap1"))
    ask = announced(snooper, switch="edge2")
    assert "announced at edge2" in spoofed(snooper, from_vm(ask))
    recorded, _ = snooper.client(ClientMessage("edge2", 33, MAC, ask), 1000.0)
    assert recorded == Recorded("vm1", 8, "edge2", 33)


def test_the_vm_cannot_push_the_agents_question_out(snooper: Snooper) -> None:
    boot(snooper)
    ask = announced(snooper)
    snooper.client(from_vm(ask), 1200.0)
    for xid in range(100, 200):
        snooper.client(from_vm(discover(MAC, xid)), 1200.1)
    assert snooper.server(from_server(ack(ask, IP, SERVER, LEASE)), 1200.5)[1:] == [ToAgent("vm1", 8)]


def test_the_vms_own_renewal_meanwhile_is_its_own(snooper: Snooper) -> None:
    boot(snooper)
    announced(snooper)
    own = renewal(IP, MAC, 77)
    assert snooper.client(from_vm(own), 1200.0) == [ToServers("vm1")]
    assert snooper.server(from_server(ack(own, IP, SERVER, LEASE)), 1200.5)[1:] == [ToVM("vm1")]


def test_announcements_are_bounded(snooper: Snooper) -> None:
    for xid in range(100):
        snooper.announced.announce("vm1", MAC, IP, xid, "edge1", float(xid))
        snooper.withdraw(MAC, xid, float(xid))
    snooper.announced.announce("vm1", MAC, IP, 1000, "edge1", 1000.0)
    assert len(snooper.announced) == 1
