"""The life of a move, and the rule of each step: what starts it, the proof that ends it, how it is undone.

    state         waits for the proof                    then
    planned       Matched: the target server's place     ask the hypervisor to open a port there
                  is known (row D4)
    matched       TargetOpen: the port is there          admit the VM at the target: binding and flows
    admitting     Confirmed: every switch has them       prime the port; the copy may start (row B3)
    prepared      CopyStarted                            -
    copying       Converged: little is left to copy,     steer its traffic to the target: it waits there
                  and the VM runs on at the source
    diverted      Resumed: the VM runs at the target;    (once steering is confirmed:) delete binding
                  SourceStopped on the way, then         and flows at the source (row B3)
                  copies go to the source: see below
    switching     Confirmed: every switch steers so      the same
    switched      Confirmed: they are gone               free the source's QEMU and port
    confirmed     SourceFreed                            forward nothing from the source any more
    freed         Confirmed: they forward nothing        done
    rolling back  Confirmed (the target is closed) and   undone: the network is as before
                  RolledBack (the source runs);
                  TargetGone on the way: see below

So nothing is lost (row F1): what the VM is sent goes to the source until it goes to the target, and what has
come to the source is received before the VM stops. A hypervisor that cannot hold a VM back leaves Converged
out: SourceStopped, or else Resumed, is what steers then. Each later word costs the packets sent meanwhile.

A failure or a cancel before Resumed rolls back, and so does a step out of time before the source stopped.
After that time alone proves nothing, for the VM may run at the target: only the hypervisor's word rolls back,
and Resumed, when it crosses with an order to roll back, goes forward. A VM is never sent back to its past.
After Resumed there is no way back at all; steps, as an undo, are tried until confirmed, a delay is reported.
A source that has handed the VM over does not run it again on an order to roll back: the target may. Only
when the target's agent says that the VM never ran there, and never will (TargetGone), is it given back.

Two insurances. Once all switches steer to the target, the source's edge sends on whatever it still gets: a
packet that was long on its way comes too late for the source, and is not lost. It does so for a while after
the VM has left, for a busy switch may follow its own tables late. And while the VM stands still
(SourceStopped till Resumed) all it is sent at the target goes to the source, too, and waits there: if it runs
on at the source after all, only what came between the steering and its stop is lost. If it runs on at the
target, the copies are thrown away with the source's port.

An event that does not fit the state is refused (IllegalEventError) and the move stays as it is; an event
that arrives once more changes nothing.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from retinue.moves.words import (
    AdmitAtTarget,
    Booked,
    Cancelled,
    CeaseForwarding,
    CloseSource,
    CloseTarget,
    Confirmed,
    Converged,
    CopyStarted,
    CopyToSource,
    Effect,
    Event,
    Failed,
    ForwardFromSource,
    FreeSource,
    Matched,
    OpenTarget,
    Resumed,
    ReturnToSource,
    RolledBack,
    SourceFreed,
    SourceStopped,
    StartCopy,
    SteerToTarget,
    TargetGone,
    TargetOpen,
    TimedOut,
    UndoAtHypervisor,
)


class MoveState(StrEnum):
    PLANNED = "planned"
    MATCHED = "matched"
    ADMITTING = "admitting"
    PREPARED = "prepared"
    COPYING = "copying"
    DIVERTED = "diverted"
    SWITCHING = "switching"
    SWITCHED = "switched"
    CONFIRMED = "confirmed"
    FREED = "freed"
    DONE = "done"
    ROLLING_BACK = "rolling back"
    UNDONE = "undone"

    @property
    def ended(self) -> bool:
        return self in (MoveState.DONE, MoveState.UNDONE)

    @property
    def may_undo(self) -> bool:
        return self in LIMITS and self not in PAST_UNDOING


LIMITS: dict[MoveState, float] = {
    MoveState.PLANNED: 30.0,
    MoveState.MATCHED: 30.0,
    MoveState.ADMITTING: 10.0,
    MoveState.PREPARED: 30.0,
    MoveState.COPYING: 600.0,
    MoveState.DIVERTED: 10.0,
    MoveState.SWITCHING: 10.0,
    MoveState.SWITCHED: 10.0,
    MoveState.CONFIRMED: 60.0,
    MoveState.FREED: 10.0,
    MoveState.ROLLING_BACK: 15.0,
}
"""Seconds a state may last. Rolling back is tried again after its time, until it is done."""
PAST_UNDOING = (
    MoveState.SWITCHING,
    MoveState.SWITCHED,
    MoveState.CONFIRMED,
    MoveState.FREED,
    MoveState.ROLLING_BACK,
)


@dataclass(frozen=True, slots=True)
class Move:
    """One move, with the time each state was entered. Times are seconds since the epoch."""

    id: str
    vm: str
    source: str
    target: str
    state: MoveState
    steps: tuple[tuple[MoveState, float], ...]
    reason: str = ""
    """Why it was undone, or what it is waiting for longer than it should."""
    stopped_at: float | None = None
    resumed_at: float | None = None
    memory_at: str = ""
    """Where the target takes the VM's memory in, for the source to connect to (host:port)."""
    steered: bool = False
    """Diverted: every switch has confirmed that the VM's traffic goes to the target."""
    closed: bool = False
    """Rolling back: the switches confirmed that the target is closed."""
    restored: bool = False
    """Rolling back: the hypervisor said that the source runs."""
    target_gone: bool = False
    """Rolling back: the VM never ran at the target, and never will; the source may run it again."""

    @property
    def undone_by_time(self) -> bool:
        """A stopped source may have been left behind: that it did not run on in time proves nothing."""
        return self.state.may_undo and not (self.state is MoveState.DIVERTED and self.stopped_at is not None)

    def since(self) -> float:
        """When the present state was entered."""
        return self.steps[-1][1]

    def deadline(self) -> float | None:
        limit = LIMITS.get(self.state)
        return None if limit is None else self.since() + limit


