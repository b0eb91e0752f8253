"""Matches that more than one table needs: packets by IP address, ARP, DHCP, frames without a VLAN tag."""

from ipaddress import IPv4Network, IPv6Network

from retinue.core.model import IP
from retinue.core.model.families import in_use
from retinue.core.model.routed_prefixes import NO_HOSTS, UNROUTABLE4
from retinue.core.model.view import NetworkView
from retinue.core.packets import CLIENT_PORT, SERVER_PORT, ArpOp, EtherType
from retinue.core.packets.dhcp6 import CLIENT_PORT6, SERVER_PORT6
from retinue.core.packets.ipv4 import UDP
from retinue.core.packets.ipv6 import ICMPV6
from retinue.core.pipeline.entry import FieldValue, Match, match

NO_TAG = 0
"""The VLAN id of an untagged frame (OFPVID_NONE; a tag has one bit more, also that of VLAN 0). Every entry
that admits a frame asks for it, or for the tag of a trunk, which it takes off, so that no tag of a VM's comes
through to where it counts; an edge takes priority tags off first."""
PRIORITY_TAG = 0x1000
"""The VLAN id of a frame with a tag for VLAN 0 (OFPVID_PRESENT)."""
ANY_TAG = (0x1000, 0x1000)
"""Value and mask of the bit that says that a frame has a tag, whichever (OFPVID_PRESENT)."""
GROUP_BIT = (1 << 40, 1 << 40)
"""Value and mask of the bit that makes a MAC a group address (broadcast among them)."""


UNROUTABLE = UNROUTABLE4
"""Destinations that no router may forward to."""

UNROUTABLE6 = NO_HOSTS
"""The same of IPv6: unspecified and loopback, IPv4-mapped, link-local, multicast (RFC 4291; RFC 6890)."""


def unroutable(net: NetworkView) -> tuple[IPv4Network | IPv6Network, ...]:
    """The unroutable destinations of the IP versions that are in use."""
    return (*UNROUTABLE, *UNROUTABLE6) if in_use(net, 6) else UNROUTABLE


def ip_types(net: NetworkView) -> tuple[int, ...]:
    """The EtherTypes of the IP versions that are in use."""
    return (EtherType.IPV4, EtherType.IPV6) if in_use(net, 6) else (EtherType.IPV4,)


def storage_types(net: NetworkView) -> tuple[int, ...]:
    """The EtherType of storage frames, where there is an FCoE forwarder, or one in a domain whose guests
    come with storage."""
    elsewhere = any(peer.storage for peer in net.peers.values())
    return (EtherType.FCOE,) if elsewhere or net.forwarders() else ()


Addresses = IP | IPv4Network | IPv6Network
"""One address, or all of a prefix."""


def ip_match(*, src: Addresses | None = None, dst: Addresses | None = None, **terms: int | str) -> Match:
    """A match on the IP family of `src` or `dst`, and on them."""
    version = next(a.version for a in (src, dst) if a is not None)
    family = "ipv4" if version == 4 else "ipv6"
    found: dict[str, int | str | Addresses] = dict(terms)
    found["eth_type"] = EtherType.IPV4 if version == 4 else EtherType.IPV6
    if src is not None:
        found[f"{family}_src"] = src
    if dst is not None:
        found[f"{family}_dst"] = dst
    return match(**found)


def icmpv6_match(kind: int, **terms: FieldValue) -> Match:
    """ICMPv6 messages of a type."""
    return match(eth_type=EtherType.IPV6, ip_proto=ICMPV6, icmpv6_type=kind, **terms)


def arp_request_for(address: IP, **terms: int | IPv4Network | IPv6Network) -> Match:
    """ARP requests for an address."""
    return match(eth_type=EtherType.ARP, arp_op=ArpOp.REQUEST, arp_tpa=address, **terms)


def dhcp_match(*, sport: int | None = None, dport: int | None = None, **terms: int | str | IP) -> Match:
    """IPv4 packets from or to a UDP port of DHCP: SERVER_PORT or CLIENT_PORT."""
    found: dict[str, int | str | IP] = dict(terms, eth_type=EtherType.IPV4, ip_proto=UDP)
    if sport is not None:
        found["udp_src"] = sport
    if dport is not None:
        found["udp_dst"] = dport
    return match(**found)


def dhcp6_match(*, sport: int | None = None, dport: int | None = None, **terms: int | str) -> Match:
    """IPv6 packets from or to a UDP port of DHCPv6: SERVER_PORT6 or CLIENT_PORT6."""
    found: dict[str, int | str] = dict(terms, eth_type=EtherType.IPV6, ip_proto=UDP)
    if sport is not None:
        found["udp_src"] = sport
    if dport is not None:
        found["udp_dst"] = dport
    return match(**found)


__all__ = [
    "ANY_TAG",
    "CLIENT_PORT",
    "CLIENT_PORT6",
    "GROUP_BIT",
    "NO_TAG",
    "PRIORITY_TAG",
    "SERVER_PORT",
    "SERVER_PORT6",
    "UNROUTABLE",
    "UNROUTABLE6",
    "arp_request_for",
    "dhcp6_match",
    "dhcp_match",
    "icmpv6_match",
    "ip_match",
    "ip_types",
    "storage_types",
    "unroutable",
]
