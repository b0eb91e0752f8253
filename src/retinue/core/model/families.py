"""What is done for which IP version: the one table to extend when a family gains something.

Everything that computes entries, or handles leases, asks here whether an address's family takes part. The
model itself keeps addresses of both families.
"""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import TypeGuard

from retinue.core.model.addresses import IP, Prefix
from retinue.core.model.binding import Assignment
from retinue.core.model.entities import VM, Subnet
from retinue.core.model.link_local import is_link_local
from retinue.core.model.view import NetworkView


class Support(StrEnum):
    """Something that can be done for an IP version."""

    FORWARDED = "forwarded"
    """Switches admit, answer for and forward the family's addresses: flow entries are compiled for them."""
    LEASED = "leased"
    """VMs get the family's addresses from DHCP servers, as DHCP of IPv4 has it; DHCPv6 has rules of its own
    (core.snooping.dhcp6_rules)."""


FAMILIES: dict[int, frozenset[Support]] = {
    4: frozenset({Support.FORWARDED, Support.LEASED}),
    6: frozenset({Support.FORWARDED}),
}
"""By IP version. An address of a family without FORWARDED is registered and kept, but nothing leads to it."""


def is_forwarded(address: IP | IPv4Network | IPv6Network) -> bool:
    return Support.FORWARDED in FAMILIES[address.version]


def forwarded_subnets(subnets: Iterable[Subnet]) -> Iterator[Subnet]:
    return (subnet for subnet in subnets if is_forwarded(subnet.prefix))


def in_use(net: NetworkView, version: int) -> bool:
    """True when the network's switches deal with this IP version: with IPv4 always, with IPv6 once there is a
    subnet of it. A network without one has no entry for IPv6."""
    if version == 4:
        return True
    return Support.FORWARDED in FAMILIES[version] and any(
        subnet.prefix.version == version for subnet in net.subnets.values()
    )


def forwarded_assignments(net: NetworkView, assignments: Iterable[Assignment]) -> Iterator[Assignment]:
    """Those whose addresses switches lead to; a link-local address ends at the link."""
    found = tuple(assignments)
    versions = {version for version in {a.ip.version for a in found} if in_use(net, version)}
    return (a for a in found if a.ip.version in versions and not is_link_local(a.ip))


def dhcp6_subnets(net: NetworkView, vnet: str) -> tuple[Subnet, ...]:
    """The subnets of which a NIC of this vnet ("": nobody has said which) gets addresses by DHCPv6."""
    return tuple(s for s in net.subnets_in(net.vrf_of_vnet(vnet)) if s.dhcp6 and vnet in ("", s.vnet))


def led_to(net: NetworkView, vm: VM) -> Iterator[tuple[IP | Prefix, float | None, str]]:
    """All that switches lead to a VM, each with its VRF: addresses, with their leases' ends, and prefixes."""
    yield from ((a.leads, a.lease_end, a.vrf) for a in forwarded_assignments(net, net.held_by(vm.id)))
    for nic in vm.nics:
        yield from ((prefix, None, net.vrf_of(nic)) for prefix in forwarded_prefixes(net, nic.prefixes))


def forwarded_prefixes(net: NetworkView, prefixes: Iterable[Prefix]) -> Iterator[Prefix]:
    return (prefix for prefix in prefixes if in_use(net, prefix.version))


def is_leased(address: IP | None) -> TypeGuard[IPv4Address]:
    """True for an address that DHCP, as spoken here, can be about."""
    return address is not None and Support.LEASED in FAMILIES[address.version]
