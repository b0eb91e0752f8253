"""The source's half of a live migration: copy, hold back, divert, stop, hand over.

    1. QEMU sends the VM's memory through a throttle (`throttle`), in as many passes as are worth it
       (`passes`); we pass it on to the target.
    2. When little remains of the last pass we stop reading. The VM runs for as long as it takes to
    3. divert its traffic to the target, where it waits (`divert`), and drain what is on its way here.
    4. QEMU is read without limit, and stops the VM when nothing remains; what was written meanwhile goes
       over. (A newer QEMU has to be told to stop it.)
    5. When QEMU has sent all of it the target is told that the VM is its own. Until then the source may run
       it again, from then on never: so it cannot run twice, whoever fails.

Without `divert` QEMU goes through to the end by itself, as it would for any hypervisor manager.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

import structlog

from retinue.core.migration.precopy import WANTED_DOWNTIME
from retinue.host.errors import HostError
from retinue.hypervisor.aio import both, run_to_completion, unless
from retinue.hypervisor.errors import HandedOverError, HypervisorError
from retinue.hypervisor.interface import (
    Divert,
    MigrationFailed,
    MigrationResult,
    OnEvent,
    RunState,
    Stopped,
)
from retinue.hypervisor.memory_channel import Channel
from retinue.hypervisor.qemu.machine import EXITED, EventQueue, QemuMachine, QMPEvent, event_time
from retinue.hypervisor.qemu.passes import ENDED, Passes
from retinue.hypervisor.qemu.throttle import LARGEST_STEP, SMALLEST_STEP, Throttle

LEAST_LIMIT, MOST_LIMIT = 60.0, 540.0
"""Seconds from the order to copy until the VM runs at the target, for a small VM and for the largest."""
SLOWEST_COPY = 10e6
"""Bytes a second: a VM may take as long as four passes over its memory at this rate."""
RECOVERY_LIMIT = 10.0
LEAST_SECONDS = 0.05
"""In less no rate is measured, for a few frames may come at once."""
UNBOUNDED_BANDWIDTH = 1 << 40
UNBOUNDED_DOWNTIME = 2_000_000
"""Milliseconds, the most QEMU takes: it converges at the next look."""

log = structlog.get_logger()

T = TypeVar("T")


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


def limit_for(memory: int) -> float:
    """Seconds that the migration of a VM with so many bytes of memory may take."""
    return min(MOST_LIMIT, LEAST_LIMIT + 4 * memory / SLOWEST_COPY)


async def run_outgoing(
    machine: QemuMachine,
    channel: Channel,
    on_event: OnEvent,
    divert: Divert | None,
    wanted_downtime: float = WANTED_DOWNTIME,
    *,
    limit: float | None = None,
) -> MigrationResult:
    """See Hypervisor.run_outgoing."""
    outgoing = _Outgoing(machine, channel, on_event, divert, wanted_downtime)
    limit = limit_for(machine.spec.memory_mib << 20) if limit is None else limit
    vm = machine.spec.id
    with machine.events_into(outgoing.events):
        watching = asyncio.create_task(outgoing.watch(), name=f"QMP events of the outgoing migration of {vm}")
        try:
            async with asyncio.timeout(limit):
                return await outgoing.run()
        except BaseException as error:
            reason = _reason(error, limit)
            if outgoing.handed_over:
                if isinstance(error, (HostError, TimeoutError)):
                    raise HandedOverError(
                        f"VM {vm} was handed over, and the target does not confirm that it runs: {reason}"
                    ) from error
                raise
            watching.cancel()
            # QEMU may wait for a reader, and answers nobody meanwhile: now it finds that there is none.
            outgoing.throttle.close()
            await run_to_completion(_as_before(machine, reason, on_event))
            if isinstance(error, (HostError, TimeoutError)):
                raise HypervisorError(f"VM {vm} was not migrated: {reason}") from error
            raise
        finally:
            watching.cancel()
            outgoing.throttle.close()
            await channel.close()


class _Outgoing:
    def __init__(
        self,
        machine: QemuMachine,
        channel: Channel,
        on_event: OnEvent,
        divert: Divert | None,
        wanted_downtime: float,
    ) -> None:
        self._machine = machine
        self._channel = channel
        self._on_event = on_event
        self._divert = divert
        self._taps = machine.spec.ports
        self.throttle = Throttle()
        self.events: EventQueue = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self._stopped: asyncio.Future[float] = loop.create_future()
        self._completed: asyncio.Future[None] = loop.create_future()
        self._failed: asyncio.Future[str] = loop.create_future()
        self._frames_before = self._converges_at = 0
        self._passes = Passes(machine, self.throttle, channel, self._stopped.done, wanted_downtime, on_event)
        self._stopping = False
        self.handed_over = False

    async def run(self) -> MigrationResult:
        await self._prepare()
        began, self._frames_before = time.time(), self._machine.frames_given()
        if self._divert is not None and await unless(self._failed, self._passes.until_little_remains()):
            await unless(self._failed, self._make_room(began))
            await unless(self._failed, self._switch_over(self._divert))
        else:
            self.throttle.release_qemu_end()
            passing = asyncio.create_task(self._pass_on())
            try:
                await unless(self._failed, _value(self._stopped))
                if self._divert is not None:
                    log.warning("migration.paused_before_diverted", vm=self._machine.spec.id)
                    await unless(self._failed, self._divert(self._taps))
                await unless(self._failed, _value(passing))
            finally:
                passing.cancel()
        await self._channel.send_memory(b"")
        await unless(self._failed, _value(self._completed))
        stopped_at = await self._stopped
        self.handed_over = True
        await self._channel.send_message("handed_over")
        answer = await self._channel.receive_message()
        if answer["type"] != "running":
            # The target's own message, and the only one that gives the VM back: it never ran there.
            self.handed_over = False
            raise HypervisorError(f"the target could not take the VM in: {answer.get('reason')}")
        resumed_at = float(answer["at"])
        ram = await self._statistics()
        return MigrationResult(
            stopped_at=stopped_at,
            resumed_at=resumed_at,
            total_ms=(resumed_at - began) * 1000,
            transferred=ram.get("transferred", 0),
            passes=ram.get("dirty-sync-count", 0),
        )

    async def _statistics(self) -> dict[str, Any]:
        """What the source knows of the copy, if it still answers: the VM has left it."""
        try:
            found: dict[str, Any] = (await self._machine.execute("query-migrate")).get("ram", {})
        except HostError:
            return {}
        return found

    async def watch(self) -> None:
        """Sort QEMU's events, for ever."""
        while True:
            _, event = await self.events.get()
            self._sort(event)

    def _sort(self, event: QMPEvent) -> None:
        match event["event"], event.get("data", {}).get("status"):
            case "STOP", _ if not self._stopped.done():
                self._stopped.set_result(event_time(event))
                if not self._stopping:  # QEMU ends by itself, and with it its stream.
                    self.throttle.release_qemu_end()
                self._on_event(Stopped(self._machine.spec.id, event_time(event)))
            case "MIGRATION", "completed" if not self._completed.done():
                self._completed.set_result(None)
            case "MIGRATION", "failed" | "cancelled" | "cancelling":
                self._fail("the source gave up")
            case name, _ if name == EXITED:
                self._fail("the source has ended")

    def _fail(self, reason: str) -> None:
        if not self._failed.done():
            self._failed.set_result(reason)

    async def _prepare(self) -> None:
        machine, throttle = self._machine, self.throttle
        capabilities = [{"capability": "events", "state": True}]
        await machine.execute("migrate-set-capabilities", capabilities=capabilities)
        found = (await machine.execute("query-version"))["qemu"]
        version = (found["major"], found["minor"], found["micro"])
        self._converges_at = downtime_limit(version)
        await machine.execute(
            "migrate-set-parameters",
            max_bandwidth=UNBOUNDED_BANDWIDTH,
            downtime_limit=self._converges_at if self._divert is None else 0,
        )
        if self._divert is not None:
            await self._passes.prepare(version)
        throttle.set_window(SMALLEST_STEP if self._divert else LARGEST_STEP)
        uri = await machine.give(throttle.theirs)
        if self._divert is None:
            throttle.release_qemu_end()
        await machine.execute("migrate", uri=uri)

    async def _make_room(self, began: float) -> None:
        """Let the target know how much the VM is sent, for all of it will have to wait there."""
        given = self._machine.frames_given() - self._frames_before
        await self._channel.send_message(
            "expect", frames_a_second=given / max(time.time() - began, LEAST_SECONDS)
        )

    async def _switch_over(self, divert: Divert) -> None:
        await self._machine.drain(await divert(self._taps))
        self._stopping = True
        if self._converges_at:
            await self._machine.execute("stop")
        self.throttle.set_window(LARGEST_STEP)
        self.throttle.release_qemu_end()
        # Both at once: when all RAM has gone QEMU answers nobody before the rest has been read.
        await both(self._let_converge(), self._pass_on())

    async def _let_converge(self) -> None:
        """An older QEMU is content when nothing remains; a newer one never is with a limit of 0."""
        if self._converges_at:
            limit = UNBOUNDED_DOWNTIME
            await self._machine.execute("migrate-set-parameters", downtime_limit=limit)

    async def _pass_on(self) -> None:
        """Pass on all that is left of the stream."""
        while chunk := await self.throttle.read(LARGEST_STEP):
            await self._channel.send_memory(chunk)