class IllegalEventError(Exception):
    """The event does not fit the move's state; the move is as it was."""


S = MoveState
NEXT: dict[tuple[MoveState, type[Event] | Booked], tuple[MoveState, tuple[Effect, ...]]] = {
    (S.PLANNED, Matched): (S.MATCHED, (OpenTarget(),)),
    (S.MATCHED, TargetOpen): (S.ADMITTING, (AdmitAtTarget(),)),
    (S.ADMITTING, Booked.ADMITTED): (S.PREPARED, (StartCopy(),)),
    (S.PREPARED, CopyStarted): (S.COPYING, ()),
    (S.PREPARED, Converged): (S.DIVERTED, (SteerToTarget(),)),
    (S.COPYING, Converged): (S.DIVERTED, (SteerToTarget(),)),
    (S.PREPARED, SourceStopped): (S.DIVERTED, (SteerToTarget(),)),
    (S.COPYING, SourceStopped): (S.DIVERTED, (SteerToTarget(),)),
    (S.PREPARED, Resumed): (S.SWITCHING, (SteerToTarget(),)),
    (S.COPYING, Resumed): (S.SWITCHING, (SteerToTarget(),)),
    (S.DIVERTED, Resumed): (S.SWITCHING, ()),
    (S.SWITCHING, Booked.STEERED): (S.SWITCHED, (CloseSource(),)),
    (S.SWITCHED, Booked.SOURCE_CLOSED): (S.CONFIRMED, (FreeSource(),)),
    (S.CONFIRMED, SourceFreed): (S.FREED, (CeaseForwarding(),)),
    (S.FREED, Booked.SETTLED): (S.DONE, ()),
}
"""The straight way, by event or, for Confirmed, by what is confirmed. The rest is in `step`."""

AGAIN: dict[MoveState, tuple[Effect, ...]] = {
    S.MATCHED: (OpenTarget(),),
    S.ADMITTING: (AdmitAtTarget(),),
    S.PREPARED: (StartCopy(),),
    S.COPYING: (StartCopy(),),
    S.DIVERTED: (SteerToTarget(), StartCopy()),
    S.SWITCHING: (SteerToTarget(),),
    S.SWITCHED: (CloseSource(),),
    S.CONFIRMED: (FreeSource(),),
    S.FREED: (CeaseForwarding(),),
    S.ROLLING_BACK: (CloseTarget(), UndoAtHypervisor()),
}
"""What a state asks for: asked for again after a restart, and when a late step is not confirmed in time.
Asking twice does no harm; a hypervisor that has long done what it is asked says so once more."""

_PASSED: dict[type[Event], MoveState] = {
    Matched: S.MATCHED,
    TargetOpen: S.ADMITTING,
    CopyStarted: S.COPYING,
    Converged: S.DIVERTED,
    SourceStopped: S.DIVERTED,
    Resumed: S.SWITCHING,
    SourceFreed: S.FREED,
}
"""From which state on an event has had its effect, so that its repeat changes nothing."""


def again(move: Move, now: float) -> tuple[Move, tuple[Effect, ...]]:
    """Ask again for what the move's state waits for; its time counts anew."""
    if move.state.ended:
        return move, ()
    effects = AGAIN.get(move.state, ())
    if move.state is S.ROLLING_BACK and move.target_gone:
        effects += (ReturnToSource(),)
    steps = move.steps
    if len(steps) > 1 and steps[-1][0] is steps[-2][0]:
        steps = steps[:-1]  # Asked for again and again: the first time and the last are enough.
    return replace(move, steps=(*steps, (move.state, now))), effects


