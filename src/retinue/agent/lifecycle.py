"""The VMs of one server: what is decided of each (`core.migration.endpoint`), carried out.

Orders are steps of the VM's worker (`vms.workers`). What is learned in the middle of a step, of a transfer or
from the hypervisor is taken in at once.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import structlog

from retinue.agent.controller_link.vm_reports import VMReports
from retinue.agent.migration.peer import Transfer
from retinue.agent.migration.source import SourceEnd
from retinue.agent.migration.target import TargetEnd
from retinue.agent.vms import nic_changes, nic_ports, power
from retinue.agent.vms.authority import Authority, SplitBrainRiskError
from retinue.agent.vms.disks import Disks, ImageAwayError, NoDisks
from retinue.agent.vms.local_vm import LocalVM, Ports, Switch, ended
from retinue.agent.vms.workers import FIRST_PAUSE, LONGEST_PAUSE, VMWorkers
from retinue.core.migration import IllegalEventError, events
from retinue.core.migration import endpoint_effects as fx
from retinue.core.migration import endpoint_events as e
from retinue.core.migration.endpoint import Settle, settle_first, step
from retinue.core.migration.presence import Absent, Incoming, Outgoing, Plugged
from retinue.core.model import Ending, Power
from retinue.host.errors import HostError
from retinue.hypervisor import Event, Exited, Hypervisor, OnEvent, StartedAnew, VMSpec
from retinue.protocol.migrations import MigrationRecord, Report
from retinue.protocol.nics import NICRecord
from retinue.protocol.vms import VMRecord, VMReport

log = structlog.get_logger()

UNDOES = (e.Remove, e.FreeSource, e.RollBackAtTarget)
"""Orders after which nothing of the VM is to be here."""
IMAGE_SECONDS = 1.0
"""That a start waits for an image, before it lets the VM's other orders pass; then it is tried again."""


