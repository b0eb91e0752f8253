"""What an agent does at the source of a migration: bring the VM to the target's agent, or keep it.

The memory goes out by a task beside the VM's steps, so that a rollback can call it off.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import structlog

from retinue.agent.controller_link.vm_reports import VMReports
from retinue.agent.migration.peer import Transfer
from retinue.agent.vms.authority import Authority
from retinue.agent.vms.local_vm import LocalMachine, LocalVM, Switch
from retinue.core.migration.copying import CopyOptions
from retinue.core.migration.endpoint_events import Fact, GivenAway, NotTakenBack, Stays, TakenBack
from retinue.core.migration.presence import Outgoing
from retinue.host.errors import HostError
from retinue.host.timing import CACHE_LAG
from retinue.hypervisor import (
    Channel,
    Copying,
    Event,
    HandedOverError,
    Hypervisor,
    HypervisorError,
    MigrationFailed,
    OpenDisk,
    RunsElsewhere,
    RunState,
    Stopped,
)
from retinue.protocol.migrations import MigrationRecord, Report

GONE_LIMIT = 0.5
"""Seconds that a VM stands still at the most for what it has sent to be on its way."""
OLD_WAY_LIMIT = 0.5
"""Seconds in which nothing must come any more by the old way. What is for the VM waits at its target, and a
tap's queue has room for twice as long."""
COPY_ORDER_LIMIT = 90.0
"""Seconds that an opened target waits for the order to copy; the controller's own limits are less."""

log = structlog.get_logger()


