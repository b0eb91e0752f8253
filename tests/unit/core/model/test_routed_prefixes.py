"""Prefixes routed to NICs: each leads to one NIC alone, and what cannot be changes nothing."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.core.model import VM, Assignment, ModelError, Network, Subnet, Vnet, routed_prefixes
from retinue.core.model.network import Owner
from retinue.core.model.prefix_index import PrefixIndex
from retinue.core.model.routed_prefixes import overlap
from retinue.core.model.vrfs import DEFAULT_VRF
from support.fabric.networks import add_ipv6, add_vm, assignment, fabric, server, vm_mac


def route(net: Network, number: int, *prefixes: str) -> frozenset[Owner]:
    nic = net.vms[f"vm{number}"].nic
    changed = replace(nic, prefixes=tuple(map(ip_network, prefixes)))
    return net.change_nic(f"vm{number}", nic, changed)


@pytest.fixture
def net() -> Network:
    """10.9.0.16/28 and fd00:9::/64 are routed to vm1; the router leads to all else, and to 10.8.4/24."""
    net = fabric()
    add_ipv6(net)
    for number in (1, 2):
        add_vm(net, number, number)
    router = net.servers["router"]
    net.put_server(replace(router, routes=(*router.routes, ip_network("10.8.4.0/24"))))
    route(net, 1, "10.9.0.16/28", "fd00:9::/64")
    return net


def test_a_prefix_touches_its_vm_and_itself_and_no_other_prefix(net: Network) -> None:
    all_of_them = {Owner("vm", "vm2"), of("10.9.0.32/28")}
    assert route(net, 2, "10.9.0.32/28") == all_of_them
    assert net.put_vm(replace(net.vms["vm2"], restart="on-crash")) == {Owner("vm", "vm2")}  # type: ignore[arg-type]
    assert net.remove_vm("vm2") == all_of_them
    assert [vm for _, vm in net.routed()] == ["vm1", "vm1"]


def of(prefix: str) -> Owner:
    return Owner.of_prefix(ip_network(prefix), DEFAULT_VRF)


def test_an_owner_of_a_prefix_says_which() -> None:
    assert of("fd00:9::/64").prefix == (ip_network("fd00:9::/64"), DEFAULT_VRF)


ROUTED = {of("10.9.0.16/28"), of("fd00:9::/64")}


def test_what_prefixes_depend_on_touches_all_of_them(net: Network) -> None:
    """Where routers are, whether a switch leads up, how large a vnet's packets are."""
    router, numbers = net.servers["router"], dict(net._numbers["leaf2"])
    uplinks = [name for name in numbers if name.startswith("s")]
    assert net.set_ports("leaf2", numbers | {"router": 77}) >= ROUTED
    assert net.set_ports("leaf2", {name: n for name, n in numbers.items() if name not in uplinks}) >= ROUTED
    assert net.set_ports("leaf2", numbers) >= ROUTED
    assert net.put_vnet(Vnet("narrow", mtu=1300)) >= ROUTED
    assert Owner("switch", "leaf1") in net.remove_vnet("narrow"), "it looks at no sizes any more"
    assert net.put_server(replace(router, services=frozenset())) >= ROUTED
    assert net.put_server(router) >= ROUTED
    assert net.remove_server("router") >= ROUTED


def test_what_they_do_not_depend_on_touches_none(net: Network) -> None:
    numbers = dict(net._numbers["leaf1"])
    touched = net.set_ports("leaf1", {name: number + 100 for name, number in numbers.items()})
    assert Owner("switch", "leaf1") in touched and not touched & ROUTED, "other numbers, the same ways up"
    assert not net.put_server(replace(net.servers["server1"], mac="02:00:00:00:00:99")) & ROUTED
    assert not net.put_vnet(Vnet("wide")) & ROUTED


def test_a_switch_that_comes_back_touches_none() -> None:
    """One that has told no ports yet has the ways up that were laid out."""
    net = fabric()
    numbers = dict(net._numbers["leaf1"])
    net._numbers["leaf1"] = {}
    add_vm(net, 1, 1)
    route(net, 1, "10.9.0.16/28")
    touched = net.set_ports("leaf1", numbers)
    assert Owner("switch", "leaf1") in touched and of("10.9.0.16/28") not in touched


def delegated(number: int, prefix: str) -> Assignment:
    found = IPv6Network(prefix)
    return replace(assignment(number), ip=found.network_address, prefix=found)


def test_a_delegated_prefix_touches_the_same_as_it_comes_and_goes(net: Network) -> None:
    all_of_them = {Owner("vm", "vm2"), of("fd00:a::/60")}
    lease = delegated(2, "fd00:a::/60")
    assert net.assign(lease) == all_of_them
    assert net.unassign(lease.key) == all_of_them
    net.assign(lease)
    assert net.remove_vm("vm2") == all_of_them
    assert [vm for _, vm in net.routed()] == ["vm1", "vm1"]


