"""The whole network in one place, and how it changes.

Every change goes through a method here and returns the *owners* it touched: the things whose flows must
be computed again. What cannot be (see `constraints`) is rejected with ModelError before anything changes. No
method does any I/O; the same calls give the same network.
"""

from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush

from retinue.core.model.addresses import IP, Mac, ModelError, Prefix
from retinue.core.model.anycast import host_prefix
from retinue.core.model.binding import Assignment, BindingKind
from retinue.core.model.domains import free_share, has_a_share
from retinue.core.model.entities import (
    VM,
    VMPort,
)
from retinue.core.model.link_local import is_link_local
from retinue.core.model.nic import NIC, turn_of
from retinue.core.model.owners import NOTHING, Owner, Touched
from retinue.core.model.prefix_index import PrefixIndex
from retinue.core.model.reports import NetworkReports
from retinue.core.model.storage import FcLogin
from retinue.core.model.storage_checks import check_fc_login
from retinue.core.model.vm_constraints import check_assignment, check_newly_allowed, check_taking, check_vm
from retinue.core.model.vrfs import DEFAULT_VRF, Address, in_vrf

FEW = 100
"""Ends of leases that are kept besides one for each lease and one more."""


@dataclass
class Network(NetworkReports):
    """The network and every change of it; what it is at the moment is asked as of any `NetworkView`."""

    # ---- ports of VMs ----

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
        return self.shared_of(*(self.vms.get(owner.id) for owner in touched)) | touched

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
            for gone in {nic.mac for nic in old.nics} - {nic.mac for nic in vm.nics}:
                self._log_all_out(gone)
        self.vms[vm.id] = vm
        for nic in vm.nics:
            self._vm_of_mac[nic.mac] = vm.id
            self._vm_of_port_id[nic.port_id] = vm.id
            self._in_turn.setdefault(turn_of(nic.port_id), {})[nic.port_id] = None
            for key in self._allowed_keys(nic):
                self._allowed.setdefault(key, set()).add(vm.id)
            if nic.trusted:
                self._trusted[nic.port_id] = vm.id
            for prefix in nic.prefixes:
                self._routed.setdefault(self.vrf_of(nic), PrefixIndex()).put(prefix, vm.id)
            for ip in nic.anycast:
                self._anycast.setdefault(ip, {})[nic.port_id] = vm.id
                self._routed.setdefault(DEFAULT_VRF, PrefixIndex()).put(host_prefix(ip), vm.id)
            if nic.vnet:
                self._in_vnet.setdefault(nic.vnet, set()).add(vm.id)
        for location in vm.locations:
            self._vms_on.setdefault(location, set()).add(vm.id)
        self._share(vm)
        routed = self._sizes(vm) ^ (set() if old is None else self._sizes(old))
        touched = self.shared_of(old, vm) | {Owner("vm", vm.id)} | self._channels(old) | self._channels(vm)
        return touched | self._prefixes_of(routed)

    def _channels(self, vm: VM | None) -> Touched:
        """Servers between which a VM goes, where what they say to each other meanwhile is metered."""
        if vm is None or not self.channel_kbps or len(vm.locations) == 1:
            return NOTHING
        return frozenset(Owner("server", location) for location in vm.locations)

    def _share(self, vm: VM) -> None:
        """It keeps its number while it has to do with another domain."""
        if not has_a_share(self, vm):
            self._shares.pop(self._share_of.pop(vm.id, -1), None)
        elif vm.id not in self._share_of and (number := free_share(vm.id, self._shares)) is not None:
            self._share_of[vm.id], self._shares[number] = number, vm.id

    def end_anchor(self, vm: str) -> Touched:
        """Our gateway lets nothing through for a VM that is in another domain, until `take_anchor`."""
        if vm not in self.vms or vm in self.unanchored:
            return NOTHING
        self.unanchored.add(vm)
        return frozenset({Owner("vm", vm)})

    def take_anchor(self, vm: str) -> Touched:
        if vm not in self.unanchored:
            return NOTHING
        self.unanchored.discard(vm)
        return frozenset({Owner("vm", vm)}) if vm in self.vms else NOTHING

    def remove_vm(self, vm: str) -> Touched:
        """Forget a VM and every address assigned to it. Removing what is not there is no error."""
        old = self.vms.pop(vm, None)
        if old is None:
            return NOTHING
        routed = self._sizes(old)
        self._forget_indexes(old)
        self.unanchored.discard(vm)
        self._shares.pop(self._share_of.pop(vm, -1), None)
        for held in self._held_by.get(vm, ()):
            self.unassign(held.key)
        for nic in old.nics:
            self._log_all_out(nic.mac)
        touched = self.shared_of(old) | {Owner("vm", vm)} | self._channels(old)
        return touched | self._prefixes_of(routed)

    def assign(self, assignment: Assignment) -> Touched:
        """Assign an address. An address that another VM has is rejected, never taken away."""
        check_assignment(self, assignment)
        key = assignment.key
        if self.assignments.get(key) == assignment:
            return NOTHING
        old = self.assignments.get(key)
        self._forget_identifier(old)
        routed = self._route(old, assignment)
        if assignment.client_id:
            self._held_as.setdefault(assignment.client_id, {})[key] = assignment.vm
        self.assignments[key] = assignment
        self._note_end(assignment)
        self._note_held(assignment.vm, key, assignment)
        outside = self._in_no_subnet.setdefault(assignment.vrf, {})
        if self._is_beside_subnets(assignment):
            outside[assignment.ip] = None
        else:
            outside.pop(assignment.ip, None)
        return routed | {Owner("vm", assignment.vm)}

    def unassign(self, key: Address) -> Touched:
        """Take an address back from its VM. Taking back what nobody has is no error."""
        assignment = self.assignments.pop(key, None)
        if assignment is None:
            return NOTHING
        self._forget_identifier(assignment)
        self._note_held(assignment.vm, key)
        self._in_no_subnet[assignment.vrf].pop(assignment.ip, None)
        return self._route(assignment, None) | {Owner("vm", assignment.vm)}

    def _note_held(self, vm: str, key: Address, now: Assignment | None = None) -> None:
        """In its place among the VM's, where it was there before."""
        had = self._held_by.get(vm, ())
        if now is not None and any(one.key == key for one in had):
            has = tuple(now if one.key == key else one for one in had)
        else:
            has = (*(one for one in had if one.key != key), *(() if now is None else (now,)))
        if has:
            self._held_by[vm] = has
        else:
            self._held_by.pop(vm, None)

    def _is_beside_subnets(self, held: Assignment) -> bool:
        """An address that might be of a prefix: a link-local one cannot, and a prefix is in `_routed`."""
        if held.prefix is not None or is_link_local(held.ip):
            return False
        return self.subnet_of(held.ip, held.vrf) is None

    def _route(self, old: Assignment | None, new: Assignment | None) -> Touched:
        """A prefix is delegated from now on, in the place of one that was, if either is one."""
        was, now = (None if one is None else one.prefix for one in (old, new))
        if was == now:
            return NOTHING
        if old is not None and was is not None:
            self._routed[old.vrf].discard(was)
        if new is not None and now is not None:
            self._routed.setdefault(new.vrf, PrefixIndex()).put(now, new.vm)
        each = ((one.prefix, one.vrf) for one in (old, new) if one is not None and one.prefix is not None)
        return frozenset(Owner.of_prefix(*one) for one in each)

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

    # ---- storage ----

    def log_in(self, login: FcLogin) -> Touched:
        """A NIC may send storage frames from this MAC. One that another NIC has is rejected."""
        check_fc_login(self, login)
        if self.fc_logins.get(login.mac) == login:
            return NOTHING
        self.fc_logins[login.mac] = login
        self._logins_of.setdefault(login.nic, {})[login.mac] = login
        return frozenset({Owner("vm", login.vm)})

    def log_out(self, mac: Mac) -> Touched:
        """No more. What nobody is logged in with is no error."""
        login = self.fc_logins.pop(mac, None)
        if login is None:
            return NOTHING
        of_nic = self._logins_of[login.nic]
        del of_nic[mac]
        if not of_nic:
            del self._logins_of[login.nic]
        return frozenset({Owner("vm", login.vm)})

    def _log_all_out(self, nic: Mac) -> None:
        for login in self.logins_of(nic):
            self.log_out(login.mac)

    # ---- indexes ----

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
            self._in_turn.get(turn_of(nic.port_id), {}).pop(nic.port_id, None)
            self._trusted.pop(nic.port_id, None)
            self._in_vnet.get(nic.vnet, set()).discard(vm.id)
            for prefix in nic.prefixes:
                self._routed[self.vrf_of(nic)].discard(prefix)
            for ip in nic.anycast:
                self._leave_anycast(ip, nic.port_id)
        for key in {key for nic in vm.nics for key in self._allowed_keys(nic)}:  # Two NICs may have the same.
            self._allowed[key].discard(vm.id)
            if not self._allowed[key]:
                del self._allowed[key]
        for location in vm.locations:
            self._vms_on.get(location, set()).discard(vm.id)

    def _leave_anycast(self, ip: IP, port_id: str) -> None:
        others = self._anycast[ip]
        del others[port_id]
        if others:
            self._routed[DEFAULT_VRF].put(host_prefix(ip), next(iter(others.values())))
            return
        del self._anycast[ip]
        if ip in self._serving:
            self._routed[DEFAULT_VRF].put(host_prefix(ip), "")
        else:
            self._routed[DEFAULT_VRF].discard(host_prefix(ip))

    def _sizes(self, vm: VM) -> set[tuple[Prefix, str, tuple[IP, ...]]]:
        """Each prefix that is led to the VM, and what says how large a packet its NIC takes."""
        return {(prefix, nic.vnet, nic.addresses) for nic in vm.nics for prefix in self.prefixes_of(vm, nic)}

    def _prefixes_of(self, sizes: set[tuple[Prefix, str, tuple[IP, ...]]]) -> Touched:
        return frozenset(Owner.of_prefix(prefix, self.vrf_of_vnet(vnet)) for prefix, vnet, _ in sizes)


__all__ = ["NOTHING", "Network", "Owner", "Touched"]
