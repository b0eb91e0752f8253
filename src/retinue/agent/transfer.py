"""Agent to agent: the connection over which a VM moves.

The target's agent listens. The source's connects, says which move it brings, and is let in when that move is
expected from that server; both show their certificates, which say whose agents they are. Without
certificates anybody may claim to be anybody: for tests, and where the operator says so.
"""

import asyncio
import contextlib
import ssl
from collections import Counter
from collections.abc import Callable, Collection

import structlog

from retinue.controller.refusals import Refusal
from retinue.hypervisor import Channel, ChannelError, HypervisorError
from retinue.hypervisor.channel import READ_BYTES
from retinue.pki.contexts import client_context, server_context
from retinue.pki.credentials import Credentials
from retinue.pki.gate import TlsGate, peer_name
from retinue.pki.half_open import HalfOpen
from retinue.pki.identity import PeerRole, identity_of

HELLO_LIMIT = 10.0
HANDSHAKE_LIMIT = 5.0
"""Seconds for the TLS handshake."""
MAX_HALF_OPEN = 64
"""Handshakes under way; the oldest goes when there is one more."""

log = structlog.get_logger()

ServersOf = Callable[[ssl.SSLObject | ssl.SSLSocket], Collection[str]]
"""Whose agent's certificate it is: ids of servers. Raises ValueError when it is no agent's."""


class _NotLetInError(ChannelError):
    def __init__(self, reason: Refusal, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class Transfer:
    """`servers_of` is needed where there are TLS contexts."""

    def __init__(
        self,
        server: str,
        listening: ssl.SSLContext | None = None,
        connecting: ssl.SSLContext | None = None,
        servers_of: ServersOf | None = None,
    ) -> None:
        self.address = ""
        self.refused: Counter[Refusal] = Counter()
        """Who was not let in, by reason."""
        self._server = server
        self._listening, self._connecting, self._servers_of = listening, connecting, servers_of
        self._expected: dict[str, tuple[str, asyncio.Future[Channel]]] = {}
        self._listener: asyncio.Server | None = None
        self._half_open = HalfOpen(MAX_HALF_OPEN, self._refuse)

    async def start(self, host: str, port: int = 0) -> None:
        factory = self._streams if self._listening is None else self._gate
        self._listener = await asyncio.get_running_loop().create_server(factory, host, port)
        at = self._listener.sockets[0].getsockname()
        self.address = f"[{at[0]}]:{at[1]}" if ":" in at[0] else f"{at[0]}:{at[1]}"

    async def close(self) -> None:
        for _, waiting in self._expected.values():
            waiting.cancel()
        if self._listener is not None:
            self._listener.close()
        await self._half_open.end("the agent stops")

    # ---- the door ----

    def _streams(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=READ_BYTES), self._come_in)

    def _gate(self) -> TlsGate:
        assert self._listening is not None
        return TlsGate(self._listening, HANDSHAKE_LIMIT, self._streams, self._half_open)

    def _refuse(self, peer: str, why: str, kind: str) -> None:
        self.refused[Refusal(kind)] += 1
        log.warning("a connection is refused", peer=peer, why=why, kind=kind)

    # ---- the target ----

    def expect(self, move: str, source: str) -> None:
        """Let this move in, from this server."""
        self._expected[move] = (source, asyncio.get_running_loop().create_future())

    async def arrival(self, move: str) -> Channel:
        return await self._expected[move][1]

    def forget(self, move: str) -> None:
        self._expected.pop(move, None)

    async def _come_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = Channel(reader, writer)
        try:
            peer = self._peer(writer)
            async with asyncio.timeout(HELLO_LIMIT):
                hello = await channel.hear()
            source, waiting = self._expected.get(str(hello.get("move")), ("", None))
            if hello["word"] != "move" or waiting is None or waiting.done():
                raise _NotLetInError(Refusal.NOT_EXPECTED, "no such move is expected")
            if (peer is not None and source not in peer) or hello.get("source") != source:
                shown = hello.get("source") if peer is None else ", ".join(peer)
                why = f"the move is expected from {source}: not from {shown}"
                raise _NotLetInError(Refusal.WRONG_SERVER, why)
            await channel.say("come")
            if waiting.done():
                raise _NotLetInError(Refusal.CALLED_OFF, "the move has been called off")
        except (ChannelError, TimeoutError) as error:
            self._refuse(peer_name(writer.transport), str(error), _reason(error))
            await channel.close()
            return
        waiting.set_result(channel)

    # ---- the source ----

    async def connect(self, address: str, move: str, target: str) -> Channel:
        """Bring a move to the target's agent. Raises HypervisorError."""
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(HELLO_LIMIT):
                reader, writer = await asyncio.open_connection(
                    host.strip("[]"), int(port), ssl=self._connecting, limit=READ_BYTES
                )
        except (OSError, ValueError, OverflowError, TimeoutError) as error:
            raise HypervisorError(f"the agent of {target} cannot be reached at {address}: {error}") from error
        channel = Channel(reader, writer)
        try:
            peer = self._peer(writer)
            if peer is not None and target not in peer:
                raise ChannelError(f"at {address} is the agent of another server than {target}")
            await channel.say("move", move=move, source=self._server)
            async with asyncio.timeout(HELLO_LIMIT):
                answer = await channel.hear()
            if answer["word"] != "come":
                raise ChannelError(f"the agent of {target} does not expect the move")
        except TimeoutError as error:
            await channel.close()
            raise HypervisorError(f"the agent of {target} says nothing") from error
        except ChannelError as error:
            await channel.close()
            raise HypervisorError(f"the agent of {target} does not let the move in: {error}") from error
        except BaseException:
            with contextlib.suppress(OSError):
                await channel.close()
            raise
        return channel

    def _peer(self, writer: asyncio.StreamWriter) -> Collection[str] | None:
        """The servers the other end is the agent of; None where certificates are not asked for."""
        end = writer.get_extra_info("ssl_object")
        if end is None:
            return None
        if self._servers_of is None:
            raise _NotLetInError(Refusal.IDENTITY, "certificates cannot be read here")
        try:
            return self._servers_of(end)
        except ValueError as error:
            raise _NotLetInError(Refusal.IDENTITY, str(error)) from error


def _reason(error: ChannelError | TimeoutError) -> Refusal:
    match error:
        case _NotLetInError():
            return error.reason
        case TimeoutError():
            return Refusal.SILENT
    hung_up = isinstance(error.__cause__, OSError | EOFError)
    return Refusal.GONE if hung_up else Refusal.GARBAGE


def secured(server: str, credentials: Credentials) -> Transfer:
    """With certificates on both ends. Raises TlsFilesError."""
    assert credentials.ca is not None
    assert credentials.certificate is not None
    files = (credentials.ca, credentials.certificate, credentials.key or credentials.certificate)
    listening, connecting = server_context(*files), client_context(*files)
    # Whose agent it is counts, which is in the certificate by the server's id, not by its address.
    connecting.check_hostname = False
    return Transfer(server, listening, connecting, agent_of)


def agent_of(end: ssl.SSLObject | ssl.SSLSocket) -> Collection[str]:
    """The servers whose agent showed this certificate. Raises ValueError."""
    identity = identity_of(end.getpeercert())
    if identity is None or identity.role is not PeerRole.AGENT:
        raise ValueError(f"not an agent, but {identity or 'nobody'}")
    return identity.names