def test_a_delegated_prefix_in_another_vnet_takes_other_packets(net: Network) -> None:
    """As one of its manager: leaves say how large."""
    net.put_vnet(Vnet("narrow", mtu=1300))
    net.unassign(assignment(2).key)
    net.assign(delegated(2, "fd00:a::/60"))
    vm, itself = net.vms["vm2"], of("fd00:a::/60")
    assert itself in net.put_vm(replace(vm, nics=(replace(vm.nic, vnet="narrow"),)))
    assert itself not in net.put_vm(replace(net.vms["vm2"], server="server1"))


@pytest.mark.parametrize("others", [(), (1,)], ids=["its own", "another's, too"])
@pytest.mark.parametrize("first", ["fd00:a::", "fd00:a::77"])
def test_a_delegated_prefix_and_an_anycast_address_are_not_part_of_each_other(
    net: Network, others: tuple[int, ...], first: str
) -> None:
    def shares(number: int, *addresses: str) -> None:
        nic = net.vms[f"vm{number}"].nic
        net.change_nic(f"vm{number}", nic, replace(nic, anycast=tuple(map(ip_address, addresses))))

    for number in (*others, 2):
        shares(number, first)
    with pytest.raises(ModelError, match="is routed to"):
        net.assign(delegated(2, "fd00:a::/60"))
    for number in (*others, 2):
        shares(number)
    net.assign(delegated(2, "fd00:a::/60"))
    for number in (*others, 2):
        with pytest.raises(ModelError, match=r"cannot be an anycast address|is routed to it already"):
            shares(number, first)
    vm = net.vms["vm2"]
    with pytest.raises(ModelError, match="cannot be an anycast address"):  # As it is registered anew.
        net.put_vm(replace(vm, nics=(replace(vm.nic, anycast=(ip_address(first),)),)))
    assert net.routed_to(IPv6Address("fd00:a::99")) == (ip_network("fd00:a::/60"), "vm2")


def test_who_leaves_an_anycast_address_to_another_gets_no_prefix_with_it(net: Network) -> None:
    for number in (1, 2):
        nic = net.vms[f"vm{number}"].nic
        net.change_nic(f"vm{number}", nic, replace(nic, anycast=(ip_address("fd00:a::77"),)))
    nic = net.vms["vm2"].nic
    with pytest.raises(ModelError, match="fd00:a::77/128 is routed to VM vm1"):
        net.change_nic("vm2", nic, replace(nic, anycast=(), prefixes=(ip_network("fd00:a::/60"),)))


def test_an_address_is_found_by_its_prefix(net: Network) -> None:
    route(net, 2, "10.9.1.0/24")
    assert net.routed_to(IPv4Address("10.9.0.31")) == (ip_network("10.9.0.16/28"), "vm1")
    assert net.routed_to(IPv4Address("10.9.1.31")) == (ip_network("10.9.1.0/24"), "vm2")
    assert net.routed_to(IPv4Address("10.9.0.32")) is None
    route(net, 1)
    assert net.routed_to(IPv4Address("10.9.0.31")) is None
    assert not net.vms["vm1"].nic.prefixes


REJECTED: dict[str, tuple[Callable[[Network], object], str]] = {
    "another's": (
        lambda net: route(net, 2, "10.9.0.0/24"),
        "VM vm2: 10.9.0.0/24 cannot be routed to it: 10.9.0.16/28 is routed to VM vm1",
    ),
    "a part of another's": (lambda net: route(net, 2, "fd00:9::/80"), "fd00:9::/64 is routed to VM vm1"),
    "twice": (lambda net: route(net, 2, "10.9.1.0/28", "10.9.1.0/24"), "10.9.1.0/28 is routed to it already"),
    "a part of a subnet": (
        lambda net: route(net, 2, "10.1.0.64/28"),
        "it has addresses of subnet blue, 10.1.0.0/24",
    ),
    "more than a subnet": (lambda net: route(net, 2, "fd00:1::/60"), "it has addresses of subnet blue6"),
    "what a router leads to": (
        lambda net: route(net, 2, "10.8.0.0/16"),
        "10.8.4.0/24 is reached through server router",
    ),
    "everything": (lambda net: route(net, 1, "0.0.0.0/0"), "0.0.0.0/8 is routed to nobody"),
    "loopback": (lambda net: route(net, 2, "127.0.0.0/30"), "127.0.0.0/8 is routed to nobody"),
    "a group": (lambda net: route(net, 2, "ff05::/64"), "ff00::/8 is routed to nobody"),
    "a subnet over it": (
        lambda net: net.add_subnet(Subnet("x", ip_network("10.9.0.0/24"), IPv4Address("10.9.0.1"))),
        "subnet x: 10.9.0.16/28 is routed to VM vm1",
    ),
    "an address of it": (
        lambda net: net.assign(replace(assignment(2), ip=IPv4Address("10.9.0.20"))),
        "VM vm2: 10.9.0.20 is in 10.9.0.16/28, which is routed to VM vm1",
    ),
    "a static address of it": (
        lambda net: net.put_vm(
            VM.with_one_nic("vm3", vm_mac(3), "server1", addresses=(IPv4Address("10.9.0.20"),))
        ),
        "VM vm3: 10.9.0.20 is in 10.9.0.16/28",
    ),
    "a server's address": (
        lambda net: net.put_server(replace(server(2), address=IPv4Address("10.9.0.20"))),
        "server server2: 10.9.0.20 is in 10.9.0.16/28",
    ),
    "a router's way to it": (
        lambda net: net.put_server(
            replace(net.servers["router"], routes=(ip_network("10.9.0.16/28"),)),
        ),
        "server router: 10.9.0.16/28 is routed to VM vm1",
    ),
}


