"""The underlay that is ours: leaves, spines, and cores between pods of them, forward IP to a server's MAC.

A server is reached by its MAC: its leaf knows the port, every spine of its pod the leaf, every core the pod.
In a fabric without cores there is one pod, and no spine leads anywhere but down.

A leaf hands what a spine has sent it to the server that the spine has named, whether it knows the VM or not,
and a spine sends a packet back to the leaf where it came from, if that is the server's. So it arrives
whatever each switch on its way knows already (tests/property/test_late_caches.py).

Switches are told of a change in this order: nearest to the new location first. A source leaf that points up
while a spine still points down is a detour; an edge that does not know the VM is a hole.
So: the new location's edge and leaf, then the spines of its pod, then the cores, then the other spines, then
the other leaves, then the other edges. A core that points at a pod whose spines do not know the VM yet is a
hole, too, and so is a spine that has given it up for the cores before they point elsewhere. Each stage is
confirmed by every switch in it before the next begins. A removal has no new location and starts at the
cores.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from retinue.core.model import IP, Link, Mac, Prefix, Role, Server, Subinterface, Switch
from retinue.core.model.families import in_use
from retinue.core.model.links import links_above, links_between, links_up
from retinue.core.model.network import Network, Owner
from retinue.core.model.uplinks import has_several, open_links
from retinue.core.model.ways import ways_by, wider_ways
from retinue.core.pipeline import vrfs
from retinue.core.pipeline.cookies import Reason, cookie, for_reason
from retinue.core.pipeline.entry import (
    CONTROLLER,
    Action,
    DecTtl,
    EntriesBySwitch,
    Field,
    Flow,
    FlowsBySwitch,
    Group,
    Match,
    Meter,
    Output,
    PortNo,
    SetField,
    ToGroup,
    match,
    set_field,
)
from retinue.core.pipeline.matches import (
    NO_TAG,
    ip_match,
    ip_types,
)
from retinue.core.pipeline.meters import LeafMeter
from retinue.core.pipeline.priorities import LeafAdmit, Route, Servers
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay import fabric_prefixes, subinterfaces
from retinue.core.pipeline.underlay.base import Near
from retinue.core.pipeline.underlay.fabric_flooding import flood_ways
from retinue.core.pipeline.underlay.fabric_services import service_sources
from retinue.core.pipeline.underlay.fabric_storage import storage_ways
from retinue.core.pipeline.underlay.fabric_switches import (
    UP_GROUP,
    leaf_flows,
    ports_up,
    spine_flows,
    ways_down,
)
from retinue.core.pipeline.underlay.fabric_uplinks import Attached, attached, leaves, to_server


@dataclass(frozen=True, slots=True)
class LeafSpine:
    """A fabric of two tiers or three, as an `Underlay` (see there what each method is for)."""

    net: Network

    # ---- what edge switches write into frames, and know them by ----

    def reach(self, server: Server) -> tuple[SetField, ...]:
        return (set_field(Field.ETH_DST, server.mac),)

    def brought_to(self, server: Server, ip_type: int) -> Mapping[str, int | str]:
        return {"vlan_vid": NO_TAG, "eth_type": ip_type, "eth_dst": server.mac}

    @property
    def copies(self) -> bool:
        return True

    @property
    def asks_servers(self) -> bool:
        return False

    def copy_source(self, server: Server) -> Mac:
        return server.mac

    # ---- entries ----

    def switch_flows(self, switch: Switch) -> Iterable[Flow | Group | Meter]:
        return leaf_flows(self.net, switch) if switch.role is Role.LEAF else spine_flows(self.net, switch)

    def server_flows(self, server: Server) -> FlowsBySwitch:
        places, at = attached(self.net, server.id), self.attachment(server.id)
        if not places:
            return self._missing(server)
        mark = cookie(Reason.FORWARD, Owner("server", server.id))
        to_server = match(eth_dst=server.mac)
        found = {place.leaf: list(self._at_leaf(server, place, mark)) for place in places}
        for spine, down in ways_down(self.net, at[0]) if at is not None else ():
            # A switch sends nothing back where it came from unless it is told so by name. There a packet
            # comes from while leaf and spine follow a migration: the one has given the VM up, and the other
            # not yet, whatever order they were told in, for their flow caches follow by themselves.
            back = match(in_port=down) + to_server
            found[spine] = [
                Flow(Table.SERVERS, Servers.SERVER, to_server, (Output(down),), cookie=mark),
                Flow(Table.SERVERS, Servers.HAIRPIN, back, (Output(PortNo.IN_PORT),), cookie=mark),
            ]
        if server.address is not None and in_use(self.net, server.address.version):
            _add(found, self.host_routes(server, server.address, mark))
        for prefix in (prefix for prefix in ways_by(self.net, server.id) if in_use(self.net, prefix.version)):
            priority, to_prefix = Route.PREFIX + prefix.prefixlen, ip_match(dst=prefix)
            _add(found, self._routes(server, priority, to_prefix, mark))
            for switch in self._would_go_wider(prefix, server.id):
                flow = Flow(Table.ROUTE, priority, to_prefix, self._up(switch), cookie=mark)
                found.setdefault(switch, []).append(flow)
        for one in server.subinterfaces:
            if at is not None:
                _add(found, self._subinterface_flows(server, one, at, mark))
        return found

    def prefix_flows(self, prefix: Prefix, vrf: str) -> FlowsBySwitch:
        return fabric_prefixes.prefix_flows(self.net, prefix, vrf, self._up, self.attachment)

    def _at_leaf(self, server: Server, at: Attached, mark: int) -> Iterator[Flow]:
        """At its port: what goes to it, and as whom it may send."""
        yield from to_server(self.net, server, at, mark)
        yield from service_sources(self.net, server, at.port)
        yield from subinterfaces.leaf_flows(self.net, server, at.port)
        if server.edge and self.net.has_vrfs():
            # Of servers' ports only an edge's may bring a tag: it has put it there itself.
            for mac, kind in product(self.net.gateway_macs, ip_types(self.net)):
                from_edge = match(in_port=at.port, vlan_vid=NO_TAG, eth_type=kind, eth_dst=mac)
                admitted = Flow(Table.ADMIT, LeafAdmit.TO_GATEWAY, from_edge, goto=Table.ROUTE, cookie=mark)
                yield vrfs.with_tag(admitted)
        if server.id in self.net.fenced:
            shut_out = cookie(Reason.QUIET, Owner("server", server.id))
            yield Flow(Table.ADMIT, LeafAdmit.FENCED, match(in_port=at.port), cookie=shut_out)

    def _subinterface_flows(
        self, server: Server, one: Subinterface, at: tuple[str, int], mark: int
    ) -> FlowsBySwitch:
        """The ways to a router in another VRF than the default one (see `subinterfaces`)."""
        leaf, port = at
        found: FlowsBySwitch = {}
        ways = ways_by(self.net, server.id, one.vrf)
        for to, priority in subinterfaces.destinations(self.net, one, ways):
            routes = self._routes(server, priority, ip_match(dst=to), mark)
            routes[leaf] = list(subinterfaces.leaving(routes[leaf], port, one.vlan))
            for switch in self._switches_with_links_up() - routes.keys():
                up = Flow(Table.ROUTE, priority, ip_match(dst=to), self._up(switch), cookie=mark)
                routes[switch] = [up]
            _add(found, vrfs.on_each(routes, self.net.vrfs[one.vrf].tag))
        return found

    def _switches_with_links_up(self) -> set[str]:
        lower = {link.lower.switch for link in self.net.links}
        return {switch for switch in lower if ports_up(self.net, switch)}

    def _would_go_wider(self, prefix: Prefix, router: str) -> Iterator[str]:
        """Switches that know a way to a wider prefix, and not the router to this one: they send it up."""
        knowing = self._with_routes_to(router)
        wider = {
            switch for way in wider_ways(self.net, prefix, router) for switch in self._with_routes_to(way)
        }
        return (switch for switch in sorted(wider - knowing) if ports_up(self.net, switch))

    def _with_routes_to(self, server: str) -> set[str]:
        at = leaves(attached(self.net, server))
        return {*at, *(above for leaf in at for above, _ in ways_down(self.net, leaf))}

    def _up(self, switch: str) -> tuple[Action, ...]:
        """A leaf is the one hop of the fabric."""
        is_leaf = self.net.switches[switch].role is Role.LEAF
        hop = (DecTtl(), set_field(Field.ETH_SRC, self.net.gateway_mac)) if is_leaf else ()
        return (*hop, ToGroup(UP_GROUP))

    def _missing(self, server: Server) -> FlowsBySwitch:
        """Until a server is found, any frame of its own tells where it is: LLDP, its first IP packet."""
        if self.net.location(server.id) is not None or has_several(self.net, server.id):
            return {}  # One with several uplinks is found by LLDP.
        found = Flow(
            Table.ADMIT, LeafAdmit.MISSING_SERVER, match(vlan_vid=NO_TAG, eth_src=server.mac), (CONTROLLER,),
            meter=LeafMeter.ARP, cookie=cookie(Reason.MISSING_SERVER, Owner("server", server.id)),
        )  # fmt: skip
        return {leaf.id: [found] for leaf in self.net.with_role(Role.LEAF) if not leaf.given}

    def host_routes(self, server: Server, ip: IP | Prefix, mark: int) -> FlowsBySwitch:
        """The leaf to the server's port, each spine to the leaf; and back to the server's port (hairpin).

        Until it is known where the server is, each leaf asks the controller, which holds the packet.
        """
        to_ip = ip_match(dst=ip)
        if self.net.location(server.id) is None:
            held = Flow(
                Table.ROUTE, Route.HOST, to_ip, (CONTROLLER,),
                meter=LeafMeter.UNPLACED, cookie=for_reason(mark, Reason.UNPLACED),
            )  # fmt: skip
            return {leaf.id: [held] for leaf in self.net.with_role(Role.LEAF) if not leaf.router}
        found = self._routes(server, Route.HOST, to_ip, mark)
        at = self.attachment(server.id)
        if at is not None and not has_several(self.net, server.id):
            # Two VMs on one server with a stale ARP cache talk through the leaf: back out of the port
            # the frame came in by, which a switch does only when told so by name.
            leaf, port = at
            came_from_there = match(in_port=port) + to_ip
            back = (*self._rewrite(server), Output(PortNo.IN_PORT))
            found[leaf].append(Flow(Table.ROUTE, Route.HAIRPIN, came_from_there, back, cookie=mark))
        return found

    def flood_ways(self, servers: Collection[Server], vlan: int, group: int, mark: int) -> EntriesBySwitch:
        # By each of several uplinks comes a copy, and the edge takes that by the one in use.
        there = [at for server in servers for at in attached(self.net, server.id) if at.is_open]
        return flood_ways(self.net, ((at.leaf, at.port) for at in there), vlan, group, mark)

    def copy_ways(self, server: Server, to: Server, ip: IP | Prefix, mark: int) -> FlowsBySwitch:
        return {
            at.leaf: [_let_through(ip_match(dst=ip, in_port=at.port, vlan_vid=NO_TAG, eth_dst=to.mac), mark)]
            for at in attached(self.net, server.id)
        }

    def way_home(self, server: Server, gateway: Server, ip: IP | Prefix, mark: int) -> FlowsBySwitch:
        to = gateway.mac
        return {
            at.leaf: [_let_through(ip_match(src=ip, in_port=at.port, vlan_vid=NO_TAG, eth_dst=to), mark)]
            for at in attached(self.net, server.id)
        }

    def storage_ways(
        self,
        mac: Mac,
        forwarder: Mac,
        server: Server,
        open_at: Collection[Server],
        mark: int,
        only_from: Mac = "",
    ) -> FlowsBySwitch:
        places = [at for one in open_at for at in attached(self.net, one.id)]
        delivered = attached(self.net, server.id), self.attachment(server.id)
        return storage_ways(self.net, mac, forwarder, *delivered, places, mark, only_from)

    def _routes(self, server: Server, priority: int, to: Match, mark: int) -> FlowsBySwitch:
        found: FlowsBySwitch = {}
        several = has_several(self.net, server.id)
        for at in attached(self.net, server.id):
            # With several uplinks a leaf only says to which server, as a spine does.
            out = () if several else (Output(at.port),)
            goto = Table.SERVERS if several else None
            here = Flow(Table.ROUTE, priority, to, (*self._rewrite(server), *out), goto=goto, cookie=mark)
            found[at.leaf] = [here]
            for spine, _ in ways_down(self.net, at.leaf):
                found[spine] = [
                    Flow(Table.ROUTE, priority, to, self.reach(server), goto=Table.SERVERS, cookie=mark)
                ]
        return found

    def _rewrite(self, server: Server) -> tuple[Action, ...]:
        """A leaf is the one hop of the fabric: TTL, and the MACs of gateway and server."""
        return (DecTtl(), set_field(Field.ETH_SRC, self.net.gateway_mac), *self.reach(server))

    # ---- where servers are ----

    def is_reachable(self, server: str) -> bool:
        return self.net.location(server) is not None

    def attachment(self, server: str) -> tuple[str, int] | None:
        at = self.net.location(server)
        port = None if at is None else self.net.port_number(at)
        return None if at is None or port is None else (at.switch, port)

    def knows(self, server: str, switch: str) -> bool:
        at = self.net.location(server)
        if at is None:
            return False
        above = self.net.switches[switch].role in (Role.SPINE, Role.CORE)
        return not above or self.net.has_told_ports(at.switch)

    def lost_with(self, server: str) -> frozenset[str]:
        return frozenset()

    def trunk_ports(self, switch: str) -> frozenset[int]:
        return frozenset(ports_up(self.net, switch))

    # ---- which switches, and in which order ----

    def near(self, server: str) -> frozenset[str]:
        """The edge and the leaf of a server, or, with several uplinks, those leaves that lead there: where a
        VM's new location is prepared first."""
        at = self.net.location(server)
        names = {self.net.servers[server].edge, "" if at is None else at.switch}
        if has_several(self.net, server):
            names.update(link.upper.switch for link in open_links(self.net, server))
        return frozenset(names - {""})

    def concerned(self, servers: Iterable[str]) -> frozenset[str]:
        """Edges and leaves of these servers, and the spines and cores into which something comes: one that is
        new is not there yet, and nobody waits for it."""
        net = self.net
        above = frozenset(link.upper.switch for link in net.links if link.lower not in net.idle_links)
        return above.union(*(self.near(server) for server in servers if server in self.net.servers))

    def order_to_divert(self, source: str, target: str) -> Near:
        """The target's edge first: while it does not confirm, nothing is sent there. Then the source's, which
        gives the traffic up or sends it on; what is flooded comes to both edges, and neither may be without.
        Then the target's leaf."""
        edges = [{self.net.servers[server].edge} for server in (target, source)]
        return [*edges, self.near(target) - edges[0]]

    def order_to_return(self, source: str, target: str) -> Near:
        """The source's edge must cease to forward before the target's does so, or frames would go round; then
        nothing is lost any more, and the source's leaf may cease to let through what its edge forwards."""
        edge, other = ({self.net.servers[server].edge} for server in (source, target))
        return [edge, other, self.near(source) - edge]

    def order_to_withdraw(self, server: str) -> Near:
        """The server's edge must cease to forward before its leaf no longer takes what the edge forwards."""
        edge = {self.net.servers[server].edge}
        return [edge, self.near(server) - edge]

    def old_ways(self, source: str, target: str) -> Sequence[Sequence[tuple[Link, bool]]]:
        """From the target's leaf up, to where the source's leaf is reached, and down: ways part at the leaf
        of the target, which knows the VM now, or above it."""
        start, end = self.attachment(target), self.attachment(source)
        if start is None or end is None:
            return ()
        return links_between(self.net, start[0], end[0])

    def ways_up(self, server: str) -> Sequence[Sequence[tuple[Link, bool]]]:
        """What comes from another leaf meets it at a spine, at a core if it is from another pod."""
        start = self.attachment(server)
        return () if start is None else links_up(self.net, start[0])

    def stages(self, changed: Mapping[str, Collection[object]], near: Near) -> list[list[str]]:
        told = {switch for group in near for switch in group}
        pod = {link.upper.switch for leaf in told for link in links_above(self.net, leaf)}

        def stage(switch: str) -> int:
            for number, group in enumerate(near):
                if switch in group:
                    return number
            role = self.net.switches[switch].role
            if role is Role.SPINE and switch in pod:
                return len(near)
            return len(near) + {Role.CORE: 1, Role.SPINE: 2, Role.LEAF: 3, Role.EDGE: 4}[role]

        found: dict[int, list[str]] = {}
        for switch in sorted(changed):
            found.setdefault(stage(switch), []).append(switch)
        return [found[number] for number in sorted(found)]


def _let_through(sent: Match, mark: int) -> Flow:
    """From one server's port, by another's MAC."""
    return Flow(Table.ADMIT, LeafAdmit.COPY, sent, goto=Table.SERVERS, cookie=mark)


def _add(found: FlowsBySwitch, more: FlowsBySwitch) -> None:
    for switch, flows in more.items():
        found.setdefault(switch, []).extend(flows)
