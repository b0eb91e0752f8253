"""The passes of an outgoing migration's copy, made so that QEMU never stops the VM by itself.

QEMU looks which pages were written meanwhile, and so ends a pass, when less remains than its threshold: the
bandwidth of the last 100 ms times `downtime-limit`. If still less than that remains after the look it stops
the VM: too early, for the traffic is not diverted yet. So the limit is 0 (never look) but where a pass is to
be followed by another; there it is 1 ms, and at the end of the first pass the stream is read so slowly that
the threshold is a handful of pages, which any VM that runs has written since.

The last pass is ended by us: little remains, we read no more, and QEMU waits (`throttle`).
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from retinue.core.migration.copying import Postcopy, is_postcopy
from retinue.core.migration.precopy import Pass, another_pass, expected_downtime, may_look_again
from retinue.hypervisor.interface import Copying, OnEvent
from retinue.hypervisor.memory_channel import Channel
from retinue.hypervisor.qemu.machine import QemuMachine
from retinue.hypervisor.qemu.throttle import EMPTY_PAGE, LARGEST_STEP, PAGE, SMALLEST_STEP, Throttle, step_for

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
ENDED = ("none", "completed", "failed", "cancelled")
UNBOUNDED_DOWNTIME = 2_000_000
"""Milliseconds, the most QEMU takes: it converges at the next look."""
SLOWEST = 1e6
"""Bytes a second that a rate is taken for at the least."""


def downtime_limit(version: Sequence[int]) -> int:
    """The `downtime-limit` in ms with which a QEMU (major, minor, micro) converges by itself in one pass.

    Of an emulated VM a QEMU before 9.0 may lose writes where it looks more than once (`may_look_again`).

    Before 8.0 it looks when what remains is less than bandwidth times the limit; with 0, never. A newer one
    looks when nothing remains, too, and is never content with 0. In 8.x a limit beyond all measure makes
    the first look the last one, at the price of a longer pause; from 9.0 looking is safe.
    """
    if version[0] < 8:
        return 0
    return UNBOUNDED_DOWNTIME if version[0] < 9 else 300


class _StoppedError(Exception):
    """QEMU has stopped the VM, though nobody has let it go on to the end."""


class Passes:
    """Copies a running VM, pass after pass, until little is left, or the rest is for post-copy.

    Raises HypervisorError."""

    def __init__(
        self,
        machine: QemuMachine,
        throttle: Throttle,
        channel: Channel,
        stopped: "asyncio.Future[float]",
        wanted_downtime: float,
        on_event: OnEvent,
        postcopy: Postcopy = Postcopy.NEVER,
    ) -> None:
        self._machine = machine
        self._throttle = throttle
        self._channel = channel
        self._stopped = stopped
        self._wanted = wanted_downtime
        self._on_event = on_event
        self._postcopy = postcopy
        self.to_postcopy = False
        """What is left shall go over when the VM runs at the target."""
        self._several = False
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
        self._seen: tuple[int, int] | None = None
        """Bytes of the stream read, and bytes of RAM that remained, at the last look."""

    async def prepare(self, version: Sequence[int]) -> None:
        """Find out whether there can be several passes, and have QEMU slow a VM down that writes too much."""
        enabled = (await self._machine.execute("query-kvm"))["enabled"]
        memory = (await self._machine.execute("query-memory-size-summary"))["base-memory"]
        self._several = may_look_again("kvm" if enabled else "tcg", version, memory)
        self._another = self._several
        # Nothing is known of what the VM writes, where it is looked at once, when it has stopped.
        self.to_postcopy = self._postcopy is Postcopy.REQUIRED and not self._several
        capability = {"capability": "auto-converge", "state": self._several}
        await self._machine.execute("migrate-set-capabilities", capabilities=[capability])

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
            status = await self._ask("query-migrate")
            if self._stopped.done() or status.get("status") in ENDED:
                return False
            ram: dict[str, Any] = status.get("ram", {})
            if status.get("status") != "active" or not ram.get("transferred"):
                if not await self._read(SMALLEST_STEP):
                    return False
                continue
            remaining = int(ram.get("remaining", 0))
            if not self._seen:
                self._report(1, remaining, 0)
            if ram.get("dirty-sync-count", 1) > self.number:
                await self._next_pass(int(ram["dirty-sync-count"]), remaining)
                if self.to_postcopy:
                    return True
            self._look(remaining)
            if not self._another and remaining <= self._held_back:
                return True
            if not await self._go_on(remaining, float(ram.get("mbps", 0.0))):
                return False

    @property
    def _held_back(self) -> int:
        return HELD_BACK if self.number == 1 else HELD_BACK_LATER

    async def _next_pass(self, number: int, remaining: int) -> None:
        """QEMU has looked: so much has been written since the last look."""
        now, read = time.monotonic(), self._throttle.read_bytes
        if not self._slow:
            self._measure(now, read)
        self._passes.append(Pass(remaining, now - self._began))
        self._report(number, remaining, int(remaining / max(now - self._began, 1e-3)))
        self.number, self._began, self._read_before, self._slow = number, now, read, False
        self._another = another_pass(self._passes, self._bandwidth, HELD_BACK_LATER, self._wanted)
        expected = expected_downtime(self._passes[-1], self._bandwidth, HELD_BACK_LATER)
        self.to_postcopy = is_postcopy(self._postcopy, expected, self._wanted, another_pass=self._another)
        await self._set_limit(int(self._another and not self.to_postcopy))

    def _report(self, number: int, remaining: int, written_a_second: int) -> None:
        vm = self._machine.spec.id
        self._on_event(Copying(vm, time.time(), number, remaining, written_a_second))

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
        await self._ask("migrate-set-parameters", downtime_limit=milliseconds)

    async def _ask(self, command: str, **arguments: Any) -> Any:
        """QEMU's answer. Raises _StoppedError where it has stopped the VM: then it holds its big lock, and
        answers nobody, until all that it sends has been read."""
        asking = asyncio.ensure_future(self._machine.execute(command, **arguments))
        try:
            await asyncio.wait({asking, self._stopped}, return_when=asyncio.FIRST_COMPLETED)
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