@pytest.mark.parametrize("name", REJECTED)
def test_what_cannot_be_changes_nothing(net: Network, name: str) -> None:
    refused, message = REJECTED[name]
    before = deepcopy((net.vms, net.servers, net.subnets, net.assignments, net._routed))
    with pytest.raises(ModelError, match=message.replace(".", r"\.")):
        refused(net)
    assert (net.vms, net.servers, net.subnets, net.assignments, net._routed) == before


def test_what_is_held_cannot_be_part_of_one(net: Network) -> None:
    net.assign(replace(assignment(2), ip=IPv4Address("10.9.5.5")))
    with pytest.raises(ModelError, match=r"10\.9\.5\.5 is held by VM vm2"):
        route(net, 1, "10.9.5.0/28")


def test_what_a_prefix_costs_does_not_grow_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart puts thousands of them into an empty network, one after the other."""
    looked = 0

    def counted(one: object, other: object) -> bool:
        nonlocal looked
        looked += 1
        return overlap(one, other)  # type: ignore[arg-type]

    monkeypatch.setattr(routed_prefixes, "overlap", counted)
    net, costs = fabric(), []
    for number in range(1, 101):
        add_vm(net, number, 1, bound=False)
        before = looked
        route(net, number, f"198.18.{number}.0/24", f"198.19.{number}.0/24")
        costs.append(looked - before)
    assert costs[-1] == costs[10]
    assert net.routed_to(IPv4Address("198.19.77.7")) == (ip_network("198.19.77.0/24"), "vm77")


def test_what_a_prefix_costs_does_not_grow_with_the_addresses_that_are_held() -> None:
    """A guest gets one delegated, and a restart thousands, beside all addresses of all VMs."""

    class Counted(dict[Any, Assignment]):
        looked = 0

        def values(self) -> Any:
            Counted.looked += len(self)
            return super().values()

    net = fabric()
    add_ipv6(net)
    for number in (1, 2):
        add_vm(net, number, number)
    net.assignments = Counted(net.assignments)
    net.assign(delegated(2, "fd00:a::/60"))
    assert Counted.looked == 0


def test_an_address_that_is_in_no_subnet_is_held_until_it_is_given_back(net: Network) -> None:
    held = replace(assignment(2), ip=IPv4Address("10.9.5.5"))
    net.assign(held)
    net.assign(replace(held, lease_end=2e10))
    with pytest.raises(ModelError, match=r"10\.9\.5\.5 is held by VM vm2"):
        route(net, 1, "10.9.5.0/28")
    net.add_subnet(Subnet("x", ip_network("10.9.5.0/24"), IPv4Address("10.9.5.1")))
    net.unassign(held.key)
    net.remove_subnet("x")
    route(net, 1, "10.9.5.0/28")


def prefixes() -> st.SearchStrategy[IPv4Network | IPv6Network]:
    """Small and large, near to each other."""
    four = st.tuples(st.integers(0, 255), st.integers(24, 32)).map(
        lambda p: IPv4Network((0x0A090000 + p[0], p[1]), strict=False)
    )
    six = st.tuples(st.integers(0, 255), st.integers(120, 128)).map(
        lambda p: IPv6Network(((0xFD << 120) + p[0], p[1]), strict=False)
    )
    return four | six


@given(st.lists(st.tuples(prefixes(), st.booleans()), max_size=40), prefixes())
def test_the_index_finds_what_a_look_at_all_finds(
    history: list[tuple[IPv4Network | IPv6Network, bool]], asked: IPv4Network | IPv6Network
) -> None:
    index, known = PrefixIndex(), dict[IPv4Network | IPv6Network, str]()
    for number, (prefix, goes) in enumerate(history):
        beside = [other for other in known if overlap(other, prefix)]
        assert [one for one, _ in index.overlapping(prefix)] == sorted(beside, key=int_of)
        if goes:
            index.discard(prefix)
            known.pop(prefix, None)
        elif not beside or beside == [prefix]:
            index.put(prefix, f"vm{number}")
            known[prefix] = f"vm{number}"
    assert list(index) == list(known.items())
    assert bool(index) == bool(known)
    ip = asked.network_address
    assert index.at(ip) == next(((p, vm) for p, vm in known.items() if ip in p), None)


def int_of(prefix: IPv4Network | IPv6Network) -> int:
    return int(prefix.network_address)
