"""The event stream: what strangers cause is told rarely, and what is told costs no more for many
listeners."""

from retinue.controller.api.routes.events import Encoder
from retinue.controller.app import Controller
from retinue.controller.events import BATCH, EventBus
from retinue.core.limits import LONGEST_REASON, MOST_TELLINGS
from retinue.protocol.events import EventType
from support.fabric.networks import fabric
from support.recent_events import recent


def bus() -> EventBus:
    return EventBus(lambda: 1.0)


def told(bus: EventBus) -> list[object]:
    return [event.data["count"] for event in recent(bus, "spoofing", 100_000)]


def test_the_first_is_told_at_once_and_the_rest_once_a_second() -> None:
    events = bus()
    for second in range(3):
        for count in range(100):
            events.tell(("edge1", 2), EventType.SPOOFING, about="a row", count=100 * second + count)
        events.flush()
    assert told(events) == [0, 99, 199, 299]
    events.flush()
    events.tell(("edge1", 2), EventType.SPOOFING, about="a row", count=300)
    assert told(events)[-1] == 300, "it had been quiet for a second"


def test_many_rows_of_one_port_are_told_a_few_at_a_time() -> None:
    events = bus()
    for row in range(1000):
        events.tell(("edge1", 2), EventType.SPOOFING, about=row, count=row)
    events.tell(("edge1", 3), EventType.SPOOFING, about="another's", count=-1)
    events.flush()
    assert -1 in told(events), "another port's is told"
    assert len(told(events)) == 2 * MOST_TELLINGS + 1
    assert events.left_out == 1000 - 2 * MOST_TELLINGS


def test_a_switch_that_makes_ports_up_is_told_no_more_for_that() -> None:
    events = bus()
    for port in range(10_000):
        events.tell(("edge1", port), EventType.SPOOFING, about=port, count=port)
    events.tell(("edge2", 1), EventType.SPOOFING, about=1, count=-1)
    events.flush()
    assert len(told(events)) <= 8 * MOST_TELLINGS + 1 and -1 in told(events)
    held = (events._rare._seen, events._rare._told, events._rare._waiting, events._rare._put_off)
    assert all(len(one) <= 8 * MOST_TELLINGS + 4 for one in held)


def test_no_text_of_an_event_is_long() -> None:
    events = bus()
    events.publish(EventType.CONTROLLER_ERROR, what="x", error="y" * 5_000_000)
    assert len(recent(events)[-1].data["error"]) <= LONGEST_REASON


async def test_a_listener_gets_the_types_it_asks_for() -> None:
    events = bus()
    events.publish(EventType.VM_REMOVED, vm="a")
    events.publish(EventType.PORT_ADDED, vm="a")
    listener = events.listen(0, frozenset({EventType.VM_REMOVED}))
    events.publish(EventType.PORT_ADDED, vm="b")
    events.publish(EventType.VM_REMOVED, vm="b")
    assert [(await anext(listener)).data["vm"] for _ in range(2)] == ["a", "b"]


async def test_who_reads_all_that_has_been_is_given_a_few_at_a_time() -> None:
    events = bus()
    for number in range(4 * BATCH):
        events.publish(EventType.VM_REMOVED, vm=str(number))
    listener = events.listen(0)
    events.publish(EventType.VM_REMOVED, vm="last")
    events.close()
    found = []
    async for event in listener:
        more = listener.at_once()
        assert len(more) <= BATCH
        found += [event, *more]
    assert [event.data["vm"] for event in found] == [*map(str, range(4 * BATCH)), "last"]
    assert listener.at_once() == []


def test_an_event_is_encoded_once_for_all_who_listen() -> None:
    controller = Controller(fabric(), clock=lambda: 1.0)
    encoder = Encoder(controller)
    event = controller.events.publish(EventType.VM_REMOVED, vm="a")
    assert encoder.encode(event) is encoder.encode(event)
    lost = [controller.events.publish(EventType.EVENTS_LOST, since=since) for since in (1, 2)]
    assert encoder.encode(lost[0]) != encoder.encode(lost[1])
