"""The life of a move, and the rule of each step: what starts it, the proof that ends it, how it is undone.

    state         waits for the proof                    then
    planned       Matched: the target server's place     ask the hypervisor to open a port there
                  is known (row D4)
    matched       TargetOpen: the port is there          admit the VM at the target: binding and flows
    admitting     Confirmed: every switch has them       the copy may start (row B3)
    prepared      CopyStarted                            -
    copying       Resumed: the VM runs at the target     steer its traffic to the target
    switching     Confirmed: every switch steers so      delete binding and flows at the source (row B3)
    switched      Confirmed: they are gone               free the source's QEMU and port
    confirmed     SourceFreed                            done
    rolling back  Confirmed (the target is closed) and   undone: the network is as before
                  RolledBack (the source runs)

A failure, a cancel or a step out of time before Resumed rolls back. After Resumed there is no way back: the
VM runs at the target, so the steps after it are tried until they are confirmed, and a delay is only reported.
An event that does not fit the state is refused (IllegalEventError) and the move stays as it is; an event
that arrives once more changes nothing.

Diversion before the source stops, for a switch-over without loss, will stand between copying and Resumed.
"""

from dataclasses import dataclass, replace
from enum import StrEnum


class MoveState(StrEnum):
    PLANNED = "planned"
    MATCHED = "matched"
    ADMITTING = "admitting"
    PREPARED = "prepared"
    COPYING = "copying"
    SWITCHING = "switching"
    SWITCHED = "switched"
    CONFIRMED = "confirmed"
    DONE = "done"
    ROLLING_BACK = "rolling back"
    UNDONE = "undone"

    @property
    def ended(self) -> bool:
        return self in (MoveState.DONE, MoveState.UNDONE)

    @property
    def may_undo(self) -> bool:
        return self in LIMITS and self not in (MoveState.SWITCHING, MoveState.SWITCHED, MoveState.CONFIRMED)


LIMITS: dict[MoveState, float] = {
    MoveState.PLANNED: 30.0,
    MoveState.MATCHED: 30.0,
    MoveState.ADMITTING: 10.0,
    MoveState.PREPARED: 30.0,
    MoveState.COPYING: 600.0,
    MoveState.SWITCHING: 10.0,
    MoveState.SWITCHED: 10.0,
    MoveState.CONFIRMED: 60.0,
}
"""Seconds a state may last. Rolling back has no limit: it is tried until it is done."""


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
    closed: bool = False
    """Rolling back: the switches confirmed that the target is closed."""
    restored: bool = False
    """Rolling back: the hypervisor said that the source runs and the target is gone."""

    def since(self) -> float:
        """When the present state was entered."""
        return self.steps[-1][1]

    def deadline(self) -> float | None:
        limit = LIMITS.get(self.state)
        return None if limit is None else self.since() + limit


# ---- events: the proofs, and what goes wrong ----


@dataclass(frozen=True, slots=True)
class Matched:
    pass


@dataclass(frozen=True, slots=True)
class TargetOpen:
    pass


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Every switch concerned has confirmed the change asked for in this state."""


@dataclass(frozen=True, slots=True)
class CopyStarted:
    pass


@dataclass(frozen=True, slots=True)
class SourceStopped:
    at: float


@dataclass(frozen=True, slots=True)
class Resumed:
    at: float


@dataclass(frozen=True, slots=True)
class SourceFreed:
    pass


@dataclass(frozen=True, slots=True)
class RolledBack:
    pass


@dataclass(frozen=True, slots=True)
class Failed:
    reason: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    by: str


@dataclass(frozen=True, slots=True)
class TimedOut:
    pass


Event = (
    Matched
    | TargetOpen
    | Confirmed
    | CopyStarted
    | SourceStopped
    | Resumed
    | SourceFreed
    | RolledBack
    | Failed
    | Cancelled
    | TimedOut
)


# ---- effects: what the controller must bring about ----


@dataclass(frozen=True, slots=True)
class OpenTarget:
    """Ask the hypervisor for a port and a waiting VM at the target."""


@dataclass(frozen=True, slots=True)
class AdmitAtTarget:
    """Set binding and flows at the target; answer Confirmed."""


@dataclass(frozen=True, slots=True)
class StartCopy:
    """Tell the hypervisor that the copy may start."""


@dataclass(frozen=True, slots=True)
class SteerToTarget:
    """Turn the VM's traffic to the target, in the order of flows.plan; answer Confirmed."""


@dataclass(frozen=True, slots=True)
class CloseSource:
    """Delete binding and flows at the source; answer Confirmed."""


