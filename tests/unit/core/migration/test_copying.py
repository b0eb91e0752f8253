"""Which memory goes over when the VM runs at the target already."""

import pytest

from retinue.core.migration.copying import LEAST_PAUSE, Postcopy, is_postcopy, limit_for, limit_for_disks

NEVER, IF_NEEDED, REQUIRED = Postcopy.NEVER, Postcopy.IF_NEEDED, Postcopy.REQUIRED


@pytest.mark.parametrize(
    ("how", "expected", "wanted", "another_pass", "so"),
    [
        (NEVER, 60.0, 0.1, False, False),
        (IF_NEEDED, 0.4, 0.1, True, False),
        (IF_NEEDED, 0.4, 0.1, False, True),
        (IF_NEEDED, 0.4, 0.5, False, False),
        (REQUIRED, 0.4, 0.1, True, True),
        (REQUIRED, 0.4, 0.1, False, True),
        (REQUIRED, 0.1, 0.1, False, False),
        (REQUIRED, 0.0, 0.0, True, False),
        (REQUIRED, 0.001, 0.0, True, True),
        (REQUIRED, LEAST_PAUSE / 2, LEAST_PAUSE / 2, True, False),
    ],
)
def test_postcopy_is_for_a_pause_that_precopy_cannot_make_short(
    how: Postcopy, expected: float, wanted: float, another_pass: bool, so: bool
) -> None:
    assert is_postcopy(how, expected, wanted, another_pass=another_pass) is so


@pytest.mark.parametrize(
    ("memory", "seconds"), [(0, 60.0), (10_000_000, 64.0), (1_200_000_000, 540.0), (1 << 40, 540.0)]
)
def test_a_copy_may_take_as_long_as_four_passes_over_a_slow_network(memory: int, seconds: float) -> None:
    assert limit_for(memory) == seconds
    assert limit_for(memory, 2.5) == 2.5 * seconds
    assert limit_for_disks(memory, 2.5) == 2.5 * (60.0 + memory / 10e6)
