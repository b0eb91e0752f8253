"""The whole network in one place, and how it changes.

Every change goes through a method here and returns the *owners* it touched: the things whose flows must
be computed again. What cannot be (see `constraints`) is rejected with ModelError before anything changes. No
method does any I/O; the same calls give the same network.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush

from retinue.core.model.addresses import IP, Mac, ModelError, Prefix
from retinue.core.model.binding import Assignment, BindingKind
from retinue.core.model.constraints import (
    check_assignment,
    check_gateway_group,
    check_newly_allowed,
    check_server,
    check_subnet,
    check_subnet_removal,
    check_taking,
    check_vm,
    check_vnet,
    check_vnet_removal,
    check_vrf,
    check_vrf_removal,
)
from retinue.core.model.entities import (
    VM,
    Link,
    PortRef,
    Role,
    Server,
    Service,
    Subnet,
    Switch,
    VMPort,
    Vnet,
)
from retinue.core.model.nic import NIC
from retinue.core.model.view import NetworkView
from retinue.core.model.vrfs import Address, Vrf, in_vrf


@dataclass(frozen=True, slots=True, order=True)
class Owner:
    """Something that has flows of its own: kind is "switch", "server" or "vm"."""

    kind: str
    id: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


Touched = frozenset[Owner]
NOTHING: Touched = frozenset()
FEW = 100
"""Ends of leases that are kept besides one for each lease and one more."""


@dataclass
class Network(NetworkView):
    """The network and every change of it; what it is at the moment is asked as of any `NetworkView`."""

    # ---- what is fixed by the operator ----

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
            key = _prefix_key(subnet.prefix)
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
                *self._routers(),
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
        touched = self._server_and_vms(server.id)
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

    # ---- what switches report ----

    def set_ports(self, switch: str, numbers: Mapping[str, int]) -> Touched:
        """The switch's port numbers by name, all of them; touches what uses a port whose number changed."""
        old = self._numbers.get(switch, {})
        changed = {name for name in old.keys() | numbers.keys() if old.get(name) != numbers.get(name)}
        self._numbers[switch] = dict(numbers)
        self._names[switch] = {number: name for name, number in numbers.items()}
        match self.switches[switch].role:
            case Role.SPINE:
                # A spine's entries point at leaves, and belong to what is under these.
                leaves = {
                    leaf
                    for (spine, leaf), ref in self._ways.items()
                    if spine == switch and ref.port in changed
                }
                near = [
                    s for s in self.servers if (at := self.location(s)) is not None and at.switch in leaves
                ]
                itself = bool(leaves)
            case Role.LEAF:
                at_changed = {PortRef(switch, name) for name in changed}
                near = [s for s in self.servers if self.location(s) in at_changed]
                itself = bool(near) or any(link.leaf in at_changed for link in self.links)
            case Role.EDGE:
                itself = self.switches[switch].uplink in changed
                runs = self._server_of_edge.get(switch)
                near = [runs] if itself and runs is not None else []
        touched = frozenset({Owner("switch", switch)}) if itself else NOTHING
        return touched.union(*(self._server_and_vms(s) for s in near))

    def detect(self, server: str, at: PortRef) -> Touched:
        """The server's ARP came in at this leaf port.

        A port has one DHCP server at most, the first: another one that is seen there is ignored.
        """
        if self.detected.get(server) == at:
            return NOTHING
        if Service.DHCP in self.servers[server].services:
            first = self.dhcp_server_at(at)
            if first is not None and first.id != server:
                return NOTHING
        self.detected[server] = at
        return self._server_and_vms(server)

    def set_vm_port(self, port_id: str, switch: str, port: VMPort | None) -> Touched:
        """The port of a VM's NIC on an edge switch appeared, changed, or (None) went away.

        A number belongs to one port; the NIC that had the number before has lost its port.
        """
        ports = self.vm_ports.setdefault(port_id, {})
        old = ports.pop(switch, None)
        if old == port:
            if old is not None:
                ports[switch] = old
            return NOTHING
        touched = {self._owner_of_port(port_id)}
        if old is not None:
            del self._port_id_at[switch, old.number]
        if port is not None:
            before = self._port_id_at.get((switch, port.number))
            if before is not None:
                del self.vm_ports[before][switch]
                touched.add(self._owner_of_port(before))
            ports[switch] = port
            self._port_id_at[switch, port.number] = port_id
        return frozenset(touched)

    def _owner_of_port(self, port_id: str) -> Owner:
        return Owner("vm", self._vm_of_port_id.get(port_id, port_id))

    # ---- VMs and their addresses ----

    def put_vm(self, vm: VM) -> Touched:
        """Add a VM, or replace the one of the same id."""
        check_vm(self, vm)
        old = self.vms.get(vm.id)
        if old == vm:
            return NOTHING
        if old is not None:
            self._forget_indexes(old)
        self.vms[vm.id] = vm
        for nic in vm.nics:
            self._vm_of_mac[nic.mac] = vm.id
            self._vm_of_port_id[nic.port_id] = vm.id
            for key in self._allowed_keys(nic):
                self._allowed.setdefault(key, set()).add(vm.id)
            if nic.trusted:
                self._trusted[nic.port_id] = vm.id
            for prefix in nic.prefixes:
                self._routed[_prefix_key(prefix)] = prefix, vm.id
        for location in vm.locations:
            self._vms_on.setdefault(location, set()).add(vm.id)
        routed = _prefixes(vm) if old is None else _prefixes(vm) ^ _prefixes(old)
        return frozenset({Owner("vm", vm.id)}) | (self._by_prefixes() if routed else NOTHING)

    def remove_vm(self, vm: str) -> Touched:
        """Forget a VM and every address assigned to it. Removing what is not there is no error."""
        old = self.vms.pop(vm, None)
        if old is None:
            return NOTHING
        self._forget_indexes(old)
        for key in tuple(self._held_by.get(vm, ())):
            self.unassign(key)
        return frozenset({Owner("vm", vm)}) | (self._by_prefixes() if _prefixes(old) else NOTHING)

    def assign(self, assignment: Assignment) -> Touched:
        """Assign an address. An address that another VM has is rejected, never taken away."""
        check_assignment(self, assignment)
        key = assignment.key
        if self.assignments.get(key) == assignment:
            return NOTHING
        self._forget_identifier(self.assignments.get(key))
        if assignment.client_id:
            self._held_as.setdefault(assignment.client_id, {})[key] = assignment.vm
        self.assignments[key] = assignment
        self._note_end(assignment)
        self._held_by.setdefault(assignment.vm, {})[key] = assignment
        return frozenset({Owner("vm", assignment.vm)})

    def unassign(self, key: Address) -> Touched:
        """Take an address back from its VM. Taking back what nobody has is no error."""
        assignment = self.assignments.pop(key, None)
        if assignment is None:
            return NOTHING
        self._forget_identifier(assignment)
        del self._held_by[assignment.vm][key]
        return frozenset({Owner("vm", assignment.vm)})

    def next_lease_end(self) -> float | None:
        """When the next lease ends; None if none does."""
        ends = self._lease_ends
        while ends and not self._ends_then(ends[0]):
            heappop(ends)
        return ends[0][0] if ends else None

    def leases_ended(self, now: float) -> list[Assignment]:
        """Those whose lease has ended by now, the earliest first."""
        ended: dict[Address, Assignment] = {}
        while (end := self.next_lease_end()) is not None and end <= now:
            _, _, ip, vrf = heappop(self._lease_ends)
            key = in_vrf(vrf, ip)
            ended[key] = self.assignments[key]
        for lease in ended.values():  # Until they are taken back they are there, and have ended.
            self._note_end(lease)
        return list(ended.values())

    def _note_end(self, lease: Assignment) -> None:
        if lease.lease_end is None:
            return
        if len(self._lease_ends) > 2 * len(self.assignments) + FEW:  # More are past than count.
            self._lease_ends = [entry for entry in set(self._lease_ends) if self._ends_then(entry)]
            heapify(self._lease_ends)
        heappush(self._lease_ends, (lease.lease_end, lease.ip.version, lease.ip, lease.vrf))

    def _ends_then(self, entry: tuple[float, int, IP, str]) -> bool:
        held = self.holder(*entry[2:])
        return held is not None and held.lease_end == entry[0]

    def change_nic(self, vm: str, old: NIC, new: NIC, *, undoing: bool = False) -> Touched:
        """Replace a NIC of a VM in place, with what it holds: its MAC may be another, or what it is allowed.

        An address that it holds and may take no longer it loses. `undoing`: it had all this before.
        """
        if not undoing:
            check_newly_allowed(self, vm, old, new)
        known = self.vms[vm]
        changed = replace(known, nics=tuple(new if nic == old else nic for nic in known.nics))
        held = self.assignments_of(known, old)
        for assignment in held:
            self.unassign(assignment.key)
        is_put = False
        try:
            touched = self.put_vm(changed)
            is_put = True
            for assignment in held:
                if assignment.kind is not BindingKind.ALLOWED or new.may_take(assignment.ip):
                    touched |= self.assign(replace(assignment, mac=new.mac))
        except ModelError:
            for assignment in held:
                self.unassign(assignment.key)
            if is_put:
                self.put_vm(known)
            for assignment in held:
                self.assign(assignment)
            raise
        return touched

    def take(self, assignment: Assignment) -> Touched:
        """A NIC takes an address that it is allowed from whoever has it."""
        check_taking(self, assignment)
        return self.unassign(assignment.key) | self.assign(assignment)

    # ---- what a change touches ----

    def everything(self) -> Touched:
        return frozenset(
            [
                *(Owner("switch", s) for s in self.switches),
                *(Owner("server", s) for s in self.servers),
                *(Owner("vm", v) for v in self.vms),
            ]
        )

    def _by_prefixes(self) -> Touched:
        """What has entries for each prefix that is routed to a NIC."""
        fabric = (s.id for s in self.switches.values() if s.role is not Role.EDGE)
        return self._routers().union(Owner("switch", id) for id in fabric)

    def _routers(self) -> Touched:
        """They may not send from what is ours."""
        return frozenset(Owner("server", s.id) for s in self.servers_with(Service.ROUTER))

    def _server_and_vms(self, server: str) -> Touched:
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

    def _forget_identifier(self, assignment: Assignment | None) -> None:
        if assignment is not None and assignment.client_id:
            held = self._held_as[assignment.client_id]
            del held[assignment.key]
            if not held:
                del self._held_as[assignment.client_id]

    def _allowed_keys(self, nic: NIC) -> set[Address | Mac]:
        """Each once: a virtual router has one MAC for all its addresses."""
        addresses = (in_vrf(self.vrf_of(nic), one.ip) for one in nic.allowed)
        return {*addresses, *(one.mac for one in nic.allowed if one.mac)}

    def _forget_indexes(self, vm: VM) -> None:
        for nic in vm.nics:
            self._vm_of_mac.pop(nic.mac, None)
            self._vm_of_port_id.pop(nic.port_id, None)
            self._trusted.pop(nic.port_id, None)
            for prefix in nic.prefixes:
                self._routed.pop(_prefix_key(prefix), None)
        for key in {key for nic in vm.nics for key in self._allowed_keys(nic)}:  # Two NICs may have the same.
            self._allowed[key].discard(vm.id)
            if not self._allowed[key]:
                del self._allowed[key]
        for location in vm.locations:
            self._vms_on.get(location, set()).discard(vm.id)


def _prefixes(vm: VM) -> set[Prefix]:
    return {prefix for nic in vm.nics for prefix in nic.prefixes}


def _prefix_key(prefix: Prefix) -> tuple[int, int, int]:
    length, bits = prefix.prefixlen, prefix.max_prefixlen
    return prefix.version, length, int(prefix.network_address) >> (bits - length)


__all__ = ["NOTHING", "Network", "Owner", "Touched"]
