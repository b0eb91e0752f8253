"""The life of a migration as a dialogue: events in, effects out."""

from dataclasses import replace

import pytest

from retinue.core.migration import (
    AdmitAtTarget,
    Cancelled,
    CeaseForwarding,
    CloseSource,
    CloseTarget,
    Confirmed,
    Converged,
    CopyStarted,
    CopyToSource,
    DivertToTarget,
    Effect,
    Event,
    Failed,
    ForwardFromSource,
    FreeSource,
    IllegalEventError,
    Matched,
    Migration,
    MigrationState,
    OpenTarget,
    PlacementChange,
    Resumed,
    ReturnToSource,
    RollBackAtHypervisor,
    RolledBack,
    SourceFreed,
    SourceStopped,
    StartCopy,
    TargetClosed,
    TargetOpened,
    TimedOut,
    again,
    begin,
    step,
)
from retinue.core.migration.copying import CopyOptions
from retinue.core.migration.record import LIMITS

STRAIGHT: list[tuple[Event, MigrationState, tuple[Effect, ...]]] = [
    (Matched(), MigrationState.MATCHED, (OpenTarget(),)),
    (TargetOpened(), MigrationState.ADMITTING, (AdmitAtTarget(),)),
    (Confirmed(PlacementChange.ADMITTED), MigrationState.PREPARED, (StartCopy(),)),
    (CopyStarted(), MigrationState.COPYING, ()),
    (Converged(), MigrationState.DIVERTED, (DivertToTarget(),)),
    (SourceStopped(99.5), MigrationState.DIVERTED, (CopyToSource(),)),
    (Resumed(100.0), MigrationState.SWITCHING, ()),
    (Confirmed(PlacementChange.DIVERTED), MigrationState.SWITCHED, (CloseSource(),)),
    (Confirmed(PlacementChange.SOURCE_CLOSED), MigrationState.CONFIRMED, (FreeSource(),)),
    (SourceFreed(), MigrationState.FREED, (CeaseForwarding(),)),
    (Confirmed(PlacementChange.SETTLED), MigrationState.DONE, ()),
]
UNDO = (CloseTarget(), RollBackAtHypervisor())


def walk(count: int) -> Migration:
    """A migration after the first `count` events of the straight way."""
    migration = begin("migration-1", "vm1", "server1", "server2", 0.0)
    for number, (event, state, effects) in enumerate(STRAIGHT[:count]):
        migration, got = step(migration, event, float(number + 1))
        assert (migration.state, got) == (state, effects)
    return migration


def test_straight_way_to_done() -> None:
    migration = walk(len(STRAIGHT))
    assert migration.state is MigrationState.DONE
    assert (migration.stopped_at, migration.resumed_at) == (99.5, 100.0)
    assert (migration.id, migration.vm, migration.source, migration.target) == (
        "migration-1",
        "vm1",
        "server1",
        "server2",
    )
    assert [state for state, _ in migration.steps] == [
        MigrationState.PLANNED,
        MigrationState.MATCHED,
        MigrationState.ADMITTING,
        MigrationState.PREPARED,
        MigrationState.COPYING,
        MigrationState.DIVERTED,
        MigrationState.SWITCHING,
        MigrationState.SWITCHED,
        MigrationState.CONFIRMED,
        MigrationState.FREED,
        MigrationState.DONE,
    ]


@pytest.mark.parametrize(
    ("count", "trouble"),
    [
        *((count, word) for count in range(7) for word in (Failed("QEMU died"), Cancelled("an operator"))),
        *((count, TimedOut()) for count in range(6)),
    ],
)
def test_trouble_before_resume_rolls_back(count: int, trouble: Event) -> None:
    migration, effects = step(walk(count), trouble, 50.0)
    assert migration.state is MigrationState.ROLLING_BACK
    assert effects == UNDO
    assert migration.reason
    # Both proofs are needed, in either order.
    half, _ = step(migration, RolledBack(), 51.0)
    assert half.state is MigrationState.ROLLING_BACK
    whole, _ = step(half, Confirmed(PlacementChange.TARGET_CLOSED), 52.0)
    assert whole.state is MigrationState.UNDONE
    assert whole.reason == migration.reason
    other_half, _ = step(migration, Confirmed(PlacementChange.TARGET_CLOSED), 51.0)
    assert step(other_half, RolledBack(), 52.0)[0].state is MigrationState.UNDONE


