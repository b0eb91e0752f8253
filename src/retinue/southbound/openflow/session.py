"""Session: what can be asked of one connected switch, and what the switch reports by itself."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import structlog

from retinue.core.pipeline.entry import Change, Group, Meter, PortNo
from retinue.southbound.openflow.apply import Applier
from retinue.southbound.openflow.codec import encode, wire
from retinue.southbound.openflow.codec.messages import (
    AggregateStats,
    BarrierReply,
    BundleControl,
    ErrorMessage,
    FeaturesReply,
    FlowRemoved,
    FlowStats,
    GroupDesc,
    Message,
    MeterConfig,
    MeterStats,
    MultipartReply,
    PacketIn,
    PortDesc,
    PortStatus,
    RoleReply,
    RoleStatus,
)
from retinue.southbound.openflow.codec.wire import ControllerRole, PortReason
from retinue.southbound.openflow.connection import Connection
from retinue.southbound.openflow.requests import Rejected, Requests

log = structlog.get_logger()

PACKET_OUT_BACKLOG = 1 << 20
"""Bytes waiting for the switch above which frames are dropped rather than queued."""

BUNDLE_FAILED = 17
IS_SLAVE = (1, 10)
"""OFPET_BAD_REQUEST, OFPBRC_IS_SLAVE."""

T = TypeVar("T")


class SwitchHandler(Protocol):
    """What is told of every switch's session. Called from the connection's reader; must not block."""

    def connected(self, session: "Session") -> None: ...

    def disconnected(self, session: "Session", reason: str) -> None: ...

    def packet_in(self, session: "Session", message: PacketIn) -> None: ...

    def flow_removed(self, session: "Session", message: FlowRemoved) -> None: ...

    def port_status(self, session: "Session", message: PortStatus) -> None: ...

    def error(self, session: "Session", message: ErrorMessage) -> None:
        """An error that answers nothing anybody waits for; a packet-out's, mostly."""


