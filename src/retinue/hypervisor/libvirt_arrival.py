"""The target's half of a move through libvirt: bring the memory from the source's agent to libvirt's QEMU.

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

from retinue.hypervisor.both import unless
from retinue.hypervisor.channel import Channel
from retinue.hypervisor.interface import HypervisorError, OnEvent, Resumed
from retinue.hypervisor.libvirt_events import Happening, Kind
from retinue.hypervisor.libvirt_folder import Memory
from retinue.hypervisor.libvirt_host import STATE_RUNNING, LibvirtHost
from retinue.hypervisor.unbroken import to_its_end

OPEN_LIMIT = 40.0
"""Seconds from the word where to bring it until libvirt has opened the target."""
RUN_LIMIT = 30.0
"""Seconds from the memory's end until the VM runs."""
SETTLE_LIMIT = 10.0
"""Seconds for libvirt to decide a move that has failed; a target that waits still is ended then."""
LOOK_SECONDS = 0.05
"""Between two looks, besides libvirt's own word."""
READ_BYTES = 1 << 16

log = structlog.get_logger()


class LibvirtArrival:
    """One VM's coming. `heard`: what libvirt says of it. The channel is closed at the end."""

    def __init__(
        self,
        host: LibvirtHost,
        vm: str,
        channel: Channel,
        memory: Memory,
        control: str,
        heard: "asyncio.Queue[Happening]",
    ) -> None:
        self._host = host
        self._vm = vm
        self._channel = channel
        self._memory = memory
        self._control = control
        self._heard = heard
        self._stream: socket.socket | None = None
        loop = asyncio.get_running_loop()
        self._resumed: asyncio.Future[float] = loop.create_future()
        self._ended: asyncio.Future[str] = loop.create_future()

    async def run(self, on_event: OnEvent) -> float:
        """See Hypervisor.arrive."""
        try:
            at = await self._arrived()
            on_event(Resumed(self._vm, at))
            try:
                await self._channel.say("runs", at=at)
            except HypervisorError as error:
                log.warning("the source does not hear that the VM runs", vm=self._vm, error=str(error))
            return at
        finally:
            await self._channel.close()

    async def _arrived(self) -> float:
        tasks = [asyncio.create_task(self._listen(), name=f"libvirt's word of {self._vm}")]
        try:
            await self._open()
            tasks.append(asyncio.create_task(self._answer(), name=f"answers of {self._vm}"))
            await unless(self._ended, self._take_in())
            # All of it has come: who calls it off now waits, and may find the VM running.
            return await to_its_end(unless(self._ended, self._running()))
        except BaseException as error:
            # The source asks its own libvirt how it is, whatever it is told here.
            with contextlib.suppress(HypervisorError):
                await self._channel.say("failed", reason=str(error) or "it was called off")
            at = await to_its_end(self._settle())
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
        await self._channel.say("target", control=self._control, memory=str(self._memory.inside))
        try:
            async with asyncio.timeout(OPEN_LIMIT):
                word = await self._channel.hear()
        except TimeoutError:
            raise HypervisorError(
                f"the source's libvirt has not opened the target within {OPEN_LIMIT:.0f} s"
            ) from None
        if word["word"] != "begun":
            raise HypervisorError(f"the source says {word['word']!r}, not that it has begun")
        self._stream = await self._memory.connect()

    async def _take_in(self) -> None:
        assert self._stream is not None
        while True:
            heard = await self._channel.receive()
            match heard:
                case b"":
                    with contextlib.suppress(OSError):  # QEMU has it all, and has hung up
                        self._stream.shutdown(socket.SHUT_WR)
                    return
                case bytes():
                    try:
                        await asyncio.get_running_loop().sock_sendall(self._stream, heard)
                    except OSError as error:
                        raise HypervisorError("libvirt's QEMU does not take the memory") from error
                case other:
                    raise HypervisorError(f"the source says {other['word']!r} in the middle of the memory")

    async def _answer(self) -> None:
        """Bring QEMU's answers to the source."""
        assert self._stream is not None
        octets = b"-"
        with contextlib.suppress(OSError, HypervisorError):  # who takes the memory in sees it, too
            while octets:
                octets = await asyncio.get_running_loop().sock_recv(self._stream, READ_BYTES)
                await self._channel.send_memory(octets)

    def _hang_up(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._memory.clear()

    # ---- libvirt ----

    async def _listen(self) -> None:
        while True:
            happening = await self._heard.get()
            if happening.kind in (Kind.RESUMED, Kind.STARTED) and not self._resumed.done():
                self._resumed.set_result(happening.at)
            elif happening.kind in (Kind.STOPPED, Kind.FAILED) and not self._ended.done():
                self._ended.set_result("libvirt has ended it")

    async def _running(self) -> float:
        """Since when it runs; libvirt's word may have been missed."""
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
        except HypervisorError:
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
        log.warning("libvirt still waits for a VM whose move has failed, ending it", vm=self._vm)
        domain = await self._host.domain(self._vm)
        if domain is not None:
            await self._host.call(domain.destroy)
        return None
