"""What the operator lays out: VRFs, vnets, subnets and servers, and how it changes; switches: `fabric`.

The lower half of `Network`; what its changes touch is told as there.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from retinue.core.model.addresses import IP, Mac, ModelError, Prefix
from retinue.core.model.anycast import host_prefix
from retinue.core.model.constraints import (
    check_gateway_group,
    check_peer,
    check_server,
    check_subnet,
    check_vnet,
    check_vrf,
)
from retinue.core.model.entities import (
    GatewayGroup,
    Peer,
    PortRef,
    Role,
    Server,
    Service,
    Subnet,
    Vnet,
)
from retinue.core.model.fabric import NetworkFabric
from retinue.core.model.in_use import (
    check_gateway_group_removal,
    check_subnet_removal,
    check_vnet_removal,
    check_vrf_removal,
)
from retinue.core.model.owners import NOTHING, Owner, Touched
from retinue.core.model.packet_sizes import is_narrow_somewhere
from retinue.core.model.plain_routers import check_beside_routers
from retinue.core.model.prefix_index import PrefixIndex
from retinue.core.model.uplinks import has_several
from retinue.core.model.vrfs import DEFAULT_VRF, Vrf
from retinue.core.model.ways import routers_beside


@dataclass
class NetworkLayout(NetworkFabric):
    """VRFs, vnets, subnets and servers, and every change of them."""

    def put_vrf(self, vrf: Vrf) -> Touched:
        """Add a routing domain; one that is there stays as it is."""
        check_vrf(self, vrf)
        check_beside_routers(self, vrf)
        self.vrfs[vrf.id] = vrf
        return self._switches_and_servers()

    def remove_vrf(self, vrf: str) -> Touched:
        """Forget a routing domain that has no vnets. Removing what is not there is no error."""
        check_vrf_removal(self, vrf)
        return NOTHING if self.vrfs.pop(vrf, None) is None else self._switches_and_servers()

    def _switches_and_servers(self) -> Touched:
        switches = [Owner("switch", s) for s in self.switches]
        return frozenset([*switches, *(Owner("server", s) for s in self.servers)])

    def put_vnet(self, vnet: Vnet) -> Touched:
        """Add a vnet, or replace the one of the same id: it names what its subnets have in common.

        Leaves tell senders how much its MTU lets through."""
        check_vnet(self, vnet)
        check_beside_routers(self, vnet)
        old = self.vnets.get(vnet.id)
        before = self.mtu if old is None else self.mtu_in(vnet.id)
        self.vnets[vnet.id] = vnet
        touched = NOTHING
        if before != self.mtu_in(vnet.id):
            touched = self.leaves() | self.prefixes()
        if old is not None and (old.flood, old.vlan) == (vnet.flood, vnet.vlan):
            return touched
        flooded = vnet.floods or (old is not None and old.floods)
        return touched | self._vnet_and_vms(vnet.id) if flooded else touched

    def remove_vnet(self, vnet: str) -> Touched:
        """Forget a vnet that has no subnets. Removing what is not there is no error."""
        check_vnet_removal(self, vnet)
        was_narrow = vnet in self.vnets and self.mtu_in(vnet) < self.mtu
        old = self.vnets.pop(vnet, None)
        touched = self.leaves() if was_narrow else NOTHING
        return touched | self._vnet_and_vms(vnet) if old is not None and old.floods else touched

    def _vnet_and_vms(self, vnet: str) -> Touched:
        vms = (Owner("vm", vm) for vm in self._in_vnet.get(vnet, ()))
        return frozenset({Owner("vnet", vnet), *vms})

    def put_gateway_group(self, group: GatewayGroup) -> Touched:
        """Servers may be in this group from now on; of one that is there only `default` may change."""
        check_gateway_group(self, group)
        check_beside_routers(self, group)
        before = self.default_group
        self.gateway_groups[group.id] = group
        touched = self._switches_and_servers()
        if self.default_group != before:
            in_none = [s.id for s in self.servers.values() if s.edge and not s.gateway_group]
            touched = touched.union(*map(self.server_and_vms, in_none))
        return touched

    def remove_gateway_group(self, group: str) -> Touched:
        """Forget a group that no server is in. Removing what is not there is no error."""
        check_gateway_group_removal(self, group)
        return NOTHING if self.gateway_groups.pop(group, None) is None else self._switches_and_servers()

    def put_peer(self, peer: Peer) -> Touched:
        """Another domain, behind a gateway; given with the configuration."""
        check_peer(self, peer)
        check_beside_routers(self, peer)
        self.peers[peer.id] = peer
        return self.server_and_vms(peer.gateway)

    def add_subnet(self, subnet: Subnet) -> Touched:
        """Add a subnet, or replace the one of the same id; what it is used for stays inside it."""
        check_subnet(self, subnet)
        check_beside_routers(self, subnet)
        old = self.subnets.get(subnet.id)
        self.subnets[subnet.id] = subnet
        self._index_subnets()
        touched = self._touched_by(subnet)
        return touched if old is None else touched | self._touched_by(old)

    def remove_subnet(self, subnet: str) -> Touched:
        """Forget a subnet of which no address is used. Removing what is not there is no error."""
        check_subnet_removal(self, subnet)
        old = self.subnets.pop(subnet, None)
        self._index_subnets()
        return NOTHING if old is None else self._touched_by(old)

    def put_back_subnet(self, subnet: str, old: Subnet | None) -> None:
        """Undo what `add_subnet` has just done: nothing else can have come to need it."""
        if old is None:
            self.subnets.pop(subnet, None)
        else:
            self.subnets[subnet] = old
        self._index_subnets()

    def _index_subnets(self) -> None:
        self._subnet_at.clear()
        for subnet in self.subnets.values():
            key = prefix_key(subnet.prefix)
            self._subnet_at[self.vrf_of_vnet(subnet.vnet), *key] = subnet.id
        self._prefix_lengths.clear()
        for version, length in sorted({key[1:3] for key in self._subnet_at}):
            self._prefix_lengths.setdefault(version, []).append(length)

    def _touched_by(self, subnet: Subnet) -> Touched:
        """Switches answer for its gateway, VMs in it have it as neighbourhood, routers forward for it."""
        if subnet.prefix.version == 6:  # The first and the last have NICs guarded, and addresses forwarded.
            return self.everything()
        inside = {held.vm for held in self.assignments.values() if held.ip in subnet.prefix}
        # A trunk's NICs are answered for each gateway by themselves.
        inside |= {id for id, vm in self.vms.items() if any(nic.trunk for nic in vm.nics)}
        if self.vnets[subnet.vnet].floods:  # Its broadcast address is one to which they may send.
            inside |= self._in_vnet.get(subnet.vnet, set())
        return frozenset(
            [
                *(Owner("switch", s) for s in self.switches),
                *self.routers(),
                *(Owner("vm", v) for v in inside),
                *(self.prefixes() if is_narrow_somewhere(self) else ()),  # See `mtu_of`.
            ]
        )

    def put_server(self, server: Server) -> Touched:
        """Add a server, or replace the one of the same id: a changed MAC re-routes its VMs."""
        check_server(self, server)
        check_beside_routers(self, server)
        old, beside = self.servers.get(server.id), self._beside(server.id)
        answered = self._answered_at(old.edge if old else "", server.edge)
        self._forget_server(server.id)
        self._serve(server.id, () if old is None else old.anycast, server.anycast)
        self.servers[server.id] = server
        self._index_server(server)
        self._follow_uplink(server.edge)
        touched = self.server_and_vms(server.id) | beside | _led_to(old) | _led_to(server)
        if bool(server.chassis) != bool(old is not None and old.chassis):
            touched |= self.leaves()  # They hand up LLDP where there is one that is known by it.
        touched |= self._answers_otherwise(answered)
        if old is not None and Service.ROUTER in old.services:
            touched |= self.prefixes()
        is_forwarder = Service.FORWARDER in server.services
        if is_forwarder or (old is not None and Service.FORWARDER in old.services):
            touched |= self.everything()  # Of one at least every switch has entries, and every NIC.
        return touched | self.shut_out()

    def _serve(self, server: str, before: Iterable[IP], now: Iterable[IP]) -> None:
        """Which anycast addresses the server has itself; the index has one as nobody's where no VM has it."""
        for ip in set(before) - set(now):
            del self._serving[ip][server]
            if not self._serving[ip]:
                del self._serving[ip]
                if ip not in self._anycast:
                    self._routed[DEFAULT_VRF].discard(host_prefix(ip))
        for ip in now:
            self._serving.setdefault(ip, {})[server] = None
            if ip not in self._anycast:
                self._routed.setdefault(DEFAULT_VRF, PrefixIndex()).put(host_prefix(ip), "")

    def remove_server(self, server: str) -> Touched:
        """Forget a server that runs no VMs. Removing what is not there is no error."""
        if self._vms_on.get(server):
            raise ModelError(f"server {server} runs VMs: {', '.join(sorted(self._vms_on[server]))}")
        if server not in self.servers:
            return NOTHING
        beside, answered = self._beside(server), self._answered_at(self.servers[server].edge)
        shut_out = self.shut_out()
        was_forwarder = Service.FORWARDER in self.servers[server].services
        had_chassis = bool(self.servers[server].chassis)
        was_router = Service.ROUTER in self.servers[server].services
        led = _led_to(self.servers[server])
        self._forget_server(server)
        self._serve(server, self.servers[server].anycast, ())
        del self.servers[server]
        self.detected.pop(server, None)
        self.fenced.discard(server)
        self.drained.discard(server)
        self.lost_routers.pop(server, None)
        everything = self.everything() if was_forwarder else NOTHING
        everything |= self._answers_otherwise(answered)
        everything |= self.leaves() if had_chassis else NOTHING
        everything |= self.prefixes() if was_router else NOTHING
        return shut_out | beside | everything | led | {Owner("server", server)}

    def fence(self, server: str) -> Touched:
        """Shut a server out until `unfence`."""
        if server not in self.servers:
            raise ModelError(f"there is no server {server}")
        if server in self.fenced:
            return NOTHING
        self.fenced.add(server)
        touched = self._shared_on(server) | self._anycast_served(server)
        return self.shut_out() | touched | self._beside(server) | {Owner("server", server)}

    def unfence(self, server: str) -> Touched:
        if server not in self.fenced:
            return NOTHING
        shut_out = self.shut_out()
        self.fenced.discard(server)
        touched = self._shared_on(server) | self._anycast_served(server)
        return shut_out | touched | self._beside(server) | {Owner("server", server)}

    def _anycast_served(self, server: str) -> Touched:
        """The anycast addresses that it has itself."""
        known = self.servers.get(server)
        return frozenset(Owner("anycast", str(ip)) for ip in (() if known is None else known.anycast))

    def ports_are_told(self, edge: str) -> Touched:
        """Which VMs have ports at an edge is known from now on."""
        server = self.server_of_edge(edge)
        if edge not in self.untold or server is None:
            return NOTHING
        self.untold.discard(edge)
        return self._shared_on(server.id)

    def lose_router(self, server: str, reason: str) -> Touched:
        """A router is not there: what goes by it takes another way, where there is one, until it returns."""
        if server not in self.servers:
            raise ModelError(f"there is no server {server}")
        is_new = server not in self.lost_routers
        self.lost_routers[server] = reason
        return self._beside(server) | {Owner("server", server)} if is_new else NOTHING

    def return_router(self, server: str) -> Touched:
        """It is there again."""
        if self.lost_routers.pop(server, None) is None:
            return NOTHING
        return self._beside(server) | {Owner("server", server)}

    def _answered_at(self, *edges: str) -> dict[str, Mac]:
        """As which gateway each of these edges answers: that of its server's group, or of none."""
        return {edge: self.gateway_mac_of(self.server_of_edge(edge)) for edge in edges if edge}

    def _answers_otherwise(self, answered: dict[str, Mac]) -> Touched:
        now = self._answered_at(*answered)
        return frozenset(Owner("switch", edge) for edge, mac in answered.items() if now[edge] != mac)

    def _beside(self, server: str) -> Touched:
        """Whether one of these is the way to a prefix depends on the other."""
        return frozenset(Owner("server", other) for other in routers_beside(self, server))

    def shut_out(self) -> Touched:
        """Where servers are fenced: what shuts one out may depend on who else is at its leaf."""
        if self.fenced and self.spines_by_mac:
            return frozenset(Owner("switch", spine.id) for spine in self.with_role(Role.SPINE))
        return frozenset(Owner("server", server) for server in self.fenced) if self.over_ip else NOTHING

    # ---- what a change touches ----

    def server_and_vms(self, server: str) -> Touched:
        """A server's own entries, and those of VMs: they go there, or, of guests, home by this gateway."""
        peer = self.peer_at(server) if self.peers else None
        guests = () if peer is None else (vm.id for vm in self.vms.values() if vm.home == peer.id)
        vms = {*self._vms_on.get(server, ()), *guests}
        shared = self.shared_of(*(self.vms[vm] for vm in vms))
        itself = self._beside(server) | {Owner("server", server)} | self._anycast_served(server)
        if server in self.servers and Service.ROUTER in self.servers[server].services:
            itself |= self.prefixes()  # At its port nobody may send from them.
        if self.channel_kbps:  # What the others send it has its address.
            itself |= {Owner("server", at) for v in vms for at in self.vms[v].locations}
        return shared.union(itself, (Owner("vm", v) for v in vms))

    def _follow_uplink(self, edge: str) -> None:
        """The server of an edge with several uplinks is where the one in use leads."""
        server, uplink = self.server_of_edge(edge), self.in_use.get(edge, "")
        at = self.uplink_places.get(PortRef(edge, uplink))
        if server is None or not has_several(self, server.id):
            return
        self.detected.pop(server.id, None)  # It may have been at another edge, or seen by ARP.
        if at is not None:
            self.detected[server.id] = at


def prefix_key(prefix: Prefix) -> tuple[int, int, int]:
    length, bits = prefix.prefixlen, prefix.max_prefixlen
    return prefix.version, length, int(prefix.network_address) >> (bits - length)


def _led_to(server: Server | None) -> Touched:
    """The anycast addresses that lead to it, and that they lead anywhere."""
    found = () if server is None else server.anycast
    ways = (Owner.of_prefix(host_prefix(ip), DEFAULT_VRF) for ip in found)
    return frozenset([*ways, *(Owner("anycast", str(ip)) for ip in found)])
