"""What is told of where a VM is attached: each once, in one order, and only when it is true."""

from itertools import pairwise

import pytest

from retinue.core.migration import (
    AttachmentStep,
    Confirmed,
    Converged,
    CopyStarted,
    Event,
    Failed,
    Matched,
    Migration,
    PlacementChange,
    Resumed,
    SourceFreed,
    SourceStopped,
    TargetOpened,
    again,
    begin,
    placement_of,
    step,
    told,
)
from retinue.core.model import VM

ORDER = list(AttachmentStep)
HELD_BACK: list[Event] = [
    Matched(),
    TargetOpened(),
    Confirmed(PlacementChange.ADMITTED),
    CopyStarted(),
    Converged(),
    Confirmed(PlacementChange.DIVERTED),
    SourceStopped(99.5),
    Resumed(100.0),
    Confirmed(PlacementChange.SOURCE_CLOSED),
    SourceFreed(),
    Confirmed(PlacementChange.SETTLED),
]
NOT_HELD_BACK: list[Event] = [
    *HELD_BACK[:4],
    Resumed(100.0),
    Confirmed(PlacementChange.DIVERTED),
    *HELD_BACK[8:],
]
"""A hypervisor that says nothing but that the VM runs at the target."""


def lived(events: list[Event], *, repeated: bool = False) -> list[tuple[AttachmentStep, Migration, Event]]:
    """What is told on the way, after which event."""
    migration = begin("migration-1", "vm1", "server1", "server2", 0.0)
    found = []
    for number, event in enumerate(events):
        for _ in range(2 if repeated and not isinstance(event, Confirmed) else 1):
            before = migration
            migration, _ = step(migration, event, float(number + 1))
            found += [(one, migration, event) for one in told(before, migration)]
        if repeated:
            before = migration
            migration, _ = again(migration, float(number + 1))
            assert told(before, migration) == ()
    return found


@pytest.mark.parametrize("events", [HELD_BACK, NOT_HELD_BACK])
@pytest.mark.parametrize("repeated", [False, True])
def test_each_is_told_once_and_in_this_order(events: list[Event], repeated: bool) -> None:
    assert [one for one, _, _ in lived(events, repeated=repeated)] == ORDER
    at_target = [one.value for one in ORDER if one.at_target]
    assert at_target == ["ready", "registered", "profile_updated", "online"]


@pytest.mark.parametrize("events", [HELD_BACK, NOT_HELD_BACK])
def test_each_is_told_when_it_is_true(events: list[Event]) -> None:
    after = {one: event for one, _, event in lived(events)}
    assert isinstance(after[AttachmentStep.READY], Resumed)
    diverted = Resumed(100.0) if events is HELD_BACK else Confirmed(PlacementChange.DIVERTED)
    assert after[AttachmentStep.REGISTERED] == after[AttachmentStep.PROFILE_UPDATED] == diverted
    closed = Confirmed(PlacementChange.SOURCE_CLOSED)
    for one in ORDER[3:7]:
        assert after[one] == closed
    vm = placement_of(
        VM.with_one_nic("vm1", "52:54:00:00:00:01", "server1"), lived(events)[3][1], closed.change
    )
    assert (vm.server, vm.also, vm.copied_to) == ("server2", frozenset(), ""), "no copies, bound at one place"
    assert after[AttachmentStep.RELEASED] == SourceFreed()


def test_of_one_that_is_undone_nothing_is_told() -> None:
    for count in range(8):
        assert lived([*HELD_BACK[: min(count, 7)], Failed("no")]) == []


def test_a_source_that_is_back_too_late_is_told_of_as_any() -> None:
    """RESUME crosses with the order to roll back: the migration goes forward."""
    events = [*HELD_BACK[:7], Failed("late"), Resumed(100.0), Confirmed(PlacementChange.DIVERTED)]
    assert [one for one, _, _ in lived(events)] == ORDER[:3]


def test_the_order_is_the_order_of_states() -> None:
    times = [migration.since() for _, migration, _ in lived(HELD_BACK)]
    assert all(earlier <= later for earlier, later in pairwise(times))
