"""Whether an entry that nobody wants may be taken from a switch: not heard of yet is not known to be wrong.

A controller that has just started knows VMs and servers from its database, but not yet the numbers of ports:
each switch tells its own when it connects, and those of VMs are told by the edge's database. Until then the
program lacks entries that are right. So an entry that is on a switch and not in its program is judged by its
owner, whom the cookie tells:

    whose it is                     is judged once
    nobody's of ours                at once
    a switch's own                  at once: the switch has told its ports when it connected
    a server's                      the server's location is known, and (on a spine) its leaf's ports are
    a VM's, on the edge it is at    that edge's database has been read, or has told the VM's port
    a guest's, on any switch        its gateway is known there, as a server, and that one's edge has told its
                                    ports; and as of any other VM
    a VM's, on any other edge       at once: nothing of the VM belongs there
    a VM's, on a leaf or a spine    the servers it is at are known there, as above
    gone: it was known, and went    at once
    a vnet's, on an edge            that edge's database has been read
    a vnet's, on a leaf or a spine  the servers of all its VMs are known there, and every VM is, as below
    an anycast address's            every VM is known, as below, and the servers of all that have it, and are
                                    not fenced
    a routed prefix's               the routers are known there, as servers
    a vnet's group                  as the vnet's entries, also where it is to be another: ports are told one
                                    by one
    none's: meters, other groups    at once, but for a meter used by an entry that cannot be judged: with it
                                    the switch would remove that entry
    kept as it is: a migration      when it is so no longer: what was told of its last step is not known, and
    is taken up after a restart     switches must be told in order
    never heard of                  on an edge: its database has been read; elsewhere: every edge's has, or
                                    the controller's own database has told all VMs there are
"""

from collections.abc import Hashable, Set
from dataclasses import dataclass, field
from ipaddress import ip_address

from retinue.core.model import IP, Role, Service
from retinue.core.model.anycast import members_of
from retinue.core.model.network import Network, Owner
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.cookies import is_ours, owner_hash, owner_hash_of
from retinue.core.pipeline.entry import Entry, Flow, Group
from retinue.core.pipeline.flooding import vnet_of_group
from retinue.core.pipeline.underlay import underlay_of


