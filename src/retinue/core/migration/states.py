"""The states of a migration, and the rule of each step: what starts it, what ends it, how it is undone.

    state         waits for the event                    then
    planned       Matched: the target server's           ask the hypervisor to open a port there
                  location is known
    matched       TargetOpened: the port is there        admit the VM at the target: binding and flows
    admitting     Confirmed: every switch has them       prime the port; the copy may start
    prepared      CopyStarted                            -
    copying       Converged: little is left to copy,     divert the VM's traffic to the target: the traffic
                  and the VM runs at the source          waits there
    diverted      Resumed: the VM runs at the target;    (once the diversion is confirmed:) delete binding
                  SourceStopped on the way, then         and flows at the source
                  copies go to the source: see below
    switching     Confirmed: every switch diverts        the same
    switched      Confirmed: they are gone               free the source's QEMU and port
    confirmed     SourceFreed                            forward nothing from the source any more
    freed         Confirmed: nothing is forwarded        done
    rolling back  Confirmed (the target is closed) and   undone: the network is as before
                  RolledBack (the source runs);
                  TargetClosed on the way: see below

So nothing is lost: what the VM is sent goes to the source until it goes to the target, and what has come to
the source is received before the VM is paused. A hypervisor that cannot hold a VM back leaves Converged out:
then SourceStopped, or else Resumed, starts the diversion. The later the event, the more packets are lost.

A failure or a cancel before Resumed rolls back, and so does a step out of time before the source is paused.
After that, time alone proves nothing, for the VM may run at the target: only the hypervisor's report rolls
back, and Resumed, when it crosses with an order to roll back, goes forward. A stale copy of a VM is never
resumed. After Resumed there is no way back at all; steps, as an undo, are tried until confirmed, a delay is
reported.
A source that has handed the VM over does not resume it on an order to roll back: the target may. Only
when the target's agent reports that the VM never ran there, and never will (TargetClosed), is it given back.

Two safeguards. Once all switches divert to the target, the source's edge sends on whatever it still gets: a
packet that was long on its way comes too late for the source, and is not lost. The edge does so for a while
after the VM has left, for a busy switch may follow its own tables late. And while the VM is paused
(SourceStopped till Resumed) all it is sent at the target is copied to the source, and waits there: if the VM
resumes at the source after all, it has that; what came between the diversion and the pause is handed back by
the target (`handing_back`). If it resumes at the target, the copies are thrown away with the source's port.
An undo after the diversion is done in two steps: first the traffic goes to the source again, and the target's
edge sends on what still comes there; some time after every switch has confirmed that, the target is closed.

An event that does not fit the state is rejected (IllegalEventError) and the migration stays as it is; an
event that arrives once more changes nothing.
"""

from dataclasses import replace

from retinue.core.migration.copying import PLAIN, CopyOptions
from retinue.core.migration.effects import (
    AdmitAtTarget,
    CeaseForwarding,
    CloseSource,
    CloseTarget,
    CopyToSource,
    DivertToTarget,
    Effect,
    ForwardFromSource,
    FreeSource,
    OpenTarget,
    ReturnToSource,
    RollBackAtHypervisor,
    StartCopy,
)
from retinue.core.migration.events import (
    Cancelled,
    Confirmed,
    Converged,
    CopyStarted,
    Event,
    Failed,
    Matched,
    PlacementChange,
    Resumed,
    RolledBack,
    SourceFreed,
    SourceStopped,
    TargetClosed,
    TargetOpened,
    TimedOut,
)
from retinue.core.migration.precopy import WANTED_DOWNTIME
from retinue.core.migration.record import Migration, MigrationState


class IllegalEventError(Exception):
    """The event does not fit the migration's state; the migration is as it was."""


S = MigrationState
NEXT: dict[
    tuple[MigrationState, type[Event] | PlacementChange], tuple[MigrationState, tuple[Effect, ...]]
] = {
    (S.PLANNED, Matched): (S.MATCHED, (OpenTarget(),)),
    (S.MATCHED, TargetOpened): (S.ADMITTING, (AdmitAtTarget(),)),
    (S.ADMITTING, PlacementChange.ADMITTED): (S.PREPARED, (StartCopy(),)),
    (S.PREPARED, CopyStarted): (S.COPYING, ()),
    (S.PREPARED, Converged): (S.DIVERTED, (DivertToTarget(),)),
    (S.COPYING, Converged): (S.DIVERTED, (DivertToTarget(),)),
    (S.PREPARED, SourceStopped): (S.DIVERTED, (DivertToTarget(),)),
    (S.COPYING, SourceStopped): (S.DIVERTED, (DivertToTarget(),)),
    (S.PREPARED, Resumed): (S.SWITCHING, (DivertToTarget(),)),
    (S.COPYING, Resumed): (S.SWITCHING, (DivertToTarget(),)),
    (S.DIVERTED, Resumed): (S.SWITCHING, ()),
    (S.SWITCHING, PlacementChange.DIVERTED): (S.SWITCHED, (CloseSource(),)),
    (S.SWITCHED, PlacementChange.SOURCE_CLOSED): (S.CONFIRMED, (FreeSource(),)),
    (S.CONFIRMED, SourceFreed): (S.FREED, (CeaseForwarding(),)),
    (S.FREED, PlacementChange.SETTLED): (S.DONE, ()),
}
"""The straight way, by event or, for Confirmed, by what is confirmed. The rest is in `step`."""

