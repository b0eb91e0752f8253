"""What a dropped frame claimed, and the log of spoofing attempts: who, where, what, how often."""

from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address

from retinue.core.model import Mac
from retinue.core.packets import (
    DHCP,
    Ethernet,
    EtherType,
    FrameError,
    NeighbourAdvertisement,
    parse,
    parse_arp,
    parse_nd,
)
from retinue.core.pipeline.cookies import Reason
from retinue.core.snooping.messages import NO_ADDRESS

MAX_ROWS = 4096
"""Rows of the log; a VM that invents addresses by the thousand cannot fill the memory."""


class SpoofingKind(StrEnum):
    """What a spoofing attempt pretends."""

    MAC = "mac"
    IP = "ip"
    ARP = "arp"
    ND = "nd"
    """Neighbour discovery for another, or as a router."""
    ROGUE_DHCP = "rogue-dhcp"
    DHCP = "dhcp"
    """A DHCP client message on another's behalf, or for another's address."""


KIND_OF: dict[Reason, SpoofingKind] = {
    Reason.SPOOFED_MAC: SpoofingKind.MAC,
    Reason.SPOOFED_IP: SpoofingKind.IP,
    Reason.SPOOFED_ARP: SpoofingKind.ARP,
    Reason.SPOOFED_ND: SpoofingKind.ND,
    Reason.ROGUE_DHCP: SpoofingKind.ROGUE_DHCP,
}


@dataclass(frozen=True, slots=True)
class SpoofAttempt:
    """One kind of spoofing by one VM with one claimed address. `vm` is "" at a port without a VM."""

    kind: SpoofingKind
    switch: str
    port: int
    vm: str
    claimed_mac: Mac
    claimed_ip: str
    count: int
    first: float
    last: float


_Key = tuple[SpoofingKind, str, int, Mac, str]


class SpoofingLog:
    """Counts spoofing attempts by kind, port and claimed address."""

    def __init__(self) -> None:
        self._rows: dict[_Key, SpoofAttempt] = {}
        self.total = 0

    def note(
        self, kind: SpoofingKind, switch: str, port: int, vm: str, claim: tuple[Mac, str], now: float
    ) -> SpoofAttempt:
        """Count one more; return its row."""
        self.total += 1
        key = (kind, switch, port, *claim)
        row = self._rows.pop(key, None)
        row = (
            SpoofAttempt(kind, switch, port, vm, *claim, count=1, first=now, last=now)
            if row is None
            else replace(row, vm=vm, count=row.count + 1, last=now)
        )
        self._rows[key] = row  # Last seen is last in order: the oldest row goes first when the log is full.
        if len(self._rows) > MAX_ROWS:
            del self._rows[next(iter(self._rows))]
        return row

    def rows(self) -> list[SpoofAttempt]:
        return list(self._rows.values())

    def of_vm(self, vm: str) -> int:
        return sum(row.count for row in self._rows.values() if row.vm == vm)


def interpret(frame: bytes) -> tuple[Mac, str]:
    """The MAC and IP a frame claims to come from; "" for what it does not have, or malformed."""
    try:
        ethernet = parse(frame)
    except FrameError:
        return "", ""
    match ethernet.ethertype:
        case EtherType.ARP | EtherType.RARP:
            try:
                arp = parse_arp(ethernet.payload)
            except FrameError:
                return ethernet.src, ""
            return arp.sha, str(arp.spa)
        case EtherType.IPV4 if len(ethernet.payload) >= 20:
            return ethernet.src, str(IPv4Address(ethernet.payload[12:16]))
        case EtherType.IPV6 if len(ethernet.payload) >= 40:
            return _interpret_ipv6(ethernet)
        case _:
            return ethernet.src, ""


def _interpret_ipv6(ethernet: Ethernet) -> tuple[Mac, str]:
    """What neighbour discovery says: that this address is at that MAC; of anything else, who has sent it."""
    try:
        found = parse_nd(ethernet.payload)
    except FrameError:
        return ethernet.src, str(IPv6Address(ethernet.payload[8:24]))
    options, advertised = found.message.options, isinstance(found.message, NeighbourAdvertisement)
    mac = options.target_mac if advertised else options.source_mac
    address = found.message.target if isinstance(found.message, NeighbourAdvertisement) else found.src
    return mac or ethernet.src, str(address)


def claims_of(dhcp: DHCP, source: IPv4Address = NO_ADDRESS) -> tuple[Mac, str]:
    """The MAC and IP a DHCP message speaks for; `source` is the IP address that sent it."""
    claimed = (dhcp.ciaddr, dhcp.requested_address or NO_ADDRESS, source)
    return dhcp.chaddr, next((str(ip) for ip in claimed if ip != NO_ADDRESS), "")


__all__ = ["SpoofAttempt", "SpoofingLog", "SpoofingKind", "KIND_OF", "claims_of", "interpret"]
