"""Which VMs are to run: as their managers order it, and as what becomes of them decides it.

    what happens                                the VM is to    and is shown
    registered, `start`                         run             registered, ready, running
    `stop`                                      be off          running until it has ended, then off
    switched off, from inside or as ordered     be off          off
    it ends otherwise, or cannot be started     run             crashed, then as above: where its `restart` is
                                                                on-crash, and not too often
                                                not run         crashed
    somebody started it at its hypervisor       run             running

That is stored with the VM (`VM.power`), so it stands over restarts of controller, agent and server. A VM that
is stopped while it migrates goes on, and is switched off where it then is.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import structlog

from retinue.controller.changes import VMPowerChanged, VMStateChanged
from retinue.controller.context import Context
from retinue.controller.errors import RequestError, no_vm
from retinue.controller.inventory.ours import ours
from retinue.controller.migrations.orchestrator import MigrationOrchestrator
from retinue.core.migration import MigrationState
from retinue.core.model import VM, Ending, Power, Restart
from retinue.core.model.network import Owner
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType
from retinue.protocol.vms import SHUTDOWN_SECONDS, VMReport, VMState

RESTARTS, WITHIN_SECONDS = 3, 600.0
"""A VM that has crashed is started again so many times within so many seconds, and then no more."""
PAUSE_SECONDS = 1.0
"""Before the first of them; each later one waits twice as long as the one before."""

log = structlog.get_logger()


class PowerControl:
    """Starts and stops VMs, and takes in what hypervisors report of them."""

    def __init__(
        self, context: Context, orchestrator: MigrationOrchestrator, state_of: Callable[[str], VMState]
    ) -> None:
        self._context = context
        self._net = context.net
        self._orchestrator = orchestrator
        self._state_of = state_of
        self._crashes: dict[str, list[float]] = {}
        """By VM: when it has crashed lately, and was to be started again."""
        self._to_stop: dict[str, dict[str, bool | float]] = {}
        """By VM that migrates: how it is to be switched off when that has ended."""

    # ---- orders of managers ----

    def start(self, id: str) -> VM:
        """Have a VM run; one that is to run already is ordered once more. Raises RequestError."""
        vm = self.ours(id, may_migrate=id in self._to_stop)
        if self._to_stop.pop(id, None) is not None and self._orchestrator.of_vm(id) is not None:
            return self._set(vm, Power.RUNNING)  # It runs on, and was to be stopped after its migration.
        self._crashes.pop(id, None)
        return self._have_run(vm)

    def resume(self) -> None:
        """After the controller's start: VMs that were to be switched off when they had migrated are."""
        for vm in list(self._net.vms.values()):
            if vm.power is Power.OFF and self._orchestrator.of_vm(vm.id) is not None:
                self._stop_later(vm, {"hard": False, "seconds": SHUTDOWN_SECONDS})

    def stop(self, id: str, hard: bool, seconds: float) -> VM:
        """Have a VM switched off: asked by its power button and, after these seconds, at once. One that
        migrates is when its migration has ended."""
        order: dict[str, bool | float] = {"hard": hard, "seconds": seconds}
        vm = self.ours(id, may_migrate=True)
        if self._orchestrator.of_vm(id) is None:
            return self._set(vm, Power.OFF, order=EventType.VM_STOP, more=order)
        return self._stop_later(vm, order)

    def reboot(self, id: str, seconds: float) -> VM:
        """Have the guest shut down and start anew; after these seconds it is reset."""
        vm = self._running(id)
        self._context.events.publish(EventType.VM_REBOOT, vm=vm, server=vm.server, seconds=seconds)
        return vm

    def reset(self, id: str) -> VM:
        """Have the guest start anew at once."""
        vm = self._running(id)
        self._context.events.publish(EventType.VM_RESET, vm=vm, server=vm.server)
        return vm

    def _stop_later(self, vm: VM, order: dict[str, bool | float]) -> VM:
        if vm.id not in self._to_stop:
            self._context.spawn(self._stop_when_it_has_migrated(vm.id), f"stop of VM {vm.id}")
        self._to_stop[vm.id] = order
        return self._set(vm, Power.OFF, "it is switched off when its migration has ended")

    async def _stop_when_it_has_migrated(self, id: str) -> None:
        events = self._context.events.listen(types=frozenset({EventType.MIGRATION_STEP}))
        try:
            if self._orchestrator.of_vm(id) is not None:
                async for _ in events:
                    if self._orchestrator.of_vm(id) is None:
                        break
        finally:
            events.close()
        order, vm = self._to_stop.pop(id, None), self._net.vms.get(id)
        if order is not None and vm is not None and self._orchestrator.of_vm(id) is None:
            self._set(vm, Power.OFF, order=EventType.VM_STOP, more=order)

    def ours(self, id: str, *, may_migrate: bool = False) -> VM:
        """A VM that a manager registered, and that is here. Raises RequestError for another, and for
        one that migrates."""
        until = "wait for its end, or cancel it first"
        return ours(self._net, self._orchestrator, id, "starts and stops", until, may_migrate=may_migrate)

    def _running(self, id: str) -> VM:
        vm = self.ours(id)
        state = self._state_of(id)
        if state is not VMState.RUNNING:
            raise RequestError(
                f"VM {id} does not run: it is {state}; `retinue vm start {id}` starts it",
                ErrorCode.NOT_RUNNING,
            )
        return vm

    # ---- reports ----

    def on_report(
        self, id: str, report: VMReport, server: str, how: Ending = Ending.OFF, reason: str = ""
    ) -> None:
        """What the hypervisors' side reports of a VM, from where it is registered or is migrated from or to.

        Raises RequestError. A report of any other server changes nothing, and is published as a mismatch.
        """
        vm = self._net.vms.get(id)
        if vm is None:
            raise no_vm(id)
        if server and server not in self._places(vm):
            why = f"server {server} reports that it has {report} VM {id}, which is registered at {vm.server}"
            self._context.events.publish(EventType.VM_MISMATCH, vm=id, server=server, reason=why)
        elif report is VMReport.STARTED:
            self._has_started(vm, server)
        else:
            self._has_ended(vm, server, how, reason)

    def _places(self, vm: VM) -> set[str]:
        migration = self._orchestrator.of_vm(vm.id)
        if migration is None:
            return {vm.server}
        undecided = migration.state.may_undo or migration.state is MigrationState.ROLLING_BACK
        return {vm.server, migration.target, *([migration.source] if undecided else [])}

    def _has_started(self, vm: VM, server: str) -> None:
        known = self._context.state.vm_states.get(vm.id)
        if known is VMState.RUNNING:
            return
        if vm.power is Power.CRASHED or known in (VMState.OFF, VMState.CRASHED):
            self._set(vm, Power.RUNNING)  # It had ended: so somebody has started it.
        self._state(vm, VMState.RUNNING, EventType.VM_STARTED, server)

    def _has_ended(self, vm: VM, server: str, how: Ending, reason: str) -> None:
        off = how is Ending.OFF or vm.power is Power.OFF
        state = VMState.OFF if off else VMState.CRASHED
        if self._context.state.vm_states.get(vm.id) is state:
            return  # It is reported once more.
        if off:
            if vm.power is not Power.OFF:
                self._set(vm, Power.OFF, reason or "it was switched off from inside, or at its hypervisor")
        elif not self._may_start_again(vm):
            self._set(vm, Power.CRASHED, reason or "it has ended by itself")
        self._state(vm, state, EventType.VM_STOPPED, server, how=Ending(state), reason=reason)

    def _may_start_again(self, vm: VM) -> bool:
        """See to it that the VM, which has crashed, is started again; False where it is not to be."""
        if vm.restart is not Restart.ON_CRASH:
            return False
        now = self._context.clock()
        lately = [at for at in self._crashes.get(vm.id, ()) if now - at < WITHIN_SECONDS]
        if len(lately) >= RESTARTS:
            del self._crashes[vm.id]
            return False
        self._crashes[vm.id] = [*lately, now]
        pause = PAUSE_SECONDS * 2 ** len(lately)
        self._context.spawn(self._start_again(vm.id, pause), f"restart of VM {vm.id}")
        return True

    async def _start_again(self, id: str, pause: float) -> None:
        await asyncio.sleep(pause)
        if self._orchestrator.of_vm(id) is not None:  # It is decided by then where the VM is.
            await self._start_again(id, PAUSE_SECONDS)
            return
        vm = self._net.vms.get(id)
        if vm is not None and vm.power is Power.RUNNING and self._state_of(id) is VMState.CRASHED:
            log.info("vm.started_again", vm=id)
            self._have_run(vm)

    # ---- changes ----

    def _have_run(self, vm: VM) -> VM:
        return self._set(vm, Power.RUNNING, order=EventType.VM_START)

    def _set(
        self,
        vm: VM,
        power: Power,
        reason: str = "",
        order: EventType | None = None,
        more: dict[str, bool | float] | None = None,
    ) -> VM:
        wanted = replace(vm, power=power, power_reason=reason)
        touched = self._context.apply(VMPowerChanged(wanted, order, more or {}))
        # Also where nothing changes on a switch: its network may be complete, and it ready to start.
        work = self._context.install(touched | {Owner("vm", vm.id)})
        self._context.spawn(work, f"power of VM {vm.id}")
        return wanted

    def _state(self, vm: VM, state: VMState, event: EventType, server: str, **more: str) -> None:
        self._context.apply(VMStateChanged(vm.id, state, event, server, more))


__all__ = ["PowerControl"]
