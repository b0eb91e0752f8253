"""The underlay of which nothing is ours: leaves are plain routers, which are told where each VM is.

Ours are the edges alone (US 9,515,930: "these techniques do not require modification of the ToR"). A router
forwards what comes to the gateway's MAC, the MAC of all its ports, by its table of routes; there each
address of a VM has a host route whose next hop is the server's own address. So its frames come to the
server's MAC, which an edge knows them by, as in a fabric of ours. How routers reach each other's servers is
theirs to know.

Of the entries here only the host routes, and that the rest of a subnet leads nowhere, are ever sent
anywhere (see `southbound.routers`). The others say what any router does, so that a router is a switch like
all others to whoever computes, proves or traces ways:

    ADMIT    IP to the gateway's MAC; from other routers                                      ROUTE
    ROUTE    a host here: TTL - 1, source MAC := the gateway's, MAC := its server's           its port
             a host elsewhere: TTL - 1, to the router of its server                           WRAP
             a subnet                                                                         dropped
    WRAP     to the other routers

What another router brings is looked up again, unlike in a fabric of ours, where the sender's leaf has
decided. So two routers that each hold the other to be nearer would send a packet to and fro. Hence the
order of an update: the new place's edge and its router first, then all other routers, then all other edges.
An edge hands on what is late by giving it to its router again: the router knows better by then. For the
same reason there are no copies: a router would send them back to where they were made.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

from retinue.core.model import IP, Mac, PortRef, Prefix, Role, Server, Switch
from retinue.core.model.families import forwarded_subnets
from retinue.core.model.network import Owner
from retinue.core.model.plain_routers import OTHERS
from retinue.core.model.ways import ways_by
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import (
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
    match,
    set_field,
)
from retinue.core.pipeline.matches import NO_TAG, ip_match, ip_types
from retinue.core.pipeline.priorities import TABLE_MISS, LeafAdmit, Route, Wrap
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay.base import Near
from retinue.core.pipeline.underlay.fabric import LeafSpine

NEXT_HOP = Field.METADATA
"""Where a host route's entry says the address of its server."""


