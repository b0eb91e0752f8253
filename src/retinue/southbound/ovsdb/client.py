"""One end of an OVSDB connection (RFC 7047, section 4), whichever side opened it.

Replies are handed over in the order they came, before anything that follows them on the wire is looked at;
a replica depends on that (see `call`'s `on_reply`).
"""

import asyncio
import itertools
import ssl as tls
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from retinue import socket_addresses
from retinue.core.limits import LARGEST_FIRST_MESSAGE
from retinue.patience import patience, pause, served
from retinue.southbound.ovsdb.wire import (
    REPLY_LIMIT,
    Framer,
    Message,
    ProtocolError,
    decode,
    encode,
)

READ_BYTES = 1 << 18
UNREAD_LIMIT = 64 << 20
"""Bytes that may wait for a peer that does not read them, before the connection is closed."""
CALL_TIMEOUT = 10.0

log = structlog.get_logger()


class OvsdbError(Exception):
    """The server rejected: `error` is its word for it (RFC 7047, section 3.1), `details` its explanation."""

    def __init__(self, error: str, details: str = "", operation: int | None = None) -> None:
        self.error = error
        self.details = details
        self.operation = operation
        """Index of the operation at fault in a transaction; None for a request, or for the commit."""
        where = "" if operation is None else f" (operation {operation})"
        super().__init__(f"{error}: {details}{where}" if details else f"{error}{where}")


class ConnectionLostError(ConnectionError):
    """The connection ended; the message says why. Whether an unanswered request was done is unknown."""


