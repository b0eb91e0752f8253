"""The parts of a data-centre network, each a frozen value."""

from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from retinue.model.addresses import IP, Mac, ModelError


class Role(StrEnum):
    """What a switch is for. All three run the same pipeline (see flows.pipeline)."""

    EDGE = "edge"
    """Virtual switch on a server; VMs plug into its ports."""
    LEAF = "leaf"
    """Top-of-rack switch; servers plug into its ports."""
    SPINE = "spine"
    """Joins the leaves; every spine is joined to every leaf."""


class Service(StrEnum):
    """What a server that runs no VMs is trusted to be."""

    DHCP = "dhcp"
    """A DHCP server: the one kind of port whose DHCP server messages are believed."""
    ROUTER = "router"
    """The way to prefixes outside the data centre."""


class PortStatus(StrEnum):
    UP = "up"
    DOWN = "down"
    DISABLED = "disabled"


class Trust(StrEnum):
    TRUST = "trust"
    UNTRUST = "untrust"


@dataclass(frozen=True, slots=True)
class Switch:
    id: str
    role: Role
    dpid: int
    """OpenFlow datapath id."""
    uplink: str = ""
    """Edge only: name of the port that leads to the leaf."""

    def __post_init__(self) -> None:
        if not self.id:
            raise ModelError("a switch needs an id")
        if not 0 < self.dpid < 1 << 64:
            raise ModelError(f"switch {self.id}: datapath id {self.dpid} is not between 1 and 2^64-1")
        if self.role is Role.EDGE and not self.uplink:
            raise ModelError(f"edge switch {self.id}: the name of its uplink port is missing")


@dataclass(frozen=True, slots=True, order=True)
class PortRef:
    """A port by the names of its switch and of itself; numbers are the switch's to give."""

    switch: str
    port: str

    def __str__(self) -> str:
        return f"{self.switch}:{self.port}"


@dataclass(frozen=True, slots=True)
class Link:
    """A cable between a leaf and a spine."""

    leaf: PortRef
    spine: PortRef


@dataclass(frozen=True, slots=True)
class Server:
    """A physical machine on a leaf's port: one that runs VMs, a DHCP server, or a router.

    Its place is given by the operator (`given_at`) or found when its ARP is seen (`Network.detected`).
    """

    id: str
    mac: Mac
    address: IP | None = None
    """Its own address in the fabric."""
    edge: str = ""
    """The edge switch it runs; "" for a machine that runs no VMs."""
    services: frozenset[Service] = frozenset()
    routes: tuple[IPv4Network | IPv6Network, ...] = ()
    """Prefixes reached through it; for a router."""
    given_at: PortRef | None = None


@dataclass(frozen=True, slots=True)
class Subnet:
    """Addresses that share a prefix and a gateway; may span all leaves."""

    id: str
    prefix: IPv4Network | IPv6Network
    gateway: IP
    """The anycast gateway's address, the same on every leaf (seed 3)."""
    vlan: int = 0
    dhcp: tuple[IPv4Address, ...] = ()
    """DHCP servers of other subnets to which its VMs' messages are relayed (RFC 1542, 4.1.1)."""

    def __post_init__(self) -> None:
        if self.gateway not in self.prefix:
            raise ModelError(f"subnet {self.id}: gateway {self.gateway} is not inside {self.prefix}")


@dataclass(frozen=True, slots=True)
class VM:
    """A virtual machine as the manager books it.

    `server` is where its traffic is delivered. `also` are further servers where it may send and where its
    port would take frames, but none are steered there: a move's target before the switch-over, its source
    after it.
    """

    id: str
    mac: Mac
    server: str
    also: frozenset[str] = frozenset()
    addresses: tuple[IPv4Address | IPv6Address, ...] = ()
    """Static addresses, given by the manager; empty when the VM asks by DHCP."""
    reported: bool = False
    """True when no manager booked it and a switch's port told of it."""
    copied_to: str = ""
    """One of `also` that gets a copy of all that is delivered, or "": a move's source, while the VM stands
    still. Were the move to fail, the VM would find there what it was sent meanwhile."""
    forwarded_from: str = ""
    """A server that sends on what still comes there, or "": a move's source, when nothing should, and for a
    little while after the VM has nothing else there."""

    @property
    def places(self) -> tuple[str, ...]:
        """The servers on whose switches something stands for this VM, the one it is delivered at first."""
        return (self.server, *sorted({*self.also, self.forwarded_from} - {"", self.server}))


@dataclass(frozen=True, slots=True)
class VMPort:
    """A VM's port on an edge switch, as its database reports it."""

    number: int
    name: str = ""
    status: PortStatus = field(default=PortStatus.UP)
