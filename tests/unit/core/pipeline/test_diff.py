"""What is sent to a switch: desired entries against those it has, and which of them agree."""

from dataclasses import replace

import pytest

from retinue.core.pipeline.diff import agrees, difference
from retinue.core.pipeline.entry import (
    Change,
    Entry,
    EntryKey,
    Flow,
    Group,
    Meter,
    Output,
    Program,
    key_of,
    match,
)
from retinue.core.pipeline.tables import Table

FLOW = Flow(Table.DELIVER, 200, match(eth_dst="52:54:00:00:00:01"), (Output(3),), cookie=7)
LEASED = replace(FLOW, expires_at=1000.0)
GROUP = Group(1, ((Output(1),), (Output(2),)))
METER = Meter(5, 20, 20)
ALL: tuple[Entry, ...] = (FLOW, GROUP, METER)


def program(*entries: Entry) -> Program:
    return {key_of(entry): entry for entry in entries}


def everything(*programs: Program) -> set[EntryKey]:
    return set().union(*programs)


def test_what_is_missing_is_added_by_its_kind() -> None:
    wanted = program(*ALL)
    assert difference(wanted, {}, wanted) == Change(add=(FLOW,), groups=(GROUP,), meters=(METER,))


def test_what_is_not_wanted_is_removed_by_its_kind() -> None:
    found = program(*ALL)
    removal = Change(remove=(FLOW,), remove_groups=(GROUP.id,), remove_meters=(METER.id,))
    assert difference({}, found, found) == removal


def test_what_differs_is_sent_over_what_is_there() -> None:
    wanted = program(replace(FLOW, actions=()), replace(GROUP, buckets=()), replace(METER, rate=1))
    found = program(*ALL)
    change = difference(wanted, found, everything(wanted, found))
    assert change == Change(
        add=(replace(FLOW, actions=()),),
        groups=(replace(GROUP, buckets=()),),
        meters=(replace(METER, rate=1),),
    )


def test_only_the_keys_that_were_named_are_looked_at() -> None:
    other = replace(FLOW, priority=300)
    assert difference(program(FLOW, other), {}, [other.key]) == Change(add=(other,))
    assert difference({}, program(FLOW, other), [other.key]) == Change(remove=(other,))
    assert difference({}, {}, [FLOW.key]).empty, "neither wanted nor there"


@pytest.mark.parametrize(
    ("want", "have"),
    [(1000.0, None), (None, 1000.0), (1000.0, 1002.1), (1000.0, 997.9), (1000.0, 2000.0)],
)
def test_a_lease_with_another_end_is_sent_again(want: float | None, have: float | None) -> None:
    """Among them one that becomes permanent, or ceases to be."""
    wanted, found = replace(FLOW, expires_at=want), replace(FLOW, expires_at=have)
    assert not agrees(wanted, found)
    assert difference(program(wanted), program(found), [FLOW.key]) == Change(add=(wanted,))


@pytest.mark.parametrize("apart", [-2.0, -0.5, 0.0, 0.5, 2.0])
def test_a_switch_that_counts_whole_seconds_is_not_told_again(apart: float) -> None:
    found = replace(LEASED, expires_at=1000.0 + apart)
    assert agrees(LEASED, found)
    assert difference(program(LEASED), program(found), [FLOW.key]).empty


@pytest.mark.parametrize(
    "other",
    [
        replace(LEASED, actions=()),
        replace(LEASED, cookie=8),
        replace(LEASED, goto=40),
        replace(LEASED, meter=1),
    ],
)
@pytest.mark.parametrize("apart", [0.0, 1.0])
def test_a_lease_that_ends_as_it_should_may_differ_in_all_else(other: Flow, apart: float) -> None:
    assert not agrees(LEASED, replace(other, expires_at=1000.0 + apart))


def test_an_entry_agrees_with_itself_alone() -> None:
    for one in (*ALL, LEASED, None):
        for other in (*ALL, LEASED, None):
            assert agrees(one, other) == (one is other)
