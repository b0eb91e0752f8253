"""The options of DHCPv4: their numbers, and the option field to and from bytes (RFC 2132, RFC 3396).

An option list keeps order and repeats, so that a message read and built again says the same.
"""

from collections.abc import Iterable
from enum import IntEnum

from retinue.core.packets.errors import FrameError

Options = tuple[tuple[int, bytes], ...]
"""(number, value) pairs in the order they stand; without pad (0) and end (255)."""


class Option(IntEnum):
    """Numbers of the options we read or write (RFC 2132; 80: RFC 4039; 82: RFC 3046)."""

    SUBNET_MASK = 1
    ROUTER = 3
    DNS_SERVER = 6
    HOST_NAME = 12
    INTERFACE_MTU = 26
    NETBIOS_NAME_SERVER = 44
    REQUESTED_ADDRESS = 50
    LEASE_TIME = 51
    OVERLOAD = 52
    MESSAGE_TYPE = 53
    SERVER_ID = 54
    PARAMETER_LIST = 55
    MESSAGE = 56
    MAX_SIZE = 57
    RENEWAL_TIME = 58
    REBINDING_TIME = 59
    CLIENT_ID = 61
    RAPID_COMMIT = 80
    RELAY_AGENT = 82


_PAD, _END = 0, 255
_LONGEST = 255


def parse_options(field: bytes, where: str = "options") -> Options:
    """Read an option field up to its end option, or to its last byte if there is none.

    Raises FrameError, naming the field as `where`, for an option that runs past the end.
    """
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(field):
        code = field[at]
        if code == _END:
            break
        if code == _PAD:
            at += 1
            continue
        if at + 1 >= len(field):
            raise FrameError(f"DHCP {where}: option {code} has no length")
        length = field[at + 1]
        start, at = at + 2, at + 2 + length
        if at > len(field):
            raise FrameError(f"DHCP {where}: option {code} of {length} bytes runs past the end")
        found.append((code, field[start:at]))
    return tuple(found)


def build_options(options: Options) -> bytes:
    """The option field with its end option. A value over 255 bytes is split into several (RFC 3396)."""
    parts: list[bytes] = []
    for code, value in options:
        if not _PAD < code < _END:
            raise FrameError(f"DHCP option number {code} is not between 1 and 254")
        for start in range(0, len(value) or 1, _LONGEST):
            piece = value[start : start + _LONGEST]
            parts.append(bytes((code, len(piece))) + piece)
    return b"".join(parts) + bytes((_END,))


def joined(options: Iterable[tuple[int, bytes]], code: int) -> bytes | None:
    """The value of an option, its repeats put together in order (RFC 3396 section 7); None if absent."""
    values = [value for number, value in options if number == code]
    return b"".join(values) if values else None
