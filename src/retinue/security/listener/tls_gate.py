"""The TLS handshake in front of a listener's protocol: a handshake that fails is counted and logged by us."""

import asyncio
import ssl
from collections.abc import Callable

from retinue.security.listener.pending import PendingConnections
from retinue.security.listener.rejections import Rejection


class _Early(asyncio.Protocol):
    """Keeps what arrives between the end of the handshake and the hand-over to the listener's protocol."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.eof = False
        self.lost: list[Exception | None] = []

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> None:
        self.eof = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)

    def hand_over(self, secured: asyncio.Transport, protocol: asyncio.Protocol) -> None:
        secured.set_protocol(protocol)
        protocol.connection_made(secured)
        if self.data:
            protocol.data_received(bytes(self.data))
        if self.eof:
            protocol.eof_received()
        for exc in self.lost:
            protocol.connection_lost(exc)


class TlsGate(asyncio.Protocol):
    """Takes an accepted socket through the TLS handshake, then hands it to the protocol that `make` makes.

    Until then it is one of the `pending` connections, which count a handshake that fails.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        timeout: float,
        make: Callable[[], asyncio.Protocol],
        pending: PendingConnections,
    ) -> None:
        self.peer = "?"
        self._context = context
        self._timeout = timeout
        self._make = make
        self._pending = pending
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._given_up = ("", "")
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()  # What comes next is for TLS, not for us.
        self._transport = transport
        self.peer = peer_name(transport)
        self._pending.enter(self)
        self._task = asyncio.get_running_loop().create_task(self._shake(transport))
        self._task.add_done_callback(self._ended)

    def end(self, reason: str, kind: str = "") -> None:
        """Give up the handshake. `kind` is a Rejection, or "" when the peer has done nothing wrong."""
        self._given_up = (reason, kind)
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.abort()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # Given up before the handshake had begun.
            reason, kind = self._given_up
            self._pending.leave(self, f"TLS handshake failed: {reason}", kind)
        self.closed.set_result(None)

    async def _shake(self, transport: asyncio.Transport) -> None:
        early = _Early()
        failure, kind = "the peer went away", str(Rejection.TLS)
        secured: asyncio.Transport | None = None
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport, early, self._context, server_side=True, ssl_handshake_timeout=self._timeout
            )
        except asyncio.CancelledError:
            failure, kind = self._given_up
        except (OSError, TimeoutError) as problem:  # ssl.SSLError is an OSError.
            failure = str(problem) or type(problem).__name__
        if secured is None:
            transport.abort()
            self._pending.leave(self, f"TLS handshake failed: {failure}", kind)
            return
        self._pending.leave(self)
        early.hand_over(secured, self._make())


def peer_name(transport: asyncio.BaseTransport) -> str:
    """Where a connection comes from, for people: "127.0.0.1:40312"."""
    found = transport.get_extra_info("peername")
    if isinstance(found, tuple) and len(found) >= 2:
        host = f"[{found[0]}]" if ":" in str(found[0]) else found[0]
        return f"{host}:{found[1]}"
    return str(found or "unix socket")
