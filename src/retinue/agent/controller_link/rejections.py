"""How many connections this agent has rejected, reported to the controller, where the operator sees it.

The totals since the agent started, POST /v1/servers/SERVER/counters, when they have changed, and again to a
controller that is back: it may have started again, and know nothing. Only the latest matter, so none are kept
for a controller that is away.
"""

import asyncio
from collections.abc import Mapping

import structlog

from retinue.agent.controller_link.reports import Rest
from retinue.protocol.errors import ControllerAwayError, RejectedError
from retinue.protocol.routes import Route
from retinue.security.listener.rejections import Rejection

PAUSE_SECONDS = 1.0
"""Between two reports, at the least."""

log = structlog.get_logger()


class Rejections:
    """Reports the agent's counts of rejected connections."""

    def __init__(self, server: str, rejected: Mapping[Rejection, int], rest: Rest, since: float) -> None:
        """`rejected` counts by reason, and goes on; `since`: when it began, which is this agent's start."""
        self._path = Route.REPORT_COUNTERS.path(server)
        self._rejected = rejected
        self._rest = rest
        self._since = since
        self._told: dict[Rejection, int] = {}

    def again(self) -> None:
        """The controller is back: tell it all."""
        self._told = {}

    async def run(self) -> None:
        """For ever."""
        while True:
            if self._told != self._rejected:
                await self._tell()
            await asyncio.sleep(PAUSE_SECONDS)

    async def _tell(self) -> None:
        totals = self._told = dict(self._rejected)  # Before it is sent: `again` may come meanwhile.
        try:
            await self._rest.post(self._path, {"since": self._since, "rejected": totals})
        except ControllerAwayError:
            self.again()
        except RejectedError as error:
            log.warning("rejections.not_accepted", reason=str(error))
