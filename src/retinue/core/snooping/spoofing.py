"""What a dropped frame claimed, and the log of spoofing attempts: who, where, what, how often."""

from collections import Counter
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
"""Rows of the log; VMs that invent addresses by the thousand cannot fill the memory."""
MOST_ROWS_OF_A_PORT = 64
"""Of these for one port: none pushes out what is known of the others."""


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


@dataclass(frozen=True, slots=True)
class SpoofingPort:
    """All spoofing by one port, also what the log has no row of any more. `vm`: who was there last, or ""."""

    switch: str
    port: int
    vm: str
    count: int
    first: float
    last: float
    kinds: dict[SpoofingKind, int]
    """How often each was seen."""
    rows: int
    """That are kept of it."""


_Key = tuple[SpoofingKind, Mac, str]


class _Port:
    """What is kept of a port."""

    def __init__(self, vm: str, now: float) -> None:
        self.vm = vm
        self.first = self.last = now
        self.kinds: Counter[SpoofingKind] = Counter()
        self.rows: dict[_Key, SpoofAttempt] = {}
        """The one seen last is last."""

    def forget_one(self) -> None:
        """The one that was not seen for longest."""
        del self.rows[next(iter(self.rows))]


class SpoofingLog:
    """Counts spoofing attempts by port, kind and claimed address.

    When a port has too many rows the oldest of its own goes; when all have too many, the oldest of the port
    that has most.
    """

    def __init__(self) -> None:
        self._ports: dict[tuple[str, int], _Port] = {}
        self._kept = 0
        self.total = 0

    def note(
        self, kind: SpoofingKind, switch: str, port: int, vm: str, claim: tuple[Mac, str], now: float
    ) -> SpoofAttempt:
        """Count one more; return its row."""
        self.total += 1
        at = self._ports.setdefault((switch, port), _Port(vm, now))
        at.vm, at.last = vm, now
        at.kinds[kind] += 1
        key = (kind, *claim)
        row = at.rows.pop(key, None)
        self._kept += row is None
        row = (
            SpoofAttempt(kind, switch, port, vm, *claim, count=1, first=now, last=now)
            if row is None
            else replace(row, vm=vm, count=row.count + 1, last=now)
        )
        at.rows[key] = row
        if len(at.rows) > MOST_ROWS_OF_A_PORT:
            at.forget_one()
            self._kept -= 1
        if self._kept > MAX_ROWS:
            self._make_room()
        return row

    def rows(self, vm: str | None = None) -> list[SpoofAttempt]:
        """All, or those of the ports where this VM was last seen."""
        return [row for at in self._ports.values() if vm in (None, at.vm) for row in at.rows.values()]

    def ports(self, vm: str | None = None) -> list[SpoofingPort]:
        """Each port once."""
        return [
            SpoofingPort(
                *(switch, port, at.vm, at.kinds.total(), at.first, at.last),
                dict(sorted(at.kinds.items())),
                len(at.rows),
            )
            for (switch, port), at in self._ports.items()
            if vm in (None, at.vm)
        ]

    def of_vm(self, vm: str) -> int:
        return sum(at.kinds.total() for at in self._ports.values() if at.vm == vm)

    def _make_room(self) -> None:
        place = max(self._ports, key=lambda one: (len(self._ports[one].rows), -self._ports[one].last))
        self._ports[place].forget_one()
        self._kept -= 1
        if not self._ports[place].rows:
            del self._ports[place]


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


__all__ = ["SpoofAttempt", "SpoofingLog", "SpoofingKind", "SpoofingPort", "KIND_OF", "claims_of", "interpret"]
