"""Who may say what of a migration: one table, asked for each report, whichever door it comes by.

A report is believed for what its sender does in this migration, not for having to do with it. The two ends
are not of one mind: a target that could say that the VM has stopped at the source would take its traffic
while it runs there.

`resumed`, from which there is no way back, needs more than the target's word: the source must have said that
the VM stopped, or the source's switch that the VM's port has gone. Reports of two agents may overtake each
other; so one that comes first is waited for (`MigrationReports.until_source_let_go`), and counts when its
turn has come.
"""

from collections.abc import Collection, Mapping
from enum import StrEnum

from retinue.controller.migrations.requests import MigrationError
from retinue.core import migration as fsm
from retinue.core.migration import Migration, MigrationState
from retinue.core.migration.handing_back import HANDED_BACK_IN
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType
from retinue.protocol.migrations import Report

LET_GO_LIMIT = 2.0
"""Seconds that `resumed` waits for the source to say that the VM stopped there."""


LET_GO_ON = frozenset({EventType.MIGRATION_STEP, EventType.PORT_REMOVED})
"""Events after which a report that came too early may be due."""


COPIED_IN = frozenset({MigrationState.PREPARED, MigrationState.COPYING})
POSTCOPY_IN = frozenset(
    {MigrationState.DIVERTED, MigrationState.SWITCHING, MigrationState.SWITCHED, MigrationState.CONFIRMED}
)
"""States in which the memory of a VM goes over, as it is told of: before it runs at the target, and after."""


BEFORE_DIVERTED = frozenset(
    state for state in MigrationState if state.may_undo and state is not MigrationState.DIVERTED
)
HANDED_ON_IN = POSTCOPY_IN | {MigrationState.FREED, MigrationState.DONE}
"""States in which what waits for the VM at its source is for it at the target."""


class End(StrEnum):
    SOURCE = "source"
    TARGET = "target"


_SOURCE, _TARGET = frozenset({End.SOURCE}), frozenset({End.TARGET})

SAID_BY: Mapping[Report, frozenset[End]] = {
    Report.TARGET_OPENED: _TARGET,
    Report.COPY_STARTED: _SOURCE,
    Report.COPYING: _SOURCE,
    Report.CONVERGED: _SOURCE,
    Report.STOPPED: _SOURCE,
    Report.RESUMED: _TARGET,
    Report.SOURCE_FREED: _SOURCE,
    Report.ROLLED_BACK: _SOURCE,
    Report.WAITED: _SOURCE | _TARGET,
    Report.TARGET_CLOSED: _TARGET,
    Report.FAILED: _SOURCE | _TARGET,
}
"""By report: the ends of a migration that know it of themselves."""

_UNDECIDED = frozenset(state for state in MigrationState if state.may_undo) | {MigrationState.ROLLING_BACK}
"""States in which the VM may still run at its source."""


class NotTheirsError(MigrationError):
    """Who reports is not at the end of the migration that can know it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorCode.NOT_ALLOWED)


def check_speaker(migration: Migration, report: Report, by: Collection[str] | None) -> None:
    """Raises NotTheirsError. `by`: the servers whose hypervisors the sender may speak for; None: a manager's
    word, or what the controller itself has concluded."""
    if by is None:
        return
    at = {End.SOURCE: migration.source, End.TARGET: migration.target}
    ends = sorted(SAID_BY[report])
    if not any(at[end] in by for end in ends):
        raise NotTheirsError(
            f"{report} of {migration.id} is for its {' or '.join(ends)} to say, "
            f"{' or '.join(at[end] for end in ends)}, not for {', '.join(sorted(by)) or 'nobody'}"
        )


def check_that_it_waits_in_vain(migration: Migration, by: Collection[str] | None) -> None:
    """Raises MigrationError where what waits at the end that speaks is for the VM there."""
    at_source = by is None or migration.source in by
    if migration.state in HANDED_BACK_IN or (migration.state in HANDED_ON_IN and at_source):
        return
    where = migration.source if at_source else migration.target
    raise MigrationError(
        f"{migration.id} of {migration.vm} is {migration.state}: what waits at {where} is for the VM there"
    )


def needs_the_source(migration: Migration, report: Report, by: Collection[str] | None) -> bool:
    """True for a `resumed` of the target before the source has said that the VM stopped there."""
    return (
        report is Report.RESUMED
        and by is not None
        and migration.target in by
        and migration.stopped_at is None
        and migration.state in _UNDECIDED
    )


def too_early(migration: Migration) -> MigrationError:
    return MigrationError(
        f"{migration.id} of {migration.vm} is {migration.state}: {migration.source} has not said that the VM "
        "stopped there, and has its port"
    )


def event_of(report: Report, at: float, reason: str) -> fsm.Event:
    """What a report is to the state machine; `target_opened` takes another way, with the port it needs."""
    match report:
        case Report.COPY_STARTED:
            return fsm.CopyStarted()
        case Report.CONVERGED:
            return fsm.Converged()
        case Report.STOPPED:
            return fsm.SourceStopped(at)
        case Report.RESUMED:
            return fsm.Resumed(at)
        case Report.SOURCE_FREED:
            return fsm.SourceFreed()
        case Report.TARGET_CLOSED:
            return fsm.TargetClosed()
        case Report.ROLLED_BACK:
            return fsm.RolledBack()
        case Report.FAILED:
            return fsm.Failed(reason or "the hypervisor gave no reason")
        case Report.TARGET_OPENED:
            return fsm.TargetOpened("")
        case Report.COPYING | Report.WAITED:
            raise MigrationError(f"{report} is no step of a migration")


def speaks_for_the_vm(migration: Migration) -> str:
    """The server whose hypervisor is believed about the VM itself: the source, also while the VM is paused
    there, until the VM runs at the target."""
    return migration.source if migration.resumed_at is None else migration.target
