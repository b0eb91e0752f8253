"""The last events in little room: what comes out is what was put in, and ids are known without being kept."""

import gc
import tracemalloc

from retinue.controller.event_ring import Event, EventRing


def event(id: int, **data: object) -> Event:
    return Event(id, 1000.0 + id, "vm.ready", data)


def test_what_comes_out_is_what_was_put_in() -> None:
    ring = EventRing(3)
    assert (list(ring), ring.first_id, len(ring)) == ([], None, 0)
    events = [event(n, vm=f"vm{n}", ports=(n, n)) if n % 2 else event(n) for n in range(7, 12)]
    for one in events:
        ring.append(one)
    assert list(ring) == events[-3:] and ring.first_id == 9
    assert list(ring.since(3)) == events[-3:]
    assert list(ring.since(10)) == events[-1:]
    assert list(ring.since(11)) == list(ring.since(99)) == []
    ring.clear()
    ring.append(event(1 << 32))
    assert list(ring) == [event(1 << 32)] and ring.first_id == 1 << 32


EVENTS, BYTES = 500, 170


def test_an_event_takes_little_room() -> None:
    """As an object with a dictionary of its own it is 300 bytes and more, beside what it names."""
    ring = EventRing(EVENTS)
    names = [(f"vm{n}", f"server{n}") for n in range(EVENTS)]
    gc.collect()
    tracemalloc.start()
    for n, (vm, server) in enumerate(names):
        ring.append(event(1_000_000 + n, vm=vm, server=server, edge=server))
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < BYTES * EVENTS
