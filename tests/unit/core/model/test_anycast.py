"""Anycast addresses: who has one, who is asked first, what a change touches, and what cannot be one."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Network, ip_address, ip_network

import pytest

from retinue.core.model import Assignment, ModelError, Network, PortRef, Server, Service, Subnet
from retinue.core.model.anycast import members_of, serves
from retinue.core.model.in_use import check_server_removal
from retinue.core.model.network import Owner, Touched
from retinue.core.model.packet_sizes import mtu_to
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.responders.router import speaker
from support.fabric.networks import add_vm, assignment, fabric, server

SERVICE = IPv4Address("10.9.9.9")
ITSELF = Owner("anycast", "10.9.9.9")


def share(net: Network, vm: int, *addresses: str, load: int = 0) -> Touched:
    nic = net.vms[f"vm{vm}"].nic
    changed = replace(nic, anycast=tuple(map(ip_address, addresses)), load=load)
    return net.change_nic(f"vm{vm}", nic, changed)


@pytest.fixture
def net() -> Network:
    """10.9.9.9 is vm1's and vm2's."""
    net = fabric()
    for number in (1, 2, 3):
        add_vm(net, number, number)
    share(net, 1, "10.9.9.9", load=7)
    share(net, 2, "10.9.9.9", load=5)
    return net


def names(net: Network) -> list[str]:
    return [vm.id for vm, _ in members_of(net, SERVICE)]


def test_the_least_loaded_comes_first_and_then_the_first_by_name(net: Network) -> None:
    assert names(net) == ["vm2", "vm1"]
    share(net, 1, "10.9.9.9", load=5)
    assert names(net) == ["vm1", "vm2"]


def test_who_joins_leaves_migrates_or_loses_its_port_touches_the_address(net: Network) -> None:
    assert ITSELF in share(net, 3, "10.9.9.9")
    assert names(net) == ["vm3", "vm2", "vm1"]
    assert ITSELF in net.put_vm(replace(net.vms["vm3"], server="server1"))
    assert ITSELF in net.set_vm_port("vm3", "edge3", None)
    assert ITSELF in net.fence("server2")
    assert ITSELF in share(net, 3)
    assert ITSELF in net.remove_vm("vm2")
    assert names(net) == ["vm1"]
    assert ITSELF in share(net, 1)
    assert not list(net.anycast())
    assert net.routed_to(SERVICE) is None
    assert ITSELF not in net.put_vm(replace(net.vms["vm1"], server="server2"))


def test_who_is_shut_off_or_has_no_port_is_not_sent_to(net: Network) -> None:
    vm = net.vms["vm1"]
    assert serves(net, vm, vm.nic)
    assert not serves(net, vm, replace(vm.nic, enabled=False))
    net.fence("server1")
    assert not serves(net, vm, vm.nic)
    net.unfence("server1")
    net.set_vm_port("vm1", "edge1", None)
    assert not serves(net, vm, vm.nic)


def test_it_is_led_to_as_long_as_one_has_it(net: Network) -> None:
    """So nothing else is given it."""
    net.remove_vm("vm2")
    assert net.routed_to(SERVICE) == (ip_network("10.9.9.9/32"), "vm1")


def delegated(vm: int) -> Assignment:
    """A prefix that a DHCPv6 server has given the VM."""
    prefix = IPv6Network("2001:db8:7::/64")
    return replace(assignment(vm), ip=prefix.network_address, prefix=prefix)


REJECTED: dict[str, tuple[Callable[[Network], object], str]] = {
    "of a subnet": (lambda net: share(net, 3, "10.1.0.77"), "it is of subnet blue, 10.1.0.0/24"),
    "twice": (lambda net: share(net, 3, "10.9.9.8", "10.9.9.8"), "it is given twice"),
    "no host's": (lambda net: share(net, 3, "224.0.0.5"), "224.0.0.5"),
    "another's": (
        lambda net: [
            net.change_nic(
                "vm1", nic := net.vms["vm1"].nic, replace(nic, prefixes=(ip_network("10.8.0.0/24"),))
            ),
            share(net, 3, "10.8.0.1"),
        ],
        "10.8.0.0/24 is routed to VM vm1",
    ),
    "held": (
        lambda net: [
            net.assign(replace(assignment(2), ip=IPv4Address("10.7.0.1"))),
            share(net, 3, "10.7.0.1"),
        ],
        "10.7.0.1 is held by VM vm2",
    ),
    "a subnet over it": (
        lambda net: net.add_subnet(Subnet("x", ip_network("10.9.9.0/24"), IPv4Address("10.9.9.1"))),
        "subnet x: 10.9.9.9/32 is routed to VM",
    ),
    "a server's address": (
        lambda net: net.put_server(replace(server(2), address=SERVICE)),
        "10.9.9.9 is in 10.9.9.9/32, which is routed to VM",
    ),
    "routed to one": (
        lambda net: net.change_nic(
            "vm3", nic := net.vms["vm3"].nic, replace(nic, prefixes=(ip_network("10.9.9.0/28"),))
        ),
        "10.9.9.9/32 is routed to VM",
    ),
    "routed to one of them": (
        lambda net: net.change_nic(
            "vm2", nic := net.vms["vm2"].nic, replace(nic, anycast=(), prefixes=(ip_network("10.9.9.0/28"),))
        ),
        "10.9.9.9/32 is routed to VM vm1",
    ),
}


@pytest.mark.parametrize("name", REJECTED)
def test_what_cannot_be_changes_nothing(net: Network, name: str) -> None:
    refused, message = REJECTED[name]
    before = deepcopy(net._anycast)
    with pytest.raises(ModelError, match=message.replace(".", r"\.")):
        refused(net)
    assert net._anycast == before


def test_nothing_that_a_dhcpv6_server_delegates_has_an_anycast_address(net: Network) -> None:
    """Nor is one given of it, be it the same VM's."""
    share(net, 1, "2001:db8:7::9")
    for number, whose in ((1, "it already"), (2, "VM vm1")):
        with pytest.raises(ModelError, match=f"2001:db8:7::9/128 is routed to {whose}"):
            net.assign(delegated(number))
    share(net, 1)
    net.assign(delegated(1))
    with pytest.raises(ModelError, match="routed to it already"):
        share(net, 1, "2001:db8:7::9")
    vm = net.vms["vm1"]
    with pytest.raises(ModelError, match="it is of a prefix that is routed to it already"):
        net.put_vm(replace(vm, nics=(replace(vm.nic, anycast=(ip_address("2001:db8:7::9"),)),)))
    assert not list(net.anycast_at(ip_address("2001:db8:7::9")))


