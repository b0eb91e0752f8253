"""Which chunk is asked of whom: dialogues of a fetch, events in, effects out."""

from retinue.core.content import Ask, Bitmap, Distance, Effect, Fetch, HolderRejected, Patience

LIMITS = Patience(deadline=5.0, patience=1.0, avoided=2.0, rejected=600.0, window=2)


def fetch(chunks: int) -> Fetch:
    return Fetch(range(chunks), seed=7, patience=LIMITS)


def full(chunks: int) -> Bitmap:
    return Bitmap.full(chunks)


def asked(effects: list[Effect], holder: str) -> list[int]:
    return [effect.chunk for effect in effects if isinstance(effect, Ask) and effect.holder == holder]


def test_one_holder_is_asked_for_everything_so_many_at_once() -> None:
    it = fetch(5)
    waiting = asked(it.joined("a", full(5), 0.0), "a")
    assert len(waiting) == 2
    had = []
    while waiting:
        had.append(waiting.pop(0))
        waiting += asked(it.arrived("a", had[-1], 0.1, good=True), "a")
    assert sorted(had) == [0, 1, 2, 3, 4]
    assert it.done


def test_two_holders_bring_different_chunks() -> None:
    it = fetch(8)
    first = asked(it.joined("a", full(8), 0.0), "a")
    second = asked(it.joined("b", full(8), 0.0), "b")
    assert len({*first, *second}) == 4


def test_two_who_fetch_begin_with_different_chunks() -> None:
    orders = [list(Fetch(range(100), seed=seed).wanted) for seed in (1, 2)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(100))


def test_the_rarest_comes_first() -> None:
    it = fetch(6)
    it.joined("b", Bitmap.of(6, (0, 1, 2, 3, 4)), 0.0)
    assert asked(it.joined("a", full(6), 0.0), "a")[0] == 5


def test_the_origin_is_spared_what_others_have() -> None:
    it = fetch(6)
    assert set(asked(it.joined("cache", Bitmap.of(6, (0, 1, 2, 3)), 0.0), "cache")) <= {0, 1, 2, 3}
    assert sorted(asked(it.joined("origin", full(6), 0.0, distance=Distance.ORIGIN), "origin")) == [4, 5]
    # The others gain what only it had: it is asked for nothing more.
    it.arrived("origin", 4, 0.1, good=True)
    assert not asked(it.arrived("origin", 5, 0.1, good=True), "origin")
    assert it.fallbacks == 0


def test_a_cache_that_is_silent_spares_the_origin_no_more_and_that_is_counted() -> None:
    it = fetch(6)
    it.joined("cache", full(6), 0.0)
    assert not it.joined("origin", full(6), 0.0, distance=Distance.ORIGIN)
    assert not it.tick(0.9)
    assert len(asked(it.tick(1.0), "origin")) == 2
    assert it.fallbacks == 2


def test_a_holder_that_hangs_is_avoided_after_the_deadline_and_longer_each_time() -> None:
    it = fetch(3)
    had = asked(it.joined("a", full(3), 0.0), "a")
    assert not it.tick(4.9)
    assert it.standing(4.9) == {"a": "good"}
    assert not it.tick(5.0)
    assert it.standing(5.0) == {"a": "avoided"}
    assert len(asked(it.tick(7.0), "a")) == 2
    it.tick(12.0)
    assert not it.tick(15.9)
    assert len(asked(it.tick(16.0), "a")) == 2
    # What comes too late is welcome.
    it.arrived("a", had[0], 16.1, good=True)
    assert had[0] not in it.wanted


def test_a_holder_that_is_slow_and_sends_is_not_called_silent() -> None:
    it = fetch(9)
    waiting = asked(it.joined("a", full(9), 0.0), "a")
    for step in range(1, 9):
        now = step * 4.0
        it.tick(now - 0.1)
        waiting += asked(it.arrived("a", waiting.pop(0), now, good=True), "a")
        assert it.standing(now) == {"a": "good"}


def test_what_a_hanging_holder_has_at_the_end_is_asked_of_another_soon() -> None:
    it = fetch(4)
    hanging = asked(it.joined("a", full(4), 0.0), "a")
    for chunk in asked(it.joined("b", full(4), 0.0), "b"):
        it.arrived("b", chunk, 0.2, good=True)
    assert not it.tick(0.9)
    again = asked(it.tick(1.0), "b")
    assert sorted(again) == sorted(hanging)
    for chunk in again:
        it.arrived("b", chunk, 1.2, good=True)
    assert it.done


