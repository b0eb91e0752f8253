"""One TCP or TLS connection of a switch: from the first byte until the connection ends.

The handshake is HELLO, features and ports, within a time limit. After that whole messages go to the session.
A peer that sends what is not OpenFlow, falls silent, or does not read, is cut off; other connections do not
notice.

Where controllers share their switches, what a switch hears first is that this one is a standby (SLAVE): of a
new connection it would take everything, whoever is the master. Whatever follows the handshake is sent only
while this controller has the mandate, which is asked before every write.
"""

import asyncio
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from retinue.patience import after, served
from retinue.security.listener.rejections import Rejection
from retinue.security.listener.tls_gate import peer_name
from retinue.southbound.openflow.codec import encode, wire
from retinue.southbound.openflow.codec.decode import decode
from retinue.southbound.openflow.codec.messages import (
    EchoReply,
    EchoRequest,
    ErrorMessage,
    FeaturesReply,
    Hello,
    Message,
    MultipartReply,
    PortDesc,
    RoleReply,
)
from retinue.southbound.openflow.codec.wire import (
    MAX_MESSAGE,
    ControllerRole,
    Framer,
    MessageType,
    MultipartType,
    ProtocolError,
    in_version,
)

EARLY_LIMIT = 4096
"""Longest message, in bytes, accepted before the peer has sent its datapath id."""

EARLY_MESSAGES = 1000
"""Messages kept that arrive before the handshake is complete; further ones are lost."""

UNREAD_LIMIT = 16 << 20
"""Bytes that may wait for a peer that does not read."""

DRAIN_ABOVE = 256 << 10
"""Bytes waiting above which a bulk sender is held back."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Time limits of a connection, in seconds (see OpenFlowServer)."""

    hello_timeout: float
    echo_interval: float
    echo_timeout: float


class Receiver(Protocol):
    """Takes the messages of a connection once its switch is known: the session."""

    def ready(self) -> None: ...

    def receive(self, message: Message) -> None: ...

    def lost(self, reason: str) -> None: ...


class Mandate(Protocol):
    """Whether this controller is the one that may program the switches (see controller.leadership)."""

    @property
    def epoch(self) -> int:
        """The newest one known: no switch has been shown a later generation id, for all we know."""

    def holds(self) -> bool:
        """True while this controller is the active one, and knows it for certain."""


_TCP_INFO = 104
"""Bytes of struct tcp_info (linux/tcp.h) that every kernel has."""
_LAST_DATA_RECEIVED = 52
"""Where tcpi_last_data_recv is: milliseconds, 32 bits."""


class ConnectionOwner(Protocol):
    """Keeps the connections and decides which switches are admitted: the server."""

    def opened(self, connection: "Connection") -> None: ...

    def admit(self, connection: "Connection", dpid: int) -> None:
        """Raises ProtocolError when the peer may not be the switch with this datapath id."""

    def known(self, connection: "Connection", features: FeaturesReply, ports: list[PortDesc]) -> Receiver: ...

    def ended(self, connection: "Connection", reason: str, kind: str) -> None: ...


