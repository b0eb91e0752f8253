"""Live migration of one QEMU into another, in one pass.

QEMU before 9.0 loses pages when, on an emulated processor, it looks more than once at which pages were
written while the guest runs (its commit 03bfc2188f06 tells). How often it looks follows from one parameter:

* QEMU before 8.0 looks when what remains is less than bandwidth times `downtime-limit`. With a limit of 0 it
  never looks: it sends every page once, stops the guest, and sends those written meanwhile. The pause is as
  short as it can be.
* A newer one looks when nothing remains, too, and would never be content with a limit of 0. In 8.x a limit
  beyond all measure makes the first look the last one, at the price of a longer pause; from 9.0 looking is
  safe.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from retinue.hypervisor.interface import (
    Gate,
    HypervisorError,
    MigrationFailed,
    MigrationResult,
    OnEvent,
    Resumed,
    Stopped,
    open_gate,
)
from retinue.hypervisor.machine import GONE, EventQueue, QemuMachine, QMPEvent, event_time

MIGRATION_LIMIT = 60.0
"""Seconds from the order to move until the VM runs on the target."""
RECOVERY_LIMIT = 10.0
UNBOUNDED_BANDWIDTH = 1 << 40
ENDED = ("none", "completed", "failed", "cancelled")

log = structlog.get_logger()


def downtime_limit(version: Sequence[int]) -> int:
    """The `downtime-limit` in ms for a source of this version (major, minor, micro); see the module."""
    if version[0] < 8:
        return 0
    return 2_000_000 if version[0] < 9 else 300


async def migrate(
    source: QemuMachine,
    target: QemuMachine,
    uri: str,
    on_event: OnEvent,
    gate: Gate = open_gate,
    *,
    bandwidth: int = UNBOUNDED_BANDWIDTH,
    limit: float = MIGRATION_LIMIT,
) -> MigrationResult:
    """See Hypervisor.migrate. `bandwidth` is in octets a second, `limit` in seconds."""
    vm = source.spec.id
    progress = _Progress(vm, on_event)
    heard: EventQueue = asyncio.Queue()
    with source.events_into(heard), target.events_into(heard):
        try:
            async with asyncio.timeout(limit):
                await _prepare(source, target, uri, bandwidth)
                progress.began = time.time()
                await source.execute("migrate", uri=uri)
                while not progress.done:
                    machine, event = await heard.get()
                    (progress.source_says if machine is source else progress.target_says)(event)
                    if progress.may_run:
                        progress.released = True
                        await gate()
                        await target.execute("cont")
        except BaseException as error:
            if progress.resumed_at is None:
                reason = _reason(error, limit)
                await asyncio.shield(_as_before(source, target, heard, reason, on_event))
                if isinstance(error, (HypervisorError, TimeoutError)):
                    raise HypervisorError(f"VM {vm} was not moved: {reason}") from error
                raise
            if not isinstance(error, (HypervisorError, TimeoutError)):
                raise
            log.warning("the VM has moved, but its source does not confirm", vm=vm, error=str(error))
    return progress.result(await _statistics(source))


async def _prepare(source: QemuMachine, target: QemuMachine, uri: str, bandwidth: int) -> None:
    for machine in (source, target):
        capabilities = [{"capability": "events", "state": True}]
        await machine.execute("migrate-set-capabilities", capabilities=capabilities)
    version = (await source.execute("query-version"))["qemu"]
    allowed = downtime_limit((version["major"], version["minor"], version["micro"]))
    await source.execute("migrate-set-parameters", max_bandwidth=bandwidth, downtime_limit=allowed)
    await target.execute("migrate-incoming", uri=uri)


@dataclass
class _Progress:
    vm: str
    on_event: OnEvent
    began: float = 0.0
    stopped_at: float | None = None
    resumed_at: float | None = None
    completed: bool = False
    loaded: bool = False
    released: bool = False

    @property
    def may_run(self) -> bool:
        """All of the VM is at the target, which waits to be told to run it."""
        return self.loaded and not self.released

    @property
    def done(self) -> bool:
        """The VM runs on the target, and the source knows that it does."""
        return self.completed and self.resumed_at is not None

    def source_says(self, event: QMPEvent) -> None:
        match event["event"], event.get("data", {}).get("status"):
            case "STOP", _:
                self.stopped_at = event_time(event)
                self.on_event(Stopped(self.vm, self.stopped_at))
            case "MIGRATION", "completed":
                self.completed = True
            case "MIGRATION", "failed" | "cancelled" | "cancelling":
                raise HypervisorError("the source gave up")
            case name, _ if name == GONE:
                raise HypervisorError("the source has ended")

    def target_says(self, event: QMPEvent) -> None:
        match event["event"], event.get("data", {}).get("status"):
            case "RESUME", _:
                self.resumed_at = event_time(event)
                self.on_event(Resumed(self.vm, self.resumed_at))
            case "MIGRATION", "completed":
                self.loaded = True
            case "MIGRATION", "failed":
                raise HypervisorError("the target could not take the VM in")
            case name, _ if name == GONE:
                raise HypervisorError("the target has ended")

    def result(self, statistics: dict[str, Any]) -> MigrationResult:
        assert self.resumed_at is not None
        ram = statistics.get("ram", {})
        return MigrationResult(
            stopped_at=self.resumed_at if self.stopped_at is None else self.stopped_at,
            resumed_at=self.resumed_at,
            total_ms=(self.resumed_at - self.began) * 1000,
            transferred=ram.get("transferred", 0),
            passes=ram.get("dirty-sync-count", 0),
        )


async def _as_before(
    source: QemuMachine,
    target: QemuMachine,
    heard: EventQueue,
    reason: str,
    on_event: OnEvent,
) -> None:
    """The target ends, then the source runs on. In this order: the VM must never run twice."""
    target.kill()
    await target.quit()
    runs = False
    try:
        async with asyncio.timeout(RECOVERY_LIMIT):
            runs = await _run_on(source, heard)
    except (HypervisorError, TimeoutError) as error:
        log.error("after a failed move the source does not run", vm=source.spec.id, error=str(error))
    on_event(MigrationFailed(source.spec.id, time.time(), reason, source_runs=runs))


async def _run_on(source: QemuMachine, heard: EventQueue) -> bool:
    """Call the migration off where it is still under way, and make the source run. True when it does."""
    if await _status(source) not in ENDED:
        await source.execute("migrate_cancel")
        while await _status(source) not in ENDED:
            await heard.get()
    await source.resume()
    return True


async def _status(source: QemuMachine) -> str:
    """The state of the source's migration; "none" before the first."""
    return str((await source.execute("query-migrate")).get("status", "none"))


async def _statistics(source: QemuMachine) -> dict[str, Any]:
    try:
        statistics: dict[str, Any] = await source.execute("query-migrate")
    except HypervisorError:
        return {}
    return statistics


def _reason(error: BaseException, limit: float) -> str:
    if isinstance(error, TimeoutError):
        return f"not done within {limit:.0f} s"
    return "it was called off" if isinstance(error, asyncio.CancelledError) else str(error)
