"""The collector looks at what is new; what has survived it once is set aside."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from retinue.controller import collector
from retinue.controller.collector import Collector

MANY = 20_000


class Thing:
    """Can be in a circle, and be asked for weakly."""

    other: "Thing | None" = None


def circle() -> "weakref.ref[Thing]":
    one, two = Thing(), Thing()
    one.other, two.other = two, one
    return weakref.ref(one)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No collection but those that a test asks for; the process is small, whatever other tests have left."""
    monkeypatch.setattr(collector, "WHOLE_EVERY", 3)
    monkeypatch.setattr(collector, "WHOLE_BELOW", 1 << 60)
    found = Collector()
    gc.disable()
    found.install()
    yield
    found.remove()
    gc.enable()


def examined() -> int:
    """Objects that a full collection would look at."""
    return sum(len(gc.get_objects(generation)) for generation in range(3))


def test_what_stays_is_not_looked_at_again(installed: None) -> None:
    kept = [Thing() for _ in range(MANY)]
    assert examined() > MANY
    gc.collect()
    assert examined() < MANY
    assert gc.get_freeze_count() > len(kept)


def test_what_is_new_is_collected_as_ever(installed: None) -> None:
    gc.collect()
    gone = circle()
    gc.collect()
    assert gone() is None


def test_what_was_set_aside_goes_when_nothing_refers_to_it(installed: None) -> None:
    thing = Thing()
    gone = weakref.ref(thing)
    gc.collect()
    del thing
    assert gone() is None


def test_old_circles_are_found_now_and_then(installed: None) -> None:
    one = Thing()
    one.other = one
    gone = weakref.ref(one)
    gc.collect()
    del one
    gc.collect()
    assert gone() is not None
    gc.collect()  # The third: the next looks at everything.
    gc.collect()
    assert gone() is None


def test_a_large_process_does_not_stop_to_look_at_everything(
    installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "WHOLE_BELOW", 0)
    kept = [Thing() for _ in range(MANY)]
    for _ in range(7):
        gc.collect()
        assert gc.get_freeze_count() > len(kept)
