"""What a controller must know to take over: every kind of state that outlives it, in one list, KINDS.

The same list serves a restart (the database has a table for each kind, and `restore` brings its values back)
and a standby controller, which would have to follow exactly these. What is not in it is either configuration
or in DERIVED, which says of each where it comes from instead. A test holds the lists against the attributes
that the controller's objects really have.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from retinue.controller import restoring
from retinue.controller.state import (
    CLOCK,
    AgentAt,
    DrainedServer,
    EndedLease,
    FencedServer,
    Image,
    LaidLink,
    LeftPort,
    LostLink,
    LostRouter,
    PendingRenewal,
    RemovedGuest,
    ServerLocation,
    State,
    Storable,
    Stored,
    TakenOut,
    UplinkInUse,
    UplinkPlace,
    Word,
)
from retinue.core.migration import Migration
from retinue.core.model import VM, Assignment, GatewayGroup, Server, Subnet, Switch, Vnet, Vrf
from retinue.core.model.domains import HomeAnchor
from retinue.core.model.pairs import AddressPair
from retinue.core.model.storage import FcLogin
from retinue.core.placement import Entity, Placement
from retinue.core.placement.bookings import Booking
from retinue.steady_clock import ClockAnchor

log = structlog.get_logger()


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
    Kind(
        TakenOut, "TakenOut", "what", lambda v: v.what, "taken_out", "State.taken_out", restoring.taken_out
    ),
    Kind(
        GatewayGroup, "GatewayGroup", "id", lambda v: v.id,
        "gateway_groups", "Network.gateway_groups", restoring.gateway_groups,
    ),
    Kind(Switch, "Switch", "id", lambda v: v.id, "switches", "Network.switches", restoring.switches),
    Kind(
        LaidLink, "LaidLink", "lower", lambda v: str(v.link.lower),
        "laid_links", "Network.idle_links", restoring.laid_links,
    ),
    Kind(Vrf, "Vrf", "id", lambda v: v.id, "vrfs", "Network.vrfs", restoring.vrfs),
    Kind(Vnet, "Vnet", "id", lambda v: v.id, "vnets", "Network.vnets", restoring.vnets),
    Kind(Subnet, "Subnet", "id", lambda v: v.id, "subnets", "Network.subnets", restoring.subnets),
    Kind(Server, "Server", "id", lambda v: v.id, "servers", "Network.servers", restoring.servers),
    Kind(
        ServerLocation, "ServerLocation", "server", lambda v: v.server,
        "locations", "Network.detected", restoring.locations,
    ),
    Kind(
        UplinkPlace, "UplinkPlace", "uplink", lambda v: str(v.uplink),
        "uplink_places", "Network.uplink_places", restoring.uplink_places,
    ),
    Kind(
        UplinkInUse, "UplinkInUse", "edge", lambda v: v.edge,
        "uplinks_in_use", "Network.in_use", restoring.uplinks_in_use,
    ),
    Kind(VM, "VM", "id", lambda v: v.id, "vms", "Network.vms", restoring.vms),
    Kind(
        Assignment, "Assignment", "ip", lambda v: str(v.key),
        "assignments", "Network.assignments", restoring.assignments,
    ),
    Kind(
        FcLogin, "FcLogin", "mac", lambda v: v.mac,
        "fc_logins", "Network.fc_logins", restoring.fc_logins,
    ),
    Kind(
        EndedLease, "EndedLease", "mac", lambda v: v.lease.mac,
        "ended_leases", "State.ended_leases", restoring.ended_leases,
    ),
    Kind(
        PendingRenewal, "PendingRenewal", "vm", lambda v: v.nic,
        "pending_renewals", "State.pending_renewals", restoring.pending_renewals,
    ),
    Kind(
        Migration, "Migration", "id", lambda v: v.id,
        "migrations", "State.migrations", restoring.migrations,
    ),
    Kind(
        FencedServer, "FencedServer", "server", lambda v: v.server,
        "fenced", "Network.fenced", restoring.fenced,
    ),
    Kind(
        DrainedServer, "DrainedServer", "server", lambda v: v.server,
        "drained", "Network.drained", restoring.drained,
    ),
    Kind(
        LostRouter, "LostRouter", "server", lambda v: v.server,
        "lost_routers", "Network.lost_routers", restoring.lost_routers,
    ),
    Kind(
        LostLink, "LostLink", "lower", lambda v: str(v.lower),
        "lost_links", "Network.lost_links", restoring.lost_links,
    ),
    Kind(
        AgentAt, "AgentAt", "server", lambda v: v.server,
        "with_agent", "State.with_agent", restoring.with_agent,
    ),
    Kind(
        LeftPort, "LeftPort", "port_id", lambda v: v.port_id,
        "left_ports", "State.left_ports", restoring.left_ports,
    ),
    Kind(
        RemovedGuest, "RemovedGuest", "key", lambda v: v.key,
        "removed_guests", "State.removed_guests", restoring.removed_guests,
    ),
    Kind(ClockAnchor, "ClockAnchor", "name", lambda v: CLOCK, "anchors", "State.anchors", restoring.anchors),
    Kind(Image, "Image", "name", lambda v: v.name, "images", "State.images", restoring.images),
    Kind(Entity, "Entity", "name", lambda v: v.name, "entities", "State.entities", restoring.entities),
    Kind(
        Placement, "Placement", "migration", lambda v: v.migration,
        "placements", "State.placements", restoring.placements,
    ),
    Kind(AddressPair, "AddressPair", "mac", lambda v: v.mac, "pairs", "State.pairs", restoring.pairs),
    Kind(Word, "Word", "about", lambda v: v.about, "words", "State.words", restoring.words),
    Kind(Booking, "Booking", "vm", lambda v: v.vm, "bookings", "State.bookings", restoring.bookings),
    Kind(
        HomeAnchor, "HomeAnchor", "vm", lambda v: v.vm,
        "home_anchors", "State.home_anchors", restoring.home_anchors,
    ),
)  # fmt: skip
"""In the order in which they are brought back: each needs those before it."""

CONFIGURED = ("Network.peers", "Saying.doors", "SharedImages.authorities")
"""Containers that are filled from the configuration, which every controller reads."""

DERIVED: Mapping[str, tuple[str, ...]] = {
    "computed anew from the rest": (
        "Network.unanchored",
        "Compiler._clashed", "Compiler._owners", "Compiler._prefixes", "Compiler._shared",
        "Contributions._free",
        "Contributions._index", "Contributions._numbers", "Contributions._owners", "Contributions._packed",
        "Contributions._recent", "Context._after_install", "History._last",
        "History._recent", "Installer.switches", "Network.by_dpid", "Network.routers_to",
    ),
    "switches report it when they connect": (
        "VMPorts.rejected", "Knowledge.edges_read", "Network.untold", "Network.vm_ports",
        "ReportedPorts._ports",
        "Held._of", "Held.keys", "ServerLocations._leaves",
        "SwitchProgrammer.pending", "Mirror._differs", "Lacking._lacks",
    ),
    "peers show or say it again": ("CertificateEnds._shown", "Unanswered._asked"),
    "agents and hypervisors report it again": (
        "AgentRejections._counts", "Agents._streams", "Agents._releases", "ExternalMigrations._pending",
        "ExternalMigrations._under_libvirt", "ExternalMigrations._vlan_filters",
        "ExternalMigrations._without_checksums",
        "ImageHolders._faults", "ImageHolders._held", "ImageHolders._reports",
        "ResourceManager._reports", "ResourceManager._sizes",
        "State.vm_states", "VMReports._held",
    ),
    "work under way, which is begun anew where KINDS has what it was for": (
        "AnnouncedRenewals._of", "Context._tasks", "Context.not_installed", "FabricInventory._leaving",
        "FabricInventory._leaving_servers", "Hearing._booking",
        "ImageHolders._ordered",
        "Installer._waiting", "OldWays._waiting", "Orders._waiting", "Room._waiting", "Turns._under_way",
        "Turns._waiting",
        "Bookings._of_migrations", "FipRules._asked", "Knowledge.kept", "MigrationOrchestrator._active",
        "MobilityManager._matches", "MobilityManager._silent",
        "PowerControl._to_stop", "Renewals._by_xid", "Renewals._due", "Renewals._ended", "Renewals.orders",
        "ServerLocations._asked", "ServerLocations._away", "ServerLocations._last",
        "ServerLocations.pending_verification", "Questions._asking", "Questions._of",
        "Questions6._asking", "Questions6._of",
        "Hearing._marks", "Hearing._preparing", "Matching._answering", "Removals._telling",
        "Saying._diverting", "Saying._last", "SharedNames._answering",
        "Saying._told", "Saying._unmarked", "Saying.diverted",
        "SwitchProgrammer._rejected", "SwitchProgrammer._resend_at", "Taking._waits",
    ),
    "lost, and learned or counted from nothing": (
        "Anchors._before", "Anchors._counted", "Anchors._next", "Anchors._reading",
        "ArpResponder._unknown", "Auditor._last", "Auditor._reading", "Auditor._slow",
        "ClientWatch._since", "FipPath._heard",
        "Context._frames_rejected", "Context.counters", "Durations.ended", "Histogram.counts",
        "ImageHolders._scrubbed", "LinkProbes._answered", "LinkProbes._echoes", "LinkProbes._links",
        "LinkProbes._probes", "MacChanges._changed", "RouterWatch._routers", "SharedImages._heard",
        "Uplinks._choices", "Uplinks._sent",
        "SwitchRows._reported", "VMReports._buckets", "VdpPath._joined",
        "SpoofCounts._asking", "SpoofCounts._before", "SpoofCounts._sums", "SpoofCounts._turns",
        "SpoofCounts.frames", "EventBus._agents", "EventBus._by_type",
        "EventBus._listeners", "EventBus._of_all", "EventBus._unhurried",
        "EventRing._names", "EventRing._rows", "FloodCounts._before", "FloodCounts._sums",
        "OwnAddresses._taken",
        "HeldPackets._of", "PowerControl._crashes",
        "SharedNames._heard", "SharedNames._not_heard",
        "Shares._left", "Snooper._declined", "Snooper._disagreements", "Snooper6._declined",
        "Snooper.identifiers", "SpoofingLog._ports", "_Rare._put_off", "_Rare._seen", "_Rare._told",
        "_Rare._waiting",
    ),
}  # fmt: skip
"""Every other container of the controller's objects, by where its content comes from after a restart. The
private ones of Network are indexes, kept by the methods that keep the rest."""

KIND_OF: Mapping[type[Any], Kind] = {kind.type: kind for kind in KINDS}


def restore(state: State, stored: Stored) -> tuple[Storable, ...]:
    """Bring back what the database holds; what no longer fits the configuration is left out, and logged.

    Returns what nobody needs any more (`restoring.places_gone`).
    """
    for fault in stored.faults:
        log.warning("restore.unreadable_row", fault=fault)
    subnets, servers = restoring.set_aside(state.net, stored)
    for kind in KINDS:
        kind.restore(state, getattr(stored, kind.stored))
        # What the database has instead may not fit.
        for subnet in subnets if kind.type is Subnet else ():
            if subnet.id not in state.net.subnets:
                restoring.fits(state.net.add_subnet, subnet)
        for server in servers if kind.type is Server else ():
            if server.id not in state.net.servers:
                restoring.fits(state.net.put_server, server)
    for vnet in state.net.vnets.values():
        if vnet.mtu > state.net.mtu:
            log.warning("vnet.mtu_too_large", vnet=vnet.id, mtu=vnet.mtu, counts_as=state.net.mtu)
    return restoring.places_gone(state, stored)