@dataclass
class Knowledge:
    """What has been told since the start, and what may be judged by it."""

    net: Network
    compiler: Compiler
    not_computed: Set[Owner]
    """Owners that were touched, and whose entries have not been computed since."""
    edges_read: set[str] = field(default_factory=set)
    """Edges whose databases have been read since the start."""
    kept: set[Owner] = field(default_factory=set)
    """Owners whose entries are left as they are on every switch, whatever their programs say."""
    all_vms_known: bool = False
    """The controller's own database has been read: a VM that is not in it is none of ours."""

    def may_judge(self, entry: Entry, switch: str) -> bool:
        """True when all is known that speaks for this entry: if it is not wanted, it is wrong."""
        is_edge = self.net.switches[switch].role is Role.EDGE
        match entry:
            case Flow() if is_ours(entry.cookie):
                owners = self.compiler.owners_of(entry.cookie)
                if not owners and not self.compiler.has_gone(entry.cookie):
                    return switch in self.edges_read if is_edge else self._no_vm_is_missing()
                return all(owner not in self.not_computed and self.knows(owner, switch) for owner in owners)
            case Group() if (vnet := vnet_of_group(self.net, entry.id)) is not None:
                return self.knows(Owner("vnet", vnet.id), switch)
            case _:
                return True

    def told(self, switch: str) -> Hashable:
        """What has been told that entries of many owners on this switch are judged by: while it is the same,
        only those of owners that were touched may be judged otherwise than before."""
        net = self.net
        gateways = tuple(net.has_told_ports(net.servers[peer.gateway].edge) for peer in net.peers.values())
        everywhere = frozenset(self.kept), self.all_vms_known or len(self.edges_read), gateways
        match net.switches[switch].role:
            case Role.EDGE:
                return everywhere, switch in self.edges_read
            case Role.LEAF if not net.leaves_know_all:
                return everywhere, len(net.detected)
            case _:
                leaves = sum(net.has_told_ports(leaf.id) for leaf in net.with_role(Role.LEAF))
                return everywhere, len(net.detected), leaves

    def owner_of(self, entry: Entry) -> int | None:
        """The hash of the owner by which an entry is judged; None for one that nobody is asked about."""
        match entry:
            case Flow():
                return owner_hash_of(entry.cookie)
            case Group() if (vnet := vnet_of_group(self.net, entry.id)) is not None:
                return owner_hash(Owner("vnet", vnet.id))
            case _:
                return None

    def is_kept(self, entry: Entry) -> bool:
        """True when the entry's owner is kept as it is; of a vnet's group: a VM in it is."""
        if not self.kept:
            return False
        match entry:
            case Flow():
                return any(self._keeps(owner) for owner in self.compiler.owners_of(entry.cookie))
            case Group() if (vnet := vnet_of_group(self.net, entry.id)) is not None:
                return any(Owner("vm", vm.id) in self.kept for vm, _ in self.net.members(vnet.id))
            case _:
                return False

    def is_held_back(self, vm: str) -> bool:
        """True while the VM's entries are kept as they are."""
        return Owner("vm", vm) in self.kept

    def knows(self, owner: Owner, switch: str) -> bool:
        """True when all that an owner's entries on a switch depend on has been told, and counts."""
        return not self._keeps(owner) and self.has_been_told(owner, switch)

    def _keeps(self, owner: Owner) -> bool:
        """An anycast address is kept as it is while one of its members is."""
        members = members_of(self.net, ip_address(owner.id)) if owner.kind == "anycast" and self.kept else ()
        return owner in self.kept or any(Owner("vm", vm.id) in self.kept for vm, _ in members)

    def has_been_told(self, owner: Owner, switch: str) -> bool:
        """True when all that an owner's entries on a switch depend on has been told, be it kept or not."""
        net, underlay = self.net, underlay_of(self.net)
        if owner.kind == "switch":
            return True
        if owner.kind == "server":
            return owner.id not in net.servers or underlay.knows(owner.id, switch)
        if owner.kind == "prefix":
            return all(underlay.knows(router.id, switch) for router in net.servers_with(Service.ROUTER))
        if owner.kind == "vnet":
            return self._knows_vnet(owner.id, switch)
        if owner.kind == "anycast":
            return self._knows_members(ip_address(owner.id), switch)
        vm = net.vms.get(owner.id)
        if vm is None:
            return True
        if vm.home in net.peers and not self._knows_gateway(net.peers[vm.home].gateway, switch):
            return False
        if net.switches[switch].role is not Role.EDGE:
            return all(underlay.knows(server, switch) for server in vm.locations)
        here = net.server_of_edge(switch)
        if here is None or here.id not in (vm.server, *vm.also) or switch in self.edges_read:
            return True
        return all(net.port_of(nic, switch) is not None for nic in vm.nics)

    def _knows_members(self, ip: IP, switch: str) -> bool:
        """Who has it, and where each is: while one of them is not known, another seems to be the nearest."""
        if self.net.switches[switch].role is Role.EDGE:
            return switch in self.edges_read
        servers = {server for vm, _ in members_of(self.net, ip) for server in vm.locations} - self.net.fenced
        themselves = set(self.net.serving(ip)) - self.net.fenced
        edges, reached = (self.net.servers[server].edge for server in servers), underlay_of(self.net)
        known = self._no_vm_is_missing() and all(edge in self.edges_read for edge in edges)
        return known and all(reached.knows(server, switch) for server in servers | themselves)

    def _knows_gateway(self, gateway: str, switch: str) -> bool:
        """Its uplink and its tunnel, if it has one, and its place."""
        told = self.net.has_told_ports(self.net.servers[gateway].edge)
        return told and underlay_of(self.net).knows(gateway, switch)

    def _knows_vnet(self, vnet: str, switch: str) -> bool:
        if vnet not in self.net.vnets or not self.net.vnets[vnet].floods:
            return True
        if self.net.switches[switch].role is Role.EDGE:
            return switch in self.edges_read
        servers = {server for vm, _ in self.net.members(vnet) for server in vm.locations}
        if self.all_vms_known:  # So are the places of servers: one that has none was never seen.
            servers = {server for server in servers if self.net.location(server) is not None}
        reached = underlay_of(self.net)
        return self._no_vm_is_missing() and all(reached.knows(server, switch) for server in servers)

    def _no_vm_is_missing(self) -> bool:
        edges = (switch.id for switch in self.net.with_role(Role.EDGE))
        return self.all_vms_known or all(edge in self.edges_read for edge in edges)
