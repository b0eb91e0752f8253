"""Agent to agent: the connection over which a VM migrates.

The target's agent listens. The source's connects, says which migration it brings, and is let in when that
migration is expected from that server; both show their certificates, which say whose agents they are. Without
certificates anybody may claim to be anybody: for tests, and where the operator says so.
"""

import asyncio
import contextlib
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Protocol

import structlog

from retinue.core.limits import MOST_STRANGERS
from retinue.hypervisor import Channel, ChannelError, HypervisorError
from retinue.hypervisor.memory_channel import READ_BYTES
from retinue.protocol.images import domain_of
from retinue.protocol.migrations import FarRecord
from retinue.security.contexts import client_context, server_context
from retinue.security.credentials import Credentials
from retinue.security.identity import PeerRole, identity_of
from retinue.security.listener.acceptor import Acceptor
from retinue.security.listener.pending import PendingConnections
from retinue.security.listener.rejections import Rejection
from retinue.security.listener.tls_gate import TlsGate, peer_name
from retinue.socket_addresses import endpoint, may_be_another_host, resolved

HELLO_LIMIT = 10.0
HANDSHAKE_LIMIT = 5.0
"""Seconds for the TLS handshake."""
PART = 0.5
"""Of the process's descriptors."""

log = structlog.get_logger()

ServersOf = Callable[[ssl.SSLObject | ssl.SSLSocket], Collection[str]]
"""Whose agent's certificate it is: ids of servers. Raises ValueError when it is no agent's."""


class Visitors(Protocol):
    """Takes connections that are about no migration (see agent/content/wire.py)."""

    def knows(self, hello: dict[str, Any]) -> bool:
        """Whether this first message begins such a connection."""

    async def visit(self, channel: Channel, hello: dict[str, Any], *, manager: bool) -> None:
        """To the connection's end; `manager`: the other end is a manager's, else an agent's. Never raises but
        when it is cancelled."""


TakeDisk = Callable[[int, Channel], Awaitable[None]]
"""Writes what comes of the disk of this number, to the connection's end. HypervisorError."""


async def no_disk(number: int, channel: Channel) -> None:
    """For a VM without disks."""
    raise HypervisorError(f"no disk {number} is expected")


