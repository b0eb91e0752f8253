"""ICMP errors of a router (RFC 792, RFC 1812): "time exceeded", and "fragmentation needed" (RFC 1191)."""

import struct
from ipaddress import IPv4Address, IPv4Network

from retinue.core.packets.ipv4 import build_ipv4, checksum, split_ipv4

ICMP = 1
"""The protocol number."""
TIME_EXCEEDED, TTL_EXCEEDED = 11, 0
"""Type, and code of the kind that a router sends."""
UNREACHABLE, FRAGMENTATION_NEEDED = 3, 4
"""Type, and code: "fragmentation needed and DF set"."""
ERRORS = frozenset({3, 4, 5, 11, 12})
"""Types of ICMP messages that are errors: unreachable, source quench, redirect, time exceeded, parameter."""
MOST_QUOTED = 576 - 28
"""Bytes of the packet that are sent back. "the ICMP datagram SHOULD contain as much of the original datagram
as possible without the length of the ICMP datagram exceeding 576 bytes" (RFC 1812, 4.3.2.3)."""

_IP = struct.Struct("!BBHHHBBH4s4s")
_OFFSET = 0x1FFF
_NO_HOST = tuple(IPv4Network(prefix) for prefix in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4"))


def time_exceeded(packet: bytes, router: IPv4Address) -> bytes | None:
    """What a router answers to an IPv4 packet whose time to live ends there: an IPv4 packet to its sender.

    None where a router must not answer, see `_error`. Raises FrameError for a packet that is malformed.
    """
    return _error(packet, router, TIME_EXCEEDED, TTL_EXCEEDED, 0)


def fragmentation_needed(packet: bytes, router: IPv4Address, mtu: int) -> bytes | None:
    """What a router answers to an IPv4 packet that is larger than the `mtu` of its next hop, and must not be
    fragmented: an IPv4 packet to its sender, as for `time_exceeded`.

    "the router MUST include the MTU of that next-hop network in the low-order 16 bits of the ICMP header
    field that is labelled 'unused'" (RFC 1191, 4).
    """
    return _error(packet, router, UNREACHABLE, FRAGMENTATION_NEEDED, mtu)


def _error(packet: bytes, router: IPv4Address, kind: int, code: int, word: int) -> bytes | None:
    """None where a router must not answer (RFC 1812, 4.3.2.7): to an ICMP error, to a fragment that is not
    the first, and about addresses that are not one host's. Raises FrameError for a packet that is malformed.
    """
    header, body = split_ipv4(packet)
    _, _, total, _, fragment, _, protocol, _, source, destination = _IP.unpack_from(header)
    if fragment & _OFFSET or _is_no_host(source) or _is_no_host(destination):
        return None
    if protocol == ICMP and (not body or body[0] in ERRORS):
        return None
    quoted = packet[: min(total, MOST_QUOTED)]
    message = struct.pack("!BBHI", kind, code, 0, word) + quoted
    message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    return build_ipv4(router, IPv4Address(source), ICMP, message)


def _is_no_host(address: bytes) -> bool:
    return any(IPv4Address(address) in prefix for prefix in _NO_HOST)
