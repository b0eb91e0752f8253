"""What is left at the source of the memory of a VM that runs at its target, when the way there has broken.

Whether that broke, or the agent that had it has ended, is all the same: QEMU is asked how far it is, and
sends on by another way, again and again, until the target has all of it.
"""

import asyncio

import structlog

from retinue.host.errors import HostError
from retinue.hypervisor import recovering
from retinue.hypervisor.aio import cancelled, first_of, unless
from retinue.hypervisor.interface import OnEvent
from retinue.hypervisor.memory_channel import Again, Channel, broken_channel
from retinue.hypervisor.monitor import EXITED, EventQueue, Monitor
from retinue.hypervisor.qmp_copier import QmpCopier
from retinue.hypervisor.rest_of_memory import STEP, Answers, send_the_rest
from retinue.hypervisor.throttle import Throttle

POSTCOPY = "postcopy"
"""How all states of a migration begin in which the VM may run at the target."""
PAUSED = ("postcopy-paused", "postcopy-recover")

log = structlog.get_logger()


async def send(machine: Monitor, again: Again, on_event: OnEvent, *, compress: bool = False) -> None:
    """Return when the target has all of the VM's memory. Raises HypervisorError: it will not get it.

    `again` makes a connection to the target's agent. Nothing may give the VM back any more.
    """
    rest = _Rest(machine, on_event)
    with machine.events_into(rest.events):
        watching = asyncio.create_task(rest.watch(), name=f"QMP events of the rest of {machine.vm}")
        try:
            if await rest.is_wanted():
                await rest.send(again, compress)
        finally:
            await cancelled(watching)


class _Rest:
    def __init__(self, machine: Monitor, on_event: OnEvent) -> None:
        self._machine, self._on_event = machine, on_event
        self.events: EventQueue = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self._completed: asyncio.Future[None] = loop.create_future()
        self._failed: asyncio.Future[str] = loop.create_future()
        self._broken: asyncio.Future[str] = loop.create_future()
        self._paused = asyncio.Event()

    async def watch(self) -> None:
        """Sort QEMU's events, for ever."""
        while True:
            _, event = await self.events.get()
            match event["event"], event.get("data", {}).get("status"):
                case "MIGRATION", "completed" if not self._completed.done():
                    self._completed.set_result(None)
                case "MIGRATION", "postcopy-paused":
                    self._paused.set()
                    self._break("the way to the target is broken, with some of the memory still to go over")
                case "MIGRATION", "postcopy-recover" | "postcopy-active":
                    self._paused.clear()
                case "MIGRATION", "failed" | "cancelled" | "cancelling":
                    self._fail("the source gave up")
                case name, _ if name == EXITED:
                    self._fail("the source has ended")

    async def is_wanted(self) -> bool:
        """Whether some of it is here yet; what keeps a VM that may be given back waiting ends."""
        status = await self._machine.migration_status()
        if not status.startswith(POSTCOPY):
            return False
        while self._machine.kept:
            self._machine.kept.pop().close()
        if status in PAUSED:
            self._paused.set()
        return True

    async def send(self, again: Again, compress: bool) -> None:
        channel = await broken_channel(again, compress=compress)
        copier = QmpCopier(self._machine)
        number = (await copier.progress()).number
        while True:
            going = asyncio.create_task(recovering.at_source(self._machine, channel, self._paused))
            try:
                await unless(self._failed, first_of(going, self._completed))
                if not going.done():  # All of it had gone over, and the target has hung up for that.
                    return
            finally:
                going.cancel()
            channel, throttle = going.result()
            self._broken = asyncio.get_running_loop().create_future()
            answers = Answers(channel, throttle)
            hearing = asyncio.create_task(answers.hear(), name="answers of the target")
            hearing.add_done_callback(lambda _: self._break("the target has hung up"))
            passing = asyncio.create_task(
                pass_on(throttle, channel, STEP), name=f"memory of {self._machine.vm}"
            )
            try:
                ended = (passing, self._completed, self._broken)
                await send_the_rest(copier, throttle, *ended, number + 1, self._on_event)
                await channel.send_memory(b"")
                await channel.close()
                return
            except HostError as error:
                if self._failed.done():
                    raise
                if self._completed.done():
                    return
                log.warning("migration.way_broken", vm=self._machine.vm, reason=str(error))
            finally:
                await cancelled(hearing, passing)
                throttle.close()
                channel.abort()

    def _fail(self, reason: str) -> None:
        for future in (self._failed, self._broken):
            if not future.done():
                future.set_result(reason)

    def _break(self, reason: str) -> None:
        if not self._broken.done():
            self._broken.set_result(reason)


async def pass_on(throttle: Throttle, channel: Channel, step: int) -> None:
    """Pass on all that is left of the stream."""
    while chunk := await throttle.read(step):
        await channel.send_memory(chunk)
