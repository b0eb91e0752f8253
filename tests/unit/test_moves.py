"""The life of a move as a dialogue: events in, effects out."""

import pytest

from retinue.moves import (
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
    IllegalEventError,
    Matched,
    Move,
    MoveState,
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
    again,
    begin,
    step,
)
from retinue.moves.machine import LIMITS

STRAIGHT: list[tuple[Event, MoveState, tuple[Effect, ...]]] = [
    (Matched(), MoveState.MATCHED, (OpenTarget(),)),
    (TargetOpen(), MoveState.ADMITTING, (AdmitAtTarget(),)),
    (Confirmed(Booked.ADMITTED), MoveState.PREPARED, (StartCopy(),)),
    (CopyStarted(), MoveState.COPYING, ()),
    (Converged(), MoveState.DIVERTED, (SteerToTarget(),)),
    (SourceStopped(99.5), MoveState.DIVERTED, (CopyToSource(),)),
    (Resumed(100.0), MoveState.SWITCHING, ()),
    (Confirmed(Booked.STEERED), MoveState.SWITCHED, (CloseSource(),)),
    (Confirmed(Booked.SOURCE_CLOSED), MoveState.CONFIRMED, (FreeSource(),)),
    (SourceFreed(), MoveState.FREED, (CeaseForwarding(),)),
    (Confirmed(Booked.SETTLED), MoveState.DONE, ()),
]
UNDO = (CloseTarget(), UndoAtHypervisor())


def walk(count: int) -> Move:
    """A move after the first `count` events of the straight way."""
    move = begin("move-1", "vm1", "server1", "server2", 0.0)
    for number, (event, state, effects) in enumerate(STRAIGHT[:count]):
        move, got = step(move, event, float(number + 1))
        assert (move.state, got) == (state, effects)
    return move


def test_straight_way_to_done() -> None:
    move = walk(len(STRAIGHT))
    assert move.state is MoveState.DONE
    assert (move.stopped_at, move.resumed_at) == (99.5, 100.0)
    assert [state for state, _ in move.steps] == [
        MoveState.PLANNED, MoveState.MATCHED, MoveState.ADMITTING, MoveState.PREPARED, MoveState.COPYING,
        MoveState.DIVERTED, MoveState.SWITCHING, MoveState.SWITCHED, MoveState.CONFIRMED, MoveState.FREED,
        MoveState.DONE,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("count", "trouble"),
    [
        *((count, word) for count in range(7) for word in (Failed("QEMU died"), Cancelled("an operator"))),
        *((count, TimedOut()) for count in range(6)),
    ],
)
def test_trouble_before_resume_rolls_back(count: int, trouble: Event) -> None:
    move, effects = step(walk(count), trouble, 50.0)
    assert move.state is MoveState.ROLLING_BACK
    assert effects == UNDO
    assert move.reason
    # Both proofs are needed, in either order.
    half, _ = step(move, RolledBack(), 51.0)
    assert half.state is MoveState.ROLLING_BACK
    whole, _ = step(half, Confirmed(Booked.TARGET_CLOSED), 52.0)
    assert whole.state is MoveState.UNDONE
    assert whole.reason == move.reason
    other_half, _ = step(move, Confirmed(Booked.TARGET_CLOSED), 51.0)
    assert step(other_half, RolledBack(), 52.0)[0].state is MoveState.UNDONE


@pytest.mark.parametrize("count", [7, 8, 9, 10])
def test_no_way_back_after_resume(count: int) -> None:
    move = walk(count)
    for trouble in (Failed("late"), Cancelled("an operator")):
        with pytest.raises(IllegalEventError, match="no way back"):
            step(move, trouble, 50.0)
    late, effects = step(move, TimedOut(), 50.0)
    assert late.state is move.state
    assert effects, "what was not confirmed in time is asked for again"
    assert "trying again" in late.reason
    assert late.deadline() == 50.0 + LIMITS[move.state]


@pytest.mark.parametrize("count", range(len(STRAIGHT) + 1))
def test_a_repeat_changes_nothing(count: int) -> None:
    move = walk(count)
    for event, _, _ in STRAIGHT[:count]:
        if not isinstance(event, Confirmed):
            assert step(move, event, 60.0) == (move, ())


@pytest.mark.parametrize("count", range(len(STRAIGHT) + 1))
def test_what_does_not_fit_is_refused(count: int) -> None:
    move = walk(count)
    expected = {type(event) for event, _, _ in STRAIGHT[: count + 1]} | {Resumed}
    for event in (Matched(), TargetOpen(), CopyStarted(), SourceFreed(), RolledBack()):
        if type(event) not in expected:
            with pytest.raises(IllegalEventError):
                step(move, event, 60.0)


def test_resume_may_overtake_the_word_that_the_copy_started() -> None:
    move, effects = step(walk(3), Resumed(5.0), 5.0)
    assert move.state is MoveState.SWITCHING
    assert effects == (SteerToTarget(),)
    assert step(move, CopyStarted(), 6.0) == (move, ())


def test_each_state_that_waits_has_a_limit() -> None:
    for state in MoveState:
        assert (state in LIMITS) == (not state.ended)


def test_an_undo_that_is_not_confirmed_is_asked_for_again() -> None:
    move, _ = step(walk(4), Failed("no"), 6.0)
    late, effects = step(move, TimedOut(), 30.0)
    assert (late.state, late.reason, effects) == (MoveState.ROLLING_BACK, "no", UNDO)
    assert late.deadline() == 30.0 + LIMITS[MoveState.ROLLING_BACK]


