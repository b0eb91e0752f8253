"""IPv6 (RFC 8200): the header, the extension headers before what a packet carries, and the checksum."""

import struct
from dataclasses import dataclass
from ipaddress import IPv6Address

from retinue.core.packets.errors import FrameError
from retinue.core.packets.ipv4 import checksum

ICMPV6 = 58
"""The protocol number."""
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, NO_NEXT, DESTINATION = 0, 43, 44, 51, 59, 60
"""Numbers of extension headers, and of "nothing follows"."""
EXTENSIONS = frozenset({HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION})
"""Those that are passed over; another number is the protocol that the packet carries."""
MOST_EXTENSIONS = 8
"""Extension headers of a packet that are passed over; RFC 8200 (4.1) recommends seven at the most."""
LARGEST_PAYLOAD = 0xFFFF
"""Bytes behind the header."""

_HEADER = struct.Struct("!IHBB16s16s")
_PSEUDO = struct.Struct("!16s16sIxxxB")
_VERSION = 6 << 28
_FRAGMENT_BITS = 0xFFF9
"""Offset, and "more follow"."""


@dataclass(frozen=True, slots=True)
class IPv6Packet:
    """A packet by what it carries behind all of its extension headers."""

    src: IPv6Address
    dst: IPv6Address
    hop_limit: int
    protocol: int
    body: bytes
    extensions: tuple[int, ...] = ()
    """Numbers of the extension headers that were passed over, in their order."""


def parse_ipv6(payload: bytes) -> IPv6Packet:
    """Read an Ethernet payload of type 0x86dd; padding behind the packet is ignored.

    Raises FrameError for anything malformed, for a part of a fragmented packet, for a jumbogram, and for more
    than MOST_EXTENSIONS extension headers.
    """
    if len(payload) < _HEADER.size:
        raise FrameError(f"IPv6 of {len(payload)} bytes: shorter than its header of {_HEADER.size}")
    first, length, protocol, hop_limit, src, dst = _HEADER.unpack_from(payload)
    if first >> 28 != 6:
        raise FrameError(f"IP version {first >> 28} in a frame of type IPv6")
    end = _HEADER.size + length
    if end > len(payload):
        raise FrameError(f"IPv6 payload length {length}, but the frame carries {len(payload) - _HEADER.size}")
    at, passed = _HEADER.size, list[int]()
    while protocol in EXTENSIONS:
        if len(passed) == MOST_EXTENSIONS:
            raise FrameError(f"IPv6 with more than {MOST_EXTENSIONS} extension headers")
        if protocol == HOP_BY_HOP and passed:
            raise FrameError("IPv6 hop-by-hop options that do not come first")
        passed.append(protocol)
        protocol, at = _next_header(payload, at, end, protocol)
    body = bytes(payload[at:end])
    return IPv6Packet(IPv6Address(src), IPv6Address(dst), hop_limit, protocol, body, tuple(passed))


def extension_size(kind: int, length: int) -> int:
    """Bytes of an extension header of this number, whose second byte is `length`."""
    if kind == FRAGMENT:
        return 8
    return (length + 2) * 4 if kind == AUTHENTICATION else (length + 1) * 8


def _next_header(payload: bytes, at: int, end: int, kind: int) -> tuple[int, int]:
    """What follows an extension header, and where. Raises FrameError."""
    if end - at < 8:
        raise FrameError(f"IPv6 extension header {kind} is cut short")
    if kind == FRAGMENT and int.from_bytes(payload[at + 2 : at + 4], "big") & _FRAGMENT_BITS:
        raise FrameError("IPv6 fragment: fragments are not put together here")
    size = extension_size(kind, payload[at + 1])
    if size > end - at:
        raise FrameError(f"IPv6 extension header {kind} of {size} bytes, {end - at} are left")
    return payload[at], at + size


def build_ipv6(src: IPv6Address, dst: IPv6Address, protocol: int, body: bytes, hop_limit: int = 64) -> bytes:
    """IPv6 header without extensions, and what it carries. Raises FrameError for what is out of range."""
    if len(body) > LARGEST_PAYLOAD:
        raise FrameError(f"{len(body)} bytes do not fit one IPv6 packet")
    if not 0 <= hop_limit <= 0xFF or not 0 <= protocol <= 0xFF:
        raise FrameError(f"hop limit {hop_limit} or protocol {protocol} out of range")
    return _HEADER.pack(_VERSION, len(body), protocol, hop_limit, src.packed, dst.packed) + body


def upper_checksum(src: IPv6Address, dst: IPv6Address, protocol: int, body: bytes) -> int:
    """The checksum over pseudo-header and body (RFC 8200, 8.1); 0 when the body holds its own right one."""
    return checksum(_PSEUDO.pack(src.packed, dst.packed, len(body), protocol) + body)


def build_icmpv6(src: IPv6Address, dst: IPv6Address, message: bytes, hop_limit: int = 64) -> bytes:
    """An IPv6 packet with an ICMPv6 message whose checksum, at its bytes 2 and 3, is filled in."""
    zeroed = message[:2] + bytes(2) + message[4:]
    found = upper_checksum(src, dst, ICMPV6, zeroed)
    return build_ipv6(src, dst, ICMPV6, zeroed[:2] + found.to_bytes(2, "big") + zeroed[4:], hop_limit)
