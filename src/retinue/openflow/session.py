"""C1 as a server: switches connect, and each becomes a Session; whoever is no switch is refused and counted.

    server = OpenFlowServer(handler)
    port = await server.start("0.0.0.0", 6653)

The handler's methods are called from the reader, in the order things arrive. They must not block; an
exception in one is logged and counted and disturbs nothing else.
"""

import asyncio
import ssl as ssl_module
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from retinue.openflow.codec import FeaturesReply, PortDesc, ProtocolError
from retinue.openflow.connection import Connection, Receiver, Timing
from retinue.openflow.requests import Rejected
from retinue.openflow.switch import Session, SwitchHandler
from retinue.pki.gate import TlsGate
from retinue.pki.half_open import HalfOpen

log = structlog.get_logger()

MAX_HALF_OPEN = 64
"""Connections that have not said yet which switch they are; the oldest goes when there is one more."""


Admits = Callable[[Mapping[str, Any] | None, int, str], str]
"""(certificate, datapath id, peer) -> why the certificate's holder may not be that switch; "" when it may."""


class OpenFlowServer:
    """Listens for switches.

    hello_timeout: seconds from connecting to a complete handshake.
    echo_interval, echo_timeout: a quiet switch is asked for a sign of life, and cut off when none comes.
    ssl: a server context; require certificates in it to know the switches.
    admits: asked once the switch has said its datapath id.
    """

    def __init__(
        self,
        handler: SwitchHandler,
        *,
        hello_timeout: float = 5.0,
        echo_interval: float = 5.0,
        echo_timeout: float = 10.0,
        ssl: ssl_module.SSLContext | None = None,
        admits: Admits = lambda certificate, dpid, peer: "",
        max_half_open: int = MAX_HALF_OPEN,
    ) -> None:
        self.refused: Counter[str] = Counter()
        """Connections cut off for what the peer did, by reason: version, length, malformed, handshake,
        timeout, truncated, closed (before the handshake was through), unread, tls, identity, crowded."""
        self.sessions: dict[int, Session] = {}
        """By datapath id."""
        self._handler = handler
        self._timing = Timing(hello_timeout, echo_interval, echo_timeout)
        self._ssl = ssl
        self._admits = admits
        self._half_open = HalfOpen(max_half_open, self._refuse)
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    @property
    def half_open(self) -> int:
        """Connections whose handshake is not through."""
        return len(self._half_open)

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port, which the system chooses when `port` is 0. Raises OSError."""
        factory = self._connection if self._ssl is None else self._gate
        self._server = await asyncio.get_running_loop().create_server(factory, host, port, backlog=1024)
        bound = int(self._server.sockets[0].getsockname()[1])
        log.info("openflow.listening", host=host, port=bound, tls=self._ssl is not None)
        return bound

    async def stop(self) -> None:
        """Stop listening and end every session. Switches keep forwarding with what they hold."""
        if self._server is not None:
            self._server.close()
            self._server = None
        leaving = list(self._connections)
        for connection in leaving:
            connection.end("the controller stops")
        await self._half_open.end("the controller stops")
        await asyncio.gather(*(connection.closed for connection in leaving))

    # ---- connections coming and going ----

    def _connection(self) -> Connection:
        return Connection(self, self._timing)

    def _gate(self) -> TlsGate:
        assert self._ssl is not None
        return TlsGate(self._ssl, self._timing.hello_timeout, self._connection, self._half_open)

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        self._half_open.enter(connection)

    def admit(self, connection: Connection, dpid: int) -> None:
        reason = self._admits(connection.certificate, dpid, connection.peer)
        if reason:
            raise ProtocolError(reason, "identity")

    def known(self, connection: Connection, features: FeaturesReply, ports: list[PortDesc]) -> Receiver:
        self._half_open.leave(connection)
        former = self.sessions.get(features.dpid)
        if former is not None:
            former.close(f"the switch connected again, from {connection.peer}")
        session = Session(connection, features, ports, self._handler, self._gone)
        self.sessions[session.dpid] = session
        log.info("openflow.connected", switch=hex(session.dpid), peer=session.peer, ports=len(session.ports))
        return session

    def _gone(self, session: Session, reason: str) -> None:
        if self.sessions.get(session.dpid) is session:
            del self.sessions[session.dpid]
        log.info("openflow.disconnected", switch=hex(session.dpid), peer=session.peer, reason=reason)

    def ended(self, connection: Connection, reason: str, kind: str) -> None:
        self._connections.discard(connection)
        self._half_open.leave(connection, reason, kind)

    def _refuse(self, peer: str, reason: str, kind: str) -> None:
        self.refused[kind] += 1
        log.warning("openflow.refused", peer=peer, reason=reason, kind=kind)


__all__ = ["OpenFlowServer", "Rejected", "Session", "SwitchHandler"]
