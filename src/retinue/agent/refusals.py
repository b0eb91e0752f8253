"""What this agent has refused at its own door, told to the controller, where the operator sees it.

The totals since the agent started, POST /v1/servers/SERVER/counters, when they have changed, and again to a
controller that is back: it may have started again, and know nothing. Only the latest matter, so none are kept
for a controller that is away.
"""

import asyncio
from collections.abc import Mapping

import structlog

from retinue.agent.rest import ControllerAwayError, RefusedError, Rest, quoted
from retinue.controller.refusals import Refusal

PAUSE_SECONDS = 1.0
"""Between two reports, at the least."""

log = structlog.get_logger()


class Refusals:
    def __init__(self, server: str, refused: Mapping[Refusal, int], rest: Rest, since: float) -> None:
        """`refused` counts by reason, and goes on; `since`: when it began, which is this agent's start."""
        self._path = f"/v1/servers/{quoted(server)}/counters"
        self._refused = refused
        self._rest = rest
        self._since = since
        self._told: dict[Refusal, int] = {}

    def again(self) -> None:
        """The controller is back: tell it all."""
        self._told = {}

    async def run(self) -> None:
        """For ever."""
        while True:
            if self._told != self._refused:
                await self._tell()
            await asyncio.sleep(PAUSE_SECONDS)

    async def _tell(self) -> None:
        totals = self._told = dict(self._refused)  # Before it is sent: `again` may come meanwhile.
        try:
            await self._rest.post(self._path, {"since": self._since, "refused": totals})
        except ControllerAwayError:
            self.again()
        except RefusedError as error:
            log.warning("the counts of what was refused are not taken", reason=str(error))
