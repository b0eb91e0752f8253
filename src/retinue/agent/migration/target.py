"""What an agent does at the target of a migration: wait for the VM, and let it run once it is its own.

The memory comes in by a task beside the VM's steps, so that a rollback can call it off. What the VM is sent
meanwhile waits in its taps; the agent holds it, so that it is there when the machine has ended, to be handed
back.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog

from retinue.agent.controller_link.vm_reports import VMReports
from retinue.agent.migration.peer import Transfer
from retinue.agent.vms.authority import Authority
from retinue.agent.vms.disks import Disks
from retinue.agent.vms.local_vm import LocalMachine, LocalVM, Switch
from retinue.core.limits import LARGEST_REPORT, MOST_WAITING, MOST_WAITING_BYTES
from retinue.core.migration.copying import Postcopy
from retinue.core.migration.endpoint_events import (
    Exited,
    Fact,
    NotArrived,
    NotOpened,
    Opened,
    RanAndEnded,
    RanHere,
)
from retinue.core.migration.handing_back import in_batches, not_copied
from retinue.core.model import Ending
from retinue.host.errors import HostError
from retinue.host.timing import CACHE_LAG
from retinue.hypervisor import (
    Channel,
    Event,
    HandedOverError,
    Hypervisor,
    HypervisorError,
    Machine,
    OnEvent,
    Resumed,
    VMSpec,
)
from retinue.protocol.migrations import MigrationRecord
from retinue.protocol.vms import VMRecord

IMAGE_SECONDS = 15.0
"""That an order to open a target waits for an image; the controller's own limit is more."""

log = structlog.get_logger()


