"""What a dropped frame claimed, and the book of forgeries: who, where, what, how often (row B6)."""

from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address

from retinue.flows.pipeline import Reason
from retinue.model import Mac
from retinue.packets import DHCP, EtherType, FrameError, parse, parse_arp

MAX_ROWS = 4096
"""Rows of the book; a VM that invents addresses by the thousand fills rows, not memory."""


class ForgeryKind(StrEnum):
    MAC = "mac"
    IP = "ip"
    ARP = "arp"
    ROGUE_DHCP = "rogue-dhcp"
    DHCP = "dhcp"
    """A DHCP client message on another's behalf, or for another's address."""


KIND_OF: dict[Reason, ForgeryKind] = {
    Reason.FORGED_MAC: ForgeryKind.MAC,
    Reason.FORGED_IP: ForgeryKind.IP,
    Reason.FORGED_ARP: ForgeryKind.ARP,
    Reason.ROGUE_DHCP: ForgeryKind.ROGUE_DHCP,
}


@dataclass(frozen=True, slots=True)
class Forgery:
    """One kind of forgery by one VM with one claimed address. `vm` is "" at a port without a VM."""

    kind: ForgeryKind
    switch: str
    port: int
    vm: str
    claimed_mac: Mac
    claimed_ip: str
    count: int
    first: float
    last: float


_Key = tuple[ForgeryKind, str, int, Mac, str]


class ForgeryBook:
    """Counts forgeries by kind, place and claim."""

    def __init__(self) -> None:
        self._rows: dict[_Key, Forgery] = {}
        self.total = 0

    def note(
        self, kind: ForgeryKind, switch: str, port: int, vm: str, claim: tuple[Mac, str], now: float
    ) -> Forgery:
        """Count one more; return its row."""
        self.total += 1
        key = (kind, switch, port, *claim)
        row = self._rows.pop(key, None)
        row = (
            Forgery(kind, switch, port, vm, *claim, count=1, first=now, last=now)
            if row is None
            else replace(row, vm=vm, count=row.count + 1, last=now)
        )
        self._rows[key] = row  # Last seen is last in order: the oldest goes first when the book is full.
        if len(self._rows) > MAX_ROWS:
            del self._rows[next(iter(self._rows))]
        return row

    def rows(self) -> list[Forgery]:
        return list(self._rows.values())

    def of_vm(self, vm: str) -> int:
        return sum(row.count for row in self._rows.values() if row.vm == vm)


def interpret(frame: bytes) -> tuple[Mac, str]:
    """The MAC and IP a frame claims to come from; "" for what it does not say or says brokenly."""
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
        case _:
            return ethernet.src, ""


def claims_of(dhcp: DHCP) -> tuple[Mac, str]:
    """The MAC and IP a DHCP message speaks for."""
    ip = dhcp.ciaddr if dhcp.ciaddr != IPv4Address(0) else dhcp.requested_address
    return dhcp.chaddr, str(ip) if ip else ""


__all__ = ["Forgery", "ForgeryBook", "ForgeryKind", "KIND_OF", "claims_of", "interpret"]
