"""Whether a link loses frames, round by round: what was sent, what came, and what is concluded."""

import pytest

from retinue.core.link_watch import LinkLimits, LinkState, WatchedLink

ALL, NONE = 1.0, 0.0
ROUND = 0.2
"""Seconds."""


class Link:
    """A link under probes; each round so large a share of them comes in."""

    def __init__(self, watched: WatchedLink | None = None, limits: LinkLimits | None = None) -> None:
        self.watched = watched or WatchedLink("leaf1:s1", "spine1:l1", limits or LinkLimits())
        self.number = 0

    def rounds(
        self, count: int, up: float = ALL, down: float = ALL, *, answered: bool = True, told: bool = True
    ) -> LinkState:
        """`told`: the upper end says what comes in there."""
        for _ in range(count):
            self.begin()
            there = round(up * self.sent)
            for _ in range(there if told else 0):
                self.watched.there(self.number)
            for _ in range(round(down * there)):
                self.watched.back(self.number)
            self.watched.end(ROUND, answered=answered)
        return self.watched.state

    def begin(self) -> None:
        self.number += 1
        self.sent = self.watched.limits.burst if self.watched.is_suspect else 1
        self.watched.begin(self.number, self.sent)

    def until_well(self) -> float:
        """Seconds without a loss until it is used again."""
        for count in range(1, 10_000):
            if self.rounds(1) is LinkState.WELL:
                return count * ROUND
        raise AssertionError("never")


@pytest.mark.parametrize(
    ("up", "down", "reason"),
    [
        (NONE, ALL, "nothing that leaf1:s1 sends comes in at spine1:l1"),
        (ALL, NONE, "nothing that spine1:l1 sends comes in at leaf1:s1"),
        (NONE, NONE, "nothing that leaf1:s1 sends comes in at spine1:l1"),
    ],
)
def test_nothing_comes_one_way_for_three_rounds(up: float, down: float, reason: str) -> None:
    link = Link()
    assert link.rounds(50) is LinkState.WELL
    assert link.rounds(2, up, down) is LinkState.WELL
    assert link.rounds(1, up, down) is LinkState.LOST
    assert link.watched.reason == reason


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.5, 0.9])
def test_a_share_is_lost_once_one_probe_is_missing(share: float) -> None:
    """The first miss has the next rounds send many."""
    link = Link()
    link.rounds(50)
    assert link.rounds(1, NONE) is LinkState.WELL
    assert link.watched.is_suspect
    assert link.rounds(3, ALL - share) is LinkState.LOST
    assert (
        "leaf1:s1 has sent" in link.watched.reason and "have not come in at spine1:l1" in link.watched.reason
    )


def test_one_that_is_missing_now_and_then_is_chance() -> None:
    link = Link()
    for _ in range(20):
        assert link.rounds(1, NONE) is LinkState.WELL
        assert link.rounds(5) is LinkState.WELL
        assert not link.watched.is_suspect


def test_a_round_in_which_a_switch_was_slow_does_not_count() -> None:
    """Neither as lost, nor between two that are."""
    link = Link()
    assert link.rounds(100, NONE, NONE, answered=False) is LinkState.WELL
    link.rounds(2, NONE)
    link.rounds(20, answered=False)
    assert link.rounds(1, NONE) is LinkState.LOST
    assert link.rounds(500, answered=False) is LinkState.LOST, "it has not been shown to be well"


def test_late_is_not_lost() -> None:
    link = Link()
    link.rounds(5)
    for _ in range(100):
        link.begin()
        for _ in range(20):  # All of the round before, now.
            link.watched.back(link.number - 1)
        link.watched.end(ROUND, answered=True)
        assert link.watched.state is LinkState.WELL


def test_it_is_used_again_when_none_is_missing_for_the_hold_time() -> None:
    link = Link(limits=LinkLimits(hold=2.0))
    link.rounds(3, NONE)
    assert link.rounds(3) is LinkState.RETURNING
    assert not link.watched.usable
    assert link.rounds(5) is LinkState.RETURNING
    link.rounds(1, down=NONE)
    assert link.rounds(1) is LinkState.LOST, "all over again"
    assert 2.0 <= link.until_well() <= 2.0 + 2 * ROUND
    assert link.rounds(50) is LinkState.WELL


def test_time_in_which_nobody_looked_is_no_time_in_which_it_was_well() -> None:
    """The controller's process was stopped for an hour, and goes on in the middle of a round."""
    link = Link()
    link.rounds(3, NONE)
    link.rounds(3)
    link.begin()
    link.watched.back(link.number)
    link.watched.end(3600.0, answered=True)
    assert link.watched.state is LinkState.RETURNING
    assert link.rounds(3, NONE) is LinkState.LOST


def test_one_that_comes_and_goes_is_held_down_longer_each_time() -> None:
    link = Link(limits=LinkLimits(hold=2.0, longest_hold=12.0))
    held = []
    for _ in range(5):
        assert link.rounds(3, NONE) is LinkState.LOST
        held.append(link.until_well())
    for seconds, hold in zip(held, (2.0, 4.0, 8.0, 12.0, 12.0), strict=True):
        assert hold <= seconds <= hold + 3 * ROUND
    link.rounds(round(12.0 / ROUND) + 1)
    assert link.rounds(3, NONE) is LinkState.LOST
    assert link.until_well() <= 2.0 + 3 * ROUND, "it was well for long: as if it had never been lost"


def test_what_cannot_be_probed_concludes_nothing() -> None:
    """A switch is away, or its port has no link."""
    link = Link(limits=LinkLimits(hold=2.0))
    link.rounds(2, NONE)
    link.watched.forget()
    assert not link.watched.is_looked_at
    assert link.rounds(2, NONE) is LinkState.WELL
    assert link.rounds(1, NONE) is LinkState.LOST
    assert link.rounds(3) is LinkState.RETURNING
    link.watched.forget()
    assert link.watched.state is LinkState.LOST
    assert link.until_well() >= 2.0


def test_one_that_was_lost_before_a_restart_has_to_show_that_it_is_well() -> None:
    link = Link(WatchedLink.lost_before("leaf1:s1", "spine1:l1", LinkLimits(hold=2.0), "as before"))
    assert link.rounds(10, answered=False) is LinkState.LOST
    assert link.until_well() >= 2.0


def test_a_cable_that_leads_elsewhere_is_named_though_all_comes_back() -> None:
    link = Link()
    link.watched.elsewhere = "spine2:l1"
    assert link.rounds(3, told=False) is LinkState.LOST
    assert link.watched.reason == "what leaf1:s1 sends comes in at spine2:l1, and not at spine1:l1"
    assert link.rounds(4) is LinkState.RETURNING, "it has come in where it should"


def test_a_cable_that_was_put_right_is_well_though_its_upper_end_is_away() -> None:
    link = Link()
    link.watched.elsewhere = "spine2:l1"
    link.rounds(3, told=False)
    link.watched.forget()  # The port had no link meanwhile.
    assert link.rounds(4, told=False) is LinkState.RETURNING


def test_one_of_which_rounds_have_told_nothing_for_long_is_not_known() -> None:
    link = Link()
    link.rounds(5)
    link.rounds(4, answered=False)
    assert link.watched.is_looked_at
    link.rounds(1, answered=False)
    assert not link.watched.is_looked_at
    link.rounds(1)
    assert link.watched.is_looked_at