def test_routers_of_others_are_told_one_place_of_an_address() -> None:
    net = fabric(over_routers=True)
    add_vm(net, 1, 1)
    with pytest.raises(ModelError, match="routers that are not ours are told one place of each address"):
        share(net, 1, "10.9.9.9")


# ---- servers that have one themselves ----


def serve(net: Network, *addresses: str, load: int = 0, **others: object) -> Touched:
    """A machine that runs no VMs has these."""
    box = Server(
        "box",
        "02:00:00:00:02:01",
        IPv4Address("10.0.0.201"),
        anycast=tuple(map(ip_address, addresses)),
        load=load,
    )
    return net.put_server(replace(box, **others))  # type: ignore[arg-type]


def test_a_server_that_joins_leaves_or_is_found_touches_the_address(net: Network) -> None:
    assert ITSELF in serve(net, "10.9.9.9")
    assert list(net.serving(SERVICE)) == ["box"]
    assert ITSELF in net.detect("box", PortRef("leaf1", "spare"))
    assert ITSELF in net.fence("box")
    assert ITSELF in net.unfence("box")
    with pytest.raises(ModelError, match=r"server box is in use by who asks at 10\.9\.9\.9, its anycast"):
        check_server_removal(net, "box")
    assert ITSELF in serve(net)
    assert list(net.serving(SERVICE)) == []


