"""The source's half of a live migration: copy, hold back, divert, stop, hand over.

    1. QEMU sends the VM's memory into a valve (see there), once; we pass it on to the target.
    2. When little remains the valve is closed. The VM runs on, for as long as it takes to
    3. turn its traffic to the target, where it waits (`divert`), and let what is on its way arrive.
    4. The VM is stopped, the valve opened; what remains and what was written meanwhile goes over.
    5. When QEMU has sent all of it the target is told that the VM is its own. Until then the source may run
       it again, from then on never: so it cannot run twice, whoever fails.

In one pass: QEMU before 9.0 loses pages when, on an emulated processor, it looks more than once at which
pages were written while the guest runs (its commit 03bfc2188f06 tells). With a `downtime-limit` of 0 it does
not look before the VM stands still, as long as something remains to be sent. The price: a VM that writes much
stands still for longer.

Without `divert` QEMU goes through to the end by itself, as it would for any hypervisor manager.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

import structlog

from retinue.hypervisor.both import both, unless
from retinue.hypervisor.channel import Channel
from retinue.hypervisor.interface import (
    Divert,
    HandedOverError,
    HypervisorError,
    MigrationFailed,
    MigrationResult,
    OnEvent,
    RunState,
    Stopped,
)
from retinue.hypervisor.machine import GONE, EventQueue, QemuMachine, QMPEvent, event_time
from retinue.hypervisor.unbroken import to_its_end
from retinue.hypervisor.valve import LARGEST_STEP, SMALLEST_STEP, Valve, step_for

MIGRATION_LIMIT = 60.0
"""Seconds from the order to move until the VM runs on the target."""
RECOVERY_LIMIT = 10.0
LEAST_SECONDS = 0.05
"""In less no rate is measured, for a few frames may come at once."""
HELD_BACK = 1 << 20
"""Octets of RAM that are left to be sent when the VM is stopped; each MiB is some 4 ms of its standing still.
It must be more than what QEMU sends after the RAM proper, its ROMs, of 520 KiB in all (see `info ramblock` of
a machine of ours): these go out in one go."""
UNBOUNDED_BANDWIDTH = 1 << 40
UNBOUNDED_DOWNTIME = 2_000_000
"""Milliseconds, the most QEMU takes: it converges at the next look."""
ENDED = ("none", "completed", "failed", "cancelled")

log = structlog.get_logger()

T = TypeVar("T")


def downtime_limit(version: Sequence[int]) -> int:
    """The `downtime-limit` in ms with which a QEMU (major, minor, micro) converges by itself in one pass.

    Before 8.0 it looks when what remains is less than bandwidth times the limit; with 0, never. A newer one
    looks when nothing remains, too, and is never content with 0. In 8.x a limit beyond all measure makes
    the first look the last one, at the price of a longer pause; from 9.0 looking is safe.
    """
    if version[0] < 8:
        return 0
    return UNBOUNDED_DOWNTIME if version[0] < 9 else 300


async def depart(
    machine: QemuMachine,
    channel: Channel,
    on_event: OnEvent,
    divert: Divert | None,
    *,
    limit: float = MIGRATION_LIMIT,
) -> MigrationResult:
    """See Hypervisor.depart."""
    departure = _Departure(machine, channel, on_event, divert)
    vm = machine.spec.id
    with machine.events_into(departure.heard):
        watching = asyncio.create_task(departure.watch(), name=f"departure of {vm}")
        try:
            async with asyncio.timeout(limit):
                return await departure.run()
        except BaseException as error:
            reason = _reason(error, limit)
            if departure.handed_over:
                if isinstance(error, (HypervisorError, TimeoutError)):
                    raise HandedOverError(
                        f"VM {vm} was handed over, and the target does not confirm that it runs: {reason}"
                    ) from error
                raise
            watching.cancel()
            # QEMU may wait for a reader, and answers nobody meanwhile: now it finds that there is none.
            departure.valve.close()
            await to_its_end(_as_before(machine, reason, on_event))
            if isinstance(error, (HypervisorError, TimeoutError)):
                raise HypervisorError(f"VM {vm} was not moved: {reason}") from error
            raise
        finally:
            watching.cancel()
            departure.valve.close()
            await channel.close()


class _Departure:
    def __init__(
        self, machine: QemuMachine, channel: Channel, on_event: OnEvent, divert: Divert | None
    ) -> None:
        self._machine = machine
        self._channel = channel
        self._on_event = on_event
        self._divert = divert
        self._taps = (machine.spec.port,)
        self.valve = Valve()
        self.heard: EventQueue = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self._stopped: asyncio.Future[float] = loop.create_future()
        self._completed: asyncio.Future[None] = loop.create_future()
        self._failed: asyncio.Future[str] = loop.create_future()
        self._frames_before = self._converges_at = 0
        self.handed_over = False

    async def run(self) -> MigrationResult:
        await self._prepare()
        began, self._frames_before = time.time(), self._machine.frames_given()
        if self._divert is not None and await unless(self._failed, self._hold_back()):
            await unless(self._failed, self._make_room(began))
            await unless(self._failed, self._switch_over(self._divert))
        else:
            passing = asyncio.create_task(self._pass_on())
            try:
                await unless(self._failed, _value(self._stopped))
                if self._divert is not None:
                    log.warning(
                        "the VM stood still before its traffic was diverted", vm=self._machine.spec.id
                    )
                    await unless(self._failed, self._divert(self._taps))
                await unless(self._failed, _value(passing))
            finally:
                passing.cancel()
        await self._channel.send_memory(b"")
        await unless(self._failed, _value(self._completed))
        stopped_at = await self._stopped
        self.handed_over = True
        await self._channel.say("yours")
        answer = await self._channel.hear()
        if answer["word"] != "runs":
            # Its own word, and the only one that gives the VM back: it has not run there, and never will.
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
        except HypervisorError:
            return {}
        return found

    async def watch(self) -> None:
        """Sort QEMU's events, for ever."""
        while True:
            _, event = await self.heard.get()
            self._sort(event)

    def _sort(self, event: QMPEvent) -> None:
        match event["event"], event.get("data", {}).get("status"):
            case "STOP", _ if not self._stopped.done():
                self._stopped.set_result(event_time(event))
                self._on_event(Stopped(self._machine.spec.id, event_time(event)))
            case "MIGRATION", "completed" if not self._completed.done():
                self._completed.set_result(None)
            case "MIGRATION", "failed" | "cancelled" | "cancelling":
                self._fail("the source gave up")
            case name, _ if name == GONE:
                self._fail("the source has ended")

    def _fail(self, reason: str) -> None:
        if not self._failed.done():
            self._failed.set_result(reason)

    async def _prepare(self) -> None:
        machine, valve = self._machine, self.valve
        capabilities = [{"capability": "events", "state": True}]
        await machine.execute("migrate-set-capabilities", capabilities=capabilities)
        version = (await machine.execute("query-version"))["qemu"]
        self._converges_at = downtime_limit((version["major"], version["minor"], version["micro"]))
        await machine.execute(
            "migrate-set-parameters",
            max_bandwidth=UNBOUNDED_BANDWIDTH,
            downtime_limit=self._converges_at if self._divert is None else 0,
        )
        valve.narrow(SMALLEST_STEP if self._divert else LARGEST_STEP)
        uri = await machine.give(valve.theirs)
        if self._divert is None:
            valve.handed_over()
        await machine.execute("migrate", uri=uri)

    async def _hold_back(self) -> bool:
        """Pass memory on until little remains; False when QEMU has stopped the VM before that."""
        while True:
            status = await self._machine.execute("query-migrate")
            if self._stopped.done() or status.get("status") in ENDED:
                self.valve.handed_over()
                return False
            remaining = status.get("ram", {}).get("remaining", 0)
            known = status.get("status") == "active" and status.get("ram", {}).get("transferred", 0) > 0
            if known and remaining <= HELD_BACK:
                return True
            step = step_for(remaining, HELD_BACK) if known else SMALLEST_STEP
            self.valve.narrow(step)
            await self._read(step)

    async def _read(self, octets: int) -> None:
        until = self.valve.read_octets + octets
        while self.valve.read_octets < until:
            chunk = await self.valve.read(until - self.valve.read_octets)
            await self._channel.send_memory(chunk)

    async def _make_room(self, began: float) -> None:
        """Let the target know how much the VM is sent, for all of it will have to wait there."""
        given = self._machine.frames_given() - self._frames_before
        await self._channel.say("expect", frames_a_second=given / max(time.time() - began, LEAST_SECONDS))

    async def _switch_over(self, divert: Divert) -> None:
        await self._machine.until_quiet(await divert(self._taps))
        await self._machine.execute("stop")
        self.valve.narrow(LARGEST_STEP)
        self.valve.handed_over()
        # Both at once: when all RAM has gone QEMU answers nobody before the rest has been read.
        await both(self._let_converge(), self._pass_on())

    async def _let_converge(self) -> None:
        """An older QEMU is content when nothing remains; a newer one never is with a limit of 0."""
        if self._converges_at:
            limit = UNBOUNDED_DOWNTIME
            await self._machine.execute("migrate-set-parameters", downtime_limit=limit)

    async def _pass_on(self) -> None:
        """Pass on all that is left of the stream."""
        while chunk := await self.valve.read(LARGEST_STEP):
            await self._channel.send_memory(chunk)


