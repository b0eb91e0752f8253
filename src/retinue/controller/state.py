"""What a controller must know to take over: every kind of state that outlives it, in one list, KINDS.

The same list serves a restart (the database has a table for each kind, and `restore` brings its values back)
and a standby controller, which would have to follow exactly these. What is not in it is either configuration
or in DERIVED, which says of each where it comes from instead. A test holds the lists against the attributes
that the controller's objects really have.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import structlog

from retinue.controller.clock import ClockAnchor
from retinue.core.migration import Migration, placement
from retinue.core.model import VM, Assignment, ModelError, Network, PortRef, Server, Subnet, Vnet, Vrf
from retinue.core.model.network import Touched
from retinue.core.model.vrfs import free_tag
from retinue.core.placement import Entity, Placement
from retinue.protocol.images import SignedManifest
from retinue.protocol.vms import VMState

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
class FencedServer:
    """The operator has given the word that this server is dead (`Network.fenced`)."""

    server: str


@dataclass(frozen=True, slots=True)
class DrainedServer:
    """The operator wants no VM on this server (`Network.drained`)."""

    server: str


@dataclass(frozen=True, slots=True)
class LeftPort:
    """The manager removed a VM, and its port was not seen to go: a report of it registers no VM."""

    port_id: str
    vm: str
    switches: tuple[str, ...]
    """Edges where the port stands, or may stand: their databases have not been read. Sorted."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image is published under a name: what it is, who vouches for it, and where it was brought first."""

    signed: SignedManifest
    origin: str
    publisher: str
    """Whose signature it has; "" where none is asked for."""

    @property
    def name(self) -> str:
        return self.signed.name


Storable = (
    Vrf
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
    | LeftPort
    | ClockAnchor
    | Image
    | Entity
    | Placement
)


@dataclass
class State:
    """What the controller knows of its network. It is changed by `Context.apply` alone (see changes.py)."""

    net: Network
    migrations: dict[str, Migration] = field(default_factory=dict)
    """By id: those under way and those that are remembered (see migrations.history)."""
    ended_leases: dict[str, Assignment] = field(default_factory=dict)
    """By MAC: a NIC's last lease, which has ended; the one that ended longest ago first."""
    pending_renewals: set[str] = field(default_factory=set)
    """NICs, by the ids of their ports, whose VM has migrated, and whose lease no DHCP server has renewed
    since."""
    left_ports: dict[str, LeftPort] = field(default_factory=dict)
    """By port id: ports of VMs that were removed."""
    anchors: dict[str, ClockAnchor] = field(default_factory=dict)
    """The anchor of the controller's clock: one, under "clock"."""
    images: dict[str, Image] = field(default_factory=dict)
    """By name: what is published."""
    entities: dict[str, Entity] = field(default_factory=dict)
    """By name: what the manager has said of a VM, server, service or image."""
    placements: dict[str, Placement] = field(default_factory=dict)
    """By migration: how its target was chosen; the oldest first."""
    vm_states: dict[str, VMState] = field(default_factory=dict)
    """By VM; one that is missing is only registered."""


@dataclass(slots=True)
class Stored:
    """Everything the database holds, each list in order of its key."""

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
    left_ports: list[LeftPort] = field(default_factory=list)
    anchors: list[ClockAnchor] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    entities: list[Entity] = field(default_factory=list)
    placements: list[Placement] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """Rows that cannot be read, and why; they are left where they are."""


# ---- how each kind of state is brought back ----


def _restore_vrfs(state: State, vrfs: Collection[Vrf]) -> None:
    """Where the file has given its tag to another, a VRF gets one that is free: nobody outside sees it."""
    stored = {vrf.tag for vrf in vrfs}
    for vrf in vrfs:
        taken = {known.tag for known in state.net.vrfs.values() if known.id != vrf.id}
        if vrf.tag in taken and vrf.id not in state.net.vrfs:
            vrf = replace(vrf, tag=free_tag(taken | stored))
            log.warning("state.vrf_has_another_tag", vrf=vrf.id, tag=vrf.tag)
        _fits(state.net.put_vrf, vrf)


def _restore_vnets(state: State, vnets: Collection[Vnet]) -> None:
    for vnet in vnets:
        _fits(state.net.put_vnet, vnet)


def _restore_subnets(state: State, subnets: Collection[Subnet]) -> None:
    """Those of the database take the place of the configured ones of the same id."""
    for subnet in subnets:
        _fits(state.net.add_subnet, subnet)


