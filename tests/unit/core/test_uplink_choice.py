"""Which of several uplinks is used: the best at once, the preferred one again after a while."""

from retinue.core.uplink_choice import ChoiceLimits, UplinkChoice

LIMITS = ChoiceLimits(hold=10.0, longest_hold=300.0)
BOTH = {"up0": 3, "up1": 3}
FIRST_LOST = {"up0": 1, "up1": 3}
READY = ("up0", "up1")


def test_the_first_that_is_found_is_used_and_the_preferred_one_at_once_when_it_is_found() -> None:
    choice = UplinkChoice(LIMITS)
    assert choice.look({}, READY, 0.0) is None
    assert choice.look({"up1": 3}, READY, 1.0) == "up1"
    assert choice.look(BOTH, READY, 2.0) == "up0"
    assert choice.look(BOTH, READY, 3.0) is None


def test_one_that_is_worse_is_left_at_once_and_used_again_after_the_hold_time() -> None:
    choice = UplinkChoice(LIMITS, "up0")
    assert choice.look(FIRST_LOST, READY, 100.0) == "up1"
    assert choice.look(FIRST_LOST, READY, 200.0) is None
    assert choice.look(BOTH, READY, 201.0) is None
    assert choice.look(BOTH, READY, 210.9) is None
    assert choice.look(BOTH, ("up1",), 211.1) is None, "its leaf has not all of its entries"
    assert choice.look(BOTH, READY, 212.0) == "up0"


def test_the_hold_time_counts_from_the_last_time_that_it_was_worse() -> None:
    choice = UplinkChoice(LIMITS, "up0")
    choice.look(FIRST_LOST, READY, 100.0)
    choice.look(BOTH, READY, 101.0)
    choice.look(FIRST_LOST, READY, 109.0)
    choice.look(BOTH, READY, 110.0)
    assert choice.look(BOTH, READY, 119.0) is None
    assert choice.look(BOTH, READY, 120.0) == "up0"


def test_it_doubles_each_time_that_it_is_left_soon_again() -> None:
    choice, now = UplinkChoice(LIMITS, "up0"), 0.0
    for hold in (10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0):
        assert choice.look(FIRST_LOST, READY, now) == "up1"
        assert choice.hold("up0") == hold
        now += 1
        assert choice.look(BOTH, READY, now) is None
        now += hold
        assert choice.look(BOTH, READY, now) == "up0"
        now += 1
    choice.look(BOTH, READY, now + 300.0)
    assert choice.hold("up0") == 0.0, "as if it had never been left"


def test_of_two_that_are_as_bad_the_one_in_use_stays() -> None:
    choice = UplinkChoice(LIMITS, "up1", _left={"up0": 1})
    assert choice.look({"up0": 0, "up1": 0}, READY, 0.0) is None
    assert choice.look({"up0": 1, "up1": 0}, READY, 1.0) == "up0"


def test_what_the_last_controller_left_is_not_used_again_at_once() -> None:
    choice = UplinkChoice.as_it_was(LIMITS, "up1", ("up0", "up1"))
    assert choice.look(BOTH, READY, 0.0) is None
    assert choice.look(BOTH, READY, 10.0) == "up0"
    assert UplinkChoice.as_it_was(LIMITS, "", ("up0", "up1")).look(BOTH, READY, 0.0) == "up0"


def test_one_whose_leaf_is_not_known_any_more_is_left() -> None:
    assert UplinkChoice(LIMITS, "up0").look({"up1": 0}, READY, 0.0) == "up1"
