"""What the operator lays out: switches, links, VRFs, vnets, subnets and servers, and how it changes.

The lower half of `Network`; what its changes touch is told as there.
"""

from dataclasses import dataclass

from retinue.core.model.addresses import Mac, ModelError, Prefix
from retinue.core.model.constraints import (
    check_gateway_group,
    check_server,
    check_subnet,
    check_subnet_removal,
    check_vnet,
    check_vnet_removal,
    check_vrf,
    check_vrf_removal,
)
from retinue.core.model.entities import Link, Role, Server, Service, Subnet, Switch, Vnet
from retinue.core.model.view import NetworkView
from retinue.core.model.vrfs import Vrf


@dataclass(frozen=True, slots=True, order=True)
class Owner:
    """Something that has flows of its own: kind is "switch", "server" or "vm"."""

    kind: str
    id: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


Touched = frozenset[Owner]
NOTHING: Touched = frozenset()


@dataclass
class NetworkLayout(NetworkView):
    """Switches, links, VRFs, vnets, subnets and servers, and every change of them."""

    def add_switch(self, switch: Switch) -> Touched:
        clash = next((s for s in self.switches.values() if s.dpid == switch.dpid and s.id != switch.id), None)
        if clash:
            raise ModelError(
                f"switches {clash.id} and {switch.id} have the same datapath id {switch.dpid:#x}"
            )
        self.switches[switch.id] = switch
        return frozenset({Owner("switch", switch.id)})

    def add_link(self, link: Link) -> Touched:
        for ref, role in ((link.leaf, Role.LEAF), (link.spine, Role.SPINE)):
            if ref.switch not in self.switches or self.switches[ref.switch].role is not role:
                raise ModelError(
                    f"link {link.leaf} - {link.spine}: {ref.switch} is not a known {role} switch"
                )
        self.links = (*self.links, link)
        self._ways.setdefault((link.spine.switch, link.leaf.switch), link.spine)
        return self.everything()

    def put_vrf(self, vrf: Vrf) -> Touched:
        """Add a routing domain; one that is there stays as it is."""
        check_vrf(self, vrf)
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
        """Add a vnet, or replace the one of the same id: it names what its subnets have in common."""
        check_vnet(self, vnet)
        self.vnets[vnet.id] = vnet
        return NOTHING

    def remove_vnet(self, vnet: str) -> Touched:
        """Forget a vnet that has no subnets. Removing what is not there is no error."""
        check_vnet_removal(self, vnet)
        self.vnets.pop(vnet, None)
        return NOTHING

    def add_gateway_group(self, id: str, mac: Mac) -> Touched:
        """Servers of this group have a gateway MAC of their own."""
        check_gateway_group(self, id, mac)
        self.gateway_groups[id] = mac
        return self.everything()

    def add_subnet(self, subnet: Subnet) -> Touched:
        """Add a subnet, or replace the one of the same id; what it is used for stays inside it."""
        check_subnet(self, subnet)
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
        return frozenset(
            [
                *(Owner("switch", s) for s in self.switches),
                *self.routers(),
                *(Owner("vm", v) for v in inside),
            ]
        )

    def put_server(self, server: Server) -> Touched:
        """Add a server, or replace the one of the same id: a changed MAC re-routes its VMs."""
        check_server(self, server)
        old = self.servers.get(server.id)
        self._forget_server(server.id)
        self.servers[server.id] = server
        self._server_of_mac[server.mac] = server.id
        if server.edge:
            self._server_of_edge[server.edge] = server.id
        if server.address is not None:
            self._server_of_address[server.address] = server.id
        touched = self.server_and_vms(server.id)
        if self.gateway_mac_of(old) != self.gateway_mac_of(server) and server.edge:
            touched |= {Owner("switch", server.edge)}  # It answers for the gateway.
        return touched

    def remove_server(self, server: str) -> Touched:
        """Forget a server that runs no VMs. Removing what is not there is no error."""
        if self._vms_on.get(server):
            raise ModelError(f"server {server} runs VMs: {', '.join(sorted(self._vms_on[server]))}")
        if server not in self.servers:
            return NOTHING
        self._forget_server(server)
        del self.servers[server]
        self.detected.pop(server, None)
        self.fenced.discard(server)
        self.drained.discard(server)
        return frozenset({Owner("server", server)})

    def fence(self, server: str) -> Touched:
        """Shut a server out until `unfence`."""
        if server not in self.servers:
            raise ModelError(f"there is no server {server}")
        if server in self.fenced:
            return NOTHING
        self.fenced.add(server)
        return frozenset({Owner("server", server)})

    def unfence(self, server: str) -> Touched:
        if server not in self.fenced:
            return NOTHING
        self.fenced.discard(server)
        return frozenset({Owner("server", server)})

    # ---- what a change touches ----

    def everything(self) -> Touched:
        return frozenset(
            [
                *(Owner("switch", s) for s in self.switches),
                *(Owner("server", s) for s in self.servers),
                *(Owner("vm", v) for v in self.vms),
            ]
        )

    def by_prefixes(self) -> Touched:
        """What has entries for each prefix that is routed to a NIC."""
        fabric = (s.id for s in self.switches.values() if s.role is not Role.EDGE)
        return self.routers().union(Owner("switch", id) for id in fabric)

    def routers(self) -> Touched:
        """They may not send from what is ours."""
        return frozenset(Owner("server", s.id) for s in self.servers_with(Service.ROUTER))

    def server_and_vms(self, server: str) -> Touched:
        return frozenset({Owner("server", server), *(Owner("vm", v) for v in self._vms_on.get(server, ()))})

    def _forget_server(self, server: str) -> None:
        """Take it out of the indexes."""
        old = self.servers.get(server)
        if old is None:
            return
        del self._server_of_mac[old.mac]
        self._server_of_edge.pop(old.edge, None)
        if old.address is not None:
            del self._server_of_address[old.address]


def prefix_key(prefix: Prefix) -> tuple[int, int, int]:
    length, bits = prefix.prefixlen, prefix.max_prefixlen
    return prefix.version, length, int(prefix.network_address) >> (bits - length)
