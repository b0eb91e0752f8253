"""The source's half of a migration through libvirt: libvirt migrates the VM, we hold its memory back.

libvirt is told to send the memory to a socket of ours, from where it goes to the target's agent, which brings
it to the socket of the target's QEMU. What we do not read QEMU cannot send, so

    1. The target's agent says how its libvirt is reached. libvirt opens the target there, whose port appears,
       and connects to our socket. We read nothing until we may (`opened`).
    2. We pass the memory on until little remains, and stop reading. The VM still runs.
    3. Its traffic is diverted to the target (`divert`), where it waits; what is on its way here is drained
       (`drain`).
    4. The VM is suspended, and the rest passed on. libvirt ends the source and runs the VM at the target.

The target's QEMU answers on the same connection, and the source's ends only when it has.

QEMU must not think that little enough remains before we do: its `downtime-limit` is 0 until step 4 (see
`qemu.outgoing` on what QEMU does with it). How far QEMU runs ahead of us is what its socket holds, 208 KiB,
and its own buffer of 32 KiB; should empty pages be all that remains, which take 9 bytes each, QEMU may reach
the end before us. Then traffic is diverted as soon as the VM is seen to be paused, as in a migration by
anybody's `virsh`.

Which of the two runs the VM when something fails is libvirt's to decide, and we do as it did.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto
from typing import Any, TypeVar

import structlog

from retinue.core.migration.copying import LEAST_LIMIT, limit_for
from retinue.host.errors import HostError
from retinue.hypervisor.aio import run_to_completion, unless
from retinue.hypervisor.errors import HandedOverError, HypervisorError
from retinue.hypervisor.interface import (
    Copying,
    Divert,
    MigrationFailed,
    MigrationResult,
    OnEvent,
    Opened,
    Stopped,
)
from retinue.hypervisor.libvirt.connection import STATE_RUNNING, LibvirtHost
from retinue.hypervisor.libvirt.directory import Memory
from retinue.hypervisor.libvirt.migration_uri import accepted
from retinue.hypervisor.memory_channel import Channel

LIVE, PEER2PEER, PERSIST_DEST, UNDEFINE_SOURCE = 1, 2, 8, 16
"""virDomainMigrateFlags."""
MIGRATE_URI = "migrate_uri"
"""VIR_MIGRATE_PARAM_URI."""
HELD_BACK = 8 << 20
"""Bytes of RAM that are left to be sent when the VM is suspended."""
PROGRESS_SECONDS = 1.0
"""Between two words about how far the copy is."""
LARGE_STEP, SMALL_STEP = 1 << 20, 1 << 18
UNBOUNDED_DOWNTIME = 2_000_000
"""Milliseconds, the most QEMU takes: it converges at the next look."""
OPEN_LIMIT = 30.0
RECOVERY_LIMIT = 10.0
WORD_LIMIT = 2.0
"""Seconds for the target's message that the VM runs, once libvirt here has reported the migration done."""

log = structlog.get_logger()

T = TypeVar("T")

Drain = Callable[[bool], Awaitable[None]]
"""Returns when the VM has been given all that comes for it. True: nothing more comes, see Divert."""


