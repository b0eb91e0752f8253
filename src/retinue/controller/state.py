"""What the controller knows beside its network, as records; and all of it together: `State`, and what the
database holds of it, `Stored`. Which kinds of state outlive the controller is in kinds.py.
"""

from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from retinue.controller.known_migrations import Migrations
from retinue.core.migration import Migration
from retinue.core.model import (
    VM,
    Assignment,
    GatewayGroup,
    Link,
    Network,
    PortRef,
    Server,
    Subnet,
    Switch,
    Vnet,
    Vrf,
)
from retinue.core.model.domains import HomeAnchor
from retinue.core.model.pairs import AddressPair
from retinue.core.model.storage import FcLogin
from retinue.core.placement import Entity, EntityKind, Placement
from retinue.core.placement.bookings import Booking
from retinue.protocol.images import SignedManifest, domain_of
from retinue.protocol.vms import VMState
from retinue.steady_clock import ClockAnchor

log = structlog.get_logger()

T = TypeVar("T")

CLOCK = "clock"
"""There is one anchor, under this name."""


@dataclass(frozen=True, slots=True)
class ServerLocation:
    """A server was detected at this leaf port (`Network.detected`)."""

    server: str
    at: PortRef


@dataclass(frozen=True, slots=True)
class EndedLease:
    """The last lease of a NIC that has had none since."""

    lease: Assignment


@dataclass(frozen=True, slots=True)
class PendingRenewal:
    """This NIC's VM has migrated, and no DHCP server has renewed this lease of the NIC since."""

    nic: str
    """The id of its port: of a VM's first NIC, the VM's. Of a lease of DHCPv6 "/" and the address follow."""


@dataclass(frozen=True, slots=True)
class TakenOut:
    """What stands in the configuration file, and was removed by request (`State.taken_out`)."""

    what: str
    """"switch spine2", "link leaf1:s2 - spine2:l1" or "server dhcp"."""


@dataclass(frozen=True, slots=True)
class FencedServer:
    """The operator has given the word that this server is dead (`Network.fenced`)."""

    server: str


@dataclass(frozen=True, slots=True)
class LostRouter:
    """A router was not there when this was last known (`Network.lost_routers`)."""

    server: str
    reason: str


@dataclass(frozen=True, slots=True)
class LostLink:
    """A link of the fabric lost frames when this was last known (`Network.lost_links`)."""

    lower: PortRef
    reason: str


@dataclass(frozen=True, slots=True)
class LaidLink:
    """A link between switches that a manager has given."""

    link: Link
    idle: bool
    """Nothing is sent up by it (`Network.idle_links`)."""


@dataclass(frozen=True, slots=True)
class UplinkPlace:
    """One of several uplinks of an edge leads to this leaf port (`Network.uplink_places`)."""

    uplink: PortRef
    at: PortRef


@dataclass(frozen=True, slots=True)
class UplinkInUse:
    """Of an edge's several uplinks this one is used (`Network.in_use`)."""

    edge: str
    uplink: str


@dataclass(frozen=True, slots=True)
class DrainedServer:
    """The operator wants no VM on this server (`Network.drained`)."""

    server: str


@dataclass(frozen=True, slots=True)
class AgentAt:
    """An agent of ours has followed the events for this server (`State.with_agent`)."""

    server: str


@dataclass(frozen=True, slots=True)
class LeftPort:
    """The manager removed a VM, and its port was not seen to go: a report of it registers no VM."""

    port_id: str
    vm: str
    switches: tuple[str, ...]
    """Edges where the port stands, or may stand: their databases have not been read. Sorted."""


@dataclass(frozen=True, slots=True)
class RemovedGuest:
    """A guest was removed here, and its home has yet to hear it (controller/domains/removals.py)."""

    vm: str
    home: str

    @property
    def key(self) -> str:
        return f"{self.home}/{self.vm}"


@dataclass(frozen=True, slots=True)
class Image:
    """An image is published under a name: what it is, who vouches for it, and where it was brought first."""

    signed: SignedManifest
    origin: str
    """A server; of an image of another domain DOMAIN/SERVER."""
    publisher: str
    """Whose signature it has; "" where none is asked for."""

    @property
    def name(self) -> str:
        return self.signed.name

    @property
    def domain(self) -> str:
        """Where it was published; "": here."""
        return domain_of(self.origin)


@dataclass(frozen=True, slots=True)
class Word:
    """A manager was the first to say something (controller/words.py)."""

    about: str
    """What it is about: a kind and an id, such as "vm web"."""
    by: str
    at: float
    """Seconds since the epoch."""


