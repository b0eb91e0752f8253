"""What is different on a server whose VMs a manager of its own runs, such as libvirt.

* A VM's port comes with the VM. One that is registered is made at once, but does not run.
* Others make, migrate and end VMs, too. What the manager tells of it (`agent/libvirt_follower.py`) is
  believed, and what nobody registered is never ended by us.
* A migration's target is opened from its source, when the controller orders to prepare the source. Of a
  migration that somebody else makes we learn from the controller, and take no part in it, but to call it off.

Which migrations are ours: those that we have begun with here, or that have an address where an agent of ours
takes the memory in (`MigrationRecord.memory_at`).
"""

import asyncio
import time
from typing import Any

import structlog

from retinue.agent.vms import nic_ports
from retinue.agent.vms.authority import Ruling, SplitBrainRiskError
from retinue.agent.vms.departed import DepartedVMs
from retinue.agent.vms.local_vm import LocalMachine, LocalVM, Ports
from retinue.core.migration import endpoint_events as e
from retinue.hypervisor import HypervisorError, ManagedHypervisor, RunState
from retinue.protocol.migrations import MigrationRecord
from retinue.protocol.vms import VMRecord

FREED_LIMIT, LOOK_SECONDS = 5.0, 0.05
"""Seconds that the manager may take to end a source whose VM runs at the target, and between two looks."""

log = structlog.get_logger()


