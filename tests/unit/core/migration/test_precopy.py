"""Whether another pass over a VM's memory is worth it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.core.migration.precopy import (
    MOST_PASSES,
    WANTED_DOWNTIME,
    Pass,
    another_pass,
    expected_downtime,
    may_look_again,
)

MIB = 1 << 20
FAST = 200 * MIB
HELD = MIB // 4


def of(*mib: float) -> list[Pass]:
    """Passes of so many MiB, each written in as long as the one before took."""
    return [Pass(int(size * MIB), size * MIB / FAST) for size in mib]


def test_a_vm_that_has_written_little_is_done_after_the_first_pass() -> None:
    assert not another_pass([Pass(2 * MIB, 1.0)], FAST, HELD, 0.1)


def test_a_pass_that_leaves_more_than_the_wanted_pause_is_followed_by_another() -> None:
    busy = [Pass(100 * MIB, 1.0)]
    assert expected_downtime(busy[0], FAST, HELD) > 0.1
    assert another_pass(busy, FAST, HELD, 0.1)
    assert not another_pass(busy, FAST, HELD, 1.0)


def test_a_pass_too_short_to_be_followed_is_the_last_whatever_is_wanted() -> None:
    """QEMU would find so little written that it stops the VM by itself."""
    assert not another_pass(of(100, 50, 1), FAST, HELD, 0.0)


@pytest.mark.parametrize(
    ("last", "seconds"),
    [
        # 100 MiB/s while this pass lasts, half a second, and the diversion; and what is held back anyway.
        (Pass(100 * MIB, 1.0), (52 + 0.25) / 200),
        # No more than the pages that it writes in.
        (Pass(100 * MIB, 0.1), (100 + 0.25) / 200),
        # Also where the time was too short to be measured.
        (Pass(1000, 0.0), (1000 + MIB / 4) / FAST),
        (Pass(0, 0.0), 0.25 / 200),
    ],
)
def test_the_pause_to_expect_is_what_is_written_till_it_begins(last: Pass, seconds: float) -> None:
    assert expected_downtime(last, FAST, HELD) == pytest.approx(seconds)


def test_as_much_as_goes_over_in_the_least_time_is_worth_a_pass() -> None:
    """A hundredth of a second, at a hundred thousand bytes a second."""
    assert another_pass([Pass(1000, 0.01)], 100_000, 0, 0.0)
    assert not another_pass([Pass(999, 0.01)], 100_000, 0, 0.0)


def test_shrinking_passes_end_with_the_thirtieth() -> None:
    """The first, of which nothing is known, is counted."""
    passes = [Pass(int(1e12 * 0.85**n), 1.0) for n in range(MOST_PASSES)]
    assert another_pass(passes[: MOST_PASSES - 2], 1.0, 0, 0.0)
    assert not another_pass(passes[: MOST_PASSES - 1], 1.0, 0, 0.0)
    assert MOST_PASSES == 30


def test_a_tenth_of_a_second_is_wanted_where_nobody_says_otherwise() -> None:
    assert WANTED_DOWNTIME == 0.1


def test_passes_go_on_as_long_as_they_shrink() -> None:
    assert another_pass(of(100, 80, 60, 40), FAST, HELD, 0.001)


def test_passes_that_do_not_shrink_have_some_patience_and_then_an_end() -> None:
    same = [30.0] * 4  # The first one and three that have not shrunk.
    assert another_pass(of(*same[:-1]), FAST, HELD, 0.001)
    assert not another_pass(of(*same), FAST, HELD, 0.001)
    assert another_pass(of(*same[:-1], 10), FAST, HELD, 0.001), "it shrinks again: the VM is slowed down"


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=60))
def test_there_is_always_a_last_pass(sizes: list[int]) -> None:
    passes: list[Pass] = []
    for size in [*sizes, *[1 << 40] * MOST_PASSES]:
        passes.append(Pass(size, 1.0))
        if not another_pass(passes, 1.0, 0, 0.0):
            break
    assert len(passes) < MOST_PASSES


@given(st.integers(0, 1 << 40), st.floats(1e-6, 1e4), st.floats(1e3, 1e11))
def test_the_pause_to_expect_is_never_longer_than_the_pass_itself(
    nbytes: int, seconds: float, bandwidth: float
) -> None:
    assert 0 <= expected_downtime(Pass(nbytes, seconds), bandwidth, 0) <= nbytes / bandwidth


@pytest.mark.parametrize(
    ("accelerator", "version", "kib", "safe"),
    [
        ("tcg", (7, 2, 22), 128 * 1024, False),
        ("tcg", (8, 2, 0), 256, False),
        ("tcg", (7, 2, 22), 128 * 1024 + 8, True),
        ("tcg", (9, 0, 0), 128 * 1024, True),
        ("kvm", (7, 2, 22), 128 * 1024, True),
    ],
)
def test_an_older_qemu_loses_writes_of_an_emulated_vm_of_a_round_size(
    accelerator: str, version: tuple[int, int, int], kib: int, safe: bool
) -> None:
    assert may_look_again(accelerator, version, kib << 10) == safe