Storable = (
    GatewayGroup
    | Switch
    | TakenOut
    | LaidLink
    | Vrf
    | Vnet
    | Subnet
    | Server
    | VM
    | Assignment
    | EndedLease
    | PendingRenewal
    | ServerLocation
    | Migration
    | FencedServer
    | DrainedServer
    | LostRouter
    | LostLink
    | UplinkPlace
    | UplinkInUse
    | AgentAt
    | LeftPort
    | RemovedGuest
    | ClockAnchor
    | Image
    | Entity
    | Placement
    | AddressPair
    | FcLogin
    | Word
    | Booking
    | HomeAnchor
)


@dataclass
class State:
    """What the controller knows of its network. It is changed by `Context.apply` alone (see changes.py)."""

    net: Network
    migrations: Migrations = field(default_factory=Migrations)
    ended_leases: dict[str, Assignment] = field(default_factory=dict)
    """By MAC: a NIC's last lease, which has ended; the one that ended longest ago first."""
    pending_renewals: set[str] = field(default_factory=set)
    """NICs, by the ids of their ports, whose VM has migrated, and whose lease no DHCP server has renewed
    since."""
    with_agent: set[str] = field(default_factory=set)
    """Servers whose agent has followed the events, under this controller or one before."""
    left_ports: dict[str, LeftPort] = field(default_factory=dict)
    """By port id: ports of VMs that were removed."""
    removed_guests: dict[str, RemovedGuest] = field(default_factory=dict)
    """By home and name: guests that were removed here, of which their homes have not heard."""
    anchors: dict[str, ClockAnchor] = field(default_factory=dict)
    """The anchor of the controller's clock: one, under "clock"."""
    images: dict[str, Image] = field(default_factory=dict)
    """By name: what is published."""
    entities: dict[str, Entity] = field(default_factory=dict)
    """By name: what the manager has said of a VM, server, service, image or client."""
    placements: dict[str, Placement] = field(default_factory=dict)
    """By migration: how its target was chosen; the oldest first."""
    pairs: dict[str, AddressPair] = field(default_factory=dict)
    """By MAC: the pool of which VMs take the next."""
    words: dict[str, Word] = field(default_factory=dict)
    """By what it is about: which manager said it first."""
    bookings: dict[str, Booking] = field(default_factory=dict)
    """By VM: room on a server for one that is to come."""
    home_anchors: dict[str, HomeAnchor] = field(default_factory=dict)
    """By VM: since when one of ours is in another domain, or a guest here, and for how long home holds on to
    it."""
    taken_out: set[str] = field(default_factory=set)
    """What of the configuration file is left out, as `TakenOut.what` has it."""
    vm_states: dict[str, VMState] = field(default_factory=dict)
    """By VM; one that is missing is only registered."""

    def is_client(self, name: str) -> bool:
        """It roams: nobody places it, and nothing of a server is promised to it."""
        known = self.entities.get(name)
        return known is not None and known.kind is EntityKind.CLIENT


@dataclass(slots=True)
class Stored:
    """Everything the database holds, each list in order of its key."""

    taken_out: list[TakenOut] = field(default_factory=list)
    gateway_groups: list[GatewayGroup] = field(default_factory=list)
    switches: list[Switch] = field(default_factory=list)
    laid_links: list[LaidLink] = field(default_factory=list)
    vrfs: list[Vrf] = field(default_factory=list)
    vnets: list[Vnet] = field(default_factory=list)
    subnets: list[Subnet] = field(default_factory=list)
    servers: list[Server] = field(default_factory=list)
    vms: list[VM] = field(default_factory=list)
    assignments: list[Assignment] = field(default_factory=list)
    ended_leases: list[EndedLease] = field(default_factory=list)
    pending_renewals: list[PendingRenewal] = field(default_factory=list)
    locations: list[ServerLocation] = field(default_factory=list)
    migrations: list[Migration] = field(default_factory=list)
    fenced: list[FencedServer] = field(default_factory=list)
    drained: list[DrainedServer] = field(default_factory=list)
    lost_routers: list[LostRouter] = field(default_factory=list)
    uplink_places: list[UplinkPlace] = field(default_factory=list)
    uplinks_in_use: list[UplinkInUse] = field(default_factory=list)
    lost_links: list[LostLink] = field(default_factory=list)
    with_agent: list[AgentAt] = field(default_factory=list)
    left_ports: list[LeftPort] = field(default_factory=list)
    removed_guests: list[RemovedGuest] = field(default_factory=list)
    anchors: list[ClockAnchor] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    entities: list[Entity] = field(default_factory=list)
    placements: list[Placement] = field(default_factory=list)
    pairs: list[AddressPair] = field(default_factory=list)
    fc_logins: list[FcLogin] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    bookings: list[Booking] = field(default_factory=list)
    home_anchors: list[HomeAnchor] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """Rows that cannot be read, and why; they are left where they are."""


def match_number(id: str) -> int:
    """12 of "match-12"."""
    return int(id.removeprefix("match-"))
