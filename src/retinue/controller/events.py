"""The event stream: what happens, in order, to all who listen; a late listener catches up from a ring.

What strangers can make happen as often as they like is told rarely (`tell`): the first of a kind at once,
and what follows at most once a second, the last of it for all.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

from retinue.controller.event_ring import Event, EventRing, Past
from retinue.controller.recipients import Everybody, Recipients
from retinue.core.limits import MOST_TELLINGS
from retinue.core.text import cut
from retinue.protocol.events import EventType
from retinue.protocol.migrations import Order

RING = 50_000
QUEUE = 20_000
"""Events a listener may be behind; past that its stream ends."""
EPOCH_SHIFT = 32
"""Bits of an event's id below the epoch of the controller that published it (see leadership)."""
BATCH = 50
"""Events that a listener is given at once, before others have their turn."""


Types = Collection[str] | None
"""Of a listener: the types of events it wants; None: all."""


class Queue:
    """Of one listener: events that it has not read yet; None behind them is its end."""

    __slots__ = ("_events", "_news")

    def __init__(self) -> None:
        self._events: deque[Event | None] = deque()
        self._news: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: Event | None, *, wake: bool = True) -> None:
        """Without `wake` it is read with whatever comes next, or when the listener is woken."""
        self._events.append(event)
        if wake:
            self.wake()

    def wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def get(self) -> Event | None:
        """The next; one reader waits at a time."""
        while not self._events:  # It may be woken for what it has read meanwhile.
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        return self._events.popleft()

    def get_nowait(self) -> Event | None:
        return self._events.popleft()


class Listener:
    """An asynchronous iterator over events; ends when the bus closes, or when its reader is too slow."""

    def __init__(self, past: Iterable[Event], queue: Queue, leave: Callable[[], None]) -> None:
        self._past = iter(past)
        self._ended = False
        self._queue = queue
        self.close = leave

    def __aiter__(self) -> "Listener":
        return self

    async def __anext__(self) -> Event:
        if (past := next(self._past, None)) is not None:
            return past
        event = None if self._ended else await self._queue.get()
        if event is None:
            raise StopAsyncIteration
        return event

    def at_once(self, most: int = BATCH) -> list[Event]:
        """So many of the events that are there already."""
        found: list[Event] = []
        while len(found) < most:
            if (past := next(self._past, None)) is not None:
                found.append(past)
                continue
            if self._ended or not self._queue:
                break
            event = self._queue.get_nowait()
            if event is None:
                self._ended = True
            else:
                found.append(event)
        return found


class EventBus:
    """Numbers events, gives them to all who listen, and keeps the last ones for those who come back."""

    def __init__(
        self,
        clock: Callable[[], float],
        recipients: Callable[[str, Mapping[str, Any]], Recipients] = lambda type, data: Everybody,
    ) -> None:
        """`recipients`: the servers whose agents may act on an event of this type and data."""
        self._clock = clock
        self._recipients = recipients
        self._ring = EventRing(RING)
        self._listeners: dict[Queue, Types] = {}
        self._by_type: dict[str, dict[Queue, None]] = {}
        """Of these, by type: those that asked for it. What is told of each of a thousand agents, who ask for
        what they act on, must not cost a look at all of them."""
        self._of_all: dict[Queue, None] = {}
        """And those that want every type."""
        self._agents: dict[str, dict[Queue, None]] = {}
        """Of these, by server: those that are its agent's; "": those that are no agent's."""
        self._unhurried: dict[Queue, None] = {}
        """Those that have something new, and were not woken for it."""
        self._rare = _Rare()
        self.last_id = 0
        self.left_out = 0
        """Rare events that were not told, since others of their source were."""

    def begin(self, epoch: int) -> None:
        """Number events from here on so that their ids are greater than those of every earlier epoch."""
        self._ring.clear()
        self.last_id = epoch << EPOCH_SHIFT

    def publish(self, type: EventType | Order, **data: Any) -> Event:
        """Tell everyone who listens, now. `data`: the fields that protocol.events.FIELDS gives the type."""
        self.last_id += 1
        said = {key: cut(value) if isinstance(value, str) else value for key, value in data.items()}
        event = Event(self.last_id, self._clock(), type, said)
        self._ring.append(event)
        only = self._recipients(type, said)
        now = self._who_listens(type, only.servers)
        for queue in now:
            self._give(queue, event)
        if only.others_soon:
            first = dict.fromkeys(now)
            others = [queue for queue in self._who_listens(type, None) if queue not in first]
            for queue in others:
                self._give(queue, event, wake=False)
            self._unhurried.update(dict.fromkeys(others))
        return event

    def _give(self, queue: Queue, event: Event, *, wake: bool = True) -> None:
        if len(queue) >= QUEUE:
            # A listener that does not read is let go: it comes back with the last id it saw.
            self._leave(queue)
            queue.put(None)
        else:
            queue.put(event, wake=wake)

    def tell(
        self, source: tuple[Hashable, ...], type: EventType, *, about: Hashable = None, **data: Any
    ) -> None:
        """Publish what a stranger may cause without end: at once if it is the first of this second.

        `source` is who causes it, from the whole to the part: a switch, and one of its ports. `about`, left
        out: the data itself, says what is the same thing once more. Of that the last is published by `flush`.
        """
        row = (type, source, tuple(map(str, data.values())) if about is None else about)
        if self._rare.first(row, source):
            self.publish(type, **data)
        elif not self._rare.put_off(row, source, data):
            self.left_out += 1

    def flush(self) -> None:
        """A second is over: publish what was put off, and wake who was not. To be called once a second."""
        for type, data in self._rare.next_second():
            self.publish(type, **data)
        for queue in self._unhurried:
            queue.wake()
        self._unhurried.clear()

    def listen(self, since: int | None = None, types: Types = None, agent_of: str = "") -> "Listener":
        """Every event from this call on, or those of these types; with `since`, first those after that id
        still in the ring. `agent_of`: without those that are for other servers' agents.

        When some of those have left the ring, an event "events.lost" comes first: read anew what there is.
        """
        past: Iterable[Event] = () if since is None else self._since(since, types, agent_of)
        first = self._ring.first_id or self.last_id + 1
        if since is not None and first > since + 1:
            lost = Event(first - 1, self._clock(), EventType.EVENTS_LOST, {"since": since})
            past = chain([lost], past)
        queue = Queue()
        self._listeners[queue] = types
        for wanted in self._wanted_by(types):
            wanted[queue] = None
        self._agents.setdefault(agent_of, {})[queue] = None
        return Listener(past, queue, lambda: self._leave(queue))

    def _wanted_by(self, types: Types) -> list[dict[Queue, None]]:
        """Where a listener stands that wants these types."""
        return [self._of_all] if types is None else [self._by_type.setdefault(type, {}) for type in types]

    def _who_listens(self, type: str, only: Collection[str] | None) -> list[Queue]:
        """`only`: of the agents those of these servers."""
        wanted = self._by_type.get(type, {})
        if only is None:
            return [*self._of_all, *wanted]
        of_them = (queue for server in ("", *only) for queue in self._agents.get(server, ()))
        return [queue for queue in of_them if queue in wanted or queue in self._of_all]

    def _is_for(self, event: Event, agent_of: str) -> bool:
        only = self._recipients(event.type, event.data) if agent_of else Everybody
        return only.servers is None or only.others_soon or agent_of in only.servers

    def _since(self, since: int, types: Types, agent_of: str) -> Past:
        past = self._ring.since(since, lambda type: types is None or type in types)
        return past.only(lambda event: self._is_for(event, agent_of)) if agent_of else past

    def close(self) -> None:
        for queue in list(self._listeners):
            queue.put(None)
        for known in (self._listeners, self._by_type, self._of_all, self._agents, self._unhurried):
            known.clear()

    def _leave(self, queue: Queue) -> None:
        if queue not in self._listeners:
            return
        self._unhurried.pop(queue, None)
        for wanted in self._wanted_by(self._listeners.pop(queue)):
            wanted.pop(queue, None)
        for server, queues in self._agents.items():
            if queue in queues:
                del queues[queue]
                if not queues:
                    del self._agents[server]
                return


