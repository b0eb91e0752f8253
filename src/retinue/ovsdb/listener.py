"""The passive side: switches dial in (`ovs-vsctl set-manager ssl:CONTROLLER:6640`).

Anyone may dial, so each connection must first answer a request the way an OVSDB server does; one that does
not is refused and counted, and the others never notice.
"""

import asyncio
import ssl as tls
from collections import Counter
from collections.abc import Awaitable, Callable

import structlog

from retinue.ovsdb.client import READ_BYTES, Connection, ConnectionLostError, OvsdbError
from retinue.ovsdb.wire import ProtocolError

log = structlog.get_logger()

Handler = Callable[[Connection], Awaitable[None]]


class RefusedError(Exception):
    """A connection is not taken, or not kept; a handler may raise it. `reason` is the word to count by."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class OvsdbListener:
    """Accepts OVSDB servers and gives each to `handler`, which has the connection until it returns.

    `proof_timeout` is the time in seconds a peer has to show what it is, TLS included; `unproved_limit` is
    how many may be at that stage at once.
    """

    def __init__(
        self,
        handler: Handler,
        ssl: tls.SSLContext | None = None,
        *,
        proof_timeout: float = 5.0,
        unproved_limit: int = 256,
        probe: float | None = 5.0,
    ) -> None:
        self.refused: Counter[str] = Counter()
        """Connections refused, by reason: "garbage", "silent", "gone", "error", "tls", "crowd", and what the
        handler refuses."""
        self.accepted = 0
        self._handler = handler
        self._ssl = ssl
        self._proof_timeout = proof_timeout
        self._unproved_limit = unproved_limit
        self._probe = probe
        self._server: asyncio.Server | None = None
        self._unproved = 0
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self, host: str = "", port: int = 6640) -> int:
        """Listen; return the port (port 0: any that is free). Raises OSError if that cannot be had."""
        self._server = await asyncio.start_server(self._arrived, host or None, port, limit=READ_BYTES)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Stop listening, cancel the handlers, close every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _arrived(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = str(writer.get_extra_info("peername"))
        try:
            connection = await self._prove(reader, writer)
        except RefusedError as e:
            self._refuse(peer, e)
            writer.transport.abort()
            return
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        self.accepted += 1
        try:
            await self._handler(connection)
        except RefusedError as e:
            self._refuse(connection.name, e)
        except (ConnectionLostError, ProtocolError, OvsdbError, TimeoutError) as e:
            log.warning("OVSDB connection ended", peer=connection.name, reason=str(e))
        except Exception:
            log.exception("OVSDB connection's handler failed", peer=connection.name)
        finally:
            connection.close()

    def _refuse(self, peer: str, error: RefusedError) -> None:
        self.refused[error.reason] += 1
        log.warning("OVSDB connection refused", peer=peer, reason=error.reason, detail=str(error))

    async def _prove(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Connection:
        if self._unproved >= self._unproved_limit:
            raise RefusedError("crowd", f"{self._unproved} connections have yet to show what they are")
        self._unproved += 1
        connection = None
        try:
            async with asyncio.timeout(self._proof_timeout):
                if self._ssl is not None:
                    await writer.start_tls(self._ssl)
                connection = Connection(reader, writer, probe=self._probe)
                await connection.prove()
                return connection
        except BaseException as e:
            if connection is not None:
                connection.close("refused")
            match e:
                case TimeoutError():
                    raise RefusedError("silent", f"no proof in {self._proof_timeout:g} s") from e
                case ProtocolError():
                    raise RefusedError("garbage", str(e)) from e
                case tls.SSLError() | tls.CertificateError():
                    raise RefusedError("tls", str(e)) from e
                case OvsdbError():
                    raise RefusedError("error", f"list_dbs: {e}") from e
                case OSError():
                    raise RefusedError("gone", str(e)) from e
            raise
        finally:
            self._unproved -= 1
