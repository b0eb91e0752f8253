"""What libvirt does here, told to the controller, so that the network follows a move typed by anybody.

Each word of libvirt about a VM becomes one report, POST /v1/servers/SERVER/hypervisor-events (see
docs/libvirt.md). Reports about one VM arrive in order, and again while the controller is away; those about
others do not wait for them. What runs here is told again from time to time, so that nothing stays unknown
whoever was away. A VM that comes in has its tap's queue made long, since packets will wait there until it
runs.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import structlog

from retinue.agent.rest import Reports, quoted
from retinue.hypervisor import HypervisorError
from retinue.hypervisor.commands import run
from retinue.hypervisor.libvirt_domain import taps
from retinue.hypervisor.libvirt_events import Happening, Kind
from retinue.hypervisor.libvirt_host import LibvirtHost
from retinue.hypervisor.taps import QUEUE_FRAMES, Run

ROUND_SECONDS = 10.0
"""Between two accounts of all that runs here."""
SOON_SECONDS = 1.0
"""Until the next account when a VM has started: the controller may hear of it before it sees its port."""
OLDEST = 600.0
"""Seconds after which a report nobody took is no news any more."""

log = structlog.get_logger()


class Watch:
    """`hears` are told first, each word. `back` is called when a libvirtd that was away is there again."""

    def __init__(
        self,
        server: str,
        host: LibvirtHost,
        reports: Reports,
        hears: Sequence[Callable[[Happening], None]] = (),
        run: Run = run,
        back: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = f"/v1/servers/{quoted(server)}/hypervisor-events"
        self._host = host
        self._reports = reports
        self._hears = hears
        self._run = run
        self._back = back
        self._started = asyncio.Event()
        self._work: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """For ever; libvirt's being away is waited for."""
        rounds = asyncio.create_task(self._rounds(), name="accounts of what libvirt runs")
        try:
            async with contextlib.aclosing(self._host.watch(self._back)) as happenings:
                async for happening in happenings:
                    if happening.kind is Kind.STARTED and not await self._host.runs(happening.vm):
                        continue  # It is only made, and waits paused.
                    log.info(str(happening.kind), vm=happening.vm, at=happening.at)
                    for hear in self._hears:
                        hear(happening)
                    self.tell(happening)
                    if happening.kind is Kind.STARTED:
                        self._started.set()
                    if happening.kind is Kind.INCOMING:
                        task = asyncio.create_task(self._lengthen_queues(happening.vm))
                        self._work.add(task)
                        task.add_done_callback(self._work.discard)
        finally:
            for task in (rounds, *self._work):
                task.cancel()
            await asyncio.gather(rounds, *self._work, return_exceptions=True)

    def tell(self, happening: Happening) -> None:
        """Report in the background."""
        body = {"vm": happening.vm, "kind": str(happening.kind), "at": happening.at}
        self._reports.tell(_subject(happening), self._path, body, happening.at + OLDEST)

    async def _rounds(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROUND_SECONDS):
                    await self._started.wait()
                    await asyncio.sleep(SOON_SECONDS)
            self._started.clear()
            with contextlib.suppress(HypervisorError):  # LibvirtHost.watch says so
                for happening in await self._host.found():
                    if not self._reports.busy(_subject(happening)):
                        self.tell(happening)

    async def _lengthen_queues(self, vm: str) -> None:
        """Let a VM's tap hold what arrives while it stands still; libvirt leaves it at the system's 1000."""
        try:
            domain = await self._host.domain(vm)
            names = () if domain is None else taps(await self._host.call(domain.XMLDesc, 0))
            for name in names:
                await self._run(["ip", "link", "set", "dev", name, "txqueuelen", str(QUEUE_FRAMES)])
        except HypervisorError as error:
            log.warning("a tap's queue stays short", vm=vm, reason=str(error))


def _subject(happening: Happening) -> str:
    """Apart from what the agent itself has to tell of the VM: the one does not wait for the other."""
    return f"libvirt's {happening.vm}"
