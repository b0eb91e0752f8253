"""What is concluded of a link, whatever becomes of its probes: never from nothing, and never too late."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.core.link_watch import LinkLimits, LinkState, WatchedLink
from support.examples import examples

SECONDS = 0.2
LIMITS = LinkLimits(hold=1.0, longest_hold=8.0)


@dataclass(frozen=True)
class Round:
    answered: bool
    lost: tuple[float, float]
    """The share of the probes that vanish, up and down."""
    late: bool
    """What comes comes when the next round has begun."""
    forgotten: bool


shares = st.sampled_from([0.0, 0.0, 0.0, 0.05, 0.5, 1.0])
rounds = st.builds(
    Round,
    answered=st.sampled_from([True, True, True, False]),
    lost=st.tuples(shares, shares),
    late=st.booleans(),
    forgotten=st.integers(0, 30).map(lambda number: not number),
)


def run(link: WatchedLink, history: list[Round], first: int = 0) -> list[tuple[LinkState, int]]:
    """What is concluded after each round, and how many probes each way were sent in it."""
    found: list[tuple[LinkState, int]] = []
    late: list[int] = []
    for number, one in enumerate(history, first):
        if one.forgotten:
            link.forget()
        count = LIMITS.burst if link.is_suspect else 1
        link.begin(number, count)
        for came in late:
            link.back(came)
        there = count - round(count * one.lost[0])
        for _ in range(there):
            link.there(number)
        back = [number] * (there - round(there * one.lost[1]))
        late = back if one.late else []
        for came in () if one.late else back:
            link.back(came)
        link.end(SECONDS, answered=one.answered)
        found.append((link.state, count))
    return found


@settings(deadline=None, max_examples=examples(60))
@given(st.lists(rounds, max_size=120))
def test_a_link_that_brings_all_is_never_lost(history: list[Round]) -> None:
    """However late by a round, and however often a switch is slow or away."""
    sound = [Round(one.answered, (0.0, 0.0), one.late, one.forgotten) for one in history]
    link = WatchedLink("leaf1:s1", "spine1:l1", LIMITS)
    assert {state for state, _ in run(link, sound)} <= {LinkState.WELL}


@settings(deadline=None, max_examples=examples(60))
@given(st.lists(rounds, max_size=60), st.sampled_from([(1.0, 0.0), (0.0, 1.0)]))
def test_one_that_brings_nothing_one_way_is_lost_in_time(
    before: list[Round], lost: tuple[float, float]
) -> None:
    """Whatever was before: as soon as three rounds have told so, and what was on its way has come."""
    link = WatchedLink("leaf1:s1", "spine1:l1", LIMITS)
    run(link, before)
    states = [state for state, _ in run(link, [Round(True, lost, False, False)] * 4, first=1000)]
    assert not link.usable, states


@settings(deadline=None, max_examples=examples(60))
@given(st.lists(rounds, min_size=1, max_size=200))
def test_it_is_used_again_only_after_a_time_without_a_loss(history: list[Round]) -> None:
    """Each round of that time has told that nothing vanished; those that tell nothing count for no time."""
    link = WatchedLink.lost_before("leaf1:s1", "spine1:l1", LIMITS, "as before")
    states = [state for state, _ in run(link, history)]
    for at, state in enumerate(states):
        if state is not LinkState.WELL or (at and states[at - 1] is LinkState.WELL):
            continue
        since = max((n for n in range(at) if states[n] is not LinkState.RETURNING), default=-1) + 1
        told = [one for one in history[since : at + 1] if one.answered]
        assert len(told) * SECONDS >= LIMITS.hold - SECONDS
        vanished = [one for one in told[:-1] if any(share == 1.0 for share in one.lost)]
        assert not vanished


@settings(deadline=None, max_examples=examples(40))
@given(st.lists(rounds, max_size=200))
def test_many_are_sent_only_while_one_is_missing(history: list[Round]) -> None:
    link = WatchedLink("leaf1:s1", "spine1:l1", LIMITS)
    counts = [count for _, count in run(link, history)]
    assert set(counts) <= {1, LIMITS.burst}
    clean = [Round(True, (0.0, 0.0), False, False)] * (LIMITS.looked_at + 1)
    run(link, clean, first=1000)
    assert not link.is_suspect