class Outcome(Enum):
    """How libvirt's migration ended."""

    STAYS = auto()
    MIGRATED = auto()
    UNKNOWN = auto()
    """libvirt here cannot be asked, or has the VM no more."""


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
    ) -> None:
        self._host = host
        self._domain = domain
        self._vm = vm
        self._taps = taps
        self._channel = channel
        self._memory = memory
        self._own_control = own_control
        self._on_event = on_event
        self._drain = drain
        self._began = time.time()
        self._downtime = 0
        """What was allowed before, for whoever migrates the VM next."""
        self._stopped_at = self._told_at = 0.0
        self._limit, self._until = LEAST_LIMIT, asyncio.timeout(None)
        """How long the copy may take: more, when libvirt has told how much memory there is."""
        self._transferred = self._passes = 0
        """As libvirt has last told, while the VM ran here."""
        self._stream: socket.socket | None = None
        self._libvirt: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        self._broken: asyncio.Future[str] = loop.create_future()
        """Why the target's agent takes no part any more."""
        self._runs: asyncio.Future[float] = loop.create_future()

    async def run(self, divert: Divert | None, opened: Opened | None) -> MigrationResult:
        """See Hypervisor.run_outgoing, ManagedHypervisor.run_outgoing."""
        hearing: asyncio.Task[None] | None = None
        try:
            control = await self._where_to()
            hearing = asyncio.create_task(self._hear(), name=f"answers about {self._vm}")
            await self._open(control)
            if opened is not None:
                await self._unless_failed(opened())
            async with asyncio.timeout(self._limit) as self._until:
                await self._copy(divert)
            return await self._result()
        except BaseException as error:
            return await self._after(error)
        finally:
            if hearing is not None:
                hearing.cancel()
                await asyncio.gather(hearing, return_exceptions=True)
            self._hang_up()
            await self._channel.close()

    async def _after(self, error: BaseException) -> MigrationResult:
        """Call the migration off, as far as that is possible, and tell how it is now."""
        expected = isinstance(error, (HostError, TimeoutError, OSError))
        reason = _reason(error, self._limit)
        outcome = await run_to_completion(self._call_off())
        if outcome is Outcome.STAYS:
            self._on_event(MigrationFailed(self._vm, time.time(), reason, source_runs=True))
            if expected:
                raise HypervisorError(f"VM {self._vm} was not migrated: {reason}") from error
        elif expected and outcome is Outcome.MIGRATED:
            log.warning("migration.completed_though_failed", vm=self._vm, reason=reason)
            return await self._result()
        elif expected:
            raise HandedOverError(
                f"VM {self._vm}: libvirt does not tell whether it has migrated: {reason}"
            ) from error
        raise error

    async def _call_off(self) -> Outcome:
        """End libvirt's job, where it is under way, and see that the source runs, if libvirt left it here."""
        task = self._libvirt
        if task is None:
            return Outcome.STAYS
        if not task.done():
            with contextlib.suppress(HostError):
                await self._host.call(self._domain.abortJob)
        self._hang_up()
        await asyncio.wait({task}, timeout=RECOVERY_LIMIT)
        if not task.done():
            return Outcome.UNKNOWN
        if task.exception() is None:
            return Outcome.MIGRATED
        try:
            state, _ = await self._host.call(self._domain.state)
            if state != STATE_RUNNING:
                await self._host.call(self._domain.resume)
            await self._host.call(self._domain.migrateSetMaxDowntime, self._downtime)
        except HostError as error:
            log.error("migration.source_not_resumed", vm=self._vm, error=str(error))
            return Outcome.UNKNOWN
        return Outcome.STAYS

    async def _result(self) -> MigrationResult:
        """libvirt here learns that the VM runs after the target's does, whose message has the time of it."""
        await asyncio.wait({self._runs}, timeout=WORD_LIMIT)
        resumed_at = self._runs.result() if self._runs.done() else time.time()
        return MigrationResult(
            stopped_at=self._stopped_at or resumed_at,
            resumed_at=resumed_at,
            total_ms=(resumed_at - self._began) * 1000,
            transferred=self._transferred,
            passes=self._passes,
        )

    # ---- the target ----

    async def _where_to(self) -> str:
        """How libvirt is to reach the target's, as the target's agent says it."""
        try:
            async with asyncio.timeout(OPEN_LIMIT):
                message = await self._channel.receive_message()
        except TimeoutError:
            raise HypervisorError("the target does not say how its libvirt is reached") from None
        if message["type"] != "target" or not isinstance(message.get("control"), str):
            raise HypervisorError(f"the target says {message['type']!r}, not how its libvirt is reached")
        if message.get("memory") != str(self._memory.inside):
            raise HypervisorError(
                f"the target takes the memory in at {message.get('memory')}, and here it is sent to "
                f"{self._memory.inside}: [libvirt] folder must be the same on both servers"
            )
        return accepted(message["control"], self._own_control)

    async def _open(self, control: str) -> None:
        """Return when the target is open, its port plugged in, and the source ready to send."""
        with self._memory.listen() as listener:
            self._downtime = await self._host.call(self._domain.migrateGetMaxDowntime)
            await self._host.call(self._domain.migrateSetMaxDowntime, 0)
            self._began = time.time()
            self._libvirt = asyncio.create_task(self._by_libvirt(control), name="libvirt's migration")
            try:
                async with asyncio.timeout(OPEN_LIMIT):
                    accepting = asyncio.get_running_loop().sock_accept(listener)
                    stream, _ = await self._unless_failed(accepting)
            except TimeoutError:
                raise HypervisorError(f"libvirt did not open the target within {OPEN_LIMIT:.0f} s") from None
            finally:
                self._memory.clear()
        stream.setblocking(False)
        self._stream = stream
        await self._channel.send_message("opened")

    async def _by_libvirt(self, control: str) -> None:
        flags = LIVE | PEER2PEER
        if await self._host.call(self._domain.isPersistent):
            flags |= PERSIST_DEST | UNDEFINE_SOURCE
        parameters = {MIGRATE_URI: f"unix://{self._memory.inside}"}
        async with self._host.apart(self._domain) as domain:
            await self._host.call(domain.migrateToURI3, control, parameters, flags)

    async def _hear(self) -> None:
        """Bring the target's answers to the source, and hear how it went there."""
        try:
            while not self._runs.done() and not self._broken.done():
                match await self._channel.receive():
                    case bytes() as nbytes:
                        await self._answer(nbytes)
                    case {"type": "running", "at": float() | int() as at}:
                        self._runs.set_result(float(at))
                    case other:
                        why = other.get("reason", f"it says {other['type']!r}")
                        self._broken.set_result(f"the target could not take the VM in: {why}")
        except HostError as error:
            self._broken.set_result(str(error))

    async def _answer(self, nbytes: bytes) -> None:
        with contextlib.suppress(OSError):  # QEMU has hung up: libvirt says what became of it
            if self._stream is None:
                raise HypervisorError("the target answers before it is asked")
            if nbytes:
                await asyncio.get_running_loop().sock_sendall(self._stream, nbytes)
            else:
                self._stream.shutdown(socket.SHUT_WR)

    # ---- the copy ----

    async def _copy(self, divert: Divert | None) -> None:
        assert self._libvirt is not None
        if divert is not None and await self._unless_failed(self._hold_back()):
            nothing_comes = await self._unless_failed(divert(self._taps))
            await self._unless_failed(self._drain(nothing_comes))
            await self._host.call(self._domain.suspend)
            self._stopped()
        elif divert is not None:
            log.warning("migration.paused_before_diverted", vm=self._vm)
            self._stopped()
            await self._unless_failed(divert(self._taps))
        with contextlib.suppress(HostError):  # it may have converged by itself
            await self._host.call(self._domain.migrateSetMaxDowntime, UNBOUNDED_DOWNTIME)
        await self._unless_failed(self._pass_on(), may_end=True)
        await self._unless_failed(asyncio.shield(self._libvirt), may_end=True)

    def _stopped(self) -> None:
        self._stopped_at = time.time()
        self._on_event(Stopped(self._vm, self._stopped_at))

    async def _hold_back(self) -> bool:
        """Pass memory on until little remains; False when the VM is paused before that."""
        while True:
            job = await self._host.call(self._domain.jobStats)
            remaining = job.get("memory_remaining", 0)
            known = job.get("memory_processed", 0) > 0
            if known:
                self._tell(job)
            if known and 0 < remaining <= HELD_BACK:
                return True
            state, _ = await self._host.call(self._domain.state)
            if state != STATE_RUNNING:
                return False
            chunk = await self._read(LARGE_STEP if remaining > 2 * HELD_BACK else SMALL_STEP)
            if not chunk:
                return False
            await self._channel.send_memory(chunk)

    def _tell(self, job: dict[str, Any]) -> None:
        """How far the copy is, by libvirt's statistics (virDomainGetJobStats): now and then."""
        if not self._passes:
            limit = limit_for(int(job.get("memory_total", 0)))
            self._until.reschedule(asyncio.get_running_loop().time() + limit)
            self._limit = limit
        self._transferred = int(job.get("memory_processed", 0))
        self._passes = int(job.get("memory_iteration", 1)) or 1
        if (now := time.time()) - self._told_at >= PROGRESS_SECONDS:
            self._told_at = now
            written = int(job.get("memory_dirty_rate", 0)) * int(job.get("memory_page_size", 0))
            left = int(job.get("memory_remaining", 0))
            self._on_event(Copying(self._vm, now, self._passes, left, written))

    async def _pass_on(self) -> None:
        while chunk := await self._read(LARGE_STEP):
            await self._channel.send_memory(chunk)
        await self._channel.send_memory(b"")

    async def _read(self, nbytes: int) -> bytes:
        assert self._stream is not None
        return await asyncio.get_running_loop().sock_recv(self._stream, nbytes)

    def _hang_up(self) -> None:
        if self._stream is not None:
            self._stream.close()

    async def _unless_failed(self, work: Awaitable[T], *, may_end: bool = False) -> T:
        """The result of the work. Raises HypervisorError when libvirt or the target gives up first.

        `may_end`: that libvirt has migrated the VM is no failure.
        """
        failed = asyncio.create_task(self._why_it_cannot_go_on(may_end))
        try:
            return await unless(failed, work)
        finally:
            failed.cancel()
            await asyncio.gather(failed, return_exceptions=True)

    async def _why_it_cannot_go_on(self, may_end: bool) -> str:
        """Returns when libvirt or the target has given up. Raises libvirt's own error, where there is one."""
        assert self._libvirt is not None
        watched: set[asyncio.Future[Any]] = {self._libvirt, self._broken}
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        if not self._libvirt.done():
            return self._broken.result()
        self._libvirt.result()
        if may_end:
            # libvirt has migrated the VM: nothing can fail any more, and what is left to do will be done.
            await asyncio.Event().wait()
        return "libvirt ended the migration before its time"


def _reason(error: BaseException, limit: float) -> str:
    if isinstance(error, TimeoutError):
        return f"not done within {limit:.0f} s"
    return "it was called off" if isinstance(error, asyncio.CancelledError) else str(error)
