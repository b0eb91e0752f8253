"""The passive side: switches dial in (`ovs-vsctl set-manager ssl:CONTROLLER:6640`).

Anyone may dial, so each connection must first show who it is: by its certificate, before a byte of it is
read, and by answering a request the way an OVSDB server does. One that does not is rejected and counted, and
the others never notice.
"""

import asyncio
import ssl as tls
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog

from retinue.core.limits import LARGEST_DATABASE, MOST_STRANGERS
from retinue.patience import patience
from retinue.security.listener.acceptor import Acceptor
from retinue.security.listener.pending import PendingConnections
from retinue.security.listener.rejections import Rejection
from retinue.security.listener.tls_gate import TlsGate, peer_name
from retinue.southbound.ovsdb.client import READ_BYTES, Connection, ConnectionLostError, OvsdbError
from retinue.southbound.ovsdb.wire import ProtocolError

log = structlog.get_logger()

PART = 0.25
"""Of the process's descriptors."""

Handler = Callable[[Connection], Awaitable[None]]
MayDial = Callable[[Mapping[str, Any] | None, str], str]
"""(certificate, peer) -> why its holder may not bring a database at all; "" when it may."""


class RejectedError(Exception):
    """A connection is not taken, or not kept; a handler may raise it. It is counted by `reason`."""

    def __init__(self, reason: Rejection, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class _Proving:
    """A connection that has yet to show what it is."""

    def __init__(self, writer: asyncio.StreamWriter, task: "asyncio.Task[Any]") -> None:
        self.peer = peer_name(writer.transport)
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.why: RejectedError | None = None
        self._writer = writer
        self._task = task

    def end(self, reason: str, kind: str = "") -> None:
        self.why = RejectedError(Rejection(kind), reason) if kind else None
        self._task.cancel()
        self._writer.transport.abort()


class OvsdbListener:
    """Accepts OVSDB servers and gives each to `handler`, which has the connection until it returns.

    `proof_timeout` is the time in seconds a peer has for TLS, and then to show what it is; `unproved_limit`
    is how many may be at that stage at once: of more, the oldest goes; `known` tells how many more may
    be, since so many databases are known. `may_dial` is asked first.
    """

    def __init__(
        self,
        handler: Handler,
        ssl: tls.SSLContext | None = None,
        *,
        proof_timeout: float = 5.0,
        unproved_limit: int = MOST_STRANGERS,
        probe: float | None = 5.0,
        may_dial: MayDial = lambda certificate, peer: "",
        known: Callable[[], int] = lambda: 0,
    ) -> None:
        self.rejected: Counter[str] = Counter()
        """Connections rejected, by Rejection."""
        self.accepted = 0
        self._handler = handler
        self._ssl = ssl
        self._proof_timeout = proof_timeout
        self._probe = probe
        self._may_dial = may_dial
        self._pending = PendingConnections(unproved_limit, self._reject, known)
        self._acceptor = Acceptor(
            self._streams if ssl is None else self._gate, self._pending, self._reject, PART
        )
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self, host: str = "", port: int = 6640) -> int:
        """Listen; return the port (port 0: any that is free). Raises OSError if that cannot be had."""
        return await self._acceptor.open(host or None, port)

    async def stop(self) -> None:
        """Stop listening, cancel the handlers, close every connection."""
        self._acceptor.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._pending.end("the controller stops")

    # ---- a connection ----

    def _gate(self) -> TlsGate:
        assert self._ssl is not None
        return TlsGate(self._ssl, self._proof_timeout, self._streams, self._pending)

    def _streams(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=READ_BYTES), self._arrived)

    def _arrived(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        proving = _Proving(writer, task)
        self._pending.enter(proving)
        try:
            connection = await self._prove(reader, writer, proving.peer)
        except RejectedError as e:
            self._pending.leave(proving, str(e), e.reason)
            writer.transport.abort()
            return
        except asyncio.CancelledError:
            writer.transport.abort()
            self._pending.leave(proving)
            if proving.why is None:
                raise
            self._reject(proving.peer, str(proving.why), proving.why.reason)
            return
        finally:
            proving.closed.set_result(None)
        self._pending.leave(proving)
        self.accepted += 1
        try:
            await self._handler(connection)
        except RejectedError as e:
            self._reject(connection.name, str(e), e.reason)
        except (ConnectionLostError, ProtocolError, OvsdbError, TimeoutError) as e:
            log.warning("ovsdb.disconnected", peer=connection.name, reason=str(e))
        except Exception:
            log.exception("ovsdb.handler_failed", peer=connection.name)
        finally:
            connection.close()

    def _reject(self, peer: str, reason: str, kind: str) -> None:
        self.rejected[kind] += 1
        log.warning("ovsdb.rejected", peer=peer, reason=kind, detail=reason)

    async def _prove(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str
    ) -> Connection:
        why_not = self._may_dial(writer.get_extra_info("peercert"), peer)
        if why_not:
            raise RejectedError(Rejection.IDENTITY, why_not)
        connection = Connection(reader, writer, probe=self._probe, limit=LARGEST_DATABASE)
        try:
            async with patience(self._proof_timeout):
                await connection.prove()
                return connection
        except BaseException as e:
            connection.close("rejected")
            match e:
                case TimeoutError():
                    raise RejectedError(Rejection.TIMEOUT, f"no proof in {self._proof_timeout:g} s") from e
                case ProtocolError():
                    raise RejectedError(Rejection.MALFORMED, str(e)) from e
                case OvsdbError():
                    raise RejectedError(Rejection.ERROR, f"list_dbs: {e}") from e
                case OSError():
                    raise RejectedError(Rejection.CLOSED, str(e)) from e
            raise
