"""Cookies: what an entry is for and whose it is, as a number the switch keeps and tells.

A packet-in carries the cookie of the entry that sent it, and so says why it came; statistics are summed by
cookie.
"""

from collections.abc import Mapping
from enum import IntEnum
from zlib import crc32

from retinue.core.model import Role
from retinue.core.model.network import Owner


class Reason(IntEnum):
    """What an entry is for."""

    FORWARD = 0
    DHCP_CLIENT = 1
    DHCP_SERVER = 2
    VM_ARP = 3
    SERVER_ARP = 4
    QUIET = 5
    """Dropped without a report: honest noise, such as a guest's LLDP."""
    EXPIRED = 6
    """Its time to live ends here, and its sender is told."""
    VM_ND = 7
    SPOOFED_MAC = 8
    SPOOFED_IP = 9
    SPOOFED_ARP = 10
    ROGUE_DHCP = 11
    """A DHCP server's message from where no such server may be; or a DHCP request that bypasses snooping."""
    UNROUTABLE = 12
    """Dropped, and counted by the switch alone: its destination is none that a router may forward to."""
    SPOOFED_ND = 13
    """Neighbour discovery for another; as a router; or hidden so that it could not be read."""
    SERVER_ND = 16
    DHCP6_CLIENT = 17
    DHCP6_SERVER = 18
    MISSING_SERVER = 19
    """From the MAC of a server whose place is not known: it is where that came in."""
    FLOOD = 20
    """To a group of a vnet that floods."""
    TOO_BIG = 21
    """Where it goes takes no packet as large as this one, and its sender is told."""
    TUNNEL_MARK = 22
    """From another domain's gateway: all that was sent before it has come through the tunnel."""
    FIP_NODE = 23
    FIP_FORWARDER = 32
    UNPLACED = 34
    """To a VM that is registered at a server whose place is not known: held until it is."""
    VDP = 33
    """LLDP at an edge that its leaf tells the gateway's MAC."""
    PROBE = 35
    """What the controller has had sent over a link of the fabric, to see whether it comes in."""
    SERVER_ND_ANSWERED = 36
    """A server or router has asked for a gateway, and its leaf has answered."""
    """Those from 24 on have the bit of SPOOFING_COOKIE_MASK."""


SPOOF_ATTEMPTS = frozenset(
    {Reason.SPOOFED_MAC, Reason.SPOOFED_IP, Reason.SPOOFED_ARP, Reason.SPOOFED_ND, Reason.ROGUE_DHCP}
)
SENT_UP_BY: Mapping[Reason, frozenset[Role]] = {
    Reason.DHCP_CLIENT: frozenset({Role.EDGE}),
    Reason.VM_ARP: frozenset({Role.EDGE}),
    Reason.DHCP_SERVER: frozenset({Role.EDGE, Role.LEAF}),
    Reason.DHCP6_CLIENT: frozenset({Role.EDGE}),
    Reason.DHCP6_SERVER: frozenset({Role.EDGE, Role.LEAF}),
    Reason.SERVER_ARP: frozenset({Role.LEAF}),
    Reason.MISSING_SERVER: frozenset({Role.LEAF}),
    Reason.VM_ND: frozenset({Role.EDGE}),
    Reason.SERVER_ND: frozenset({Role.LEAF}),
    Reason.SERVER_ND_ANSWERED: frozenset({Role.LEAF}),
    Reason.EXPIRED: frozenset({Role.LEAF}),
    Reason.TOO_BIG: frozenset({Role.LEAF}),
    Reason.UNPLACED: frozenset({Role.LEAF}),
    Reason.TUNNEL_MARK: frozenset({Role.EDGE}),
    Reason.FIP_NODE: frozenset({Role.EDGE}),
    Reason.FIP_FORWARDER: frozenset({Role.EDGE, Role.LEAF}),
    Reason.VDP: frozenset({Role.EDGE}),
    Reason.PROBE: frozenset(Role),
    Reason.SPOOFED_MAC: frozenset({Role.EDGE}),
    Reason.SPOOFED_IP: frozenset({Role.EDGE, Role.LEAF}),
    Reason.SPOOFED_ARP: frozenset({Role.EDGE}),
    Reason.SPOOFED_ND: frozenset({Role.EDGE}),
    Reason.ROGUE_DHCP: frozenset({Role.EDGE, Role.LEAF}),
}
"""By reason: the roles of switches that have an entry which sends frames to the controller for it. A switch
that says another has been tampered with: an edge is where its server's administrator wants it to be."""
COOKIE_MARK = 0x5E71 << 48
"""In the upper 16 bits of every cookie of ours; the reason is in the next 16, a hash of the owner below."""
SPOOFING_COOKIE_MASK = 0xFFFF_0008_0000_0000
SPOOFING_COOKIE = COOKIE_MARK | 8 << 32
"""Cookie and mask that pick the entries whose drops are counted: of all SPOOF_ATTEMPTS, and UNROUTABLE."""


def cookie(reason: Reason, owner: Owner) -> int:
    return COOKIE_MARK | reason << 32 | owner_hash(owner)


def for_reason(mark: int, reason: Reason) -> int:
    """The cookie of the same owner for this reason."""
    return COOKIE_MARK | reason << 32 | owner_hash_of(mark)


def owner_hash(owner: Owner) -> int:
    return crc32(str(owner).encode())


def owner_hash_of(cookie: int) -> int:
    """The hash of the owner in a cookie of ours."""
    return cookie & 0xFFFF_FFFF


def is_ours(cookie: int) -> bool:
    return cookie >> 48 << 48 == COOKIE_MARK


def reason_of(cookie: int) -> Reason | None:
    """The reason in a cookie of ours; None for another's cookie."""
    if not is_ours(cookie):
        return None
    number = cookie >> 32 & 0xFFFF
    return Reason(number) if number in Reason._value2member_map_ else None
