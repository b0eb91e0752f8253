"""Frames in VXLAN (RFC 7348), as a switch's tunnel port puts them on an IP network, and takes them off it.

A tunnel port of a switch is one of many ends: where a frame goes is in the field TUN_DST, whence it came in
TUN_SRC, and the network identifier (VNI) in TUNNEL_ID. What leaves by such a port is the whole outer frame.
"""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from retinue.core.packets import Ethernet, EtherType, FrameError, build_udp4, parse, parse_udp4
from retinue.core.packets.ethernet import ZERO_MAC

PORT = 4789
"""Of UDP (IANA)."""
_HEADER = struct.Struct("!B3xI")
_HAS_VNI = 0x08
_SHORTEST = 14


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A frame in a tunnel."""

    src: IPv4Address
    dst: IPv4Address
    vni: int
    frame: bytes


def wrap(src: IPv4Address, dst: IPv4Address, vni: int, frame: bytes) -> bytes:
    """The outer frame, its MACs left open: they are the IP network's to fill in."""
    inner = _HEADER.pack(_HAS_VNI, vni << 8) + frame
    return Ethernet(ZERO_MAC, ZERO_MAC, EtherType.IPV4, build_udp4(src, dst, PORT, PORT, inner)).build()


def unwrap(outer: bytes) -> Wrapped | None:
    """What is in an outer frame; None for one that is no VXLAN, or has no VNI."""
    try:
        ethernet = parse(outer)
        if ethernet.ethertype != EtherType.IPV4:
            return None
        datagram = parse_udp4(ethernet.payload)
    except FrameError:
        return None
    if datagram.dport != PORT or len(datagram.payload) < _HEADER.size + _SHORTEST:
        return None
    flags, vni = _HEADER.unpack_from(datagram.payload)
    if not flags & _HAS_VNI:
        return None
    return Wrapped(datagram.src, datagram.dst, vni >> 8, datagram.payload[_HEADER.size :])