async def _value(future: Awaitable[T]) -> T:
    if isinstance(future, asyncio.Future):
        return await asyncio.shield(future)
    return await future


async def _as_before(machine: QemuMachine, reason: str, on_event: OnEvent) -> None:
    """Call the migration off, where it is still under way, and make the source run on."""
    runs, waited = False, 0
    try:
        async with asyncio.timeout(RECOVERY_LIMIT):
            if await _status(machine) not in ENDED:
                with contextlib.suppress(HypervisorError):
                    await machine.execute("migrate_cancel")
                while True:
                    if await _status(machine) in ENDED:
                        break
                    await asyncio.sleep(0.005)
            if await machine.state() is not RunState.RUNNING:
                with contextlib.suppress(HypervisorError):  # A figure only: it runs on in any case.
                    waited = await machine.waiting()
                await machine.resume()
            runs = True
    except (HypervisorError, TimeoutError) as error:
        log.error("after a failed move the source does not run", vm=machine.spec.id, error=str(error))
    on_event(MigrationFailed(machine.spec.id, time.time(), reason, source_runs=runs, waited=waited))


async def _status(machine: QemuMachine) -> str:
    """The state of the source's migration; "none" before the first."""
    return str((await machine.execute("query-migrate")).get("status", "none"))


def _reason(error: BaseException, limit: float) -> str:
    if isinstance(error, TimeoutError):
        return f"not done within {limit:.0f} s"
    return "it was called off" if isinstance(error, asyncio.CancelledError) else str(error)
