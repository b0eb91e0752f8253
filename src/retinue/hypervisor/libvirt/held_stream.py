"""What a source's QEMU writes from the word on that begins post-copy through libvirt, held back for a while.

The target's libvirt runs the VM as soon as its QEMU has got the state of its devices, which comes right after
the stop, somewhere in the stream. So nothing is passed on from that word on until what the VM has sent is on
its way. It is read all the same: a QEMU that cannot write stands still, and with it what libvirt asks of it.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable
from typing import Any

from retinue.hypervisor.rest_of_memory import STEP
from retinue.hypervisor.throttle import Throttle

MOST_HELD = 64 << 20
"""Bytes held of one VM's stream: more than QEMU sends in a step of its pass (50 ms) on most networks."""


class HeldStream:
    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle
        self._held: deque[bytes] = deque()
        self._nbytes = 0
        self.ended = False
        self._reading: asyncio.Future[bytes] | None = None
        """Goes on from one call to the next: what a read that is called off has read would be lost."""

    async def until(self, awaited: Awaitable[object]) -> bool:
        """Hold what comes until something has happened: True; False: the stream has ended before, or there is
        no room for more of it."""
        happening = asyncio.ensure_future(awaited)
        try:
            while not happening.done():
                if self.ended or self._nbytes >= MOST_HELD:
                    return False
                if self._reading is None:
                    self._reading = asyncio.ensure_future(self._throttle.read(STEP))
                watched: set[asyncio.Future[Any]] = {happening, self._reading}
                await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
                if self._reading.done():
                    chunk, self._reading = self._reading.result(), None
                    self._held.append(chunk)
                    self._nbytes += len(chunk)
                    self.ended = not chunk
            happening.result()
            return True
        finally:
            if not happening.done():
                happening.cancel()
                await asyncio.gather(happening, return_exceptions=True)

    async def read(self, nbytes: int) -> bytes:
        """As Throttle.read: first what was held."""
        if self._held:
            return self._held.popleft()
        if self.ended:
            return b""
        if self._reading is not None:
            reading, self._reading = self._reading, None
            return await reading
        return await self._throttle.read(nbytes)

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
