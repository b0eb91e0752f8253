"""UDP over IPv6 (RFC 768, RFC 8200 section 8.1): one whole datagram, with its checksum."""

import struct
from dataclasses import dataclass
from ipaddress import IPv6Address

from retinue.core.packets.errors import FrameError
from retinue.core.packets.ipv4 import UDP
from retinue.core.packets.ipv6 import build_ipv6, parse_ipv6, upper_checksum

_UDP = struct.Struct("!HHHH")


@dataclass(frozen=True, slots=True)
class UDP6Datagram:
    """A UDP datagram and the IPv6 addresses it travels between."""

    src: IPv6Address
    dst: IPv6Address
    sport: int
    dport: int
    payload: bytes


def parse_udp6(payload: bytes) -> UDP6Datagram:
    """Read an Ethernet payload of type 0x86dd that holds one whole UDP datagram and no extension header.

    The UDP checksum is not looked at: a virtual network card leaves it to hardware that does not exist, so a
    VM's own honest datagram may carry half of one. Raises FrameError for anything else.
    """
    packet = parse_ipv6(payload)
    if packet.extensions:
        raise FrameError(f"UDP behind IPv6 extension headers {', '.join(map(str, packet.extensions))}")
    if packet.protocol != UDP:
        raise FrameError(f"IPv6 protocol {packet.protocol}, not UDP ({UDP})")
    body = packet.body
    if len(body) < _UDP.size:
        raise FrameError(f"UDP of {len(body)} bytes: shorter than its header of {_UDP.size}")
    sport, dport, length, _ = _UDP.unpack_from(body)
    if length != len(body):
        raise FrameError(f"UDP length {length}, but IPv6 carries {len(body)} bytes")
    return UDP6Datagram(packet.src, packet.dst, sport, dport, body[_UDP.size :])


def build_udp6(
    src: IPv6Address, dst: IPv6Address, sport: int, dport: int, payload: bytes, hop_limit: int = 64
) -> bytes:
    """IPv6 header, UDP header with its checksum, and payload. Raises FrameError for what is out of range."""
    length = _UDP.size + len(payload)
    try:
        head = _UDP.pack(sport, dport, length, 0)
    except struct.error as error:
        raise FrameError(f"UDP ports {sport}, {dport} or {len(payload)} bytes out of range") from error
    # "if that computation yields a result of zero, it must be changed to hex FFFF" (RFC 8200, 8.1).
    found = upper_checksum(src, dst, UDP, head + payload) or 0xFFFF
    return build_ipv6(src, dst, UDP, head[:6] + found.to_bytes(2, "big") + payload, hop_limit)
