"""The target's half of a live migration: take the memory in, and run the VM once it is the target's own.

QEMU was started to wait (`-S`), so a VM that has arrived does not run by itself. The VM is started when the
source has handed it over; a target that fails before that says so, and the VM is resumed at the source.

In post-copy (`postcopy`) the source hands it over with some of its memory still to come: QEMU's questions for
it go back the way the memory comes, and a VM whose memory does not come any more is ended.
"""

import asyncio
import contextlib
import socket
from typing import Any

import structlog

from retinue.host.errors import HostError
from retinue.hypervisor import recovering
from retinue.hypervisor.aio import cancelled, close_socket, first_of, run_to_completion, unless
from retinue.hypervisor.errors import HandedOverError, HypervisorError
from retinue.hypervisor.interface import OnEvent, Resumed, RunState
from retinue.hypervisor.memory_channel import Again, Channel, broken_channel
from retinue.hypervisor.monitor import EXITED, EventQueue, event_time
from retinue.hypervisor.qemu import nbd_export
from retinue.hypervisor.qemu.machine import QemuMachine
from retinue.hypervisor.rest_of_memory import STALL_LIMIT

READ_BYTES = 1 << 16
LOOK_SECONDS = 0.002
"""Between two looks whether a VM can run whose memory has not all come."""
LAST_WORD_LIMIT = 10.0
"""Seconds for the source to learn that all has come."""
HANG_UP_LIMIT = 1.0
"""Seconds for the source to hang up, too; one that is dead never does."""

log = structlog.get_logger()


async def run_incoming(machine: QemuMachine, channel: Channel, on_event: OnEvent) -> float:
    """See Hypervisor.run_incoming."""
    incoming = _Incoming(machine, channel)
    told = True  # to the source, how it went
    tasks = [asyncio.create_task(incoming.watch(), name=f"QMP events of {machine.spec.id}, which comes")]
    try:
        with machine.events_into(incoming.events):
            await incoming.open()
            incoming.begin_to_answer()
            await incoming.until_it_may_run()
            await nbd_export.close_disks(machine)
            if incoming.lacks_memory:
                # An agent that comes after this one need not ask QEMU, which may not answer then.
                machine.write_down(incoming=False)
            # A VM that has been told to run is not called off.
            at = await run_to_completion(incoming.run())
            machine.write_down(incoming=False)
            on_event(Resumed(machine.spec.id, at))
            await incoming.say_that_it_runs(at)
            await run_to_completion(incoming.until_all_has_come())
    except BaseException as error:
        machine.kill(incoming.why_it_ends(error))
        await run_to_completion(machine.quit())
        told = False
        if not incoming.ran:  # else it may have run, and the source must not run it again
            with contextlib.suppress(HostError):
                await incoming.channel.send_message("failed", reason=str(error) or "it was called off")
                told = True
        elif isinstance(error, Exception):
            raise HandedOverError(f"VM {machine.spec.id} had been told to run: {error}") from error
        raise
    else:
        await run_to_completion(machine.lacks_nothing())
        return at
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        incoming.close()
        await _hang_up(incoming.channel, told)


async def receive_the_rest(machine: QemuMachine, again: Again) -> None:
    """See Hypervisor.receive_the_rest."""
    incoming = _Incoming(machine, await broken_channel(again))
    incoming.close()
    watching = asyncio.create_task(
        incoming.watch(), name=f"QMP events of {machine.spec.id}, which lacks memory"
    )
    try:
        with machine.events_into(incoming.events):
            await incoming.go_on_after_another()
            with contextlib.suppress(HostError):  # It lacks nothing, whatever becomes of it.
                if await machine.state() is RunState.PAUSED:
                    # It hung when it was looked at, and was taken for one that had been told to run.
                    await run_to_completion(machine.resume())
            await run_to_completion(machine.lacks_nothing())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HANG_UP_LIMIT):
                    await incoming.channel.close()
    except Exception as error:
        machine.kill(incoming.why_it_ends(error))
        await run_to_completion(machine.quit())
        raise HandedOverError(
            f"VM {machine.spec.id} ran here, and lacks some of its memory: {error}"
        ) from error
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        incoming.close()
        incoming.channel.abort()