@pytest.mark.parametrize("more", [Failed("it, too"), Cancelled("an operator")])
def test_more_trouble_while_it_is_undone_changes_nothing(more: Event) -> None:
    migration, _ = step(walk(5), Failed("no"), 6.0)
    assert step(migration, more, 7.0) == (migration, ())
    half, _ = step(migration, RolledBack(), 8.0)
    assert step(half, more, 9.0) == (half, ())


@pytest.mark.parametrize("count", [7, 8, 9, 10])
def test_no_way_back_after_resume(count: int) -> None:
    migration = walk(count)
    for trouble in (Failed("late"), Cancelled("an operator")):
        with pytest.raises(IllegalEventError, match="no way back"):
            step(migration, trouble, 50.0)
    late, effects = step(migration, TimedOut(), 50.0)
    assert late.state is migration.state
    assert effects, "what was not confirmed in time is asked for again"
    assert "trying again" in late.reason
    assert late.deadline() == 50.0 + LIMITS[migration.state]


def test_a_copy_of_disks_may_take_as_long_as_it_is_told_to_go_on() -> None:
    for count in range(len(STRAIGHT)):
        migration = walk(count)
        later = migration.since() + 1000.0
        extended = migration.state is MigrationState.COPYING
        limit = migration.deadline()
        assert migration.deadline(later) == (later + LIMITS[migration.state] if extended else limit)
        assert migration.deadline(0.0) == limit


@pytest.mark.parametrize("count", range(len(STRAIGHT) + 1))
def test_a_repeat_changes_nothing(count: int) -> None:
    migration = walk(count)
    for event, _, _ in STRAIGHT[:count]:
        if not isinstance(event, Confirmed):
            assert step(migration, event, 60.0) == (migration, ())


@pytest.mark.parametrize("count", range(len(STRAIGHT) + 1))
def test_what_does_not_fit_is_rejected(count: int) -> None:
    migration = walk(count)
    expected = {type(event) for event, _, _ in STRAIGHT[: count + 1]} | {Resumed}
    for event in (Matched(), TargetOpened(), CopyStarted(), SourceFreed(), RolledBack()):
        if type(event) not in expected:
            with pytest.raises(IllegalEventError):
                step(migration, event, 60.0)


def test_resume_may_overtake_the_word_that_the_copy_started() -> None:
    migration, effects = step(walk(3), Resumed(5.0), 5.0)
    assert migration.state is MigrationState.SWITCHING
    assert effects == (DivertToTarget(),)
    assert step(migration, CopyStarted(), 6.0) == (migration, ())


def test_each_state_that_waits_has_a_limit() -> None:
    for state in MigrationState:
        assert (state in LIMITS) == (not state.ended)


def test_each_state_may_last_so_many_times_as_long_as_the_migration_says() -> None:
    assert begin("m", "vm1", "a", "b", 0.0, options=CopyOptions(step_factor=3.0)).step_factor == 3.0
    slow = replace(walk(2), step_factor=3.0)
    assert slow.deadline() == slow.since() + 3 * LIMITS[slow.state]
    late, _ = step(slow, TimedOut(), 50.0)
    assert late.reason.endswith(f"within {3 * LIMITS[slow.state]:g} s")
    again, _ = step(replace(walk(8), step_factor=3.0), TimedOut(), 50.0)
    assert f"for longer than {3 * LIMITS[again.state]:g} s" in again.reason


def test_an_undo_that_is_not_confirmed_is_asked_for_again() -> None:
    migration, _ = step(walk(4), Failed("no"), 6.0)
    late, effects = step(migration, TimedOut(), 30.0)
    assert (late.state, late.reason, effects) == (MigrationState.ROLLING_BACK, "no", UNDO)
    assert late.deadline() == 30.0 + LIMITS[MigrationState.ROLLING_BACK]


