"""Neighbour discovery (RFC 4861): solicitations, advertisements and redirects, read strictly and made.

What a receiver must check of a message (6.1, 7.1, 8.1) is checked as it is read, and what RFC 6980 adds: one
behind a fragment header is none.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv6Address

from retinue.core.model import Mac
from retinue.core.model.link_local import MULTICAST, UNSPECIFIED, group_mac, is_link_local, solicited_node
from retinue.core.packets.errors import FrameError
from retinue.core.packets.ethernet import Ethernet, EtherType
from retinue.core.packets.ipv6 import FRAGMENT, ICMPV6, build_icmpv6, parse_ipv6, upper_checksum
from retinue.core.packets.nd_options import NO_OPTIONS, Options, parse_options

HOP_LIMIT = 255
"""Of every message: no router has forwarded it."""

ROUTER, SOLICITED, OVERRIDE = 0x80, 0x40, 0x20
"""Flags of a neighbour advertisement, in its first byte behind the checksum."""
_MANAGED, _OTHER = 0x80, 0x40
_ADVERTISEMENT = struct.Struct("!BBHBBHII")


class NDType(IntEnum):
    """ICMPv6 types."""

    ROUTER_SOLICITATION = 133
    ROUTER_ADVERTISEMENT = 134
    NEIGHBOUR_SOLICITATION = 135
    NEIGHBOUR_ADVERTISEMENT = 136
    REDIRECT = 137


@dataclass(frozen=True, slots=True)
class RouterSolicitation:
    options: Options = NO_OPTIONS

    def build(self) -> bytes:
        return bytes((NDType.ROUTER_SOLICITATION, *bytes(7))) + self.options.build()


@dataclass(frozen=True, slots=True)
class RouterAdvertisement:
    """Times are in the units of the message: seconds for the lifetime, milliseconds for the others.

    `hop_limit`, `reachable_ms` and `retransmit_ms` of 0 say nothing about them.
    """

    lifetime: int
    hop_limit: int = 0
    managed: bool = False
    """Hosts get addresses by DHCPv6."""
    other: bool = False
    """Hosts get other things by DHCPv6."""
    reachable_ms: int = 0
    retransmit_ms: int = 0
    options: Options = NO_OPTIONS

    def build(self) -> bytes:
        """Raises FrameError for what does not fit its field."""
        flags = _MANAGED * self.managed | _OTHER * self.other
        head = (NDType.ROUTER_ADVERTISEMENT, 0, 0, self.hop_limit, flags, self.lifetime)
        try:
            return _ADVERTISEMENT.pack(*head, self.reachable_ms, self.retransmit_ms) + self.options.build()
        except struct.error as error:
            raise FrameError(f"router advertisement with a value out of range: {self}") from error


@dataclass(frozen=True, slots=True)
class NeighbourSolicitation:
    target: IPv6Address
    options: Options = NO_OPTIONS

    def build(self) -> bytes:
        head = bytes((NDType.NEIGHBOUR_SOLICITATION, *bytes(7)))
        return head + self.target.packed + self.options.build()


@dataclass(frozen=True, slots=True)
class NeighbourAdvertisement:
    target: IPv6Address
    router: bool = False
    solicited: bool = False
    override: bool = False
    options: Options = NO_OPTIONS

    def build(self) -> bytes:
        flags = ROUTER * self.router | SOLICITED * self.solicited | OVERRIDE * self.override
        head = bytes((NDType.NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0))
        return head + self.target.packed + self.options.build()


@dataclass(frozen=True, slots=True)
class Redirect:
    target: IPv6Address
    destination: IPv6Address
    options: Options = NO_OPTIONS

    def build(self) -> bytes:
        head = bytes((NDType.REDIRECT, *bytes(7)))
        return head + self.target.packed + self.destination.packed + self.options.build()


Message = RouterSolicitation | RouterAdvertisement | NeighbourSolicitation | NeighbourAdvertisement | Redirect


@dataclass(frozen=True, slots=True)
class ND:
    """A message and the addresses it travels between."""

    src: IPv6Address
    dst: IPv6Address
    message: Message

    def build(self) -> bytes:
        """The IPv6 packet."""
        return build_icmpv6(self.src, self.dst, self.message.build(), HOP_LIMIT)


def parse_nd(payload: bytes) -> ND:
    """Read an Ethernet payload of type 0x86dd that holds a valid message of neighbour discovery.

    Raises FrameError for anything else.
    """
    packet = parse_ipv6(payload)
    if packet.protocol != ICMPV6:
        raise FrameError(f"IPv6 protocol {packet.protocol}, not ICMPv6 ({ICMPV6})")
    if FRAGMENT in packet.extensions:
        raise FrameError("neighbour discovery behind a fragment header (RFC 6980)")
    body = packet.body
    if len(body) < 8:
        raise FrameError(f"ICMPv6 of {len(body)} bytes: shorter than 8")
    if upper_checksum(packet.src, packet.dst, ICMPV6, body) != 0:
        raise FrameError("ICMPv6 checksum is wrong")
    if body[0] not in NDType._value2member_map_:
        raise FrameError(f"ICMPv6 of type {body[0]}: not neighbour discovery")
    if body[1] != 0:
        raise FrameError(f"neighbour discovery with code {body[1]}, not 0")
    if packet.hop_limit != HOP_LIMIT:
        raise FrameError(f"neighbour discovery with hop limit {packet.hop_limit}: it was forwarded")
    found = ND(packet.src, packet.dst, _message(NDType(body[0]), body))
    _check(found)
    return found


def _message(kind: NDType, body: bytes) -> Message:
    match kind:
        case NDType.ROUTER_SOLICITATION:
            return RouterSolicitation(parse_options(body[8:]))
        case NDType.ROUTER_ADVERTISEMENT:
            return _router_advertisement(body)
        case NDType.NEIGHBOUR_SOLICITATION:
            return NeighbourSolicitation(_address(body, 8), parse_options(body[24:]))
        case NDType.NEIGHBOUR_ADVERTISEMENT:
            router, solicited, override = (bool(body[4] & bit) for bit in (ROUTER, SOLICITED, OVERRIDE))
            options = parse_options(body[24:])
            return NeighbourAdvertisement(_address(body, 8), router, solicited, override, options)
        case NDType.REDIRECT:
            return Redirect(_address(body, 8), _address(body, 24), parse_options(body[40:]))


def _router_advertisement(body: bytes) -> RouterAdvertisement:
    if len(body) < _ADVERTISEMENT.size:
        raise FrameError(f"router advertisement of {len(body)} bytes: shorter than {_ADVERTISEMENT.size}")
    _, _, _, hop_limit, flags, lifetime, reachable, retransmit = _ADVERTISEMENT.unpack_from(body)
    options = parse_options(body[_ADVERTISEMENT.size :])
    managed, other = bool(flags & _MANAGED), bool(flags & _OTHER)
    return RouterAdvertisement(lifetime, hop_limit, managed, other, reachable, retransmit, options)


def _address(body: bytes, at: int) -> IPv6Address:
    if len(body) < at + 16:
        raise FrameError(f"neighbour discovery of {len(body)} bytes: its target is cut short")
    return IPv6Address(body[at : at + 16])


def _check(found: ND) -> None:
    """What the message's kind demands of its addresses and options."""
    message, unspecified = found.message, found.src == UNSPECIFIED
    target = getattr(message, "target", None)
    if target is not None and (target in MULTICAST or target == UNSPECIFIED):
        raise FrameError(f"neighbour discovery about {target}, which is no host's")
    if found.src in MULTICAST:
        raise FrameError(f"neighbour discovery from {found.src}, which is no host's")
    match message:
        case RouterSolicitation() | NeighbourSolicitation() if unspecified and message.options.source_mac:
            raise FrameError("a solicitation from nobody, with a link-layer address")
        case NeighbourSolicitation() if unspecified and found.dst != solicited_node(message.target):
            raise FrameError(f"a duplicate check of {message.target}, sent to {found.dst}")
        case NeighbourAdvertisement() if found.dst in MULTICAST and message.solicited:
            raise FrameError("an advertisement to a group that says somebody asked for it")
        case RouterAdvertisement() | Redirect() if not is_link_local(found.src):
            raise FrameError(f"a router's message from {found.src}, not from a link-local address")
        case NeighbourAdvertisement() if unspecified:
            raise FrameError("an advertisement from nobody")
        case _:
            pass


def nd_frame(message: ND, src: Mac, dst: Mac | None = None) -> bytes:
    """The frame of a message; without `dst` it goes to the MAC of the group that the message is sent to."""
    return Ethernet(dst or group_mac(message.dst), src, EtherType.IPV6, message.build()).build()
