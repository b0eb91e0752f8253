"""The event stream: what happens, in order, to all who listen; a late listener catches up from a ring."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

RING = 50_000
QUEUE = 20_000
"""Events a listener may be behind; past that it is let go."""


@dataclass(frozen=True, slots=True)
class Event:
    id: int
    at: float
    type: str
    data: dict[str, Any]


class Listener:
    """An asynchronous iterator over events; ends when the bus closes, or when its reader is too slow."""

    def __init__(
        self, past: list[Event], queue: "asyncio.Queue[Event | None]", leave: Callable[[], None]
    ) -> None:
        self._past = deque(past)
        self._queue = queue
        self.close = leave

    def __aiter__(self) -> "Listener":
        return self

    async def __anext__(self) -> Event:
        if self._past:
            return self._past.popleft()
        event = await self._queue.get()
        if event is None:
            raise StopAsyncIteration
        return event


class EventBus:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ring: deque[Event] = deque(maxlen=RING)
        self._listeners: set[asyncio.Queue[Event | None]] = set()
        self.last_id = 0

    def publish(self, type: str, **data: Any) -> Event:
        self.last_id += 1
        event = Event(self.last_id, self._clock(), type, data)
        self._ring.append(event)
        for queue in list(self._listeners):
            if queue.qsize() >= QUEUE:
                # A listener that does not read is let go: it comes back with the last id it saw.
                self._listeners.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(event)
        return event

    def listen(self, since: int | None = None) -> "Listener":
        """Hear every event from this call on; with `since`, first those after that id still in the ring.

        When some of those have left the ring, an event "events.lost" comes first: read anew what there is.
        """
        past = [e for e in self._ring if since is not None and e.id > since]
        if since is not None and self._ring and self._ring[0].id > since + 1:
            past.insert(0, Event(self._ring[0].id - 1, self._clock(), "events.lost", {"since": since}))
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._listeners.add(queue)
        return Listener(past, queue, lambda: self._listeners.discard(queue))

    def recent(self, type_prefix: str = "", limit: int = 100) -> list[Event]:
        found = [e for e in self._ring if e.type.startswith(type_prefix)]
        return found[-limit:]

    def close(self) -> None:
        for queue in list(self._listeners):
            queue.put_nowait(None)
        self._listeners.clear()
