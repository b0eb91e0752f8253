"""The index of entries: what was put there is found, whatever else has its hash, and takes little room."""

from collections import Counter
from sys import getsizeof

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.core.pipeline.places import Places

HASHES = st.one_of(st.integers(0, 3), st.sampled_from([-1, 1 << 40, (1 << 40) + 1, (1 << 60) - 1, 8, 16, 24]))
OF_HASH = (1 << 40) - 1
"""What of a hash tells it from others."""


@given(st.lists(st.tuples(st.booleans(), HASHES, st.integers(0, 3)), max_size=60))
def test_it_finds_what_is_there(steps: list[tuple[bool, int, int]]) -> None:
    places, there = Places(), Counter[tuple[int, int]]()
    for comes, hash, number in steps:
        known = hash & OF_HASH, number
        if comes:
            places.add([hash], number)
            there[known] += 1
        elif there[known]:
            places.remove([hash], number)
            there[known] -= 1
        else:
            with pytest.raises(KeyError):
                places.remove([hash], number)
        assert len(places) == there.total()
        assert places.numbers() == {number for (_, number), count in there.items() if count}
        for asked, _ in there:
            found = {number: count for (at, number), count in there.items() if at == asked and count}
            assert Counter(places.at(asked)) == found


def test_it_takes_the_room_of_what_is_there_and_not_of_what_has_gone() -> None:
    places = Places()
    for hash in range(1000):
        places.add([hash], 5)
    full = getsizeof(places._slots)
    assert full < 24 * 1000
    for round in range(1, 20):
        for hash in range(1000):
            places.remove([1000 * (round - 1) + hash], 5)
            places.add([1000 * round + hash], 5)
    assert getsizeof(places._slots) <= 2 * full
    places.remove(range(19_000, 19_990), 5)
    for hash in range(2000):
        places.add([hash], 6)
        places.remove([hash], 6)
    assert getsizeof(places._slots) < 1000
    assert places.numbers() == {5}