class LibvirtAuthority:
    """The authority where others may do with VMs as they like. `spec` as in VMLifecycle."""

    exclusive = False
    prepares_source = True

    def __init__(self, server: str, hypervisor: ManagedHypervisor[Any], ports: Ports, spec: Any) -> None:
        self._server = server
        self._hypervisor = hypervisor
        self._ports = ports
        self._spec = spec

    async def consult(self, vm: LocalVM, order: e.Order, migration: MigrationRecord | None) -> Ruling:
        match order:
            case e.Start():
                machine = await self._hypervisor.find(vm.id)
                # What becomes of one that is being migrated, from here or to here, will be told.
                migrating = machine is not None and await machine.state() is RunState.MOVED
                return Ruling(None if migrating else order)
            case e.Stop() | e.Reboot() | e.Reset():
                return await self._power(vm, order)
            case e.OpenTarget():
                return await self._open_target(vm, order)
            case e.PrepareSource() if not vm.transferring:
                return await self._prepare_source(vm, order)
            case e.StartCopy(id) if migration is not None:
                # Else somebody else makes it.
                ours = bool(migration.memory_at) or (vm.migration_id == id and vm.transferring)
                return Ruling(e.StartCopy(id, prepared=True) if ours else None)
            case e.FreeSource():
                ours = migration is not None and _is_ours(vm, migration)
                return await self._free_source(vm, order, ours)
            case e.RollBackAtSource() | e.ReturnToSource():
                vm.machine = await self._hypervisor.find(vm.id)
                return Ruling(order, () if vm.machine is None else (e.PortMade(),))
            case e.RollBackAtTarget() if migration is not None:
                return await self._roll_back_at_target(vm, order, migration)
        return Ruling(order)

    async def _power(self, vm: LocalVM, order: e.Order) -> Ruling:
        machine = await self._hypervisor.find(vm.id)
        if machine is None:
            return Ruling(order)
        vm.machine = machine
        match await machine.state():
            case RunState.RUNNING:
                return Ruling(order, (e.FoundRunning(time.time()),))
            case RunState.MOVED:
                return Ruling(None)
        if isinstance(order, e.Stop):  # It is made and waits to be started.
            await machine.quit()
        return Ruling(None)

    async def _open_target(self, vm: LocalVM, order: e.OpenTarget) -> Ruling:
        if vm.migration_id == order.migration:
            return Ruling(order)
        machine = await self._hypervisor.find(vm.id)
        if machine is None:
            return Ruling(order)
        if vm.transferring:
            return Ruling(None)
        # Somebody brings the VM, or has brought it.
        vm.machine = machine
        running = await machine.state() is RunState.RUNNING
        return Ruling(None, (e.FoundRunning(time.time()) if running else e.FoundIncoming(),))

    async def _prepare_source(self, vm: LocalVM, order: e.PrepareSource) -> Ruling:
        machine = await self._hypervisor.find(vm.id)
        running = machine is not None and await machine.state() is RunState.RUNNING
        if not running or vm.handed_over:
            return Ruling(e.PrepareSource(order.migration, running=False))
        vm.machine = machine
        return Ruling(order, (e.FoundRunning(time.time()),))

    async def _free_source(self, vm: LocalVM, order: e.FreeSource, ours: bool) -> Ruling:
        until = time.monotonic() + FREED_LIMIT
        while (machine := await self._hypervisor.find(vm.id)) is not None:
            if ours and await machine.is_left_over():  # What others have begun, they may recover.
                await machine.quit()
            if time.monotonic() > until:
                raise HypervisorError(f"{order.migration}: libvirt has not ended the source of VM {vm.id}")
            await asyncio.sleep(LOOK_SECONDS)
        vm.machine = None
        await nic_ports.remove(self._ports, vm.record)
        return Ruling(order, (e.Departed(),))

    async def _roll_back_at_target(
        self, vm: LocalVM, order: e.RollBackAtTarget, migration: MigrationRecord
    ) -> Ruling:
        ours = _is_ours(vm, migration)
        machine = await self._hypervisor.find(vm.id)
        if machine is None:
            if not vm.runs or not ours:
                vm.machine = None
            await nic_ports.remove(self._ports, vm.record)
            return Ruling(order) if ours else Ruling(None, (e.NotFound(ended=True),))
        if not ours:
            return Ruling(None)  # Its source's manager decides.
        if vm.runs:
            return Ruling(order)
        if await machine.state() is RunState.RUNNING:
            vm.machine = machine
            return Ruling(order, (e.FoundRunning(time.time()),))
        await machine.quit()
        vm.machine = None
        await nic_ports.remove(self._ports, vm.record)
        return Ruling(order)

    async def has_memory_to_give(self, vm: LocalVM, migration: MigrationRecord) -> bool:
        if not _is_ours(vm, migration):
            return False
        machine = await self._hypervisor.find(vm.id)
        if machine is None or not await machine.has_memory_to_give():
            return False
        vm.machine = machine
        return True

    async def make_port(self, vm: LocalVM) -> None:
        """Make the VM, and with it its port."""
        if vm.machine is None:
            machine: LocalMachine | None = await self._hypervisor.find(vm.id)
            if machine is None and isinstance(self._ports, DepartedVMs) and self._ports.was_here(vm.id):
                raise SplitBrainRiskError(
                    f"VM {vm.id} was on {self._server} and went while no agent looked. It may run "
                    "elsewhere, so it is not started again. If it does not: remove it, and register it again"
                )
            vm.machine = machine or await self._hypervisor.plug(self._spec(vm.record))
        await nic_ports.add(self._ports, vm.record)

    async def make_target_port(self, vm: LocalVM) -> None:
        """The port comes with the VM, when the source opens the target."""
        await nic_ports.add(self._ports, vm.record)

    async def keep(self, vm: LocalVM) -> bool:
        return vm.machine is not None and await self._hypervisor.call_off(vm.machine)

    def may_end(self, vm: LocalVM) -> bool:
        return not vm.record.reported

    async def registered(self, record: VMRecord, vm: LocalVM | None) -> None:
        if vm is not None:
            vm.record = record
        elif record.server != self._server:
            await nic_ports.remove(self._ports, record)  # That it has left is known.


def _is_ours(vm: LocalVM, migration: MigrationRecord) -> bool:
    return bool(migration.memory_at) or vm.migration_id == migration.id
