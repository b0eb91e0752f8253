"""Changes of which NIC has which address, and of leases that have ended or wait for their renewal."""

from dataclasses import dataclass

from retinue.controller.changes import Change, Undo
from retinue.controller.state import EndedLease, PendingRenewal, State, Storable
from retinue.core.model import Assignment, ModelError, Origin
from retinue.core.model.network import NOTHING, Touched


@dataclass(frozen=True, slots=True)
class AddressAssigned(Change):
    """A VM holds an address, until its lease ends.

    Nothing is published here: a binding counts when every switch has confirmed it, see DhcpPath.bind.
    """

    assignment: Assignment

    def apply(self, state: State) -> Touched:
        given, net = self.assignment, state.net
        vm = net.vms.get(given.vm)
        is_guest = vm is not None and bool(vm.home)  # Its subnet is at home.
        if given.origin is Origin.MANAGER and not is_guest and net.subnet_of(given.ip, given.vrf) is None:
            raise ModelError(f"VM {given.vm}: {given.ip} is in no subnet of the fabric")
        return net.assign(given)

    def undo(self, state: State) -> Undo:
        net, key, old = state.net, self.assignment.key, state.net.assignments.get(self.assignment.key)
        return lambda: net.unassign(key) if old is None else net.assign(old)

    def kept(self) -> tuple[Storable, ...]:
        return (self.assignment,)


@dataclass(frozen=True, slots=True)
class AddressReleased(Change):
    """A VM holds an address no longer. DhcpPath.release publishes it, when its entries are removed."""

    assignment: Assignment

    def apply(self, state: State) -> Touched:
        return state.net.unassign(self.assignment.key)

    def undo(self, state: State) -> Undo:
        net, old = state.net, state.net.assignments.get(self.assignment.key)
        return lambda: net.unassign(self.assignment.key) if old is None else net.assign(old)

    def dropped(self) -> tuple[Storable, ...]:
        return (self.assignment,)


@dataclass(frozen=True, slots=True)
class LeaseEnded(Change):
    """The lease of a VM's NIC ran out; it is remembered, to be asked for again."""

    lease: Assignment

    def apply(self, state: State) -> Touched:
        state.ended_leases.pop(self.lease.mac, None)
        state.ended_leases[self.lease.mac] = self.lease
        return NOTHING

    def kept(self) -> tuple[Storable, ...]:
        return (EndedLease(self.lease),)


@dataclass(frozen=True, slots=True)
class EndedLeaseForgotten(Change):
    """The NIC has another lease, or is no more, or too many have ended since."""

    lease: Assignment

    def apply(self, state: State) -> Touched:
        state.ended_leases.pop(self.lease.mac, None)
        return NOTHING

    def dropped(self) -> tuple[Storable, ...]:
        return (EndedLease(self.lease),)


@dataclass(frozen=True, slots=True)
class RenewalPending(Change):
    """A VM has migrated: this lease of a NIC of it is to be renewed from its new server."""

    nic: str
    """As of PendingRenewal."""

    def apply(self, state: State) -> Touched:
        state.pending_renewals.add(self.nic)
        return NOTHING

    def kept(self) -> tuple[Storable, ...]:
        return (PendingRenewal(self.nic),)


@dataclass(frozen=True, slots=True)
class RenewalSettled(Change):
    """A DHCP server has answered, or there is nothing to renew any more."""

    nic: str

    def apply(self, state: State) -> Touched:
        state.pending_renewals.discard(self.nic)
        return NOTHING

    def dropped(self) -> tuple[Storable, ...]:
        return (PendingRenewal(self.nic),)
