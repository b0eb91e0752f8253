"""The one client of the controller's REST interface for programs with an event loop: agents, lab, tests.

Of several controllers the one that answered last is asked; when it is away, or a standby, the next.
"""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Self

import aiohttp
import structlog

from retinue import __version__
from retinue.core.limits import LARGEST_EVENT
from retinue.core.text import cut, printable
from retinue.protocol import sse
from retinue.protocol.addresses import urls_of
from retinue.protocol.errors import (
    ControllerAwayError,
    ErrorCode,
    NotServedError,
    RecordError,
    RejectedError,
)
from retinue.protocol.events import ACTED_ON, HELLO, ControllerEvent, controller_event
from retinue.protocol.migrations import MigrationRecord
from retinue.protocol.records import record
from retinue.protocol.releases import AGENT_HEADER
from retinue.protocol.renewals import Order, RenewalReport, order_of
from retinue.protocol.routes import Route
from retinue.protocol.vms import VMsRecord
from retinue.security.credentials import Credentials

ANSWER_LIMIT = 10.0
LONG_POLL = 30.0
"""Seconds for which the end of a renewal is waited for in one request."""
SILENCE_LIMIT, SOONER = 60.0, 15.0
"""Seconds without a byte on the event stream, and of one of several controllers: another may be active. The
controller writes a comment every 5."""
log = structlog.get_logger()