def test_it_is_led_to_as_long_as_a_vm_or_a_server_has_it(net: Network) -> None:
    serve(net, "10.9.9.9")
    for number in (1, 2):
        share(net, number)
    assert net.routed_to(SERVICE) == (ip_network("10.9.9.9/32"), "")
    assert Owner.of_prefix(ip_network("10.9.9.9/32"), "default") in share(net, 3, "10.9.9.9")
    assert net.routed_to(SERVICE) == (ip_network("10.9.9.9/32"), "vm3")
    serve(net)
    assert net.routed_to(SERVICE) == (ip_network("10.9.9.9/32"), "vm3")
    share(net, 3)
    assert (net.routed_to(SERVICE), net.is_anycast(SERVICE)) == (None, False)


def test_a_server_that_is_taken_out_takes_its_address_along(net: Network) -> None:
    """As when a list of servers is not taken for another one's sake, or the database has it otherwise."""
    compiler = Compiler(net)
    serve(net, "10.8.0.1", "10.9.9.9")
    compiler.update(net.everything())
    touched = net.remove_server("box")
    alone = ip_address("10.8.0.1")
    assert {
        ITSELF,
        Owner("anycast", "10.8.0.1"),
        Owner.of_prefix(ip_network("10.8.0.1/32"), "default"),
    } <= touched
    assert (net.is_anycast(alone), net.routed_to(alone)) == (False, None)
    assert (list(net.serving(SERVICE)), net.is_anycast(SERVICE)) == ([], True)
    compiler.update(touched)
    fresh = Compiler(net)
    fresh.update(net.everything())
    assert compiler.programs == fresh.programs


SERVES_NOT: dict[str, tuple[Callable[[Network], object], str]] = {
    "of a subnet": (lambda net: serve(net, "10.1.0.77"), "it is of subnet blue, 10.1.0.0/24"),
    "twice": (lambda net: serve(net, "10.9.9.8", "10.9.9.8"), "it is given twice"),
    "no host's": (lambda net: serve(net, "224.0.0.5"), "224.0.0.5"),
    "its own": (
        lambda net: serve(net, "10.77.0.9", address=IPv4Address("10.77.0.9")),
        "it is its own address",
    ),
    "another server's": (lambda net: serve(net, "10.0.0.11"), "10.0.0.11"),
    "one with VMs": (
        lambda net: net.put_server(replace(server(3), anycast=(SERVICE,))),
        "it has an edge switch; give it to a VM there",
    ),
    "a DHCP server": (
        lambda net: serve(net, "10.9.9.9", services=frozenset({Service.DHCP})),
        "it is dhcp, and sends as itself alone",
    ),
    "a prefix that is routed over it": (
        lambda net: [
            serve(net, "10.8.0.1"),
            net.change_nic(
                "vm3", nic := net.vms["vm3"].nic, replace(nic, prefixes=(ip_network("10.8.0.0/28"),))
            ),
        ],
        "10.8.0.1/32 is routed to servers, as an anycast address",
    ),
    "a subnet over it": (
        lambda net: [
            serve(net, "10.8.0.1"),
            net.add_subnet(Subnet("x", ip_network("10.8.0.0/24"), IPv4Address("10.8.0.254"))),
        ],
        "subnet x: 10.8.0.1/32 is routed to servers",
    ),
    "another server's own later": (
        lambda net: [
            serve(net, "10.8.0.1"),
            net.put_server(replace(server(2), address=IPv4Address("10.8.0.1"))),
        ],
        "10.8.0.1 is in 10.8.0.1/32, which is routed to servers",
    ),
}


@pytest.mark.parametrize("name", SERVES_NOT)
def test_what_no_server_can_have(net: Network, name: str) -> None:
    refused, message = SERVES_NOT[name]
    with pytest.raises(ModelError, match=message.replace(".", r"\.")):
        refused(net)


def test_beside_routers_of_others_servers_have_none_either() -> None:
    with pytest.raises(ModelError, match="routers that are not ours are told one place of each address"):
        serve(fabric(over_routers=True), "10.9.9.9")


def test_a_packet_from_it_is_answered_by_nobody_and_its_size_is_the_switches(net: Network) -> None:
    serve(net, "10.8.0.1")
    assert speaker(net, ip_address("10.8.0.1"), ip_address("10.1.0.101")) is None
    assert mtu_to(net, ip_address("10.8.0.1")) == net.mtu
