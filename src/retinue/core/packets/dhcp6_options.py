"""Options of DHCPv6 messages (RFC 8415, section 21): codes and lengths, and addresses with their lifetimes.

What two readers could read in two ways is an error here: an option that may be there once and is there twice,
or one that is cut short.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv6Address, IPv6Network

from retinue.core.limits import LONGEST_REASON, MOST_DHCP6_ADDRESSES, MOST_DHCP6_OPTIONS
from retinue.core.model import IAKind
from retinue.core.packets.errors import FrameError

FOREVER6 = 0xFFFF_FFFF
"""A lifetime in seconds that has no end (RFC 8415, 7.7)."""

Options6 = tuple[tuple[int, bytes], ...]
"""Options in their order, by code and content."""


class Option6(IntEnum):
    """Codes of options that are read or made here."""

    CLIENT_ID = 1
    SERVER_ID = 2
    IA_NA = 3
    IA_TA = 4
    IA_ADDRESS = 5
    OPTION_REQUEST = 6
    ELAPSED_TIME = 8
    RELAY_MESSAGE = 9
    SERVER_UNICAST = 12
    STATUS_CODE = 13
    RAPID_COMMIT = 14
    INTERFACE_ID = 18
    RECONFIGURE_MESSAGE = 19
    RECONFIGURE_ACCEPT = 20
    IA_PD = 25
    VIRTUAL_SUBNET = 68
    """RFC 6607."""
    IA_PREFIX = 26
    CLIENT_LINK_LAYER = 79
    """RFC 6939."""


class StatusCode(IntEnum):
    """RFC 8415, 21.13; other numbers are kept as they are."""

    SUCCESS = 0
    UNSPEC_FAIL = 1
    NO_ADDRS_AVAIL = 2
    NO_BINDING = 3
    NOT_ON_LINK = 4
    USE_MULTICAST = 5


@dataclass(frozen=True, slots=True)
class Status:
    """What a server says of a message, of an IA, or of an address."""

    code: int
    message: str = ""

    def build(self) -> bytes:
        return _option(Option6.STATUS_CODE, self.code.to_bytes(2, "big") + self.message.encode())


ADDRESS_BITS = 128


@dataclass(frozen=True, slots=True)
class IAAddress:
    """One address of an IA, or one prefix; lifetimes in seconds, FOREVER6 without an end."""

    ip: IPv6Address
    """Of a prefix its first; in a client's message it may be ::, of whichever prefix."""
    preferred: int = 0
    valid: int = 0
    status: Status | None = None
    length: int = ADDRESS_BITS
    """Of a prefix."""

    def build(self, kind: IAKind = IAKind.NA) -> bytes:
        inside = b"" if self.status is None else self.status.build()
        if kind is IAKind.PD:
            prefix = _pack(_PREFIX, self.preferred, self.valid, self.length, self.ip.packed)
            return _option(Option6.IA_PREFIX, prefix + inside)
        return _option(
            Option6.IA_ADDRESS, _pack(_ADDRESS, self.ip.packed, self.preferred, self.valid) + inside
        )


@dataclass(frozen=True, slots=True)
class IA:
    """Identity association (21.4, 21.5, 21.21): as which the client keeps these addresses, or prefixes.

    `t1` and `t2` are the seconds until it renews and rebinds; 0 leaves that to the client. Of temporary
    addresses there are none.
    """

    iaid: int
    addresses: tuple[IAAddress, ...] = ()
    t1: int = 0
    t2: int = 0
    status: Status | None = None
    kind: IAKind = IAKind.NA

    @property
    def key(self) -> tuple[IAKind, int]:
        """What tells it from the client's others: the kinds are numbered each by itself."""
        return self.kind, self.iaid

    def build(self) -> bytes:
        inside = b"".join(address.build(self.kind) for address in self.addresses)
        inside += b"" if self.status is None else self.status.build()
        head = _pack(_IA_TA, self.iaid) if self.kind is IAKind.TA else _pack(_IA, self.iaid, self.t1, self.t2)
        return _option(IA_OPTIONS[self.kind], head + inside)


_CODE_AND_LENGTH = struct.Struct("!HH")
_IA, _IA_TA = struct.Struct("!III"), struct.Struct("!I")
_ADDRESS, _PREFIX = struct.Struct("!16sII"), struct.Struct("!IIB16s")
IA_OPTIONS = {IAKind.NA: Option6.IA_NA, IAKind.TA: Option6.IA_TA, IAKind.PD: Option6.IA_PD}
"""The option that each kind is."""


