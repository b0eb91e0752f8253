"""ICMPv6 errors of a router (RFC 4443): "time exceeded", and "packet too big"."""

import struct
from ipaddress import IPv6Address, IPv6Network

from retinue.core.model.link_local import LINK_LOCAL, MULTICAST
from retinue.core.packets.errors import FrameError
from retinue.core.packets.ipv6 import EXTENSIONS, FRAGMENT, ICMPV6, build_icmpv6, extension_size
from retinue.core.packets.nd import NDType

TIME_EXCEEDED, HOP_LIMIT_EXCEEDED = 3, 0
"""Type, and code of the kind that a router sends."""
PACKET_TOO_BIG = 2
FIRST_INFORMATIONAL = 128
"""Types below are errors (RFC 4443, 2.1)."""
MOST_QUOTED = 1280 - 40 - 8
"""Bytes of the packet that are sent back: "as much of invoking packet as possible without the ICMPv6 packet
exceeding the minimum IPv6 MTU" (RFC 4443, 3.3)."""

_HEADER = 40
_OFFSET = 0xFFF8
"""Bits of a fragment header: where its part begins."""
_NO_HOST = (IPv6Network("::/127"), MULTICAST)


def time_exceeded(packet: bytes, router: IPv6Address) -> bytes | None:
    """What a router answers to an IPv6 packet whose hop limit ends there: an IPv6 packet to its sender.

    None where a router must not answer, see `_error`. Raises FrameError for a packet that is malformed.
    """
    return _error(packet, router, TIME_EXCEEDED, HOP_LIMIT_EXCEEDED, 0)


def packet_too_big(packet: bytes, router: IPv6Address, mtu: int) -> bytes | None:
    """What a router answers to an IPv6 packet that is larger than the `mtu` of its next hop (RFC 4443, 3.2):
    an IPv6 packet to its sender, as for `time_exceeded`."""
    return _error(packet, router, PACKET_TOO_BIG, 0, mtu)


def _error(packet: bytes, router: IPv6Address, kind: int, code: int, word: int) -> bytes | None:
    """None where a router must not answer (RFC 4443, 2.4 e): to an ICMPv6 error or redirect, to a packet that
    was sent to a group, and from an address that is not one host's; nor to a fragment that is not the first.
    Raises FrameError for a packet that is malformed.
    """
    if len(packet) < _HEADER or packet[0] >> 4 != 6:
        raise FrameError(f"IPv6 of {len(packet)} bytes, starting with {packet[:1].hex()}")
    end = _HEADER + int.from_bytes(packet[4:6], "big")
    if end > len(packet):
        raise FrameError(f"IPv6 payload length {end - _HEADER}, but there are {len(packet) - _HEADER}")
    src, dst = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
    if any(src in prefix for prefix in _NO_HOST) or src in LINK_LOCAL or dst in MULTICAST:
        return None
    if _is_error(packet[:end]):
        return None
    quoted = packet[: min(end, MOST_QUOTED)]
    return build_icmpv6(router, src, struct.pack("!BBHI", kind, code, 0, word) + quoted)


def _is_error(packet: bytes) -> bool:
    """True for an ICMPv6 error or redirect; also where it cannot be told whether it is one."""
    kind, at = packet[6], _HEADER
    while kind in EXTENSIONS:
        if len(packet) - at < 8:
            return True
        if kind == FRAGMENT and int.from_bytes(packet[at + 2 : at + 4], "big") & _OFFSET:
            return True
        kind, at = packet[at], at + extension_size(kind, packet[at + 1])
    if kind != ICMPV6:
        return False
    return at >= len(packet) or packet[at] < FIRST_INFORMATIONAL or packet[at] == NDType.REDIRECT
