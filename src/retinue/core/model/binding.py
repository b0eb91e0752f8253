"""The DHCP-snooping table: which VM has which address, and the rows that follow from that.

An address is assigned to a VM's NIC (`Assignment`). The servers where the VM may be found, two of them during
a migration, give the rows (`Binding`). A row is therefore computed, never stored: it cannot be stale, and a
migration cannot leave an address without a row at any moment.
"""

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Network

from retinue.core.model.addresses import IP, Mac, Prefix
from retinue.core.model.entities import PortStatus, Trust
from retinue.core.model.vrfs import DEFAULT_VRF, Address, in_vrf


class BindingKind(StrEnum):
    """How long a binding lasts."""

    DYNAMIC = "dynamic"
    """From a DHCP lease; ends with it."""
    STATIC = "static"
    """Given by the manager; ends when taken back."""
    SLAAC = "slaac"
    """Made by the VM itself, for IPv6; ends with the VM, or for a newer one."""
    ALLOWED = "allowed"
    """Taken, by an announcement, by a NIC that is allowed it; ends when another takes it."""


class Origin(StrEnum):
    """Who made the binding: the controller, the switch or the manager."""

    CONTROLLER = "controller"
    """The controller, from DHCP messages a switch handed it."""
    SWITCH = "switch"
    """A switch that snoops by itself, and reported it."""
    MANAGER = "manager"
    """The manager, for a static address."""


class IAKind(StrEnum):
    """What an identity association of DHCPv6 is for (RFC 8415, 6)."""

    NA = "na"
    """Addresses."""
    TA = "ta"
    """Temporary addresses (RFC 8981), as for addresses."""
    PD = "pd"
    """Prefixes, which are routed to the client."""


@dataclass(frozen=True, slots=True)
class Lease6:
    """What else there is to a lease of DHCPv6; with it the lease can be renewed (RFC 8415)."""

    server: bytes
    """DUID of the server that granted it."""
    iaid: int
    """The identity association, as the client numbers it, to which the address belongs."""
    preferred_end: float | None = None
    """Seconds since the epoch until which the address is preferred; None: as long as the lease."""
    options: tuple[tuple[int, bytes], ...] = ()
    """What else the client has said to get it: a renewal on its behalf repeats it."""
    ia: IAKind = IAKind.NA


@dataclass(frozen=True, slots=True)
class Assignment:
    """This IP belongs to a VM's NIC, known by its MAC. `lease_end`: seconds since the epoch; None: no end."""

    ip: IP
    mac: Mac
    vm: str
    kind: BindingKind
    origin: Origin
    lease_end: float | None = None
    server: IPv4Address | None = None
    """The DHCP server that granted it, by its server identifier; None for a static address."""
    client_id: bytes = b""
    """The VM's DHCP client identifier (option 61; of DHCPv6 its DUID), if it sent one: a renewal must have
    the same."""
    options: tuple[tuple[int, bytes], ...] = ()
    """The other DHCP options that the VM sent to get it, by number: a renewal on its behalf repeats them."""
    told: tuple[tuple[int, bytes], ...] = ()
    """DNS and WINS servers as the VM was told them, when it asked last itself: DHCP options 6 and 44."""
    told_since: tuple[tuple[int, bytes], ...] = ()
    """What a renewal on its behalf brought instead, which the VM has not heard; () when it is the same."""
    vrf: str = DEFAULT_VRF
    """In which the address is meant: that of its NIC's vnet."""
    lease6: Lease6 | None = None
    """Of an address by DHCPv6."""
    prefix: IPv6Network | None = None
    """Of a delegated prefix: all of it, of which `ip` is the first address."""

    @property
    def leads(self) -> IP | Prefix:
        """What is led to the NIC, and may be its source."""
        return self.ip if self.prefix is None else self.prefix

    @property
    def key(self) -> Address:
        """What it is kept by: nobody else in its VRF has the address."""
        return in_vrf(self.vrf, self.ip)


@dataclass(frozen=True, slots=True)
class Binding:
    """This IP belongs to this MAC, behind this port of this switch, until then."""

    mac: Mac
    ip: IP | Prefix
    """An address, or a prefix that was delegated."""
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
    """False for the row prepared on a migration's target before the switch-over, and the source's after
    it."""
    vrf: str = DEFAULT_VRF