def build_options6(options: Options6) -> bytes:
    """Raises FrameError for a code or length out of range."""
    return b"".join(_option(code, content) for code, content in options)


def parse_options6(data: bytes) -> Options6:
    """Read the options that fill `data`. Raises FrameError for one that is cut short, and for too many."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        if len(found) == MOST_DHCP6_OPTIONS:
            raise FrameError(f"DHCPv6 with more than {MOST_DHCP6_OPTIONS} options in one place")
        if len(data) - at < _CODE_AND_LENGTH.size:
            raise FrameError(f"DHCPv6 option of {len(data) - at} bytes: its length is cut off")
        code, length = _CODE_AND_LENGTH.unpack_from(data, at)
        at += _CODE_AND_LENGTH.size
        if length > len(data) - at:
            raise FrameError(f"DHCPv6 option {code} of {length} bytes, {len(data) - at} are left")
        found.append((code, bytes(data[at : at + length])))
        at += length
    return tuple(found)


def only(options: Options6, code: Option6) -> bytes | None:
    """The content of an option that may be there once; None where it is not. Raises FrameError."""
    found = [content for known, content in options if known == code]
    if len(found) > 1:
        raise FrameError(f"DHCPv6 option {code.value} is there {len(found)} times")
    return found[0] if found else None


def parse_status(options: Options6) -> Status | None:
    """The status among these options. Raises FrameError."""
    content = only(options, Option6.STATUS_CODE)
    if content is None:
        return None
    if len(content) < 2:
        raise FrameError(f"DHCPv6 status of {len(content)} bytes: shorter than 2")
    words = content[2 : 2 + LONGEST_REASON].decode(errors="replace")
    return Status(int.from_bytes(content[:2], "big"), words)


def parse_ia(kind: IAKind, content: bytes) -> IA:
    """Raises FrameError."""
    form, name = _IA_TA if kind is IAKind.TA else _IA, IA_OPTIONS[kind].name
    if len(content) < form.size:
        raise FrameError(f"DHCPv6 {name} of {len(content)} bytes: shorter than {form.size}")
    iaid, t1, t2 = (*form.unpack_from(content), 0, 0)[:3]
    inside = parse_options6(content[form.size :])
    if kind is IAKind.PD:
        addresses = tuple(_prefix(data) for code, data in inside if code == Option6.IA_PREFIX)
    else:
        addresses = tuple(_address(data) for code, data in inside if code == Option6.IA_ADDRESS)
    if len(addresses) > MOST_DHCP6_ADDRESSES:
        raise FrameError(f"DHCPv6 {name} with more than {MOST_DHCP6_ADDRESSES} addresses")
    if len({address.ip for address in addresses}) < len(addresses):
        raise FrameError(f"DHCPv6 {name} with an address that is there twice")
    return IA(iaid, addresses, t1, t2, parse_status(inside), kind)


def _prefix(content: bytes) -> IAAddress:
    if len(content) < _PREFIX.size:
        raise FrameError(f"DHCPv6 prefix of {len(content)} bytes: shorter than {_PREFIX.size}")
    preferred, valid, length, packed = _PREFIX.unpack_from(content)
    if length > ADDRESS_BITS:
        raise FrameError(f"DHCPv6 prefix of {length} bits: longer than {ADDRESS_BITS}")
    status = parse_status(parse_options6(content[_PREFIX.size :]))
    # RFC 8415, 21.22: bits beyond the length "MUST be set to zero by the sender and ignored by the receiver".
    first = IPv6Network((packed, length), strict=False).network_address
    return IAAddress(first, preferred, valid, status, length)


def _address(content: bytes) -> IAAddress:
    if len(content) < _ADDRESS.size:
        raise FrameError(f"DHCPv6 address of {len(content)} bytes: shorter than {_ADDRESS.size}")
    packed, preferred, valid = _ADDRESS.unpack_from(content)
    status = parse_status(parse_options6(content[_ADDRESS.size :]))
    return IAAddress(IPv6Address(packed), preferred, valid, status)


def _option(code: int, content: bytes) -> bytes:
    return _pack(_CODE_AND_LENGTH, code, len(content)) + content


def _pack(form: struct.Struct, *values: int | bytes) -> bytes:
    try:
        return form.pack(*values)
    except struct.error as error:
        raise FrameError(f"DHCPv6 option with a value out of range: {values!r:.200}") from error