class Connection(asyncio.Protocol):
    """The asyncio protocol of one switch's connection: handshake, framing, keep-alive, back-pressure."""

    def __init__(self, owner: ConnectionOwner, timing: Timing, mandate: Mandate | None = None) -> None:
        """`mandate`: None: this controller shares its switches with no other."""
        self.peer = "?"
        self.certificate: Mapping[str, Any] | None = None
        """The switch's verified certificate, as ssl.SSLSocket.getpeercert shows it; None without TLS."""
        self.receiver: Receiver | None = None
        self.version = wire.VERSION
        """The one that is spoken, settled by both HELLOs."""
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owner = owner
        self._mandate = mandate
        self._timing = timing
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._framer = Framer(EARLY_LIMIT)
        self._hello = False
        self._features: FeaturesReply | None = None
        self._ports: list[PortDesc] = []
        self._early: list[Message] = []
        self._timer: after | None = None
        self._last_message = 0.0
        self._xid = 0
        self._end: tuple[str, str] | None = None
        self._writable: asyncio.Future[None] | None = None

    # ---- asyncio's side ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.peer = peer_name(transport)
        self.certificate = transport.get_extra_info("peercert")
        transport.set_write_buffer_limits(high=DRAIN_ABOVE)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._timer = after(self._timing.hello_timeout, self._too_slow)
        self._owner.opened(self)
        self._put(encode.hello(self.xid()))

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._framer.feed(data):
                if self._end is not None:
                    return
                if self._hello and message[0] != self.version and message[1] != MessageType.HELLO:
                    raise ProtocolError(
                        f"message of version {message[0]:#04x}, though {self.version:#04x} was settled",
                        Rejection.VERSION,
                    )
                self._take(decode(message))
        except ProtocolError as problem:
            self.end(problem.reason, problem.kind)

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is None:
            cut = "in the middle of a message " if self._framer.partial else ""
            kind = "" if self.receiver else (Rejection.TRUNCATED if cut else Rejection.CLOSED)
            self._end = (f"the switch closed the connection {cut}({exc or 'end of file'})", kind)
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()
        reason, kind = self._end
        self._owner.ended(self, reason, kind)
        if self.receiver is not None:
            self.receiver.lost(reason)
        self.receiver = None  # Each refers to the other: nobody need look for them.
        if not self.closed.done():
            self.closed.set_result(None)

    # ---- for the session and the server ----

    @property
    def alive(self) -> bool:
        return self._end is None and self._transport is not None

    @property
    def backlog(self) -> int:
        """Bytes that wait to be sent."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def waited(self) -> float:
        """Seconds since the newest of what has come in on this connection was received by this machine's
        kernel, however late it is read and worked on; 0 where the kernel does not say. (OpenFlow tells no
        time at the switch.)"""
        sock = None if self._transport is None else self._transport.get_extra_info("socket")
        try:
            info = b"" if sock is None else sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO)
        except OSError:  # A Unix socket, or one that is closed.
            return 0.0
        ended = len(info) < _LAST_DATA_RECEIVED + 4
        return 0.0 if ended else int.from_bytes(info[_LAST_DATA_RECEIVED:][:4], sys.byteorder) / 1000

    def xid(self, count: int = 1) -> int:
        """The first of `count` unused transaction ids in a row. Never 0, which is the switch's own."""
        if self._xid + count > 0xFFFFFFFF:
            self._xid = 0
        first = self._xid + 1
        self._xid += count
        return first

    def write(self, data: bytes) -> None:
        """Send without waiting. Nothing happens on a connection that has ended.

        Without the mandate the connection ends instead: what was to be sent is not for this controller to
        say.
        """
        if self._mandate is not None and not self._mandate.holds():
            self.end("this controller is not the active one, or cannot know it")
            return
        self._put(data)

    def _put(self, data: bytes) -> None:
        """What also a standby sends: the handshake, and that it is alive."""
        if not self.alive or self._transport is None:
            return
        self._transport.write(in_version(data, self.version))
        if self.backlog > UNREAD_LIMIT:
            self.end(f"the switch does not read: {self.backlog} bytes wait for it", Rejection.UNREAD)

    async def send(self, data: bytes) -> None:
        """Send, and wait while much is waiting to be sent already. Raises ConnectionError at the end."""
        self.write(data)
        if self._writable is not None:
            await asyncio.shield(self._writable)
        self.check()

    def check(self) -> None:
        """Raise ConnectionError when the connection has ended."""
        if self._end is not None:
            raise ConnectionError(f"{self.peer}: {self._end[0]}")

    def end(self, reason: str, kind: str = "") -> None:
        """Cut the connection. The first reason given is the one that is reported."""
        if self._end is not None:
            return
        self._end = (reason, kind)
        if self._transport is not None:
            self._transport.abort()

    # ---- handshake, then keep-alive ----

    def _take(self, message: Message) -> None:
        self._last_message = served()
        if isinstance(message, EchoRequest):
            self._put(encode.echo_reply(message.xid, message.data))
        elif isinstance(message, EchoReply):
            pass
        elif self.receiver is not None:
            self.receiver.receive(message)
        elif not self._hello:
            self._greet(message)
        else:
            self._learn(message)

    def _greet(self, message: Message) -> None:
        if not isinstance(message, Hello):
            raise ProtocolError(f"{type(message).__name__} before HELLO", Rejection.HANDSHAKE)
        version = message.settled(wire.VERSIONS)
        if version is None:
            known = sorted(message.versions) or [message.version]
            self._put(encode.error(message.xid, 0, 0, b"OpenFlow 1.4 (0x05) or 1.3 (0x04) is needed"))
            raise ProtocolError(
                f"neither OpenFlow 1.4 nor 1.3 (wire versions 5 and 4): the switch speaks {known}",
                Rejection.VERSION,
            )
        self._hello, self.version = True, version
        if self._mandate is not None:
            self._put(encode.role_request(self.xid(), ControllerRole.SLAVE, self._mandate.epoch))
        self._put(encode.set_config(self.xid()) + encode.features_request(self.xid()))

    def _learn(self, message: Message) -> None:
        match message:
            case FeaturesReply():
                if message.auxiliary or not message.dpid:
                    raise ProtocolError(
                        f"datapath id {message.dpid:#x}, auxiliary connection {message.auxiliary}: "
                        "only main connections of switches with an id are taken",
                        Rejection.HANDSHAKE,
                    )
                if self._features is not None:
                    raise ProtocolError("FEATURES_REPLY twice", Rejection.HANDSHAKE)
                self._owner.admit(self, message.dpid)
                self._features = message
                self._framer.limit = MAX_MESSAGE
                self._put(encode.multipart_request(self.xid(), MultipartType.PORT_DESC))
            case MultipartReply(type=MultipartType.PORT_DESC) if self._features is not None:
                self._ports.extend(part for part in message.parts if isinstance(part, PortDesc))
                if not message.more:
                    self._complete(self._features)
            case RoleReply():
                pass
            case ErrorMessage():
                raise ProtocolError(f"the switch rejected the handshake: {message.text}", Rejection.HANDSHAKE)
            case _ if len(self._early) < EARLY_MESSAGES:
                self._early.append(message)

    def _complete(self, features: FeaturesReply) -> None:
        self.receiver = self._owner.known(self, features, self._ports)
        self.receiver.ready()
        if self._timer is not None:
            self._timer.cancel()
        self._tick()
        early, self._early = self._early, []
        for message in early:
            self.receiver.receive(message)

    def _too_slow(self) -> None:
        state = "silent in the middle of a message" if self._framer.partial else "no handshake"
        self.end(f"{state} for {self._timing.hello_timeout:g} s after connecting", Rejection.TIMEOUT)

    def _tick(self) -> None:
        """Send an echo request when the switch is quiet. Part of a message does not count as activity."""
        quiet = served() - self._last_message
        if quiet > self._timing.echo_timeout:
            self.end(f"no message for {quiet:.1f} s", Rejection.TIMEOUT)
            return
        if quiet >= self._timing.echo_interval * 0.5:
            self._put(encode.echo_request(self.xid()))
        self._timer = after(self._timing.echo_interval, self._tick)
