"""The event stream: what strangers cause is told rarely, and what is told costs no more for many
listeners."""

import asyncio
import gc
import tracemalloc

import pytest

from retinue.controller.api.routes.events import Encoder
from retinue.controller.app import Controller
from retinue.controller.events import BATCH, RING, EventBus
from retinue.core.limits import LONGEST_REASON, MOST_TELLINGS
from retinue.core.migration import begin
from retinue.protocol.events import ACTED_ON, EventType
from retinue.protocol.migrations import Order
from support.fabric.networks import add_vm, fabric
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


async def test_who_asks_for_all_that_has_been_and_reads_nothing_takes_little_room() -> None:
    """Anybody who may read can do so many times."""
    events = bus()
    for number in range(EVENTS):
        events.publish(EventType.VM_REMOVED, vm=f"vm{number}")
    gc.collect()
    tracemalloc.start()
    listener = events.listen(0)
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < BYTES * EVENTS
    for number in range(RING):
        events.publish(EventType.VM_REMOVED, vm=f"later{number}")
    assert [event.data["vm"] for event in listener.at_once(EVENTS)] == [f"vm{n}" for n in range(EVENTS)]


EVENTS, BYTES = 2000, 150
"""An event that is made of a row is 300 bytes and more."""


async def test_an_agent_is_told_what_it_may_act_on_and_others_everything() -> None:
    controller = Controller(fabric(), clock=lambda: 1.0)
    events, vm = controller.events, add_vm(controller.net, 1, at=1)
    begun = begin("migration-1", vm.id, "server1", "server3", 1.0)
    before = events.last_id
    listening = {server: events.listen(before, agent_of=server) for server in ("", *controller.net.servers)}
    for type in (EventType.VM_REGISTERED, EventType.VM_READY, EventType.VM_START, EventType.VM_STOP):
        events.publish(type, vm=vm, server=vm.server)
    events.publish(EventType.PORT_REMOVED, vm=vm.id, switch="edge1", port=2)
    events.publish(Order.START_COPY, migration=begun)
    for_all = [EventType.VM_REMOVED, EventType.SERVER_FENCED]
    events.publish(EventType.VM_REMOVED, vm=vm)
    events.publish(EventType.SERVER_FENCED, server="server1")
    late = {server: events.listen(before, agent_of=server) for server in listening}
    told = {server: [e.type for e in listener.at_once()] for server, listener in listening.items()}
    assert told == {server: [e.type for e in listener.at_once()] for server, listener in late.items()}
    assert len(told[""]) == len(told["server1"]) == 8
    assert told["server2"] == for_all
    assert told["server3"] == [Order.START_COPY, *for_all]


async def test_a_server_that_was_called_dead_is_told_where_its_vms_are_registered_now() -> None:
    controller = Controller(fabric(), clock=lambda: 1.0)
    events, vm = controller.events, add_vm(controller.net, 1, at=1)
    dead, other = (events.listen(agent_of=server) for server in ("server2", "server3"))
    controller.net.fence("server2")
    events.publish(EventType.VM_REGISTERED, vm=vm, server=vm.server)
    assert [event.type for event in dead.at_once()] == [EventType.VM_REGISTERED]
    assert other.at_once() == []


async def test_an_event_of_one_server_is_put_into_no_other_agents_queue() -> None:
    controller = Controller(fabric(), clock=lambda: 1.0)
    events, vm = controller.events, add_vm(controller.net, 1, at=1)
    for _ in range(100):
        events.listen(agent_of="server2")
    mine = events.listen(agent_of="server1")
    events.publish(EventType.VM_READY, vm=vm, server=vm.server)
    assert sum(len(queue) for queue in events._listeners) == 1
    mine.close()
    events.publish(EventType.VM_READY, vm=vm, server=vm.server)
    assert sum(len(queue) for queue in events._listeners) == 0


