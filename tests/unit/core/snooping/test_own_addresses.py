"""Which addresses a VM may make itself, for whom they are bound, and how many."""

from dataclasses import replace
from ipaddress import IPv6Address

import pytest

from retinue.core.limits import MOST_OWN_ADDRESSES
from retinue.core.model import BindingKind, Network, Origin, Vnet
from retinue.core.model.link_local import link_local
from retinue.core.snooping.own_addresses import NEW_SECONDS, Claim, OwnAddresses, may_be_own
from support.fabric.ipv6 import vm_ip6, vm_local
from support.fabric.networks import GATEWAY6, GATEWAY_MAC, add_ipv6, add_vm, fabric, holding6, vm_mac

PRIVATE = IPv6Address("fe80::1234:5678:9abc:def0")


def own(number: int) -> IPv6Address:
    return IPv6Address(f"fd00:1::abcd:{number:x}")


@pytest.fixture
def net() -> Network:
    made = fabric()
    add_ipv6(made)
    made.subnets["blue6"] = replace(made.subnets["blue6"], slaac=True)
    add_vm(made, 1, 1)
    add_vm(made, 2, 2)
    made.assign(holding6(2))
    return made


def claim(
    net: Network, target: IPv6Address, rules: OwnAddresses | None = None, now: float = 0
) -> Claim | None:
    vm = net.vms["vm1"]
    return (rules or OwnAddresses()).claim(net, vm, vm.nic, target, now)


@pytest.mark.parametrize("target", [own(1), IPv6Address("fd00:1::5054:ff:fe00:1"), PRIVATE])
def test_what_nobody_has_is_bound_to_who_checks_it(net: Network, target: IPv6Address) -> None:
    found = claim(net, target)
    assert found is not None
    given = found.assignment
    assert (given.ip, given.mac, given.vm, given.lease_end) == (target, vm_mac(1), "vm1", None)
    assert (given.kind, given.origin) == (BindingKind.SLAAC, Origin.CONTROLLER)
    assert found.instead_of is None
    net.assign(given)
    assert claim(net, target) is None, "it is bound already"


@pytest.mark.parametrize(
    "target",
    [
        vm_ip6(2), GATEWAY6, IPv6Address("fd00:1::"), IPv6Address("fd00:2::5"), IPv6Address("2001:db8::9"),
        link_local(GATEWAY_MAC), vm_local(2), vm_local(1), link_local("02:00:00:00:00:01"),
        IPv6Address("fd00:1::5054:ff:fe00:2"), IPv6Address("fd00:1::ff:fe00:1"),
    ],
)  # fmt: skip
def test_what_is_anothers_or_nobodys_to_take_is_not(net: Network, target: IPv6Address) -> None:
    assert claim(net, target) is None


def test_a_nic_makes_itself_addresses_of_its_own_vnet_only(net: Network) -> None:
    net.put_vnet(Vnet("blue"))
    net.put_vnet(Vnet("red"))
    net.subnets["blue6"] = replace(net.subnets["blue6"], vnet="blue")
    vm = net.vms["vm1"]
    for vnet, may in (("", True), ("blue", True), ("red", False)):
        nic = replace(vm.nic, vnet=vnet)
        assert may_be_own(net, nic, own(1)) == may, vnet
        assert may_be_own(net, nic, PRIVATE), "a link-local one is of any"


def test_a_servers_address_is_not_taken(net: Network) -> None:
    net.put_server(replace(net.servers["server3"], address=own(7)))
    assert claim(net, own(7)) is None


def test_only_where_the_operator_allows_it(net: Network) -> None:
    net.subnets["blue6"] = replace(net.subnets["blue6"], slaac=False)
    assert claim(net, own(1)) is None
    assert claim(net, PRIVATE) is not None, "a link-local one wherever there is IPv6"
    del net.subnets["blue6"]
    assert claim(net, PRIVATE) is None


def test_of_too_many_the_oldest_goes_and_no_other_kind(net: Network) -> None:
    net.assign(replace(holding6(1), kind=BindingKind.STATIC))
    rules = OwnAddresses()
    for number in range(MOST_OWN_ADDRESSES):
        found = claim(net, own(number), rules, now=number * NEW_SECONDS)
        assert found is not None
        assert found.instead_of is None
        net.assign(found.assignment)
    for number in (0, 1):
        found = claim(net, own(100 + number), rules, now=1e6 * (number + 1))
        assert found is not None
        assert found.instead_of is not None
        assert found.instead_of.ip == own(number)
        net.unassign(found.instead_of.ip)
        net.assign(found.assignment)
    assert vm_ip6(1) in net.assignments


def test_a_nic_has_no_more_new_ones_than_it_may_in_a_minute(net: Network) -> None:
    """Each NIC by itself; also when the clock goes back."""
    rules = OwnAddresses()
    for number in range(MOST_OWN_ADDRESSES):
        assert claim(net, own(number), rules, now=1000.0 + number) is not None
    assert claim(net, own(50), rules, now=1008.0) is None
    other = net.vms["vm2"]
    assert rules.claim(net, other, other.nic, own(50), 1008.0) is not None
    assert claim(net, own(50), rules, now=1000.0 + NEW_SECONDS) is not None
    assert claim(net, own(51), rules, now=1000.0 + NEW_SECONDS) is None
    assert claim(net, own(51), rules, now=5.0) is not None
    rules.forget(set())
    for number in range(MOST_OWN_ADDRESSES):
        assert claim(net, own(number), rules, now=6.0) is not None
