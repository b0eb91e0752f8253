"""The target's half of a migration through libvirt: bring the memory from the source's agent to libvirt's
QEMU.

libvirt opens the target when the source's tells it to, and runs the VM when all of it has come; so we only
tell how libvirt is reached here, pass the memory in and QEMU's answers out, and hear from libvirt that the VM
runs.

When something fails we hang up, which is enough: QEMU then fails, or libvirt has everything already and
decides. What it decided is asked for before anything is told.
"""

import asyncio
import contextlib
import socket
import time

import structlog

from retinue.host.errors import HostError
from retinue.hypervisor.aio import run_to_completion, unless
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.interface import OnEvent, Resumed
from retinue.hypervisor.libvirt.connection import STATE_RUNNING, LibvirtHost
from retinue.hypervisor.libvirt.directory import Memory
from retinue.hypervisor.memory_channel import Channel
from retinue.protocol.hypervisor_events import EventKind, HypervisorEvent

OPEN_LIMIT = 40.0
"""Seconds from the message that says how libvirt is reached until libvirt has opened the target."""
RUN_LIMIT = 30.0
"""Seconds from the memory's end until the VM runs."""
SETTLE_LIMIT = 10.0
"""Seconds for libvirt to decide a migration that has failed; a target that waits still is ended then."""
LOOK_SECONDS = 0.05
"""Between two looks, besides libvirt's own events."""
READ_BYTES = 1 << 16

log = structlog.get_logger()


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
    ) -> None:
        self._host = host
        self._vm = vm
        self._channel = channel
        self._memory = memory
        self._control = control
        self._events = events
        self._stream: socket.socket | None = None
        loop = asyncio.get_running_loop()
        self._resumed: asyncio.Future[float] = loop.create_future()
        self._ended: asyncio.Future[str] = loop.create_future()

    async def run(self, on_event: OnEvent) -> float:
        """See Hypervisor.run_incoming."""
        try:
            at = await self._arrived()
            on_event(Resumed(self._vm, at))
            try:
                await self._channel.send_message("running", at=at)
            except HostError as error:
                log.warning("migration.source_not_informed", vm=self._vm, error=str(error))
            return at
        finally:
            await self._channel.close()

    async def _arrived(self) -> float:
        tasks = [asyncio.create_task(self._listen(), name=f"libvirt's events about {self._vm}")]
        try:
            await self._open()
            tasks.append(asyncio.create_task(self._answer(), name=f"answers of {self._vm}"))
            await unless(self._ended, self._receive_memory())
            # All of it has come: who calls it off now waits, and may find the VM running.
            return await run_to_completion(unless(self._ended, self._running()))
        except BaseException as error:
            # The source asks its own libvirt how it is, whatever it is told here.
            with contextlib.suppress(HostError):
                await self._channel.send_message("failed", reason=str(error) or "it was called off")
            at = await run_to_completion(self._settle())
            if at is None:
                raise
            return at
        finally:
            self._hang_up()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # ---- the way in ----

    async def _open(self) -> None:
        self._memory.clear()
        await self._channel.send_message("target", control=self._control, memory=str(self._memory.inside))
        try:
            async with asyncio.timeout(OPEN_LIMIT):
                message = await self._channel.receive_message()
        except TimeoutError:
            raise HypervisorError(
                f"the source's libvirt has not opened the target within {OPEN_LIMIT:.0f} s"
            ) from None
        if message["type"] != "opened":
            raise HypervisorError(f"the source says {message['type']!r}, not that libvirt has begun")
        self._stream = await self._memory.connect()

    async def _receive_memory(self) -> None:
        assert self._stream is not None
        while True:
            received = await self._channel.receive()
            match received:
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
                    raise HypervisorError(f"the source says {other['type']!r} in the middle of the memory")

    async def _answer(self) -> None:
        """Bring QEMU's answers to the source."""
        assert self._stream is not None
        nbytes = b"-"
        with contextlib.suppress(OSError, HostError):  # who takes the memory in sees it, too
            while nbytes:
                nbytes = await asyncio.get_running_loop().sock_recv(self._stream, READ_BYTES)
                await self._channel.send_memory(nbytes)

    def _hang_up(self) -> None:
        if self._stream is not None:
            self._stream.close()
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

    async def _state(self) -> int | None:
        """virDomainState; None when libvirt does not have it. Raises HypervisorError."""
        domain = await self._host.domain(self._vm)
        if domain is None:
            return None
        try:
            state: int
            state, _ = await self._host.call(domain.state)
        except HostError:
            if await self._host.domain(self._vm) is not None:
                raise
            return None  # it ended meanwhile
        return state

    async def _settle(self) -> float | None:
        """Since when the VM runs here, or None: it does not, and is not here any more.

        Raises HypervisorError when libvirt does not tell.
        """
        self._hang_up()
        until = time.monotonic() + SETTLE_LIMIT
        while True:
            state = await self._state()
            if state is None:
                return None
            if state == STATE_RUNNING:
                return self._resumed.result() if self._resumed.done() else time.time()
            if time.monotonic() > until:
                break
            await asyncio.sleep(LOOK_SECONDS)
        log.warning("libvirt.stale_target_destroyed", vm=self._vm)
        domain = await self._host.domain(self._vm)
        if domain is not None:
            await self._host.call(domain.destroy)
        return None
