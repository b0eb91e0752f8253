"""The passes of an outgoing migration's copy, made so that QEMU never stops the VM by itself. Of a QEMU of
ours, or of libvirt's.

QEMU looks which pages were written meanwhile, and so ends a pass, when less remains than its threshold: the
bandwidth of the last 100 ms times `downtime-limit`. If still less than that remains after the look it stops
the VM: too early, for the traffic is not diverted yet. So the limit is 0 (never look) but where a pass is to
be followed by another; there it is 1 ms, and at the end of the first pass the stream is read so slowly that
the threshold is a handful of pages, which any VM that runs has written since.

The last pass is ended by us: little remains, we read no more, and QEMU waits (`throttle`).
"""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from retinue.core.migration.copying import Postcopy, is_postcopy
from retinue.core.migration.precopy import Pass, another_pass, expected_downtime
from retinue.hypervisor.interface import Copying, OnEvent
from retinue.hypervisor.memory_channel import Channel
from retinue.hypervisor.throttle import EMPTY_PAGE, LARGEST_STEP, PAGE, SMALLEST_STEP, Throttle, step_for

HELD_BACK = 1 << 20
"""Bytes of RAM that are left to be sent when the VM is stopped in the first pass; each MiB adds some 4 ms of
downtime. It must be more than what QEMU sends after the RAM proper, its ROMs, of 520 KiB in all (see `info
ramblock` of a machine of ours): these go out in one go."""
HELD_BACK_LATER = 1 << 18
"""In a later pass: the ROMs have gone. QEMU runs ahead of us by 64 pages."""
SLOW_FROM = 2 << 20
"""Bytes of RAM left of the first pass when it slows down, if another shall follow."""
SLOW_STEP_SECONDS = 0.005
SLOW_MBPS = 200.0
"""With at most so much as its bandwidth QEMU's threshold is 25 kB."""
SLOWEST = 1e6
"""Bytes a second that a rate is taken for at the least."""
TELL_SECONDS = 1.0
"""Between two words about how far a pass is that takes long."""
UNBOUNDED_DOWNTIME = 2_000_000
"""Milliseconds, the most QEMU takes: it converges at the next look."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Progress:
    """What a QEMU says of the copy that it makes."""

    began: bool
    """Some of the memory has gone out."""
    ended: bool
    """There is no copy any more, or QEMU has stopped the VM for its end."""
    number: int
    """Of the pass under way, from 1."""
    remaining: int
    """Bytes of memory to go over in it."""
    mbps: float
    """Megabits a second, as QEMU reckons its threshold by."""


class Copier(Protocol):
    """The QEMU that copies a VM's memory, by whoever speaks to it. Both methods raise HypervisorError."""

    @property
    def vm(self) -> str: ...

    async def progress(self) -> Progress: ...

    async def set_downtime_limit(self, milliseconds: int) -> None: ...


class _StoppedError(Exception):
    """QEMU has stopped the VM, though nobody has let it go on to the end."""