@dataclass(frozen=True, slots=True)
class FreeSource:
    """Tell the hypervisor to free what is left at the source."""


@dataclass(frozen=True, slots=True)
class CloseTarget:
    """Undo AdmitAtTarget; answer Confirmed."""


@dataclass(frozen=True, slots=True)
class UndoAtHypervisor:
    """Tell the hypervisor to end the VM at the target and see that the source runs."""


Effect = (
    OpenTarget
    | AdmitAtTarget
    | StartCopy
    | SteerToTarget
    | CloseSource
    | FreeSource
    | CloseTarget
    | UndoAtHypervisor
)


class IllegalEventError(Exception):
    """The event does not fit the move's state; the move is as it was."""


S = MoveState
NEXT: dict[tuple[MoveState, type[Event]], tuple[MoveState, tuple[Effect, ...]]] = {
    (S.PLANNED, Matched): (S.MATCHED, (OpenTarget(),)),
    (S.MATCHED, TargetOpen): (S.ADMITTING, (AdmitAtTarget(),)),
    (S.ADMITTING, Confirmed): (S.PREPARED, (StartCopy(),)),
    (S.PREPARED, CopyStarted): (S.COPYING, ()),
    (S.PREPARED, Resumed): (S.SWITCHING, (SteerToTarget(),)),
    (S.COPYING, Resumed): (S.SWITCHING, (SteerToTarget(),)),
    (S.SWITCHING, Confirmed): (S.SWITCHED, (CloseSource(),)),
    (S.SWITCHED, Confirmed): (S.CONFIRMED, (FreeSource(),)),
    (S.CONFIRMED, SourceFreed): (S.DONE, ()),
}
"""The straight way. What is not in the table is handled in `step`: stops, failures, repeats."""

RETRY: dict[MoveState, tuple[Effect, ...]] = {
    S.SWITCHING: (SteerToTarget(),),
    S.SWITCHED: (CloseSource(),),
    S.CONFIRMED: (FreeSource(),),
}
"""What is asked again when a step after the point of no return is not confirmed in time."""

_REACHED_BY: dict[type[Event], tuple[MoveState, ...]] = {
    Matched: tuple(S)[1:],
    TargetOpen: tuple(S)[2:],
    CopyStarted: tuple(S)[4:],
    Resumed: tuple(S)[5:],
    SourceFreed: (S.DONE,),
    RolledBack: (S.UNDONE,),
}
"""States in which an event has already had its effect: its repeat changes nothing."""


def begin(id: str, vm: str, source: str, target: str, now: float) -> Move:
    return Move(id, vm, source, target, S.PLANNED, ((S.PLANNED, now),))


def step(move: Move, event: Event, now: float) -> tuple[Move, tuple[Effect, ...]]:
    """Take one step. Raises IllegalEventError, with the move unchanged, for an event that does not fit."""
    found = NEXT.get((move.state, type(event)))
    if found is not None:
        state, effects = found
        after = _enter(move, state, now)
        if isinstance(event, Resumed):
            after = replace(after, resumed_at=event.at)
        return after, effects
    match event:
        case SourceStopped(at) if move.state in (S.PREPARED, S.COPYING):
            return replace(move, stopped_at=at), ()
        case Failed(reason):
            return _give_up(move, reason, now)
        case Cancelled(by):
            return _give_up(move, f"cancelled by {by}", now)
        case TimedOut():
            return _out_of_time(move, now)
        case Confirmed() if move.state is S.ROLLING_BACK:
            return _undone(replace(move, closed=True), now)
        case RolledBack() if move.state is S.ROLLING_BACK:
            return _undone(replace(move, restored=True), now)
        case _ if move.state in _REACHED_BY.get(type(event), ()) and move.state is not S.ROLLING_BACK:
            return move, ()
        case _:
            raise IllegalEventError(
                f"move {move.id} of {move.vm} is {move.state}: {type(event).__name__} does not fit"
            )


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
    if move.state.may_undo:
        return _give_up(move, f"not {_awaited(move.state)} within {LIMITS[move.state]:g} s", now)
    late = replace(move, reason=f"{move.state} for longer than {LIMITS.get(move.state, 0):g} s, trying again")
    if move.state in RETRY:
        return replace(late, steps=(*move.steps, (move.state, now))), RETRY[move.state]
    return move, ()


def _awaited(state: MoveState) -> str:
    return next((after for (before, _), (after, _) in NEXT.items() if before is state), "finished")


def _undone(move: Move, now: float) -> tuple[Move, tuple[Effect, ...]]:
    if not (move.closed and move.restored):
        return move, ()
    return replace(_enter(move, S.UNDONE, now), reason=move.reason), ()
