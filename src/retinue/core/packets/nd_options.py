"""Options of neighbour discovery messages (RFC 4861, 4.6): link-layer addresses, prefixes, MTU."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network

from retinue.core.model import Mac
from retinue.core.packets.errors import FrameError
from retinue.core.packets.ethernet import mac_bytes, mac_text

SOURCE_MAC, TARGET_MAC, PREFIX, MTU = 1, 2, 3, 5
"""Numbers of the options that are read and made; others are passed over."""
MOST_OPTIONS = 64
"""Options of one message; ours have a few, and one for each prefix."""
FOREVER = 0xFFFF_FFFF
"""A lifetime in seconds that has no end."""

_PREFIX = struct.Struct("!BBBBIIxxxx16s")
_ON_LINK, _AUTONOMOUS = 0x80, 0x40


@dataclass(frozen=True, slots=True)
class PrefixInformation:
    """A prefix of the link: whether its addresses are on it, and whether hosts may make their own (SLAAC)."""

    prefix: IPv6Network
    on_link: bool
    autonomous: bool
    valid: int
    """Seconds for which what is said of the prefix holds."""
    preferred: int
    """Seconds for which addresses made from it are preferred; not more than `valid`."""

    def build(self) -> bytes:
        """Raises FrameError for a lifetime that does not fit 32 bits."""
        flags = _ON_LINK * self.on_link | _AUTONOMOUS * self.autonomous
        length, address = self.prefix.prefixlen, self.prefix.network_address.packed
        try:
            return _PREFIX.pack(PREFIX, 4, length, flags, self.valid, self.preferred, address)
        except struct.error as error:
            raise FrameError(f"lifetimes {self.valid}, {self.preferred} out of range") from error


@dataclass(frozen=True, slots=True)
class Options:
    """Those that are known; of one that may be there once, None where it is not."""

    source_mac: Mac | None = None
    target_mac: Mac | None = None
    mtu: int | None = None
    prefixes: tuple[PrefixInformation, ...] = ()

    def build(self) -> bytes:
        parts = [
            _link_layer(SOURCE_MAC, self.source_mac),
            _link_layer(TARGET_MAC, self.target_mac),
            b"" if self.mtu is None else struct.pack("!BBxxI", MTU, 1, self.mtu),
            *(prefix.build() for prefix in self.prefixes),
        ]
        return b"".join(parts)


NO_OPTIONS = Options()


def parse_options(data: bytes) -> Options:
    """Read the options that fill `data`.

    Raises FrameError for one that is malformed or cut short, for a length of zero ("Nodes MUST silently
    discard an ND packet that contains an option with length zero"), for a link-layer address or MTU that is
    there twice, and for more than MOST_OPTIONS.
    """
    once: dict[int, bytes] = {}
    prefixes: list[PrefixInformation] = []
    for kind, option in _pieces(data):
        if kind == PREFIX:
            prefixes.append(_prefix(option))
        elif kind in (SOURCE_MAC, TARGET_MAC, MTU):
            if kind in once:
                raise FrameError(f"ND option {kind} is there twice")
            if len(option) != 8:
                raise FrameError(f"ND option {kind} of {len(option)} bytes, not 8")
            once[kind] = option
    mtu = once.get(MTU)
    return Options(
        source_mac=_mac(once.get(SOURCE_MAC)),
        target_mac=_mac(once.get(TARGET_MAC)),
        mtu=None if mtu is None else int.from_bytes(mtu[4:], "big"),
        prefixes=tuple(prefixes),
    )


def _pieces(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = count = 0
    while at < len(data):
        count += 1
        if count > MOST_OPTIONS:
            raise FrameError(f"ND message with more than {MOST_OPTIONS} options")
        size = data[at + 1] * 8 if at + 1 < len(data) else 0
        if size == 0 or size > len(data) - at:
            raise FrameError(f"ND option {data[at]} of {size} bytes, {len(data) - at} are left")
        yield data[at], data[at : at + size]
        at += size


def _prefix(option: bytes) -> PrefixInformation:
    if len(option) != _PREFIX.size:
        raise FrameError(f"ND prefix option of {len(option)} bytes, not {_PREFIX.size}")
    _, _, length, flags, valid, preferred, address = _PREFIX.unpack(option)
    if length > 128:
        raise FrameError(f"ND prefix of {length} bits")
    prefix = IPv6Network((IPv6Address(address), length), strict=False)
    return PrefixInformation(prefix, bool(flags & _ON_LINK), bool(flags & _AUTONOMOUS), valid, preferred)


def _link_layer(kind: int, mac: Mac | None) -> bytes:
    return b"" if mac is None else bytes((kind, 1)) + mac_bytes(mac)


def _mac(option: bytes | None) -> Mac | None:
    return None if option is None else mac_text(option[2:])
