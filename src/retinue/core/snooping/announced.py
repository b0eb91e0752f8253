"""Renewals that agents were ordered to make on their VMs' behalf, over DHCP and DHCPv6.

A message is one of them by its transaction id and the NIC it comes from; the order announces both before.
"""

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Generic, TypeVar

from retinue.core.model import Mac
from retinue.core.snooping.pending import PENDING_SECONDS

Address = TypeVar("Address", IPv4Address, IPv6Address)


@dataclass(slots=True)
class Announced(Generic[Address]):
    """A renewal by the agent. Once `closed` it takes no more messages; late ones are known as its own."""

    vm: str
    ip: Address
    switch: str
    at: float
    server: IPv4Address | None
    closed: bool = False


@dataclass
class AnnouncedRenewals(Generic[Address]):
    """Those of one protocol: the ones under way, and for a while those that have ended."""

    _of: dict[tuple[int, Mac], Announced[Address]] = field(default_factory=dict)
    """By transaction id and MAC."""

    def announce(
        self,
        vm: str,
        mac: Mac,
        ip: Address,
        xid: int,
        switch: str,
        now: float,
        server: IPv4Address | None = None,
    ) -> None:
        """The agent will renew this address for its VM, from the VM's port on this switch, at that server."""
        for key in [k for k, a in self._of.items() if a.closed and now - a.at > PENDING_SECONDS]:
            del self._of[key]
        self._of[xid, mac] = Announced(vm, ip, switch, now, server)

    def find(self, xid: int, mac: Mac) -> Announced[Address] | None:
        return self._of.get((xid, mac))

    def answered(self, xid: int, mac: Mac) -> None:
        """It has its answer: it takes no other."""
        if (announced := self._of.get((xid, mac))) is not None:
            announced.closed = True

    def withdraw(self, xid: int, mac: Mac, now: float) -> None:
        """It has ended, one way or another. Messages of it that come later are dropped silently."""
        if (announced := self._of.get((xid, mac))) is not None:
            announced.closed, announced.at = True, now

    def has_ended(self, xid: int) -> bool:
        """One with this transaction id has ended, of whichever NIC."""
        return any(each == xid and announced.closed for (each, _), announced in self._of.items())

    def __len__(self) -> int:
        return len(self._of)
