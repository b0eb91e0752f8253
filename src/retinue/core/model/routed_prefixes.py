"""Prefixes that are routed to NICs: what may be, and what may not be beside one.

A prefix leads to one NIC alone. So it has no address that is anybody's otherwise: none of a subnet, of a VM
or server, and none that a router leads to by a route of its own; a route that it is a part of, such as the
default route, is for all the rest. All of that is inside a VRF: that of the NIC's vnet.

Each function looks at one thing to be added, changes nothing, and raises ModelError when it must not be
added.
"""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

from retinue.core.model.addresses import IP, ModelError, Prefix
from retinue.core.model.binding import Assignment
from retinue.core.model.entities import VM, Server, Subnet
from retinue.core.model.link_local import LINK_LOCAL, MULTICAST
from retinue.core.model.view import NetworkView
from retinue.core.model.vrfs import DEFAULT_VRF

UNROUTABLE4 = tuple(
    IPv4Network(prefix)
    for prefix in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")
)
"""Of IPv4, what no router may forward to: this network, loopback, link-local, multicast (nobody asked to have
it routed), reserved, and with it the limited broadcast (RFC 1812, 4.2.2.11 and 5.3.7; RFC 3927, 2.7; RFC
6890)."""
NO_HOSTS = (IPv6Network("::/127"), IPv6Network("::ffff:0:0/96"), LINK_LOCAL, MULTICAST)
"""Of IPv6: the unspecified address and loopback, IPv4 in disguise, what ends at the link, groups."""


def check_prefixes(net: NetworkView, vm: VM) -> None:
    known = net.vms.get(vm.id)
    if known is not None and _routed_to(known) == _routed_to(vm):
        return  # Whatever has come beside them since has been looked at as it came.
    own: list[tuple[str, Prefix]] = [(held.vrf, held.prefix) for held in net.held_by(vm.id) if held.prefix]
    for nic in vm.nics:
        for prefix in nic.prefixes:
            vrf = net.vrf_of(nic)
            check_prefix(net, vm.id, prefix, vrf, [other for of, other in own if of == vrf])
            own.append((vrf, prefix))


def check_delegated(net: NetworkView, assignment: Assignment) -> None:
    """A prefix that a DHCPv6 server gives to a VM's NIC, or leaves with it."""
    vm, prefix = net.vms[assignment.vm], assignment.prefix
    known = net.assignments.get(assignment.key)
    if prefix is None or (known is not None and (known.prefix, known.mac) == (prefix, assignment.mac)):
        return  # What it has was looked at as it came, and so is whatever comes beside it.
    was = None if known is None else known.prefix
    of_vrf = [nic for nic in vm.nics if net.vrf_of(nic) == assignment.vrf]
    own = [other for nic in of_vrf for other in net.prefixes_of(vm, nic) if other != was]
    check_prefix(net, vm.id, prefix, assignment.vrf, own, assignment)


def check_prefix(
    net: NetworkView,
    vm: str,
    prefix: Prefix,
    vrf: str,
    own: Iterable[Prefix],
    replaced: Assignment | None = None,
) -> None:
    """`own`: others that are routed to the VM. `replaced`: what takes the place of what has its key."""
    what = f"VM {vm}: {prefix} cannot be routed to it"
    others: list[tuple[Prefix, str]] = [
        (other, in_words(id))
        for other, whose in net.routed_beside(prefix, vrf)
        for id in _all_of(net, other, whose, vrf)
        if id != vm
    ]
    others += [(other, "it already") for other in own]
    others += ((other, "nobody: no router forwards there") for other in UNROUTABLE4)
    others += ((other, "nobody: no router forwards there") for other in NO_HOSTS)
    for other, whose in others:
        if overlap(prefix, other):
            raise ModelError(f"{what}: {other} is routed to {whose}")
    for subnet in net.subnets_in(vrf):
        if overlap(prefix, subnet.prefix):
            raise ModelError(f"{what}: it has addresses of subnet {subnet.id}, {subnet.prefix}")
    for address, server in net.servers_in(prefix, vrf):
        raise ModelError(f"{what}: {address} is the address of server {server}")
    for route in net.reached_in(prefix, vrf):
        through = next(iter(net.routers_to[vrf, route]))
        raise ModelError(f"{what}: {route} is reached through server {through}")
    for held in net.held_in(prefix, vrf):
        is_itself = replaced is not None and held.key == replaced.key and held.vm == vm
        if not is_itself:
            raise ModelError(f"{what}: {held.ip} is held by VM {held.vm}")


def _all_of(net: NetworkView, prefix: Prefix, whose: str, vrf: str) -> Iterable[str]:
    """The VMs that a prefix is routed to: one, but of an anycast address, which the index has as one's."""
    if vrf != DEFAULT_VRF or prefix.num_addresses > 1:
        return [whose]
    return [vm for _, vm in net.anycast_at(prefix.network_address)] or [whose]


def in_words(vm: str) -> str:
    """Of whom the index of prefixes has as one's."""
    return f"VM {vm}" if vm else "servers, as an anycast address"


def _routed_to(vm: VM) -> list[tuple[str, tuple[Prefix, ...]]]:
    return [(nic.vnet, nic.prefixes) for nic in vm.nics]


def check_not_routed(net: NetworkView, what: str, ip: IP, vrf: str = DEFAULT_VRF) -> None:
    found = net.routed_to(ip, vrf)
    if found is not None:
        raise ModelError(f"{what}: {ip} is in {found[0]}, which is routed to {in_words(found[1])}")


def check_subnet_beside(net: NetworkView, subnet: Subnet) -> None:
    for prefix, vm in net.routed_beside(subnet.prefix, net.vrf_of_vnet(subnet.vnet)):
        raise ModelError(f"subnet {subnet.id}: {prefix} is routed to {in_words(vm)}")


def check_server_beside(net: NetworkView, server: Server) -> None:
    for vrf, ip in server.addresses:
        check_not_routed(net, f"server {server.id}", ip, vrf)
    for vrf, route in server.ways:
        found = net.routed_to(route.network_address, vrf)
        if found is not None and is_part(route, found[0]):
            raise ModelError(f"server {server.id}: {found[0]} is routed to {in_words(found[1])}")


def overlap(one: Prefix, other: Prefix) -> bool:
    return one.version == other.version and one.overlaps(other)


def is_part(one: Prefix, other: Prefix) -> bool:
    """True where all of one prefix is in the other."""
    return overlap(one, other) and one.prefixlen >= other.prefixlen
