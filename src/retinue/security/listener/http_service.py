"""An HTTP application as a service: the listener in front of the HTTP library, with or without TLS, and who
is a stranger there.

A connection is a stranger's until a request of its has been accepted: TLS alone does not show who the peer
is where a token will do. Strangers have a time for their first request, and are so many at most; what goes
wrong is counted here.
"""

import asyncio
import logging
import ssl
from collections import Counter
from collections.abc import Callable

import structlog
from aiohttp import web

from retinue.core.limits import MOST_STRANGERS
from retinue.patience import after
from retinue.security.listener.acceptor import Acceptor
from retinue.security.listener.pending import PendingConnections
from retinue.security.listener.rejections import Rejection
from retinue.security.listener.tls_gate import TlsGate, peer_name

log = structlog.get_logger()

HANDSHAKE_SECONDS = 5.0
FIRST_REQUEST_LIMIT = 10.0
"""Seconds from the handshake until a request has been accepted."""
PART = 0.5
"""Of the process's descriptors."""


class HttpService:
    """Serves an application from `start` to `stop`; counts in `rejected` what does not come so far."""

    def __init__(
        self,
        app: web.Application,
        rejected: Counter[str],
        context: ssl.SSLContext | None = None,
        known: Callable[[], int] = lambda: 0,
    ) -> None:
        """`context`: a server's; None: plain text. `known`: how many agents there may be, which may come back
        all at once."""
        self._rejected, self._context, self._known = rejected, context, known
        self._runner = web.AppRunner(
            app, access_log=None, logger=_RejectionLogger(rejected), shutdown_timeout=1.0
        )
        self._listener: HttpListener | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which the system chooses when given 0. Raises OSError."""
        await self._runner.setup()
        assert self._runner.server is not None
        self._listener = HttpListener(self._runner.server, self._rejected, self._context, self._known)
        return await self._listener.open(host, port)

    async def stop(self) -> None:
        if self._listener is not None:
            await self._listener.close()
        await self._runner.cleanup()


class HttpListener:
    def __init__(
        self,
        server: web.Server,
        rejected: Counter[str],
        context: ssl.SSLContext | None,
        known: Callable[[], int],
    ) -> None:
        self._protocols = server
        self._rejected = rejected
        self._context = context
        self._pending = PendingConnections(MOST_STRANGERS, self._reject, known)
        make = self._gate if context is not None else self._stranger
        self._acceptor = Acceptor(make, self._pending, self._reject, PART)

    async def open(self, host: str, port: int) -> int:
        """Listen; the port, which the system chooses when given 0. Raises OSError."""
        return await self._acceptor.open(host, port)

    async def close(self) -> None:
        """Stop listening; connections that stand are the HTTP library's."""
        self._acceptor.close()
        await self._pending.end("the controller stops")

    def _gate(self) -> TlsGate:
        assert self._context is not None
        return TlsGate(self._context, HANDSHAKE_SECONDS, self._stranger, self._pending)

    def _stranger(self) -> "Stranger":
        return Stranger(self._protocols(), self._pending)

    def _reject(self, peer: str, reason: str, kind: str) -> None:
        self._rejected[kind] += 1
        log.warning("rest.connection_rejected", peer=peer, reason=reason)


class Stranger(asyncio.Protocol):
    """Stands between a connection and the HTTP library until a request has been accepted."""

    def __init__(self, http: asyncio.Protocol, pending: PendingConnections) -> None:
        self.peer = "?"
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._http = http
        self._pending = pending
        self._transport: asyncio.Transport | None = None
        self._ended = ("", "")
        limit = f"no request was accepted within {FIRST_REQUEST_LIMIT:g} s"
        self._timer = after(FIRST_REQUEST_LIMIT, lambda: self.end(limit, Rejection.TIMEOUT))

    def accepted(self) -> None:
        """The peer has shown who it is: from here on the connection is the HTTP library's."""
        self._leave()
        if self._transport is not None:
            self._transport.set_protocol(self._http)

    def end(self, reason: str, kind: str = "") -> None:
        self._ended = (reason, kind)
        if self._transport is not None:
            self._transport.abort()

    def _leave(self, reason: str = "", kind: str = "") -> None:
        self._timer.cancel()
        self._pending.leave(self, reason, kind)
        if not self.closed.done():
            self.closed.set_result(None)

    # ---- asyncio's side ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.peer = peer_name(transport)
        self._pending.enter(self)
        self._http.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._http.data_received(data)

    def eof_received(self) -> bool | None:
        return self._http.eof_received()

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave(*self._ended)
        self._http.connection_lost(exc)


def accepted(request: web.Request) -> None:
    """A request has been accepted: its sender is no stranger any more."""
    protocol = request.transport.get_protocol() if request.transport is not None else None
    if isinstance(protocol, Stranger):
        protocol.accepted()


class _RejectionLogger(logging.Logger):
    """Where the HTTP library reports what is not HTTP: counted, and logged in one line."""

    def __init__(self, rejected: Counter[str]) -> None:
        super().__init__("retinue.rest")
        self._rejected = rejected

    def handle(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        reason = str(error or record.getMessage()).strip().splitlines()[:1]
        self._rejected[Rejection.MALFORMED] += 1
        log.warning("rest.rejected", code=str(Rejection.MALFORMED), reason=reason[0] if reason else "")