def test_switches_that_confirm_before_resume_make_it_switched_at_once() -> None:
    migration, effects = step(walk(6), Confirmed(PlacementChange.DIVERTED), 6.0)
    assert (migration.state, effects) == (MigrationState.DIVERTED, (ForwardFromSource(),))
    migration, effects = step(migration, Resumed(7.0), 7.0)
    assert (migration.state, effects) == (MigrationState.SWITCHED, (CloseSource(),))
    assert (migration.stopped_at, migration.resumed_at) == (99.5, 7.0)


def test_a_vm_that_was_handed_over_is_given_back_on_the_targets_word() -> None:
    migration, _ = step(walk(6), Failed("the target cannot load it"), 7.0)
    migration, effects = step(migration, TargetClosed(), 8.0)
    assert (migration.state, effects) == (MigrationState.ROLLING_BACK, (ReturnToSource(),))
    assert again(migration, 8.5)[1] == (*UNDO, ReturnToSource()), "the source may have missed it"
    migration, _ = step(migration, RolledBack(), 9.0)
    assert step(migration, TargetClosed(), 9.5) == (migration, ())  # it runs there again already
    migration, _ = step(migration, Confirmed(PlacementChange.TARGET_CLOSED), 10.0)
    assert migration.state is MigrationState.UNDONE
    assert step(migration, TargetClosed(), 11.0) == (migration, ())
    with pytest.raises(IllegalEventError):
        step(walk(7), TargetClosed(), 9.0)


def test_where_the_target_takes_the_memory_in_is_kept() -> None:
    migration, _ = step(walk(1), TargetOpened("192.0.2.4:7800"), 2.0)
    assert migration.memory_at == "192.0.2.4:7800"


def test_a_hypervisor_that_cannot_hold_the_vm_back_is_steered_by_its_stop() -> None:
    migration, effects = step(walk(4), SourceStopped(6.0), 6.0)
    assert (migration.state, migration.stopped_at, effects) == (
        MigrationState.DIVERTED,
        6.0,
        (DivertToTarget(),),
    )
    assert not migration.undone_by_time


def test_the_stop_may_be_told_after_resume() -> None:
    """Source and target each tell the controller; their words may cross."""
    migration, _ = step(walk(5), Resumed(7.0), 7.0)
    migration, effects = step(migration, SourceStopped(6.0), 8.0)
    assert (migration.state, migration.stopped_at, effects) == (MigrationState.SWITCHING, 6.0, ())
    assert step(migration, SourceStopped(6.5), 9.0) == (migration, ())


def test_a_hypervisor_that_does_not_tell_of_the_stop_is_steered_by_resume() -> None:
    migration, effects = step(walk(4), Resumed(7.0), 7.0)
    assert (migration.state, effects) == (MigrationState.SWITCHING, (DivertToTarget(),))


@pytest.mark.parametrize("count", range(len(STRAIGHT) + 1))
def test_a_confirmation_of_another_change_is_rejected(count: int) -> None:
    """The switches' answer to a change that was given up meanwhile must not be taken for another's."""
    migration = walk(count)
    with pytest.raises(IllegalEventError):
        step(migration, Confirmed(PlacementChange.TARGET_CLOSED), 50.0)
    undone, _ = step(walk(5), Failed("no"), 6.0)
    with pytest.raises(IllegalEventError):
        step(undone, Confirmed(PlacementChange.DIVERTED), 7.0)


@pytest.mark.parametrize("count", range(1, len(STRAIGHT) + 1))
@pytest.mark.parametrize("insurance", [PlacementChange.FORWARDED, PlacementChange.COPIED])
def test_nothing_waits_for_an_insurance(count: int, insurance: PlacementChange) -> None:
    migration = walk(count)
    assert step(migration, Confirmed(insurance), 50.0) == (migration, ())


def test_a_source_forwards_when_all_switches_steer_to_the_target() -> None:
    diverted, effects = step(walk(5), Confirmed(PlacementChange.DIVERTED), 6.0)
    assert (diverted.diverted, effects) == (True, (ForwardFromSource(),))


