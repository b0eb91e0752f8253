"""A live migration through libvirt in which nothing is lost: libvirt moves the VM, we hold its memory back.

libvirt is told to send the memory to a socket of ours beside the source, from where we pass it on to the
target's. What we do not read QEMU cannot send, so

    1. `begin`: libvirt opens the target, its port appears, and the source starts to send; we read nothing.
    2. `run`: we pass the memory on until little remains, and stop reading. The VM runs on.
    3. Its traffic is turned to the target (`divert`), where it waits; what is on its way arrives (`drain`).
    4. The VM is suspended, and the rest passed on. libvirt ends the source and runs the VM at the target.

QEMU must not think that little enough remains before we do: its `downtime-limit` is 0 until step 4 (see
`departure` on what it does with it). How far it runs ahead of us is what its socket holds, 208 KiB, and its
own buffer of 32 KiB; should empty pages be all that remains, which take 9 octets each, it may slip through.
Then traffic is turned as soon as the VM is seen to stand still, as in a move by anybody's `virsh`.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import structlog

from retinue.hypervisor.interface import (
    Divert,
    HypervisorError,
    MigrationFailed,
    MigrationResult,
    OnEvent,
    Stopped,
    ignore,
)
from retinue.hypervisor.libvirt_host import STATE_RUNNING, LibvirtHost
from retinue.hypervisor.machine import QUIET, QUIET_LIMIT, frames_given

LIVE, PEER2PEER, PERSIST_DEST, UNDEFINE_SOURCE = 1, 2, 8, 16
"""virDomainMigrateFlags."""
MIGRATE_URI = "migrate_uri"
"""VIR_MIGRATE_PARAM_URI."""
HELD_BACK = 16 << 20
"""Octets of RAM that are left to be sent when the VM is suspended."""
LARGE_STEP, SMALL_STEP = 1 << 20, 1 << 18
UNBOUNDED_DOWNTIME = 2_000_000
"""Milliseconds, the most QEMU takes: it converges at the next look."""
OPEN_LIMIT = 30.0
MOVE_LIMIT = 60.0
RECOVERY_LIMIT = 10.0


class Way(Protocol):
    """The connection to the target's socket. QEMU answers on it: it ends the move only when told to."""

    async def open(self) -> None: ...

    async def send(self, octets: bytes) -> None:
        """No octets are the end."""

    async def receive(self) -> bytes:
        """What the target answers; nothing at the end."""

    def close(self) -> None: ...


log = structlog.get_logger()


async def nothing_on_its_way() -> None:
    """For a caller who cannot see what the VM has yet to receive."""


async def until_quiet(pid: int, tap: str) -> None:
    """Return when a tap, in the network of that process, has given its VM no frame for a while."""
    until, before = time.monotonic() + QUIET_LIMIT, -1
    while before != (now := frames_given(pid, tap)) and time.monotonic() < until:
        before = now
        await asyncio.sleep(QUIET)


