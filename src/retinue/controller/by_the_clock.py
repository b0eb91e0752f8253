"""What is done by the clock: work every so many seconds, and what is due when a lease ends.

A failure of the work is told, and the work goes on.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from retinue.controller.context import Context

PAUSE_AFTER_FAILURE = 1.0
"""Seconds until the lease clock is tried again."""


def repeat(context: Context, seconds: float, work: Callable[[], Any], what: str) -> None:
    """Do this work every so many seconds, until the controller stops; it may be a coroutine function."""
    context.spawn(_every(context, seconds, work, what), what)


async def _every(context: Context, seconds: float, work: Callable[[], Any], what: str) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            result = work()
            if asyncio.iscoroutine(result):
                await result
        except Exception as error:
            context.failed(what, error)


class LeaseClock:
    """Sleeps until the next lease ends, or until a binding has changed."""

    def __init__(
        self,
        context: Context,
        next_end: Callable[[], float | None],
        expire: Callable[[], Awaitable[None]],
    ) -> None:
        """`next_end`: when the first lease ends, None without one. `expire`: what is done then."""
        self._context = context
        self._next_end = next_end
        self._expire = expire
        self._moved = asyncio.Event()

    def moved(self) -> None:
        """Leases may end at other times from now on."""
        self._moved.set()

    async def run(self) -> None:
        while True:
            try:
                await self._until_a_lease_ends()
                await self._expire()
            except Exception as error:
                self._context.failed("lease clock", error)
                await asyncio.sleep(PAUSE_AFTER_FAILURE)

    async def _until_a_lease_ends(self) -> None:
        while True:
            end = self._next_end()
            wait = None if end is None else max(0.0, end - self._context.clock())
            self._moved.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._moved.wait()
            except TimeoutError:
                return
