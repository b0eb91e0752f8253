"""Reports to the controller: in order for each subject, and again while the controller is away."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from typing import Any, Protocol

import structlog

from retinue.protocol.errors import ControllerAwayError, RejectedError
from retinue.protocol.events import ControllerEvent
from retinue.protocol.migrations import MigrationRecord
from retinue.protocol.vms import VMsRecord

RETRY_SECONDS = 0.2
"""Between two attempts to report while the controller is away."""

log = structlog.get_logger()


class Rest(Protocol):
    """What an agent needs of the controller (protocol.client). Every method raises ControllerError."""

    async def vms(self) -> VMsRecord: ...

    async def migrations(self) -> list[MigrationRecord]: ...

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Returns the answer."""

    def events(self, since: int | None) -> AsyncGenerator[ControllerEvent, None]:
        """A hello, the events after event `since`, and those to come, until the controller hangs up."""


class Reports:
    """Delivers reports to the controller in the background, in order for each subject.

    Reports about one subject, such as a VM, wait for each other; those about others do not wait for them.
    """

    def __init__(self, rest: Rest) -> None:
        self._rest = rest
        self._last: dict[str, asyncio.Task[dict[str, Any]]] = {}

    def tell(
        self, subject: str, path: str, body: dict[str, Any], until: float = math.inf
    ) -> asyncio.Task[dict[str, Any]]:
        """Send at once, but not before earlier reports about this subject have arrived.

        The task ends with the controller's answer; with none when it was rejected, or at `until` (seconds
        since the epoch), when it is no news any more.
        """
        task = asyncio.create_task(
            self._deliver(self._last.get(subject), path, body, until), name=f"report of {subject}"
        )
        self._last[subject] = task
        return task

    def busy(self, subject: str) -> bool:
        """True while a report about this subject has not arrived."""
        return subject in self._last and not self._last[subject].done()

    async def ask(self, subject: str, path: str, body: dict[str, Any], limit: float) -> dict[str, Any]:
        """Tell something whose answer matters; returns it when the controller has accepted it.

        Raises RejectedError, or ControllerAwayError when it does not answer within `limit` seconds.
        """
        before = self._last.get(subject)
        try:
            async with asyncio.timeout(limit):
                if before is not None and not before.done():
                    await asyncio.wait({before})
                while True:
                    try:
                        return await self._rest.post(path, body)
                    except ControllerAwayError as error:
                        log.warning("report.question_waits", path=path, reason=str(error))
                        await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            raise ControllerAwayError(f"the controller has not answered within {limit:g} s") from None

    async def delivered(self) -> None:
        """Wait until every report has arrived."""
        while waiting := [task for task in self._last.values() if not task.done()]:
            await asyncio.wait(waiting)

    async def close(self) -> None:
        for task in self._last.values():
            task.cancel()
        await asyncio.gather(*self._last.values(), return_exceptions=True)

    async def _deliver(
        self, before: asyncio.Task[dict[str, Any]] | None, path: str, body: dict[str, Any], until: float
    ) -> dict[str, Any]:
        if before is not None and not before.done():
            await asyncio.wait({before})
        report = body.get("event") or body.get("kind")
        while time.time() < until:
            try:
                return await self._rest.post(path, body)
            except RejectedError as error:
                log.warning("report.rejected", path=path, report=report, reason=str(error))
                return {}
            except ControllerAwayError as error:
                log.warning("report.waits", path=path, report=report, reason=str(error))
                await asyncio.sleep(RETRY_SECONDS)
        log.error("report.not_delivered", path=path, report=report)
        return {}
