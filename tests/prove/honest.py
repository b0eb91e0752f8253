"""What an honest frame is, and as whom a NIC may send: told from the RFCs and the model, not from the
pipeline."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Network, IPv6Network

import z3

from prove.terms import SIZE, TAGGED, UNKNOWN, Bits, condition, full
from retinue.core.limits import LEAST_MTU
from retinue.core.model import DEFAULT_VRF, IP, NIC, VM, Mac, Network, Prefix, Server, mac_to_int
from retinue.core.model.families import forwarded_assignments, forwarded_prefixes, in_use
from retinue.core.model.link_local import is_link_local
from retinue.core.packets import EtherType
from retinue.core.pipeline.entry import Field
from retinue.core.pipeline.matches import UNROUTABLE, UNROUTABLE6

UDP, ICMPV6 = 17, 58
DHCP_PORTS, DHCPV6_PORTS = (67, 68), (546, 547)
ROUTER_AND_NEIGHBOUR_MESSAGES = (133, 134, 135, 136, 137)
"""Neighbour discovery (RFC 4861): it ends at the NIC's switch."""
GROUP_BIT = 40
FIRST_PART = 1
"""`IP_FRAG` of one."""

SRC = {4: Field.IPV4_SRC, 6: Field.IPV6_SRC}
DST = {4: Field.IPV4_DST, 6: Field.IPV6_DST}
ETH_TYPE = {4: EtherType.IPV4, 6: EtherType.IPV6}


@dataclass(frozen=True, slots=True)
class Holding:
    """A NIC has an address, or a prefix that is routed to it, and uses it under a MAC."""

    vm: str
    nic: NIC
    ip: IP | Prefix
    mac: Mac
    vrf: str = DEFAULT_VRF


def holdings(net: Network) -> list[Holding]:
    """Of all NICs, the addresses and prefixes that switches lead to."""
    found: list[Holding] = []
    nics = [(vm, nic) for vm in net.vms.values() for nic in vm.nics if nic.enabled]
    for vm, nic in nics:
        for held in forwarded_assignments(net, net.assignments_of(vm, nic)):
            found.append(Holding(vm.id, nic, held.ip, nic.speaks_as(held.ip), held.vrf))
        for prefix in forwarded_prefixes(net, nic.prefixes):
            found.append(Holding(vm.id, nic, prefix, nic.mac))
    return found


def exactly(field: Field, value: int) -> Bits:
    return field, value, full(field)


def inside(field: Field, ip: IP | Prefix) -> Bits:
    """It is this address, or one of this prefix."""
    if isinstance(ip, IPv4Network | IPv6Network):
        return field, int(ip.network_address), int(ip.netmask)
    return exactly(field, int(ip))


@cache
def within(field: Field, prefix: IPv4Network | IPv6Network) -> z3.BoolRef:
    mask = int(prefix.netmask)
    return condition(field, int(prefix.network_address), mask) if mask else z3.BoolVal(True)


def sent_as(ip: IP | Prefix, mac: Mac) -> tuple[Bits, ...]:
    """An untagged packet from this address, or one of this prefix, and from this MAC."""
    return (
        exactly(Field.VLAN_VID, 0),
        exactly(Field.ETH_TYPE, ETH_TYPE[ip.version]),
        exactly(Field.ETH_SRC, mac_to_int(mac)),
        inside(SRC[ip.version], ip),
    )


def to_gateway(gateway: Mac, version: int) -> tuple[Bits, ...]:
    """An untagged packet that is to be routed."""
    return (
        exactly(Field.VLAN_VID, 0),
        exactly(Field.ETH_TYPE, ETH_TYPE[version]),
        exactly(Field.ETH_DST, mac_to_int(gateway)),
    )


def brought_to(server: Server, gateway: Mac, version: int, tag: int = 0) -> tuple[Bits, ...]:
    """A packet that a leaf has routed to a server: untagged, or with the tag of a VRF."""
    return (
        exactly(Field.VLAN_VID, TAGGED | tag if tag else 0),
        exactly(Field.ETH_TYPE, ETH_TYPE[version]),
        exactly(Field.ETH_SRC, mac_to_int(gateway)),
        exactly(Field.ETH_DST, mac_to_int(server.mac)),
    )


def version_of(sent: tuple[Bits, ...]) -> int:
    """The IP version of such packets."""
    return next(version for version, kind in ETH_TYPE.items() if exactly(Field.ETH_TYPE, kind) in sent)


@cache
def lives() -> z3.BoolRef:
    """It may be forwarded once, and is no larger than every network takes."""
    return z3.And(z3.UGE(UNKNOWN[Field.IP_TTL], 2), z3.ULE(SIZE, LEAST_MTU))