AGAIN: dict[MigrationState, tuple[Effect, ...]] = {
    S.MATCHED: (OpenTarget(),),
    S.ADMITTING: (AdmitAtTarget(),),
    S.PREPARED: (StartCopy(),),
    S.COPYING: (StartCopy(),),
    S.DIVERTED: (DivertToTarget(), StartCopy()),
    S.SWITCHING: (DivertToTarget(),),
    S.SWITCHED: (CloseSource(),),
    S.CONFIRMED: (FreeSource(),),
    S.FREED: (CeaseForwarding(),),
    S.ROLLING_BACK: (CloseTarget(), RollBackAtHypervisor()),
}
"""What a state asks for: asked for again after a restart, and when a late step is not confirmed in time.
Asking twice does no harm; a hypervisor that has long done what it is asked says so once more."""

_PASSED: dict[type[Event], MigrationState] = {
    Matched: S.MATCHED,
    TargetOpened: S.ADMITTING,
    CopyStarted: S.COPYING,
    Converged: S.DIVERTED,
    SourceStopped: S.DIVERTED,
    Resumed: S.SWITCHING,
    SourceFreed: S.FREED,
}
"""From which state on an event has had its effect, so that its repeat changes nothing."""


def again(migration: Migration, now: float) -> tuple[Migration, tuple[Effect, ...]]:
    """Ask again for what the migration's state waits for; its time counts anew."""
    if migration.state.ended:
        return migration, ()
    effects = AGAIN.get(migration.state, ())
    if migration.state is S.ROLLING_BACK and migration.target_closed:
        effects += (ReturnToSource(),)
    steps = migration.steps
    if len(steps) > 1 and steps[-1][0] is steps[-2][0]:
        steps = steps[:-1]  # Asked for again and again: the first time and the last are enough.
    return replace(migration, steps=(*steps, (migration.state, now))), effects


def begin(
    id: str,
    vm: str,
    source: str,
    target: str,
    now: float,
    wanted_downtime: float = WANTED_DOWNTIME,
    options: CopyOptions = PLAIN,
) -> Migration:
    steps = ((S.PLANNED, now),)
    return Migration(
        id, vm, source, target, S.PLANNED, steps, wanted_downtime=wanted_downtime,
        postcopy=options.postcopy, compress=options.compress, step_factor=options.step_factor,
    )  # fmt: skip


def told_afterwards(begun: Migration, target_host: str) -> Migration:
    """The same, of which a manager says that it has happened. Between two hosts at one switch nothing is to
    be diverted or forwarded: it is done when the switch has confirmed the other port."""
    told = replace(begun, after_the_fact=True, target_host=target_host)
    return _enter(told, S.FREED, begun.since()) if begun.source == begun.target else told


