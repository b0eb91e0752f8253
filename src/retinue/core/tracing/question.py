"""What is asked of a trace: a frame that an honest host would send, unless the question says otherwise.

    Question(IPv4Address("10.1.0.101"), Kind.UDP, 53)

Whoever sends it has a place, a port of a switch. From there MAC and address follow: those that the NIC or the
server at that port has, and the MAC that its ARP would have found for the destination.
"""

import struct
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address

from retinue.core.model import IP, Mac, ModelError
from retinue.core.model.binding import BindingKind
from retinue.core.model.link_local import group_mac, solicited_node
from retinue.core.model.network import Network
from retinue.core.packets import (
    BROADCAST,
    ND,
    Ethernet,
    EtherType,
    FrameError,
    NDOptions,
    NeighbourSolicitation,
    arp_request,
    build_icmpv6,
    build_ipv6,
    build_udp4,
    checksum,
    nd_frame,
    tagged,
    upper_checksum,
)
from retinue.core.packets.icmp import ICMP
from retinue.core.packets.ipv4 import build_ipv4
from retinue.core.packets.udp6 import build_udp6
from retinue.core.pipeline.responders.echo import ECHO_REQUEST, ECHO_REQUEST6
from retinue.core.tracing.places import Place, at_port

SOURCE_PORT = 49152
"""Of UDP and TCP: the first that a client may take for a while (RFC 6335, 6)."""
TCP, SYN = 6, 0x02
TEXT = b"retinue trace"


class Kind(StrEnum):
    """What the frame carries."""

    ICMP = "icmp"
    """An echo request."""
    UDP = "udp"
    TCP = "tcp"
    """A SYN."""
    ARP = "arp"
    """Who has the address? Of IPv6 a neighbour solicitation."""


