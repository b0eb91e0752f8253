"""The changes of what the controller knows, each described once: applied, stored and published from that.

`Context.apply` is the one place where they are made. A change that is stored names the values it keeps or
drops (kinds.KINDS has them); a DerivedChange stores nothing: its fact is reported again after a restart.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from retinue.controller.state import ServerLocation, State, Storable, TakenOut
from retinue.core.migration import Migration
from retinue.core.model import VM, Assignment, PortRef, Server, VMPort
from retinue.core.model.network import NOTHING, Touched
from retinue.core.model.vm_constraints import check_vm
from retinue.protocol.events import EventType
from retinue.protocol.migrations import Order
from retinue.protocol.vms import VMState

Published = tuple[EventType | Order, dict[str, Any]]
"""An event's type and fields."""
Undo = Callable[[], object]


class Change(ABC):
    """One change. `apply` makes all of it, or raises ModelError and makes nothing of it."""

    @abstractmethod
    def apply(self, state: State) -> Touched | None:
        """Make the change; what it touched. None: nothing changed, and nothing is stored or published."""

    def undo(self, state: State) -> Undo:
        """What makes the state again what it is now; asked for before `apply`, for changes made together."""
        raise TypeError(f"a {type(self).__name__} cannot be undone: make it by itself")

    def kept(self) -> tuple[Storable, ...]:
        """Values to be stored, each in place of the one of the same key."""
        return ()

    def dropped(self) -> tuple[Storable, ...]:
        """Values whose rows go."""
        return ()

    def events(self, state: State) -> Iterator[Published]:
        """What is published when the change has been made and stored."""
        yield from ()


class DerivedChange(Change):
    """A change of what switches and hypervisors report: reported again after a restart, so never stored."""


# ---- servers ----


@dataclass(frozen=True, slots=True)
class ServerRegistered(Change):
    """A server was given, or changed, by the manager."""

    server: Server

    def apply(self, state: State) -> Touched:
        touched = state.net.put_server(self.server)
        state.taken_out.discard(f"server {self.server.id}")
        return touched

    def undo(self, state: State) -> Undo:
        net, old, taken_out = state.net, state.net.servers.get(self.server.id), set(state.taken_out)

        def back() -> None:
            state.taken_out.update(taken_out)
            net.remove_server(self.server.id) if old is None else net.put_server(old)

        return back

    def kept(self) -> tuple[Storable, ...]:
        return (self.server,)

    def dropped(self) -> tuple[Storable, ...]:
        return (TakenOut(f"server {self.server.id}"),)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.SERVER_REGISTERED, {"server": self.server}
        yield from _mismatch(self.server, state.net.detected.get(self.server.id))


@dataclass(frozen=True, slots=True)
class ServerLocated(Change):
    """A server's ARP shows it at this leaf port, for the first time or after it was elsewhere."""

    server: str
    at: PortRef
    before: PortRef | None

    def apply(self, state: State) -> Touched | None:
        return state.net.detect(self.server, self.at) or None

    def kept(self) -> tuple[Storable, ...]:
        return (ServerLocation(self.server, self.at),)

    def events(self, state: State) -> Iterator[Published]:
        yield from _mismatch(state.net.servers[self.server], self.at)
        kind = EventType.SERVER_DETECTED if self.before is None else EventType.SERVER_MOVED
        before = None if self.before is None else str(self.before)
        yield kind, {"server": self.server, "location": str(self.at), "before": before}


def _mismatch(server: Server, detected: PortRef | None) -> Iterator[Published]:
    if server.given_at is not None and detected not in (None, server.given_at):
        data = {"server": server.id, "given": str(server.given_at), "detected": str(detected)}
        yield EventType.SERVER_MISMATCH, data


# ---- VMs ----


