"""The DHCP-snooping table: who holds which address, and the rows that follow from it (row B5).

An address is held by a VM (`Holding`). Where the VM may be found, its server and during a move one server
more, gives the rows (`Binding`). A row is therefore never kept by itself: it cannot be stale, and a move
cannot leave an address without one (row B3).
"""

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address

from retinue.model.addresses import IP, Mac
from retinue.model.things import PortStatus, Trust


class BindingKind(StrEnum):
    DYNAMIC = "dynamic"
    """From a DHCP lease; ends with it."""
    STATIC = "static"
    """Given by the manager; ends when taken back."""


class Origin(StrEnum):
    """Who made the binding (seed 2 names three)."""

    CONTROLLER = "controller"
    """The controller, from DHCP messages a switch handed it."""
    SWITCH = "switch"
    """A switch that snoops by itself, and reported it."""
    MANAGER = "manager"
    """The manager, for a static address."""


@dataclass(frozen=True, slots=True)
class Holding:
    """This VM holds this IP, until `lease_end` (seconds since the epoch; None: until taken back)."""

    ip: IP
    mac: Mac
    vm: str
    kind: BindingKind
    origin: Origin
    lease_end: float | None = None
    server: IPv4Address | None = None
    """The DHCP server that granted it, by its server identifier; None for a static address."""
    client_id: bytes = b""
    """As whom the VM asked for it (DHCP option 61), if it said: a renewal must say the same."""


@dataclass(frozen=True, slots=True)
class Binding:
    """This IP belongs to this MAC, behind this port of this switch, until then."""

    mac: Mac
    ip: IP
    kind: BindingKind
    vm: str
    switch: str
    port: int
    lease_end: float | None
    vlan: int
    port_status: PortStatus
    trust: Trust
    origin: Origin
    active: bool
    """False for the row prepared on a move's target before the switch-over, and the source's after it."""