def test_a_bad_chunk_is_told_its_holder_avoided_and_the_chunk_asked_of_another() -> None:
    it = fetch(4)
    liar = asked(it.joined("liar", full(4), 0.0), "liar")
    it.joined("b", Bitmap.of(4, ()), 0.0)
    effects = it.arrived("liar", liar[0], 0.1, good=False)
    assert effects == [HolderRejected("liar", liar[0])]
    assert it.standing(599.0)["liar"] == "avoided"
    assert not asked(it.joined("liar", full(4), 0.2), "liar"), "coming back does not wash it clean"
    waiting = asked(it.gained("b", range(4), 0.3), "b")
    while waiting:
        waiting += asked(it.arrived("b", waiting.pop(), 0.4, good=True), "b")
    assert it.done


def test_what_a_holder_that_left_was_asked_for_is_asked_of_others() -> None:
    it = fetch(2)
    lost = asked(it.joined("a", full(2), 0.0), "a")
    it.joined("b", full(2), 0.0)
    assert sorted(asked(it.left("a", 0.1), "b")) == sorted(lost)
    assert it.standing(0.1) == {"a": "gone", "b": "good"}


def test_a_holder_that_has_not_what_it_said_is_not_asked_again() -> None:
    it = fetch(1)
    it.joined("a", full(1), 0.0)
    assert not it.absent("a", 0, 0.1)
    assert it.gained("a", [0], 0.2) == [Ask("a", 0)]


def test_words_of_strangers_change_nothing() -> None:
    it = fetch(1)
    assert not it.left("x", 0.0)
    assert not it.gained("x", [0], 0.0)
    assert not it.absent("x", 0, 0.0)
    assert list(it.wanted) == [0]


def test_who_sends_only_what_nobody_asked_for_is_as_good_as_silent() -> None:
    it = fetch(6)
    known = asked(it.joined("a", full(6), 0.0), "a")[0]
    it.arrived("a", known, 0.1, good=True)
    for step in range(1, 60):
        now = step / 10
        it.tick(now)
        it.arrived("a", known, now, good=True)
        it.absent("a", known, now)
    assert it.standing(5.9) == {"a": "avoided"}


def test_what_is_near_spares_what_is_far_and_that_the_origin() -> None:
    it = fetch(6)
    assert asked(it.joined("cache", Bitmap.of(6, (0, 1)), 0.0, Distance.NEAR), "cache")
    assert set(asked(it.joined("far", Bitmap.of(6, (0, 1, 2, 3)), 0.0), "far")) == {2, 3}
    assert set(asked(it.joined("origin", full(6), 0.0, Distance.ORIGIN), "origin")) == {4, 5}
    assert it.fallbacks == 0


def test_a_cache_that_is_near_is_waited_for_until_its_deadline_and_then_no_more() -> None:
    it = fetch(6)
    it.joined("cache", full(6), 0.0, Distance.NEAR)
    assert not asked(it.joined("origin", full(6), 0.0, Distance.ORIGIN), "origin")
    assert not it.tick(LIMITS.patience) and not it.tick(LIMITS.deadline - 0.01)
    assert len(asked(it.tick(LIMITS.deadline), "origin")) == LIMITS.window
    assert it.standing(LIMITS.deadline)["cache"] == "avoided"


def test_who_is_near_and_being_reached_is_waited_for_but_not_for_long() -> None:
    for how in ("joined", "left", "silent"):
        it = fetch(6)
        it.expected("cache", 0.0)
        assert not it.joined("origin", full(6), 0.1, Distance.ORIGIN)
        assert not it.joined("far", full(6), 0.2)
        match how:
            case "joined":
                assert len(asked(it.joined("cache", full(6), 0.3, Distance.NEAR), "cache")) == LIMITS.window
            case "left":
                assert len(asked(it.left("cache", 0.3), "far")) == LIMITS.window
            case _:
                assert not it.tick(LIMITS.patience - 0.1)
                assert len(asked(it.tick(LIMITS.patience), "far")) == LIMITS.window


def test_who_could_not_be_reached_is_waited_for_only_once() -> None:
    it = fetch(6)
    it.expected("cache", 0.0)
    it.left("cache", 0.1)
    it.expected("cache", 0.2)
    assert len(asked(it.joined("far", full(6), 0.3), "far")) == LIMITS.window


def test_a_far_holder_is_asked_when_the_near_one_leaves() -> None:
    it = fetch(6)
    it.joined("cache", full(6), 0.0, Distance.NEAR)
    assert not asked(it.joined("far", full(6), 0.0), "far")
    assert len(asked(it.left("cache", 0.1), "far")) == LIMITS.window


def test_more_can_be_wanted_later_also_what_has_come_before() -> None:
    it = Fetch([], patience=LIMITS)
    assert it.done and not it.joined("a", full(6), 0.0)
    assert it.want([3], 0.0) == [Ask("a", 3)] and not it.want([3], 0.0)
    it.arrived("a", 3, 0.1, good=True)
    assert it.done
    assert it.want([3], 5.0) == [Ask("a", 3)], "it was let go of meanwhile"
