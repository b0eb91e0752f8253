"""An event loop whose time passes only when there is nothing left to do: no waiting, always the same.

Where sockets or processes take part, time is real. There `pass_over` ends a limit at a moment that the test
chooses, so that none has to be so small that a busy machine misses it.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from retinue.patience import lateness

T = TypeVar("T")


class StandstillError(AssertionError):
    """Everybody waits for somebody."""


class _Nobody(selectors.SelectSelector):
    """Nothing comes from outside; instead of waiting, the clock goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise StandstillError("everybody waits for somebody, and no time limit runs")
        self.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._nobody = _Nobody()
        super().__init__(self._nobody)

    def time(self) -> float:
        return self._nobody.now


def pass_over(seconds: float) -> None:
    """Let the running loop's clock jump ahead: what was to come within that time is due, and the loop not
    late."""
    loop = asyncio.get_running_loop()
    lateness().seconds -= seconds
    clock = loop.time
    loop.time = lambda: clock() + seconds  # type: ignore[method-assign]


def be_busy(seconds: float) -> None:
    """The running loop, whose time is virtual, does nothing else for so long: it is late then."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    lateness()
    loop._nobody.now += seconds


def run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
