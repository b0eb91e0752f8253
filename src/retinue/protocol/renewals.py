"""A lease renewed on a VM's behalf: the controller orders it, the server's agent carries it out."""

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address

import msgspec

from retinue.core.model import IAKind, Mac
from retinue.protocol.records import record

LONGEST_WAIT = 60.0
"""Seconds that GET /v1/renewals/{id}?wait=SECONDS may be asked to wait for the end."""


class OrderState(StrEnum):
    ORDERED = "ordered"
    """Announced; no request has come in."""
    SENT = "sent"
    """The request has come in at the VM's port and has gone to the DHCP server."""
    ACKED = "acked"
    REJECTED = "rejected"
    """By the DHCP server, or what it granted makes no binding."""
    SILENT = "silent"
    """No DHCP server has answered."""
    FAILED = "failed"
    """The agent could not send, or the VM went."""

    @property
    def ended(self) -> bool:
        return self not in (OrderState.ORDERED, OrderState.SENT)


class RenewalReport(StrEnum):
    """What an agent reports of a renewal that the controller cannot see by itself."""

    SILENT = "silent"
    """It asked in vain."""
    FAILED = "failed"
    """It could not ask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyOrder:
    """One renewal as the agent is ordered to do it, and how it went. Times are seconds since the epoch."""

    id: str
    vm: str
    server: str
    switch: str
    port: str
    """Name of the VM's port on that switch."""
    port_number: int
    mac: Mac
    vlan: int = 0
    """The tag that the NIC's frames have at that port; 0: none."""
    xid: int
    client_id: str
    """In hexadecimal; "" if the VM uses none. Of DHCPv6 its DUID."""
    ordered_at: float
    options: str = ""
    """The other DHCP options that the VM sent to get the lease, as an option field, in hexadecimal."""
    state: OrderState = OrderState.ORDERED
    sent: int = 0
    """How many times the request has come in."""
    recorded_port: int | None = None
    lease_seconds: float | None = None
    """What the DHCP server granted; None also for a lease that never ends."""
    lease_end: float | None = None
    answer: str = ""
    """The DHCP server's answer itself, in hexadecimal: it goes to the agent, not to the VM."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewalOrder(AnyOrder):
    """Of a lease of IPv4."""

    ip: IPv4Address
    dhcp_server: IPv4Address
    next_hop: Mac

    @property
    def named(self) -> str:
        """The server, in words."""
        return f"DHCP server {self.dhcp_server}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewalOrder6(AnyOrder):
    """Of a lease of DHCPv6."""

    ip: IPv6Address
    server_duid: str
    """Of the server that granted it, in hexadecimal."""
    iaid: int
    ia: IAKind = IAKind.NA
    prefix_length: int = 128
    """Of a prefix (IA_PD), of which `ip` is the first address."""

    @property
    def named(self) -> str:
        """The server, in words."""
        return f"DHCPv6 server {self.server_duid}"


Order = RenewalOrder | RenewalOrder6


def order_of(value: object) -> Order:
    """The order that this decoded JSON is, of whichever kind. Raises RecordError."""
    if isinstance(value, dict) and "iaid" in value:
        return record(RenewalOrder6, value)
    return record(RenewalOrder, value)


class RenewBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/vms/{id}/renewals."""

    server: str = ""
    """Whose agent shall renew; "": that of the server where the VM is delivered."""
    nic: str = ""
    """The NIC whose lease it is, by its port's id; "": the first of the VM's that has one."""
    agent: bool = False
    """Whoever asks is that agent, and acts on the answer; otherwise the event vm.renew orders it."""


class RenewalReportBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/renewals/{id}/events."""

    event: RenewalReport
    reason: str = ""
