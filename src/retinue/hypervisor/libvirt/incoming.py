"""The target's half of a migration through libvirt: bring the memory from the source's agent to libvirt's
QEMU.

libvirt opens the target when the source's tells it to, and runs the VM when all of it has come; so we only
tell how libvirt is reached here, pass the memory in and QEMU's answers out, and hear from libvirt that the VM
runs.

In post-copy libvirt runs it before that, with some of its memory still at the source: we say so, pass QEMU's
questions for it out, and end a VM whose memory does not come.

A libvirtd that is away ends no VM: in post-copy it is waited for, and asked.

When something fails before the VM runs we hang up, which is enough: QEMU then fails, or libvirt has it all
and decides. What it decided is asked for before anything is told.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import structlog

from retinue.core.text import cut, printable
from retinue.host.errors import HostError
from retinue.hypervisor import recovering
from retinue.hypervisor.aio import cancelled, close_socket, first_of, run_to_completion, unless, value
from retinue.hypervisor.errors import HandedOverError, HypervisorError
from retinue.hypervisor.interface import DiskSpec, OnEvent, Resumed
from retinue.hypervisor.libvirt import resuming
from retinue.hypervisor.libvirt.connection import LACKS_MEMORY, STATE_RUNNING, LibvirtHost
from retinue.hypervisor.libvirt.directory import Memory
from retinue.hypervisor.libvirt.disks_xml import files_of
from retinue.hypervisor.libvirt.own_monitor import OwnMonitor, no_monitor
from retinue.hypervisor.memory_channel import Channel
from retinue.hypervisor.monitor import EventQueue
from retinue.hypervisor.rest_of_memory import STALL_LIMIT
from retinue.protocol.hypervisor_events import EventKind, HypervisorEvent

OPEN_LIMIT = 40.0
"""Seconds from the message that says how libvirt is reached until libvirt has opened the target."""
RUN_LIMIT = 30.0
"""Seconds from the memory's end until the VM runs."""
SETTLE_LIMIT = 10.0
"""Seconds for libvirt to decide a migration that has failed; a target that waits still is ended then."""
AWAY_LIMIT = 120.0
"""Seconds that a libvirtd which is away is waited for: what became of a VM in post-copy it alone knows."""
LOOK_SECONDS, AGAIN_SECONDS = 0.05, 0.5
"""Between two looks, besides libvirt's own events; and between two attempts to reach a libvirtd."""
READ_BYTES = 1 << 16

log = structlog.get_logger()

T = TypeVar("T")


class _AwayError(HypervisorError):
    """libvirtd does not come back."""