class TraceError(ModelError):
    """What is asked cannot be traced; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Question:
    dst: IP
    kind: Kind = Kind.ICMP
    port: int = 0
    """To which port, of UDP and TCP."""
    src: IP | None = None
    """None: an address that the sender has."""
    src_mac: Mac = ""
    dst_mac: Mac = ""
    ttl: int = 64


def frame_of(net: Network, place: Place, asked: Question) -> tuple[bytes, tuple[str, ...]]:
    """The frame, and what a host in earnest would have done differently. Raises TraceError."""
    sender = at_port(net, place)
    mac = asked.src_mac or sender.mac
    if not mac:
        raise TraceError(f"nobody is known at {place.name}: say as which MAC the frame is sent (--src-mac)")
    src = asked.src if asked.src is not None else _source(net, place, asked.dst)
    if src.version != asked.dst.version:
        raise TraceError(f"{src} cannot send to {asked.dst}: one is IPv4 and the other IPv6")
    to, notes = (asked.dst_mac, ()) if asked.dst_mac else _neighbour(net, place, src, asked.dst)
    try:
        return tagged(_built(asked, mac, to, src), place.vlan), notes
    except FrameError as error:
        raise TraceError(f"there is no such frame: {error}") from error


def _source(net: Network, place: Place, dst: IP) -> IP:
    """The address from which the sender would send there: one of the same subnet, else any it has."""
    sender = at_port(net, place)
    mine = [ip for ip in sender.addresses if ip.version == dst.version]
    if not mine:
        whose = f"{sender.name} has no IPv{dst.version} address"
        raise TraceError(f"{whose} to send to {dst} from: say from which address it is sent (--src)")
    subnet = net.subnet_of(dst, sender.vrf)
    beside = [ip for ip in mine if subnet is not None and ip in subnet.prefix]
    return (beside or mine)[0]


def _neighbour(net: Network, place: Place, src: IP, dst: IP) -> tuple[Mac, tuple[str, ...]]:
    """The MAC by which the sender would reach the destination, as its ARP or ND found it."""
    sender = at_port(net, place)
    gateway = net.gateway_mac_of(net.server_of_edge(place.switch))
    if isinstance(dst, IPv6Address) and dst.is_multicast:
        return group_mac(dst), ()
    if isinstance(dst, IPv4Address) and dst.is_multicast:
        return f"01:00:5e:{int(dst) >> 16 & 0x7F:02x}:{int(dst) >> 8 & 0xFF:02x}:{int(dst) & 0xFF:02x}", ()
    subnet = net.subnet_of(dst, sender.vrf)
    if dst == IPv4Address(0xFFFFFFFF):
        return BROADCAST, ()
    if subnet is None or src not in subnet.prefix or dst == subnet.gateway:
        return gateway, ()
    holder = net.holder(dst, sender.vrf)
    if holder is None:
        if net.server_of_address(dst, sender.vrf) is not None:
            return gateway, ()
        word = "ARP" if dst.version == 4 else "neighbour discovery"
        return gateway, (f"nobody answers {word} for {dst}: a host would not even send this",)
    here = net.servers[net.vms[holder.vm].server].edge == place.switch
    if here and holder.kind is not BindingKind.ALLOWED:
        return holder.mac, ()
    return gateway, ()


# ---- bytes ----


def _built(asked: Question, mac: Mac, to: Mac, src: IP) -> bytes:
    dst = asked.dst
    if asked.kind is Kind.ARP:
        return _who_has(asked, mac, src)
    if isinstance(src, IPv4Address) and isinstance(dst, IPv4Address):
        return Ethernet(to, mac, EtherType.IPV4, _ipv4(asked, src, dst)).build()
    assert isinstance(src, IPv6Address) and isinstance(dst, IPv6Address)
    return Ethernet(to, mac, EtherType.IPV6, _ipv6(asked, src, dst)).build()


def _who_has(asked: Question, mac: Mac, src: IP) -> bytes:
    if isinstance(src, IPv4Address) and isinstance(asked.dst, IPv4Address):
        to = asked.dst_mac or BROADCAST
        return arp_request(mac, src, asked.dst, to)
    assert isinstance(src, IPv6Address) and isinstance(asked.dst, IPv6Address)
    solicitation = NeighbourSolicitation(asked.dst, NDOptions(source_mac=mac))
    group = solicited_node(asked.dst)
    return nd_frame(ND(src, group, solicitation), mac, asked.dst_mac or None)


def _ipv4(asked: Question, src: IPv4Address, dst: IPv4Address) -> bytes:
    match asked.kind:
        case Kind.UDP:
            return build_udp4(src, dst, SOURCE_PORT, asked.port, TEXT, asked.ttl)
        case Kind.TCP:
            pseudo = src.packed + dst.packed + struct.pack("!BBH", 0, TCP, 20)
            segment = _syn(asked.port)
            return build_ipv4(src, dst, TCP, _with_sum(segment, checksum(pseudo + segment), 16), asked.ttl)
        case _:
            echo = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, 1, 1) + TEXT
            return build_ipv4(src, dst, ICMP, _with_sum(echo, checksum(echo), 2), asked.ttl)


def _ipv6(asked: Question, src: IPv6Address, dst: IPv6Address) -> bytes:
    match asked.kind:
        case Kind.UDP:
            return build_udp6(src, dst, SOURCE_PORT, asked.port, TEXT, asked.ttl)
        case Kind.TCP:
            segment = _syn(asked.port)
            summed = _with_sum(segment, upper_checksum(src, dst, TCP, segment), 16)
            return build_ipv6(src, dst, TCP, summed, asked.ttl)
        case _:
            echo = struct.pack("!BBHHH", ECHO_REQUEST6, 0, 0, 1, 1) + TEXT
            return build_icmpv6(src, dst, echo, asked.ttl)


def _syn(port: int) -> bytes:
    """A TCP header without options, its checksum zero (RFC 9293, 3.1)."""
    try:
        return struct.pack("!HHIIBBHHH", SOURCE_PORT, port, 1, 0, 5 << 4, SYN, 0xFFFF, 0, 0)
    except struct.error as error:
        raise FrameError(f"TCP port {port} out of range") from error


def _with_sum(body: bytes, found: int, at: int) -> bytes:
    return body[:at] + found.to_bytes(2, "big") + body[at + 2 :]


__all__ = ["Kind", "Question", "TraceError", "frame_of"]
