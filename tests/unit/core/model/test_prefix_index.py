"""Prefixes that are parts of others are found as by a look at each."""

import random
from ipaddress import IPv4Network, IPv6Network

import pytest

from retinue.core.model import Prefix
from retinue.core.model.prefix_index import NestedPrefixes
from retinue.core.model.routed_prefixes import is_part


def some(rng: random.Random) -> Prefix:
    """Of few addresses, so that many of them are parts of others, or begin where others do."""
    length = rng.choice((0, 20, 22, 24, 28, 32))
    first = rng.randrange(16) << rng.choice((4, 8, 10))
    if rng.random() < 0.5:
        return IPv4Network((0x0A00_0000 | first, length), strict=False)
    return IPv6Network(((0xFD << 120) | first << 96, length), strict=False)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_inside_is_found_whatever_came_and_went(seed: int) -> None:
    rng = random.Random(seed)
    index, known = NestedPrefixes(), set[Prefix]()
    for _ in range(200):
        prefix = some(rng)
        if rng.random() < 0.6:
            index.put(prefix)
            known.add(prefix)
        else:
            index.discard(prefix)
            known.discard(prefix)
        asked = some(rng)
        inside = list(index.inside(asked))
        assert len(inside) == len(set(inside))
        assert set(inside) == {one for one in known if is_part(one, asked)}
