"""The handshake in front of a listener: every connection that does not get through it is told, once."""

import asyncio
import ssl

from retinue.security.listener.pending import PendingConnection, PendingConnections
from retinue.security.listener.tls_gate import TlsGate


class Impatient(PendingConnections):
    """Gives up each connection as soon as it has come."""

    def enter(self, connection: PendingConnection) -> None:
        super().enter(connection)
        asyncio.get_running_loop().call_soon(connection.end, "newer connections came", "crowded")


async def test_a_connection_given_up_before_its_handshake_begins_is_told() -> None:
    """As happens to the oldest of many that are accepted at one stroke."""
    told: list[tuple[str, str]] = []
    gates: list[TlsGate] = []
    pending = Impatient(1, lambda _, why, kind: told.append((why, kind)))

    def accept() -> TlsGate:
        gates.append(TlsGate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), 5.0, asyncio.Protocol, pending))
        return gates[0]

    listener = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
    assert await reader.read() == b""
    await gates[0].closed
    assert told == [("TLS handshake failed: newer connections came", "crowded")]
    assert len(pending) == 0
    writer.close()
    listener.close()