async def _value(future: Awaitable[T]) -> T:
    if isinstance(future, asyncio.Future):
        return await asyncio.shield(future)
    return await future


async def _as_before(machine: QemuMachine, reason: str, on_event: OnEvent) -> None:
    """Cancel the migration, where it is still under way, and resume the source."""
    runs, waited = False, 0
    try:
        async with asyncio.timeout(RECOVERY_LIMIT):
            if await _status(machine) not in ENDED:
                with contextlib.suppress(HostError):
                    await machine.execute("migrate_cancel")
                while True:
                    if await _status(machine) in ENDED:
                        break
                    await asyncio.sleep(0.005)
            if await machine.state() is not RunState.RUNNING:
                with contextlib.suppress(HostError):  # A figure only: the VM is resumed in any case.
                    waited = await machine.waiting()
                await machine.resume()
            runs = True
    except (HostError, TimeoutError) as error:
        log.error("migration.source_not_resumed", vm=machine.spec.id, error=str(error))
    on_event(MigrationFailed(machine.spec.id, time.time(), reason, source_runs=runs, queued_frames=waited))


async def _status(machine: QemuMachine) -> str:
    """The state of the source's migration; "none" before the first."""
    return str((await machine.execute("query-migrate")).get("status", "none"))


def _reason(error: BaseException, limit: float) -> str:
    if isinstance(error, TimeoutError):
        return f"not done within {limit:.0f} s"
    return "it was called off" if isinstance(error, asyncio.CancelledError) else str(error)