class _NotLetInError(ChannelError):
    def __init__(self, reason: Rejection, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class Transfer:
    """An agent's connections to other agents: a listener for incoming migrations, and a way to bring one.

    `servers_of` reads whose agent a certificate names; it is needed where there are TLS contexts.
    """

    def __init__(
        self,
        server: str,
        listening: ssl.SSLContext | None = None,
        connecting: ssl.SSLContext | None = None,
        servers_of: ServersOf | None = None,
    ) -> None:
        self.address = ""
        self.rejected: Counter[Rejection] = Counter()
        """Who was not let in, by reason."""
        self._server = server
        self._listening, self._connecting, self._servers_of = listening, connecting, servers_of
        self.visitors: Visitors | None = None
        self.domains: dict[str, Transfer] = {}
        """By domain: the same for migrations from and to there. Whose agent a certificate says it is, it says
        of one domain only, whose authority is the one that each of these believes."""
        self._expected: dict[str, tuple[str, asyncio.Future[Channel]]] = {}
        self._arrived: dict[str, asyncio.Queue[Channel]] = {}
        """By migration: the connection that was let in, and nobody has taken yet."""
        self._latest: dict[str, Channel | None] = {}
        """By migration: the one that was let in last; None: at the agent before this one."""
        self._take_disk: dict[str, TakeDisk] = {}
        """By migration: to whom a connection with the content of a disk is handed."""
        self._pending = PendingConnections(MOST_STRANGERS, self._reject)
        factory = self._streams if listening is None else self._gate
        self._acceptor = Acceptor(factory, self._pending, self._reject, PART)

    def towards(self, far: FarRecord | None) -> "Transfer":
        """What a migration goes over whose other end is far, or in this domain. Raises HypervisorError."""
        if far is None:
            return self
        if far.domain not in self.domains:
            raise HypervisorError(
                f"the agent of {self._server} knows no domain {far.domain} (see [[domain]])"
            )
        return self.domains[far.domain]

    async def start(self, host: str, port: int = 0) -> None:
        await self._acceptor.open(host, port)
        at = self._acceptor.at
        self.address = f"[{at[0]}]:{at[1]}" if ":" in at[0] else f"{at[0]}:{at[1]}"

    async def close(self) -> None:
        for other in self.domains.values():
            await other.close()
        for _, waiting in self._expected.values():
            waiting.cancel()
        self._acceptor.close()
        await self._pending.end("the agent stops")

    # ---- the listener ----

    def _streams(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=READ_BYTES), self._on_connection)

    def _gate(self) -> TlsGate:
        assert self._listening is not None
        return TlsGate(self._listening, HANDSHAKE_LIMIT, self._streams, self._pending)

    def _reject(self, peer: str, why: str, kind: str) -> None:
        self.rejected[Rejection(kind)] += 1
        log.warning("peer.rejected", peer=peer, reason=why, kind=kind)

    # ---- the target ----

    def expect(self, migration: str, source: str, take_disk: TakeDisk = no_disk) -> None:
        """Accept this migration, from this server, and before it the VM's disks."""
        self._take_disk[migration] = take_disk
        self._expected[migration] = (source, asyncio.get_running_loop().create_future())
        self._arrived[migration] = asyncio.Queue()

    def expect_again(self, migration: str, source: str) -> None:
        """One that had come in at the agent before this one, as which its source knows us."""
        self.expect(migration, source)
        self._expected[migration][1].cancel()
        self._latest[migration] = None

    async def arrival(self, migration: str) -> Channel:
        return await self._expected[migration][1]

    async def another_arrival(self, migration: str) -> Channel:
        """The same, when that connection is broken: its source connects once more. HypervisorError."""
        if migration not in self._arrived:
            raise HypervisorError("the migration is over")
        return await self._arrived[migration].get()

    def _let_in_again(self, migration: str, channel: Channel) -> None:
        """In place of the connection before, which its source has given up."""
        arrived = self._arrived[migration]
        while not arrived.empty():
            arrived.get_nowait().abort()
        if (before := self._latest[migration]) is not None:
            before.abort()
        self._latest[migration] = channel
        arrived.put_nowait(channel)

    def forget(self, migration: str) -> None:
        self._expected.pop(migration, None)
        self._latest.pop(migration, None)
        if (arrived := self._arrived.pop(migration, None)) is not None:
            while not arrived.empty():
                arrived.get_nowait().abort()
        self._take_disk.pop(migration, None)
        for other in self.domains.values():
            other.forget(migration)

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = Channel(reader, writer)
        try:
            manager = self.visitors is not None and is_manager(writer.get_extra_info("ssl_object"))
            peer = () if manager else self._peer(writer)
            async with asyncio.timeout(HELLO_LIMIT):
                hello = await channel.receive_message()
            if self.visitors is not None and self.visitors.knows(hello):
                await self.visitors.visit(channel, hello, manager=manager or peer is None)
                await channel.close()
                return
            if manager:
                peer = self._peer(writer)  # A manager publishes, and brings no migration.
            source, waiting = self._expected.get(str(hello.get("migration")), ("", None))
            disk = hello.get("disk") if hello["type"] == "disk" else None
            again = hello["type"] == "again" and waiting is not None and waiting.done()
            begins = hello["type"] == "migrate" or isinstance(disk, int) or again
            if not begins or waiting is None or (disk is None and not again and waiting.done()):
                raise _NotLetInError(Rejection.NOT_EXPECTED, "no such migration is expected")
            if (peer is not None and source not in peer) or hello.get("source") != source:
                shown = hello.get("source") if peer is None else ", ".join(peer)
                why = f"the migration is expected from {source}: not from {shown}"
                raise _NotLetInError(Rejection.WRONG_SERVER, why)
            await channel.send_message("accepted")
            take_disk = self._take_disk.get(str(hello["migration"]))
            if isinstance(disk, int) and take_disk is not None:
                await take_disk(disk, channel)
                await channel.close()
                return
            if again and hello["migration"] in self._latest:
                self._let_in_again(str(hello["migration"]), channel)
                return
            if disk is not None or waiting.done():
                raise _NotLetInError(Rejection.CALLED_OFF, "the migration has been called off")
        except (HypervisorError, TimeoutError) as error:
            self._reject(peer_name(writer.transport), str(error), _reason(error))
            await channel.close()
            return
        self._latest[str(hello["migration"])] = channel
        waiting.set_result(channel)

    # ---- the source ----

    async def connect(self, address: str, migration: str, target: str) -> Channel:
        """Bring a migration to the target's agent. Raises HypervisorError."""
        return await self._connect(address, migration, target, type="migrate")

    async def connect_again(self, address: str, migration: str, target: str) -> Channel:
        """Go on with one whose connection is broken. Raises HypervisorError."""
        return await self._connect(address, migration, target, type="again")

    async def connect_disk(self, address: str, migration: str, target: str, disk: int) -> Channel:
        """Bring it the content of one of the VM's disks. Raises HypervisorError."""
        return await self._connect(address, migration, target, type="disk", disk=disk)

    async def _connect(self, address: str, migration: str, target: str, **hello: Any) -> Channel:
        channel = await self.open(address, target)
        try:
            await channel.send_message(**hello, migration=migration, source=self._server)
            async with asyncio.timeout(HELLO_LIMIT):
                answer = await channel.receive_message()
            if answer["type"] != "accepted":
                raise ChannelError(f"the agent of {target} does not expect the migration")
        except TimeoutError as error:
            await channel.close()
            raise HypervisorError(f"the agent of {target} says nothing") from error
        except ChannelError as error:
            await channel.close()
            raise HypervisorError(f"the agent of {target} does not let the migration in: {error}") from error
        except BaseException:
            with contextlib.suppress(OSError):
                await channel.close()
            raise
        return channel

    async def open(self, address: str, target: str) -> Channel:
        """A connection to the agent of a server, and no other's. Raises HypervisorError."""
        try:
            host, port = await self._place(address)
            async with asyncio.timeout(HELLO_LIMIT):
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=self._connecting, limit=READ_BYTES
                )
        except (OSError, ValueError, TimeoutError) as error:
            # The reason is told to others. That the port is closed, or open and speaks no TLS, is none of
            # theirs.
            log.warning("migration.target_not_reached", target=target, address=address, error=str(error))
            raise HypervisorError(f"the agent of {target} cannot be reached at {address}") from error
        channel = Channel(reader, writer)
        try:
            peer = self._peer(writer)
            if peer is not None and target not in peer:
                raise ChannelError(f"at {address} is the agent of another server than {target}")
        except ChannelError as error:
            await channel.close()
            raise HypervisorError(f"the agent of {target} does not let the migration in: {error}") from error
        return channel

    async def open_anywhere(self, address: str, place: str) -> Channel:
        """The same; the server may be another domain's, as DOMAIN/SERVER. Raises HypervisorError."""
        domain = domain_of(place)
        if not domain:
            return await self.open(address, place)
        if domain not in self.domains:
            raise HypervisorError(f"the agent of {self._server} knows no domain {domain} (see [[domain]])")
        return await self.domains[domain].open(address, place.removeprefix(f"{domain}/"))

    async def _place(self, address: str) -> tuple[str, int]:
        """Where the target is, as its agent reports it: never this machine itself, or no single one.

        Raises ValueError, OSError, TimeoutError. An agent that listens for its own machine only, as in
        tests, may speak to others there.
        """
        host, port = endpoint(address)
        async with asyncio.timeout(HELLO_LIMIT):
            found = await resolved(host, port)
        place = str(found[0][4][0])
        ours = endpoint(self.address)[0] if self.address else ""
        if not may_be_another_host(place) and may_be_another_host(ours):
            raise ValueError(f"{host} is no address at which another machine is")
        return place, port

    def _peer(self, writer: asyncio.StreamWriter) -> Collection[str] | None:
        """The servers the other end is the agent of; None where certificates are not asked for."""
        end = writer.get_extra_info("ssl_object")
        if end is None:
            return None
        if self._servers_of is None:
            raise _NotLetInError(Rejection.IDENTITY, "certificates cannot be read here")
        try:
            return self._servers_of(end)
        except ValueError as error:
            raise _NotLetInError(Rejection.IDENTITY, str(error)) from error


def _reason(error: HypervisorError | TimeoutError) -> Rejection:
    match error:
        case _NotLetInError():
            return error.reason
        case TimeoutError():
            return Rejection.TIMEOUT
    hung_up = isinstance(error.__cause__, OSError | EOFError)
    return Rejection.CLOSED if hung_up else Rejection.MALFORMED


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


def is_manager(end: ssl.SSLObject | ssl.SSLSocket | None) -> bool:
    """Whether it is a manager who showed this certificate."""
    try:
        identity = None if end is None else identity_of(end.getpeercert())
    except ValueError:
        return False
    return identity is not None and identity.role is PeerRole.MANAGER