class _VMPut(Change):
    """A VM comes, or takes the place of the one of the same id."""

    vm: VM

    def apply(self, state: State) -> Touched:
        touched = state.net.put_vm(self.vm)
        state.vm_states[self.vm.id] = VMState.REGISTERED
        return touched

    def undo(self, state: State) -> Undo:
        net, vm, old, vm_state = (
            state.net,
            self.vm.id,
            state.net.vms.get(self.vm.id),
            state.vm_states.get(self.vm.id),
        )

        def back() -> None:
            if old is None:
                net.remove_vm(vm)
            else:
                net.put_vm(old)
            if vm_state is None:
                state.vm_states.pop(vm, None)
            else:
                state.vm_states[vm] = vm_state

        return back

    def kept(self) -> tuple[Storable, ...]:
        return (self.vm,)


@dataclass(frozen=True, slots=True)
class VMRegistered(_VMPut):
    """The manager has registered a VM."""

    vm: VM

    def events(self, state: State) -> Iterator[Published]:
        edge = state.net.servers[self.vm.server].edge
        yield EventType.VM_REGISTERED, {"vm": self.vm, "server": self.vm.server, "edge": edge}


@dataclass(frozen=True, slots=True)
class VMChanged(Change):
    """The manager has changed what a registered VM is like. It runs on, or stays off."""

    vm: VM

    def apply(self, state: State) -> Touched:
        return state.net.put_vm(self.vm)

    def undo(self, state: State) -> Undo:
        net, old = state.net, state.net.vms[self.vm.id]
        return lambda: net.put_vm(old)

    def kept(self) -> tuple[Storable, ...]:
        return (self.vm,)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.VM_CHANGED, {"vm": self.vm, "server": self.vm.server}


@dataclass(frozen=True, slots=True)
class VMReported(_VMPut):
    """A server reported a VM that no manager registered, by the port it made."""

    vm: VM

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.VM_REPORTED, {"vm": self.vm, "server": self.vm.server}


@dataclass(frozen=True, slots=True)
class VMRemoved(Change):
    """A VM went, and with it the addresses it held."""

    vm: VM
    held: tuple[Assignment, ...]

    def apply(self, state: State) -> Touched:
        state.vm_states.pop(self.vm.id, None)
        return state.net.remove_vm(self.vm.id)

    def dropped(self) -> tuple[Storable, ...]:
        return (*self.held, self.vm)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.VM_REMOVED, {"vm": self.vm}


@dataclass(frozen=True, slots=True)
class VMPlaced(Change):
    """A step of a migration: where the VM's traffic is delivered, and where else its network must be.

    Only `server` is stored: the rest follows from the migration (core.migration.placement).
    """

    vm: VM

    def apply(self, state: State) -> Touched:
        return state.net.put_vm(self.vm)

    def undo(self, state: State) -> Undo:
        net, old = state.net, state.net.vms[self.vm.id]
        return lambda: net.put_vm(old)

    def kept(self) -> tuple[Storable, ...]:
        return (self.vm,)


@dataclass(frozen=True, slots=True)
class VMStateChanged(DerivedChange):
    """A VM is ready, has started or has stopped."""

    vm: str
    vm_state: VMState
    event: EventType
    server: str
    more: Mapping[str, str] = field(default_factory=dict)
    """Of the event."""

    def apply(self, state: State) -> Touched:
        state.vm_states[self.vm] = self.vm_state
        return NOTHING

    def events(self, state: State) -> Iterator[Published]:
        yield self.event, {"vm": state.net.vms[self.vm], "server": self.server, **self.more}


@dataclass(frozen=True, slots=True)
class VMPowerChanged(Change):
    """A VM is to run, or no longer. `order`, with `more`, tells its agent."""

    vm: VM
    order: EventType | None
    more: Mapping[str, bool | float]

    def apply(self, state: State) -> Touched:
        touched = state.net.put_vm(self.vm)
        if self.order is EventType.VM_START and state.vm_states.get(self.vm.id) is not VMState.RUNNING:
            state.vm_states[self.vm.id] = VMState.REGISTERED  # It is ready when its network is.
        return touched

    def kept(self) -> tuple[Storable, ...]:
        return (self.vm,)

    def events(self, state: State) -> Iterator[Published]:
        if self.order is not None:
            yield self.order, {"vm": self.vm, "server": self.vm.server, **self.more}


