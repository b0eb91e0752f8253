"""The agents of a domain's servers, as its controller sees them: they do at once what they are ordered.

They outlive their controller: reports wait until there is one that takes them.
"""

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from retinue.controller.app import Controller
from retinue.controller.migrations.requests import MigrationError
from retinue.core.migration import Migration
from retinue.protocol.errors import ControllerAwayError
from retinue.protocol.events import EventType
from retinue.protocol.migrations import Order, Report
from retinue.protocol.mobility import ServerReport, VMSize
from support.fabric.domains import other, server_of

if TYPE_CHECKING:
    from support.fabric.two_controllers import Line, TwoDomains

VM_ID, MEMORY_MIB = "vm-a1", 128
MEMORY_AT = "192.0.2.9:7801"


class Agents:
    """Those of servers 1 and 2; a gateway has none."""

    def __init__(self, domain: str, world: "TwoDomains", line: "Line") -> None:
        self._domain, self._world, self._line = domain, world, line
        self.servers = frozenset({server_of(domain, 1), server_of(domain, 2)})
        self.plugged: set[tuple[str, int]] = set()
        """Server and number of each NIC that has a port there."""
        self._closed: set[str] = set()
        """Migrations of which the VM is never to run here."""
        self._copied: set[str] = set()
        """Migrations that were begun here, as their source."""
        self._following: asyncio.Task[None] | None = None
        self._reporting: asyncio.Task[Any] | None = None
        """The last report: they come in order."""
        self._work: list[asyncio.Task[Any]] = []

    # ---- the controller ----

    def follow(self, controller: Controller) -> None:
        self._following = asyncio.create_task(self._follow(controller))

    def lose(self) -> None:
        assert self._following is not None
        self._following.cancel()

    async def _follow(self, controller: Controller) -> None:
        with contextlib.ExitStack() as listening:
            for server in self.servers:
                listening.enter_context(controller.context.agents.listening(server))
            async for event in controller.events.listen(since=0):
                if event.type == EventType.MATCH:
                    for server in self.servers & set(event.data["servers"]):
                        controller.mobility.on_answer(event.data["match"], server, self._reported(server))
                elif isinstance(migration := event.data.get("migration"), Migration):
                    self._obey(event.type, controller.orchestrator.migrations.get(migration.id, migration))

    async def done(self) -> None:
        await asyncio.gather(*self._work)

    def raise_errors(self) -> None:
        for task in self._work:
            if task.done():
                task.result()

    async def close(self) -> None:
        tasks = [task for task in (self._following, *self._work) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- what they are ordered ----

    def _obey(self, order: str, migration: Migration) -> None:
        id, source, target = migration.id, migration.source, migration.target
        match order:
            case Order.OPEN_TARGET if target in self.servers:
                self._world.plug(self._domain, target)
                self.tell(id, Report.TARGET_OPENED, target, memory_at=MEMORY_AT)
            case Order.START_COPY if source in self.servers and id not in self._copied:
                self._copied.add(id)
                self._spawn(self._copy(migration))
            case Order.FREE_SOURCE if source in self.servers:
                assert self._world.runs_at != source
                self._world.unplug(self._domain, source)
                self.tell(id, Report.SOURCE_FREED, source)
            case Order.ROLL_BACK if target in self.servers:
                self._close(migration)
            case Order.ROLL_BACK if source in self.servers and self._world.runs_at == source:
                if not self._world.paused and self._world.fails != "away when it closes":
                    self.tell(id, Report.ROLLED_BACK, source)
            case Order.RETURN_TO_SOURCE if source in self.servers:
                self._run_again(migration)

    def _close(self, migration: Migration) -> None:
        """The VM is not to run here any more, unless it does so already."""
        if self._world.runs_at == migration.target:
            self.tell(migration.id, Report.RESUMED, migration.target)
            return
        self._closed.add(migration.id)
        self._world.unplug(self._domain, migration.target)
        self._world.doors[other(self._domain)].away = self._world.fails == "away when it closes"
        self.tell(migration.id, Report.TARGET_CLOSED, migration.target)

    def _run_again(self, migration: Migration) -> None:
        assert self._world.runs_at == migration.source, "it would run twice"
        if migration.far is not None:
            there = self._world.agents[migration.far.domain]
            assert (migration.far.server, 1) not in there.plugged, "it may run there yet"
        self._world.paused = False
        self.tell(migration.id, Report.ROLLED_BACK, migration.source)

    async def _copy(self, migration: Migration) -> None:
        """As the source's agent; and then the target's, wherever that is."""
        world, id, source = self._world, migration.id, migration.source
        self.tell(id, Report.COPY_STARTED, source)
        if world.fails == "before it converges":
            return
        try:
            await self._report(id, Report.CONVERGED, source)
        except MigrationError as error:
            self.tell(id, Report.FAILED, source, reason=str(error))
            return
        there = self if migration.far is None else world.agents[migration.far.domain]
        its = self._now(migration).far
        its_id, its_target = (id, migration.target) if its is None else (its.migration, its.server)
        if world.fails == "after diverting":
            there.tell(its_id, Report.FAILED, its_target, reason="its QEMU has ended")
            return
        world.paused = True
        self.tell(id, Report.STOPPED, source)
        if world.fails == "ends when it has stopped":
            self._copied.discard(id)  # The next agent takes it up.
            return
        await asyncio.sleep(0.02)  # The rest of its memory goes over.
        if its_id in there._closed:
            self.tell(id, Report.FAILED, source, reason="the target has hung up")
            return
        world.runs_at, world.paused = its_target, False
        if world.fails == "away when it resumes":
            world.doors[self._domain].away = True
        there.tell(its_id, Report.RESUMED, its_target)

    def _now(self, migration: Migration) -> Migration:
        return self._world.controller(self._domain).orchestrator.migrations.get(migration.id, migration)

    # ---- what they report ----

    def _reported(self, server: str) -> ServerReport:
        """What a server has, and the VM, if that runs there."""
        world = self._world
        vms = [VMSize(VM_ID, world.memory_mib)] if world.memory_mib and server == world.runs_at else []
        return ServerReport(cpus=4, memory_mib=world.room.get(server, 8000), vms=vms)

    def tell(self, id: str, report: Report, server: str, *, memory_at: str = "", reason: str = "") -> None:
        """In order, and again until it is taken; what does not fit is its own affair."""
        before, at = self._reporting, time.time()

        async def told() -> None:
            if before is not None:
                await asyncio.wait({before})
            with contextlib.suppress(MigrationError):
                await self._report(id, report, server, at, memory_at, reason)

        self._reporting = self._spawn(told())

    async def _report(
        self, id: str, report: Report, server: str, at: float = 0.0, memory_at: str = "", reason: str = ""
    ) -> None:
        while True:
            await self._line.there.wait()
            try:
                return await self._line.ask(self._taken(id, report, server, at, memory_at, reason))
            except ControllerAwayError:
                await asyncio.sleep(0.2)

    async def _taken(
        self, id: str, report: Report, server: str, at: float, memory_at: str, reason: str
    ) -> None:
        """As the REST interface does."""
        orchestrator = self._world.controller(self._domain).orchestrator
        by = (server,)
        await orchestrator.reports.until_source_let_go(id, report, by)
        if await orchestrator.far_ends.before_report(id, report, reason) is not None:
            return
        orchestrator.reports.on_report(id, report, at, reason, memory_at, by=by)
        await orchestrator.reports.answer(id, report)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._work.append(task)
        return task
