"""The source's half of a migration through libvirt: libvirt migrates the VM, we hold its memory back.

libvirt is told to send the memory to a socket of ours, from where it goes to the target's agent, which brings
it to the socket of the target's QEMU. What we do not read QEMU cannot send, so

    1. The target's agent says how its libvirt is reached. libvirt opens the target there, whose port appears,
       and connects to our socket. We read nothing until we may (`opened`).
    2. We pass the memory on, in as many passes as are worth it (`hypervisor.passes`), until little remains of
       the last, and stop reading. The VM still runs.
    3. Its traffic is diverted to the target (`divert`), where it waits; what is on its way here is drained
       (`drain`).
    4. The VM is suspended, and the rest passed on: the last of it when what the VM has sent is on its way.
       libvirt ends the source and runs the VM at the target.

The target's QEMU answers on the same connection, and the source's ends only when it has.

How far QEMU runs ahead of us is what its socket holds, so that is made small by a copy of QEMU's end
(`copier`). Where that cannot be had the socket holds 208 KiB, or 90 MiB of empty pages: then there is one
pass, of which more is held back. If QEMU reaches the end before us all the same, traffic is diverted as soon
as the VM is seen to be paused, as in a migration by anybody's `virsh`.

Which of the two runs the VM when something fails is libvirt's to decide, and we do as it did.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import structlog

from retinue.core.migration.copying import LEAST_LIMIT, Postcopy, limit_for
from retinue.host.errors import HostError
from retinue.host.tap_queue import Holders
from retinue.hypervisor import rest_at_source
from retinue.hypervisor.aio import both, cancelled, first_of, run_to_completion, unless, value
from retinue.hypervisor.errors import HandedOverError, HypervisorError, reason_of
from retinue.hypervisor.interface import (
    Divert,
    MigrationFailed,
    MigrationResult,
    OnEvent,
    Opened,
    RunsElsewhere,
    Stopped,
)
from retinue.hypervisor.libvirt import resuming
from retinue.hypervisor.libvirt.connection import LACKS_MEMORY, STATE_RUNNING, LibvirtHost
from retinue.hypervisor.libvirt.copier import LibvirtCopier, qemu_end
from retinue.hypervisor.libvirt.directory import Memory
from retinue.hypervisor.libvirt.disk_copies import DiskCopies
from retinue.hypervisor.libvirt.far_end import FarEnd, say_that_it_failed
from retinue.hypervisor.libvirt.order import by_libvirt
from retinue.hypervisor.libvirt.own_monitor import OwnMonitor, no_monitor
from retinue.hypervisor.libvirt.undoing import Outcome
from retinue.hypervisor.memory_channel import Again, Channel
from retinue.hypervisor.passes import HELD_BACK, Passes
from retinue.hypervisor.rest_of_memory import STEP, send_the_rest
from retinue.hypervisor.throttle import LARGEST_STEP, SMALLEST_STEP, Throttle, nobodys_end
from retinue.protocol.hypervisor_events import EventKind, HypervisorEvent

HELD_BACK_UNSEEN = 8 << 20
"""Bytes of RAM that are left to be sent when the VM is suspended, where QEMU's end of the stream is not to be
had."""
OPEN_LIMIT = 30.0
RECOVERY_LIMIT = 10.0
DISKS_LIMIT = 2.0
"""Seconds for the copies of disks to end, when they are called off, before their connections do."""
WORD_LIMIT = 2.0
"""Seconds for the target's message that the VM runs, once libvirt here has reported the migration done."""

log = structlog.get_logger()

T = TypeVar("T")

Drain = Callable[[bool], Awaitable[None]]
"""Returns when the VM has been given all that comes for it. True: nothing more comes, see Divert."""