@dataclass(frozen=True, slots=True)
class VMNicsChanged(Change):
    """A VM has other NICs than before, and what the ones that went held (`ended`) is theirs no more."""

    vm: VM
    before: VM
    ended: tuple[Assignment, ...] = ()

    def apply(self, state: State) -> Touched:
        check_vm(state.net, self.vm, without=self.ended)
        touched = [state.net.unassign(held.key) for held in self.ended]
        return frozenset().union(state.net.put_vm(self.vm), *touched)

    def undo(self, state: State) -> Undo:
        net = state.net

        def back() -> None:
            net.put_vm(self.before)
            for held in self.ended:
                net.assign(held)

        return back

    def kept(self) -> tuple[Storable, ...]:
        return (self.vm,)

    def dropped(self) -> tuple[Storable, ...]:
        return self.ended

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.VM_NICS, {"vm": self.vm, "server": self.vm.server}
        for held in self.ended:
            data = {"vm": held.vm, "ip": held.leads, "reason": "the manager took it from its NIC"}
            yield EventType.BINDING_REMOVED, data


# ---- migrations ----


class _MigrationPut(Change):
    migration: Migration

    def apply(self, state: State) -> Touched:
        state.migrations[self.migration.id] = self.migration
        return NOTHING

    def kept(self) -> tuple[Storable, ...]:
        return (self.migration,)


@dataclass(frozen=True, slots=True)
class MigrationStepped(_MigrationPut):
    """A migration has begun, or has taken a step."""

    migration: Migration

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.MIGRATION_STEP, {"migration": self.migration}


@dataclass(frozen=True, slots=True)
class TargetAwaitsSource(_MigrationPut):
    """The target takes the memory in, and the source's hypervisor is to make the VM's port there."""

    migration: Migration

    def events(self, state: State) -> Iterator[Published]:
        data = {"migration": self.migration, "vm": state.net.vms.get(self.migration.vm)}
        yield Order.PREPARE_SOURCE, data


@dataclass(frozen=True, slots=True)
class MigrationForgotten(Change):
    """A migration that has ended is not remembered any longer."""

    migration: Migration

    def apply(self, state: State) -> Touched:
        state.migrations.pop(self.migration.id, None)
        return NOTHING

    def dropped(self) -> tuple[Storable, ...]:
        return (self.migration,)


# ---- what switches report ----


@dataclass(frozen=True, slots=True)
class SwitchPortsChanged(DerivedChange):
    """A switch's port numbers by name, all of them, as its OpenFlow session reports them."""

    switch: str
    numbers: Mapping[str, int]
    down: frozenset[str] = frozenset()
    """Names of those without a link."""

    def apply(self, state: State) -> Touched:
        return state.net.set_ports(self.switch, self.numbers, self.down)


@dataclass(frozen=True, slots=True)
class VMPortChanged(DerivedChange):
    """A VM's port on an edge switch appeared or changed, as the switch's database reports."""

    vm: str
    port_id: str
    switch: str
    port: VMPort
    before: VMPort | None

    def apply(self, state: State) -> Touched | None:
        return state.net.set_vm_port(self.port_id, self.switch, self.port) or None

    def events(self, state: State) -> Iterator[Published]:
        if self.before is None or self.before.number != self.port.number:
            yield EventType.PORT_ADDED, {"vm": self.vm, "switch": self.switch, "port": self.port.number}


@dataclass(frozen=True, slots=True)
class VMPortRemoved(DerivedChange):
    """A VM's port went from an edge switch."""

    vm: str
    port_id: str
    switch: str
    port: VMPort

    def apply(self, state: State) -> Touched:
        return state.net.set_vm_port(self.port_id, self.switch, None)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.PORT_REMOVED, {"vm": self.vm, "switch": self.switch, "port": self.port.number}
