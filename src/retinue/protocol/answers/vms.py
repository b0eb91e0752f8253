"""VMs, their bindings and the spoofing attempts against them, as answers."""

from dataclasses import dataclass

import msgspec

from retinue.core.model import BindingKind, DiskFormat, Origin, Power, Restart
from retinue.core.model.entities import PortStatus, Trust
from retinue.core.placement import Profile
from retinue.core.snooping.spoofing import SpoofingKind
from retinue.protocol.answers.common import Numbers
from retinue.protocol.renewals import OrderState
from retinue.protocol.vms import VMState


class AllowedAddress(msgspec.Struct):
    address: str
    mac: str
    """As whose the NIC speaks for it; "": its own."""


class GuestSubnet(msgspec.Struct):
    """What a guest must know of an address's subnet; empty where the address is in none."""

    prefixlen: int | None = None
    gateway: str = ""


class ShownNIC(msgspec.Struct):
    id: str
    """The `iface-id` of its port."""
    mac: str
    vnet: str
    trunk: str
    """The NIC by whose port it goes; "": by its own."""
    vlan: int
    """Its tag there; 0: none."""
    addresses: list[str]
    enabled: bool
    slot: int
    trusted: bool
    rate: int
    allowed: list[AllowedAddress]
    prefixes: list[str]
    mac_changes: bool
    """The guest may give it another MAC."""
    initial_mac: str
    """The MAC with which its port was made, where it has had another one since; "": `mac`."""
    mirror: str
    """The name of the port that takes a copy of its traffic, wherever the VM is; "": none."""
    anycast: list[str]
    """Addresses that it has together with other NICs."""
    load: int
    port: int | None
    """At the switch where the VM is delivered; null until the switch reports it."""
    mtu: int
    subnets: dict[str, GuestSubnet]
    holds: list[str]
    """The addresses it may send from."""


class ShownDisk(msgspec.Struct):
    size_mib: int
    image: str
    base: str
    shared: str
    format: DiskFormat


@dataclass(frozen=True, slots=True)
class ServiceProfile(Profile):
    """A VM's, the whole of it: also what it is made of."""

    shareable: tuple[str, ...] = ()
    """Names of images, which are no VM's own."""
    private: tuple[str, ...] = ()
    """What is its own, and comes from its server alone: "memory", "disk1"."""


class ShownVM(msgspec.Struct):
    id: str
    mac: str
    """Of its first NIC, as are `addresses`, `port`, `mtu` and `subnets`."""
    server: str
    host: str
    """Which of the server's hosts it is on; "": of none that is known."""
    also: list[str]
    addresses: list[str]
    reported: bool
    copied_to: str
    forwarded_from: str
    state: VMState
    missing: list[str]
    """In words, what a VM that is not ready waits for."""
    switch: str
    port: int | None
    holds: list[str]
    migration: str
    spoof_attempts: int
    power: Power
    power_reason: str
    restart: Restart
    memory_mib: int
    home: str
    mtu: int
    disks: list[ShownDisk]
    warnings: list[str]
    subnets: dict[str, GuestSubnet]
    nics: list[ShownNIC]
    profile: ServiceProfile
    reported_addresses: list[str]
    """Of its server's agent; each waits for a manager who confirms it."""


class AllVMs(msgspec.Struct):
    vms: list[ShownVM]
    removed: list[str]
    """Ids of VMs that were removed, and whose ports still stand."""
    fenced: list[str]
    """Servers that were called dead."""


class RegisteredVMs(msgspec.Struct):
    vms: list[ShownVM]


class ProfileAnswer(msgspec.Struct):
    vm: str
    profile: ServiceProfile


class ShownBinding(msgspec.Struct):
    mac: str
    ip: str
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
    vrf: str
    confirmed: bool


class ShownSpoofAttempt(msgspec.Struct):
    id: str
    kind: SpoofingKind
    switch: str
    port: int
    vm: str
    claimed_mac: str
    claimed_ip: str
    count: int
    first: float
    last: float


class ShownSpoofingPort(msgspec.Struct):
    """All spoofing by one port, also that of which no row is kept any more."""

    switch: str
    port: int
    vm: str
    """Who was there last; "": nobody."""
    count: int
    first: float
    last: float
    kinds: dict[SpoofingKind, int]
    rows: int
    """That are kept of it."""


class AllSpoofAttempts(msgspec.Struct):
    ports: list[ShownSpoofingPort]
    spoof_attempts: list[ShownSpoofAttempt]
    dropped_frames: Numbers
    """By switch: frames dropped as spoofed."""


class AllBindings(msgspec.Struct):
    bindings: list[ShownBinding]
    spoof_attempts: int
    """How many have been counted, of this VM if one is asked for."""


class ShownRenewal(msgspec.Struct):
    """A renewals.Order. A lease of IPv4 has `dhcp_server` and `next_hop`, one of DHCPv6 `server_duid` and
    `iaid`."""

    id: str
    vm: str
    server: str
    switch: str
    port: str
    port_number: int
    mac: str
    xid: int
    client_id: str
    ordered_at: float
    options: str
    state: OrderState
    sent: int
    recorded_port: int | None
    lease_seconds: float | None
    lease_end: float | None
    answer: str
    reason: str
    ip: str
    dhcp_server: str = ""
    next_hop: str = ""
    server_duid: str = ""
    iaid: int | None = None


class AllRenewals(msgspec.Struct):
    renewals: list[ShownRenewal]


class FcLoginRow(msgspec.Struct):
    """A port of Fibre Channel over Ethernet that a forwarder has granted."""

    vm: str
    nic: str
    mac: str
    fc_id: str
    """Six hexadecimal digits."""
    forwarder: str
    switch: str
    """The edge where its frames are brought."""
    port: int | None


class AllFcLogins(msgspec.Struct):
    logins: list[FcLoginRow]
