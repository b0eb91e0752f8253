"""DHCPv6 (RFC 8415): the messages between clients and servers, and the envelopes of relays; strict, own code.

A message is read into what is judged (identifiers, IAs, status), and the other options as they are. Those
that would be about the way of a message are none of a message that is handed on (`kept_options6`).
"""

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv6Address

from retinue.core.limits import LARGEST_DHCP6, LONGEST_DUID, MOST_DHCP6_ADDRESSES, MOST_DHCP6_RELAYS
from retinue.core.model import Mac
from retinue.core.packets.dhcp6_options import (
    IA,
    IA_OPTIONS,
    Option6,
    Options6,
    Status,
    build_options6,
    only,
    parse_ia,
    parse_options6,
    parse_status,
)
from retinue.core.packets.dhcp_messages import OPTIONS_BYTES
from retinue.core.packets.errors import FrameError
from retinue.core.packets.ethernet import Ethernet, EtherType, mac_bytes, parse
from retinue.core.packets.udp6 import UDP6Datagram, build_udp6, parse_udp6

CLIENT_PORT6, SERVER_PORT6 = 546, 547
"""Where clients, and where servers and relays listen (RFC 8415, 7.2)."""
ALL_AGENTS_AND_SERVERS = IPv6Address("ff02::1:2")
"""All_DHCP_Relay_Agents_and_Servers (RFC 8415, 7.1)."""
SHORTEST_DUID = 3
"""Bytes: a type of two, and something behind it."""


class MessageType6(IntEnum):
    """RFC 8415, 7.3."""

    SOLICIT = 1
    ADVERTISE = 2
    REQUEST = 3
    CONFIRM = 4
    RENEW = 5
    REBIND = 6
    REPLY = 7
    RELEASE = 8
    DECLINE = 9
    RECONFIGURE = 10
    INFORMATION_REQUEST = 11
    RELAY_FORW = 12
    RELAY_REPL = 13

    @property
    def from_server(self) -> bool:
        return self in (MessageType6.ADVERTISE, MessageType6.REPLY, MessageType6.RECONFIGURE)

    @property
    def of_relay(self) -> bool:
        return self in (MessageType6.RELAY_FORW, MessageType6.RELAY_REPL)


@dataclass(frozen=True, slots=True)
class DHCP6:
    """A message of a client or a server. `client_id` and `server_id` are DUIDs, b"" where there is none."""

    type: MessageType6
    xid: int
    client_id: bytes = b""
    server_id: bytes = b""
    ias: tuple[IA, ...] = ()
    status: Status | None = None
    options: Options6 = ()
    """The others."""

    def build(self) -> bytes:
        """The UDP payload. Raises FrameError for what is out of range."""
        if not 0 <= self.xid < 1 << 24:
            raise FrameError(f"DHCPv6 transaction id {self.xid} does not fit 24 bits")
        ids = ((Option6.CLIENT_ID, self.client_id), (Option6.SERVER_ID, self.server_id))
        parts = [
            bytes((self.type,)) + self.xid.to_bytes(3, "big"),
            build_options6(tuple((int(code), duid) for code, duid in ids if duid)),
            *(ia.build() for ia in self.ias),
            b"" if self.status is None else self.status.build(),
            build_options6(self.options),
        ]
        return b"".join(parts)

    def option(self, code: Option6) -> bytes | None:
        """The content of the first of these among the others."""
        return next((content for known, content in self.options if known == code), None)

    @property
    def addresses(self) -> tuple[IPv6Address, ...]:
        """All that its IAs name; of a prefix the first, which may be :: for any."""
        return tuple(address.ip for ia in self.ias for address in ia.addresses)


@dataclass(frozen=True, slots=True)
class Relayed6:
    """A message in a relay's envelope (RFC 8415, 9), on its way to a server or back."""

    type: MessageType6
    hops: int
    link: IPv6Address
    """An address of the link where the client is; by it the server picks the subnet."""
    peer: IPv6Address
    """Who has sent the message inside, or is to get it."""
    message: bytes
    """What is inside: a message, or another envelope."""
    interface_id: bytes = b""
    options: Options6 = ()

    def build(self) -> bytes:
        """The UDP payload. Raises FrameError for what is out of range."""
        if not 0 <= self.hops <= 0xFF:
            raise FrameError(f"DHCPv6 hop count {self.hops} out of range")
        interface = ((int(Option6.INTERFACE_ID), self.interface_id),) if self.interface_id else ()
        inside = (*interface, *self.options, (int(Option6.RELAY_MESSAGE), self.message))
        head = bytes((self.type, self.hops)) + self.link.packed + self.peer.packed
        return head + build_options6(inside)