_Row = tuple[EventType, tuple[Hashable, ...], Hashable]


class _Rare:
    """What has been told in this second of which source, and what waits for its end.

    All of it is bounded: MOST_TELLINGS for a source, four times as many for the whole it is a part of, told
    at once and again at the second's end.
    """

    def __init__(self) -> None:
        self._seen: set[_Row] = set()
        self._told: Counter[Hashable] = Counter()
        self._waiting: dict[_Row, dict[str, Any]] = {}
        self._put_off: Counter[Hashable] = Counter()

    def first(self, row: _Row, source: tuple[Hashable, ...]) -> bool:
        if row in self._seen or not _take(self._told, row[0], source):
            return False
        self._seen.add(row)
        return True

    def put_off(self, row: _Row, source: tuple[Hashable, ...], data: dict[str, Any]) -> bool:
        if row not in self._waiting and not _take(self._put_off, row[0], source):
            return False
        self._waiting[row] = data
        return True

    def next_second(self) -> Iterator[tuple[EventType, dict[str, Any]]]:
        waiting = self._waiting
        self._seen, self._told, self._waiting, self._put_off = set(waiting), self._put_off, {}, Counter()
        for (type, _, _), data in waiting.items():
            yield type, data


def _take(counts: Counter[Hashable], type: EventType, source: tuple[Hashable, ...]) -> bool:
    """Count one more of this source and of the whole it is a part of, if both have room."""
    part, whole = (type, source), (type, source[0])
    if counts[whole] >= 4 * MOST_TELLINGS or counts[part] >= MOST_TELLINGS:
        return False
    counts[part] += 1
    counts[whole] += 1
    return True


class Agents:
    """Whose agents listen: an agent that has followed the event stream and does so no longer is away.

    A server of which no agent ever said that it listens has none, for all the controller knows: its
    hypervisor's side speaks by other means.
    """

    def __init__(
        self,
        is_known: Callable[[str], bool],
        heard: Callable[[str], object],
        may_all_be_back: Callable[[], bool],
    ) -> None:
        """`is_known`: whether a server's agent was ever heard, also before this controller was started;
        `heard`: that it is, for the first time. `may_all_be_back`: whether those of before have had the time
        to come back."""
        self.is_known = is_known
        self._heard = heard
        self._may_all_be_back = may_all_be_back
        self._streams: Counter[str] = Counter()
        self._releases: dict[str, str] = {}

    @contextmanager
    def listening(self, server: str, release: str = "") -> Iterator[None]:
        """While the agent of this server ("": of none), which is of this release, follows the stream."""
        if not server:
            yield
            return
        if not self.is_known(server):
            self._heard(server)
        self._streams[server] += 1
        self._releases[server] = release
        try:
            yield
        finally:
            self._streams[server] -= 1

    def release(self, server: str) -> str:
        """That of the server's agent, as it said when it listened last; "": it has not."""
        return self._releases.get(server, "")

    def listens(self, server: str) -> bool:
        """True while the server's agent follows the event stream."""
        return self._streams.get(server, 0) > 0

    def is_away(self, server: str) -> bool:
        """True for an agent that does not listen, nor is just on its way back after a start of ours."""
        if self.listens(server) or not self.is_known(server):
            return False
        return server in self._streams or self._may_all_be_back()
