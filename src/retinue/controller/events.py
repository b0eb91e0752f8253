"""The event stream: what happens, in order, to all who listen; a late listener catches up from a ring."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
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

    async def listen(self, since: int | None = None) -> AsyncGenerator[Event, None]:
        """Events from now on; with `since`, first those after that id that are still in the ring."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue(QUEUE)
        past = [e for e in self._ring if since is not None and e.id > since]
        self._listeners.add(queue)
        try:
            for event in past:
                yield event
            while (waiting := await queue.get()) is not None:
                yield waiting
        finally:
            self._listeners.discard(queue)

    def recent(self, type_prefix: str = "", limit: int = 100) -> list[Event]:
        found = [e for e in self._ring if e.type.startswith(type_prefix)]
        return found[-limit:]

    def close(self) -> None:
        for queue in list(self._listeners):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(None)
        self._listeners.clear()