def _restore_servers(state: State, servers: Collection[Server]) -> None:
    """Servers of the database take the place of the configured ones of the same id.

    Those go first, all of them: a MAC or address may be another server's now.
    """
    net = state.net
    configured = [net.servers[server.id] for server in servers if server.id in net.servers]
    for server in configured:
        net.remove_server(server.id)
    for server in servers:
        _fits(net.put_server, server)
    for server in configured:
        if server.id not in net.servers:
            _fits(net.put_server, server)


def _restore_locations(state: State, locations: Collection[ServerLocation]) -> None:
    for location in locations:
        if location.server in state.net.servers and location.at.switch in state.net.switches:
            state.net.detect(location.server, location.at)


def _restore_vms(state: State, vms: Collection[VM]) -> None:
    for vm in vms:
        _fits(state.net.put_vm, vm)


def _restore_assignments(state: State, assignments: Collection[Assignment]) -> None:
    for assignment in assignments:
        _fits(state.net.assign, assignment)


def _restore_ended_leases(state: State, ended: Collection[EndedLease]) -> None:
    state.ended_leases.update((one.lease.mac, one.lease) for one in ended)


def _restore_pending_renewals(state: State, pending: Collection[PendingRenewal]) -> None:
    state.pending_renewals.update(one.nic for one in pending)


def _restore_migrations(state: State, migrations: Collection[Migration]) -> None:
    """A VM's row has the server that its traffic is delivered at; how it is spread follows from its
    migration."""
    for migration in migrations:
        state.migrations[migration.id] = migration
        vm = state.net.vms.get(migration.vm)
        if vm is not None and not migration.state.ended:
            _fits(state.net.put_vm, placement(vm, migration))


def _restore_fenced(state: State, fenced: Collection[FencedServer]) -> None:
    for one in fenced:
        _fits(state.net.fence, one.server)


def _restore_drained(state: State, drained: Collection[DrainedServer]) -> None:
    state.net.drained.update(one.server for one in drained if one.server in state.net.servers)


def _restore_left_ports(state: State, left: Collection[LeftPort]) -> None:
    state.left_ports.update((one.port_id, one) for one in left)


def _restore_anchors(state: State, anchors: Collection[ClockAnchor]) -> None:
    state.anchors.update((CLOCK, anchor) for anchor in anchors)


def _restore_images(state: State, images: Collection[Image]) -> None:
    state.images.update((image.name, image) for image in images)


def _restore_entities(state: State, entities: Collection[Entity]) -> None:
    state.entities.update((one.name, one) for one in entities)


def _restore_placements(state: State, placements: Collection[Placement]) -> None:
    """In the order of their matches: the oldest is forgotten first."""
    found = sorted(placements, key=lambda one: match_number(one.match))
    state.placements.update((one.migration, one) for one in found)


def match_number(id: str) -> int:
    """12 of "match-12"."""
    return int(id.removeprefix("match-"))


def _fits(change: Callable[[T], Touched], value: T) -> None:
    try:
        change(value)
    except ModelError as error:
        log.warning("restore.does_not_fit", error=str(error))


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of state that outlives the controller."""

    type: type[Any]
    table: str
    """The database's table of it (store.schema has the columns)."""
    key: str
    """The column that names a row; no two rows have the same there."""
    key_of: Callable[[Any], str]
    stored: str
    """The field of Stored."""
    held: str
    """Where it is held while the controller runs: the field of Network or State."""
    restore: Callable[[State, Collection[Any]], None]