class Passes:
    """Copies a running VM, pass after pass, until little is left, or the rest is for post-copy.

    Raises HypervisorError."""

    def __init__(
        self,
        copier: Copier,
        throttle: Throttle,
        channel: Channel,
        stopped: "asyncio.Future[float]",
        wanted_downtime: float,
        on_event: OnEvent,
        postcopy: Postcopy = Postcopy.NEVER,
    ) -> None:
        self._copier = copier
        self._throttle = throttle
        self._channel = channel
        self._stopped = stopped
        self._wanted = wanted_downtime
        self._on_event = on_event
        self._postcopy = postcopy
        self.to_postcopy = False
        """What is left shall go over when the VM runs at the target."""
        self._several = False
        self._held_back_first = HELD_BACK
        self._passes: list[Pass] = []
        self.number = 1
        self._began = time.monotonic()
        self._read_before = 0
        self._bandwidth = SLOWEST
        self._another = False
        """The pass under way shall be followed by another."""
        self._slow = False
        self._mbps_before = -1.0
        self._page_bytes = float(EMPTY_PAGE)
        """Of the stream, for a page, as it was lately."""
        self._written = 0
        """Bytes a second, by the VM in the pass before; 0: not known."""
        self._told_at = float("-inf")
        self._seen: tuple[int, int] | None = None
        """Bytes of the stream read, and bytes of RAM that remained, at the last look."""

    def begin(self, *, several: bool, held_back: int = HELD_BACK) -> None:
        """Whether there can be several passes, and what is left to be sent of the first if it is the last."""
        self._several = self._another = several
        self._held_back_first = held_back
        # Nothing is known of what the VM writes, where it is looked at once, when it has stopped.
        self.to_postcopy = self._postcopy is Postcopy.REQUIRED and not several

    def never_by_postcopy(self) -> None:
        """One of the two servers cannot."""
        self._postcopy, self.to_postcopy = Postcopy.NEVER, False

    async def until_little_remains(self) -> bool:
        """Pass memory on until little remains, or `to_postcopy`; False: QEMU has stopped the VM before."""
        try:
            return await self._until_little_remains()
        except _StoppedError:
            return False

    async def _until_little_remains(self) -> bool:
        while True:
            now = await self._ask(self._copier.progress())
            if self._stopped.done() or now.ended:
                return False
            if not now.began:
                if not await self._read(SMALLEST_STEP):
                    return False
                continue
            if now.number > self.number:
                await self._next_pass(now.number, now.remaining)
                if self.to_postcopy:
                    return True
            elif time.monotonic() - self._told_at >= TELL_SECONDS:
                self._report(now.number, now.remaining)
            self._look(now.remaining)
            if not self._another and now.remaining <= self._held_back:
                return True
            if not await self._go_on(now.remaining, now.mbps):
                return False

    @property
    def _held_back(self) -> int:
        return self._held_back_first if self.number == 1 else HELD_BACK_LATER

    async def _next_pass(self, number: int, remaining: int) -> None:
        """QEMU has looked: so much has been written since the last look."""
        now, read = time.monotonic(), self._throttle.read_bytes
        if not self._slow:
            self._measure(now, read)
        self._passes.append(Pass(remaining, now - self._began))
        self._written = int(remaining / max(now - self._began, 1e-3))
        self._report(number, remaining)
        self.number, self._began, self._read_before, self._slow = number, now, read, False
        self._another = another_pass(self._passes, self._bandwidth, HELD_BACK_LATER, self._wanted)
        expected = expected_downtime(self._passes[-1], self._bandwidth, HELD_BACK_LATER)
        self.to_postcopy = is_postcopy(self._postcopy, expected, self._wanted, another_pass=self._another)
        await self._set_limit(int(self._another and not self.to_postcopy))

    def _report(self, number: int, remaining: int) -> None:
        self._told_at = time.monotonic()
        self._on_event(Copying(self._copier.vm, time.time(), number, remaining, self._written))

    async def _go_on(self, remaining: int, mbps: float) -> bool:
        first = self.number == 1
        if not (first and self._another and remaining <= SLOW_FROM):
            held = SLOW_FROM if first and self._another else self._held_back
            return await self._read(step_for(remaining, held) if first else self._later_step(remaining))
        if not self._slow:
            self._measure(time.monotonic(), self._throttle.read_bytes)
            self._slow, self._mbps_before = True, mbps
            await self._set_limit(1)
        if mbps == self._mbps_before or mbps > SLOW_MBPS:
            # The threshold is that of a fast stream, or still that of no limit.
            await asyncio.sleep(SLOW_STEP_SECONDS)
        return await self._read(SMALLEST_STEP)

    def _later_step(self, remaining: int) -> int:
        """Bytes that may be read before the next look, if pages are a quarter as large as lately."""
        pages = max(0, remaining - self._held_back) // PAGE
        nbytes = int(pages * max(EMPTY_PAGE, self._page_bytes / 4))
        return min(LARGEST_STEP, max(SMALLEST_STEP, nbytes))

    def _look(self, remaining: int) -> None:
        read, before = self._seen or (0, 0)
        pages = (before - remaining) // PAGE
        if pages > 0:
            self._page_bytes = max(EMPTY_PAGE, min(PAGE, (self._throttle.read_bytes - read) / pages))
        self._seen = (self._throttle.read_bytes, remaining)

    def _measure(self, now: float, read: int) -> None:
        rate = (read - self._read_before) / max(now - self._began, 1e-3)
        self._bandwidth = max(self._bandwidth, rate)

    async def _set_limit(self, milliseconds: int) -> None:
        await self._ask(self._copier.set_downtime_limit(milliseconds))

    async def _ask(self, question: Coroutine[Any, Any, T]) -> T:
        """QEMU's answer. Raises _StoppedError where it has stopped the VM: then it holds its big lock, and
        answers nobody, until all that it sends has been read."""
        asking = asyncio.ensure_future(question)
        try:
            awaited: set[asyncio.Future[Any]] = {asking, self._stopped}
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise _StoppedError
            return asking.result()
        finally:
            if not asking.done():
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    async def _read(self, nbytes: int) -> bool:
        """Pass on so many bytes; False where the stream ends."""
        self._throttle.set_window(nbytes)
        until = self._throttle.read_bytes + nbytes
        while self._throttle.read_bytes < until:
            if not (chunk := await self._throttle.read(until - self._throttle.read_bytes)):
                return False
            await self._channel.send_memory(chunk)
        return True