def begin(id: str, vm: str, source: str, target: str, now: float) -> Move:
    return Move(id, vm, source, target, S.PLANNED, ((S.PLANNED, now),))


def step(move: Move, event: Event, now: float) -> tuple[Move, tuple[Effect, ...]]:
    """Take one step. Raises IllegalEventError, with the move unchanged, for an event that does not fit."""
    found = NEXT.get((move.state, event.change if isinstance(event, Confirmed) else type(event)))
    if found is not None:
        return _on(move, event, *found, now)
    match event:
        case Failed(reason):
            return _give_up(move, reason, now)
        case Cancelled(by):
            return _give_up(move, f"cancelled by {by}", now)
        case TimedOut():
            return _out_of_time(move, now)
        case Confirmed(Booked.STEERED) if move.state is S.DIVERTED:
            return replace(move, steered=True), (ForwardFromSource(),)
        case Confirmed(Booked.TARGET_CLOSED) if move.state is S.ROLLING_BACK:
            return _undone(replace(move, closed=True), now)
        case RolledBack() if move.state is S.ROLLING_BACK:
            return _undone(replace(move, restored=True), now)
        case TargetGone() if move.state is S.ROLLING_BACK:
            return replace(move, target_gone=True), () if move.restored else (ReturnToSource(),)
        case TargetGone() if move.state is S.UNDONE:
            return move, ()
        case Resumed(at) if move.state is S.ROLLING_BACK and not move.restored:
            after = replace(move, steered=False, closed=False, resumed_at=at)
            return _enter(after, S.SWITCHING, now), (SteerToTarget(),)
        case Confirmed(Booked.FORWARDED | Booked.COPIED):
            return move, ()  # Insurances: nothing waits for them.
        case SourceStopped(at) if move.state is S.DIVERTED and move.stopped_at is None:
            return replace(move, stopped_at=at), (CopyToSource(),)
        case SourceStopped(at) if move.stopped_at is None and _has_passed(move.state, SourceStopped):
            return replace(move, stopped_at=at), ()
        case RolledBack() if move.state is S.UNDONE:
            return move, ()
        case _ if _has_passed(move.state, type(event)):
            return move, ()
        case _:
            raise IllegalEventError(f"move {move.id} of {move.vm} is {move.state}: {event} does not fit")


def _on(
    move: Move, event: Event, state: MoveState, effects: tuple[Effect, ...], now: float
) -> tuple[Move, tuple[Effect, ...]]:
    after = _enter(move, state, now)
    match event:
        case TargetOpen(memory_at):
            return replace(after, memory_at=memory_at), effects
        case SourceStopped(at):
            return replace(after, stopped_at=at), effects
        case Resumed(at) if move.steered:
            # The switches were told when the source stopped, and have confirmed: switched at once.
            after, effects = _on(after, Confirmed(Booked.STEERED), *NEXT[state, Booked.STEERED], now)
            return replace(after, resumed_at=at), effects
        case Resumed(at):
            return replace(after, resumed_at=at), effects
        case _:
            return after, effects


def _has_passed(state: MoveState, event: type[Event]) -> bool:
    order = tuple(S)
    since = _PASSED.get(event)
    return since is not None and order.index(since) <= order.index(state) <= order.index(S.DONE)


def _enter(move: Move, state: MoveState, now: float) -> Move:
    return replace(move, state=state, steps=(*move.steps, (state, now)), reason="")


def _give_up(move: Move, reason: str, now: float) -> tuple[Move, tuple[Effect, ...]]:
    if move.state is S.ROLLING_BACK:
        return move, ()
    if not move.state.may_undo:
        raise IllegalEventError(
            f"move {move.id} of {move.vm} is {move.state}: the VM runs at {move.target}, there is no way back"
        )
    after = replace(_enter(move, S.ROLLING_BACK, now), reason=reason)
    return after, (CloseTarget(), UndoAtHypervisor())


def _out_of_time(move: Move, now: float) -> tuple[Move, tuple[Effect, ...]]:
    if move.undone_by_time:
        return _give_up(move, f"not {_awaited(move.state)} within {LIMITS[move.state]:g} s", now)
    if move.state not in LIMITS:
        return move, ()
    if move.state is S.ROLLING_BACK:
        return again(move, now)
    late = replace(move, reason=f"{move.state} for longer than {LIMITS[move.state]:g} s, trying again")
    return again(late, now)


def _awaited(state: MoveState) -> str:
    return next((after for (before, _), (after, _) in NEXT.items() if before is state), "finished")


def _undone(move: Move, now: float) -> tuple[Move, tuple[Effect, ...]]:
    if not (move.closed and move.restored):
        return move, ()
    return replace(_enter(move, S.UNDONE, now), reason=move.reason), ()
