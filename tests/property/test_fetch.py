"""An image with one honest holder ends right, whatever the others do: in virtual time, in any order."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.core.content import Ask, Bitmap, Distance, Effect, Fetch, HolderRejected, Patience

STEP = 0.25
LIMITS = Patience()
MANNERS = ("honest", "hangs", "lies", "leaves", "forgets", "late")


class World:
    """Holders with their manners, each answering one chunk a step, and one who fetches."""

    def __init__(self, chunks: int, manners: dict[str, str], seed: int) -> None:
        self.now, self.rng = 0.0, random.Random(seed)
        anywhere = [Distance.NEAR, Distance.FAR]
        self.distances = {name: self.rng.choice(anywhere) for name in manners} | {"h0": Distance.ORIGIN}
        self.manners = manners
        self.queue: dict[str, list[int]] = {name: [] for name in manners}
        self.fetch = Fetch(range(chunks), seed, LIMITS)
        self.got: dict[int, str] = {}
        self.sent = dict.fromkeys(manners, 0)
        self.rejected: set[str] = set()
        for name, manner in manners.items():
            some = [n for n in range(chunks) if manner == "honest" or self.rng.random() < 0.8]
            self.do(self.fetch.joined(name, Bitmap.of(chunks, some), self.now, self.distances[name]))

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Ask(holder, chunk):
                    assert chunk in self.fetch.wanted
                    assert chunk not in self.queue[holder] or self.manners[holder] in ("hangs", "late")
                    self.queue[holder].append(chunk)
                    assert self.fetch.standing(self.now)[holder] == "good"
                case HolderRejected(holder, _):
                    self.rejected.add(holder)

    def step(self) -> None:
        self.now += STEP
        self.do(self.fetch.tick(self.now))
        for name in self.rng.sample(list(self.manners), len(self.manners)):
            if self.queue[name]:
                self.answer(name, self.manners[name])

    def answer(self, name: str, manner: str) -> None:
        if manner == "hangs" or (manner == "late" and self.rng.random() < 0.9):
            return
        chunk = self.queue[name].pop(0)
        if manner == "leaves":
            self.queue[name].clear()
            self.do(self.fetch.left(name, self.now))
        elif manner == "forgets":
            self.do(self.fetch.absent(name, chunk, self.now))
        else:
            good = manner != "lies"
            self.sent[name] += 1
            if good:
                self.got.setdefault(chunk, name)
            self.do(self.fetch.arrived(name, chunk, self.now, good=good))


@given(st.integers(1, 40), st.lists(st.sampled_from(MANNERS), max_size=5), st.integers(0, 1 << 32))
@settings(max_examples=150, deadline=None)
def test_one_honest_holder_is_enough(chunks: int, others: list[str], seed: int) -> None:
    manners = {"h0": "honest", **{f"h{n}": manner for n, manner in enumerate(others, 1)}}
    world = World(chunks, manners, seed)
    for _ in range(int((chunks * STEP + 30.0 + 6.0 * len(others)) / STEP)):
        if world.fetch.done:
            break
        world.step()
    assert world.fetch.done, f"not in {world.now:g} s: {world.fetch.standing(world.now)}"
    assert sorted(world.got) == list(range(chunks))
    liars = {name for name, manner in manners.items() if manner == "lies"}
    assert world.rejected <= liars
    assert all(world.sent[name] <= 2 * LIMITS.window for name in liars), "and is not asked again"


@pytest.mark.parametrize(("seed", "servers"), [(1, 2), (2, 3), (3, 4)])
def test_about_one_copy_leaves_the_origin_however_many_fetch_at_once(seed: int, servers: int) -> None:
    """Each sends two chunks a step to each, and says at once what it has gained."""
    chunks, rng = 400, random.Random(seed)
    names = [f"s{n}" for n in range(servers)]
    fetches = {name: Fetch(range(chunks), rng.getrandbits(32), LIMITS) for name in names}
    queues: dict[tuple[str, str], list[int]] = {}
    from_origin, now = 0, 0.0

    def do(name: str, effects: list[Effect]) -> None:
        for effect in effects:
            assert isinstance(effect, Ask)
            queues.setdefault((effect.holder, name), []).append(effect.chunk)

    for name in names:
        do(name, fetches[name].joined("origin", Bitmap.full(chunks), now, distance=Distance.ORIGIN))
        for other in names:
            if other != name:
                do(name, fetches[name].joined(other, Bitmap(chunks), now))
    while not all(each.done for each in fetches.values()):
        now += 0.01
        assert now < 60
        for (holder, name), queue in rng.sample(list(queues.items()), len(queues)):
            for _ in range(2):
                if not queue:
                    break
                chunk = queue.pop(0)
                from_origin += holder == "origin"
                do(name, fetches[name].arrived(holder, chunk, now, good=True))
                for other in names:
                    if other != name:
                        do(other, fetches[other].gained(name, [chunk], now))
    assert from_origin <= 1.2 * chunks
    assert not any(each.fallbacks for each in fetches.values())


@given(st.integers(1, 6), st.integers(20, 60), st.integers(0, 1 << 32))
@settings(max_examples=40, deadline=None)
def test_about_one_copy_comes_from_the_origin_to_a_leaf_with_a_cache(
    servers: int, chunks: int, seed: int
) -> None:
    """All servers of a leaf fetch at once, or one after another; the cache fetches what it is asked for."""
    rng = random.Random(seed)
    names = [f"s{n}" for n in range(servers)]
    begin = {name: rng.choice((0.0, rng.random() * 20)) for name in names}
    fetches = {name: Fetch(range(chunks), rng.getrandbits(32), LIMITS) for name in names}
    cache, store = Fetch([], rng.getrandbits(32), LIMITS), set[int]()
    queues: dict[tuple[str, str], list[int]] = {}
    """By holder and who asks: what it was asked for, and has not answered."""
    from_origin, now = 0, 0.0

    def do(name: str, effects: list[Effect]) -> None:
        for effect in effects:
            assert isinstance(effect, Ask)
            queues.setdefault((effect.holder, name), []).append(effect.chunk)
            if effect.holder == "cache" and effect.chunk not in store:
                do("cache", cache.want([effect.chunk], now))

    def tell(holder: str, chunk: int) -> None:
        for other in names:
            if other != holder:
                do(other, fetches[other].gained(holder, [chunk], now))
        if holder != "cache":
            do("cache", cache.gained(holder, [chunk], now))

    do("cache", cache.joined("origin", Bitmap.full(chunks), now, Distance.ORIGIN))
    joined: set[str] = set()
    while not all(each.done for each in fetches.values()):
        now += 0.25
        assert now < 300
        for name in names:
            if begin[name] <= now and name not in joined:
                joined.add(name)
                holders = [("origin", Bitmap.full(chunks), Distance.ORIGIN)]
                holders += [("cache", Bitmap.full(chunks), Distance.NEAR)]
                holders += [
                    (other, Bitmap.of(chunks, set(range(chunks)) - set(fetches[other].wanted)), Distance.NEAR)
                    for other in names
                    if other != name
                ]
                rng.shuffle(holders)
                # All connections are there before the first tick, but the cache's need not be the first.
                for holder, has, distance in sorted(holders, key=lambda one: one[2]):
                    do(name, fetches[name].joined(holder, has, now, distance))
        for name in joined:
            do(name, fetches[name].tick(now))
        do("cache", cache.tick(now))
        for (holder, name), queue in rng.sample(list(queues.items()), len(queues)):
            ready = [chunk for chunk in queue if holder != "cache" or chunk in store]
            if not ready:
                continue
            queue.remove(ready[0])
            from_origin += holder == "origin"
            if name == "cache":
                store.add(ready[0])
                do("cache", cache.arrived(holder, ready[0], now, good=True))
                tell("cache", ready[0])
            else:
                do(name, fetches[name].arrived(holder, ready[0], now, good=True))
                tell(name, ready[0])
    assert from_origin == chunks
    assert not any(each.fallbacks for each in fetches.values())
