"""DHCP snooping as dialogues (rows A6, A8, A9, F3): a message in, effects out."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

import networks
from retinue.bindings import (
    Bind,
    ClientMessage,
    Recorded,
    Refused,
    Release,
    ServerMessage,
    Snooper,
    ToAgent,
    ToServers,
    ToVM,
)
from retinue.model import BindingKind, Network, VMPort
from retinue.packets import DHCP, ack, decline, discover, nak, offer, release, renewal, request

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
    snooper.net.hold(bind.holding)
    return bind


def test_first_boot_makes_the_binding_from_the_ack(snooper: Snooper) -> None:
    bind = boot(snooper)
    assert (bind.holding.ip, bind.holding.mac, bind.holding.vm) == (IP, MAC, "vm1")
    assert bind.holding.lease_end == 1000.0 + LEASE
    assert not bind.renewed


def test_a_vm_may_not_speak_as_a_relay_agent(snooper: Snooper) -> None:
    """RFC 3046 section 2.1: option 82 from an untrusted circuit is not believed, with or without giaddr."""
    with_option = discover(MAC, 7).with_option(82, b"\x01\x04evil")
    through_relay = replace(discover(MAC, 7), giaddr=IPv4Address("10.1.0.9"))
    for message in (with_option, through_relay, request(MAC, 7, IP, SERVER).with_option(82, b"")):
        (refused,) = snooper.client(from_vm(message), 1000.0)
        assert isinstance(refused, Refused)
        assert refused.forged
        assert "relay" in refused.reason


def test_a_request_alone_binds_nothing(snooper: Snooper) -> None:
    effects = snooper.client(from_vm(request(MAC, 7, IP, SERVER)), 0.0)
    assert effects == [ToServers("vm1")]
    assert snooper.net.held_by("vm1") == ()


def test_renewal_extends_the_lease(snooper: Snooper) -> None:
    boot(snooper)
    ask = renewal(IP, MAC, 8)
    assert snooper.client(from_vm(ask), 1300.0) == [ToServers("vm1")]
    bind, _ = snooper.server(from_server(ack(ask, IP, SERVER, LEASE)), 1300.0)
    assert isinstance(bind, Bind)
    assert bind.renewed
    assert bind.holding.lease_end == 1900.0


def test_release_and_decline_end_the_binding(snooper: Snooper) -> None:
    held = boot(snooper).holding
    assert snooper.client(from_vm(release(IP, MAC, 9, SERVER)), 1001.0) == [
        Release(held, "released by the VM"), ToServers("vm1"),
    ]  # fmt: skip
    assert snooper.client(from_vm(decline(MAC, 9, IP, SERVER)), 1001.0) == [
        Release(held, "declined by the VM"), ToServers("vm1"),
    ]  # fmt: skip


def test_nak_ends_the_binding_asked_for(snooper: Snooper) -> None:
    held = boot(snooper).holding
    ask = renewal(IP, MAC, 8)
    snooper.client(from_vm(ask), 1300.0)
    ended, to_vm = snooper.server(from_server(nak(ask, SERVER)), 1300.0)
    assert ended == Release(held, "refused by DHCP server dhcp")
    assert to_vm == ToVM("vm1")


def test_lease_end_ends_the_binding(snooper: Snooper) -> None:
    held = boot(snooper).holding
    assert snooper.next_end() == 1600.0
    assert snooper.expire(1599.9) == []
    assert snooper.expire(1600.0) == [Release(held, "the lease ended")]


def test_another_address_replaces_the_first(snooper: Snooper) -> None:
    held = boot(snooper).holding
    other = IPv4Address("10.1.0.77")
    ask = request(MAC, 9, other, SERVER)
    snooper.client(from_vm(ask), 1100.0)
    effects = snooper.server(from_server(ack(ask, other, SERVER, LEASE)), 1100.0)
    assert effects[0] == Release(held, f"replaced by {other}")
    assert isinstance(effects[1], Bind)


def test_an_ack_nobody_asked_for_is_refused(snooper: Snooper) -> None:
    effects = snooper.server(from_server(ack(request(MAC, 7, IP, SERVER), IP, SERVER, LEASE)), 0.0)
    assert [type(e) for e in effects] == [Refused]


def test_an_ack_too_late_is_refused(snooper: Snooper) -> None:
    ask = request(MAC, 7, IP, SERVER)
    snooper.client(from_vm(ask), 0.0)
    assert [type(e) for e in snooper.server(from_server(ack(ask, IP, SERVER, LEASE)), 61.0)] == [Refused]


def test_an_address_held_by_another_is_never_taken(snooper: Snooper) -> None:
    theirs = networks.vm_ip(2)
    ask = request(MAC, 7, theirs, SERVER)
    snooper.client(from_vm(ask), 0.0)
    effects = snooper.server(from_server(ack(ask, theirs, SERVER, LEASE)), 0.0)
    assert [type(e) for e in effects] == [Refused]
    assert snooper.net.holdings[theirs].vm == "vm2"


def forged(snooper: Snooper, message: ClientMessage) -> str:
    effects = snooper.client(message, 1000.0)
    assert len(effects) == 1
    assert isinstance(effects[0], Refused)
    assert effects[0].forged
    return effects[0].reason


def test_a_vm_speaks_only_for_itself(snooper: Snooper) -> None:
    theirs, their_ip = networks.vm_mac(2), networks.vm_ip(2)
    assert theirs in forged(snooper, from_vm(discover(theirs, 1)))
    assert theirs in forged(snooper, from_vm(discover(MAC, 1), eth_src=theirs))
    forged(snooper, from_vm(renewal(their_ip, MAC, 1)))
    forged(snooper, from_vm(release(their_ip, MAC, 1, SERVER)))
    forged(snooper, from_vm(replace(discover(MAC, 1), giaddr=IPv4Address("10.1.0.9"))))
    forged(snooper, from_vm(offer(discover(MAC, 1), IP, SERVER, LEASE)))


def test_a_port_without_a_vm_is_refused(snooper: Snooper) -> None:
    effects = snooper.client(ClientMessage("edge1", 99, MAC, discover(MAC, 1)), 0.0)
    assert [type(e) for e in effects] == [Refused]


def test_the_managers_word_stands_over_a_lease(snooper: Snooper) -> None:
    net = snooper.net
    net.hold(replace(networks.holding(1), kind=BindingKind.STATIC, lease_end=None))
    ask = request(MAC, 7, IP, SERVER)
    snooper.client(from_vm(ask), 0.0)
    assert snooper.server(from_server(ack(ask, IP, SERVER, LEASE)), 0.0) == [ToVM("vm1")]
    assert snooper.client(from_vm(release(IP, MAC, 8, SERVER)), 1.0)[0] != ToServers("vm1")


def test_questions_are_bounded(snooper: Snooper) -> None:
    for xid in range(1000):
        snooper.client(from_vm(discover(MAC, xid)), 0.0)
    assert len(snooper._asked) <= 8
    snooper.expire(61.0)
    assert not snooper._asked


# ---- the agent's renewal ----


def announced(snooper: Snooper, xid: int = 8, switch: str = "edge1") -> DHCP:
    snooper.announce("vm1", MAC, IP, xid, switch, 1100.0)
    return renewal(IP, MAC, xid, b"\x01me")


def test_the_agents_renewal_is_recorded_and_answered_to_the_agent(snooper: Snooper) -> None:
    """A3, A6, A7: the port from the request, the binding from the ACK, the ACK not for the VM."""
    boot(snooper)
    ask = announced(snooper)
    assert snooper.client(from_vm(ask), 1200.0) == [
        Recorded("vm1", 8, "edge1", networks.vm_port(1)), ToServers("vm1"),
    ]  # fmt: skip
    assert snooper.net.holdings[IP].lease_end == 1600.0, "the request alone binds nothing"
    bind, told = snooper.server(from_server(ack(ask, IP, SERVER, LEASE)), 1200.5)
    assert isinstance(bind, Bind)
    assert (bind.holding.lease_end, bind.holding.server, bind.holding.client_id) == (
        1200.5 + LEASE, SERVER, b"\x01me",
    )  # fmt: skip
    assert told == ToAgent("vm1", 8)


def test_a_second_answer_to_the_agents_renewal_is_dropped_quietly(snooper: Snooper) -> None:
    boot(snooper)
    ask = announced(snooper)
    for _ in range(2):
        assert snooper.client(from_vm(ask), 1200.0)[1:] == [ToServers("vm1")]
    assert len(snooper.server(from_server(ack(ask, IP, SERVER, LEASE)), 1200.5)) == 2
    snooper.withdraw(MAC, 8, 1200.5)
    assert snooper.server(from_server(ack(ask, IP, SERVER, LEASE)), 1200.6) == []
    assert snooper.client(from_vm(ask), 1200.7) == []


def test_the_agents_renewal_refused_ends_the_binding_and_says_why(snooper: Snooper) -> None:
    held = boot(snooper).holding
    ask = announced(snooper)
    snooper.client(from_vm(ask), 1200.0)
    assert snooper.server(from_server(nak(ask, SERVER, "not here")), 1200.5) == [
        Release(held, "refused by DHCP server dhcp"),
        ToAgent("vm1", 8, "refused by DHCP server dhcp: not here"),
    ]


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
    assert told == ToAgent("vm1", 9, "refused by DHCP server dhcp")


def test_a_renewal_with_another_address_than_was_asked_for_binds_nothing(snooper: Snooper) -> None:
    ask = announced(snooper)
    snooper.client(from_vm(ask), 1200.0)
    other = IPv4Address("10.1.0.77")
    refused, told = snooper.server(from_server(ack(ask, other, SERVER, LEASE)), 1200.5)
    assert isinstance(refused, Refused)
    assert isinstance(told, ToAgent)
    assert "10.1.0.77" in told.refusal


def test_a_renewal_cannot_be_forged(snooper: Snooper) -> None:
    """F3: by another VM, from another switch than announced, or with another content."""
    boot(snooper)
    ask = announced(snooper)
    theirs = networks.vm_mac(2)
    assert MAC in forged(snooper, from_vm(ask, vm=2))
    assert MAC in forged(snooper, from_vm(ask, vm=2, eth_src=theirs))
    assert "held by another VM" in forged(snooper, from_vm(renewal(IP, theirs, 8), vm=2, eth_src=theirs))
    networks.add_vm(snooper.net, 3, at=2, bound=False)
    for message in (renewal(IPv4Address("10.1.0.77"), MAC, 8), discover(MAC, 8), request(MAC, 8, IP, SERVER)):
        assert "announced" in forged(snooper, from_vm(message))
    assert snooper._asked == {}, "none of it is a question"


def test_a_renewal_counts_only_at_the_switch_it_was_announced_for(snooper: Snooper) -> None:
    """During a move the VM has a port on two switches; it has arrived at one."""
    net = snooper.net
    net.put_vm(replace(net.vms["vm1"], also=frozenset({"server2"})))
    net.set_vm_port("vm1", "edge2", VMPort(33, "tap1"))
    ask = announced(snooper, switch="edge2")
    assert "announced at edge2" in forged(snooper, from_vm(ask))
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
        snooper.announce("vm1", MAC, IP, xid, "edge1", float(xid))
        snooper.withdraw(MAC, xid, float(xid))
    snooper.announce("vm1", MAC, IP, 1000, "edge1", 1000.0)
    assert len(snooper._announced) == 1
