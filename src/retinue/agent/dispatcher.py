"""What comes in at an agent, handed to the VM it is about: orders of the controller, and others' requests.

Every order may come twice, as happens when the controller comes back: what is done already is only reported
again. `vms.lifecycle` carries the orders out, as `core.migration.endpoint` decides them.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog

from retinue.agent.controller_link.reports import Reports, Rest
from retinue.agent.controller_link.vm_reports import VMReports
from retinue.agent.libvirt_follower import LibvirtFollower
from retinue.agent.lifecycle import VMLifecycle
from retinue.agent.migration.peer import Transfer
from retinue.agent.migrations_by_hand import MigrationsByHand
from retinue.agent.vms import nic_ports
from retinue.agent.vms.authority import Authority, SoleAuthority
from retinue.agent.vms.disks import Disks
from retinue.agent.vms.libvirt import LibvirtAuthority
from retinue.agent.vms.local_vm import LocalMachine, LocalVM, Ports, Switch, UnknownSwitch, ended
from retinue.core.migration import MigrationState
from retinue.core.migration import endpoint_events as e
from retinue.core.migration.presence import HandedOver, Running
from retinue.core.model import Ending, Power
from retinue.host.errors import HostError
from retinue.hypervisor import (
    Event,
    Hypervisor,
    Left,
    ManagedHypervisor,
    RunState,
    VMSpec,
)
from retinue.protocol.events import ControllerEvent, EventType
from retinue.protocol.hypervisor_events import HypervisorEvent
from retinue.protocol.migrations import ORDER_AWAITED, MigrationRecord, Order, Report
from retinue.protocol.nics import NICRecord
from retinue.protocol.vms import SHUTDOWN_SECONDS, VMRecord, VMState

log = structlog.get_logger()

MAY_HAVE_HANDED_OVER = frozenset({MigrationState.DIVERTED, MigrationState.ROLLING_BACK})
"""States in which a source may have handed its VM over: never before its traffic is diverted."""
TARGET_HAS_OPENED = frozenset(
    {MigrationState.ADMITTING, MigrationState.PREPARED, MigrationState.COPYING, MigrationState.DIVERTED}
)
SOURCE_COPIES = frozenset({MigrationState.COPYING, MigrationState.DIVERTED})
"""States in which the agent of the one or the other end has begun with the migration."""


class Dispatcher:
    """Receives what concerns the VMs of one server, and gives each order to the VM's worker."""

    def __init__(
        self,
        server: str,
        rest: Rest,
        hypervisor: Hypervisor[Any],
        ports: Ports,
        spec: Callable[[VMRecord], VMSpec],
        transfer: Transfer,
        switch: Switch | None = None,
        disks: Disks | None = None,
    ) -> None:
        self.server = server
        self.reports = Reports(rest)
        self._rest = rest
        self._vm_reports = VMReports(server, self.reports)
        managed = hypervisor if isinstance(hypervisor, ManagedHypervisor) else None
        self._authority: Authority = SoleAuthority(hypervisor, ports)
        if managed is not None:
            self._authority = LibvirtAuthority(server, managed, ports, spec)
        self._lifecycle = VMLifecycle(
            server,
            hypervisor,
            self._authority,
            ports,
            spec,
            transfer,
            self._vm_reports,
            switch or UnknownSwitch(),
            disks,
        )
        self._disks = self._lifecycle.disks
        self._follower = None if managed is None else LibvirtFollower(self._lifecycle, managed, ports)
        self.vms, self.consoles = self._lifecycle.vms, self._lifecycle.consoles
        self.by_hand = MigrationsByHand(self._lifecycle, transfer)
        self._left: dict[str, LocalVM] = {}
        """VMs whose machines an earlier agent has left, until they are adopted."""
        self._fenced = False
        """The operator has called this server dead, as far as this agent has heard."""
        self._lost: dict[str, Ending] = {}
        """VMs whose machines had ended when this agent started, until it has caught up."""

    # ---- what comes in ----

    def on_event(self, event: ControllerEvent) -> None:
        """Act on an event of the controller, in the background; most are other servers' affairs."""
        vm, migration = event.vm, event.migration
        match event.type:
            case EventType.VM_REGISTERED if vm and self._is_ours(vm):
                self._order(self._lifecycle.local_vm(vm), e.Register())
            case EventType.VM_REGISTERED if vm and self._fenced and vm.server != self.server:
                self._give_up(vm.id)
            case EventType.SERVER_FENCED | EventType.SERVER_UNFENCED if event.server == self.server:
                self._fenced = event.type == EventType.SERVER_FENCED
            case EventType.VM_READY if vm and vm.reported and self._is_ours(vm):
                self._lifecycle.later(self._lifecycle.local_vm(vm), self._say_that_it_runs)
            case EventType.VM_READY if vm and self._is_ours(vm):
                self._order(self._lifecycle.local_vm(vm), e.Start())
            case EventType.VM_START if vm and self._is_ours(vm):
                self._order(self._lifecycle.local_vm(vm), e.Register())
            case EventType.VM_STOP if vm and self._is_ours(vm):
                self._order(self._lifecycle.local_vm(vm), e.Stop(event.hard, event.seconds))
            case EventType.VM_REBOOT if vm and self._is_ours(vm):
                self._order(self._lifecycle.local_vm(vm), e.Reboot(event.seconds))
            case EventType.VM_RESET if vm and self._is_ours(vm):
                self._order(self._lifecycle.local_vm(vm), e.Reset())
            case EventType.VM_NICS if vm and vm.id in self.vms and self._is_ours(vm):
                self._change_nics(vm)
            case EventType.PORT_REMOVED if event.vm_id in self.vms:
                self._look_at_port(self.vms[event.vm_id])
            case EventType.VM_REMOVED if vm and self._is_anothers(vm):
                log.info("vm.another_of_its_name", vm=vm.id, removed_from=vm.server)
            case EventType.VM_REMOVED if vm:
                if vm.id in self.vms or not self._authority.exclusive or self._disks.has(vm.id):
                    self._order(self._lifecycle.local_vm(vm), e.Remove())
                else:
                    self._lifecycle.forget(vm)
            case Order.OPEN_TARGET if migration and vm and migration.target == self.server:
                self._order(self._lifecycle.local_vm(vm), e.OpenTarget(migration.id), migration)
            case _ if migration is not None:
                self._migration_order(event.type, migration)

    def _change_nics(self, vm: VMRecord) -> None:
        before = self.vms[vm.id].record.all_nics
        self._lifecycle.later(self._lifecycle.local_vm(vm), self._lifecycle.change_nics, before)

    def _migration_order(self, type: str, migration: MigrationRecord) -> None:
        id = migration.id
        order: e.Order | None = None
        match type:
            case Order.ROLL_BACK if migration.target == self.server:
                order = e.RollBackAtTarget(id)
            case _ if migration.source != self.server:
                pass
            case Order.PREPARE_SOURCE if self._authority.prepares_source:
                order = e.PrepareSource(id)
            case Order.START_COPY:
                order = e.StartCopy(id)
            case Order.FREE_SOURCE:
                order = e.FreeSource(id)
            case Order.ROLL_BACK:
                order = e.RollBackAtSource(id)
            case Order.RETURN_TO_SOURCE:
                order = e.ReturnToSource(id)
        if order is not None:
            self._order(self._lifecycle.get_or_unknown(migration.vm), order, migration)

    def _order(self, vm: LocalVM, order: e.Order, migration: MigrationRecord | None = None) -> None:
        self._lifecycle.later(vm, self._lifecycle.order, order, migration)

    def on_hypervisor_event(self, event: HypervisorEvent) -> None:
        """Act, in the background, on what libvirt tells of a VM of this server, whoever is the cause."""
        if self._follower is not None:
            self._follower.on_event(event)

    async def _say_that_it_runs(self, vm: LocalVM) -> None:
        """A VM that nobody registered (any more) is known by its port alone: no reason to start it."""
        if vm.runs:
            await self._lifecycle.order(vm, e.Start())

    def has_lost_its_lease(self, id: str) -> None:
        """A DHCP server refuses to renew the VM's lease: have the guest, which has not asked, ask itself."""
        if id in self.vms:
            self._lifecycle.later(self.vms[id], self._lifecycle.flap_link)

    def look_at_ports(self) -> None:
        """See, in the background, that each VM that is here has its port."""
        for vm in list(self.vms.values()):
            self._look_at_port(vm)

    def _look_at_port(self, vm: LocalVM) -> None:
        self._lifecycle.later(vm, self._lifecycle.restore_port)

    def _is_anothers(self, gone: VMRecord) -> bool:
        """What runs here by that name was made here by others, and the one that is removed elsewhere by a
        manager: one may have been started while that was told, which those whom it concerns least hear last.
        """
        here = self.vms.get(gone.id)
        known_elsewhere = not gone.reported and gone.server != self.server and not self._fenced
        return known_elsewhere and here is not None and here.runs and here.record.reported

    def _is_ours(self, vm: VMRecord) -> bool:
        """The VM is registered here, or is known here where only this agent makes VMs.

        One that a server has made by itself nobody registered: it is not ours to run.
        """
        if vm.server != self.server:
            return False
        return not vm.reported or (self._authority.exclusive and vm.id in self.vms)

    # ---- what was missed ----

    async def catch_up(self) -> None:
        """Do what the controller's present state asks for; its events may have been missed.

        A VM that the controller does not know is left alone: a controller that has forgotten is no reason to
        end what runs. One that it knows to have been removed goes, whoever was away when it was.
        """
        self.look_at_ports()
        known, migrations = await self._rest.vms(), await self._rest.migrations()
        migrating = {migration.vm for migration in migrations if migration.state in MAY_HAVE_HANDED_OVER}
        vms, ids = known.vms, {vm.id for vm in known.vms}
        self._fenced = self.server in known.fenced
        elsewhere = [vm.id for vm in vms if self._fenced and vm.server != self.server]
        for id in (*elsewhere, *(id for id in known.removed if id not in ids)):
            self._give_up(id)
        self._lifecycle.forget_others(vms)
        for vm in (vm for vm in vms if vm.id not in elsewhere):
            if vm.id not in migrating or vm.id in self.vms:
                self._catch_up_with_vm(vm)
            if vm.id not in migrating:
                await self._authority.registered(vm, self.vms.get(vm.id))
                self._lifecycle.changes += 1
        records = {vm.id: vm for vm in vms}
        for migration in migrations:
            self._catch_up_with(migration, records.get(migration.vm))
        self._lifecycle.receive_the_rest(migrations)

    def _give_up(self, id: str) -> None:
        """End what is here of a VM that the operator has removed, or has running elsewhere since this server
        was called dead."""
        if self._authority.exclusive and (id in self.vms or self._disks.has(id)):
            self._order(self._lifecycle.get_or_unknown(id), e.Remove())

    def _catch_up_with_vm(self, vm: VMRecord) -> None:
        """What runs is reported, and what is to run is started: a VM that is off, or has crashed, is not."""
        here = self.vms.get(vm.id)
        if here is not None and self._is_ours(vm) and nic_ports.have_changed(here.record.all_nics, vm):
            self._change_nics(vm)
        lost = self._lost.pop(vm.id, None)
        if not self._is_ours(vm):
            if here is not None and here.runs and self._authority.exclusive:
                self._order(here, e.Start())  # It runs here, whatever its migration has come to.
        elif lost is not None and here is None:
            self._had_ended(vm, lost)
        elif vm.power is not Power.RUNNING or vm.state is VMState.CRASHED:
            self._off(vm, here)
        elif vm.state is VMState.REGISTERED:
            self.on_event(ControllerEvent(EventType.VM_REGISTERED, vm=vm))
        else:
            self.on_event(ControllerEvent(EventType.VM_READY, vm=vm))

    def _had_ended(self, vm: VMRecord, how: Ending) -> None:
        why = f"its QEMU had ended when the agent of {self.server} started"
        self._lifecycle.report_end(vm, how, why if how is Ending.CRASHED else "")
        self._order(self._lifecycle.local_vm(vm), e.Register())

    def _off(self, vm: VMRecord, here: LocalVM | None) -> None:
        """A VM that is not to run keeps its port here; that it is to stop may have been missed."""
        if here is not None and here.runs and vm.power is Power.OFF:
            if here.powering is None or here.powering.done():
                self._order(self._lifecycle.local_vm(vm), e.Stop(seconds=SHUTDOWN_SECONDS))
        elif here is not None and here.runs:
            self._order(self._lifecycle.local_vm(vm), e.Start())
        elif self._authority.exclusive:
            self._order(self._lifecycle.local_vm(vm), e.Register())

    def _catch_up_with(self, migration: MigrationRecord, record: VMRecord | None) -> None:
        def missed(type: Order) -> None:
            self.on_event(ControllerEvent(type, vm=record, migration=migration))

        if migration.after_the_fact:
            return
        vm = self.vms.get(migration.vm)
        comes = migration.target == self.server and migration.state in MAY_HAVE_HANDED_OVER
        if comes and vm is None and (lost := self._lost.pop(migration.vm, None)) is not None:
            # What has ended here had run here, told or not: the source has but a past of it.
            self._vm_reports.of_migration(migration.vm, migration.id, Report.RESUMED, at=time.time())
            if record is not None:
                self._had_ended(record, lost)
            return
        if vm is not None and vm.handed_over and migration.state in MAY_HAVE_HANDED_OVER:
            # The agent before this one may have ended before it said so, and the target's report waits for
            # it.
            self._vm_reports.of_migration(vm.id, migration.id, Report.STOPPED, at=time.time())
        knows = vm is not None and vm.migration_id == migration.id
        if self._has_begun(migration) and not knows:
            self._after_a_restart(migration, vm)
        elif migration.state in ORDER_AWAITED:
            missed(ORDER_AWAITED[migration.state])
            if migration.state is MigrationState.MATCHED and migration.memory_at:
                missed(Order.PREPARE_SOURCE)
            if migration.target_closed:
                missed(Order.RETURN_TO_SOURCE)
        elif migration.state is MigrationState.UNDONE and vm is not None and knows and vm.incoming:
            missed(Order.ROLL_BACK)  # To the target, which has missed that the migration is off.
        elif vm is None and self._has_a_copy_for_nothing(migration, record):
            missed(Order.ROLL_BACK)

    def _has_a_copy_for_nothing(self, migration: MigrationRecord, record: VMRecord | None) -> bool:
        """Of a VM that is at its source, disks that the agent before this one had made for its coming."""
        undone = migration.state is MigrationState.UNDONE and migration.target == self.server
        stays = record is not None and record.server == migration.source != self.server
        return undone and stays and self._disks.has(migration.vm)

    def _has_begun(self, migration: MigrationRecord) -> bool:
        """The migration is in a state in which this agent, as one of its ends, must have begun with it."""
        if migration.target == self.server:
            return migration.state in TARGET_HAS_OPENED
        return migration.source == self.server and migration.state in SOURCE_COPIES

    def _after_a_restart(self, migration: MigrationRecord, vm: LocalVM | None) -> None:
        """A migration was under way when the agent before this one ended; `vm` is what it left of the VM."""
        if not self._authority.exclusive and not migration.memory_at:
            return  # Somebody else makes it.
        if migration.target == self.server and vm is not None and vm.runs:
            self._vm_reports.of_migration(vm.id, migration.id, Report.RESUMED, at=vm.since)
        elif vm is None or not vm.handed_over:
            reason = f"the agent of {self.server} has started again"
            self._vm_reports.of_migration(migration.vm, migration.id, Report.FAILED, reason=reason)

    # ---- the agent's start and end ----

    def machines(self) -> list[LocalMachine]:
        return [vm.machine for vm in self.vms.values() if vm.machine is not None]

    @property
    def changes(self) -> int:
        """As VMWorkers."""
        return self._lifecycle.changes

    def listener(self, vm: str) -> Callable[[Event], None]:
        """For a machine of this VM that is about to be adopted.

        Before that its end is no news: a machine that waits for a VM's memory is ended instead of adopted.
        """
        self._left[vm] = LocalVM(VMRecord(vm, "", self.server))
        return self._lifecycle.listener(self._left[vm])

    async def adopt_all(self, left: Left[Any]) -> None:
        """Adopt what an earlier agent has left, and take in what had ended meanwhile."""
        for machine in left.machines:
            await self.adopt(machine, lacks_memory=machine.spec.id in left.lacking)
        self._lost = {vm: how for vm, how in left.ended.items() if vm not in self.vms}
        self.look_at_ports()

    async def adopt(self, machine: LocalMachine, *, lacks_memory: bool = False) -> None:
        """Adopt a machine left by an earlier agent. Its migration, if any, has failed or is over; or it lacks
        memory, or has some that its target lacks: that goes on when the controller has told of it."""
        spec = machine.spec
        if spec.id in self._left:
            self.vms[spec.id] = self._left.pop(spec.id)
        reported = not self._authority.exclusive
        nics = [NICRecord(nic.id, nic.mac, slot=nic.slot) for nic in spec.nics]
        record = VMRecord(spec.id, spec.mac, self.server, reported=reported, nics=nics)
        vm = self._lifecycle.local_vm(record)
        try:
            # Only the target's word gives back what was handed over.
            handed_over = not lacks_memory and await machine.state() is RunState.MOVED
        except HostError as error:
            # It has just ended, or does not answer: it is as if it had not been there.
            log.error("vm.not_adopted", vm=spec.id, error=str(error))
            if self._authority.exclusive:
                await machine.quit()
            self.vms.pop(spec.id, None)
            self._lifecycle.changes += 1
            return
        vm.machine, vm.lacking = machine, machine if lacks_memory else None
        vm.presence = HandedOver() if handed_over else Running(time.time())
        self._lifecycle.note_console(vm)
        log.info("vm.adopted", vm=spec.id, handed_over=handed_over, lacks_memory=lacks_memory)

    async def close(self) -> None:
        """Call off what is under way, and let go of the machines, which keep running."""
        for vm in list(self.vms.values()):
            vm.retry_nothing()
            for task in (vm.worker, vm.transfer, vm.powering):
                await ended(task)
        for machine in self.machines():
            await machine.let_go()
        await self.reports.close()

    async def idle(self) -> None:
        """Wait until everything that was asked for is done and told."""
        for vm in list(self.vms.values()):
            await vm.steps.join()
            if vm.transfer is not None:
                await asyncio.wait({vm.transfer})
        await self.reports.delivered()


__all__ = ["Dispatcher"]
