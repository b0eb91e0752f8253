"""Whose a client identifier of DHCPv6 is (RFC 8415, 11), and what a NIC holds by DHCPv6."""

from dataclasses import replace

import pytest

from retinue.core.model import BindingKind, Lease6, Network
from retinue.core.snooping.dhcp6_headers import leases6, owner_of_duid
from support.fabric.dhcp6 import IAID, SERVER_DUID, add_dhcp6, duid
from support.fabric.networks import add_vm, fabric, holding6, vm_mac

MAC2 = bytes.fromhex(vm_mac(2).replace(":", ""))
LL, LLT = b"\0\3\0\1", b"\0\1\0\1"
TIME = b"\1\2\3\4"


@pytest.fixture
def net() -> Network:
    net = fabric()
    add_dhcp6(net)
    for number in (1, 2):
        add_vm(net, number, number)
    return net


@pytest.mark.parametrize(
    ("duid", "owner"),
    [
        (LL + MAC2, "vm2"),
        (LLT + TIME + MAC2, "vm2"),
        (b"", ""),
        (LL + MAC2[:-1], ""),
        (LL + MAC2 + b"\0", ""),
        (LLT + MAC2, ""),  # a time's four bytes are missing
        (b"\0\3\0\6" + MAC2, ""),  # not of Ethernet
        (b"\0\2\0\1" + MAC2, ""),  # made of an enterprise's number
        (b"\0\4\0\1" + TIME + MAC2, ""),
    ],
)
def test_one_that_is_made_of_a_vms_mac_is_that_vms(net: Network, duid: bytes, owner: str) -> None:
    assert owner_of_duid(net, duid, net.vms["vm1"]) == owner
    assert owner_of_duid(net, duid, net.vms["vm2"]) == "", "it is its own"


def test_any_other_is_the_vms_that_has_a_lease_under_it(net: Network) -> None:
    other = b"\0\2some enterprise's"
    lease = Lease6(SERVER_DUID, IAID, 900.0)
    net.assign(replace(holding6(2, 1000.0), client_id=other, lease6=lease))
    assert owner_of_duid(net, other, net.vms["vm1"]) == "vm2"
    assert owner_of_duid(net, other, net.vms["vm2"]) == ""
    net.unassign(holding6(2).ip)
    assert owner_of_duid(net, other, net.vms["vm1"]) == ""


def test_one_made_of_the_vms_own_mac_is_nobody_elses_though_another_has_a_lease_under_it(
    net: Network,
) -> None:
    lease = Lease6(SERVER_DUID, IAID, 900.0)
    net.assign(replace(holding6(2, 1000.0), client_id=duid(1), lease6=lease))
    assert owner_of_duid(net, duid(1), net.vms["vm1"]) == ""


def test_by_dhcpv6_a_nic_holds_what_was_granted_by_it(net: Network) -> None:
    vm = net.vms["vm1"]
    assert leases6(net, vm, vm.nic) == []
    static = replace(holding6(1), kind=BindingKind.STATIC)
    net.assign(static)
    assert leases6(net, vm, vm.nic) == []
    granted = replace(holding6(1, 1000.0), client_id=duid(1), lease6=Lease6(SERVER_DUID, IAID, 900.0))
    net.unassign(static.ip)
    net.assign(granted)
    assert leases6(net, vm, vm.nic) == [granted]
    assert leases6(net, net.vms["vm2"], net.vms["vm2"].nic) == []
