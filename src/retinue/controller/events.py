"""The event stream: what happens, in order, to all who listen; a late listener catches up from a ring."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

RING = 10_000
QUEUE = 2_000


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
            if queue.full():
                # A listener that does not read is let go: it comes back with the last id it saw.
                self._listeners.discard(queue)
                queue.get_nowait()
                queue.put_nowait(None)
            else:
                queue.put_nowait(event)
        return event

    def listen(self, since: int | None = None) -> "Listener":
        """Hear every event from this call on; with `since`, first those after that id still in the ring."""
        past = [e for e in self._ring if since is not None and e.id > since]
        queue: asyncio.Queue[Event | None] = asyncio.Queue(QUEUE)
        self._listeners.add(queue)
        return Listener(past, queue, lambda: self._listeners.discard(queue))

    def recent(self, type_prefix: str = "", limit: int = 100) -> list[Event]:
        found = [e for e in self._ring if e.type.startswith(type_prefix)]
        return found[-limit:]

    def close(self) -> None:
        for queue in list(self._listeners):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(None)
        self._listeners.clear()