@dataclass(frozen=True, slots=True)
class PlainRouters(LeafSpine):
    """Leaves that are routers of others, as an `Underlay` (see there what each method is for)."""

    # ---- what edge switches write into frames, and know them by ----

    def reach(self, server: Server) -> tuple[SetField, ...]:
        """By the sender's own router, which looks up the packet's address."""
        return (set_field(Field.ETH_DST, self.net.gateway_mac),)

    @property
    def copies(self) -> bool:
        return False

    @property
    def asks_servers(self) -> bool:
        return True

    # ---- entries ----

    def switch_flows(self, switch: Switch) -> Iterable[Flow | Group | Meter]:
        mark = cookie(Reason.FORWARD, Owner("switch", switch.id))
        for table in (Table.ADMIT, Table.ROUTE, Table.WRAP):
            yield Flow(table, TABLE_MISS, (), cookie=mark)
        others = self.net.port_number(PortRef(switch.id, OTHERS))
        for kind in ip_types(self.net):
            to_it = match(vlan_vid=NO_TAG, eth_type=kind, eth_dst=self.net.gateway_mac)
            yield Flow(Table.ADMIT, LeafAdmit.TO_GATEWAY, to_it, goto=Table.ROUTE, cookie=mark)
            if others is not None:
                brought = match(in_port=others, vlan_vid=NO_TAG, eth_type=kind)
                yield Flow(Table.ADMIT, LeafAdmit.FROM_LEAF, brought, goto=Table.ROUTE, cookie=mark)
        if others is not None:
            yield Flow(Table.WRAP, Wrap.VRF, match(vlan_vid=NO_TAG), (Output(others),), cookie=mark)
            # A router minds not where it came from: one that was told before another sends it on.
            back = match(in_port=others, vlan_vid=NO_TAG)
            yield Flow(Table.WRAP, Wrap.BACK, back, (Output(PortNo.IN_PORT),), cookie=mark)
        for subnet in forwarded_subnets(self.net.subnets_in()):
            nowhere = ip_match(dst=subnet.prefix)
            yield Flow(Table.ROUTE, Route.PREFIX + subnet.prefix.prefixlen, nowhere, cookie=mark)

    def server_flows(self, server: Server) -> FlowsBySwitch:
        found: FlowsBySwitch = {}
        if self.attachment(server.id) is None or server.address is None:
            return found
        mark = cookie(Reason.FORWARD, Owner("server", server.id))
        ways: list[FlowsBySwitch] = [self.host_routes(server, server.address, mark)]
        for prefix in ways_by(self.net, server.id):
            if prefix.version == 4:
                ways.append(self._routes(server, Route.PREFIX + prefix.prefixlen, ip_match(dst=prefix), mark))
        for way in ways:
            for switch, flows in way.items():
                found.setdefault(switch, []).extend(flows)
        return found

    def prefix_flows(self, prefix: Prefix, vrf: str) -> FlowsBySwitch:
        return {}

    def _routes(self, server: Server, priority: int, to: Match, mark: int) -> FlowsBySwitch:
        found = LeafSpine._routes(self, server, priority, to, mark)
        at = self.attachment(server.id)
        for router in self.net.with_role(Role.LEAF):
            if at is not None and router.id != at[0]:
                there = (*self._rewrite(server), set_field(Field.TUN_DST, self._endpoint(at[0])))
                found[router.id] = [Flow(Table.ROUTE, priority, to, there, goto=Table.WRAP, cookie=mark)]
        return found

    def _endpoint(self, router: str) -> IPv4Address:
        found = self.net.switches[router].endpoint
        assert found is not None
        return found

    def _rewrite(self, server: Server) -> tuple[Action, ...]:
        """The next hop, which nothing else of an entry says, is in METADATA, which no packet has: a server's
        new address makes its entries other ones."""
        source, destination = self.net.gateway_mac, server.mac
        written = (DecTtl(), set_field(Field.ETH_SRC, source), set_field(Field.ETH_DST, destination))
        if not isinstance(server.address, IPv4Address):
            return written
        return (SetField(NEXT_HOP, int(server.address)), *written)

    def flood_ways(self, servers: Collection[Server], vlan: int, group: int, mark: int) -> EntriesBySwitch:
        return {}

    def copy_ways(self, server: Server, to: Server, ip: IP | Prefix, mark: int) -> FlowsBySwitch:
        return {}

    def way_home(self, server: Server, gateway: Server, ip: IP | Prefix, mark: int) -> FlowsBySwitch:
        return {}

    def storage_ways(
        self,
        mac: Mac,
        forwarder: Mac,
        server: Server,
        open_at: Collection[Server],
        mark: int,
        only_from: Mac = "",
    ) -> FlowsBySwitch:
        return {}

    # ---- where servers are ----

    def is_reachable(self, server: str) -> bool:
        """The router has its port, with a link, and set up as it should be (`RouterSession.down`)."""
        at = self.net.location(server)
        if at is None or self.net.is_down(at):
            return False
        return self.net.port_number(at) is not None or not self.net.has_told_ports(at.switch)

    def knows(self, server: str, switch: str) -> bool:
        at = self.net.location(server)
        return at is not None and (at.switch == switch or self.net.has_told_ports(at.switch))

    def trunk_ports(self, switch: str) -> frozenset[int]:
        others = self.net.port_number(PortRef(switch, OTHERS))
        return frozenset() if others is None else frozenset({others})

    # ---- which switches, and in which order ----

    def concerned(self, servers: Iterable[str]) -> frozenset[str]:
        routers = frozenset(self._routers())
        return routers.union(*(self.near(server) for server in servers if server in self.net.servers))

    def order_to_divert(self, source: str, target: str) -> Near:
        """The target's edge and router, the other routers, and only then the source's edge: it hands on by
        its router, which must know by then."""
        edge = {self.net.servers[target].edge}
        return [edge, self.near(target) - edge, set(self._routers())]

    def order_to_return(self, source: str, target: str) -> Near:
        """The source's edge must cease to hand on before a router sends there again; then the routers, the
        source's first, and then the target's edge, which hands on from now on."""
        edge = {self.net.servers[source].edge}
        return [edge, self.near(source) - edge, set(self._routers())]

    def _routers(self) -> Iterator[str]:
        return (leaf.id for leaf in self.net.with_role(Role.LEAF))