@cache
def ordinary(version: int) -> z3.BoolRef:
    """It is nothing that ends at its sender's switch: no DHCP, no neighbour discovery, nothing unreadable."""
    proto = UNKNOWN[Field.IP_PROTO]
    udp = proto == UDP
    sport, dport = UNKNOWN[Field.UDP_SRC], UNKNOWN[Field.UDP_DST]
    if version == 4:
        server, client = DHCP_PORTS
        dhcp = z3.Or(sport == server, dport == client, dport == server)
        return z3.Not(z3.And(udp, dhcp))
    kind, part = UNKNOWN[Field.ICMPV6_TYPE], UNKNOWN[Field.IP_FRAG]
    discovery = z3.Or(*(kind == number for number in ROUTER_AND_NEIGHBOUR_MESSAGES))
    dhcp = z3.Or(*(dport == port for port in DHCPV6_PORTS))
    # A first part that does not show what it is a part of may be either (RFC 6980; RFC 7610, 5).
    portless = z3.And(sport == 0, dport == 0, part == FIRST_PART)
    headless = z3.And(kind == 0, part == FIRST_PART)
    return z3.And(
        proto != 0,  # What a switch cannot read.
        z3.Not(z3.And(udp, z3.Or(dhcp, portless))),
        z3.Not(z3.And(proto == ICMPV6, z3.Or(discovery, headless))),
    )


@cache
def to_one(macs_of_others: tuple[Mac, ...]) -> z3.BoolRef:
    """To one machine, and not to these."""
    dst = UNKNOWN[Field.ETH_DST]
    return z3.And(
        z3.Extract(GROUP_BIT, GROUP_BIT, dst) == 0, *(dst != mac_to_int(mac) for mac in macs_of_others)
    )


def _ours(net: Network, version: int) -> list[Prefix]:
    """What is not outside, in the VRF that has an outside."""
    subnets = [s.prefix for s in net.subnets_in()]
    return [p for p in (*subnets, *(prefix for prefix, _ in net.routed())) if p.version == version]


def outside(net: Network, version: int) -> z3.BoolRef:
    """To an address outside the data centre to which a router may forward."""
    dst = DST[version]
    prefixes = _ours(net, version)
    no_way: tuple[IPv4Network | IPv6Network, ...] = UNROUTABLE if version == 4 else UNROUTABLE6
    return z3.Not(z3.Or(*(within(dst, prefix) for prefix in (*prefixes, *no_way))))


def from_outside(net: Network, version: int) -> z3.BoolRef:
    """From an address that is none of the data centre's."""
    src = SRC[version]
    prefixes = _ours(net, version)
    if version == 6:
        prefixes.append(IPv6Network("fe80::/10"))
    return z3.Not(z3.Or(*(within(src, prefix) for prefix in prefixes)))


def versions(net: Network) -> Iterator[int]:
    return (version for version in (4, 6) if in_use(net, version))


def may_leave(net: Network, vm: VM, nic: NIC) -> list[tuple[Bits, ...]]:
    """As whom a NIC's frames may leave its switch: from an address it has, under the MAC it has it by. A tag
    that tells its priority alone is taken off."""
    of_vlan_0 = (Field.VLAN_VID, 0, TAGGED - 1)
    addresses: list[tuple[IP | Prefix, Mac]] = [
        (held.ip, nic.speaks_as(held.ip))
        for held in net.assignments_of(vm, nic)
        if not is_link_local(held.ip)
    ]
    prefixes = [(prefix, nic.mac) for prefix in forwarded_prefixes(net, nic.prefixes)]
    return [(of_vlan_0, *sent_as(ip, mac)[1:]) for ip, mac in (*addresses, *prefixes)]


def may_leave_service(net: Network, server: Server) -> list[z3.BoolRef]:
    """What the fabric takes from a machine at a leaf: its own address; of a router, any from outside."""
    found: list[z3.BoolRef] = []
    if server.address is not None:
        v = server.address.version
        found.append(
            z3.And(
                condition(*exactly(Field.ETH_TYPE, ETH_TYPE[v])),
                condition(*exactly(SRC[v], int(server.address))),
            )
        )
    if server.routes:
        found += [
            z3.And(condition(*exactly(Field.ETH_TYPE, ETH_TYPE[v])), from_outside(net, v))
            for v in versions(net)
        ]
    return found


__all__ = [
    "DST",
    "ETH_TYPE",
    "SRC",
    "Holding",
    "brought_to",
    "exactly",
    "from_outside",
    "inside",
    "holdings",
    "lives",
    "may_leave",
    "may_leave_service",
    "ordinary",
    "outside",
    "sent_as",
    "to_gateway",
    "to_one",
    "version_of",
    "versions",
    "within",
]