_KIND_OF = {int(option): kind for kind, option in IA_OPTIONS.items()}
_READ_APART = frozenset({Option6.CLIENT_ID, Option6.SERVER_ID, *IA_OPTIONS.values(), Option6.STATUS_CODE})
_OF_RELAYS = frozenset({Option6.RELAY_MESSAGE, Option6.INTERFACE_ID})
_RELAY_HEAD = 34
"""Bytes before the options of a relay's message."""


def parse_dhcp6(payload: bytes) -> DHCP6:
    """Read a client's or server's message. Raises FrameError for anything else, and for a relay's."""
    kind = _kind(payload)
    if kind.of_relay:
        raise FrameError(f"DHCPv6 {kind.name}, a relay's message")
    if len(payload) < 4:
        raise FrameError(f"DHCPv6 of {len(payload)} bytes: shorter than its header of 4")
    found = parse_options6(payload[4:])
    if any(code in _OF_RELAYS for code, _ in found):
        raise FrameError(f"DHCPv6 {kind.name} with an option of relays")
    ias = tuple(parse_ia(_KIND_OF[code], content) for code, content in found if code in _KIND_OF)
    if len({ia.key for ia in ias}) < len(ias):
        raise FrameError("DHCPv6 with two IAs of one kind and the same IAID")
    message = DHCP6(
        kind,
        int.from_bytes(payload[1:4], "big"),
        _duid(found, Option6.CLIENT_ID),
        _duid(found, Option6.SERVER_ID),
        ias,
        parse_status(found),
        tuple((code, content) for code, content in found if code not in _READ_APART),
    )
    if len(message.addresses) > MOST_DHCP6_ADDRESSES or len(ias) > MOST_DHCP6_ADDRESSES:
        raise FrameError(f"DHCPv6 with more than {MOST_DHCP6_ADDRESSES} IAs, or addresses in them")
    named = [ip for ip in message.addresses if int(ip)]
    if len(set(named)) < len(named):
        raise FrameError("DHCPv6 with an address that is there twice")
    return message


def parse_relayed6(payload: bytes) -> Relayed6:
    """Read a relay's envelope; what is inside stays unread. Raises FrameError for anything else."""
    kind = _kind(payload)
    if not kind.of_relay:
        raise FrameError(f"DHCPv6 {kind.name}, not a relay's message")
    if len(payload) < _RELAY_HEAD:
        raise FrameError(f"DHCPv6 {kind.name} of {len(payload)} bytes: shorter than {_RELAY_HEAD}")
    if payload[1] > MOST_DHCP6_RELAYS:
        raise FrameError(f"DHCPv6 {kind.name} that has passed {payload[1]} relays")
    found = parse_options6(payload[_RELAY_HEAD:])
    inside = only(found, Option6.RELAY_MESSAGE)
    if inside is None:
        raise FrameError(f"DHCPv6 {kind.name} without a message inside")
    others = tuple((code, content) for code, content in found if code not in _OF_RELAYS)
    link, peer = IPv6Address(payload[2:18]), IPv6Address(payload[18:34])
    interface_id = only(found, Option6.INTERFACE_ID) or b""
    return Relayed6(kind, payload[1], link, peer, inside, interface_id, others)


def _kind(payload: bytes) -> MessageType6:
    if not 0 < len(payload) <= LARGEST_DHCP6:
        raise FrameError(f"DHCPv6 of {len(payload)} bytes: not between 1 and {LARGEST_DHCP6}")
    if payload[0] not in MessageType6._value2member_map_:
        raise FrameError(f"DHCPv6 message of type {payload[0]}, which is not known")
    return MessageType6(payload[0])