class LibvirtOutgoing:
    """One migration of one VM. Its channel is closed at the end."""

    def __init__(
        self,
        host: LibvirtHost,
        domain: Any,
        vm: str,
        taps: Sequence[str],
        channel: Channel,
        memory: Memory,
        own_control: str,
        on_event: OnEvent,
        drain: Drain,
        holders: Holders,
        wanted_downtime: float,
        how: Postcopy,
        disks: DiskCopies,
        step_factor: float = 1.0,
        monitor: Callable[[], Awaitable[OwnMonitor | None]] = no_monitor,
    ) -> None:
        self._open_monitor = monitor
        self._host = host
        self._domain = domain
        self._copier = LibvirtCopier(host, domain, vm)
        self._vm = vm
        self._taps = taps
        self._holders = holders
        self._wanted = wanted_downtime
        self._step_factor = step_factor
        self._required = how is Postcopy.REQUIRED
        self._how = Postcopy.NEVER if disks else how
        self._disks = disks
        self._in_postcopy = self._kept = False
        """From here on libvirt takes nothing back: see `_by_postcopy`; and the stream is left open for who
        takes the VM back all the same: see `undoing`."""
        self._channel = channel
        self._memory = memory
        self._own_control = own_control
        self._on_event = on_event
        self._drain = drain
        self._began = time.time()
        self._downtime = 0
        """What was allowed before, for whoever migrates the VM next."""
        self._stopped_at = 0.0
        self._limit, self._several = LEAST_LIMIT, False
        """How long the copy may take, in seconds; and whether there can be several passes."""
        self._passes, self._to_postcopy = 1, False
        self._throttle: Throttle | None = None
        self._libvirt: asyncio.Task[None] | None = None
        self._far = FarEnd(channel, vm)
        self._hearing: asyncio.Task[None] | None = None
        self._control = ""
        """How libvirt is to reach the target's."""
        self._paused: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        """Since when the VM stands still here, as libvirt tells it."""

    def hear(self, event: HypervisorEvent) -> None:
        """Take in an event of libvirt about the VM."""
        if event.kind is EventKind.SUSPENDED and not self._paused.done():
            self._paused.set_result(event.at)

    async def run(self, divert: Divert | None, opened: Opened | None) -> MigrationResult:
        """See Hypervisor.run_outgoing, ManagedHypervisor.run_outgoing."""
        try:
            memory, self._several = await self._copier.memory()
            self._limit = limit_for(memory, self._step_factor)
            if self._required and self._disks:
                raise HypervisorError(
                    "it has private disks, which libvirt does not copy for post-copy: it moves by pre-copy"
                )
            where = (self._memory, self._own_control, self._how)
            self._control, self._how = await self._far.where_to(*where)
            self._hear()
            with self._disks:
                await self._open(opened)
                async with asyncio.timeout(self._limit):
                    await self._copy(divert)
                return await self._result()
        except BaseException as error:
            return await self._after(error)
        finally:
            if self._hearing is not None:
                await cancelled(self._hearing)
            if not self._kept:
                self._hang_up()
            await self._channel.close()

    async def _after(self, error: BaseException) -> MigrationResult:
        """Call the migration off, as far as that is possible, and tell how it is now."""
        expected = isinstance(error, (HostError, TimeoutError, OSError))
        reason = reason_of(error, self._limit)
        outcome = await run_to_completion(self._call_off())
        self._keep_what_may_be_given_back(outcome)
        if outcome is Outcome.STAYS:
            self._on_event(MigrationFailed(self._vm, time.time(), reason, source_runs=True))
            await run_to_completion(say_that_it_failed(self._channel, reason))
            if expected:
                raise HypervisorError(f"VM {self._vm} was not migrated: {reason}") from error
        elif expected and outcome is Outcome.MIGRATED:
            log.warning("migration.completed_though_failed", vm=self._vm, reason=reason)
            return await self._result()
        elif expected:
            unknown = "runs at the target, which lacks some of its memory"
            if not (self._in_postcopy and self._far.runs.done()):
                unknown = "libvirt does not tell whether it has migrated"
            raise HandedOverError(f"VM {self._vm}: {unknown}: {reason}") from error
        raise error

    async def _call_off(self) -> Outcome:
        """End libvirt's job, where it is under way, and see that the source runs, if libvirt left it here."""
        task = self._libvirt
        if task is None:
            return Outcome.STAYS
        if not task.done():
            with contextlib.suppress(HostError):
                await self._host.call(self._domain.abortJob)
        if self._may_be_given_back and self._throttle is not None:
            self._throttle.keep_open()
        else:
            self._hang_up()
        if self._disks:
            # Where there is somebody at the other end, the copies end in order.
            await asyncio.wait({task}, timeout=DISKS_LIMIT)
            self._disks.hang_up()
        await asyncio.wait({task}, timeout=RECOVERY_LIMIT)
        if not task.done():
            return Outcome.UNKNOWN
        if task.exception() is None:
            return Outcome.MIGRATED
        try:
            state, reason = await self._host.call(self._domain.state)
            if self._in_postcopy and (state, reason) in LACKS_MEMORY:
                return Outcome.UNKNOWN
            if state != STATE_RUNNING:
                self._host.is_ours_to_resume(self._vm)
                await self._host.call(self._domain.resume)
            await self._host.call(self._domain.migrateSetMaxDowntime, self._downtime)
        except HostError as error:
            log.error("migration.source_not_resumed", vm=self._vm, error=str(error))
            return Outcome.UNKNOWN
        return Outcome.STAYS

    @property
    def _may_be_given_back(self) -> bool:
        """It was stopped for post-copy, and nobody says that it has run at the target."""
        return self._in_postcopy and not self._far.runs.done()

    def _keep_what_may_be_given_back(self, outcome: Outcome) -> None:
        if self._may_be_given_back and outcome is Outcome.UNKNOWN and self._throttle is not None:
            self._kept = True
            self._host.let_go(self._vm)
            self._host.kept[self._vm] = self._throttle

    async def _result(self) -> MigrationResult:
        """libvirt here learns that the VM runs after the target's does, whose message has the time of it."""
        await asyncio.wait({self._far.runs}, timeout=WORD_LIMIT)
        resumed_at = self._far.runs.result() if self._far.runs.done() else time.time()
        return MigrationResult(
            stopped_at=self._stopped_at or resumed_at,
            resumed_at=resumed_at,
            total_ms=(resumed_at - self._began) * 1000,
            transferred=0 if self._throttle is None else self._throttle.read_bytes,
            passes=self._passes,
        )

    # ---- the target ----

    async def _open(self, opened: Opened | None) -> None:
        """Return when the target is open, its port plugged in, its disks the same, and the source ready to
        send what it may."""
        with self._memory.listen() as listener:
            self._downtime = await self._host.call(self._domain.migrateGetMaxDowntime)
            await self._copier.set_downtime_limit(0)
            self._began = time.time()
            self._libvirt = asyncio.create_task(self._by_libvirt(), name="libvirt's migration")
            accepting = asyncio.ensure_future(asyncio.get_running_loop().sock_accept(listener))
            try:
                await self._is_open(self._disks.opened if self._disks else accepting)
                await self._channel.send_message("opened")
                if opened is not None:
                    await self._unless_failed(opened())
                stream, _ = await self._unless_failed(
                    self._disks.copied(self._copier, accepting, self._on_event, self._step_factor)
                )
            finally:
                accepting.cancel()
                self._memory.clear()
        stream.setblocking(False)
        self._throttle = self._far.throttle = Throttle((stream, nobodys_end()))

    async def _is_open(self, sign: "asyncio.Future[Any]") -> None:
        limit = OPEN_LIMIT * self._step_factor
        try:
            async with asyncio.timeout(limit):
                await self._unless_failed(value(sign))
        except TimeoutError:
            raise HypervisorError(f"libvirt did not open the target within {limit:.0f} s") from None

    async def _by_libvirt(self, *, goes_on: bool = False) -> None:
        about = (self._host, self._domain, self._control, self._memory, self._far, self._disks)
        in_postcopy = self._how is not Postcopy.NEVER
        await by_libvirt(*about, several=self._several, postcopy=in_postcopy, goes_on=goes_on)

    # ---- the copy ----

    async def _copy(self, divert: Divert | None) -> None:
        assert self._libvirt is not None and self._throttle is not None
        if divert is not None and await self._unless_failed(self._until_little_remains(self._throttle)):
            nothing_comes = await self._unless_failed(divert(self._taps))
            await self._unless_failed(self._drain(nothing_comes))
            if self._to_postcopy:
                await self._by_postcopy(self._throttle)
                return
            await self._host.call(self._domain.suspend)
            self._stopped(time.time())
        elif divert is not None:
            log.warning("migration.paused_before_diverted", vm=self._vm)
            self._stopped(self._paused.result() if self._paused.done() else time.time())
            await self._unless_failed(divert(self._taps))
        self._throttle.set_window(LARGEST_STEP)
        self._throttle.release_qemu_end()
        # Both at once: when all RAM has gone QEMU answers nobody before the rest has been read.
        passing = self._hand_over(self._throttle)
        await self._unless_failed(both(self._copier.let_converge(), passing), may_end=True)
        await self._unless_failed(asyncio.shield(self._libvirt), may_end=True)

    def _stopped(self, at: float) -> None:
        self._stopped_at = at
        self._on_event(Stopped(self._vm, at))

    async def _until_little_remains(self, throttle: Throttle) -> bool:
        """Pass memory on until little remains; False when the VM is paused before that."""
        await throttle.readable()  # Now it is QEMU that has the other end, and no longer libvirtd.
        end = await qemu_end(self._holders, self._memory)
        if end is not None:
            throttle.theirs = end
            throttle.set_window(SMALLEST_STEP)
        ends = (throttle, self._channel, self._paused)
        passes = Passes(self._copier, *ends, self._wanted, self._on_event, self._how)
        several = self._several and end is not None
        passes.begin(several=several, held_back=HELD_BACK_UNSEEN if end is None else HELD_BACK)
        try:
            return await passes.until_little_remains()
        finally:
            self._passes, self._to_postcopy = passes.number, passes.to_postcopy

    async def _by_postcopy(self, throttle: Throttle) -> None:
        """Hand the VM over with the memory that is left. libvirt takes nothing back from here on."""
        assert self._libvirt is not None
        self._in_postcopy = self._far.asks_on = True
        await self._channel.send_message("postcopy")
        await self._host.call(self._domain.migrateStartPostCopy, 0)
        throttle.set_window(STEP)
        throttle.release_qemu_end()
        passing, failed = ends = self._passing(throttle)
        try:
            await self._unless_failed(first_of(self._paused, passing), may_end=True)
            self._stopped(self._paused.result() if self._paused.done() else time.time())
            resumed_at = await self._unless_failed(value(self._far.runs), may_end=True)
            self._on_event(RunsElsewhere(self._vm, resumed_at))
            await run_to_completion(self._send_the_rest(throttle, passing, failed))
        finally:
            await cancelled(*ends)

    def _passing(self, throttle: Throttle) -> "tuple[asyncio.Task[None], asyncio.Task[str]]":
        assert self._libvirt is not None
        lost = self._far.why_lost(self._libvirt, RECOVERY_LIMIT)
        passing = asyncio.create_task(self._pass_on(throttle, STEP), name=f"memory of {self._vm}")
        return passing, asyncio.create_task(lost, name=f"post-copy of {self._vm}")

    async def _send_the_rest(
        self, throttle: Throttle, passing: "asyncio.Task[None]", failed: "asyncio.Task[str]"
    ) -> None:
        """By as many ways as it takes. Raises HypervisorError: it will not go over."""
        while True:
            assert self._libvirt is not None
            try:
                ended = (passing, self._libvirt, failed)
                await send_the_rest(self._copier, throttle, *ended, self._passes + 1, self._on_event)
                self._libvirt.result()
                return
            except HostError as error:
                if self._channel.again is None:
                    raise
                log.warning("migration.way_broken", vm=self._vm, reason=str(error))
            finally:
                await cancelled(passing, failed)
            self._hang_up()
            if self._far.own_monitor and await self._past_libvirt(self._channel.again):
                return
            known = (self._vm, self._channel, self._memory, self._libvirt)
            found = await resuming.at_source(*known, lambda: self._by_libvirt(goes_on=True))
            if found is None:
                return
            self._channel, (self._libvirt, throttle) = found
            self._throttle, self._far = throttle, self._far.by_another_way(self._channel, throttle)
            self._hear()
            passing, failed = self._passing(throttle)

    async def _past_libvirt(self, again: Again) -> bool:
        """QEMU here is told to go on by a monitor of ours, as the target's is; libvirt ends what it has of
        the migration when they have come to its end. False where there is none."""
        monitor = await self._open_monitor()
        if monitor is None:
            return False
        self._channel.abort()
        try:
            await rest_at_source.send(monitor, again, self._on_event, compress=self._channel.compress)
        finally:
            await monitor.close()
        if self._libvirt is not None:
            await asyncio.wait({self._libvirt}, timeout=RECOVERY_LIMIT)
            if self._libvirt.done():
                self._libvirt.exception()  # It may have failed before we went on.
        return True

    def _hear(self) -> None:
        """Take in what comes from the target, from now on."""
        self._hearing = asyncio.create_task(self._far.hear(), name=f"answers about {self._vm}")

    async def _pass_on(self, throttle: Throttle, step: int = LARGEST_STEP) -> None:
        while chunk := await throttle.read(step):
            await self._channel.send_memory(chunk)
        await self._channel.send_memory(b"")

    async def _hand_over(self, throttle: Throttle) -> None:
        """Pass the rest on, but what was read last, without which the target does not run the VM, when it
        may. The end of the stream tells nothing: QEMU ends it when the target has answered."""
        allowed = asyncio.ensure_future(self._channel.may_hand_over())
        reading = asyncio.ensure_future(throttle.read(LARGEST_STEP))
        last = b""
        try:
            while not allowed.done():
                await asyncio.wait({allowed, reading}, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    if last:
                        await self._channel.send_memory(last)
                    last = reading.result()
                    if not last:
                        break
                    reading = asyncio.ensure_future(throttle.read(LARGEST_STEP))
            await allowed
            if last:
                await self._channel.send_memory(last)
            while chunk := await reading:
                await self._channel.send_memory(chunk)
                reading = asyncio.ensure_future(throttle.read(LARGEST_STEP))
        finally:
            await cancelled(allowed, reading)
        await self._channel.send_memory(b"")

    def _hang_up(self) -> None:
        if self._throttle is not None:
            self._throttle.close()

    async def _unless_failed(self, work: Awaitable[T], *, may_end: bool = False) -> T:
        """The result of the work. Raises HypervisorError when libvirt or the target gives up first.

        `may_end`: that libvirt has migrated the VM is no failure.
        """
        failed = asyncio.create_task(self._why_it_cannot_go_on(may_end))
        try:
            return await unless(failed, work)
        finally:
            await cancelled(failed)

    async def _why_it_cannot_go_on(self, may_end: bool) -> str:
        """Returns when libvirt or the target has given up. Raises libvirt's own error, where there is one."""
        assert self._libvirt is not None
        watched: set[asyncio.Future[Any]] = {self._libvirt, self._far.broken, self._disks.failed}
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        if not self._libvirt.done():
            return (self._disks.failed if self._disks.failed.done() else self._far.broken).result()
        self._libvirt.result()
        if may_end:
            # libvirt has migrated the VM: nothing can fail any more, and what is left to do will be done.
            await asyncio.Event().wait()
        return "libvirt ended the migration before its time"
