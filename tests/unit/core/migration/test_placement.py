"""Where a VM is registered at each step of its migration."""

from dataclasses import replace

import pytest

from retinue.core.migration import Migration, MigrationState, PlacementChange, begin, placement_of
from retinue.core.migration.placement import at_one_place
from retinue.core.model import NIC, VM

VM1 = VM("vm1", (NIC("52:54:00:00:00:01", "vm1"),), "server1", reported=True)
MOVE = begin("migration-1", "vm1", "server1", "server2", 0.0)
STOPPED = replace(MOVE, state=MigrationState.DIVERTED, stopped_at=5.0)
RESUMED = replace(STOPPED, resumed_at=6.0)
STEERING = (PlacementChange.DIVERTED, PlacementChange.FORWARDED, PlacementChange.COPIED)
AT_SOURCE, AT_TARGET = VM1, replace(VM1, server="server2")
ADMITTED = replace(VM1, also=frozenset({"server2"}))
DIVERTED = replace(AT_TARGET, also=frozenset({"server1"}))


def test_admitted_it_is_delivered_at_the_source_and_open_at_the_target() -> None:
    assert placement_of(VM1, MOVE, PlacementChange.ADMITTED) == ADMITTED
    elsewhere = replace(VM1, also=frozenset({"server9"}))
    assert placement_of(elsewhere, MOVE, PlacementChange.ADMITTED).also == {"server2", "server9"}
    assert placement_of(DIVERTED, MOVE, PlacementChange.ADMITTED).server == "server1"


@pytest.mark.parametrize("change", STEERING)
@pytest.mark.parametrize(
    ("migration", "forwards", "copies"),
    [
        (MOVE, "", ""),
        (replace(MOVE, diverted=True), "server1", ""),
        (STOPPED, "server1", "server1"),
        (replace(STOPPED, diverted=True), "server1", "server1"),
        (RESUMED, "", ""),
        (replace(RESUMED, diverted=True), "server1", ""),
        (replace(MOVE, resumed_at=6.0), "", ""),
    ],
)
def test_steered_it_is_delivered_at_the_target_and_open_at_the_source(
    change: PlacementChange, migration: Migration, forwards: str, copies: str
) -> None:
    """The source forwards once all steer, and from the first where the VM stands still already; it is sent
    copies only when all steer."""
    stands_still = bool(copies)
    if change is PlacementChange.DIVERTED and not migration.diverted:
        copies = ""
    before = replace(DIVERTED, forwarded_from="server1", copied_to="server1")
    after = replace(DIVERTED, forwarded_from=forwards, copied_to=copies)
    assert placement_of(before, migration, change) == after
    if change is PlacementChange.DIVERTED and not stands_still:
        after = replace(after, forwarded_from="")  # It begins by a change of its own.
    assert placement_of(ADMITTED, migration, change) == after


@pytest.mark.parametrize(
    ("change", "after"),
    [
        (PlacementChange.SOURCE_CLOSED, replace(AT_TARGET, forwarded_from="server1")),
        (PlacementChange.SETTLED, AT_TARGET),
        (PlacementChange.TARGET_CLOSED, AT_SOURCE),
    ],
)
def test_closed_it_is_at_one_place(change: PlacementChange, after: VM) -> None:
    for before in (ADMITTED, DIVERTED, replace(DIVERTED, forwarded_from="server1", copied_to="server1")):
        assert placement_of(before, RESUMED, change) == after


def test_at_one_place_nothing_of_a_move_is_left() -> None:
    moving = replace(DIVERTED, forwarded_from="server1", copied_to="server1")
    assert at_one_place(moving, "server3") == replace(VM1, server="server3")