class LibvirtMove:
    """One move of one VM, on the source's side. Raises HypervisorError; the VM then runs where it was.

    `control` is the target's libvirt as the source's reaches it ("qemu+tcp://..."); `inside` is a path for
    the memory's socket as both libvirts see it, `outside` the source's as we see it. After `begin` failed, or
    was called off, nothing is left.
    """

    def __init__(
        self, host: LibvirtHost, domain: Any, vm: str, control: str, inside: Path, outside: Path
    ) -> None:
        self._host = host
        self._domain = domain
        self._vm = vm
        self._control = control
        self._inside = inside
        self._outside = outside
        self._stream: socket.socket | None = None
        self._libvirt: asyncio.Task[None] | None = None
        self._began = 0.0

    async def begin(self) -> None:
        """Return when the target is open, its port plugged in, and the source ready to send."""
        self._outside.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(self._outside))
            listener.listen(1)
            listener.setblocking(False)
            await self._host.call(self._domain.migrateSetMaxDowntime, 0)
            self._began = time.time()
            self._libvirt = asyncio.create_task(self._by_libvirt(), name=f"libvirt moves {self._vm}")
            accepting = asyncio.ensure_future(asyncio.get_running_loop().sock_accept(listener))
            try:
                await asyncio.wait(
                    {accepting, self._libvirt}, timeout=OPEN_LIMIT, return_when=asyncio.FIRST_COMPLETED
                )
                if accepting.done():
                    self._stream, _ = accepting.result()
                    self._stream.setblocking(False)
                    return
            finally:
                accepting.cancel()
                self._outside.unlink(missing_ok=True)
        if self._libvirt.done():
            self._libvirt.result()
        await self.call_off()
        raise HypervisorError(f"VM {self._vm}: libvirt did not open the target within {OPEN_LIMIT:.0f} s")

    async def run(
        self,
        way: Way,
        divert: Divert | None = None,
        on_event: OnEvent = ignore,
        drain: Callable[[], Awaitable[None]] = nothing_on_its_way,
    ) -> MigrationResult:
        """Copy, divert, stop, and let libvirt finish; returns when the VM runs at the target.

        When it fails, or is cancelled, the source runs on and MigrationFailed is told.
        """
        answers: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(MOVE_LIMIT):
                await way.open()
                answers = asyncio.create_task(self._answers(way), name=f"answers about {self._vm}")
                return await self._run(way, divert, on_event, drain)
        except BaseException as error:
            reason = "it was called off" if isinstance(error, asyncio.CancelledError) else str(error)
            if isinstance(error, TimeoutError):
                reason = f"not done within {MOVE_LIMIT:.0f} s"
            runs = await asyncio.shield(self.call_off())
            on_event(MigrationFailed(self._vm, time.time(), reason, source_runs=runs))
            if isinstance(error, HypervisorError | TimeoutError | OSError):
                raise HypervisorError(f"VM {self._vm} was not moved: {reason}") from error
            raise
        finally:
            if answers is not None:
                answers.cancel()
                await asyncio.gather(answers, return_exceptions=True)
            way.close()
            self._close()

    async def call_off(self) -> bool:
        """End libvirt's job, where it is under way, and see that the source runs. True when it does."""
        task = self._libvirt
        if task is not None and not task.done():
            with contextlib.suppress(HypervisorError):
                await self._host.call(self._domain.abortJob)
        self._close()
        if task is not None and not task.done():
            await asyncio.wait({task}, timeout=RECOVERY_LIMIT)
        if task is not None and task.done() and not task.cancelled() and task.exception() is None:
            return False  # It has moved all the same.
        try:
            state, _ = await self._host.call(self._domain.state)
            if state != STATE_RUNNING:
                await self._host.call(self._domain.resume)
        except HypervisorError as error:
            log.error("after a failed move the source does not run", vm=self._vm, error=str(error))
            return False
        return True

    # ---- steps ----

    async def _by_libvirt(self) -> None:
        flags = LIVE | PEER2PEER
        if await self._host.call(self._domain.isPersistent):
            flags |= PERSIST_DEST | UNDEFINE_SOURCE
        parameters = {MIGRATE_URI: f"unix://{self._inside}"}
        await self._host.call(self._domain.migrateToURI3, self._control, parameters, flags)

    async def _run(
        self, way: Way, divert: Divert | None, on_event: OnEvent, drain: Callable[[], Awaitable[None]]
    ) -> MigrationResult:
        assert self._libvirt is not None
        stopped_at = 0.0
        if divert is not None and await self._unless_failed(self._hold_back(way)):
            await self._unless_failed(divert())
            await self._unless_failed(drain())
            await self._host.call(self._domain.suspend)
            stopped_at = time.time()
            on_event(Stopped(self._vm, stopped_at))
        elif divert is not None:
            log.warning("the VM stood still before its traffic was diverted", vm=self._vm)
            stopped_at = time.time()
            on_event(Stopped(self._vm, stopped_at))
            await self._unless_failed(divert())
        with contextlib.suppress(HypervisorError):  # it may have converged by itself
            await self._host.call(self._domain.migrateSetMaxDowntime, UNBOUNDED_DOWNTIME)
        while chunk := await self._read(LARGE_STEP):
            await way.send(chunk)
        await way.send(b"")
        await asyncio.shield(self._libvirt)
        now = time.time()
        return MigrationResult(
            stopped_at=stopped_at or now,
            resumed_at=now,
            total_ms=(now - self._began) * 1000,
            transferred=0,
            passes=0,
        )

    async def _hold_back(self, way: Way) -> bool:
        """Pass memory on until little remains; False when the VM stands still before that."""
        while True:
            job = await self._host.call(self._domain.jobStats)
            remaining = job.get("memory_remaining", 0)
            known = job.get("memory_processed", 0) > 0
            if known and 0 < remaining <= HELD_BACK:
                return True
            state, _ = await self._host.call(self._domain.state)
            if state != STATE_RUNNING:
                return False
            step = LARGE_STEP if remaining > 2 * HELD_BACK else SMALL_STEP
            chunk = await self._read(step)
            if not chunk:
                return False
            await way.send(chunk)

    async def _answers(self, way: Way) -> None:
        """Bring the target's answers to the source."""
        assert self._stream is not None
        with contextlib.suppress(OSError):  # whoever hangs up is seen by the one who sends
            while octets := await way.receive():
                await asyncio.get_running_loop().sock_sendall(self._stream, octets)

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    async def _read(self, octets: int) -> bytes:
        assert self._stream is not None
        return await asyncio.get_running_loop().sock_recv(self._stream, octets)

    async def _unless_failed(self, work: Awaitable[Any]) -> Any:
        """What the work gives. Raises HypervisorError when libvirt gives up first."""
        assert self._libvirt is not None
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self._libvirt}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self._libvirt.result()
                raise HypervisorError("libvirt ended the move before its time")
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


class UnixWay:
    """To a target's socket on this machine: for a laboratory, where one process serves both servers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: socket.socket | None = None

    async def open(self) -> None:
        self._stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._stream.setblocking(False)
        await asyncio.get_running_loop().sock_connect(self._stream, str(self._path))

    async def send(self, octets: bytes) -> None:
        assert self._stream is not None
        if octets:
            await asyncio.get_running_loop().sock_sendall(self._stream, octets)
        else:
            self._stream.shutdown(socket.SHUT_WR)

    async def receive(self) -> bytes:
        assert self._stream is not None
        return await asyncio.get_running_loop().sock_recv(self._stream, SMALL_STEP)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
