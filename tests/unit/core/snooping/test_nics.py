"""A VM with two NICs: each asks for itself, at its own port, by its own MAC, and has a lease of its own."""

from dataclasses import replace

import pytest

from retinue.core.model import Network
from retinue.core.packets import DHCP, ack, discover, offer, release, renewal, request
from retinue.core.snooping import (
    Bind,
    ClientMessage,
    Rejected,
    Release,
    ServerMessage,
    Snooper,
    Suspicious,
    ToServers,
    ToVM,
)
from support.fabric.dhcp_lab import LEASE, SERVER
from support.fabric.networks import add_vm, fabric, vm_ip, vm_mac, vm_port

FIRST, SECOND = 1, 17
"""The numbers of vm1's NICs."""


@pytest.fixture
def net() -> Network:
    net = fabric()
    add_vm(net, 1, at=1, bound=False, nics=2)
    return net


@pytest.fixture
def snooper(net: Network) -> Snooper:
    return Snooper(net)


def said(nic: int, dhcp: DHCP) -> ClientMessage:
    """By the guest, at the port of this NIC, from this NIC's MAC."""
    return ClientMessage("edge1", vm_port(nic), vm_mac(nic), dhcp)


def boot(snooper: Snooper, nic: int, ip: int = 0, now: float = 1000.0) -> list[object]:
    """The whole exchange; what the ACK leads to, of which the binding is made."""
    asked = request(vm_mac(nic), 7, vm_ip(ip or nic), SERVER)
    assert snooper.client(said(nic, discover(vm_mac(nic), 7)), now) == [ToServers("vm1")]
    offered = ServerMessage("dhcp", offer(discover(vm_mac(nic), 7), vm_ip(ip or nic), SERVER, LEASE))
    snooper.server(offered, now)
    snooper.client(said(nic, asked), now)
    effects = snooper.server(ServerMessage("dhcp", ack(asked, vm_ip(ip or nic), SERVER, LEASE)), now)
    for effect in effects:
        if isinstance(effect, Bind):
            snooper.net.assign(effect.assignment)
    return list(effects)


def test_each_nic_has_a_lease_of_its_own(snooper: Snooper) -> None:
    """The second takes nothing from the first: no binding ends, as it would where a VM had one lease."""
    for nic in (FIRST, SECOND):
        bind, to_vm = boot(snooper, nic)
        assert isinstance(bind, Bind) and to_vm == ToVM("vm1")
        assert (bind.assignment.ip, bind.assignment.mac) == (vm_ip(nic), vm_mac(nic))
    assert {held.ip for held in snooper.net.held_by("vm1")} == {vm_ip(FIRST), vm_ip(SECOND)}
    # Another address of one NIC takes the place of that NIC's lease, and of no other's.
    ended, bind, _ = boot(snooper, SECOND, ip=3)
    assert isinstance(ended, Release) and ended.assignment.ip == vm_ip(SECOND)
    assert isinstance(bind, Bind) and bind.assignment.ip == vm_ip(3)


def test_a_nic_does_not_ask_by_the_others_mac(snooper: Snooper) -> None:
    for message in (
        said(FIRST, discover(vm_mac(SECOND), 7)),
        replace(said(FIRST, discover(vm_mac(FIRST), 7)), eth_src=vm_mac(SECOND)),
        replace(said(FIRST, discover(vm_mac(SECOND), 7)), eth_src=vm_mac(SECOND)),
    ):
        (rejected,) = snooper.client(message, 0.0)
        assert isinstance(rejected, Rejected) and rejected.spoofed
        assert f"DHCP for MAC {vm_mac(SECOND)} at the port of vm1 ({vm_mac(FIRST)})" in rejected.reason


def test_a_nic_neither_gives_back_nor_renews_what_the_other_holds(snooper: Snooper) -> None:
    boot(snooper, FIRST)
    for message, reason in (
        (release(vm_ip(FIRST), vm_mac(SECOND), 9, SERVER), "is held by another NIC of it"),
        (renewal(vm_ip(FIRST), vm_mac(SECOND), 9), "is held by another NIC of it"),
    ):
        (rejected,) = snooper.client(said(SECOND, message), 0.0)
        assert isinstance(rejected, Rejected) and rejected.spoofed and reason in rejected.reason
    source = replace(said(SECOND, discover(vm_mac(SECOND), 9)), src=vm_ip(FIRST))
    (rejected,) = snooper.client(source, 0.0)
    assert isinstance(rejected, Rejected) and "which vm1 does not hold" in rejected.reason
    suspicious, _ = snooper.client(said(SECOND, request(vm_mac(SECOND), 9, vm_ip(FIRST), SERVER)), 0.0)
    assert suspicious == Suspicious(f"asks for {vm_ip(FIRST)}, which another NIC of it holds", "vm1")


def test_what_one_nic_holds_is_not_granted_to_the_other(snooper: Snooper) -> None:
    boot(snooper, FIRST)
    rejected, *_ = boot(snooper, SECOND, ip=FIRST)
    assert isinstance(rejected, Rejected)
    assert f"another NIC of it ({vm_mac(FIRST)}) holds it" in rejected.reason
    assert [held.mac for held in snooper.net.held_by("vm1")] == [vm_mac(FIRST)]


@pytest.mark.parametrize("known", ["by its MAC", "by its lease"])
def test_a_client_identifier_is_one_nics(snooper: Snooper, known: str) -> None:
    """A DHCP server would give both the same address."""
    identifier = bytes([1]) + bytes.fromhex(vm_mac(FIRST).replace(":", ""))
    if known == "by its lease":
        boot(snooper, FIRST)
        held = snooper.net.assignments[vm_ip(FIRST)]
        identifier = b"\xffsomething"
        snooper.net.assign(replace(held, client_id=identifier))
    (rejected,) = snooper.client(said(SECOND, discover(vm_mac(SECOND), 9, client_id=identifier)), 0.0)
    assert isinstance(rejected, Rejected) and rejected.spoofed
    assert rejected.reason == "the DHCP client identifier of another NIC of vm1"
