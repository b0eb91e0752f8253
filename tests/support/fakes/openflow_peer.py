"""The switch's side of an OpenFlow connection, saying what the test wants; and a handler that takes notes."""

import asyncio
import struct
from collections.abc import Callable
from typing import Any

from retinue.southbound.openflow.codec import encode, messages
from retinue.southbound.openflow.codec.decode import decode
from retinue.southbound.openflow.codec.wire import (
    OLDER,
    VERSION,
    BundleStep,
    Framer,
    MessageType,
    MultipartType,
    in_version,
)

Answer = Callable[["OpenFlowPeer", Any, bytes], bool]
"""(peer, decoded message, raw message) -> True when it dealt with it and the peer must not."""


def message(kind: int, xid: int, body: bytes = b"") -> bytes:
    return struct.pack("!BBHI", 5, kind, 8 + len(body), xid) + body


def hello_of(version: int) -> bytes:
    """HELLO of a switch that has this version and no other."""
    return struct.pack("!BBHIHHI", version, MessageType.HELLO, 16, 1, 1, 8, 1 << version)


def port_desc(number: int, name: str, version: int = VERSION) -> bytes:
    if version == OLDER:
        return struct.pack("!I4x6s2x16sII24x", number, b"\x02\0\0\0\0\1", name.encode(), 0, 4)
    return struct.pack("!IH2x6s2x16sII", number, 40, b"\x02\0\0\0\0\1", name.encode(), 0, 4)


def features(xid: int, dpid: int, auxiliary: int = 0) -> bytes:
    return message(MessageType.FEATURES_REPLY, xid, struct.pack("!QIBB2xII", dpid, 0, 254, auxiliary, 0, 0))


def multipart(xid: int, kind: int, body: bytes = b"", more: bool = False) -> bytes:
    return message(MessageType.MULTIPART_REPLY, xid, struct.pack("!HH4x", kind, more) + body)


def port_status(reason: int, number: int, name: str, version: int = VERSION) -> bytes:
    body = struct.pack("!B7x", reason) + port_desc(number, name, version)
    return message(MessageType.PORT_STATUS, 0, body)


def packet_in(frame: bytes, in_port: int) -> bytes:
    match = struct.pack("!HHII4x", 1, 12, 0x80000004, in_port)
    body = struct.pack("!IHBBQ", 0xFFFFFFFF, len(frame), 1, 0, 0) + match + bytes(2) + frame
    return message(MessageType.PACKET_IN, 0, body)


class OpenFlowPeer:
    """A switch that answers as it should, except where `answer` takes over."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.dpid = 0x31
        self.version = VERSION
        """The only one that it speaks."""
        self.ports = {"up0": 1, "tap0": 2}
        self.heard: list[Any] = []
        """Everything the controller said, decoded."""
        self.applied: list[Any] = []
        """Messages that took effect, in order."""
        self.reads = 0
        """Chunks of bytes that arrived; a measure of the controller's writes."""
        self.answer: Answer = lambda peer, what, raw: False
        self._staged: dict[int, list[Any]] = {}
        self._framer = Framer()

    @classmethod
    async def dial(cls, port: int, **how: Any) -> "OpenFlowPeer":
        return cls(*await asyncio.open_connection("127.0.0.1", port, **how))

    @classmethod
    async def join(
        cls, port: int, dpid: int = 0x31, version: int = VERSION, **how: Any
    ) -> tuple["OpenFlowPeer", asyncio.Task[None]]:
        """Connect and play the switch until the connection ends."""
        peer = await cls.dial(port, **how)
        peer.dpid, peer.version = dpid, version
        return peer, asyncio.create_task(peer.play())

    def say(self, data: bytes) -> None:
        self.writer.write(data if self.version == VERSION else in_version(data, self.version))

    async def closed(self) -> None:
        """Wait until the controller has ended the connection."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass
        self.writer.close()

    async def play(self) -> None:
        self.writer.write(hello_of(self.version))
        try:
            while data := await self.reader.read(1 << 20):
                self.reads += 1
                for raw in self._framer.feed(data):
                    what = decode(raw)
                    self.heard.append(what)
                    if not self.answer(self, what, raw):
                        self._behave(what)
        except ConnectionError:
            pass
        self.writer.close()

    def _behave(self, what: Any) -> None:
        match what:
            case messages.EchoRequest(xid, data):
                self.say(encode.echo_reply(xid, data))
            case messages.Other(xid, MessageType.FEATURES_REQUEST, _):
                self.say(features(xid, self.dpid))
            case messages.Other(xid, MessageType.BARRIER_REQUEST, _):
                self.say(message(MessageType.BARRIER_REPLY, xid))
            case messages.Other(xid, MessageType.MULTIPART_REQUEST, body):
                kind = int.from_bytes(body[:2])
                ports = b"".join(port_desc(number, name, self.version) for name, number in self.ports.items())
                self.say(multipart(xid, kind, ports if kind == MultipartType.PORT_DESC else b""))
            case messages.BundleControl(xid, bundle, BundleStep.OPEN_REQUEST, flags):
                self._staged[bundle] = []
                self._bundle_reply(xid, bundle, BundleStep.OPEN_REPLY, flags)
            case messages.BundleControl(xid, bundle, BundleStep.COMMIT_REQUEST, flags):
                self.applied += self._staged.pop(bundle)
                self._bundle_reply(xid, bundle, BundleStep.COMMIT_REPLY, flags)
            case messages.BundleControl(xid, bundle, BundleStep.DISCARD_REQUEST, flags):
                self._staged.pop(bundle, None)
                self._bundle_reply(xid, bundle, BundleStep.DISCARD_REPLY, flags)
            case messages.BundleAdd(_, bundle, _, inside):
                self._staged[bundle].append(decode(inside))
            case messages.FlowMod() | messages.GroupMod() | messages.MeterMod():
                self.applied.append(what)

    def _bundle_reply(self, xid: int, bundle: int, step: int, flags: int) -> None:
        self.say(message(MessageType.BUNDLE_CONTROL, xid, struct.pack("!IHH", bundle, step, flags)))


class SwitchRecorder:
    """A SwitchHandler that puts what it is told in a queue."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[tuple[str, Any, Any]] = asyncio.Queue()
        self.fail_on: set[str] = set()

    async def next(self, kind: str) -> tuple[Any, Any]:
        """Session and message of the next event, which must be of this kind."""
        name, session, what = await asyncio.wait_for(self.events.get(), 60)
        assert name == kind, (name, what)
        return session, what

    def _note(self, kind: str, session: Any, what: Any = None) -> None:
        self.events.put_nowait((kind, session, what))
        if kind in self.fail_on:
            raise RuntimeError(f"handler fails on {kind}")

    def connected(self, session: Any) -> None:
        self._note("connected", session)

    def disconnected(self, session: Any, reason: str) -> None:
        self._note("disconnected", session, reason)

    def packet_in(self, session: Any, message: messages.PacketIn) -> None:
        self._note("packet_in", session, message)

    def flow_removed(self, session: Any, message: messages.FlowRemoved) -> None:
        self._note("flow_removed", session, message)

    def port_status(self, session: Any, message: messages.PortStatus) -> None:
        self._note("port_status", session, message)

    def error(self, session: Any, message: messages.ErrorMessage) -> None:
        self._note("error", session, message)
