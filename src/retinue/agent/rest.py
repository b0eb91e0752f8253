"""An agent's side of the controller's REST interface: one standing connection, and the event stream."""

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Protocol
from urllib.parse import quote

import aiohttp
import structlog

from retinue.agent.records import ACTED_ON, Happening, MoveRecord, RecordError, VMRecord, record
from retinue.pki.credentials import Credentials

ANSWER_LIMIT = 10.0
RETRY_SECONDS = 0.2
"""Between two attempts to tell the controller something while it is away."""
SILENCE_LIMIT = 60.0
"""Seconds without a word on the event stream; the controller writes a comment every 15."""

log = structlog.get_logger()


class ControllerAwayError(Exception):
    """The controller cannot be reached, or hung up."""


class RefusedError(Exception):
    """The controller did not accept what it was told; the message is its own."""


class Rest(Protocol):
    """What an agent needs of the controller. Every method raises ControllerAwayError, or RefusedError."""

    async def vms(self) -> list[VMRecord]: ...

    async def moves(self) -> list[MoveRecord]: ...

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Returns the answer."""

    def events(self, since: int | None) -> AsyncGenerator[Happening, None]:
        """A "hello", what has happened after event `since`, and what happens from now on.

        Ends when the controller hangs up.
        """


class Reports:
    """Tells the controller what happens: for each subject in order, and again while it cannot be reached."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest
        self._last: dict[str, asyncio.Task[None]] = {}

    def tell(
        self, subject: str, path: str, body: dict[str, Any], until: float = math.inf
    ) -> asyncio.Task[None]:
        """Send at once, but not before what was told earlier about this subject has arrived.

        The task ends when the controller has answered, or at `until` (seconds since the epoch), when it is no
        news any more.
        """
        task = asyncio.create_task(
            self._deliver(self._last.get(subject), path, body, until), name=f"report of {subject}"
        )
        self._last[subject] = task
        return task

    def busy(self, subject: str) -> bool:
        """True while something that was told about this subject has not arrived."""
        return subject in self._last and not self._last[subject].done()

    async def ask(self, subject: str, path: str, body: dict[str, Any], limit: float) -> dict[str, Any]:
        """Tell something whose answer matters; returns it when the controller has accepted it.

        Raises RefusedError, or ControllerAwayError when it does not answer within `limit` seconds.
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
                        log.warning("a question has to wait", path=path, reason=str(error))
                        await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            raise ControllerAwayError(f"the controller has not answered within {limit:g} s") from None

    async def delivered(self) -> None:
        """Wait until everything has been told."""
        while waiting := [task for task in self._last.values() if not task.done()]:
            await asyncio.wait(waiting)

    async def close(self) -> None:
        for task in self._last.values():
            task.cancel()
        await asyncio.gather(*self._last.values(), return_exceptions=True)

    async def _deliver(
        self, before: asyncio.Task[None] | None, path: str, body: dict[str, Any], until: float
    ) -> None:
        if before is not None and not before.done():
            await asyncio.wait({before})
        said = body.get("event") or body.get("kind")
        while time.time() < until:
            try:
                await self._rest.post(path, body)
            except RefusedError as error:
                log.warning("report refused", path=path, report=said, reason=str(error))
            except ControllerAwayError as error:
                log.warning("a report has to wait", path=path, report=said, reason=str(error))
                await asyncio.sleep(RETRY_SECONDS)
                continue
            return
        log.error("a report was not delivered", path=path, report=said)


class HttpRest:
    """The real one. `base` is such as "https://10.99.0.1:8080"; raises TlsFilesError.

    It shows what `credentials` say; left out, what the environment says.
    """

    def __init__(self, base: str, credentials: Credentials | None = None) -> None:
        self.base = base.rstrip("/")
        credentials = Credentials.of_environment() if credentials is None else credentials
        # Connections are kept for the report that matters most: that a VM has been resumed.
        connector = aiohttp.TCPConnector(
            keepalive_timeout=3600, force_close=False, ssl=credentials.ssl_for(self.base)
        )
        self._session = aiohttp.ClientSession(connector=connector, headers=credentials.headers)

    async def close(self) -> None:
        await self._session.close()

    async def vms(self) -> list[VMRecord]:
        return record(list[VMRecord], (await self._get("/v1/vms")).get("vms"))

    async def moves(self) -> list[MoveRecord]:
        return record(list[MoveRecord], (await self._get("/v1/moves")).get("moves"))

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return await self._ask("POST", path, json=body)

    async def events(self, since: int | None) -> AsyncGenerator[Happening, None]:
        query = "" if since is None else f"?since={since}"
        limits = aiohttp.ClientTimeout(total=None, sock_connect=ANSWER_LIMIT, sock_read=SILENCE_LIMIT)
        async with (
            _troubles(),
            self._session.get(
                f"{self.base}/v1/events{query}", timeout=limits, read_bufsize=1 << 22
            ) as response,
        ):
            response.raise_for_status()
            async for happening in parse_events(response.content):
                yield happening

    async def _get(self, path: str) -> dict[str, Any]:
        return await self._ask("GET", path)

    async def _ask(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        limits = aiohttp.ClientTimeout(total=ANSWER_LIMIT)
        async with (
            _troubles(),
            self._session.request(method, self.base + path, timeout=limits, **more) as response,
        ):
            body = await response.read()
            try:
                answer = json.loads(body) if body else {}
            except ValueError as error:
                raise ControllerAwayError(f"{self.base} does not speak JSON") from error
            if response.status >= 500:
                raise ControllerAwayError(f"{self.base} is out of order: status {response.status}")
            told: dict[str, Any] = answer if isinstance(answer, dict) else {}
            if response.status >= 400:
                raise RefusedError(str(told.get("error", f"status {response.status}")))
            return told


def quoted(id: str) -> str:
    """An id as a part of a path."""
    return quote(id, safe="")


@contextlib.asynccontextmanager
async def _troubles() -> AsyncIterator[None]:
    """A failure of the connection, in one kind of error."""
    try:
        yield
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise ControllerAwayError(
            f"the controller cannot be reached: {error or type(error).__name__}"
        ) from error


async def parse_events(
    lines: AsyncIterator[bytes] | asyncio.StreamReader | aiohttp.StreamReader,
) -> AsyncGenerator[Happening, None]:
    """Server-sent events (WHATWG HTML, "server-sent events"), of which those are told that are acted on.

    One whose data is not as agreed is left out, and logged.
    """
    kind, data = "message", b""
    async for line in lines:
        field, _, value = line.rstrip(b"\r\n").partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            kind = value.decode(errors="replace")
        elif field == b"data":
            data += value
        elif not field and not value and not line.startswith(b":"):
            if kind in ACTED_ON:
                try:
                    yield _happening(kind, data)
                except RecordError as error:
                    log.error("event left out", error=str(error))
            kind, data = "message", b""


def _happening(kind: str, data: bytes) -> Happening:
    try:
        value = json.loads(data) if data else {}
    except ValueError as error:
        raise RecordError(f"the data of an event {kind} is not JSON") from error
    if not isinstance(value, dict):
        raise RecordError(f"the data of an event {kind} is no object")
    if kind == "vm.renew":
        value.pop("vm", None)  # its id only
    return record(Happening, {**value, "type": kind})
