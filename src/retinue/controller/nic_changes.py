"""Changes of a VM's NIC as its port stands, and of the addresses that several NICs may take."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from retinue.controller.changes import Change, Published, Undo
from retinue.controller.errors import RequestError
from retinue.controller.lease_changes import AddressAssigned, AddressReleased
from retinue.controller.state import State, Storable
from retinue.core.model import NIC, VM, Assignment, BindingKind, Network
from retinue.core.model.network import Touched
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType


@dataclass(frozen=True, slots=True)
class NICChanged(Change):
    """The manager changed a NIC: its port's attributes, its MAC, or what it is allowed."""

    vm: VM
    """As it was."""
    old: NIC
    new: NIC
    held: tuple[Assignment, ...]
    """What the NIC held."""

    def apply(self, state: State) -> Touched:
        return state.net.change_nic(self.vm.id, self.old, self.new)

    def undo(self, state: State) -> Undo:
        net = state.net

        def back() -> None:
            net.change_nic(self.vm.id, self.new, self.old, undoing=True)
            for held in self.held:  # What the NIC could not keep, too.
                net.assign(held)

        return back

    def kept(self) -> tuple[Storable, ...]:
        nics = tuple(self.new if nic == self.old else nic for nic in self.vm.nics)
        keeps = (a for a in self.held if self._keeps(a))
        return (replace(self.vm, nics=nics), *(replace(a, mac=self.new.mac) for a in keeps))

    def dropped(self) -> tuple[Storable, ...]:
        return tuple(a for a in self.held if not self._keeps(a))

    def _keeps(self, assignment: Assignment) -> bool:
        return assignment.kind is not BindingKind.ALLOWED or self.new.may_take(assignment.ip) is not None

    def events(self, state: State) -> Iterator[Published]:
        vm = state.net.vms[self.vm.id]
        yield EventType.VM_CHANGED, {"vm": vm, "server": vm.server}
        for held in self.dropped():
            assert isinstance(held, Assignment)
            reason = "its manager allows it to the NIC no longer"
            yield EventType.BINDING_REMOVED, {"vm": held.vm, "ip": held.leads, "reason": reason}


@dataclass(frozen=True, slots=True)
class AddressTaken(Change):
    """A NIC took an address that it is allowed, from who had it before."""

    assignment: Assignment
    nic: str
    """The id of its port."""
    before: str
    """The VM that had it, or "": nobody."""

    def apply(self, state: State) -> Touched:
        return state.net.take(self.assignment)

    def kept(self) -> tuple[Storable, ...]:
        return (self.assignment,)

    def events(self, state: State) -> Iterator[Published]:
        data = {"ip": self.assignment.ip, "vm": self.assignment.vm, "nic": self.nic, "before": self.before}
        yield EventType.ADDRESS_TAKEN, data


def named_nic(vm: VM, port_id: str) -> NIC:
    """The NIC of a VM with this id; "": the first. Raises RequestError."""
    nic = vm.nic_called(port_id) if port_id else vm.nic
    if nic is None:
        has = ", ".join(one.port_id for one in vm.nics)
        raise RequestError(f"VM {vm.id} has no NIC {port_id}, but {has}", ErrorCode.UNKNOWN_NIC)
    return nic


def static_assignments(net: Network, vm: str, nic: NIC) -> list[Assignment]:
    """Addresses the manager gives to a NIC are bindings at once."""
    return [net.static(vm, nic, ip) for ip in nic.addresses]


def replaced(net: Network, vm: VM, old: NIC, new: NIC, left: Collection[Assignment] = ()) -> list[Change]:
    """The changes that put `new` in the place of a VM's NIC, with the static addresses that come and go.

    What a NIC holds in one VRF means nothing in another; `left`: what else it holds no longer.
    """
    held, leaves = net.assignments_of(vm, old), net.vrf_of(old) != net.vrf_of(new)
    static = set() if leaves else {a.ip for a in held if a.kind is BindingKind.STATIC}
    gone = [a for a in held if leaves or a in left or (a.ip in static and a.ip not in new.addresses)]
    static -= {a.ip for a in left}
    given = [a for a in static_assignments(net, vm.id, new) if a.ip not in static]
    changed = NICChanged(vm, old, new, tuple(a for a in held if a not in gone))
    return [*map(AddressReleased, gone), changed, *map(AddressAssigned, given)]
