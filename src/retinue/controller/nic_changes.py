"""Changes of a VM's NIC as its port stands, and of the addresses that several NICs may take."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from retinue.controller.changes import Change, Published, Undo
from retinue.controller.state import State, Storable
from retinue.core.model import NIC, VM, Assignment, BindingKind
from retinue.core.model.network import Touched
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
            yield EventType.BINDING_REMOVED, {"vm": held.vm, "ip": held.ip, "reason": reason}


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