class VMLifecycle(VMWorkers):
    """Holds the server's VMs, decides every order and fact, and sees to machines, ports and reports.

    `spec` makes of the controller's record how a VM is to be run on this server.
    """

    def __init__(
        self,
        server: str,
        hypervisor: Hypervisor[Any],
        authority: Authority,
        ports: Ports,
        spec: Callable[[VMRecord], VMSpec],
        transfer: Transfer,
        reports: VMReports,
        switch: Switch,
        disks: Disks | None = None,
    ) -> None:
        super().__init__()
        self.server = server
        self.hypervisor = hypervisor
        self.authority = authority
        self.ports = ports
        self.disks: Disks = disks or NoDisks()
        self.consoles: dict[str, list[Path]] = {}
        """By VM, of every machine it has had here, oldest first; until the VM is removed for good."""
        self._spec = spec
        self._transfer = transfer
        self._reports = reports
        self._source = SourceEnd(hypervisor, authority, transfer, reports, switch, self.learn)
        self._target = TargetEnd(
            hypervisor, authority, transfer, spec, reports, switch, self.learn, self.listener, self.disks
        )

    # ---- the VMs, and their workers ----

    def local_vm(self, record: VMRecord) -> LocalVM:
        """The VM, with what the controller says of it now."""
        vm = self.vms.setdefault(record.id, LocalVM(record))
        vm.record = record
        self.changes += 1
        return vm

    def get_or_unknown(self, id: str) -> LocalVM:
        """The VM; one of which nothing is known yet is, or was, made by somebody else."""
        return self.vms.get(id) or self.local_vm(VMRecord(id, "", self.server, reported=True))

    # ---- orders and facts ----

    async def order(self, vm: LocalVM, order: e.Order, migration: MigrationRecord | None = None) -> None:
        """Carry out an order; a step of the VM's worker. Raises HostError."""
        if isinstance(order, UNDOES):
            vm.retry_nothing()
            await self.until_done(vm, lambda: self._order(vm, order, migration), type(order).__name__)
            if isinstance(vm.presence, Absent):  # Not where it has come to run here, or may come back.
                await self.until_done(vm, lambda: self.disks.remove(vm.id), "its disks")
            if isinstance(order, e.Remove):
                self.forget(vm.record)
        else:
            await self._order(vm, order, migration)

    async def _order(self, vm: LocalVM, order: e.Order, migration: MigrationRecord | None) -> None:
        match settle_first(vm.presence, order):
            case Settle.CALL_OFF:
                await self._call_off(vm)
            case Settle.WAIT if vm.transfer is not None:
                await asyncio.wait({vm.transfer})
        if migration is not None and isinstance(order, e.FreeSource):
            await self._give_memory(vm, migration)
        ruling = await self.authority.consult(vm, order, migration)
        for fact in ruling.facts:
            self.learn(vm, fact)
        if ruling.order is None:
            return
        for effect in self._decide(vm, ruling.order):
            await self._carry_out(vm, effect, migration)

    async def _give_memory(self, vm: LocalVM, migration: MigrationRecord) -> None:
        if await self.authority.has_memory_to_give(vm, migration):
            await self._source.send_the_rest(vm, migration)

    async def _call_off(self, vm: LocalVM) -> None:
        await ended(vm.transfer)
        # A task that is called off before it has begun puts nothing in order itself.
        self._transfer.forget(vm.migration_id)
        if isinstance(vm.presence, Outgoing):
            self.learn(vm, e.Stays(vm.presence.migration))

    def learn(self, vm: LocalVM, fact: e.Fact) -> None:
        """Take a fact in: it leads to reports at most, and to transfers in the background."""
        for effect in self._decide(vm, fact):
            self._do_at_once(vm, effect)

    def _decide(self, vm: LocalVM, event: e.Event) -> tuple[fx.Effect, ...]:
        before = vm.presence
        try:
            vm.presence, effects = step(before, event)
        except IllegalEventError as error:
            log.error("vm.input_does_not_fit", vm=vm.id, presence=str(before), reason=str(error))
            return ()
        return effects

    async def _carry_out(self, vm: LocalVM, effect: fx.Effect, migration: MigrationRecord | None) -> None:
        match effect:
            case fx.MakePort():
                await self._make_port(vm)
            case fx.StartMachine():
                await self._start(vm)
            case fx.StopMachine() | fx.RebootMachine() | fx.ResetMachine():
                await power.carry_out(vm, effect)
            case fx.EndMachine():
                await ended(vm.powering)
                await self.until_done(vm, lambda: self._end_machine(vm), "its machine")
            case fx.CountFrames():
                vm.port_frames = await nic_ports.rx_frames(self.ports, vm.record)
            case fx.HandBack() if migration is not None:
                await self._target.hand_back(vm, migration)
            case fx.RemovePort():
                vm.let_frames_go()
                await self.until_done(vm, lambda: nic_ports.remove(self.ports, vm.record), "its port")
            case fx.OpenMachine(plugged=plugged) if migration is not None:
                await self._target.open(vm, migration, plugged)
                self.note_console(vm)
            case fx.SendMemory() if migration is not None:
                self._source.send(vm, migration)
            case fx.SendRest() if migration is not None:
                await self._source.send_the_rest(vm, migration)
            case fx.KeepAtSource() if migration is not None:
                await self._source.keep(vm, migration)
            case fx.ResumeAtSource() if migration is not None:
                await self._source.resume(vm, migration)
            case _:
                self._do_at_once(vm, effect)

    def _do_at_once(self, vm: LocalVM, effect: fx.Effect) -> None:
        match effect:
            case fx.ReceiveMemory() if vm.migration is not None:
                self._target.receive(vm, vm.migration)
            case fx.AllowCopy():
                self._source.allow_copy(vm)
            case fx.ReportStarted() if not (vm.by_hand and vm.transferring):
                self._reports.of_vm(vm.id, VMReport.STARTED)
            case fx.ReportStopped(reason, how):
                self.report_end(vm.record, how, reason)
            case fx.ReportLost():
                self.report_end(vm.record, Ending.CRASHED, f"the agent of {self.server} has started again")
            case fx.Report(_, events.Failed(reason)) if vm.by_hand:
                vm.failure = reason
            case fx.Report(migration, what) if not vm.by_hand:
                self._report(vm, migration, what)
            case fx.Reject(migration, why) if not vm.by_hand:
                reason = self._sentence(vm, why)
                self._reports.of_migration(vm.id, migration, Report.FAILED, reason=reason)

    def receive_the_rest(self, migrations: Sequence[MigrationRecord]) -> None:
        """In the background, for VMs that run here and lack memory: the migrations are those there are."""
        for vm in self.vms.values():
            if not vm.lacks_memory or vm.transferring or not vm.runs:
                continue
            its = [one for one in migrations if one.vm == vm.id and one.target == self.server]
            brings = (one for one in its if not one.state.ended and not one.after_the_fact)
            self._target.receive_the_rest(vm, next(brings, None))

    # ---- machines and ports ----

    async def _make_port(self, vm: LocalVM, pause: float = FIRST_PAUSE) -> None:
        """Make the VM's port; where that is not possible now, try again later, beside other orders."""
        try:
            await self._make_port_now(vm)
        except SplitBrainRiskError:
            raise
        except HostError as error:
            log.error("vm.no_port", vm=vm.id, error=str(error), again_in=pause)
            if isinstance(vm.presence, Absent):
                self.again(vm, pause, self._port_again, min(2 * pause, LONGEST_PAUSE))

    async def _port_again(self, vm: LocalVM, pause: float) -> None:
        if isinstance(vm.presence, Absent):
            await self._make_port(vm, pause)

    async def _make_port_now(self, vm: LocalVM) -> None:
        if not self.authority.exclusive:  # The port comes with its machine, and that with its disks.
            await self.disks.ready(vm.record, IMAGE_SECONDS)
        await self.authority.make_port(vm)
        self.note_console(vm)
        self.learn(vm, e.PortMade())

    async def restore_port(self, vm: LocalVM, pause: float = FIRST_PAUSE) -> None:
        """See that the VM has the port that it should have; a step of its worker.

        Somebody may have taken it out of the bridge, or the whole bridge away: what was done once is no proof
        that it is so.
        """
        if not vm.has_port or not self.authority.exclusive:
            return
        try:
            for nic in await nic_ports.add_missing(self.ports, vm.record):
                log.warning("vm.port_was_gone", vm=vm.id, nic=nic)
        except HostError as error:
            log.error("vm.port_not_restored", vm=vm.id, error=str(error), again_in=pause)
            self.again(vm, pause, self.restore_port, min(2 * pause, LONGEST_PAUSE))

    async def flap_link(self, vm: LocalVM, pause: float = FIRST_PAUSE) -> None:
        """Have the guest see its link go and come; a step of its worker, tried until it has."""
        try:
            await power.flap_link(vm)
        except HostError as error:
            log.error("vm.link_not_flapped", vm=vm.id, error=str(error), again_in=pause)
            self.again(vm, pause, self.flap_link, min(2 * pause, LONGEST_PAUSE))

    async def change_nics(
        self, vm: LocalVM, before: Collection[NICRecord], pause: float = FIRST_PAUSE
    ) -> None:
        """Put NICs in and take NICs out of a VM that is here; a step of its worker, tried until it is so."""
        try:
            await nic_changes.carry_out(vm, before, self.ports, self._spec)
        except HostError as error:
            log.error("nic.not_changed", vm=vm.id, error=str(error), again_in=pause)
            self.again(vm, pause, self.change_nics, before, min(2 * pause, LONGEST_PAUSE))

    async def _start(self, vm: LocalVM, pause: float = FIRST_PAUSE) -> None:
        try:
            if isinstance(vm.presence, Absent):
                await self._make_port_now(vm)
            await self.disks.ready(vm.record, IMAGE_SECONDS)
            vm.machine = await self.hypervisor.start(self._spec(vm.record), self.listener(vm))
        except SplitBrainRiskError as error:
            log.error("vm.not_started", vm=vm.id, error=str(error))
        except ImageAwayError as error:
            log.info("vm.start_waits", vm=vm.id, reason=str(error))
            self.again(vm, pause, self._start_again, min(2 * pause, LONGEST_PAUSE))
        except HostError as error:
            log.error("vm.start_failed", vm=vm.id, error=str(error))
            self.learn(vm, e.NotStarted(str(error)))
        else:
            self.note_console(vm)
            self.learn(vm, e.Started(time.time()))

    async def _start_again(self, vm: LocalVM, pause: float) -> None:
        """Start the VM, if it is still to run and does not yet."""
        if isinstance(vm.presence, Absent | Plugged) and vm.record.power is Power.RUNNING:
            await self._start(vm, pause)

    async def _end_machine(self, vm: LocalVM) -> None:
        vm.listening = None
        if vm.machine is not None and self.authority.may_end(vm):
            await vm.machine.quit()
        vm.machine = None

    def forget(self, record: VMRecord) -> None:
        """The VM is removed for good, and with it what it wrote on its consoles."""
        self.consoles.pop(record.id, None)
        self.hypervisor.forget(self._spec(record))

    def forget_others(self, records: Collection[VMRecord]) -> None:
        """Do so with all that are not here, and of which the controller knows nothing."""
        known = [*records, *(vm.record for vm in self.vms.values())]
        self.hypervisor.forget_all_but([self._spec(record) for record in known])

    def listener(self, vm: LocalVM) -> OnEvent:
        """Listens to the machine that is about to be made, and no longer to the one before it."""
        present = vm.listening = object()

        def hear(event: Event) -> None:
            if vm.listening is not present or not self.authority.exclusive:
                return
            if isinstance(event, StartedAnew):
                log.info("vm.started_anew", vm=vm.id)
                power.is_anew(vm)
            if not isinstance(event, Exited):
                return
            power.has_ended(vm)
            log.warning("vm.exited", vm=vm.id, presence=str(vm.presence), how=str(event.how))
            if not isinstance(vm.presence, Incoming):  # Else what takes the memory in sees it, too.
                vm.machine = None
            self.learn(vm, e.Exited(event.how, event.reason))

        return hear

    def note_console(self, vm: LocalVM) -> None:
        if vm.machine is not None:
            known = self.consoles.setdefault(vm.id, [])
            if vm.machine.files.serial_log not in known:
                known.append(vm.machine.files.serial_log)

    # ---- reports ----

    def report_end(self, record: VMRecord, how: Ending, reason: str = "") -> None:
        """Report that the VM has ended here; until that has arrived the hypervisor remembers it."""
        report = self._reports.of_vm(record.id, VMReport.STOPPED, reason, how)

        def over(report: asyncio.Task[dict[str, Any]]) -> None:
            if not report.cancelled():
                self.hypervisor.end_is_reported(self._spec(record))

        report.add_done_callback(over)

    def _report(self, vm: LocalVM, migration: str, what: Any) -> None:
        match what:
            case events.TargetOpened():
                far = None if vm.migration is None else vm.migration.far
                address = self._transfer.towards(far).address
                self._reports.of_migration(
                    vm.id, migration, Report.TARGET_OPENED, memory_at=address, **vm.prepared
                )
            case events.Resumed(at):
                self._reports.of_migration(vm.id, migration, Report.RESUMED, at=at)
            case events.Failed(reason):
                self._reports.of_migration(vm.id, migration, Report.FAILED, reason=reason)
            case events.RolledBack():
                self._reports.of_migration(vm.id, migration, Report.ROLLED_BACK, frames=vm.queued_frames)
            case events.TargetClosed():
                self._reports.of_migration(vm.id, migration, Report.TARGET_CLOSED, frames=vm.port_frames)
            case events.CopyStarted():
                self._reports.of_migration(vm.id, migration, Report.COPY_STARTED)
            case events.SourceFreed():
                self._reports.of_migration(vm.id, migration, Report.SOURCE_FREED)

    def _sentence(self, vm: LocalVM, why: fx.Why) -> str:
        match why:
            case fx.Why.NOT_RUNNING:
                return f"VM {vm.id} does not run on {self.server}"
            case fx.Why.NOT_PREPARED:
                return f"the agent of {self.server} has not begun with it, or not to its end"
            case fx.Why.BUSY:
                return f"VM {vm.id} is being migrated already: {vm.migration_id}"


__all__ = ["VMLifecycle"]