class SourceEnd:
    """Gives VMs away, and takes them back. `learn` is told every fact."""

    def __init__(
        self,
        hypervisor: Hypervisor[Any],
        authority: Authority,
        transfer: Transfer,
        reports: VMReports,
        switch: Switch,
        learn: Callable[[LocalVM, Fact], None],
    ) -> None:
        self._hypervisor = hypervisor
        self._authority = authority
        self._transfer = transfer
        self._reports = reports
        self._switch = switch
        self._learn = learn

    def send(self, vm: LocalVM, migration: MigrationRecord) -> None:
        """Bring the VM to the target's agent, in the background."""
        assert isinstance(vm.presence, Outgoing)
        assert vm.machine is not None
        vm.migration, vm.outcome, vm.queued_frames, vm.may_copy = migration, None, 0, asyncio.Event()
        vm.rest_given_up = False
        if vm.presence.copying:
            vm.may_copy.set()
        vm.transfer = asyncio.create_task(
            self._send(vm, migration, vm.machine), name=f"{migration.id}: outgoing"
        )

    async def _send(self, vm: LocalVM, migration: MigrationRecord, machine: LocalMachine) -> None:
        stays = True
        """As far as known: it has not been brought there, or the hypervisor said that it runs here again."""
        runs_there = False
        gone: asyncio.Task[None] | None = None
        """Once it has stopped: until what it has sent is on its way."""
        taps: Collection[str] = machine.spec.ports
        """As the hypervisor names them, once it has: somebody else may have made the VM."""

        def hear(event: Event) -> None:
            nonlocal stays, gone, runs_there
            match event:
                case Copying() if not vm.by_hand:
                    self._report_copy(vm, migration, event)
                case RunsElsewhere():
                    # Nothing gives it back, though some of its memory is here yet.
                    runs_there = True
                    self._learn(vm, GivenAway(migration.id))
                case Stopped() if not vm.by_hand:
                    self._reports.of_migration(vm.id, migration.id, Report.STOPPED, at=event.at)
                    work = self._until_gone(vm.id, migration.id, event.at, taps)
                    gone = asyncio.create_task(work, name=f"{migration.id}: what {vm.id} has sent")
                case MigrationFailed():
                    stays, vm.queued_frames = True, event.queued_frames

        async def divert_here(found: Collection[str]) -> bool:
            nonlocal taps
            taps = found
            return await self._divert(vm, migration, found, runs=gone is None)

        async def until_gone() -> None:
            if gone is not None:
                await gone

        try:
            id, target, far = migration.id, migration.target, migration.far
            if far is not None:
                id, target = far.migration, far.server
            transfer = self._transfer.towards(far)
            channel = await transfer.connect(migration.memory_at, id, target)
            channel.again = partial(transfer.connect_again, migration.memory_at, id, target)
            channel.before_handover = until_gone
            stays = False
            more: dict[str, Any] = {}
            if self._authority.prepares_source:
                more["opened"] = lambda: _until_copy_is_ordered(vm, migration.step_factor)
            # A manager's machine may have been made by an agent before this one: it knows its disks itself.
            if machine.spec.private_disks or self._authority.prepares_source:
                more["open_disk"] = self._disk_opener(migration)
            divert = None if vm.by_hand else divert_here
            channel.compress = migration.compress
            options = CopyOptions(migration.postcopy, migration.compress, migration.step_factor)
            wanted = migration.wanted_downtime
            result = await self._hypervisor.run_outgoing(
                machine, channel, hear, divert, wanted, options, **more
            )
        except HandedOverError as error:
            vm.outcome, vm.rest_given_up = error, runs_there
            log.error("migration.target_not_answering", vm=vm.id, error=str(error))
            self._learn(vm, GivenAway(migration.id))
        except HostError as error:
            vm.outcome = error
            self._learn(vm, Stays(migration.id, str(error) or "it says no reason"))
        except Exception as error:
            log.exception("migration.failed", vm=vm.id, migration=migration.id)
            vm.outcome = HypervisorError(f"{type(error).__name__}: {error}")
            self._over(vm, migration, stays, str(vm.outcome))
        except BaseException:
            # It was called off, and whoever called it off knows that it has failed.
            self._over(vm, migration, stays)
            raise
        else:
            vm.outcome = result
            self._learn(vm, GivenAway(migration.id))
            log.info(
                "migration.vm_at_target",
                vm=vm.id,
                target=migration.target,
                total_ms=round(result.total_ms, 1),
                downtime_ms=round(result.downtime_ms, 1),
            )
        finally:
            if gone is not None:
                gone.cancel()

    def _report_copy(self, vm: LocalVM, migration: MigrationRecord, event: Copying) -> None:
        self._reports.of_migration(
            vm.id,
            migration.id,
            Report.COPYING,
            copy_pass=event.copy_pass,
            remaining=event.remaining,
            written_a_second=event.written_a_second,
            postcopy=event.postcopy,
        )

    async def send_the_rest(self, vm: LocalVM, migration: MigrationRecord) -> None:
        """Whatever its target lacks of the VM's memory, which is here, goes over; raises nothing.

        Who sent it may have ended, or did not know whether the VM runs there; now the controller says so.
        """
        if vm.machine is None or vm.rest_given_up:
            return

        def hear(event: Event) -> None:
            if isinstance(event, Copying) and not vm.by_hand:
                self._report_copy(vm, migration, event)

        try:
            id, target, far = migration.id, migration.target, migration.far
            if far is not None:
                id, target = far.migration, far.server
            again = partial(self._transfer.towards(far).connect_again, migration.memory_at, id, target)
            await self._hypervisor.send_the_rest(vm.machine, again, hear)
        except HostError as error:
            log.error("migration.memory_lost", vm=vm.id, migration=migration.id, error=str(error))
        except Exception:
            log.exception("migration.memory_lost", vm=vm.id, migration=migration.id)

    def _over(self, vm: LocalVM, migration: MigrationRecord, stays: bool, reason: str = "") -> None:
        self._learn(vm, Stays(migration.id, reason) if stays else GivenAway(migration.id))

    async def _divert(
        self, vm: LocalVM, migration: MigrationRecord, taps: Collection[str], *, runs: bool
    ) -> bool:
        if runs:  # Else each look is a longer pause, and copies come for as long as that lasts.
            await self._until_nothing_comes(vm.id, migration, taps)
        copies_from = await self._reports.until_diverted(vm.id, migration.id, migration.step_factor)
        return await self._switch.until_bypassed(taps, copies_from)

    async def _until_nothing_comes(self, vm: str, migration: MigrationRecord, taps: Collection[str]) -> None:
        """Return when the VM's traffic is diverted, and nothing comes for it by the old way any more.

        What did so later would be forwarded, a longer way than what goes to the target directly, and be
        overtaken. Two looks between which what was on its way has come, and that found the same: nobody sends
        there any more. Where flow caches do not follow for long it goes on all the same: nothing is lost.
        """
        until, before = 0.0, await self._switch.given(taps)
        while before is not None:
            looked = time.monotonic()
            await self._reports.until_come(vm, migration.id, migration.step_factor)
            until = until or time.monotonic() + OLD_WAY_LIMIT
            await asyncio.sleep(looked + CACHE_LAG - time.monotonic())
            now = await self._switch.given(taps)
            if now == before:
                return
            if time.monotonic() > until:
                log.warning("migration.old_way_in_use", vm=vm, limit_s=OLD_WAY_LIMIT)
                return
            before = now

    async def _until_gone(self, vm: str, migration: str, at: float, taps: Collection[str]) -> None:
        """Return when what a VM that has stopped sent before cannot be overtaken by what it sends from its
        target: this server's switch has nothing of it any more, and it is past where the two ways part.

        It is looked for while the last of its memory goes over. Where it takes long the VM goes on all the
        same: to stand still is worse.
        """
        try:
            async with asyncio.timeout(GONE_LIMIT) as limit:
                await self._switch.until_taken(taps)
                await self._reports.until_gone(vm, migration, at, GONE_LIMIT)
        except (TimeoutError, HostError) as error:
            reason = f"not within {GONE_LIMIT:g} s" if limit.expired() else str(error)
            log.warning("migration.not_seen_to_go", vm=vm, reason=reason)

    def _disk_opener(self, migration: MigrationRecord) -> OpenDisk:
        async def open_disk(number: int) -> Channel:
            return await self._transfer.connect_disk(
                migration.memory_at, migration.id, migration.target, number
            )

        return open_disk

    def allow_copy(self, vm: LocalVM) -> None:
        vm.may_copy.set()

    async def keep(self, vm: LocalVM, migration: MigrationRecord) -> None:
        """The migration is off, and the VM was not handed over: see that it runs here."""
        if await self._authority.keep(vm):
            await self.resume(vm, migration)

    async def resume(self, vm: LocalVM, migration: MigrationRecord) -> None:
        """Resume the VM, which is this server's again."""
        try:
            if vm.machine is None:
                raise HypervisorError("its machine is gone")
            if await vm.machine.state() is not RunState.RUNNING:
                with contextlib.suppress(HostError):  # A figure only: the VM is resumed in any case.
                    vm.queued_frames = await vm.machine.waiting()
                await vm.machine.resume()
        except HostError as error:
            log.error("migration.source_not_resumed", vm=vm.id, migration=migration.id, error=str(error))
            self._learn(vm, NotTakenBack(migration.id, str(error)))
        else:
            self._learn(vm, TakenBack(migration.id, time.time()))


async def _until_copy_is_ordered(vm: LocalVM, step_factor: float) -> None:
    limit = COPY_ORDER_LIMIT * step_factor
    try:
        async with asyncio.timeout(limit):
            await vm.may_copy.wait()
    except TimeoutError:
        raise HypervisorError(f"no order to copy within {limit:.0f} s") from None