def step(migration: Migration, event: Event, now: float) -> tuple[Migration, tuple[Effect, ...]]:
    """Take one step. Raises IllegalEventError, with the migration unchanged, for an event that does not
    fit."""
    found = NEXT.get((migration.state, event.change if isinstance(event, Confirmed) else type(event)))
    if found is not None:
        return _on(migration, event, *found, now)
    match event:
        case Failed(reason):
            return _give_up(migration, reason, now)
        case Cancelled(by):
            return _give_up(migration, f"cancelled by {by}", now)
        case TimedOut(waits_for):
            return _out_of_time(migration, waits_for, now)
        case Confirmed(PlacementChange.DIVERTED) if migration.state is S.DIVERTED:
            return replace(migration, diverted=True), (ForwardFromSource(),)
        case Confirmed(PlacementChange.TARGET_CLOSED) if migration.state is S.ROLLING_BACK:
            return _undone(replace(migration, closed=True), now)
        case RolledBack() if migration.state is S.ROLLING_BACK:
            return _undone(replace(migration, restored=True), now)
        case TargetClosed() if migration.state is S.ROLLING_BACK:
            return replace(migration, target_closed=True), () if migration.restored else (ReturnToSource(),)
        case TargetClosed() if migration.state is S.UNDONE:
            return migration, ()
        case Resumed(at) if migration.state is S.ROLLING_BACK and not migration.restored:
            after = replace(migration, diverted=False, closed=False, resumed_at=at)
            return _enter(after, S.SWITCHING, now), (DivertToTarget(),)
        case Confirmed(PlacementChange.FORWARDED | PlacementChange.COPIED):
            return migration, ()  # Safeguards: nothing waits for them.
        case SourceStopped(at) if migration.state is S.DIVERTED and migration.stopped_at is None:
            return replace(migration, stopped_at=at), (CopyToSource(),)
        case SourceStopped(at) if migration.stopped_at is None and _has_passed(
            migration.state, SourceStopped
        ):
            return replace(migration, stopped_at=at), ()
        case SourceStopped(at) if migration.state is S.ROLLING_BACK and migration.stopped_at is None:
            return replace(migration, stopped_at=at), ()  # What Resumed, if it crosses, may depend on.
        case RolledBack() if migration.state is S.UNDONE:
            return migration, ()
        case _ if _has_passed(migration.state, type(event)):
            return migration, ()
        case _:
            raise IllegalEventError(
                f"{migration.id} of {migration.vm} is {migration.state}: {event} does not fit"
            )


def _on(
    migration: Migration, event: Event, state: MigrationState, effects: tuple[Effect, ...], now: float
) -> tuple[Migration, tuple[Effect, ...]]:
    after = _enter(migration, state, now)
    match event:
        case TargetOpened(memory_at):
            return replace(after, memory_at=memory_at), effects
        case SourceStopped(at):
            return replace(after, stopped_at=at), effects
        case Resumed(at) if migration.diverted:
            # The switches were told before, and have confirmed: switched at once.
            after, effects = _on(
                after, Confirmed(PlacementChange.DIVERTED), *NEXT[state, PlacementChange.DIVERTED], now
            )
            return replace(after, resumed_at=at), effects
        case Resumed(at):
            return replace(after, resumed_at=at), effects
        case _:
            return after, effects


def _has_passed(state: MigrationState, event: type[Event]) -> bool:
    order = tuple(S)
    since = _PASSED.get(event)
    return since is not None and order.index(since) <= order.index(state) <= order.index(S.DONE)


def _enter(migration: Migration, state: MigrationState, now: float) -> Migration:
    return replace(migration, state=state, steps=(*migration.steps, (state, now)), reason="")


def _give_up(migration: Migration, reason: str, now: float) -> tuple[Migration, tuple[Effect, ...]]:
    if migration.state is S.ROLLING_BACK:
        return migration, ()
    if migration.state is S.UNDONE:
        raise IllegalEventError(
            f"{migration.id} of {migration.vm} is undone already, the VM is at {migration.source}"
        )
    if not migration.state.may_undo:
        raise IllegalEventError(
            f"{migration.id} of {migration.vm} is {migration.state}: the VM runs at {migration.target}, "
            f"there is no way back"
        )
    after = replace(_enter(migration, S.ROLLING_BACK, now), reason=reason)
    return after, (CloseTarget(), RollBackAtHypervisor())


def _out_of_time(migration: Migration, waits_for: str, now: float) -> tuple[Migration, tuple[Effect, ...]]:
    if migration.undone_by_time:
        return _give_up(migration, f"not {_awaited(migration.state)} within {migration.limit:g} s", now)
    if migration.limit is None:
        return migration, ()
    waiting = f", waits for {waits_for}" if waits_for else ""
    delay = f"{migration.state} for longer than {migration.limit:g} s, trying again{waiting}"
    if migration.state is S.ROLLING_BACK:
        delay = _cause(migration) + (f"{STILL}{delay}" if waits_for else "")
    return again(replace(migration, reason=delay), now)


STILL = "; "
"""Between why a migration is undone and what its undo waits for."""


def _cause(migration: Migration) -> str:
    """Why the migration is undone, without what its undo was late for."""
    return migration.reason.split(f"{STILL}{S.ROLLING_BACK} for longer")[0]


def _awaited(state: MigrationState) -> str:
    return next((after for (before, _), (after, _) in NEXT.items() if before is state), "finished")


def _undone(migration: Migration, now: float) -> tuple[Migration, tuple[Effect, ...]]:
    if not (migration.closed and migration.restored):
        return migration, ()
    return replace(_enter(migration, S.UNDONE, now), reason=_cause(migration)), ()