class Session:
    """One switch, from its handshake until the connection ends."""

    def __init__(
        self,
        connection: Connection,
        features: FeaturesReply,
        ports: list[PortDesc],
        handler: SwitchHandler,
        gone: Callable[["Session", str], None],
        answer_timeout: float = 5.0,
    ) -> None:
        """`answer_timeout`: seconds in which the switch confirms a change."""
        self.dpid = features.dpid
        self.n_tables = features.tables
        self.openflow = wire.VERSIONS[connection.version]
        """The version that is spoken, as people write it."""
        self.peer = connection.peer
        self.ports: dict[str, int] = {port.name: port.number for port in ports}
        self.down = frozenset(port.name for port in ports if not port.up)
        """Ports without a link, or switched off."""
        """Port numbers by name, as they are now."""
        self.flow_mods_sent = 0
        """Flows added and removed, by changes the switch confirmed."""
        self.packet_ins = 0
        self.packet_outs = 0
        self.packet_outs_dropped = 0
        """Frames not sent because the switch does not keep up, or is gone."""
        self.errors = 0
        """Error messages the switch sent."""
        self.handler_errors = 0
        """Exceptions in the handler."""
        self._connection = connection
        self._handler = handler
        self._gone = gone
        self._answer_timeout = answer_timeout
        self._requests = Requests(connection, hex(self.dpid))
        self._applier = Applier(connection, self._requests, hex(self.dpid))
        self._ended = False

    @property
    def alive(self) -> bool:
        return not self._ended

    @property
    def backlog(self) -> int:
        """Bytes that wait to be sent to the switch."""
        return self._connection.backlog

    def waited(self) -> float:
        """As Connection.waited: how long ago, at the least, the message was received that is worked on."""
        return self._connection.waited()

    # ---- what can be asked ----

    async def barrier(self, timeout: float = 5.0) -> None:
        """Return when the switch has done all it was sent before. Raises ConnectionError, TimeoutError."""
        await self._requests.ask(encode.barrier_request, "a barrier", timeout)

    async def apply(self, change: Change, now: float, *, timeout: float | None = None) -> None:
        """Make the change, all of it or nothing, and return when the switch has confirmed it.

        With OpenFlow 1.3, which has no bundles, it is made step by step (core.pipeline.steps), and Rejected
        tells what of it the switch has taken.

        `now` (seconds since the epoch) is what `expires_at` counts from. New meters come first and removed
        ones go last, both outside the bundle, which has no room for them: a meter sent with a change that is
        then rejected stays. Changes of one switch are made one at a time, in the order asked for.

        Raises Rejected when the switch rejected anything; ValueError for an entry OpenFlow cannot express;
        ConnectionError when the session ended, TimeoutError when no answer came within `timeout` seconds
        (None: what the server was given; and a little for each flow). After the last two, and only then, it
        is not known what the switch holds: read it.
        """
        if change.empty:
            return
        await self._applier.apply(change, now, self._answer_timeout if timeout is None else timeout)
        self.flow_mods_sent += change.flow_count

    async def read_flows(
        self, cookie: int = 0, cookie_mask: int = 0, timeout: float = 30.0
    ) -> list[FlowStats]:
        """Flows whose cookie agrees with `cookie` in the mask's bits.

        Flows that `pipeline.entry` has no terms for are somebody else's; they are left out, and logged.
        """
        replies = await self._requests.ask(
            lambda xid: encode.flow_stats_request(xid, cookie, cookie_mask), "its flows", timeout
        )
        left_out = sum(reply.left_out for reply in replies if isinstance(reply, MultipartReply))
        if left_out:
            log.warning("openflow.unknown_flows", switch=hex(self.dpid), count=left_out)
        return _parts(replies, FlowStats)

    async def read_packets(self, cookie: int = 0, cookie_mask: int = 0, timeout: float = 30.0) -> int:
        """How many packets all flows together have matched whose cookie agrees with `cookie` in the mask's
        bits: one number, however many flows they are."""
        replies = await self._requests.ask(
            lambda xid: encode.aggregate_request(xid, cookie, cookie_mask), "a sum over its flows", timeout
        )
        return sum(sums.packets for sums in _parts(replies, AggregateStats))

    async def read_groups(self, timeout: float = 30.0) -> dict[int, Group]:
        """Select groups by id; groups of other kinds are left out."""
        replies = await self._requests.ask(encode.group_desc_request, "its groups", timeout)
        return {desc.id: desc.group for desc in _parts(replies, GroupDesc) if desc.group is not None}

    async def read_meters(self, timeout: float = 30.0) -> dict[int, Meter]:
        """Meters that count packets and drop, by id; meters of other kinds are left out."""
        replies = await self._requests.ask(encode.meter_config_request, "its meters", timeout)
        return {
            config.id: config.meter for config in _parts(replies, MeterConfig) if config.meter is not None
        }

    async def read_meter_stats(self, timeout: float = 30.0) -> list[MeterStats]:
        """What each meter has let through and dropped."""
        replies = await self._requests.ask(encode.meter_stats_request, "the counts of its meters", timeout)
        return list(_parts(replies, MeterStats))

    async def request_role(
        self, role: ControllerRole, generation_id: int, timeout: float = 5.0
    ) -> ControllerRole:
        """Become master, slave or equal. Raises Rejected when the switch knows a newer generation id."""
        replies = await self._requests.ask(
            lambda xid: encode.role_request(xid, role, generation_id), "a role", timeout
        )
        found = [
            ControllerRole(reply.role) for reply in replies if isinstance(reply, RoleReply) and reply.role < 4
        ]
        if not found:
            raise Rejected(("a role: the answer names none",))
        return found[0]

    def packet_out(self, frame: bytes, port: int, in_port: int = PortNo.CONTROLLER) -> None:
        """Have a frame sent, without waiting. Raises ValueError for one that fits no message.

        It is dropped, and counted, when the switch does not keep up or is gone.
        """
        message = encode.packet_out(self._connection.xid(), frame, port, in_port)
        if not self._connection.alive or self._connection.backlog > PACKET_OUT_BACKLOG:
            self.packet_outs_dropped += 1
            return
        self._connection.write(message)
        self.packet_outs += 1

    def close(self, reason: str) -> None:
        """End the session; the handler's `disconnected` is called before this returns."""
        self._connection.end(reason)
        self.lost(reason)

    # ---- what the connection brings ----

    def ready(self) -> None:
        self._tell(lambda: self._handler.connected(self))

    def receive(self, message: Message) -> None:
        match message:
            case PacketIn():
                self.packet_ins += 1
                self._tell(lambda: self._handler.packet_in(self, message))
            case BarrierReply() | BundleControl() | RoleReply():
                self._requests.replied(message)
            case MultipartReply():
                self._requests.replied(message, message.more)
            case FlowRemoved():
                self._tell(lambda: self._handler.flow_removed(self, message))
            case RoleStatus() if message.role == ControllerRole.SLAVE:
                self.close("another controller is its master now")
            case PortStatus():
                self._note_port(message)
                self._tell(lambda: self._handler.port_status(self, message))
            case ErrorMessage():
                self._note_error(message)
            case _:
                log.debug("openflow.unasked", switch=hex(self.dpid), message=type(message).__name__)

    def lost(self, reason: str) -> None:
        if self._ended:
            return
        self._ended = True
        self._requests.lost()
        self._gone(self, reason)
        self._tell(lambda: self._handler.disconnected(self, reason))

    def _note_port(self, message: PortStatus) -> None:
        port = message.port
        self.ports = {name: number for name, number in self.ports.items() if number != port.number}
        self.down -= {port.name}
        if message.reason != PortReason.DELETE:
            self.ports[port.name] = port.number
            if not port.up:
                self.down |= {port.name}

    def _note_error(self, message: ErrorMessage) -> None:
        self.errors += 1
        if (message.type, message.code) == IS_SLAVE and self._connection.version != wire.VERSION:
            # 1.3 has no ROLE_STATUS: that another one has become master shows where something is asked.
            self.close("another controller is its master now")
            return
        if self._requests.rejected(message):
            return
        if message.type == BUNDLE_FAILED:  # A bundle discarded after it had failed; nobody is left to tell.
            log.debug("openflow.bundle_error", switch=hex(self.dpid), error=message.text)
            return
        self._tell(lambda: self._handler.error(self, message))

    def _tell(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            self.handler_errors += 1
            log.exception("openflow.handler_failed", switch=hex(self.dpid))


def _parts(replies: list[Message], kind: type[T]) -> list[T]:
    return [
        part
        for reply in replies
        if isinstance(reply, MultipartReply)
        for part in reply.parts
        if isinstance(part, kind)
    ]
