"""Whether a router is there, said in what happens to it, second by second."""

import pytest

from retinue.core.router_watch import (
    NO_LINK,
    Asked,
    Event,
    Heard,
    LeafAway,
    LinkIs,
    NoAddress,
    Router,
    RouterLimits,
    RouterState,
    step,
)

LIMITS = RouterLimits(silence=3.0, hold=10.0)


def after(*happened: tuple[float, Event], router: Router | None = None) -> Router:
    router = router or Router()
    for now, event in happened:
        router = step(router, event, now, LIMITS)
    return router


def each_second(first: int, last: int, *events: Event) -> list[tuple[float, Event]]:
    return [(float(now), event) for now in range(first, last + 1) for event in events]


def test_one_that_answers_stays() -> None:
    assert after(*each_second(0, 100, Asked(), Heard())) == Router()


def test_silence_counts_from_the_first_question_that_it_has_not_answered() -> None:
    answered = each_second(0, 5, Asked(), Heard())
    assert after(*answered, *each_second(6, 8, Asked())).usable
    lost = after(*answered, *each_second(6, 9, Asked()))
    assert (lost.state, lost.since, lost.reason) == (RouterState.LOST, 9.0, "it has not answered for 3 s")


def test_an_answer_in_between_counts_anew() -> None:
    assert after(*each_second(0, 2, Asked()), (2.5, Heard()), *each_second(3, 5, Asked())).usable


def test_without_a_link_it_is_lost_at_once() -> None:
    lost = after((0.0, Asked()), (0.1, Heard()), (0.5, LinkIs(False)))
    assert (lost.state, lost.since, lost.reason) == (RouterState.LOST, 0.5, NO_LINK)


def test_it_is_used_again_when_it_has_been_well_for_a_while() -> None:
    down = after((0.0, LinkIs(False)), (5.0, LinkIs(True)))
    assert down.state is RouterState.LOST, "a link is no answer"
    returning = after(*each_second(6, 15, Asked(), Heard()), router=down)
    assert (returning.state, returning.since) == (RouterState.RETURNING, 6.0)
    assert after((16.0, Asked()), router=returning).usable


@pytest.mark.parametrize("again", [[(8.0, LinkIs(False))], each_second(7, 10, Asked())])
def test_one_that_comes_and_goes_does_not_take_the_traffic_to_and_fro(
    again: list[tuple[float, Event]],
) -> None:
    returning = after((0.0, LinkIs(False)), (5.0, LinkIs(True)), (6.0, Heard()))
    lost = after(*again, router=returning)
    assert lost.state is RouterState.LOST
    begins_anew = after((20.0, Heard()), (29.0, Asked()), (29.5, Heard()), router=lost)
    assert begins_anew.state is RouterState.RETURNING
    assert after((30.0, Asked()), router=begins_anew).usable


def test_nothing_is_concluded_while_its_leaf_is_away() -> None:
    assert after((0.0, Asked()), *each_second(1, 50, LeafAway()), *each_second(51, 53, Asked())).usable
    lost = after(*each_second(0, 3, Asked()))
    assert after(*each_second(4, 90, LeafAway()), router=lost).state is RouterState.LOST


def test_of_one_without_an_address_the_link_is_all_that_is_known() -> None:
    assert after(*each_second(0, 50, NoAddress())).usable
    down = after((0.0, LinkIs(False)), *each_second(1, 50, NoAddress()))
    assert down.state is RouterState.LOST
    up = after((51.0, LinkIs(True)), *each_second(52, 61, NoAddress()), router=down)
    assert up.state is RouterState.RETURNING
    assert after((62.0, NoAddress()), router=up).usable
