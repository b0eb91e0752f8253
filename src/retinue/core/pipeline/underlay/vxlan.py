"""The underlay without a fabric of ours: leaves, one a server as a rule, joined by VXLAN over others' IP.

The IP network between them is anybody's: it knows the leaves' endpoints, and nothing of VMs or servers. What
a leaf is to servers at its ports is as in a fabric (`fabric`): it is the one hop, it holds their hosts, it
judges what routers and DHCP servers say. What is different is the way to the others, one tunnel port:

    ROUTE      a host elsewhere: MAC := its server's, TTL - 1, for its leaf's endpoint        WRAP
    SERVERS    a server elsewhere (a copy, or what an edge forwards): for its leaf's          WRAP
    WRAP       VNI := the VRF's, whose tag is not sent along (RFC 7348, 6.1)                  the tunnel
    ADMIT      from the tunnel, from the endpoint of another leaf                             UNWRAP
               from any other address                                                         dropped
    UNWRAP     IP in the VNI of a VRF: the VRF's tag; storage in that of the default one      SERVERS
    SERVERS    to a server here: its port; to any other                                       dropped

So what comes by a tunnel is not routed, and never goes into one again; and to which leaf a packet goes its
sender's leaf alone says, as in a fabric a spine. Hence the order of an update is the fabric's, without
spines: the new location's edge and leaf first, then all other leaves at once, then all other edges.

Every leaf holds every host: a move changes two edges and all leaves.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import chain

from retinue.core.model import Mac, PortRef, Role, Server, Switch
from retinue.core.model.fabric_checks import forwards
from retinue.core.model.network import Owner
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import (
    Action,
    EntriesBySwitch,
    Field,
    Flow,
    FlowsBySwitch,
    Group,
    Match,
    Meter,
    Output,
    PopVlan,
    PushVlan,
    SetField,
    ToGroup,
    match,
    set_field,
)
from retinue.core.pipeline.matches import ANY_TAG, GROUP_BIT, NO_TAG, ip_types, storage_types
from retinue.core.pipeline.priorities import TABLE_MISS, LeafAdmit, Servers, Unwrap, Wrap
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay.fabric import LeafSpine
from retinue.core.pipeline.underlay.fabric_storage import to_storage_port

VNI_OF_VRF, VNI_OF_FLOODING = 1 << 12, 2 << 12
"""A VRF's network identifier is its tag plus this; that of a vnet that floods, its VLAN plus this."""
_PRESENT = ANY_TAG[1]


