"""How long the active controller may go on believing that it is the active one."""

import asyncio
import time
from collections.abc import Callable


def since_boot() -> float:
    """Seconds of a clock that nobody sets, and that goes on while the process, or the machine, is stopped."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Mandate:
    """Lasts `seconds` from when the database was last asked and had this controller's epoch.

    From the asking, not from the answer: whoever takes over waits longer than that from the last sign of life
    that *it* saw. A process that was stopped for a while finds its mandate over, before it has asked anybody.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = since_boot) -> None:
        self.seconds = seconds
        self.clock = clock
        self.epoch = 0
        """The newest epoch known, be it this controller's or not."""
        self._until = float("-inf")
        self._waiting: list[asyncio.Future[None]] = []

    def holds(self) -> bool:
        return self.clock() < self._until

    @property
    def left(self) -> float:
        """Seconds; 0 when it is over."""
        return max(0.0, self._until - self.clock())

    def saw(self, epoch: int) -> None:
        self.epoch = max(self.epoch, epoch)

    def renew(self, epoch: int, asked_at: float) -> None:
        self.epoch = epoch
        self._until = asked_at + self.seconds
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()

    def end(self) -> None:
        self._until = float("-inf")

    async def held(self) -> None:
        """Return when it holds."""
        while not self.holds():
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