class Connection:
    """Requests, replies and notifications over a stream. Reads from its creation until it is closed.

    `probe` is the silence in seconds after which the peer is asked for an echo; when as long again passes
    without an answer the connection is closed. None: never ask.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        name: str = "",
        *,
        probe: float | None = 5.0,
        limit: int = REPLY_LIMIT,
    ) -> None:
        self.name = name or _peer(writer)
        self.certificate: Mapping[str, Any] | None = writer.get_extra_info("peercert")
        """The peer's verified certificate, as ssl.SSLSocket.getpeercert shows it; None without TLS."""
        self.ignored = 0
        """Notifications nobody asked for, and requests we do not serve."""
        self._reader = reader
        self._writer = writer
        self._framer = Framer(LARGEST_FIRST_MESSAGE)
        self._limit = limit
        self._ids = itertools.count(1)
        self._last_id = 0
        self._waiting: dict[int, _Waiting] = {}
        self._handlers: dict[str, Callable[[list[Any]], None]] = {}
        self._ended: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._heard = served()
        self._tasks = [asyncio.create_task(self._read(), name=f"ovsdb read {self.name}")]
        if probe:
            self._tasks.append(asyncio.create_task(self._probe(probe), name=f"ovsdb probe {self.name}"))

    # ---- requests ----

    async def call(
        self,
        method: str,
        params: Sequence[Any],
        timeout: float | None = CALL_TIMEOUT,
        *,
        on_reply: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Send a request and return the reply's result, or what `on_reply` makes of it.

        `on_reply` runs before the next message is read. Raises OvsdbError (the server rejected),
        ConnectionLostError, TimeoutError, and ProtocolError (from `on_reply`; the connection is then closed).
        """
        if self._ended.done():
            raise self._lost()
        number = self._last_id = next(self._ids)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = _Waiting(future, on_reply)
        try:
            self._send({"method": method, "params": params, "id": number})
            async with patience(timeout):
                return await future
        except TimeoutError:
            raise TimeoutError(f"{self.name}: no answer to {method} in {timeout} s") from None
        finally:
            self._waiting.pop(number, None)

    async def transact(
        self, database: str, operations: Sequence[Mapping[str, Any]], timeout: float | None = CALL_TIMEOUT
    ) -> list[dict[str, Any]]:
        """Do the operations as one transaction (RFC 7047, section 4.1.3); return one result for each.

        Raises OvsdbError if any operation or the commit failed; nothing was changed then.
        """

        def check(result: Any) -> list[dict[str, Any]]:
            if not isinstance(result, list):
                raise ProtocolError(f"a transaction's result is a list, not {result!r:.60}")
            for index, one in enumerate(result):
                if isinstance(one, dict) and "error" in one:
                    raise _server_error(one, index if index < len(operations) else None)
            if len(result) < len(operations) or not all(isinstance(one, dict) for one in result):
                raise ProtocolError(f"{len(operations)} operations were answered with {result!r:.60}")
            return result[: len(operations)]

        done = await self.call("transact", [database, *operations], timeout, on_reply=check)
        assert isinstance(done, list)
        return done

    async def prove(self, timeout: float | None = None) -> list[str]:
        """Have the peer show that it speaks OVSDB; return its databases' names. Raises as `call` does."""

        def check(names: Any) -> list[str]:
            if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
                raise ProtocolError(f"databases are listed as {names!r:.60}")
            return names

        names: list[str] = await self.call("list_dbs", [], timeout, on_reply=check)
        return names

    def on_notification(self, method: str, handler: Callable[[list[Any]], None] | None) -> None:
        """Have `handler` called with the parameters of each such notification, in order; None: no more.

        A ProtocolError it raises closes the connection.
        """
        if handler is None:
            self._handlers.pop(method, None)
        else:
            self._handlers[method] = handler

    # ---- the end ----

    @property
    def is_open(self) -> bool:
        return not self._ended.done()

    def trust(self) -> None:
        """The peer has shown what it is: from here on its messages may have the full size."""
        self._framer.limit = self._limit

    def close(self, reason: Exception | str = "closed by us") -> None:
        """End the connection; every waiting call raises. Closing it again does nothing."""
        if self._ended.done():
            return
        self._ended.set_result(reason if isinstance(reason, Exception) else ConnectionLostError(reason))
        for task in self._tasks:
            task.cancel()
        self._writer.transport.abort()
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.set_exception(self._lost())
        self._waiting.clear()
        self._handlers.clear()

    async def closed(self) -> Exception:
        """Wait for the end; return why: a ConnectionLostError, or the peer's ProtocolError."""
        return await asyncio.shield(self._ended)

    def _lost(self) -> Exception:
        reason = self._ended.result()
        if isinstance(reason, ProtocolError):
            return ProtocolError(f"{self.name}: {reason}")
        return ConnectionLostError(f"{self.name}: {reason}")

    # ---- what comes in ----

    async def _read(self) -> None:
        try:
            while data := await self._reader.read(READ_BYTES):
                self._heard = served()
                for text in self._framer.feed(data):
                    self._take(decode(text))
                    if self._ended.done():
                        return
            self.close(ConnectionLostError("the peer closed the connection"))
        except ProtocolError as e:
            self.close(e)
        except OSError as e:
            self.close(ConnectionLostError(f"connection broken: {e}"))

    def _take(self, message: Message) -> None:
        if message.method is None:
            self._take_reply(message)
            return
        if not isinstance(message.params, list):
            raise ProtocolError(f"{message.method} came with parameters {message.params!r:.60}, not a list")
        if message.id is None:
            handler = self._handlers.get(message.method)
            if handler is None:
                self.ignored += 1
            else:
                handler(message.params)
        elif message.method == "echo":
            self._send({"result": message.params, "error": None, "id": message.id})
        else:
            self.ignored += 1
            self._send({"result": None, "error": "unknown method", "id": message.id})

    def _take_reply(self, message: Message) -> None:
        number = message.id
        if type(number) is not int or not 0 < number <= self._last_id:
            raise ProtocolError(f"a reply to request {number!r:.60}, which was never made")
        waiting = self._waiting.pop(number, None)
        if waiting is None or waiting.future.done():
            return  # an answer to a call that timed out, or was cancelled
        if message.error is not None:
            waiting.future.set_exception(_server_error(message.error))
            return
        self.trust()
        try:
            made = waiting.on_reply(message.result) if waiting.on_reply else message.result
        except ProtocolError as e:
            waiting.future.set_exception(ProtocolError(f"{self.name}: {e}"))
            raise
        except Exception as e:
            waiting.future.set_exception(e)
        else:
            waiting.future.set_result(made)

    # ---- what goes out ----

    def _send(self, message: Mapping[str, Any]) -> None:
        # No waiting for the peer to read: were the reader to wait while the peer waits for it, neither
        # would ever go on. What the peer leaves unread is limited instead.
        self._writer.write(encode(message))
        unread = self._writer.transport.get_write_buffer_size()
        if unread > UNREAD_LIMIT:
            self.close(ConnectionLostError(f"the peer has left {unread} bytes unread"))

    async def _probe(self, interval: float) -> None:
        while True:
            await pause(max(0.0, self._heard + interval - served()))
            silence_since = self._heard
            if served() - silence_since < interval:
                continue
            self._last_id = next(self._ids)
            self._send({"method": "echo", "params": [], "id": self._last_id})
            await pause(interval)
            if self._heard == silence_since:
                self.close(ConnectionLostError(f"nothing came from the peer in {2 * interval:g} s"))
                return


class _Waiting:
    __slots__ = ("future", "on_reply")

    def __init__(self, future: asyncio.Future[Any], on_reply: Callable[[Any], Any] | None) -> None:
        self.future = future
        self.on_reply = on_reply


async def connect(
    endpoint: str,
    *,
    ssl: tls.SSLContext | None = None,
    timeout: float = CALL_TIMEOUT,
    probe: float | None = 5.0,
) -> Connection:
    """Connect to "tcp:HOST:PORT", "ssl:HOST:PORT" (with `ssl`) or "unix:PATH"; an IPv6 host in brackets.

    Raises ValueError (no such form), OSError or TimeoutError (nothing there, or it does not answer),
    ProtocolError or OvsdbError (it answers, but not as an OVSDB server).
    """
    kind, _, rest = endpoint.partition(":")
    try:
        host, port = (rest, 0) if kind == "unix" and rest else socket_addresses.endpoint(rest)
    except ValueError:
        kind = ""
    if kind not in ("unix", "tcp", "ssl"):
        raise ValueError(f"{endpoint!r} is not tcp:HOST:PORT, ssl:HOST:PORT or unix:PATH")
    if kind == "ssl" and ssl is None:
        raise ValueError(f"{endpoint!r}: TLS needs a certificate and a key, none are given")
    connection = None
    try:
        async with asyncio.timeout(timeout):
            if kind == "unix":
                with socket_addresses.short_path(rest) as path:
                    streams = await asyncio.open_unix_connection(path, limit=READ_BYTES)
            else:
                streams = await asyncio.open_connection(
                    host, port, limit=READ_BYTES, ssl=ssl if kind == "ssl" else None
                )
            connection = Connection(*streams, endpoint, probe=probe)
            await connection.prove()
            return connection
    except BaseException as e:
        if connection is not None:
            connection.close("not an OVSDB server")
        if isinstance(e, TimeoutError):
            raise TimeoutError(f"{endpoint}: no answer in {timeout:g} s") from None
        raise


def _server_error(error: Any, operation: int | None = None) -> OvsdbError:
    if isinstance(error, dict):
        return OvsdbError(str(error.get("error")), str(error.get("details") or ""), operation)
    return OvsdbError(str(error), "", operation)


def _peer(writer: asyncio.StreamWriter) -> str:
    match writer.get_extra_info("peername"):
        case (str(host), int(port), *_):
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        case _:
            return "unix peer"
