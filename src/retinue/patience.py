"""How long a peer is waited for: time in which we did not read does not count.

A peer has so many seconds to answer. A process that is busy, or has no processor, may not read for so long
what came in time; then it would cut off all its peers at the same moment, and have more to do when they are
back. So time is measured here that stands still while the loop is late:

    async with patience(5.0):          # as asyncio.timeout(5.0)
        await answer
    timer = after(5.0, cut_off)        # as loop.call_later; timer.cancel()
    await pause(5.0)                   # as asyncio.sleep(5.0)
    began = served()                   # as loop.time()

A beat that is due every BEAT seconds tells how late the loop is. Who falls silent is found out all the same,
as soon as the loop has read what there was.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

BEAT = 0.25
_SOON = 0.01
"""Seconds of a time that count as none."""


class _Lateness:
    """By how much the running loop has been late so far. It refers to no loop, and goes with its own."""

    def __init__(self, now: float) -> None:
        self.seconds = 0.0
        self._due = now
        self._beat()

    def until(self, now: float) -> float:
        return self.seconds + max(0.0, now - self._due)

    def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self.seconds = self.until(now)
        self._due = now + BEAT
        loop.call_at(self._due, self._beat)


_lateness: WeakKeyDictionary[asyncio.AbstractEventLoop, _Lateness] = WeakKeyDictionary()


def served() -> float:
    """Seconds from some moment on, of the running loop; they do not pass while it is late."""
    now = asyncio.get_running_loop().time()
    return now - lateness().until(now)


def late() -> float:
    """Seconds by which the running loop has been late so far; 0.0 where none runs."""
    try:
        return lateness().until(asyncio.get_running_loop().time())
    except RuntimeError:
        return 0.0


def lateness() -> _Lateness:
    loop = asyncio.get_running_loop()
    if loop not in _lateness:
        _lateness[loop] = _Lateness(loop.time())
    return _lateness[loop]


def _nothing() -> None:
    """Of a timer that was cancelled."""


class after:  # noqa: N801 - it is called as a function is
    """Calls once so many seconds have passed, unless it is cancelled before."""

    def __init__(self, seconds: float, call: Callable[[], object]) -> None:
        self._end = served() + seconds
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(seconds, self._look)

    def cancel(self) -> None:
        self._timer.cancel()
        self._call = _nothing  # Whoever is called may have this timer, which would make a circle.

    def _look(self) -> None:
        left = self._end - served()
        if left > _SOON:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._call()


async def pause(seconds: float) -> None:
    """Return when so many seconds have passed."""
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    timer = after(seconds, lambda: None if over.done() else over.set_result(None))
    try:
        await over
    finally:
        timer.cancel()


@asynccontextmanager
async def patience(seconds: float | None) -> AsyncIterator[None]:
    """Raises TimeoutError when what is inside takes longer; None: it may take for ever."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        timer = None if seconds is None else after(seconds, lambda: limit.reschedule(loop.time()))
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