KINDS: tuple[Kind, ...] = (
    Kind(Vrf, "Vrf", "id", lambda v: v.id, "vrfs", "Network.vrfs", _restore_vrfs),
    Kind(Vnet, "Vnet", "id", lambda v: v.id, "vnets", "Network.vnets", _restore_vnets),
    Kind(Subnet, "Subnet", "id", lambda v: v.id, "subnets", "Network.subnets", _restore_subnets),
    Kind(Server, "Server", "id", lambda v: v.id, "servers", "Network.servers", _restore_servers),
    Kind(
        ServerLocation, "ServerLocation", "server", lambda v: v.server,
        "locations", "Network.detected", _restore_locations,
    ),
    Kind(VM, "VM", "id", lambda v: v.id, "vms", "Network.vms", _restore_vms),
    Kind(
        Assignment, "Assignment", "ip", lambda v: str(v.key),
        "assignments", "Network.assignments", _restore_assignments,
    ),
    Kind(
        EndedLease, "EndedLease", "mac", lambda v: v.lease.mac,
        "ended_leases", "State.ended_leases", _restore_ended_leases,
    ),
    Kind(
        PendingRenewal, "PendingRenewal", "vm", lambda v: v.nic,
        "pending_renewals", "State.pending_renewals", _restore_pending_renewals,
    ),
    Kind(
        Migration, "Migration", "id", lambda v: v.id,
        "migrations", "State.migrations", _restore_migrations,
    ),
    Kind(
        FencedServer, "FencedServer", "server", lambda v: v.server,
        "fenced", "Network.fenced", _restore_fenced,
    ),
    Kind(
        DrainedServer, "DrainedServer", "server", lambda v: v.server,
        "drained", "Network.drained", _restore_drained,
    ),
    Kind(
        LeftPort, "LeftPort", "port_id", lambda v: v.port_id,
        "left_ports", "State.left_ports", _restore_left_ports,
    ),
    Kind(ClockAnchor, "ClockAnchor", "name", lambda v: CLOCK, "anchors", "State.anchors", _restore_anchors),
    Kind(Image, "Image", "name", lambda v: v.name, "images", "State.images", _restore_images),
    Kind(Entity, "Entity", "name", lambda v: v.name, "entities", "State.entities", _restore_entities),
    Kind(
        Placement, "Placement", "migration", lambda v: v.migration,
        "placements", "State.placements", _restore_placements,
    ),
)  # fmt: skip
"""In the order in which they are brought back: each needs those before it."""

CONFIGURED = ("Network.switches", "Network.gateway_groups")
"""Containers that are filled from the configuration, which every controller reads."""

DERIVED: Mapping[str, tuple[str, ...]] = {
    "computed anew from the rest": (
        "Compiler._of", "Compiler._owners", "Compiler.programs", "Context._after_install",
        "Controller._by_dpid", "History._last",
        "History._recent", "Installer.switches",
    ),
    "switches report it when they connect": (
        "Inventory.rejected_ports", "Knowledge.edges_read", "Network.vm_ports", "ReportedPorts._ports",
        "ServerLocations._leaves", "SwitchProgrammer.held", "SwitchProgrammer.mirror",
        "SwitchProgrammer.pending",
    ),
    "agents and hypervisors report it again": (
        "AgentRejections._counts", "Agents._streams", "ExternalMigrations._pending",
        "ExternalMigrations._under_libvirt",
        "ImageHolders._faults", "ImageHolders._reports", "ResourceManager._reports", "ResourceManager._sizes",
        "State.vm_states",
    ),
    "work under way, which is begun anew where KINDS has what it was for": (
        "Context._tasks", "Context.not_installed", "ImageHolders._ordered", "Installer._waiting",
        "Knowledge.kept", "MigrationOrchestrator._active", "MobilityManager._matches",
        "MobilityManager._silent",
        "PowerControl._to_stop", "Renewals._by_xid", "Renewals._due", "Renewals._ended", "Renewals.orders",
        "ServerLocations._asked", "ServerLocations._away", "ServerLocations._last",
        "ServerLocations.pending_verification", "Questions._of", "Questions6._of",
        "Snooper._announced", "Snooper6._announced",
        "SwitchProgrammer._rejected", "SwitchProgrammer._resend_at", "Taking._waits",
    ),
    "lost, and learned or counted from nothing": (
        "ArpResponder._unknown", "Auditor._last", "Auditor._reading", "Auditor._slow",
        "ClientWatch._since",
        "Context._frames_rejected", "Context.counters", "Controller._counting", "ImageHolders._scrubbed",
        "Controller._spoofed_counts", "Controller.spoofed_frames", "EventBus._listeners",
        "EventBus._ring", "OwnAddresses._taken", "PowerControl._crashes",
        "Shares._left", "Snooper._declined", "Snooper._disagreements", "Snooper6._declined",
        "Snooper.identifiers", "SpoofingLog._rows", "_Rare._put_off", "_Rare._seen", "_Rare._told",
        "_Rare._waiting",
    ),
}  # fmt: skip
"""Every other container of the controller's objects, by where its content comes from after a restart. The
private ones of Network are indexes, kept by the methods that keep the rest."""

KIND_OF: Mapping[type[Any], Kind] = {kind.type: kind for kind in KINDS}


def restore(state: State, stored: Stored) -> None:
    """Bring back what the database holds; what no longer fits the configuration is left out, and logged."""
    for fault in stored.faults:
        log.warning("restore.unreadable_row", fault=fault)
    for kind in KINDS:
        kind.restore(state, getattr(stored, kind.stored))