def test_switches_that_confirm_before_resume_make_it_switched_at_once() -> None:
    move, effects = step(walk(6), Confirmed(Booked.STEERED), 6.0)
    assert (move.state, effects) == (MoveState.DIVERTED, (ForwardFromSource(),))
    move, effects = step(move, Resumed(7.0), 7.0)
    assert (move.state, effects) == (MoveState.SWITCHED, (CloseSource(),))
    assert (move.stopped_at, move.resumed_at) == (99.5, 7.0)


def test_a_vm_that_was_handed_over_is_given_back_on_the_targets_word() -> None:
    move, _ = step(walk(6), Failed("the target cannot load it"), 7.0)
    move, effects = step(move, TargetGone(), 8.0)
    assert (move.state, effects) == (MoveState.ROLLING_BACK, (ReturnToSource(),))
    assert again(move, 8.5)[1] == (*UNDO, ReturnToSource()), "the source may have missed it"
    move, _ = step(move, RolledBack(), 9.0)
    assert step(move, TargetGone(), 9.5) == (move, ())  # it runs there again already
    move, _ = step(move, Confirmed(Booked.TARGET_CLOSED), 10.0)
    assert move.state is MoveState.UNDONE
    assert step(move, TargetGone(), 11.0) == (move, ())
    with pytest.raises(IllegalEventError):
        step(walk(7), TargetGone(), 9.0)


def test_where_the_target_takes_the_memory_in_is_kept() -> None:
    move, _ = step(walk(1), TargetOpen("192.0.2.4:7800"), 2.0)
    assert move.memory_at == "192.0.2.4:7800"


def test_a_hypervisor_that_cannot_hold_the_vm_back_is_steered_by_its_stop() -> None:
    move, effects = step(walk(4), SourceStopped(6.0), 6.0)
    assert (move.state, move.stopped_at, effects) == (MoveState.DIVERTED, 6.0, (SteerToTarget(),))
    assert not move.undone_by_time


def test_the_stop_may_be_told_after_resume() -> None:
    """Source and target each tell the controller; their words may cross."""
    move, _ = step(walk(5), Resumed(7.0), 7.0)
    move, effects = step(move, SourceStopped(6.0), 8.0)
    assert (move.state, move.stopped_at, effects) == (MoveState.SWITCHING, 6.0, ())
    assert step(move, SourceStopped(6.5), 9.0) == (move, ())


def test_a_hypervisor_that_does_not_tell_of_the_stop_is_steered_by_resume() -> None:
    move, effects = step(walk(4), Resumed(7.0), 7.0)
    assert (move.state, effects) == (MoveState.SWITCHING, (SteerToTarget(),))


@pytest.mark.parametrize("count", range(len(STRAIGHT) + 1))
def test_a_confirmation_of_another_change_is_refused(count: int) -> None:
    """The switches' answer to a change that was given up meanwhile must not be taken for another's."""
    move = walk(count)
    with pytest.raises(IllegalEventError):
        step(move, Confirmed(Booked.TARGET_CLOSED), 50.0)
    undone, _ = step(walk(5), Failed("no"), 6.0)
    with pytest.raises(IllegalEventError):
        step(undone, Confirmed(Booked.STEERED), 7.0)


@pytest.mark.parametrize("count", range(1, len(STRAIGHT) + 1))
@pytest.mark.parametrize("insurance", [Booked.FORWARDED, Booked.COPIED])
def test_nothing_waits_for_an_insurance(count: int, insurance: Booked) -> None:
    move = walk(count)
    assert step(move, Confirmed(insurance), 50.0) == (move, ())


def test_a_source_forwards_when_all_switches_steer_to_the_target() -> None:
    steered, effects = step(walk(5), Confirmed(Booked.STEERED), 6.0)
    assert (steered.steered, effects) == (True, (ForwardFromSource(),))


def test_time_alone_does_not_roll_back_a_vm_that_may_run_at_the_target() -> None:
    move, effects = step(walk(6), TimedOut(), 50.0)
    assert (move.state, effects) == (MoveState.DIVERTED, (SteerToTarget(), StartCopy()))
    assert "trying again" in move.reason


def test_resume_that_crosses_with_the_order_to_roll_back_goes_forward() -> None:
    move, _ = step(walk(5), Cancelled("an operator"), 6.0)
    move, _ = step(move, Confirmed(Booked.TARGET_CLOSED), 7.0)
    move, effects = step(move, Resumed(6.5), 8.0)
    assert (move.state, effects) == (MoveState.SWITCHING, (SteerToTarget(),))
    assert (move.closed, move.resumed_at) == (False, 6.5)
    with pytest.raises(IllegalEventError):
        step(move, RolledBack(), 9.0)
    # The source runs again: then it is too late for Resumed.
    back, _ = step(walk(5), Failed("no"), 6.0)
    back, _ = step(back, RolledBack(), 7.0)
    with pytest.raises(IllegalEventError):
        step(back, Resumed(6.5), 8.0)


@pytest.mark.parametrize("count", range(len(STRAIGHT) + 1))
def test_what_a_state_waits_for_can_be_asked_for_again(count: int) -> None:
    before = walk(count)
    move, effects = again(before, 500.0)
    assert move.state is before.state
    if move.state in (MoveState.PLANNED, MoveState.DONE):
        assert effects == ()
    else:
        assert effects
        assert move.since() == 500.0
