"""The agent as one of many that may take a VM, and as the voice of its hypervisor: see protocol/mobility.py.

It reports what its server has and uses every few seconds, says so again when it is asked in a match, and asks
that a VM should go when its server has been under pressure for a while, if its configuration says so.
"""

import asyncio
import time
from collections.abc import Callable, Collection

import msgspec
import structlog

from retinue.agent.controller_link.reports import Rest
from retinue.core.limits import MOST_LISTED
from retinue.core.placement import Measured, Pressure, PressureRule, Wish, pressed
from retinue.core.placement.snapshot import share
from retinue.host.load import Load
from retinue.protocol.errors import ControllerAwayError, ControllerError
from retinue.protocol.events import ControllerEvent
from retinue.protocol.mobility import AnswerBody, MobilityBody, ServerReport, VMSize
from retinue.protocol.routes import Route

REPORT_SECONDS = 5.0
"""Between two reports of what the server has left."""

log = structlog.get_logger()


class MobilityAgent:
    """Speaks for one server."""

    def __init__(
        self,
        server: str,
        rest: Rest,
        measure: Callable[[], Load],
        vms: Callable[[], Collection[VMSize]],
        rule: PressureRule | None = None,
        clock: Callable[[], float] = time.monotonic,
        others: Callable[[], Collection[VMSize]] = tuple,
    ) -> None:
        """`vms`: those that run here, with what the hypervisor gives them. `others`: those that somebody else
        has made, of which it is told, and not asked that they should go."""
        self.server = server
        self._rest = rest
        self._measure, self._vms, self._clock = measure, vms, clock
        self._others = others
        self._rule = rule or PressureRule()
        self._pressure = Pressure()
        self._answers: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Report for ever."""
        while True:
            await self.round()
            await asyncio.sleep(REPORT_SECONDS)

    async def round(self) -> None:
        """Report once, and say what is wished, if anything is."""
        report = self._report()
        try:
            await self._rest.post(Route.REPORT_PROFILE.path(self.server), _plain(report))
        except ControllerError as error:
            if not isinstance(error, ControllerAwayError):
                log.warning("profile.not_accepted", reason=str(error))
            return
        speed = report.bandwidth_mbps
        used = share(report.bandwidth_used_mbps, speed) if speed else None
        measured = Measured(report.cpu_pressure, report.memory_pressure, used)
        self._pressure, wish = pressed(self._pressure, self._rule, measured, self._clock())
        if wish is not None:
            await self._ask(wish)

    def on_match(self, event: ControllerEvent) -> None:
        """A match message: answer it, in the background, if it is for this server."""
        if self.server in event.servers:
            task = asyncio.create_task(self._answer(event.match), name=f"answer to {event.match}")
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)

    async def close(self) -> None:
        for task in self._answers:
            task.cancel()
        await asyncio.gather(*self._answers, return_exceptions=True)

    async def _answer(self, match: str) -> None:
        body = _plain(AnswerBody(self.server, self._report()))
        try:
            await self._rest.post(Route.ANSWER_MATCH.path(match), body)
        except ControllerError as error:
            log.warning("match.not_answered", match=match, reason=str(error))

    async def _ask(self, wish: Wish) -> None:
        """That the smallest VM should go that may: it is gone soonest."""
        body = _plain(MobilityBody(wish.reason, wish.measured, wish.threshold, wish.seconds, self.server))
        for vm in sorted(self._vms(), key=lambda one: (one.memory_mib, one.vm)):
            try:
                answer = await self._rest.post(Route.QUERY_PROFILE.path(vm.vm), {})
                if answer.get("profile", {}).get("pinned"):
                    continue
                log.info("mobility.asked", vm=vm.vm, wish=str(wish.reason), measured=wish.measured)
                await self._rest.post(Route.ASK_TO_MIGRATE.path(vm.vm), body)
            except ControllerError as error:
                log.info("mobility.refused", vm=vm.vm, reason=str(error))
                if isinstance(error, ControllerAwayError):
                    return
                continue
            return

    def _report(self) -> ServerReport:
        load = self._measure()
        return ServerReport(
            load.cpus, load.memory_mib, load.memory_free_mib, load.disk_free_mib,
            load.bandwidth_mbps, load.bandwidth_used_mbps, load.cpu_used,
            load.cpu_pressure, load.memory_pressure, load.io_pressure,
            [*self._vms(), *self._others()][:MOST_LISTED],
        )  # fmt: skip


def _plain(body: msgspec.Struct) -> dict[str, object]:
    plain: dict[str, object] = msgspec.to_builtins(body)
    return plain