class TargetEnd:
    """Takes VMs in. `learn` is told every fact; `listener` makes the listener of a VM's next machine."""

    def __init__(
        self,
        hypervisor: Hypervisor[Any],
        authority: Authority,
        transfer: Transfer,
        spec: Callable[[VMRecord], VMSpec],
        reports: VMReports,
        switch: Switch,
        learn: Callable[[LocalVM, Fact], None],
        listener: Callable[[LocalVM], OnEvent],
        disks: Disks,
    ) -> None:
        self._hypervisor = hypervisor
        self._authority = authority
        self._transfer = transfer
        self._spec = spec
        self._reports = reports
        self._switch = switch
        self._learn = learn
        self._listener = listener
        self._disks = disks

    async def open(self, vm: LocalVM, migration: MigrationRecord, plugged: bool) -> None:
        """Make a machine that waits for the VM's memory, and its port unless the VM has it (`plugged`)."""
        vm.migration = migration
        vm.let_frames_go()
        clock = asyncio.get_running_loop().time
        try:
            self._transfer.towards(migration.far)
            if not plugged:
                await self._authority.make_target_port(vm)
                plugged = True
            began = clock()
            await self._disks.ready(vm.record, IMAGE_SECONDS * migration.step_factor)
            had_images = clock()
            vm.machine = await self._hypervisor.open_target(self._spec(vm.record), self._listener(vm))
            vm.held = vm.machine.hold_frames()
            await _expect(vm.machine, migration)
            took = {"image_ms": had_images - began, "machine_ms": clock() - had_images}
            vm.prepared = {name: round(seconds * 1000) for name, seconds in took.items()}
        except HostError as error:
            self._learn(vm, NotOpened(migration.id, str(error), plugged))
            return
        self._learn(vm, Opened(migration.id))

    def receive(self, vm: LocalVM, migration: MigrationRecord) -> None:
        """Let the source's agent in, and receive the VM in the background."""
        assert vm.machine is not None
        far = migration.far
        source = migration.source if far is None else far.server
        self._transfer.towards(far).expect(migration.id, source, vm.machine.take_disk)
        receiving = self._receive(vm, vm.machine, migration)
        vm.transfer = asyncio.create_task(receiving, name=f"{migration.id}: incoming")

    async def _receive(self, vm: LocalVM, machine: LocalMachine, migration: MigrationRecord) -> None:
        ran, channel = False, None

        def hear(event: Event) -> None:
            nonlocal ran
            if isinstance(event, Resumed):
                ran = True
                vm.let_frames_go()
                self._learn(vm, RanHere(migration.id, event.at))

        try:
            transfer = self._transfer.towards(migration.far)
            channel = await transfer.arrival(migration.id)
            channel.again = partial(transfer.another_arrival, migration.id)
            channel.step_factor = migration.step_factor
            # It comes when every switch has confirmed the VM's entries. This server's may have frames for it
            # dropped by its cache all the same, as long as that does not follow.
            channel.before_memory = self._switch.until_followed
            await self._hypervisor.run_incoming(machine, channel, hear)
        except HandedOverError as error:
            # The VM may have run, so the source must never resume it: it has migrated, and ended.
            if vm.machine is machine:  # By now the VM may have been started anew here, in another.
                vm.machine = None
                vm.let_frames_go()
            if ran:
                log.error("migration.memory_lost", vm=vm.id, migration=migration.id, error=str(error))
                if not self._authority.exclusive:
                    # Its machine's end is told as any other's; but a manager's word, in the middle of a
                    # migration, is taken for one about that.
                    self._learn(vm, Exited(Ending.CRASHED, str(error)))
                return
            self._learn(vm, RanAndEnded(migration.id, time.time(), str(error)))
        except HostError as error:
            log.warning("migration.vm_did_not_arrive", vm=vm.id, migration=migration.id, error=str(error))
            if vm.machine is machine:
                vm.machine = None
            self._learn(vm, NotArrived(migration.id, str(error)))
        except Exception as error:
            # A mistake of ours; whoever takes VMs in says HandedOverError where the VM may have run.
            log.exception("migration.failed", vm=vm.id, migration=migration.id)
            if channel is not None:
                channel.abort()
            with contextlib.suppress(HostError):
                await machine.quit()
            if vm.machine is machine:
                vm.machine = None
            self._learn(vm, NotArrived(migration.id, f"{type(error).__name__}: {error}"))
        finally:
            self._transfer.forget(migration.id)

    def receive_the_rest(self, vm: LocalVM, migration: MigrationRecord | None) -> None:
        """In the background: the VM runs here, and lacks memory that came through the agent before this one.
        None: of its migration nobody knows any more."""
        assert vm.machine is not None
        vm.migration = migration
        what = "a migration that is over" if migration is None else migration.id
        work = self._receive_the_rest(vm, vm.machine, migration)
        vm.transfer = asyncio.create_task(work, name=f"{what}: the rest")

    async def _receive_the_rest(
        self, vm: LocalVM, machine: LocalMachine, migration: MigrationRecord | None
    ) -> None:
        async def again() -> Channel:
            if migration is None:
                raise HypervisorError("the controller knows no migration of it any more")
            return await self._transfer.towards(migration.far).another_arrival(migration.id)

        try:
            if migration is not None:
                source = migration.source if migration.far is None else migration.far.server
                self._transfer.towards(migration.far).expect_again(migration.id, source)
            await self._hypervisor.receive_the_rest(machine, again)
            vm.lacking = None
        except HostError as error:  # That its machine has ended is told as any other's end.
            log.error("migration.memory_lost", vm=vm.id, migration=vm.migration_id, error=str(error))
            if not self._authority.exclusive:
                self._learn(vm, Exited(Ending.CRASHED, str(error)))
        except Exception:
            log.exception("migration.memory_lost", vm=vm.id, migration=vm.migration_id)
        finally:
            if migration is not None:
                self._transfer.forget(migration.id)

    async def hand_back(self, vm: LocalVM, migration: MigrationRecord) -> None:
        """Give the controller what waited here for a VM that stays at its source, and has no machine here.

        Some of it may still be on its way: first nothing may come here any more. It is tried once, for a
        source that has handed the VM over waits meanwhile.
        """
        if vm.held is None or vm.by_hand:
            return
        handed_back = 0
        try:
            copies_from = await self._reports.until_returned(vm.id, migration.id)
            with contextlib.suppress(HostError):  # It is late: what has come is here.
                if not await self._switch.until_bypassed(self._spec(vm.record).ports, ""):
                    await asyncio.sleep(CACHE_LAG)
            waited = not_copied(vm.held.take(MOST_WAITING, MOST_WAITING_BYTES), copies_from)
            for frames in in_batches(waited, LARGEST_REPORT // 2):  # In base64 they are a third longer.
                await self._reports.hand_back(vm.id, migration.id, frames)
                handed_back += len(frames)
        except HostError as error:
            log.warning("migration.not_handed_back", vm=vm.id, migration=migration.id, error=str(error))
        log.info("migration.handed_back", vm=vm.id, migration=migration.id, frames=handed_back)


async def _expect(machine: Machine, migration: MigrationRecord) -> None:
    """Have the machine ready for post-copy. Raises HypervisorError where it must be, and cannot."""
    if migration.postcopy is Postcopy.NEVER:
        return
    try:
        await machine.expect_postcopy()
    except HostError as error:
        if migration.postcopy is Postcopy.REQUIRED:
            raise
        log.warning("migration.by_precopy_alone", vm=migration.vm, migration=migration.id, reason=str(error))
