"""The underlay that exists: leaves and spines that forward IP to a server's MAC.

A server is reached by its MAC: its leaf knows the port, every spine the leaf.

Switches are told of a change in this order: nearest to the new location first. A source leaf that points up
while a spine still points down is a loop; a spine that points at a leaf that does not know the VM is a hole.
So: the new location's edge and leaf, then the spines, then the other leaves, then the other edges. Each stage
is confirmed by every switch in it before the next begins. A removal has no new location and starts at the
spines.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from retinue.core.model import IP, Mac, Prefix, Role, Server, Service, Switch
from retinue.core.model.families import forwarded_prefixes, forwarded_subnets, in_use
from retinue.core.model.network import Network, Owner
from retinue.core.packets.ipv4 import UDP
from retinue.core.pipeline import vrfs
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import (
    CONTROLLER,
    Action,
    DecTtl,
    Field,
    Flow,
    FlowsBySwitch,
    Group,
    Match,
    Meter,
    Output,
    PortNo,
    SetField,
    match,
    set_field,
)
from retinue.core.pipeline.matches import (
    CLIENT_PORT,
    NO_TAG,
    SERVER_PORT,
    SERVER_PORT6,
    dhcp6_match,
    dhcp_match,
    ip_match,
    ip_types,
)
from retinue.core.pipeline.meters import LeafMeter
from retinue.core.pipeline.priorities import LeafAdmit, Route, Servers
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay.base import Near
from retinue.core.pipeline.underlay.fabric_switches import leaf_flows, spine_flows, spine_ports, ways_down


@dataclass(frozen=True, slots=True)
class LeafSpine:
    """A leaf-spine fabric, as an `Underlay` (see there what each method is for)."""

    net: Network

    # ---- what edge switches write into frames, and know them by ----

    def reach(self, server: Server) -> tuple[SetField, ...]:
        return (set_field(Field.ETH_DST, server.mac),)

    def brought_to(self, server: Server, ip_type: int) -> Mapping[str, int | str]:
        return {"vlan_vid": NO_TAG, "eth_type": ip_type, "eth_dst": server.mac}

    def copy_source(self, server: Server) -> Mac:
        return server.mac

    # ---- entries ----

    def switch_flows(self, switch: Switch) -> Iterable[Flow | Group | Meter]:
        return leaf_flows(self.net, switch) if switch.role is Role.LEAF else spine_flows(self.net, switch)

    def server_flows(self, server: Server) -> FlowsBySwitch:
        at = self.attachment(server.id)
        if at is None:
            return {}
        leaf, port = at
        mark = cookie(Reason.FORWARD, Owner("server", server.id))
        to_server = match(eth_dst=server.mac)
        found = {leaf: [Flow(Table.SERVERS, Servers.SERVER, to_server, (Output(port),), cookie=mark)]}
        found[leaf].extend(self._service_sources(server, port))
        if server.edge and self.net.has_vrfs():
            # Of servers' ports only an edge's may bring a tag: it has put it there itself.
            for mac, kind in product(self.net.gateway_macs, ip_types(self.net)):
                from_edge = match(in_port=port, vlan_vid=NO_TAG, eth_type=kind, eth_dst=mac)
                admitted = Flow(Table.ADMIT, LeafAdmit.TO_GATEWAY, from_edge, goto=Table.ROUTE, cookie=mark)
                found[leaf].append(vrfs.with_tag(admitted))
        if server.id in self.net.fenced:
            shut_out = cookie(Reason.QUIET, Owner("server", server.id))
            found[leaf].append(Flow(Table.ADMIT, LeafAdmit.FENCED, match(in_port=port), cookie=shut_out))
        for spine, down in ways_down(self.net, leaf):
            found[spine] = [Flow(Table.SERVERS, Servers.SERVER, to_server, (Output(down),), cookie=mark)]
        if server.address is not None and in_use(self.net, server.address.version):
            _add(found, self.host_routes(server, server.address, mark))
        for prefix in (prefix for prefix in server.routes if in_use(self.net, prefix.version)):
            _add(found, self._routes(server, Route.PREFIX + prefix.prefixlen, ip_match(dst=prefix), mark))
        return found

    def _service_sources(self, server: Server, port: int) -> Iterator[Flow]:
        """As whom a router or DHCP server may send, at its port, into the fabric (RFC 2827).

        Either as itself. A router also as anybody outside: a router forwards those, our own never are. A DHCP
        server's answers go to the controller instead (TRUSTED_DHCP). Where a server also runs VMs they share
        its port, and its edge switch has seen to it.
        """
        owner, gateway_mac = Owner("server", server.id), self.net.gateway_mac
        if Service.DHCP in server.services:
            answers = dhcp_match(sport=SERVER_PORT, in_port=port, vlan_vid=NO_TAG)
            yield Flow(
                Table.ADMIT, LeafAdmit.TRUSTED_DHCP, answers, (CONTROLLER,),
                meter=LeafMeter.DHCP, cookie=cookie(Reason.DHCP_SERVER, owner),
            )  # fmt: skip
        if Service.DHCP in server.services and in_use(self.net, 6):
            # To the relay, which the gateway is: a server answers no client by itself.
            relayed = dhcp6_match(sport=SERVER_PORT6, dport=SERVER_PORT6, in_port=port, vlan_vid=NO_TAG)
            yield Flow(
                Table.ADMIT, LeafAdmit.TRUSTED_DHCP, relayed, (CONTROLLER,),
                meter=LeafMeter.DHCP, cookie=cookie(Reason.DHCP6_SERVER, owner),
            )  # fmt: skip
        if not server.services or server.edge:
            return
        if server.address is not None and in_use(self.net, server.address.version):
            as_itself = ip_match(src=server.address, in_port=port, vlan_vid=NO_TAG, eth_dst=gateway_mac)
            if Service.DHCP in server.services:
                # Trust is in the place, not in the port number: a boot server answers from port 4011.
                to_client = ip_match(
                    src=server.address, in_port=port, vlan_vid=NO_TAG, eth_dst=gateway_mac,
                    ip_proto=UDP, udp_dst=CLIENT_PORT,
                )  # fmt: skip
                yield Flow(
                    Table.ADMIT, LeafAdmit.BOOT_SERVER, to_client,
                    goto=Table.ROUTE, cookie=cookie(Reason.FORWARD, owner),
                )  # fmt: skip
            yield Flow(
                Table.ADMIT, LeafAdmit.SERVICE_ITSELF, as_itself,
                goto=Table.ROUTE, cookie=cookie(Reason.FORWARD, owner),
            )  # fmt: skip
        spoofed = [match(in_port=port, eth_type=kind, eth_dst=gateway_mac) for kind in ip_types(self.net)]
        if Service.ROUTER in server.services:
            prefixes = [subnet.prefix for subnet in forwarded_subnets(self.net.subnets_in())]
            prefixes += forwarded_prefixes(self.net, (prefix for prefix, _ in self.net.routed()))
            spoofed = [ip_match(src=prefix, in_port=port, eth_dst=gateway_mac) for prefix in prefixes]
        # The gateway's MACs of groups of servers are none of theirs.
        groups = self.net.gateway_groups.values()
        kinds = ip_types(self.net)
        spoofed += [match(in_port=port, eth_type=kind, eth_dst=mac) for mac in groups for kind in kinds]
        for pretence in spoofed:
            yield Flow(
                Table.ADMIT, LeafAdmit.SERVICE_SPOOFED, pretence, (CONTROLLER,),
                meter=LeafMeter.SPOOFING, cookie=cookie(Reason.SPOOFED_IP, owner),
            )  # fmt: skip

    def host_routes(self, server: Server, ip: IP | Prefix, mark: int) -> FlowsBySwitch:
        """The leaf to the server's port, each spine to the leaf; and back to the server's port (hairpin)."""
        to_ip = ip_match(dst=ip)
        found = self._routes(server, Route.HOST, to_ip, mark)
        at = self.attachment(server.id)
        if at is not None:
            # Two VMs on one server with a stale ARP cache talk through the leaf: back out of the port
            # the frame came in by, which a switch does only when told so by name.
            leaf, port = at
            came_from_there = match(in_port=port) + to_ip
            back = (*self._rewrite(server), Output(PortNo.IN_PORT))
            found[leaf].append(Flow(Table.ROUTE, Route.HAIRPIN, came_from_there, back, cookie=mark))
        return found

    def copy_ways(self, server: Server, to: Server, ip: IP | Prefix, mark: int) -> FlowsBySwitch:
        at = self.attachment(server.id)
        if at is None:
            return {}
        leaf, port = at
        copied = ip_match(dst=ip, in_port=port, vlan_vid=NO_TAG, eth_dst=to.mac)
        return {leaf: [Flow(Table.ADMIT, LeafAdmit.COPY, copied, goto=Table.SERVERS, cookie=mark)]}

    def _routes(self, server: Server, priority: int, to: Match, mark: int) -> FlowsBySwitch:
        at = self.attachment(server.id)
        if at is None:
            return {}
        leaf, port = at
        found = {leaf: [Flow(Table.ROUTE, priority, to, (*self._rewrite(server), Output(port)), cookie=mark)]}
        for spine, down in ways_down(self.net, leaf):
            found[spine] = [Flow(Table.ROUTE, priority, to, (*self.reach(server), Output(down)), cookie=mark)]
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
        return self.net.switches[switch].role is not Role.SPINE or self.net.has_told_ports(at.switch)

    def trunk_ports(self, switch: str) -> frozenset[int]:
        return frozenset(spine_ports(self.net, switch))

    # ---- which switches, and in which order ----

    def near(self, server: str) -> frozenset[str]:
        """The edge and the leaf of a server: where a VM's new location is prepared first."""
        at = self.net.location(server)
        names = {self.net.servers[server].edge, "" if at is None else at.switch}
        return frozenset(names - {""})

    def concerned(self, servers: Iterable[str]) -> frozenset[str]:
        """Edges and leaves of these servers, and the spines."""
        spines = frozenset(spine.id for spine in self.net.with_role(Role.SPINE))
        return spines.union(*(self.near(server) for server in servers if server in self.net.servers))

    def order_to_divert(self, source: str, target: str) -> Near:
        """The target's edge first: while it does not confirm, nothing is sent there. With it the source's,
        which gives the traffic up or sends it on. Then the target's leaf."""
        edges = {self.net.servers[server].edge for server in (source, target)}
        return [edges, self.near(target) - edges]

    def order_to_return(self, source: str, target: str) -> Near:
        """The source's edge must cease to forward before the target's does so, or frames would go round; then
        nothing is lost any more, and the source's leaf may cease to let through what its edge forwards."""
        edge, other = ({self.net.servers[server].edge} for server in (source, target))
        return [edge, other, self.near(source) - edge]

    def order_to_withdraw(self, server: str) -> Near:
        """The server's edge must cease to forward before its leaf no longer takes what the edge forwards."""
        edge = {self.net.servers[server].edge}
        return [edge, self.near(server) - edge]

    def stages(self, changed: Mapping[str, Collection[object]], near: Near) -> list[list[str]]:
        def stage(switch: str) -> int:
            for number, group in enumerate(near):
                if switch in group:
                    return number
            role = self.net.switches[switch].role
            return len(near) + {Role.SPINE: 0, Role.LEAF: 1, Role.EDGE: 2}[role]

        found: dict[int, list[str]] = {}
        for switch in sorted(changed):
            found.setdefault(stage(switch), []).append(switch)
        return [found[number] for number in sorted(found)]


def _add(found: FlowsBySwitch, more: FlowsBySwitch) -> None:
    for switch, flows in more.items():
        found.setdefault(switch, []).extend(flows)