class ControllerClient:
    """Speaks to the controller at `base`, such as "https://192.0.2.1:8080"; of several, to the active one.
    Close it after use.

    The client authenticates by `credentials`; left out, by what the environment names. Its methods raise
    ControllerError: ControllerAwayError, RejectedError, or RecordError for an answer that is not as agreed.
    """

    def __init__(
        self,
        base: str,
        credentials: Credentials | None = None,
        connector: aiohttp.BaseConnector | None = None,
        agent_of: str = "",
        largest: int | None = None,
        whom: str = "the controller",
    ) -> None:
        """`base`: one URL, or several with commas between them. `connector`: how connections are made,
        instead of plainly. `agent_of`: the server whose agent this is. `largest`: bytes of an answer, as it
        comes; of another domain's controller it may be as long as that likes. `whom`: as errors call it.
        Raises TlsFilesError.
        """
        self._bases = urls_of(base)
        self._agent_of = agent_of or None
        credentials = Credentials.of_environment() if credentials is None else credentials
        connector = connector or lasting(credentials.ssl_for(self.base))
        self._largest, self._whom = largest, whom
        headers = {**credentials.headers, AGENT_HEADER: __version__} if agent_of else credentials.headers
        # A compressed answer would be as large as it likes, too; then it is not read.
        self._session = aiohttp.ClientSession(
            connector=connector, headers=headers, auto_decompress=largest is None
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._session.close()

    @property
    def base(self) -> str:
        """The one that is asked."""
        return self._bases[0]

    def _ask_another(self, base: str) -> None:
        """This one is not to be asked next."""
        if self._bases[0] == base:
            self._bases = [*self._bases[1:], base]

    # ---- anything, as JSON ----

    async def get(self, path: str) -> dict[str, Any]:
        """`path` as Route.path makes it."""
        return await self.request("GET", path)

    async def post(self, path: str, body: Any = None) -> dict[str, Any]:
        return await self.request("POST", path, body)

    async def request(
        self, method: str, path: str, body: Any = None, limit: float = ANSWER_LIMIT
    ) -> dict[str, Any]:
        """The answer; of several controllers' the first that serves it. What one may have done is not asked
        of another."""
        reads = method == "GET"
        for _ in self._bases[1:]:
            with contextlib.suppress(ControllerAwayError if reads else NotServedError):
                return await self._request(method, path, body, limit)
        return await self._request(method, path, body, limit)

    async def _request(self, method: str, path: str, body: Any, limit: float) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=limit)
        async with (
            self._troubles() as base,
            self._session.request(method, base + path, json=body, timeout=timeout) as response,
        ):
            data = await self._read(response)
            try:
                answer = json.loads(data) if data else {}
            except ValueError as error:
                raise ControllerAwayError(f"{base} does not speak JSON") from error
            found: dict[str, Any] = answer if isinstance(answer, dict) else {}
            if found.get("code") == ErrorCode.STANDBY:
                raise NotServedError(self._shown(found.get("error", f"{base} is a standby")))
            if response.status >= 500:
                raise ControllerAwayError(f"{base} is out of order: status {response.status}")
            if response.status >= 400:
                message = self._shown(found.get("error", f"status {response.status}"))
                raise RejectedError(message, str(found.get("code", "")), response.status)
            return found

    def _shown(self, error: object) -> str:
        return str(error) if self._largest is None else cut(printable(str(error)))

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        if self._largest is None:
            return await response.read()
        data = bytearray()
        async for part in response.content.iter_any():
            data += part
            if len(data) > self._largest:
                raise ControllerAwayError(f"{self.base} answers with more than {self._largest} bytes")
        return bytes(data)

    # ---- records ----

    async def vms(self) -> VMsRecord:
        return record(VMsRecord, await self.get(Route.LIST_VMS.path()))

    async def migrations(self) -> list[MigrationRecord]:
        answer = await self.get(Route.LIST_MIGRATIONS.path())
        return record(list[MigrationRecord], answer.get("migrations"))

    async def renew(self, vm: str, server: str = "") -> Order:
        """Have a renewal ordered; whoever calls carries it out."""
        body = {"server": server, "agent": True}
        return order_of(await self.post(Route.RENEW_LEASE.path(vm), body))

    async def renewal_ended(self, id: str) -> Order:
        """The order of a renewal, when it has ended."""
        path = Route.GET_RENEWAL.path(id, wait=f"{LONG_POLL:.0f}")
        while True:
            order = order_of(await self.request("GET", path, limit=ANSWER_LIMIT + LONG_POLL))
            if order.state.ended:
                return order

    async def report_renewal(self, id: str, report: RenewalReport, reason: str) -> None:
        await self.post(Route.REPORT_RENEWAL.path(id), {"event": report, "reason": reason})

    # ---- events ----

    async def last_event(self) -> int:
        """Id of the latest event. Asked before something is done, nothing that follows can be missed."""
        return int((await self.get(Route.GET_STATUS.path()))["last_event"])

    async def events(self, since: int | None) -> AsyncGenerator[ControllerEvent, None]:
        """A hello, the events after event `since`, and those to come: the ones that an agent acts on.

        Ends when the controller hangs up. An event whose data is not as agreed is left out, and logged.
        """
        wanted = ",".join(sorted(ACTED_ON - {HELLO}))
        async with contextlib.aclosing(self._stream(since, wanted)) as stream:
            async for event in stream:
                if event.type in ACTED_ON:
                    try:
                        yield controller_event(event.type, event.data)
                    except RecordError as error:
                        log.error("events.left_out", error=str(error))

    async def all_events(self, since: int | None) -> AsyncGenerator[dict[str, Any], None]:
        """The same, but all of them, as JSON."""
        async with contextlib.aclosing(self._stream(since)) as stream:
            async for event in stream:
                yield json.loads(event.data)

    async def _stream(
        self, since: int | None, types: str | None = None
    ) -> AsyncGenerator[sse.ServerSentEvent, None]:
        silence = SILENCE_LIMIT if len(self._bases) == 1 else SOONER
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=ANSWER_LIMIT, sock_read=silence)
        path = Route.FOLLOW_EVENTS.path(since=since, types=types, server=self._agent_of)
        async with self._troubles() as base, self._session.get(base + path, timeout=timeout) as response:
            response.raise_for_status()
            parser, lines, left_out = sse.Parser(), sse.Lines(LARGEST_EVENT), 0
            async for data in response.content.iter_any():
                for line in lines.feed(data):
                    if (event := parser.line(line)) is not None:
                        yield event
                if lines.left_out > left_out:
                    left_out = lines.left_out
                    log.error("events.left_out", error=f"larger than {LARGEST_EVENT} bytes")

    @contextlib.asynccontextmanager
    async def _troubles(self) -> AsyncIterator[str]:
        """The controller that is asked; its failures, and what comes from it that makes no sense, in one kind
        of error. Another one is asked next then."""
        base = self.base
        try:
            yield base
        except ControllerAwayError:
            self._ask_another(base)
            raise
        except (
            aiohttp.ClientError,
            aiohttp.http_exceptions.HttpProcessingError,
            OSError,
            TimeoutError,
            asyncio.IncompleteReadError,
            ValueError,
        ) as error:
            self._ask_another(base)
            reason = f"{self._whom} at {base} cannot be reached: {str(error) or type(error).__name__}"
            if isinstance(error, aiohttp.ClientConnectorError):
                raise NotServedError(reason) from error
            raise ControllerAwayError(reason) from error


def lasting(ssl: ssl.SSLContext | bool) -> aiohttp.BaseConnector:
    """Connections that are kept for the report that matters most: that a VM has been resumed."""
    return aiohttp.TCPConnector(keepalive_timeout=3600, force_close=False, ssl=ssl)