def test_time_alone_does_not_roll_back_a_vm_that_may_run_at_the_target() -> None:
    migration, effects = step(walk(6), TimedOut(), 50.0)
    assert (migration.state, effects) == (MigrationState.DIVERTED, (DivertToTarget(), StartCopy()))
    assert "trying again" in migration.reason


def test_resume_that_crosses_with_the_order_to_roll_back_goes_forward() -> None:
    migration, _ = step(walk(5), Cancelled("an operator"), 6.0)
    migration, _ = step(migration, Confirmed(PlacementChange.TARGET_CLOSED), 7.0)
    migration, effects = step(migration, Resumed(6.5), 8.0)
    assert (migration.state, effects) == (MigrationState.SWITCHING, (DivertToTarget(),))
    assert (migration.closed, migration.resumed_at) == (False, 6.5)
    with pytest.raises(IllegalEventError):
        step(migration, RolledBack(), 9.0)
    # The source runs again: then it is too late for Resumed.
    back, _ = step(walk(5), Failed("no"), 6.0)
    back, _ = step(back, RolledBack(), 7.0)
    with pytest.raises(IllegalEventError):
        step(back, Resumed(6.5), 8.0)


@pytest.mark.parametrize("count", range(len(STRAIGHT) + 1))
def test_what_a_state_waits_for_can_be_asked_for_again(count: int) -> None:
    before = walk(count)
    migration, effects = again(before, 500.0)
    assert migration.state is before.state
    if migration.state in (MigrationState.PLANNED, MigrationState.DONE):
        assert effects == ()
    else:
        assert effects
        assert migration.since() == 500.0


@pytest.mark.parametrize("count", range(len(STRAIGHT)))
def test_of_a_step_asked_for_again_and_again_the_first_time_and_the_last_are_kept(count: int) -> None:
    before = walk(count)
    once, _ = again(before, 500.0)
    assert once.steps == (*before.steps, (before.state, 500.0))
    twice, _ = again(once, 600.0)
    assert twice.steps == (*before.steps, (before.state, 600.0))


def test_a_move_that_has_ended_asks_for_nothing_again() -> None:
    for migration in (walk(len(STRAIGHT)), undone()):
        assert again(migration, 500.0) == (migration, ())
        assert migration.deadline() is None


def undone() -> Migration:
    migration, _ = step(walk(5), Failed("no"), 6.0)
    migration, _ = step(migration, RolledBack(), 7.0)
    migration, _ = step(migration, Confirmed(PlacementChange.TARGET_CLOSED), 8.0)
    assert migration.state is MigrationState.UNDONE
    return migration


@pytest.mark.parametrize("repeat", [RolledBack(), TargetClosed()])
def test_a_repeat_changes_nothing_of_a_move_that_was_undone(repeat: Event) -> None:
    migration = undone()
    assert step(migration, repeat, 60.0) == (migration, ())


@pytest.mark.parametrize("event", [Matched(), CopyStarted(), Resumed(9.0), SourceFreed(), Failed("late")])
def test_a_move_that_was_undone_goes_on_by_nothing(event: Event) -> None:
    with pytest.raises(IllegalEventError):
        step(undone(), event, 60.0)


@pytest.mark.parametrize(
    ("count", "reason"),
    [
        (0, "not matched within 30 s"),
        (1, "not admitting within 30 s"),
        (2, "not prepared within 10 s"),
        (3, "not copying within 30 s"),
        (4, "not diverted within 600 s"),
        (5, "not switching within 10 s"),
    ],
)
def test_a_step_out_of_time_says_what_did_not_come(count: int, reason: str) -> None:
    migration, _ = step(walk(count), TimedOut(), 1000.0)
    assert (migration.state, migration.reason) == (MigrationState.ROLLING_BACK, reason)


@pytest.mark.parametrize("count", [6, 7, 8, 9, 10])
def test_a_late_step_says_where_it_is_late(count: int) -> None:
    before = walk(count)
    migration, _ = step(before, TimedOut(), 1000.0)
    assert migration.reason == f"{before.state} for longer than {LIMITS[before.state]:g} s, trying again"
    assert not before.reason
