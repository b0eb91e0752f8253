"""The OpenFlow server: switches connect, and each becomes a Session; anything else is rejected and counted.

    server = OpenFlowServer(handler)
    port = await server.start("0.0.0.0", 6653)

The handler's methods are called from the connection's reader, in the order of messages. They must not block;
an exception in one is logged and counted and disturbs nothing else.
"""

import asyncio
import ssl as ssl_module
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from retinue.core.limits import MOST_STRANGERS
from retinue.security.listener.acceptor import Acceptor
from retinue.security.listener.pending import PendingConnections
from retinue.security.listener.rejections import Rejection
from retinue.security.listener.tls_gate import TlsGate
from retinue.southbound.openflow.codec.messages import FeaturesReply, PortDesc
from retinue.southbound.openflow.codec.wire import ProtocolError
from retinue.southbound.openflow.connection import Connection, Mandate, Receiver, Timing
from retinue.southbound.openflow.requests import Rejected
from retinue.southbound.openflow.session import Session, SwitchHandler

log = structlog.get_logger()

PART = 0.25
"""Of the process's descriptors."""

Admits = Callable[[Mapping[str, Any] | None, int, str], str]
"""(certificate, datapath id, peer) -> why the certificate's holder may not be that switch; "" when it may."""


class OpenFlowServer:
    """Listens for switches.

    hello_timeout: seconds from connecting to a complete handshake.
    answer_timeout: seconds in which a switch confirms a change.
    echo_interval, echo_timeout: a quiet switch is sent an echo request, and cut off when nothing comes.
    ssl: a server context; require certificates in it to know the switches.
    admits: called once the switch has sent its datapath id.
    known: how many switches there are; as many more than max_pending may be in their handshake.
    mandate: where controllers share the switches; the handler then takes each of them over by a role request.
    """

    def __init__(
        self,
        handler: SwitchHandler,
        *,
        hello_timeout: float = 5.0,
        answer_timeout: float = 5.0,
        echo_interval: float = 5.0,
        echo_timeout: float = 10.0,
        ssl: ssl_module.SSLContext | None = None,
        admits: Admits = lambda certificate, dpid, peer: "",
        max_pending: int = MOST_STRANGERS,
        known: Callable[[], int] = lambda: 0,
        mandate: Mandate | None = None,
    ) -> None:
        self.rejected: Counter[str] = Counter()
        """Connections cut off for what the peer did, by Rejection."""
        self.sessions: dict[int, Session] = {}
        """By datapath id."""
        self._handler = handler
        self._timing = Timing(hello_timeout, echo_interval, echo_timeout)
        self._answer_timeout = answer_timeout
        self._ssl = ssl
        self._admits = admits
        self._mandate = mandate
        self._pending = PendingConnections(max_pending, self._reject, known)
        self._connections: set[Connection] = set()
        factory = self._connection if ssl is None else self._gate
        self._acceptor = Acceptor(factory, self._pending, self._reject, PART)

    @property
    def pending(self) -> int:
        """Connections whose handshake is not complete."""
        return len(self._pending)

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port, which the system chooses when `port` is 0. Raises OSError."""
        bound = await self._acceptor.open(host, port)
        log.info("openflow.listening", host=host, port=bound, tls=self._ssl is not None)
        return bound

    def end_all(self, reason: str) -> None:
        """End every connection; switches come back, and are taken on anew."""
        for connection in list(self._connections):
            connection.end(reason)

    async def stop(self) -> None:
        """Stop listening and end every session. Switches keep forwarding with the entries they have."""
        self._acceptor.close()
        leaving = list(self._connections)
        self.end_all("the controller stops")
        await self._pending.end("the controller stops")
        await asyncio.gather(*(connection.closed for connection in leaving))

    # ---- connections coming and going ----

    def _connection(self) -> Connection:
        return Connection(self, self._timing, self._mandate)

    def _gate(self) -> TlsGate:
        assert self._ssl is not None
        return TlsGate(self._ssl, self._timing.hello_timeout, self._connection, self._pending)

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        self._pending.enter(connection)

    def admit(self, connection: Connection, dpid: int) -> None:
        reason = self._admits(connection.certificate, dpid, connection.peer)
        if reason:
            raise ProtocolError(reason, Rejection.IDENTITY)

    def known(self, connection: Connection, features: FeaturesReply, ports: list[PortDesc]) -> Receiver:
        self._pending.leave(connection)
        former = self.sessions.get(features.dpid)
        if former is not None:
            former.close(f"the switch connected again, from {connection.peer}")
        session = Session(connection, features, ports, self._handler, self._gone, self._answer_timeout)
        self.sessions[session.dpid] = session
        log.info(
            "openflow.connected",
            switch=hex(session.dpid), peer=session.peer, ports=len(session.ports), openflow=session.openflow,
        )  # fmt: skip
        return session

    def _gone(self, session: Session, reason: str) -> None:
        if self.sessions.get(session.dpid) is session:
            del self.sessions[session.dpid]
        log.info("openflow.disconnected", switch=hex(session.dpid), peer=session.peer, reason=reason)

    def ended(self, connection: Connection, reason: str, kind: str) -> None:
        self._connections.discard(connection)
        self._pending.leave(connection, reason, kind)

    def _reject(self, peer: str, reason: str, kind: str) -> None:
        self.rejected[kind] += 1
        log.warning("openflow.rejected", peer=peer, reason=reason, kind=kind)


__all__ = ["OpenFlowServer", "Rejected", "Session", "SwitchHandler"]