async def test_a_removal_wakes_whose_it_is_and_the_others_together_once_a_second() -> None:
    """Any agent may have some of a VM; a thousand that are woken for each are no time for anything else."""
    controller = Controller(fabric(), clock=lambda: 1.0)
    events, vm = controller.events, add_vm(controller.net, 1, at=1)
    own, other, person = (events.listen(agent_of=server) for server in ("server1", "server2", ""))
    waiting = [asyncio.create_task(anext(one)) for one in (own, other, person)]
    await asyncio.sleep(0)
    for _ in range(3):
        events.publish(EventType.VM_REMOVED, vm=vm)
        await asyncio.sleep(0)
    assert [one.done() for one in waiting] == [True, False, True]
    events.flush()
    await waiting[1]
    assert len(other.at_once()) == 2
    waiting[1] = asyncio.create_task(anext(other))
    await asyncio.sleep(0)
    events.publish(EventType.VM_REMOVED, vm=vm)
    events.publish(EventType.SERVER_FENCED, server="server2")
    told = [(await waiting[1]).type, *[event.type for event in other.at_once()]]
    assert told == [EventType.VM_REMOVED, EventType.SERVER_FENCED], "in order, with what is urgent"
    waiting[1] = asyncio.create_task(anext(other))
    for _ in range(2):
        events.flush()
        await asyncio.sleep(0)
    assert not waiting[1].done(), "woken for what it has read already"
    events.close()
    with pytest.raises(StopAsyncIteration):
        await waiting[1]


async def test_what_no_agent_asked_for_costs_no_look_at_any_agent() -> None:
    """As the answers to a match message: one of each of thousands of agents, who ask for other types."""
    controller = Controller(fabric(), clock=lambda: 1.0)
    events = controller.events
    agents = [events.listen(types=ACTED_ON, agent_of=f"server{n}") for n in range(100)]
    assert events._who_listens(EventType.MATCH_ANSWER, None) == []
    watching = events.listen(types={EventType.MATCH_ANSWER})
    assert len(events._who_listens(EventType.MATCH_ANSWER, None)) == 1
    assert len(events._who_listens(EventType.VM_REMOVED, None)) == 100
    for one in (*agents, watching):
        one.close()
        one.close()
    assert not any(events._by_type.values()) and not events._agents


async def test_a_match_message_goes_to_those_that_are_asked_and_names_each_itself_alone() -> None:
    """Else a message to thousands of agents would name thousands to each of them."""
    controller = Controller(fabric(), clock=lambda: 1.0)
    events, encoder = controller.events, Encoder(controller)
    asked, other, watching = (events.listen(0, agent_of=server) for server in ("server1", "server3", ""))
    said = {"match": "match-1", "vm": "vm1", "profile": {}, "servers": ["server1", "server2"]}
    event = events.publish(EventType.MATCH, **said)
    late = events.listen(0, agent_of="server1")
    told = [len(listener.at_once()) for listener in (asked, late, other, watching)]
    assert told == [1, 1, 0, 1]
    assert b'"servers":["server1"]' in encoder.encode(event, "server1")
    assert b'"servers":["server1","server2"]' in encoder.encode(event)


def test_an_event_is_encoded_once_for_all_who_listen() -> None:
    controller = Controller(fabric(), clock=lambda: 1.0)
    encoder = Encoder(controller)
    event = controller.events.publish(EventType.SERVER_FENCED, server="server1")
    assert encoder.encode(event) is encoder.encode(event)
    lost = [controller.events.publish(EventType.EVENTS_LOST, since=since) for since in (1, 2)]
    assert encoder.encode(lost[0]) != encoder.encode(lost[1])


async def test_ids_rise_from_one_active_controller_to_the_next_and_what_is_missing_is_told() -> None:
    first, second = bus(), bus()
    first.begin(3)
    last = first.publish(EventType.VM_REMOVED, vm="a").id
    second.begin(4)
    assert second.last_id > last
    nothing_yet = second.listen(last)
    said = await anext(nothing_yet)
    assert (said.type, said.data) == (EventType.EVENTS_LOST, {"since": last})
    second.publish(EventType.VM_REMOVED, vm="b")
    assert (await anext(nothing_yet)).data == {"vm": "b"}
    late = second.listen(last)
    assert [(await anext(late)).type for _ in range(2)] == [EventType.EVENTS_LOST, EventType.VM_REMOVED]
    caught_up = second.listen(second.last_id)
    second.publish(EventType.VM_REMOVED, vm="c")
    assert (await anext(caught_up)).data == {"vm": "c"}
