"""A NIC changed in place: what it holds stays, what cannot be changes nothing."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from retinue.core.model import (
    DEFAULT_VNET,
    VM,
    Allowed,
    Assignment,
    BindingKind,
    ModelError,
    Network,
    Origin,
    PortStatus,
    Vnet,
)
from retinue.core.model.network import Owner
from support.fabric.networks import (
    GATEWAY,
    GATEWAY6,
    GATEWAY_MAC,
    add_ipv6,
    add_vm,
    assignment,
    fabric,
    holding6,
    server,
    vm_ip,
    vm_mac,
)

SHARED = IPv4Address("10.1.0.200")
VIRTUAL = "00:00:5e:00:01:07"


def taking(number: int) -> Assignment:
    return Assignment(SHARED, vm_mac(number), f"vm{number}", BindingKind.ALLOWED, Origin.CONTROLLER)


def without_subnets(net: Network) -> Network:
    net.subnets.clear()
    net._index_subnets()
    return net


def with_ipv6(net: Network) -> Network:
    add_ipv6(net)
    return net


def change(net: Network, number: int, **changes: object) -> frozenset[Owner]:
    nic = net.vms[f"vm{number}"].nic
    return net.change_nic(f"vm{number}", nic, replace(nic, **changes))  # type: ignore[arg-type]


@pytest.fixture
def net() -> Network:
    """vm1 and vm2 may take an address, which vm1 has, as a virtual router; vm3 may not."""
    net = fabric()
    for number in (1, 2, 3):
        add_vm(net, number, number)
    change(net, 1, allowed=(Allowed(SHARED, VIRTUAL),))
    free = Allowed(IPv4Address("10.1.0.201"))
    change(net, 2, allowed=(Allowed(SHARED, VIRTUAL), free), vnet=DEFAULT_VNET.id)
    net.take(taking(1))
    return net


def test_a_new_mac_replaces_the_rows_in_place(net: Network) -> None:
    assert change(net, 3, mac=vm_mac(9)) == {Owner("vm", "vm3")}
    assert [(row.mac, row.ip) for row in net.bindings(["vm3"])] == [(vm_mac(9), vm_ip(3))]
    assert net.vm_of_mac(vm_mac(3)) is None
    held = net.vm_of_mac(vm_mac(9))
    assert held is not None and held.id == "vm3"
    assert net.assignments[vm_ip(3)].lease_end == assignment(3).lease_end


def test_an_address_goes_from_one_who_may_take_it_to_another(net: Network) -> None:
    assert net.take(taking(2)) == {Owner("vm", "vm1"), Owner("vm", "vm2")}
    assert net.assignments[SHARED].vm == "vm2"
    assert [row.mac for row in net.bindings(["vm2"]) if row.ip == SHARED] == [VIRTUAL]
    assert [row.ip for row in net.bindings(["vm1"])] == [vm_ip(1)]


def test_who_is_not_allowed_it_any_more_loses_it(net: Network) -> None:
    change(net, 1, allowed=())
    assert SHARED not in net.assignments
    assert [held.ip for held in net.held_by("vm1")] == [vm_ip(1)]
    assert net.allowed_to(SHARED) == {"vm2"}
    net.remove_vm("vm2")
    assert not net.allowed_to(SHARED) and not net.speaking_as(VIRTUAL)


def test_a_virtual_router_has_one_mac_for_several_addresses(net: Network) -> None:
    free = IPv4Address("10.1.0.201")
    change(net, 1, allowed=(Allowed(SHARED, VIRTUAL), Allowed(free, VIRTUAL)))
    assert net.allowed_to(free) == {"vm1", "vm2"}
    net.remove_vm("vm1")
    assert net.speaking_as(VIRTUAL) == {"vm2"}


def test_a_disabled_nic_says_so_in_its_bindings(net: Network) -> None:
    change(net, 3, enabled=False)
    assert [row.port_status for row in net.bindings(["vm3"])] == [PortStatus.DISABLED]


REJECTED: dict[str, tuple[Callable[[Network], object], str]] = {
    "one who may not": (lambda net: net.take(taking(3)), "VM vm3 is not allowed 10.1.0.200"),
    "an address that another holds": (
        lambda net: change(net, 3, allowed=(Allowed(vm_ip(1)),)),
        "10.1.0.101 is held by VM vm1, and cannot be allowed",
    ),
    "a lease of an allowed address": (
        lambda net: [net.unassign(SHARED), net.assign(replace(assignment(3), ip=SHARED))],
        "10.1.0.200 is allowed VM vm1; VM vm3 cannot be given it",
    ),
    "a gateway": (lambda net: change(net, 3, allowed=(Allowed(GATEWAY),)), "the gateway of subnet blue"),
    "a server's address": (
        lambda net: change(net, 3, allowed=(Allowed(IPv4Address("10.0.0.12")),)),
        "is the address of server server2",
    ),
    "a gateway of IPv6": (
        lambda net: change(with_ipv6(net), 3, allowed=(Allowed(GATEWAY6),)),
        "the gateway of subnet blue6",
    ),
    "a link-local address": (
        lambda net: change(net, 3, allowed=(Allowed(IPv6Address("fe80::9")),)),
        "VM vm3: fe80::9 is in no subnet, and cannot be allowed",
    ),
    "an address of IPv6 that another holds": (
        lambda net: [
            with_ipv6(net).assign(holding6(1)),
            change(net, 3, allowed=(Allowed(IPv6Address("fd00:1::101")),)),
        ],
        "fd00:1::101 is held by VM vm1, and cannot be allowed",
    ),
    "an address outside all subnets": (
        lambda net: change(net, 3, allowed=(Allowed(IPv4Address("10.9.0.1")),)),
        "VM vm3: 10.9.0.1 is in no subnet, and cannot be allowed; add the subnet first",
    ),
    "an address twice": (
        lambda net: change(net, 3, allowed=(Allowed(SHARED), Allowed(SHARED, VIRTUAL))),
        "an address is allowed twice",
    ),
    "the gateway's MAC": (
        lambda net: change(net, 3, allowed=(Allowed(SHARED, GATEWAY_MAC),)),
        "is the gateway's",
    ),
    "a group's MAC": (
        lambda net: change(net, 3, allowed=(Allowed(SHARED, "01:00:5e:00:00:12"),)),
        "is a group address",
    ),
    "another VM's MAC": (
        lambda net: change(net, 3, allowed=(Allowed(SHARED, vm_mac(1)),)),
        "belongs to VM vm1",
    ),
    "its own MAC": (lambda net: change(net, 3, allowed=(Allowed(SHARED, vm_mac(3)),)), "VM vm3"),
    "a server's MAC": (
        lambda net: change(net, 3, allowed=(Allowed(SHARED, server(2).mac),)),
        "belongs to server server2",
    ),
    "a subnet whose gateway it would be": (
        lambda net: net.add_subnet(replace(net.subnets["blue"], gateway=IPv4Address("10.1.0.201"))),
        "subnet blue: 10.1.0.201 is allowed VM vm2",
    ),
    "a server that would have it": (
        lambda net: net.put_server(replace(server(2), address=IPv4Address("10.1.0.201"))),
        "server server2: 10.1.0.201 is allowed VM vm2",
    ),
    "one taken where it is no vnet's": (
        lambda net: [without_subnets(net), net.take(taking(2))],
        "VM vm2: 10.1.0.200 is in no subnet of vnet default",
    ),
    "a VM with a virtual router's MAC": (
        lambda net: net.put_vm(VM.with_one_nic("vm9", VIRTUAL, "server1")),
        "VM vm1 may speak as MAC 00:00:5e:00:01:07",
    ),
    "a MAC that another has": (lambda net: change(net, 1, mac=vm_mac(2)), "already belongs to VM vm2"),
    "a vnet that is none": (lambda net: change(net, 3, vnet="x"), "there is no vnet x"),
    "an address outside its vnet": (
        lambda net: [net.put_vnet(Vnet("shop")), change(net, 3, vnet="shop")],
        "10.1.0.103 is in no subnet of vnet shop",
    ),
    "a subnet that leaves the vnet of a NIC": (
        lambda net: [
            change(net, 3, vnet="default"),
            net.put_vnet(Vnet("shop")),
            net.add_subnet(replace(net.subnets["blue"], vnet="shop")),
        ],
        "subnet blue cannot leave vnet default: VM vm2 has 10.1.0.102 in it, VM vm3 has 10.1.0.103 in it",
    ),
}


@pytest.mark.parametrize("name", REJECTED)
def test_what_cannot_be_changes_nothing(net: Network, name: str) -> None:
    refused, message = REJECTED[name]
    before = deepcopy(net.vms), dict(net.assignments), dict(net.subnets), deepcopy(net._allowed)
    with pytest.raises(ModelError, match=message.replace(".", r"\.")):
        refused(net)
    if net.subnets.get("blue6"):
        net.unassign(IPv6Address("fd00:1::101"))
        net.remove_subnet("blue6")
    if name == "a lease of an allowed address":
        net.take(taking(1))
    if name == "a subnet that leaves the vnet of a NIC":
        change(net, 3, vnet="")
    if name == "one taken where it is no vnet's":
        net.subnets.update(before[2])
        net._index_subnets()
    after = deepcopy(net.vms), dict(net.assignments), dict(net.subnets), deepcopy(net._allowed)
    assert after == before


def test_a_vnet_with_a_nic_stays(net: Network) -> None:
    net.put_vnet(Vnet("shop"))
    net.put_vm(VM.with_one_nic("vm8", vm_mac(8), "server1"))
    change(net, 8, vnet="shop")
    with pytest.raises(ModelError, match="vnet shop is in use by VM vm8"):
        net.remove_vnet("shop")
