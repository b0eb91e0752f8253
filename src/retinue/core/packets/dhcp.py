"""DHCPv4 messages to and from bytes (RFC 2131, RFC 2132).

What parses is sound: `parse_dhcp` has checked each option that an accessor reads, so the accessors of a
parsed message do not fail. A fixed-length option given twice is rejected, since client, server and snooper
could each believe another.
"""

import math
import struct
from dataclasses import dataclass, replace
from enum import IntEnum
from ipaddress import IPv4Address

from retinue.core.model import Mac
from retinue.core.packets.dhcp_options import Option, Options, build_options, joined, parse_options
from retinue.core.packets.errors import FrameError
from retinue.core.packets.ethernet import Ethernet, EtherType, mac_bytes, mac_text, parse
from retinue.core.packets.ipv4 import UDPDatagram, build_udp4, parse_udp4

SERVER_PORT = 67
CLIENT_PORT = 68

FLAG_BROADCAST = 0x8000
"""The client cannot take unicast before it has its address (RFC 2131 section 4.1)."""

INFINITE_LEASE = math.inf

_FIXED = struct.Struct("!BBBBIHH4s4s4s4s6s10x64s128s4s")
_COOKIE = bytes((99, 130, 83, 99))
_ETHERNET, _MAC_BYTES = 1, 6
_BOOTP_SIZE = 300
_INFINITE = 0xFFFFFFFF
_NONE = IPv4Address(0)


class BootOp(IntEnum):
    """Which side sends a message (RFC 2131, section 2)."""

    REQUEST = 1
    REPLY = 2


