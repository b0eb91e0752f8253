"""What agents and managers report of migrations: who may say it, what it makes of the migration, the answer.

Who may say what stands in controller/migrations/words.py. Most reports are answered at once. Two are held
back, because the VM waits for the answer:

    report      answered when                                   if that is not so in time
    converged   every switch has confirmed that the VM's        rejected after DIVERTING_LIMIT: the VM stays
                traffic goes to the target, and that its        at its source, where it runs
                source forwards
    stopped     every switch has confirmed that the VM's        answered after STOPPED_LIMIT: running late is
                traffic goes to the target; CACHE_LAG later     worse than running

A third is, because frames wait: `waited`, when every switch has confirmed that the VM's traffic goes to its
source again (`on_waited`).

After a restart of the controller the time begins when the switches are back; and it stands still while the
controller is late (`patience`): what a switch has confirmed by then is read before.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from retinue.controller.changes import TargetAwaitsSource
from retinue.controller.context import Context
from retinue.controller.migrations import words
from retinue.controller.migrations.active import ActiveMigration, count_packets, count_waited
from retinue.controller.migrations.old_ways import OldWays
from retinue.controller.migrations.placing import PRIMERS
from retinue.controller.migrations.requests import MigrationError
from retinue.core import migration as fsm
from retinue.core.migration import Migration, MigrationState, PlacementChange
from retinue.core.migration.handing_back import HANDED_BACK_IN, addressed
from retinue.core.pipeline.underlay import underlay_of
from retinue.host.timing import CACHE_LAG
from retinue.patience import patience
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType
from retinue.protocol.migrations import Report, ReportAnswer

DIVERTING_LIMIT, STOPPED_LIMIT = 5.0, 0.5
"""Seconds a VM is kept from going on until the switches have confirmed: while it runs at the source, and
while it is paused."""
LEFT_LIMIT = 1.5
"""Seconds that a source whose VM was stopped waits for the switches, before it takes out what is left."""
RETURNED_LIMIT = 2.0
"""Seconds that a target which is given up waits for the switches, before it hands back what waits there."""

AWAITED: Mapping[Report, tuple[PlacementChange, float]] = {
    Report.CONVERGED: (PlacementChange.FORWARDED, DIVERTING_LIMIT),
    Report.STOPPED: (PlacementChange.DIVERTED, STOPPED_LIMIT),
}
"""What the answer to a report of the source waits for, and for how many seconds at most. While the VM runs:
that no switch gives it anything any more, neither directly nor late."""


class Steps(Protocol):
    """Who takes the steps of migrations: the orchestrator."""

    def get(self, id: str) -> tuple[ActiveMigration, Migration]: ...
    def step(self, id: str, event: fsm.Event) -> Migration: ...
    def look_again(self, id: str) -> None: ...


class MigrationReports:
    """Takes reports, and answers them."""

    def __init__(self, context: Context, steps: Steps, old_ways: OldWays) -> None:
        self._context = context
        self._old_ways = old_ways
        self._steps = steps
        self._migrations: Mapping[str, Migration] = context.state.migrations

    def on_report(
        self,
        id: str,
        report: Report,
        at: float,
        reason: str = "",
        memory_at: str = "",
        frames: int = 0,
        by: Collection[str] | None = None,
    ) -> Migration:
        """target_opened (with memory_at, where the target has an agent of its own), copy_started, converged,
        stopped, resumed, source_freed, failed, rolled_back, target_closed.

        `by`: the servers for which the sender speaks, None for a manager (migrations/words.py: who may say
        what). What the agent is to be answered, and when: `answer`. Raises MigrationError for a report that
        does not fit the migration; the migration is as it was.
        """
        active, migration = self._steps.get(id)
        words.check_speaker(migration, report, by)
        if self._is_early(migration, report, by):
            active.progress.resumed_early = at if migration.state.may_undo else None
            raise words.too_early(migration)
        if report in (Report.STOPPED, Report.RESUMED) and at <= 0:
            raise MigrationError(f"{report} needs its time: at, in seconds since the epoch")
        progress, now = active.progress, self._context.clock()
        if report is Report.TARGET_OPENED:
            progress.target_opened_at = memory_at or progress.target_opened_at or ""
            self._steps.look_again(id)
            return self._let_source_open(id)
        event = words.event_of(report, at, reason)
        checked(migration, event, now)
        if report is Report.RESUMED and progress.resumed_here is None:
            progress.resumed_here = now
        if frames:
            vm = self._context.net.vms.get(migration.vm)
            primers = PRIMERS * len(vm.nics) if vm is not None else PRIMERS
            count_packets(
                active.figures, report, frames - primers if report is Report.TARGET_CLOSED else frames
            )
        self._steps.step(id, event)
        return self.take_early(id)

    def on_prepared(self, id: str, image_ms: int, machine_ms: int) -> None:
        """How long the target took to prepare, before anybody has told the source of the migration."""
        if image_ms or machine_ms:
            self._steps.get(id)[0].figures.update(image_ms=image_ms, machine_ms=machine_ms)

    def take_early(self, id: str) -> Migration:
        """The source has let go, or may have: what the target reported before counts now."""
        migration, progress = self._migrations[id], self._steps.get(id)[0].progress
        at, by = progress.resumed_early, (migration.target,)
        if at is None or not migration.state.may_undo:
            progress.resumed_early = None
            return migration
        if self._is_early(migration, Report.RESUMED, by):
            return migration
        progress.resumed_early = None
        return self.on_report(id, Report.RESUMED, at, by=by)

    async def until_source_let_go(self, id: str, report: Report, by: Collection[str] | None) -> None:
        """Two agents' reports may overtake each other: one that needs the source's waits for it, for a
        while."""
        if not self._is_early(self._steps.get(id)[1], report, by):
            return
        events = self._context.events.listen(types=words.LET_GO_ON)
        try:
            async with patience(words.LET_GO_LIMIT):
                while self._is_early(self._steps.get(id)[1], report, by):
                    await anext(events)
        except (TimeoutError, StopAsyncIteration):
            pass  # `on_report` says what is missing.
        finally:
            events.close()

    def _is_early(self, migration: Migration, report: Report, by: Collection[str] | None) -> bool:
        net, vm = self._context.net, self._context.net.vms.get(migration.vm)
        has_port = vm is not None and net.has_a_port(vm, net.servers[migration.source].edge)
        return has_port and words.needs_the_source(migration, report, by)

    def on_copying(
        self,
        id: str,
        copy_pass: int,
        remaining: int,
        written_a_second: int,
        by: Collection[str] | None = None,
        *,
        postcopy: bool = False,
    ) -> Migration:
        """A pass over the VM's memory has begun at the source, or `postcopy` goes on; `by` as in `on_report`.
        The migration stays as it is. Raises MigrationError."""
        active, migration = self._steps.get(id)
        words.check_speaker(migration, Report.COPYING, by)
        if migration.state not in (words.POSTCOPY_IN if postcopy else words.COPIED_IN):
            return migration
        copy = {"copy_pass": copy_pass, "remaining": remaining, "written_a_second": written_a_second}
        if postcopy:
            active.figures.update(passes=copy_pass, postcopy_remaining=remaining)
        elif copy_pass:
            active.figures.update(passes=copy_pass, written_a_second=written_a_second)
        else:
            active.progress.copied_at = self._context.clock()
        self._context.events.publish(
            EventType.MIGRATION_COPYING, migration_id=id, vm=migration.vm, postcopy=postcopy, **copy
        )
        return migration

    async def on_waited(
        self,
        id: str,
        frames: Sequence[bytes],
        by: Collection[str] | None = None,
        *,
        watching: bool = False,
    ) -> ReportAnswer:
        """What waited for the VM where it is not, and has not come to where it is: it is sent to the VM, in
        order. At the target, which is given up: without frames it is answered when the switches send nothing
        more there. At a source where the VM was stopped before it was diverted: so is what is `watching`.

        `by` as in `on_report`. The migration stays as it is. Raises MigrationError.
        """
        active, migration = self._steps.get(id)
        words.check_speaker(migration, Report.WAITED, by)
        if watching:
            return await self._until_source_may_look(id, by)
        words.check_that_it_waits_in_vain(migration, by)
        if frames:
            count_waited(active.figures, migration.state, lambda room: self._send(migration, frames[:room]))
        if migration.state not in HANDED_BACK_IN:
            active.progress.quiet.set()
        elif not frames and migration.state is MigrationState.ROLLING_BACK and migration.was_diverted:
            await confirmed_within(active.progress.is_confirmed(PlacementChange.RETURNED), RETURNED_LIMIT)
        target = self._context.net.servers[migration.target]
        marked = underlay_of(self._context.net).copy_source(target)
        return ReportAnswer(self._steps.get(id)[1].state, copies_from=marked)

    async def _until_source_may_look(self, id: str, by: Collection[str] | None) -> ReportAnswer:
        """The VM was stopped at its source with what it had not taken: all switches lead to the target, and
        nothing is copied before the source has taken that."""
        events = self._context.events.listen(types=words.LET_GO_ON)
        try:
            async with patience(LEFT_LIMIT):
                while self._steps.get(id)[1].state in words.BEFORE_DIVERTED:
                    await anext(events)
        except (TimeoutError, StopAsyncIteration):
            pass
        finally:
            events.close()
        active, migration = self._steps.get(id)
        words.check_that_it_waits_in_vain(migration, by)
        vm = self._context.net.vms.get(migration.vm)
        copied = vm is not None and vm.copied_to == migration.source  # By who had this migration before us.
        if copied or PlacementChange.FORWARDED in active.progress.confirming:
            raise MigrationError(f"{id} of {migration.vm}: what comes to {migration.source} now are copies")
        active.progress.watched = True
        if not await confirmed_within(active.progress.is_confirmed(PlacementChange.DIVERTED), LEFT_LIMIT):
            raise MigrationError(
                f"{id} of {migration.vm}: the switches have not confirmed in time that they divert",
                ErrorCode.NOT_CONFIRMED,
            )
        return ReportAnswer(self._steps.get(id)[1].state)

    def _send(self, migration: Migration, frames: Sequence[bytes]) -> int:
        """Send frames out of the VM's port where it is; returns how many."""
        net, sent = self._context.net, 0
        vm = net.vms.get(migration.vm)
        for frame in frames if vm is not None else ():
            assert vm is not None
            found, edge = addressed(net, vm, frame), net.servers[vm.server].edge
            port = None if found is None else net.port_of(found[0], edge)
            if found is not None and port is not None:
                sent += self._context.send_frame(edge, port.number, found[1])
        return sent

    async def answer(
        self, id: str, report: Report, *, watching: bool = False, sent: bool = False
    ) -> ReportAnswer:
        """The answer to a report that has just been taken (`on_report`), when the agent may have it.

        `watching`, `sent`: see protocol.migrations.ReportBody. Raises MigrationError when `converged` cannot
        be answered: the VM must not stop then.
        """
        active, migration = self._steps.get(id)
        if migration.state is not MigrationState.DIVERTED or report not in AWAITED:
            return ReportAnswer(migration.state)
        change, limit = AWAITED[report]
        if report is Report.CONVERGED:
            limit *= migration.step_factor  # Of `stopped` it is not longer: the VM stands still.
            active.progress.watched |= watching
            if watching:
                change = PlacementChange.DIVERTED
            else:
                active.progress.quiet.set()
            knowledge = self._context.knowledge
            await self._context.installer.wait_confirmed(lambda: knowledge.is_held_back(migration.vm))
        confirmed = await confirmed_within(active.progress.is_confirmed(change), limit)
        if report is Report.CONVERGED:
            if not confirmed:
                raise MigrationError(
                    "the switches have not confirmed in time that they divert to the target",
                    ErrorCode.NOT_CONFIRMED,
                )
            if watching:
                await self._old_ways.passed(migration)
                return ReportAnswer(self._steps.get(id)[1].state)
            # The source's agent looks for itself until nothing comes to the VM any more. Copies, which will
            # come from the target's side while the VM is paused, are no sign of a late switch.
            target = self._context.net.servers[migration.target]
            copy_source = underlay_of(self._context.net).copy_source(target)
            return ReportAnswer(self._steps.get(id)[1].state, copies_from=copy_source)
        if not migration.diverted:
            # Open vSwitch's flow cache follows its tables, and with them the confirmation, a little later.
            await asyncio.sleep(CACHE_LAG)
        if sent:
            await self._old_ways.gone(migration)
        return ReportAnswer(self._steps.get(id)[1].state)

    def _let_source_open(self, id: str) -> Migration:
        """The target waits, and has no port yet: where libvirt runs VMs, the source's order makes it."""
        active, migration = self._steps.get(id)
        opened_at = active.progress.target_opened_at
        if migration.state is MigrationState.MATCHED and opened_at:
            self._context.apply(TargetAwaitsSource(replace(migration, memory_at=opened_at)))
        return self._migrations[id]


def checked(migration: Migration, event: fsm.Event, now: float) -> tuple[Migration, tuple[fsm.Effect, ...]]:
    """The step that an event makes. Raises MigrationError where it makes none."""
    try:
        return fsm.step(migration, event, now)
    except fsm.IllegalEventError as error:
        raise MigrationError(str(error)) from error


async def confirmed_within(event: asyncio.Event, limit: float) -> bool:
    """True as soon as the event is set; False after `limit` seconds. What a switch has said while the loop
    stood still is read before."""
    try:
        async with patience(limit):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True
