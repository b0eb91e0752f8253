"""What is done for addresses of each IP version."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from retinue.core.model import Network, Subnet
from retinue.core.model.families import (
    dhcp6_subnets,
    forwarded_assignments,
    forwarded_prefixes,
    forwarded_subnets,
    in_use,
    is_forwarded,
    is_leased,
    led_to,
)
from retinue.core.model.link_local import link_local
from support.fabric.networks import GATEWAY_MAC, add_ipv6, add_vm, fabric, holding6, vm_ip, vm_mac

FOUR, SIX = IPv4Network("192.0.2.0/24"), IPv6Network("fd00:9::/64")


def test_ipv6_is_in_use_where_there_is_a_subnet_of_it_and_ipv4_always() -> None:
    empty, net = Network(GATEWAY_MAC), fabric()
    assert in_use(empty, 4) and not in_use(empty, 6)
    assert in_use(net, 4) and not in_use(net, 6)
    add_ipv6(net)
    assert in_use(net, 4) and in_use(net, 6)


def test_switches_lead_to_both_and_dhcp_of_ipv4_is_about_ipv4_alone() -> None:
    assert is_forwarded(FOUR) and is_forwarded(SIX)
    subnets = [Subnet("a", FOUR, IPv4Address("192.0.2.1")), Subnet("b", SIX, IPv6Address("fd00:9::1"))]
    assert list(forwarded_subnets(subnets)) == subnets
    assert is_leased(IPv4Address("192.0.2.7"))
    assert not is_leased(IPv6Address("fd00:9::7"))
    assert not is_leased(None)


def test_addresses_are_led_to_once_their_family_is_in_use_and_never_those_of_the_link() -> None:
    net = fabric()
    add_vm(net, 1, 1)
    six = holding6(1)
    net.assign(six)
    linked = replace(six, ip=link_local(vm_mac(1)))
    net.assign(linked)
    (four,) = (a for a in net.held_by("vm1") if a.ip == vm_ip(1))
    assert list(forwarded_assignments(net, [four, six, linked])) == [four]
    assert list(forwarded_prefixes(net, [FOUR, SIX])) == [FOUR]
    add_ipv6(net)
    assert list(forwarded_assignments(net, [four, six, linked])) == [four, six]
    assert list(forwarded_assignments(net, [])) == []
    assert list(forwarded_prefixes(net, [FOUR, SIX])) == [FOUR, SIX]


def test_all_that_leads_to_a_vm() -> None:
    net = fabric()
    add_ipv6(net)
    add_vm(net, 1, 1)
    net.assign(holding6(1, lease_end=77.0))
    vm = net.vms["vm1"]
    net.put_vm(replace(vm, nics=(replace(vm.nic, prefixes=(FOUR,)),)))
    held = {a.ip: a.lease_end for a in net.held_by("vm1")}
    found = set(led_to(net, net.vms["vm1"]))
    assert found == {*((ip, end, "default") for ip, end in held.items()), (FOUR, None, "default")}
    assert (holding6(1).ip, 77.0, "default") in found


def test_dhcpv6_is_of_the_nics_vnet_or_of_all_where_nobody_has_said_which() -> None:
    net = fabric()
    add_ipv6(net)
    assert dhcp6_subnets(net, "") == ()
    net.add_subnet(replace(net.subnets["blue6"], dhcp6=True))
    served = (net.subnets["blue6"],)
    assert dhcp6_subnets(net, "") == dhcp6_subnets(net, "default") == served
    assert dhcp6_subnets(net, "shop") == ()