async def _hang_up(channel: Channel, told: bool) -> None:
    """End the connection; what we have told last is to arrive, but not to be waited for long."""
    if told:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HANG_UP_LIMIT):
                await channel.close()
                return
    channel.abort()


class _Incoming:
    def __init__(self, machine: QemuMachine, channel: Channel) -> None:
        self._machine = machine
        self.channel = channel
        self._into, self._theirs = socket.socketpair()
        self._into.setblocking(False)
        self.events: EventQueue = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[None] = loop.create_future()
        self._running: asyncio.Future[float] = loop.create_future()
        self._failed: asyncio.Future[str] = loop.create_future()
        self._rest: asyncio.Task[None] | None = None
        """Takes in what comes when the VM was handed over already."""
        self._answering: asyncio.Task[None] | None = None
        self._paused = asyncio.Event()
        """QEMU says that the rest does not come."""
        self._broken: asyncio.Future[str] = loop.create_future()
        """Why it does not, where it may come by another way."""
        self._told: asyncio.Task[Any] | None = None
        """QEMU, to run the VM."""
        self.ran = self.lacks_memory = False

    async def watch(self) -> None:
        """Sort QEMU's events, for ever."""
        while True:
            _, event = await self.events.get()
            match event["event"], event.get("data", {}).get("status"):
                case "MIGRATION", "completed" if not self._loaded.done():
                    self._loaded.set_result(None)
                case "MIGRATION", "failed":
                    self._fail("its QEMU cannot load what came")
                case "MIGRATION", "postcopy-paused":
                    self._paused.set()
                    self._break("the rest of its memory does not come any more")
                case "MIGRATION", "postcopy-recover" | "postcopy-active":
                    self._paused.clear()
                case "RESUME", _ if not self._running.done():
                    self._running.set_result(event_time(event))
                case name, _ if name == EXITED:
                    self._fail("its QEMU has ended")

    def _fail(self, reason: str) -> None:
        if not self._failed.done():
            self._failed.set_result(reason)

    def _break(self, reason: str) -> None:
        """No more comes this way. Before the VM runs here its source has it."""
        if not self.ran or self.channel.again is None:
            self._fail(reason)
        elif not self._broken.done():
            self._broken.set_result(reason)

    async def open(self) -> None:
        await self._machine.set_capability("events", True)
        # Shared disks are the source's until the VM runs here: only then are their files locked.
        await self._machine.set_capability("late-block-activate", bool(self._machine.spec.disks))
        with self._theirs:
            uri = await self._machine.give(self._theirs)
            await self._machine.execute("migrate-incoming", uri=uri)

    async def until_it_may_run(self) -> None:
        """Until all of the VM is here and it was handed over; or, in post-copy, what it needs to run."""
        if not await unless(self._failed, self._receive()):
            await unless(self._failed, asyncio.shield(self._loaded))
            return
        self.lacks_memory = True
        self._rest = asyncio.create_task(self._receive_rest(), name=f"rest of {self._machine.spec.id}")
        while True:  # QEMU tells no event of it.
            if await unless(self._failed, self._machine.state()) is not RunState.INCOMING:
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def run(self) -> float:
        """Run the VM; returns since when it runs. In post-copy QEMU may say so before it answers."""
        self.ran = True
        self._told = asyncio.create_task(self._machine.execute("cont"))
        watched: set[asyncio.Future[Any]] = {self._told, self._running}
        await unless(self._failed, asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED))
        if not self._running.done():
            self._told.result()
        return await unless(self._failed, asyncio.shield(self._running))

    async def say_that_it_runs(self, at: float) -> None:
        try:
            await self.channel.send_message("running", at=at)
        except HostError as error:
            log.warning("migration.source_not_informed", vm=self._machine.spec.id, error=str(error))

    async def until_all_has_come(self) -> None:
        """Nothing to wait for but in post-copy. Raises HypervisorError: it will not come."""
        if self._rest is None:
            return
        while True:
            watched: set[asyncio.Future[Any]] = {self._loaded, self._broken}
            await unless(self._failed, asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED))
            if self._loaded.done():
                break
            await self._go_on_by_another_way(self._broken.result())
        # The source has to hear of it, and says then that it has nothing more.
        await asyncio.wait({self._rest}, timeout=LAST_WORD_LIMIT)

    async def go_on_after_another(self) -> None:
        """Another agent's connection has ended with it. Raises HypervisorError: the rest will not come."""
        self.ran, self.lacks_memory = True, True
        self._paused.set()  # It need not say so again; and it takes nothing in before it is.
        looking = asyncio.create_task(self._look(), name=f"how far {self._machine.spec.id} is")
        going = asyncio.create_task(self._go_on_by_another_way("its agent has ended"))
        try:
            await unless(self._failed, first_of(going, self._loaded))
        finally:
            await cancelled(looking, going)
        if not self._loaded.done():
            await self.until_all_has_come()

    async def _look(self) -> None:
        """It may have all of its memory by now: of what it told nobody has heard."""
        with contextlib.suppress(HostError):
            if await self._machine.migration_status() == "completed" and not self._loaded.done():
                self._loaded.set_result(None)

    async def _go_on_by_another_way(self, why: str) -> None:
        log.warning("migration.way_broken", vm=self._machine.spec.id, reason=why)
        self.close()
        again = recovering.at_target(self._machine, self.channel, self._paused)
        self.channel, self._into = await unless(self._failed, again)
        self._broken = asyncio.get_running_loop().create_future()
        self.begin_to_answer()
        self._rest = asyncio.create_task(self._receive_rest(), name=f"rest of {self._machine.spec.id}")

    def why_it_ends(self, error: BaseException) -> str:
        if not (self.lacks_memory and self.ran):
            return ""
        return f"it ran by post-copy, with some of its memory still at the source: {error}"

    def begin_to_answer(self) -> None:
        self._answering = asyncio.create_task(self._answer(), name=f"answers of {self._machine.spec.id}")

    async def _answer(self) -> None:
        """Bring QEMU's questions for memory to the source: there are none but in post-copy."""
        with contextlib.suppress(OSError, HostError):  # Who takes the memory in sees it, too.
            while nbytes := await asyncio.get_running_loop().sock_recv(self._into, READ_BYTES):
                await self.channel.send_memory(nbytes)

    def close(self) -> None:
        for task in (self._rest, self._told, self._answering):
            if task is not None:
                task.cancel()
        close_socket(self._into)

    # ---- the memory ----

    async def _receive(self) -> bool:
        """Receive memory until the VM is handed over; True: with some of its memory still to come."""
        said: set[str] = set()
        while True:
            received = await self.channel.receive()
            if isinstance(received, dict):
                if received["type"] in said:
                    raise HypervisorError(f"the source says {received['type']!r} for the second time")
                said.add(received["type"])
            match received:
                case bytes():
                    await self._take(received)
                case {"type": "expect", "frames_a_second": int() | float() as rate}:
                    await self._machine.make_room(rate)
                case {"type": "postcopy"}:
                    await self.channel.send_message("postcopy", ready=self._machine.expects_postcopy)
                case {"type": "handed_over"}:
                    return received.get("postcopy") is True
                case other:
                    raise HypervisorError(f"the source says {other['type']!r} in the middle of the memory")

    async def _receive_rest(self) -> None:
        """What comes while the VM runs here already."""
        received: bytes | dict[str, Any] = b"-"
        try:
            while received != b"":
                async with asyncio.timeout(STALL_LIMIT):
                    received = await self.channel.receive()
                if isinstance(received, dict):
                    raise HypervisorError(f"the source says {received['type']!r} in the middle of the memory")
                await self._take(received)
        except TimeoutError:
            self._break(f"nothing of it has come for {STALL_LIMIT:.0f} s")
        except HostError as error:
            self._break(str(error))

    async def _take(self, nbytes: bytes) -> None:
        try:
            if nbytes:
                await asyncio.get_running_loop().sock_sendall(self._into, nbytes)
            else:
                self._into.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise HypervisorError("the target does not take the memory") from error