@dataclass(frozen=True, slots=True)
class VxlanMesh(LeafSpine):
    """Leaves that tunnels join, each with each, as an `Underlay` (see there what each method is for)."""

    # ---- entries ----

    def switch_flows(self, switch: Switch) -> Iterable[Flow | Group | Meter]:
        return chain(LeafSpine.switch_flows(self, switch), self._tunnel_flows(switch))

    def server_flows(self, server: Server) -> FlowsBySwitch:
        found = LeafSpine.server_flows(self, server)
        mark = cookie(Reason.FORWARD, Owner("server", server.id))
        to_server = match(eth_dst=server.mac)
        for leaf, way in self._from_elsewhere(server):
            on_leaf = found.setdefault(leaf.id, [])
            on_leaf.append(Flow(Table.SERVERS, Servers.UP, to_server, way, goto=Table.WRAP, cookie=mark))
            endpoint = self._endpoint(server)
            if server.id in self.net.fenced and endpoint and self._has_leaf_to_itself(server.id):
                # Its leaf may be as dead as it is, or no longer heed us: others shut it out.
                shut_out = cookie(Reason.QUIET, Owner("server", server.id))
                from_there = match(tun_src=endpoint)
                on_leaf.append(Flow(Table.ADMIT, LeafAdmit.FENCED, from_there, cookie=shut_out))
        return found

    def _routes(self, server: Server, priority: int, to: Match, mark: int) -> FlowsBySwitch:
        found = LeafSpine._routes(self, server, priority, to, mark)
        for leaf, way in self._from_elsewhere(server):
            there = (*self._rewrite(server), *way)
            found[leaf.id] = [Flow(Table.ROUTE, priority, to, there, goto=Table.WRAP, cookie=mark)]
        return found

    def flood_ways(self, servers: Collection[Server], vlan: int, group: int, mark: int) -> EntriesBySwitch:
        """The sender's leaf makes all copies: one for each other leaf."""
        ports: dict[str, set[int]] = {}
        for leaf, port in (at for server in servers if (at := self.attachment(server.id)) is not None):
            ports.setdefault(leaf, set()).add(port)
        found: EntriesBySwitch = {}
        put_tag = (PushVlan(), SetField(Field.VLAN_VID, _PRESENT | vlan))
        for leaf, its_ports in sorted(ports.items()):
            entries = found[leaf] = [
                Group(group, tuple((Output(port),) for port in sorted(its_ports)), replicates=True)
            ]
            others = [self.net.switches[other] for other in sorted(ports) if other != leaf]
            copies = (ToGroup(group), *self._to_all(leaf, others, vlan))
            for port in sorted(its_ports):
                sent = match(in_port=port, vlan_vid=_PRESENT | vlan, eth_dst=GROUP_BIT)
                entries.append(Flow(Table.ADMIT, LeafAdmit.FLOODED, sent, copies, cookie=mark))
            if others:
                came = match(tunnel_id=VNI_OF_FLOODING + vlan, vlan_vid=NO_TAG, eth_dst=GROUP_BIT)
                here = (*put_tag, ToGroup(group))
                entries.append(Flow(Table.UNWRAP, Unwrap.FLOODED, came, here, cookie=mark))
        return found

    def _to_all(self, leaf: str, others: Collection[Switch], vlan: int) -> Iterator[Action]:
        tunnel = self._tunnel(self.net.switches[leaf])
        if tunnel is None or not others:
            return
        yield from (PopVlan(), SetField(Field.TUNNEL_ID, VNI_OF_FLOODING + vlan))
        for other in others:
            if other.endpoint is not None:
                yield from (set_field(Field.TUN_DST, other.endpoint), Output(tunnel))

    def storage_ways(
        self,
        mac: Mac,
        forwarder: Mac,
        server: Server,
        open_at: Collection[Server],
        mark: int,
        only_from: Mac = "",
    ) -> FlowsBySwitch:
        """To the forwarder as to any server. From there each leaf has the way, as it has to every host:
        wherever the forwarder is."""
        found = LeafSpine.storage_ways(self, mac, forwarder, server, open_at, mark, only_from)
        to_port = to_storage_port(mac, only_from)
        for leaf, way in self._from_elsewhere(server):
            sent = Flow(Table.SERVERS, Servers.UP, to_port, way, goto=Table.WRAP, cookie=mark)
            found.setdefault(leaf.id, []).append(sent)
        return found

    def _tunnel_flows(self, leaf: Switch) -> Iterator[Flow]:
        """Whom the leaf hears by its tunnels, and what is put on a packet, and taken off, there."""
        tunnel = self._tunnel(leaf)
        mark = cookie(Reason.FORWARD, Owner("switch", leaf.id))
        for table in (Table.UNWRAP, Table.WRAP):
            yield Flow(table, TABLE_MISS, (), cookie=mark)
        if tunnel is None:
            return
        yield Flow(Table.ADMIT, LeafAdmit.FROM_STRANGER, match(in_port=tunnel), cookie=mark)
        yield Flow(Table.SERVERS, Servers.FROM_ABOVE, match(in_port=tunnel), cookie=mark)
        for other in self.net.with_role(Role.LEAF):
            if other.id != leaf.id and other.endpoint is not None:
                heard = match(in_port=tunnel, tun_src=other.endpoint)
                yield Flow(Table.ADMIT, LeafAdmit.FROM_LEAF, heard, goto=Table.UNWRAP, cookie=mark)
        for kind in storage_types(self.net):
            stored = match(tunnel_id=VNI_OF_VRF, vlan_vid=NO_TAG, eth_type=kind)
            yield Flow(Table.UNWRAP, Unwrap.VRF, stored, goto=Table.SERVERS, cookie=mark)
        for vrf in self.net.vrfs.values():
            vni, tag = VNI_OF_VRF + vrf.tag, _PRESENT | vrf.tag
            put: tuple[Action, ...] = (PushVlan(), SetField(Field.VLAN_VID, tag)) if vrf.tag else ()
            for kind in ip_types(self.net):
                came = match(tunnel_id=vni, vlan_vid=NO_TAG, eth_type=kind)
                yield Flow(Table.UNWRAP, Unwrap.VRF, came, put, goto=Table.SERVERS, cookie=mark)
            taken: tuple[Action, ...] = (PopVlan(),) if vrf.tag else ()
            out = (*taken, SetField(Field.TUNNEL_ID, vni), Output(tunnel))
            has_tag = match(vlan_vid=tag if vrf.tag else NO_TAG)
            yield Flow(Table.WRAP, Wrap.VRF, has_tag, out, cookie=mark)

    # ---- where servers are ----

    def knows(self, server: str, switch: str) -> bool:
        at = self.net.location(server)
        return at is not None and (at.switch == switch or self.net.has_told_ports(at.switch))

    def lost_with(self, server: str) -> frozenset[str]:
        at = self.net.location(server)
        return frozenset({at.switch}) if at is not None and self._has_leaf_to_itself(server) else frozenset()

    def trunk_ports(self, switch: str) -> frozenset[int]:
        tunnel = self._tunnel(self.net.switches[switch])
        return frozenset() if tunnel is None else frozenset({tunnel})

    def concerned(self, servers: Iterable[str]) -> frozenset[str]:
        """Leaves without servers among them are not: one that is new is not there yet."""
        leaves = frozenset(leaf.id for leaf in self.net.with_role(Role.LEAF) if forwards(self.net, leaf.id))
        return leaves.union(*(self.near(server) for server in servers if server in self.net.servers))

    def _tunnel(self, leaf: Switch) -> int | None:
        """Number of its tunnel port."""
        return self.net.port_number(PortRef(leaf.id, leaf.tunnel)) if leaf.tunnel else None

    def _from_elsewhere(self, server: Server) -> Iterator[tuple[Switch, tuple[Action, ...]]]:
        """Every leaf but the server's own, and what leads from there to the server's."""
        endpoint = self._endpoint(server)
        at = self.attachment(server.id)
        if endpoint is None or at is None:
            return
        way = (set_field(Field.TUN_DST, endpoint),)
        for leaf in self.net.with_role(Role.LEAF):
            if leaf.id != at[0]:
                yield leaf, way

    def _endpoint(self, server: Server) -> IPv4Address | None:
        at = self.net.location(server.id)
        return None if at is None else self.net.switches[at.switch].endpoint

    def _has_leaf_to_itself(self, server: str) -> bool:
        at = self.net.location(server)
        places = ((one, self.net.location(one)) for one in self.net.servers if one != server)
        return at is not None and all(place is None or place.switch != at.switch for _, place in places)
