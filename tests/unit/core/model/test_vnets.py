"""Vnets and subnets: what is rejected before anything changes, what a change touches, whose VLAN is shown."""

import contextlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from retinue.core import limits
from retinue.core.model import DEFAULT_VNET, NIC, VM, ModelError, Network, Subnet, VMPort, Vnet
from retinue.core.model.network import NOTHING, Owner
from support.fabric.networks import GATEWAY, GATEWAY_MAC, add_vm, assignment, fabric, moved, vm_mac, vm_port

GREEN = Subnet("green", IPv4Network("10.2.0.0/24"), IPv4Address("10.2.0.254"), vnet="shop")


@pytest.fixture
def net() -> Network:
    """vm1 holds an address of blue; vm2 was given one of green, and holds nothing; shop has green alone."""
    net = fabric()
    net.put_vnet(Vnet("shop", vlan=42, mtu=1400))
    net.add_subnet(GREEN)
    add_vm(net, 1, 1)
    net.put_vm(VM.with_one_nic("vm2", vm_mac(2), "server2", addresses=(IPv4Address("10.2.0.7"),)))
    net.configured = frozenset({"subnet servers", "vnet dull"})
    net.put_vnet(Vnet("dull"))
    return net


REJECTED: dict[str, tuple[Callable[[Network], object], str]] = {
    "a VLAN used twice": (lambda net: net.put_vnet(Vnet("new", vlan=42)), "VLAN 42 is vnet shop's"),
    "a vnet that has subnets": (lambda net: net.remove_vnet("shop"), "vnet shop is in use by subnet green"),
    "the default vnet": (lambda net: net.remove_vnet(DEFAULT_VNET.id), "vnet default stays"),
    "a configured vnet": (lambda net: net.remove_vnet("dull"), "stands in the configuration file"),
    "a configured subnet": (lambda net: net.remove_subnet("servers"), "stands in the configuration file"),
    "a subnet whose addresses are held": (
        lambda net: net.remove_subnet("blue"),
        "subnet blue is in use: VM vm1 has 10.1.0.101, server dhcp has 10.1.0.2",
    ),
    "a subnet whose addresses are given": (
        lambda net: net.remove_subnet("green"),
        "subnet green is in use: VM vm2 has 10.2.0.7",
    ),
    "a subnet that leaves out who uses it": (
        lambda net: net.add_subnet(replace(net.subnets["blue"], prefix=IPv4Network("10.1.0.128/25"))),
        "subnet blue cannot become 10.1.0.128/25: VM vm1 has 10.1.0.101, server dhcp has 10.1.0.2",
    ),
    "a subnet of no vnet": (lambda net: net.add_subnet(replace(GREEN, vnet="x")), "there is no vnet x"),
    "a gateway outside": (
        lambda net: net.add_subnet(replace(GREEN, gateway=GATEWAY)),
        "gateway 10.1.0.254 is not inside 10.2.0.0/24",
    ),
    "a gateway that a VM has": (
        lambda net: net.add_subnet(replace(net.subnets["blue"], gateway=IPv4Address("10.1.0.101"))),
        "10.1.0.101 is held by VM vm1",
    ),
    "a VLAN that is none": (lambda net: net.put_vnet(Vnet("new", vlan=4095)), "VLAN 4095 is not between"),
    "an MTU that is none": (lambda net: net.put_vnet(Vnet("new", mtu=500)), "MTU 500 is not between"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_what_cannot_be_is_rejected_before_anything_changes(net: Network, name: str) -> None:
    change, message = REJECTED[name]
    before = deepcopy(net)
    with pytest.raises(ModelError, match=message.replace(".", r"\.")):
        change(net)
    assert net == before


@pytest.mark.parametrize(
    ("last", "more", "message"),
    [
        (
            lambda net: net.put_vnet(Vnet("last")),
            lambda net: net.put_vnet(Vnet("more")),
            "vnet more: there are 4 vnets already",
        ),
        (
            lambda net: net.add_subnet(replace(GREEN, id="last", prefix=IPv4Network("10.3.0.0/24"),
                                               gateway=IPv4Address("10.3.0.1"))),
            lambda net: net.add_subnet(replace(GREEN, id="more")),
            "subnet more: there are 4 subnets already",
        ),
    ],
)  # fmt: skip
def test_there_is_a_most(
    net: Network,
    monkeypatch: pytest.MonkeyPatch,
    last: Callable[[Network], object],
    more: Callable[[Network], object],
    message: str,
) -> None:
    monkeypatch.setattr("retinue.core.model.constraints.MOST_SUBNETS", 4)
    last(net)
    with pytest.raises(ModelError, match=message):
        more(net)
    net.put_vnet(Vnet("shop"))  # Those that are there may be changed.
    net.add_subnet(GREEN)
    assert limits.MOST_SUBNETS == 1000


def test_a_subnet_touches_the_switches_its_vms_and_the_routers_and_nobody_else(net: Network) -> None:
    switches = {Owner("switch", name) for name in net.switches}
    add_vm(net, 3, 1, bound=False)
    net.assign(replace(assignment(3), ip=IPv4Address("10.3.0.9")))
    router = Owner("server", "router")
    red = Subnet("red", IPv4Network("10.3.0.0/28"), IPv4Address("10.3.0.1"))
    assert net.add_subnet(red) == {*switches, router, Owner("vm", "vm3")}
    wider = replace(red, prefix=IPv4Network("10.3.0.0/24"))
    assert net.add_subnet(wider) == {*switches, router, Owner("vm", "vm3")}
    net.unassign(IPv4Address("10.3.0.9"))
    assert net.remove_subnet("red") == {*switches, router}
    assert net.remove_subnet("red") == net.remove_vnet("nobody's") == NOTHING


def test_a_binding_shows_the_vlan_of_its_vnet(net: Network) -> None:
    net.put_vnet(replace(DEFAULT_VNET, vlan=7))
    assert [row.vlan for row in net.bindings()] == [7]
    net.add_subnet(replace(net.subnets["blue"], vnet="shop"))
    assert [row.vlan for row in net.bindings()] == [42]
    net.add_subnet(replace(net.subnets["blue"], vlan=5))
    assert [row.vlan for row in net.bindings()] == [5]


def test_a_binding_keeps_its_vlan_through_a_migration(net: Network) -> None:
    """A NIC that is registered with its vnet: at both servers meanwhile, and at the target in the end."""
    nic = NIC(vm_mac(3), "vm3", (IPv4Address("10.2.0.9"),), vnet="shop")
    vm = VM("vm3", (nic,), "server1")
    net.put_vm(vm)
    net.assign(replace(assignment(3), ip=nic.addresses[0]))
    for server in (1, 2):
        net.set_vm_port("vm3", f"edge{server}", VMPort(vm_port(3)))
    for step, rows in ((vm, 1), (moved(vm, "server2"), 2), (replace(vm, server="server2"), 1)):
        net.put_vm(step)
        assert [row.vlan for row in net.bindings(["vm3"])] == [42] * rows


@for_all(
    st.lists(st.tuples(st.ip_addresses(), st.integers(0, 32)), max_size=8),
    st.lists(st.integers(0, 7), max_size=3),
    st.ip_addresses(),
)
def test_an_address_is_in_the_subnet_whose_prefix_it_has(
    given: list[tuple[IPv4Address | IPv6Address, int]], gone: list[int], asked: IPv4Address | IPv6Address
) -> None:
    net = Network(GATEWAY_MAC)
    for number, (address, length) in enumerate(given):
        prefix = ip_network(f"{address}/{length}", False)
        with contextlib.suppress(ModelError):
            net.add_subnet(Subnet(str(number), prefix, prefix.network_address))
    for number in gone:
        net.remove_subnet(str(number))
    for ip in (asked, *(address for address, _ in given)):
        assert net.subnet_of(ip) == next((s for s in net.subnets.values() if ip in s.prefix), None)


def test_a_nics_mtu_is_its_vnets_and_never_more_than_switches_take() -> None:
    net = fabric()
    vm = add_vm(net, 1, 1)
    net.put_vnet(Vnet("shop", mtu=1400))
    net.put_vnet(Vnet("lab", mtu=9000))
    net.put_vnet(Vnet("silent"))
    net.add_subnet(Subnet("green", IPv4Network("10.2.0.0/24"), IPv4Address("10.2.0.254"), vnet="shop"))
    for said, mtu in (("", 1500), ("shop", 1400), ("lab", 1500), ("silent", 1500), ("default", 1500)):
        assert net.mtu_of(replace(vm.nic, vnet=said)) == mtu
    there = (IPv4Address("10.1.0.50"), IPv4Address("10.2.0.50"))
    assert net.mtu_of(replace(vm.nic, addresses=there)) == 1400, "the least of where it has addresses"
    assert net.mtu_of(replace(vm.nic, addresses=there[:1])) == 1500
    net.put_vnet(Vnet("default", mtu=1300))
    assert (net.mtu_of(vm.nic), net.mtu_of(replace(vm.nic, vnet="shop"))) == (1300, 1400)