class MessageType(IntEnum):
    """Option 53 (RFC 2132 section 9.6)."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8

    @property
    def from_server(self) -> bool:
        return self in (MessageType.OFFER, MessageType.ACK, MessageType.NAK)


@dataclass(frozen=True, slots=True)
class DHCP:
    """A DHCP message; the fields are those of RFC 2131 section 2.

    `options` are those of the options field alone. Where option 52 says that `file` or `sname` hold options
    too, they stay there as bytes, and the accessors read them as well.
    """

    op: int
    xid: int
    chaddr: Mac
    htype: int = _ETHERNET
    hlen: int = _MAC_BYTES
    hops: int = 0
    secs: int = 0
    flags: int = 0
    ciaddr: IPv4Address = _NONE
    yiaddr: IPv4Address = _NONE
    siaddr: IPv4Address = _NONE
    giaddr: IPv4Address = _NONE
    sname: bytes = bytes(64)
    file: bytes = bytes(128)
    options: Options = ()

    # ---- what the options say; each raises FrameError if a message made by hand holds a malformed one ----

    def option(self, code: int) -> bytes | None:
        """The value of an option, its repeats joined; None if it is absent."""
        return joined(self.all_options, code)

    @property
    def all_options(self) -> Options:
        """Options of the options field, then of `file`, then of `sname`, if option 52 says so (RFC 3396)."""
        overload = joined(self.options, Option.OVERLOAD)
        if overload is None:
            return self.options
        if overload not in (b"\1", b"\2", b"\3"):
            raise FrameError(f"DHCP option 52 (overload) is {overload.hex()}, not 1, 2 or 3")
        in_file = parse_options(self.file, "file field") if overload[0] & 1 else ()
        in_sname = parse_options(self.sname, "sname field") if overload[0] & 2 else ()
        return (*self.options, *in_file, *in_sname)

    @property
    def message_type(self) -> MessageType | None:
        """None for plain BOOTP, which has no option 53."""
        value = self.sized_option(Option.MESSAGE_TYPE, 1)
        if value is None:
            return None
        try:
            return MessageType(value[0])
        except ValueError as error:
            raise FrameError(f"DHCP message type {value[0]} is unknown") from error

    @property
    def requested_address(self) -> IPv4Address | None:
        return self._address(Option.REQUESTED_ADDRESS)

    @property
    def server_id(self) -> IPv4Address | None:
        return self._address(Option.SERVER_ID)

    @property
    def lease_time(self) -> float | None:
        """Seconds; `math.inf` for a lease that never ends (0xffffffff); None if the option is absent."""
        value = self.sized_option(Option.LEASE_TIME, 4)
        if value is None:
            return None
        seconds = int.from_bytes(value, "big")
        return INFINITE_LEASE if seconds == _INFINITE else seconds

    @property
    def client_id(self) -> bytes | None:
        return self.option(Option.CLIENT_ID)

    @property
    def relay_agent(self) -> bytes | None:
        """Option 82 with its suboptions, as bytes (RFC 3046)."""
        return self.option(Option.RELAY_AGENT)

    @property
    def message(self) -> str | None:
        """Option 56: why a server says no."""
        value = self.option(Option.MESSAGE)
        return None if value is None else value.rstrip(b"\0").decode("utf-8", "replace")

    # ---- a changed copy ----

    def with_option(self, code: int, value: bytes) -> "DHCP":
        """A copy that has this option once, last of all (where RFC 3046 wants option 82)."""
        return replace(self, options=(*self.without_option(code).options, (code, value)))

    def without_option(self, code: int) -> "DHCP":
        """A copy without this option in its options field."""
        return replace(self, options=tuple(pair for pair in self.options if pair[0] != code))

    def sized_option(self, code: Option, size: int) -> bytes | None:
        """As `option`, but raises FrameError if the value has not this many bytes."""
        value = self.option(code)
        if value is not None and len(value) != size:
            raise FrameError(f"DHCP option {code} has {len(value)} bytes, not {size}")
        return value

    def _address(self, code: Option) -> IPv4Address | None:
        value = self.sized_option(code, 4)
        return None if value is None else IPv4Address(value)


def parse_dhcp(payload: bytes) -> DHCP:
    """Read the payload of a DHCP datagram.

    Raises FrameError if it is cut short, is not about Ethernet, has not the magic cookie, has a malformed
    option (of those the accessors read), or says the one side's message type with the other side's op.
    """
    if len(payload) < _FIXED.size:
        raise FrameError(f"DHCP of {len(payload)} bytes: shorter than its fixed part of {_FIXED.size}")
    parts = _FIXED.unpack_from(payload)
    op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname, file, cookie = (
        parts
    )
    if op not in (BootOp.REQUEST, BootOp.REPLY):
        raise FrameError(f"DHCP op {op} is neither request (1) nor reply (2)")
    if (htype, hlen) != (_ETHERNET, _MAC_BYTES):
        raise FrameError(f"DHCP hardware type {htype}, address length {hlen}: not Ethernet (1, 6)")
    if cookie != _COOKIE:
        raise FrameError(f"DHCP magic cookie is {cookie.hex()}, not {_COOKIE.hex()}")
    found = DHCP(
        op=op,
        xid=xid,
        chaddr=mac_text(chaddr),
        hops=hops,
        secs=secs,
        flags=flags,
        ciaddr=IPv4Address(ciaddr),
        yiaddr=IPv4Address(yiaddr),
        siaddr=IPv4Address(siaddr),
        giaddr=IPv4Address(giaddr),
        sname=sname,
        file=file,
        options=parse_options(bytes(payload[_FIXED.size :])),
    )
    _check(found)
    return found


def _check(message: DHCP) -> None:
    """Raise FrameError now, so that no accessor has to later."""
    kind = message.message_type
    if kind is not None and kind.from_server != (message.op == BootOp.REPLY):
        raise FrameError(f"DHCP {kind.name} with op {message.op}: that is the other side's")
    for code in (Option.REQUESTED_ADDRESS, Option.SERVER_ID, Option.LEASE_TIME):
        message.sized_option(code, 4)


def build(dhcp: DHCP) -> bytes:
    """The payload of a DHCP datagram, padded with zeros to the 300 bytes of BOOTP (RFC 1542 section 2.1).

    Raises FrameError for a value out of range.
    """
    if len(dhcp.sname) > 64 or len(dhcp.file) > 128:
        raise FrameError(
            f"DHCP sname or file too long: {len(dhcp.sname)} of 64, {len(dhcp.file)} of 128 bytes"
        )
    try:
        fixed = _FIXED.pack(
            dhcp.op,
            dhcp.htype,
            dhcp.hlen,
            dhcp.hops,
            dhcp.xid,
            dhcp.secs,
            dhcp.flags,
            dhcp.ciaddr.packed,
            dhcp.yiaddr.packed,
            dhcp.siaddr.packed,
            dhcp.giaddr.packed,
            mac_bytes(dhcp.chaddr),
            dhcp.sname,
            dhcp.file,
            _COOKIE,
        )
    except struct.error as error:
        raise FrameError(f"DHCP field out of range: {error}") from error
    return (fixed + build_options(dhcp.options)).ljust(_BOOTP_SIZE, b"\0")


def dhcp_frame(
    dhcp: DHCP,
    eth_src: Mac,
    eth_dst: Mac,
    ip_src: IPv4Address,
    ip_dst: IPv4Address,
    sport: int,
    dport: int,
    vlan: int | None = None,
) -> bytes:
    """The whole frame that carries a message."""
    packet = build_udp4(ip_src, ip_dst, sport, dport, build(dhcp))
    return Ethernet(eth_dst, eth_src, EtherType.IPV4, packet, vlan).build()


def parse_dhcp_frame(frame: bytes) -> tuple[Ethernet, UDPDatagram, DHCP]:
    """Read a whole frame that should carry a DHCP message. Raises FrameError if it does not."""
    ethernet = parse(frame)
    if ethernet.ethertype != EtherType.IPV4:
        raise FrameError(f"Ethernet type {ethernet.ethertype:#06x}, not IPv4: no DHCP in it")
    datagram = parse_udp4(ethernet.payload)
    if datagram.dport not in (SERVER_PORT, CLIENT_PORT):
        raise FrameError(f"UDP port {datagram.dport} is not DHCP's (67 or 68)")
    return ethernet, datagram, parse_dhcp(datagram.payload)
