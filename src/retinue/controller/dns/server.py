"""The listeners of the zone, UDP and TCP, and what keeps a flood of questions from costing others anything.

The controller has more to do than to answer names. So many questions a second are answered, of one host a
part of them; the others are dropped, as a network drops packets, and counted. Where many ask, secondary
servers that have the zone by transfer stand before it, and go on without the controller.
"""

import asyncio
import struct
from collections import Counter
from collections.abc import Iterator, MutableMapping
from ipaddress import ip_address
from typing import cast

import dns.message
import dns.rcode
import dns.rdatatype
import structlog

from retinue.controller.counters import Count
from retinue.controller.dns.answers import TRANSFERS, answer, read, respond, transfer
from retinue.controller.dns.zone import LOOK_SECONDS, Zone
from retinue.core.limits import MOST_QUESTIONS, MOST_QUESTIONS_OF_ONE
from retinue.security.listener.acceptor import Acceptor
from retinue.security.listener.pending import PendingConnections
from retinue.security.listener.tls_gate import peer_name
from retinue.socket_addresses import resolved

MOST_CONNECTIONS = 32
PART = 0.02
"""Of the process's descriptors."""
CONNECTION_SECONDS = 10.0
"""How long a connection stays: enough for some questions, or for the zone."""
LARGEST_QUESTION = 1 << 12
"""Bytes over TCP; a question has some dozens."""
UNREAD = 1 << 20
"""Bytes that a peer may leave unread before the transfer waits for it."""

log = structlog.get_logger()


class Allowance:
    """How many questions may still be answered in this second."""

    def __init__(self) -> None:
        self._second = 0
        self._of_host: Counter[str] = Counter()

    def take(self, host: str, now: float) -> bool:
        """`now`: seconds, of a clock that passes evenly."""
        if int(now) != self._second:
            self._second = int(now)
            self._of_host.clear()
        if self._of_host.total() >= MOST_QUESTIONS or self._of_host[host] >= MOST_QUESTIONS_OF_ONE:
            return False
        self._of_host[host] += 1
        return True


class DnsServer:
    """Answers for the zone at one address."""

    def __init__(self, zone: Zone, counters: MutableMapping[str, int]) -> None:
        self._zone = zone
        self._counters = counters
        self._allowance = Allowance()
        self._datagrams: list[asyncio.DatagramTransport] = []
        self._connections = PendingConnections(MOST_CONNECTIONS, self._reject)
        self._acceptor = Acceptor(self._connection, self._connections, self._reject, PART)
        self._looking: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port, which the system chooses when given 0. Raises OSError."""
        port = await self._acceptor.open(host, port)
        loop = asyncio.get_running_loop()
        for address in dict.fromkeys(found[4] for found in await resolved(host, port)):
            made, _ = await loop.create_datagram_endpoint(lambda: Datagrams(self), local_addr=address[:2])
            self._datagrams.append(made)
        if self._zone.has_secondaries:
            self._looking = loop.create_task(self._look(), name="changes of the zone")
        return port

    async def _look(self) -> None:
        while True:
            await self._zone.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        for transport in self._datagrams:
            transport.close()
        self._acceptor.close()
        await self._connections.end("the controller stops")

    def may_ask(self, host: str) -> bool:
        """Whether the host's next question is answered; counts it."""
        if self._allowance.take(host, asyncio.get_running_loop().time()):
            self._counters[Count.DNS_ASKED] += 1
            return True
        self._counters[Count.DNS_TOO_MANY] += 1
        return False

    def over_udp(self, query: bytes, host: str) -> bytes | None:
        """The answer, if there is to be one."""
        if not self.may_ask(host):
            return None
        found = answer(query, self._zone)
        if found is None:
            return None
        reply, code = found
        self._note(code)
        return reply

    def over_tcp(self, query: bytes, host: str) -> Iterator[bytes]:
        """The messages of the answer, one after another."""
        if not self.may_ask(host):
            return
        asked = read(query)
        if asked is None:
            return
        if not isinstance(asked, dns.message.Message):
            self._note(asked[1])
            yield asked[0]
            return
        if self._is_transfer(asked) and self._zone.may_transfer(host) and self._zone.is_whole:
            log.info("dns.transfer", peer=host, zone=str(self._zone.origin))
            yield from transfer(asked, self._zone)
            return
        reply = respond(asked, self._zone)
        self._note(reply.rcode())
        yield reply.to_wire()

    def _is_transfer(self, asked: dns.message.Message) -> bool:
        """Changes alone (IXFR) are not kept: the whole zone answers that, too (RFC 1995, 4)."""
        questions = asked.question
        return (
            len(questions) == 1
            and questions[0].rdtype in TRANSFERS
            and questions[0].rdclass == dns.rdataclass.IN
            and questions[0].name == self._zone.origin
        )

    def _note(self, code: dns.rcode.Rcode) -> None:
        if code not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            self._counters[Count.DNS_REFUSED] += 1

    def _connection(self) -> "Connection":
        return Connection(self, self._connections)

    def _reject(self, peer: str, reason: str, kind: str) -> None:
        self._counters[Count.DNS_TOO_MANY] += 1
        log.info("dns.connection_rejected", peer=peer, reason=reason)


class Datagrams(asyncio.DatagramProtocol):
    """Questions over UDP."""

    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        reply = self._server.over_udp(data, addr[0])
        if reply is not None and self._transport is not None:
            self._transport.sendto(reply, addr)


class Connection(asyncio.Protocol):
    """Questions over TCP, one after another, each with its length before it (RFC 1035, 4.2.2)."""

    def __init__(self, server: DnsServer, all: PendingConnections) -> None:
        self.peer = "?"
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._server = server
        self._all = all
        self._transport: asyncio.Transport | None = None
        self._read = b""
        self._answering: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._timer = loop.call_later(CONNECTION_SECONDS, self.end, "its time is over")

    def end(self, reason: str, kind: str = "") -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(UNREAD)
        self.peer = peer_name(transport)
        self._all.enter(self)

    def data_received(self, data: bytes) -> None:
        self._read += data
        if len(self._read) > 2 * LARGEST_QUESTION:
            self.end("too much at once")
        elif self._answering is None:
            self._answer_next()

    def _answer_next(self) -> None:
        self._answering = None
        if len(self._read) < 2 or self._transport is None:
            return
        (length,) = struct.unpack_from("!H", self._read)
        if length > LARGEST_QUESTION:
            self.end("a question that is too long")
        elif len(self._read) >= 2 + length:
            query, self._read = self._read[2 : 2 + length], self._read[2 + length :]
            self._answering = asyncio.get_running_loop().create_task(self._answer(query, self._transport))
            self._answering.add_done_callback(self._answered)

    async def _answer(self, query: bytes, transport: asyncio.Transport) -> None:
        host = str(ip_address(self.peer.rpartition(":")[0].strip("[]").partition("%")[0]))
        answered = False
        for message in self._server.over_tcp(query, host):
            answered = True
            transport.write(struct.pack("!H", len(message)) + message)
            await asyncio.sleep(0)  # A large zone is sent in turn with the controller's other work.
            await self._writable.wait()
        if not answered:
            self.end("a question that gets no answer")

    def _answered(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("dns.not_answered", peer=self.peer, error=str(error))
            self.end("no answer could be made")
        self._answer_next()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._timer.cancel()
        if self._answering is not None:
            self._answering.cancel()
        self._all.leave(self)
        if not self.closed.done():
            self.closed.set_result(None)
