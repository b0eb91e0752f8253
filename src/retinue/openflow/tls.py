"""The TLS handshake in front of a connection, so that one that fails is counted and told like any other."""

import asyncio
import ssl
from collections.abc import Callable

from retinue.openflow.connection import Connection, peer_name


class TlsGate(asyncio.Protocol):
    """Takes an accepted socket through the TLS handshake, then hands it to a Connection.

    `done` is called at its end, with the gate, why it failed and a word to count that by; both empty if not.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        timeout: float,
        opened: Callable[["TlsGate"], None],
        make: Callable[[], Connection],
        done: Callable[["TlsGate", str, str], None],
    ) -> None:
        self.peer = "?"
        self._context = context
        self._timeout = timeout
        self._opened = opened
        self._make = make
        self._done = done
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._given_up = ("", "")
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()  # What comes next is for TLS, not for us.
        self._transport = transport
        self.peer = peer_name(transport)
        self._opened(self)
        self._task = asyncio.get_running_loop().create_task(self._shake(transport))
        self._task.add_done_callback(lambda _: self.closed.set_result(None))

    def end(self, reason: str, kind: str = "") -> None:
        """Give up the handshake. Without a kind it is nothing the peer did."""
        self._given_up = (reason, kind)
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.abort()

    async def _shake(self, transport: asyncio.Transport) -> None:
        connection = self._make()
        failure, kind = "the peer went away", "tls"
        secured: asyncio.Transport | None = None
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport, connection, self._context, server_side=True, ssl_handshake_timeout=self._timeout
            )
        except asyncio.CancelledError:
            failure, kind = self._given_up
        except (OSError, TimeoutError) as problem:  # ssl.SSLError is an OSError.
            failure = str(problem) or type(problem).__name__
        if secured is None:
            transport.abort()
            self._done(self, f"TLS handshake failed: {failure}", kind)
            return
        self._done(self, "", "")
        connection.connection_made(secured)
