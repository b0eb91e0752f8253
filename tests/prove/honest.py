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
from retinue.core.model.anycast import host_prefix
from retinue.core.model.families import forwarded_assignments, forwarded_prefixes, in_use
from retinue.core.model.link_local import is_link_local, link_local
from retinue.core.packets import EtherType
from retinue.core.pipeline.entry import Field
from retinue.core.pipeline.matches import UNROUTABLE, UNROUTABLE6

UDP, ICMPV6 = 17, 58
HIDING = (135, 139, 140, 253, 254)
"""Extension headers (mobility, HIP, Shim6, for experiments) behind which no switch looks (RFC 7610, 4)."""
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
            found.append(Holding(vm.id, nic, held.leads, nic.speaks_as(held.ip), held.vrf))
        for prefix in forwarded_prefixes(net, nic.prefixes):
            found.append(Holding(vm.id, nic, prefix, nic.mac, net.vrf_of(nic)))
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


def to_gateway(gateway: Mac, version: int, vlan: int = 0) -> tuple[Bits, ...]:
    """A packet that is to be routed: untagged, or with this tag."""
    return (
        exactly(Field.VLAN_VID, TAGGED | vlan if vlan else 0),
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
        *(proto != number for number in (0, *HIDING)),  # What a switch cannot read, or does not look behind.
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


def _ours(net: Network, version: int, vrf: str) -> list[Prefix]:
    """What is not outside of a VRF."""
    subnets = [s.prefix for s in net.subnets_in(vrf)]
    return [p for p in (*subnets, *(prefix for prefix, _ in net.routed(vrf))) if p.version == version]


def router_of(net: Network, vrf: str) -> Server | None:
    """A VRF's way out; here it has one, or none."""
    return next((server for server in net.servers.values() if server.routes_in(vrf)), None)


def tag_at(router: Server, vrf: str) -> int:
    """What the VLAN field is of a VRF's frames at its router's port."""
    there = router.interface_in(vrf)
    return 0 if there is None else TAGGED | there.vlan


def outside(net: Network, version: int, vrf: str) -> z3.BoolRef:
    """To an address outside the VRF to which a router may forward."""
    dst = DST[version]
    prefixes = _ours(net, version, vrf)
    no_way: tuple[IPv4Network | IPv6Network, ...] = UNROUTABLE if version == 4 else UNROUTABLE6
    return z3.Not(z3.Or(*(within(dst, prefix) for prefix in (*prefixes, *no_way))))


def from_outside(net: Network, version: int, vrf: str = DEFAULT_VRF) -> z3.BoolRef:
    """From an address that is none of the VRF's."""
    src = SRC[version]
    prefixes = _ours(net, version, vrf)
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
        (held.leads, nic.speaks_as(held.ip))
        for held in net.assignments_of(vm, nic)
        if not is_link_local(held.ip)
    ]
    led = (*nic.prefixes, *map(host_prefix, nic.anycast))
    prefixes = [(prefix, nic.mac) for prefix in forwarded_prefixes(net, led)]
    return [(of_vlan_0, *sent_as(ip, mac)[1:]) for ip, mac in (*addresses, *prefixes)]


def may_flood(net: Network, nic: NIC) -> bool:
    """True for a NIC of a vnet that floods."""
    vnet = net.vnets.get(nic.vnet)
    return vnet is not None and vnet.floods


def floods_as(net: Network, vm: VM, nic: NIC) -> list[tuple[Bits, ...]]:
    """As whom a NIC's frames may be flooded: as whom they may leave, and from its link-local address."""
    of_vlan_0 = (Field.VLAN_VID, 0, TAGGED - 1)
    if not may_flood(net, nic):
        return []
    to_all = (Field.ETH_DST, 1 << GROUP_BIT, 1 << GROUP_BIT)
    local = {link_local(nic.mac), *(a.ip for a in net.assignments_of(vm, nic) if is_link_local(a.ip))}
    locals6 = [(of_vlan_0, *sent_as(ip, nic.mac)[1:]) for ip in sorted(local)] if in_use(net, 6) else []
    multicast = inside(DST[6], IPv6Network("ff00::/8"))
    return [
        *((*own, to_all) for own in may_leave(net, vm, nic)),
        *((*own, to_all, multicast) for own in locals6),
    ]


def to_its_vnet(net: Network, nic: NIC, version: int) -> z3.BoolRef:
    """To all who hear it in the NIC's vnet: multicast, or broadcast, of IP."""
    if version == 6:
        return within(DST[6], IPv6Network("ff00::/8"))
    subnets = [s.prefix for s in net.subnets.values() if s.vnet == nic.vnet]
    directed = [UNKNOWN[DST[4]] == int(p.broadcast_address) for p in subnets if isinstance(p, IPv4Network)]
    return z3.Or(within(DST[4], IPv4Network("224.0.0.0/3")), *directed)


def may_leave_service(net: Network, server: Server) -> list[z3.BoolRef]:
    """What the fabric takes from a machine at a leaf: its own address; of a router, any from outside; in a
    VRF what has its tag there. One without services, a host beside the VMs, is believed whatever it says."""
    found: list[z3.BoolRef] = [] if server.services else [z3.BoolVal(True)]
    vrfs = [(DEFAULT_VRF, z3.BoolVal(True))]
    if server.subinterfaces:
        all_of_it = [DEFAULT_VRF, *(one.vrf for one in server.subinterfaces)]
        vrfs = [(vrf, UNKNOWN[Field.VLAN_VID] == tag_at(server, vrf)) for vrf in all_of_it]
    for vrf, tagged in vrfs:
        for ip in (ip for of, ip in server.addresses if of == vrf):
            kind = condition(*exactly(Field.ETH_TYPE, ETH_TYPE[ip.version]))
            found.append(z3.And(tagged, kind, condition(*exactly(SRC[ip.version], int(ip)))))
        for v in versions(net) if server.routes_in(vrf) else ():
            kind = condition(*exactly(Field.ETH_TYPE, ETH_TYPE[v]))
            found.append(z3.And(tagged, kind, from_outside(net, v, vrf)))
    return found


__all__ = [
    "DST",
    "ETH_TYPE",
    "SRC",
    "Holding",
    "brought_to",
    "exactly",
    "floods_as",
    "from_outside",
    "inside",
    "holdings",
    "lives",
    "may_flood",
    "may_leave",
    "may_leave_service",
    "ordinary",
    "outside",
    "router_of",
    "sent_as",
    "tag_at",
    "to_gateway",
    "to_its_vnet",
    "to_one",
    "version_of",
    "versions",
    "within",
]