class LibvirtIncoming:
    """One incoming migration; `events` are libvirt's about its VM. The channel is closed at the end."""

    def __init__(
        self,
        host: LibvirtHost,
        vm: str,
        channel: Channel,
        memory: Memory,
        control: str,
        events: "asyncio.Queue[HypervisorEvent]",
        *,
        postcopy: bool = False,
        disks: Sequence[DiskSpec] = (),
        monitor: Callable[[], Awaitable[OwnMonitor | None]] = no_monitor,
    ) -> None:
        """`disks`: the VM's, of which the shared ones are known to be the source's. `monitor` opens ours."""
        self._host = host
        self._vm = vm
        self._channel = channel
        self._memory = memory
        self._control = control
        self._events = events
        self._disks = disks
        self._postcopy = postcopy
        """This server can run a VM before all of its memory is there."""
        self._open_monitor = monitor
        self._monitor: OwnMonitor | None = None
        self._paused = asyncio.Event()
        """As that tells, the rest does not come by the way it has."""
        self._ran = False
        self._tasks: list[asyncio.Task[Any]] = []
        self._stream: socket.socket | None = None
        loop = asyncio.get_running_loop()
        self._resumed: asyncio.Future[float] = loop.create_future()
        self._ended: asyncio.Future[str] = loop.create_future()
        self._in_postcopy: asyncio.Future[None] = loop.create_future()
        """The source says so: what comes from now on may come when the VM runs here."""

    async def run(self, on_event: OnEvent) -> float:
        """See Hypervisor.run_incoming."""
        try:
            return await self._arrived(on_event)
        finally:
            await self._channel.close()

    async def go_on_after_another(self) -> None:
        """See Hypervisor.receive_the_rest: the connection of an agent before us has ended with it."""
        self._ran = True
        self._in_postcopy.set_result(None)
        self._tasks.append(asyncio.create_task(self._listen(), name=f"libvirt's events about {self._vm}"))
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ended.set_exception(HypervisorError("its agent has ended"))
        is_left = True
        try:
            await self._take_monitor()
            self._paused.set()  # It need not say so again; and it takes nothing in before it is.
            await self._until_whole(asyncio.ensure_future(ended))
            is_left = False
        except Exception as error:
            is_left = False
            raise HandedOverError(f"VM {self._vm} ran here, and lacks some of its memory: {error}") from error
        finally:
            await self._end(is_left=is_left)
            self._channel.abort()

    async def _runs(self, at: float, on_event: OnEvent) -> None:
        self._ran = True
        on_event(Resumed(self._vm, at))
        try:
            await self._channel.send_message("running", at=at, own_monitor=self._monitor is not None)
        except HostError as error:
            log.warning("migration.source_not_informed", vm=self._vm, error=str(error))

    async def _arrived(self, on_event: OnEvent) -> float:
        tasks = self._tasks
        tasks.append(asyncio.create_task(self._listen(), name=f"libvirt's events about {self._vm}"))
        try:
            await self._open()
            tasks.append(asyncio.create_task(self._answer(), name=f"answers of {self._vm}"))
            receiving = asyncio.create_task(self._receive_memory(), name=f"memory of {self._vm}")
            tasks.append(receiving)
            await unless(self._ended, first_of(receiving, self._in_postcopy))
            # All of it has come, or what it runs with: who calls it off now waits, and may find it running.
            return await run_to_completion(self._run(receiving, on_event))
        except BaseException as error:
            if self._ran:
                raise HandedOverError(f"VM {self._vm} ran here, and has ended: {error}") from error
            # The source asks its own libvirt how it is, whatever it is told here.
            with contextlib.suppress(HostError):
                await self._channel.send_message("failed", reason=str(error) or "it was called off")
            at = await run_to_completion(self._settle())
            if at is None:
                raise
            await self._runs(at, on_event)
            return at
        finally:
            await self._end()

    async def _end(self, *, is_left: bool = False) -> None:
        self._hang_up()
        await cancelled(*self._tasks)
        if self._monitor is not None:
            await run_to_completion(self._monitor.close(is_left=is_left))

    async def _take_monitor(self) -> None:
        """Have a monitor of ours, and QEMU keep it, while it answers."""
        self._monitor = await self._open_monitor()
        if self._monitor is not None:
            work = self._hear_qemu(self._monitor)
            self._tasks.append(asyncio.create_task(work, name=f"QMP events of {self._vm}, which comes"))

    async def _have_it_kept(self) -> None:
        try:
            if self._monitor is not None:
                await self._monitor.keep()
        except HostError as error:
            log.warning("libvirt.monitor_not_kept", vm=self._vm, error=str(error))
            monitor, self._monitor = self._monitor, None
            if monitor is not None:
                await monitor.close()

    async def _hear_qemu(self, monitor: OwnMonitor) -> None:
        events: EventQueue = asyncio.Queue()
        with monitor.events_into(events):
            while True:
                _, event = await events.get()
                match event["event"], event.get("data", {}).get("status"):
                    case "MIGRATION", "postcopy-paused":
                        self._paused.set()
                    case "MIGRATION", "postcopy-recover" | "postcopy-active":
                        self._paused.clear()

    async def _run(self, receiving: "asyncio.Task[None]", on_event: OnEvent) -> float:
        """Returns since when the VM runs here, when it has all of its memory."""
        at = await unless(self._ended, self._running())
        await self._runs(at, on_event)
        if self._in_postcopy.done():
            await self._until_whole(receiving)
        return at

    async def _until_whole(self, receiving: "asyncio.Future[None]") -> None:
        """Until the VM, which runs here, has all of its memory; one that does not get it is ended."""
        try:
            await unless(self._ended, self._rest(receiving))
            await unless(self._ended, self._whole())
        except _AwayError as error:  # It runs, for all that is known, and may have it all.
            log.warning("migration.end_not_seen", vm=self._vm, error=str(error))
        except Exception:
            await self._patiently(self._end_what_lacks_memory)
            raise

    async def _rest(self, receiving: "asyncio.Future[None]") -> None:
        """Until it has come, by as many ways as it takes. Raises HypervisorError: it will not come."""
        while True:
            try:
                return await value(receiving)
            except HostError as error:
                if self._channel.again is None:
                    raise
                log.warning("migration.way_broken", vm=self._vm, reason=str(error))
            self._hang_up()
            other = asyncio.create_task(self._another_way())
            self._tasks.append(other)
            while not other.done():
                await asyncio.wait({other}, timeout=LOOK_SECONDS)
                if not other.done() and await self._patiently(self._state_and_reason) not in LACKS_MEMORY:
                    return None  # All of it had come, or the VM has ended.
            self._channel, self._stream = other.result()
            receiving = asyncio.create_task(self._receive_memory(), name=f"rest of {self._vm}")
            answering = asyncio.create_task(self._answer(), name=f"answers of {self._vm}")
            self._tasks += (receiving, answering)

    async def _another_way(self) -> tuple[Channel, socket.socket]:
        """libvirt's QEMU takes in what comes by it. Where we have a monitor, whether it waits for a page or
        not; else by what libvirt can."""
        if self._monitor is not None:
            return await recovering.at_target(self._monitor, self._channel, self._paused)
        return await resuming.at_target(self._vm, self._channel, self._memory)

    # ---- the way in ----

    async def _open(self) -> None:
        self._memory.clear()
        await self._channel.send_message(
            "target",
            control=self._control,
            memory=str(self._memory.inside),
            postcopy=self._postcopy,
            disks=files_of([disk for disk in self._disks if disk.private]),
            shared=files_of([disk for disk in self._disks if not disk.private]),
        )
        limit = OPEN_LIMIT * self._channel.step_factor
        try:
            async with asyncio.timeout(limit):
                message = await self._channel.receive_message()
        except TimeoutError:
            raise HypervisorError(
                f"the source's libvirt has not opened the target within {limit:.0f} s"
            ) from None
        if message["type"] != "opened":
            raise _said(message, "not that libvirt has begun")
        self._stream = await self._memory.connect()
        if self._postcopy:
            await self._take_monitor()
            await self._have_it_kept()

    async def _receive_memory(self) -> None:
        assert self._stream is not None
        while True:
            try:
                async with asyncio.timeout(STALL_LIMIT if self._in_postcopy.done() else None):
                    received = await self._channel.receive()
            except TimeoutError:
                raise HypervisorError(f"nothing of it has come for {STALL_LIMIT:.0f} s") from None
            match received:
                case {"type": "postcopy"} if self._postcopy and not self._in_postcopy.done():
                    self._in_postcopy.set_result(None)
                case b"":
                    with contextlib.suppress(OSError):  # QEMU has it all, and has hung up
                        self._stream.shutdown(socket.SHUT_WR)
                    return
                case bytes():
                    try:
                        await asyncio.get_running_loop().sock_sendall(self._stream, received)
                    except OSError as error:
                        raise HypervisorError("libvirt's QEMU does not take the memory") from error
                case other:
                    raise _said(other, "in the middle of the memory")

    async def _answer(self) -> None:
        """Bring QEMU's answers to the source."""
        stream, channel = self._stream, self._channel
        assert stream is not None
        nbytes = b"-"
        with contextlib.suppress(OSError, HostError):  # who takes the memory in sees it, too
            while nbytes:
                nbytes = await asyncio.get_running_loop().sock_recv(stream, READ_BYTES)
                await channel.send_memory(nbytes)

    def _hang_up(self) -> None:
        if self._stream is not None:
            close_socket(self._stream)
        self._memory.clear()

    # ---- libvirt ----

    async def _listen(self) -> None:
        while True:
            event = await self._events.get()
            if event.kind in (EventKind.RESUMED, EventKind.STARTED) and not self._resumed.done():
                self._resumed.set_result(event.at)
            elif event.kind in (EventKind.STOPPED, EventKind.FAILED) and not self._ended.done():
                self._ended.set_result("libvirt has ended it")

    async def _running(self) -> float:
        """Since when it runs; libvirt's event may have been missed."""
        until = time.monotonic() + RUN_LIMIT
        while time.monotonic() < until:
            done, _ = await asyncio.wait({self._resumed}, timeout=LOOK_SECONDS)
            if done or await self._state() == STATE_RUNNING:
                return self._resumed.result() if done else time.time()
        raise HypervisorError(f"libvirt did not run it within {RUN_LIMIT:.0f} s")

    async def _whole(self) -> None:
        """Return when libvirt says that it lacks nothing any more."""
        until = time.monotonic() + RUN_LIMIT
        while (found := await self._patiently(self._state_and_reason)) in LACKS_MEMORY:
            if time.monotonic() > until:
                raise HypervisorError(f"libvirt does not say within {RUN_LIMIT:.0f} s that all of it is here")
            await asyncio.sleep(LOOK_SECONDS)
        if found is None:
            raise HypervisorError("libvirt has ended it")

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What libvirt says, where libvirtd is away as soon as it is back. Raises _AwayError."""
        until = time.monotonic() + AWAY_LIMIT
        while True:
            try:
                return await ask()
            except HostError as error:
                if time.monotonic() > until:
                    raise _AwayError(f"libvirt says nothing of it for {AWAY_LIMIT:.0f} s: {error}") from error
                await asyncio.sleep(AGAIN_SECONDS)

    async def _end_what_lacks_memory(self) -> None:
        """A guest that waits for memory that never comes cannot be told from one that has crashed."""
        log.error("migration.memory_lost", vm=self._vm)
        self._hang_up()
        domain = await self._host.domain(self._vm)
        if domain is not None:
            self._host.lost.add(self._vm)
            await self._host.call(domain.destroy)

    async def _state(self) -> int | None:
        """virDomainState; None when libvirt does not have it. Raises HypervisorError."""
        found = await self._state_and_reason()
        return None if found is None else found[0]

    async def _state_and_reason(self) -> tuple[int, int] | None:
        """The same with the reason of it."""
        domain = await self._host.domain(self._vm)
        if domain is None:
            return None
        try:
            state, reason = await self._host.call(domain.state)
        except HostError:
            if await self._host.domain(self._vm) is not None:
                raise
            return None  # it ended meanwhile
        return state, reason

    async def _settle(self) -> float | None:
        """Since when the VM runs here, or None: it does not, and is not here any more.

        Raises HypervisorError when libvirt does not tell, after post-copy HandedOverError: by our word that
        it never ran here the source runs it again.
        """
        try:
            return await self._settled()
        except HandedOverError:
            raise
        except HostError as error:
            if not self._in_postcopy.done():
                raise
            raise HandedOverError(
                f"VM {self._vm}: libvirt does not tell whether it has run here: {error}"
            ) from error

    async def _settled(self) -> float | None:
        self._hang_up()
        until = time.monotonic() + SETTLE_LIMIT
        in_postcopy = self._in_postcopy.done()
        while True:
            ask = self._state_and_reason
            found = await (self._patiently(ask) if in_postcopy else ask())
            if found is None:
                return None
            if found in LACKS_MEMORY:
                await self._patiently(self._end_what_lacks_memory)
                raise HandedOverError(f"VM {self._vm}: its memory does not come, and it may have run here")
            if found[0] == STATE_RUNNING:
                return self._resumed.result() if self._resumed.done() else time.time()
            if time.monotonic() > until:
                break
            await asyncio.sleep(LOOK_SECONDS)
        log.warning("libvirt.stale_target_destroyed", vm=self._vm)
        domain = await self._host.domain(self._vm)
        if domain is not None:
            await self._host.call(domain.destroy)
        return None


def _said(message: dict[str, Any], when: str) -> HypervisorError:
    """What the source's agent says in place of what is due: why there is no migration, or anything else."""
    if message["type"] == "failed" and isinstance(reason := message.get("reason"), str):
        return HypervisorError(cut(printable(reason)))
    return HypervisorError(f"the source says {message['type']!r}, {when}")