def check_duid(duid: bytes) -> None:
    """Raises FrameError for what is none."""
    if not SHORTEST_DUID <= len(duid) <= LONGEST_DUID:
        raise FrameError(f"DUID of {len(duid)} bytes: not between {SHORTEST_DUID} and {LONGEST_DUID}")


def _duid(options: Options6, code: Option6) -> bytes:
    duid = only(options, code)
    if duid is not None:
        check_duid(duid)
    return duid or b""


_NOT_HANDED_ON = frozenset(
    {
        *_READ_APART,
        *_OF_RELAYS,
        Option6.IA_ADDRESS,
        Option6.IA_PREFIX,
        # All that clients say passes here, by multicast; and nobody wakes them to ask (RFC 8415, 18.3.11).
        Option6.SERVER_UNICAST,
        Option6.RECONFIGURE_MESSAGE,
        Option6.RECONFIGURE_ACCEPT,
        Option6.CLIENT_LINK_LAYER,
        Option6.VIRTUAL_SUBNET,
    }
)


def kept_options6(message: DHCP6) -> Options6:
    """The other options of a message that is handed on."""
    return tuple((code, content) for code, content in message.options if code not in _NOT_HANDED_ON)


_OF_ONE_MESSAGE = frozenset({Option6.ELAPSED_TIME, Option6.RAPID_COMMIT})


def options_of_lease(message: DHCP6) -> Options6:
    """What a client said to get a lease, and says when it renews it; as `dhcp_messages.kept_options`."""
    kept: list[tuple[int, bytes]] = []
    left = OPTIONS_BYTES
    for code, content in kept_options6(message):
        if code not in _OF_ONE_MESSAGE and 4 + len(content) <= left:
            kept.append((code, content))
            left -= 4 + len(content)
    return tuple(kept)


def link_layer_option(mac: Mac) -> tuple[int, bytes]:
    """RFC 6939: a relay tells the server the client's MAC address."""
    return int(Option6.CLIENT_LINK_LAYER), b"\0\1" + mac_bytes(mac)


def virtual_subnet_option(vrf: str) -> tuple[int, bytes]:
    """RFC 6607, 3.4: a relay tells the server in which VRF the link's address is meant, by its name."""
    return int(Option6.VIRTUAL_SUBNET), b"\0" + vrf.encode()


def parse_udp6_frame(frame: bytes) -> tuple[Ethernet, UDP6Datagram]:
    """An untagged frame that carries one UDP datagram over IPv6. Raises FrameError for anything else."""
    ethernet = parse(frame)
    if ethernet.ethertype != EtherType.IPV6 or ethernet.vlan is not None:
        raise FrameError(f"a frame of type {ethernet.ethertype:#06x}, or tagged: not IPv6")
    return ethernet, parse_udp6(ethernet.payload)


def dhcp6_frame(
    payload: bytes, src: Mac, dst: Mac, ip_src: IPv6Address, ip_dst: IPv6Address, sport: int, dport: int
) -> bytes:
    """The frame of a message or envelope that is built. Raises FrameError for what is out of range."""
    return Ethernet(dst, src, EtherType.IPV6, build_udp6(ip_src, ip_dst, sport, dport, payload, 255)).build()


def renew6(
    xid: int, client_id: bytes, server_id: bytes, ia: IA, options: Options6 = (), elapsed: float = 0.0
) -> DHCP6:
    """The message that extends a lease at the server that has granted it (RFC 8415, 18.2.4)."""
    hundredths = min(int(elapsed * 100), 0xFFFF).to_bytes(2, "big")
    said = ((int(Option6.ELAPSED_TIME), hundredths), *options)
    return DHCP6(MessageType6.RENEW, xid, client_id, server_id, (ia,), options=said)


__all__ = [
    "ALL_AGENTS_AND_SERVERS",
    "CLIENT_PORT6",
    "DHCP6",
    "SERVER_PORT6",
    "MessageType6",
    "Relayed6",
    "dhcp6_frame",
    "kept_options6",
    "link_layer_option",
    "options_of_lease",
    "parse_dhcp6",
    "parse_relayed6",
    "parse_udp6_frame",
    "renew6",
    "virtual_subnet_option",
]
