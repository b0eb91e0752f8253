"""MAC and IP addresses, and ids, as the model keeps them.

A text that comes from several sides, such as a manager and a switch, is one object (`intern`).
"""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from sys import intern
from zlib import crc32

from retinue.core.limits import ID, ID_IN_WORDS
from retinue.core.text import quoted

Mac = str
"""A MAC address, always in the one form `mac` returns: "52:54:00:00:00:01"."""

IP = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


class ModelError(ValueError):
    """A value that cannot be part of the model; the message says which and why."""


def mac(text: str) -> Mac:
    """Return `text` in the model's form of a MAC address. Raises ModelError if it is none."""
    form = text.strip().lower().replace("-", ":")
    if not _MAC.fullmatch(form):
        raise ModelError(
            f"not a MAC address: {quoted(text)} (expected six hex pairs, such as 52:54:00:00:00:01)"
        )
    return intern(form)


def entity_id(text: str, whose: str) -> str:
    """The id itself, of a VM or server (`whose`: "a VM"). Raises ModelError if it cannot be one."""
    if not text:
        raise ModelError(f"{whose} needs an id")
    if not ID.fullmatch(text):
        raise ModelError(f"{quoted(text)} cannot be {whose}'s id: {ID_IN_WORDS}")
    return intern(text)


def mac_to_int(address: Mac) -> int:
    return int(address.replace(":", ""), 16)


def mac_from_int(number: int) -> Mac:
    return bytes.hex(number.to_bytes(6, "big"), ":")


def mac_to_come(server: str) -> Mac:
    """What stands for the MAC of a server that is known by its chassis id alone, until LLDP tells it: a
    locally administered one, made of its id."""
    return mac_from_int(0x0672_0000_0000 | crc32(server.encode()))


def is_multicast(address: Mac) -> bool:
    """True for a group address, broadcast among them (IEEE 802: the first byte's lowest bit)."""
    return bool(int(address[:2], 16) & 1)
