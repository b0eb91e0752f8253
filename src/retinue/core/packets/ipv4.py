"""IPv4, and UDP over it (RFC 791, RFC 768), with their checksums."""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from retinue.core.packets.errors import FrameError

TCP, UDP = 6, 17
"""The protocol number."""
LONGEST = 0xFFFF
"""Bytes of an IPv4 packet."""

_IP = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_PSEUDO = struct.Struct("!4s4sBBH")
_END_OF_OPTIONS, _NO_OPERATION, _COPIED = 0, 1, 0x80
_DONT_FRAGMENT, _MORE_FRAGMENTS, _OFFSET = 0x4000, 0x2000, 0x1FFF


@dataclass(frozen=True, slots=True)
class UDPDatagram:
    """A UDP datagram and the IPv4 addresses it travels between."""

    src: IPv4Address
    dst: IPv4Address
    sport: int
    dport: int
    payload: bytes
    ttl: int = 64
    options: bytes = b""
    """Those of the IP header, as they were read; `build_udp4` builds none."""


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071). Over bytes that hold their own right checksum it is 0."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def parse_udp4(payload: bytes) -> UDPDatagram:
    """Read an Ethernet payload of type 0x0800 that holds one whole UDP datagram; padding is ignored.

    The IP header's checksum must be right. The UDP checksum is not looked at: a virtual network card leaves
    it to hardware that does not exist, so a VM's own honest datagram may carry half of one. Raises FrameError
    for anything malformed, for fragments, and for protocols other than UDP.
    """
    header, body = split_ipv4(payload)
    _, _, _, _, fragment, ttl, protocol, _, src, dst = _IP.unpack_from(header)
    if fragment & (_MORE_FRAGMENTS | _OFFSET):
        raise FrameError("IPv4 fragment: fragments are not put together here")
    if protocol != UDP:
        raise FrameError(f"IPv4 protocol {protocol}, not UDP ({UDP})")
    if len(body) < _UDP.size:
        raise FrameError(f"UDP of {len(body)} bytes: shorter than its header of {_UDP.size}")
    sport, dport, length, _ = _UDP.unpack_from(body)
    if length != len(body):
        raise FrameError(f"UDP length {length}, but IPv4 carries {len(body)} bytes")
    return UDPDatagram(
        IPv4Address(src), IPv4Address(dst), sport, dport, body[_UDP.size :], ttl, header[_IP.size :]
    )


def split_ipv4(payload: bytes) -> tuple[bytes, bytes]:
    """The checked IPv4 header with its options, and what it carries. Raises FrameError."""
    if len(payload) < _IP.size:
        raise FrameError(f"IPv4 of {len(payload)} bytes: shorter than its header of {_IP.size}")
    version, header_length = payload[0] >> 4, (payload[0] & 0x0F) * 4
    total = int.from_bytes(payload[2:4], "big")
    if version != 4:
        raise FrameError(f"IP version {version} in a frame of type IPv4")
    if not _IP.size <= header_length <= total:
        raise FrameError(
            f"IPv4 header length {header_length} is not between {_IP.size} and the total length {total}"
        )
    if total > len(payload):
        raise FrameError(f"IPv4 total length {total}, but the frame carries {len(payload)} bytes")
    header = bytes(payload[:header_length])
    if checksum(header) != 0:
        raise FrameError("IPv4 header checksum is wrong")
    return header, bytes(payload[header_length:total])


def may_be_fragmented(packet: bytes) -> bool:
    """False for an IPv4 packet whose sender says "don't fragment"."""
    return not int.from_bytes(packet[6:8], "big") & _DONT_FRAGMENT


def fragments(packet: bytes, mtu: int) -> list[bytes]:
    """An IPv4 packet in parts of at most `mtu` bytes, as a router makes them (RFC 791, 3.2); it may be
    such a part itself. Raises FrameError for a packet that is malformed."""
    header, body = split_ipv4(packet)
    field = int.from_bytes(header[6:8], "big")
    first, more = field & _OFFSET, field & _MORE_FRAGMENTS
    later = _of_later_parts(header)
    parts: list[bytes] = []
    at = 0
    while at < len(body) or not parts:
        own, left = header if at == 0 else later, len(body) - at
        size = left if left <= mtu - len(own) else (mtu - len(own)) // 8 * 8
        flags = (more if size == left else _MORE_FRAGMENTS) | (first + at // 8)
        parts.append(_part(own, flags, body[at : at + size]))
        at += size
    return parts


def _part(header: bytes, fragment: int, body: bytes) -> bytes:
    total = len(header) + len(body)
    part = bytearray(header[:2] + total.to_bytes(2, "big") + header[4:6] + fragment.to_bytes(2, "big"))
    part += header[8:10] + bytes(2) + header[12:]
    part[10:12] = checksum(bytes(part)).to_bytes(2, "big")
    return bytes(part) + body


def _of_later_parts(header: bytes) -> bytes:
    """The header with those options alone that are copied into every fragment (RFC 791, 3.1)."""
    kept, at = b"", _IP.size
    while at < len(header) and header[at] != _END_OF_OPTIONS:
        size = 1 if header[at] == _NO_OPERATION else max(2, header[at + 1]) if at + 1 < len(header) else 1
        if header[at] & _COPIED:
            kept += header[at : at + size]
        at += size
    kept += bytes(-len(kept) % 4)
    first = 0x40 | (_IP.size + len(kept)) // 4
    return bytes((first,)) + header[1 : _IP.size] + kept


def build_udp4(
    src: IPv4Address, dst: IPv4Address, sport: int, dport: int, payload: bytes, ttl: int = 64
) -> bytes:
    """IPv4 header, UDP header and payload, both checksums filled in; no options, not to be fragmented.

    Raises FrameError for a port, TTL or length out of range.
    """
    length = _UDP.size + len(payload)
    if _IP.size + length > LONGEST:
        raise FrameError(f"{len(payload)} bytes of payload do not fit one IPv4 packet")
    try:
        udp = bytearray(_UDP.pack(sport, dport, length, 0) + payload)
    except struct.error as error:
        raise FrameError(f"UDP ports {sport}, {dport} out of range") from error
    pseudo = _PSEUDO.pack(src.packed, dst.packed, 0, UDP, length)
    # A computed zero is sent as all ones: zero means "no checksum" (RFC 768).
    udp[6:8] = (checksum(pseudo + udp) or 0xFFFF).to_bytes(2, "big")
    return build_ipv4(src, dst, UDP, bytes(udp), ttl)


def build_ipv4(src: IPv4Address, dst: IPv4Address, protocol: int, body: bytes, ttl: int = 64) -> bytes:
    """IPv4 header with its checksum, and what it carries; no options, not to be fragmented.

    Raises FrameError for a TTL or length out of range.
    """
    total = _IP.size + len(body)
    if total > LONGEST:
        raise FrameError(f"{len(body)} bytes do not fit one IPv4 packet")
    if not 0 <= ttl <= 0xFF:
        raise FrameError(f"TTL {ttl} out of range")
    ip = bytearray(_IP.pack(0x45, 0, total, 0, _DONT_FRAGMENT, ttl, protocol, 0, src.packed, dst.packed))
    ip[10:12] = checksum(bytes(ip)).to_bytes(2, "big")
    return bytes(ip) + body
