"""How each kind of state is brought back after a restart, by the name of its field in `Stored`.

What no longer fits the configuration is left out, and logged.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TypeVar

import structlog

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
    match_number,
)
from retinue.core.migration import Migration, on_known_host, placement
from retinue.core.model import (
    VM,
    Assignment,
    Flood,
    GatewayGroup,
    ModelError,
    Network,
    Server,
    Subnet,
    Switch,
    Vnet,
    Vrf,
)
from retinue.core.model.domains import HomeAnchor
from retinue.core.model.network import Touched
from retinue.core.model.pairs import AddressPair
from retinue.core.model.storage import FcLogin
from retinue.core.model.vrfs import free_tag
from retinue.core.placement import Entity, Placement
from retinue.core.placement.bookings import Booking
from retinue.steady_clock import ClockAnchor

log = structlog.get_logger()

T = TypeVar("T")


def gateway_groups(state: State, groups: Collection[GatewayGroup]) -> None:
    for group in groups:
        fits(state.net.put_gateway_group, group)


_TAKEN_IN_ORDER = ("server", "link", "switch")
"""What may be taken out before what: nothing is at a switch that goes."""


def taken_out(state: State, taken: Collection[TakenOut]) -> None:
    """What the configuration file has still, though it was removed by request, is left out once more."""
    net, there = state.net, [one.what for one in taken if one.what in state.net.configured]
    for what in sorted(there, key=lambda what: (_TAKEN_IN_ORDER.index(what.split(" ")[0]), what)):
        try:
            _take_out(net, what)
        except ModelError as error:
            log.warning("restore.does_not_fit", error=str(error))  # The file has something new there.
            continue
        state.taken_out.add(what)
        log.warning(
            "restore.left_out", what=what, why="it was removed by request; remove it in the file, too"
        )


def _take_out(net: Network, what: str) -> Touched:
    kind, _, id = what.partition(" ")
    if kind == "server":
        if (peer := net.peer_at(id)) is not None:
            raise ModelError(f"server {id} is in use by domain {peer.id}")
        return net.remove_server(id)
    if kind == "switch":
        return net.remove_switch(id)
    lower = next(link.lower for link in net.links if str(link) == id)
    net.set_idle(lower, idle=True)
    return net.remove_link(lower)


def switches(state: State, switches: Collection[Switch]) -> None:
    """Those of the database take the place of the configured ones of the same id.

    Those lose their datapath ids first, all of them: one may be another switch's now.
    """
    net = state.net
    for known in [net.switches[switch.id] for switch in switches if switch.id in net.switches]:
        net.by_dpid.pop(known.dpid, None)
    for switch in switches:
        fits(net.put_switch, switch)
    for known in [net.switches[switch.id] for switch in switches if switch.id in net.switches]:
        net.by_dpid.setdefault(known.dpid, known.id)


def laid_links(state: State, links: Collection[LaidLink]) -> None:
    """A link that stands in the configuration file by now is the file's; where it is the same that was given,
    and was not used yet, it is idle still."""
    net = state.net
    for one in links:
        known = net.link_at(one.link.lower)
        if known is None:
            fits(lambda one: net.put_link(one.link, idle=one.idle), one)
        elif known == one.link and one.idle:
            net.set_idle(known.lower, idle=True)


def vrfs(state: State, vrfs: Collection[Vrf]) -> None:
    """Where the file has given its tag to another, a VRF gets one that is free: nobody outside sees it."""
    stored = {vrf.tag for vrf in vrfs}
    for vrf in vrfs:
        taken = {known.tag for known in state.net.vrfs.values() if known.id != vrf.id}
        if vrf.tag in taken and vrf.id not in state.net.vrfs:
            vrf = replace(vrf, tag=free_tag(taken | stored))
            log.warning("state.vrf_has_another_tag", vrf=vrf.id, tag=vrf.tag)
        fits(state.net.put_vrf, vrf)


def vnets(state: State, vnets: Collection[Vnet]) -> None:
    """Vnets of the database take the place of the configured ones of the same id.

    Those lose their VLANs first, all of them: one may be another vnet's now. Flooding needs one, and goes.
    """
    net = state.net
    configured = [net.vnets[vnet.id] for vnet in vnets if vnet.id in net.vnets]
    for vnet in configured:
        fits(net.put_vnet, replace(vnet, vlan=0, flood=Flood.DROPPED))
    for vnet in vnets:
        fits(net.put_vnet, vnet)
    stored = {vnet.id: vnet for vnet in vnets}
    for vnet in configured:
        if net.vnets[vnet.id] != stored[vnet.id]:
            fits(net.put_vnet, vnet)


def subnets(state: State, subnets: Collection[Subnet]) -> None:
    """Those of the database take the place of the configured ones of the same id."""
    for subnet in subnets:
        fits(state.net.add_subnet, subnet)


def servers(state: State, servers: Collection[Server]) -> None:
    """Those of the database take the place of the configured ones of the same id, which `set_aside` has taken
    out."""
    for server in servers:
        fits(state.net.put_server, server)


def locations(state: State, locations: Collection[ServerLocation]) -> None:
    for location in locations:
        if location.server in state.net.servers and location.at.switch in state.net.switches:
            state.net.detect(location.server, location.at)


def vms(state: State, vms: Collection[VM]) -> None:
    for vm in vms:
        fits(state.net.put_vm, on_known_host(vm, state.net.servers))


def assignments(state: State, assignments: Collection[Assignment]) -> None:
    for assignment in assignments:
        fits(state.net.assign, assignment)


def ended_leases(state: State, ended: Collection[EndedLease]) -> None:
    state.ended_leases.update((one.lease.mac, one.lease) for one in ended)


def pending_renewals(state: State, pending: Collection[PendingRenewal]) -> None:
    state.pending_renewals.update(one.nic for one in pending)


def migrations(state: State, migrations: Collection[Migration]) -> None:
    """A VM's row has the server that its traffic is delivered at; how it is spread follows from its
    migration."""
    for migration in migrations:
        state.migrations[migration.id] = migration
        vm = state.net.vms.get(migration.vm)
        if vm is not None and not migration.state.ended:
            fits(state.net.put_vm, on_known_host(placement(vm, migration), state.net.servers))


def fenced(state: State, fenced: Collection[FencedServer]) -> None:
    for one in fenced:
        fits(state.net.fence, one.server)


def lost_routers(state: State, lost: Collection[LostRouter]) -> None:
    for one in lost:
        if one.server in state.net.servers:
            state.net.lose_router(one.server, one.reason)


def lost_links(state: State, lost: Collection[LostLink]) -> None:
    for one in lost:
        fits(lambda one: state.net.lose_link(one.lower, one.reason), one)


def uplink_places(state: State, found: Collection[UplinkPlace]) -> None:
    for one in found:
        fits(lambda one: state.net.find_uplink(one.uplink, one.at), one)


def uplinks_in_use(state: State, used: Collection[UplinkInUse]) -> None:
    for one in used:
        fits(lambda one: state.net.use_uplink(one.edge, one.uplink), one)


def drained(state: State, drained: Collection[DrainedServer]) -> None:
    state.net.drained.update(one.server for one in drained if one.server in state.net.servers)


def with_agent(state: State, with_agent: Collection[AgentAt]) -> None:
    state.with_agent.update(one.server for one in with_agent if one.server in state.net.servers)


def fc_logins(state: State, logins: Collection[FcLogin]) -> None:
    for login in logins:
        fits(state.net.log_in, login)


def left_ports(state: State, left: Collection[LeftPort]) -> None:
    state.left_ports.update((one.port_id, one) for one in left)


def removed_guests(state: State, removed: Collection[RemovedGuest]) -> None:
    state.removed_guests.update((one.key, one) for one in removed)


def anchors(state: State, anchors: Collection[ClockAnchor]) -> None:
    state.anchors.update((CLOCK, anchor) for anchor in anchors)


def images(state: State, images: Collection[Image]) -> None:
    state.images.update((image.name, image) for image in images)


def entities(state: State, entities: Collection[Entity]) -> None:
    state.entities.update((one.name, one) for one in entities)


def placements(state: State, placements: Collection[Placement]) -> None:
    """In the order of their matches: the oldest is forgotten first."""
    found = sorted(placements, key=lambda one: match_number(one.match))
    state.placements.update((one.migration, one) for one in found)


def pairs(state: State, pairs: Collection[AddressPair]) -> None:
    state.pairs.update((pair.mac, pair) for pair in pairs)


def words(state: State, words: Collection[Word]) -> None:
    state.words.update((word.about, word) for word in words)


def bookings(state: State, bookings: Collection[Booking]) -> None:
    state.bookings.update((one.vm, one) for one in bookings if one.server in state.net.servers)


def home_anchors(state: State, anchors: Collection[HomeAnchor]) -> None:
    for one in anchors:
        if one.vm in state.net.vms:
            state.home_anchors[one.vm] = one
            if one.ended is not None:
                state.net.end_anchor(one.vm)


def places_gone(state: State, stored: Stored) -> tuple[Storable, ...]:
    """Stored places, and what was known of them, that are not there any more: of servers, edges, uplinks and
    links which the configuration has no longer. They are found again if they come back. And what was to be
    left out of it, and is in it no longer; and anchors of VMs that are no more."""
    net = state.net
    return (
        *(one for one in stored.locations if one.server not in net.servers),
        *(one for one in stored.locations if one.server in net.servers and one.at.switch not in net.switches),
        *(one for one in stored.uplink_places if net.uplink_places.get(one.uplink) != one.at),
        *(one for one in stored.uplinks_in_use if net.in_use.get(one.edge) != one.uplink),
        *(one for one in stored.lost_links if one.lower not in net.lost_links),
        *(one for one in stored.taken_out if one.what not in net.configured),
        *(one for one in stored.home_anchors if one.vm not in net.vms),
    )


def set_aside(net: Network, stored: Stored) -> tuple[list[Subnet], list[Server]]:
    """Takes out what is configured, and whose place the database's takes, before anything is brought back.

    A subnet's vnet may be in another VRF by now, where the subnet never was; a server may have left its edge,
    which was changed then, or its port, which is a link's by now; and its MAC may be another server's.
    """
    subnets = [net.subnets[one.id] for one in stored.subnets if one.id in net.subnets]
    servers = [net.servers[one.id] for one in stored.servers if one.id in net.servers]
    for subnet in subnets:
        net.put_back_subnet(subnet.id, None)
    for server in servers:
        net.remove_server(server.id)
    return subnets, servers


def fits(change: Callable[[T], Touched], value: T) -> None:
    try:
        change(value)
    except ModelError as error:
        log.warning("restore.does_not_fit", error=str(error))
