"""A fake OpenFlow switch, one of very many: it keeps flow-mods as the bytes they are, and gives them back.

`support.fakes.openflow_peer` reads every message with our own codec, which is what a test wants; a thousand
switches with two million entries would cost more than the controller that is measured. So nothing is decoded
here but what decides: the kind, the key, the command.
"""

import asyncio
import random
import struct
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator

from retinue.core.packets.ethernet import EtherType
from retinue.core.pipeline.cookies import COOKIE_MARK, Reason
from retinue.core.pipeline.entry import PortNo
from retinue.southbound.openflow.codec.wire import BundleStep, MessageType, MultipartType
from support.fakes.openflow_peer import features, message, multipart, port_desc, port_status

LARGEST_PART = 60_000
"""Bytes of one multipart reply."""
REDIAL = 1.0
"""Seconds until it dials again, at most; at least half of it."""
_FLOW_STATS = struct.Struct("!HBxIIHHHHH2xQQQ")
_BUNDLE_REPLY = struct.Struct("!IHH")
_DELETE_METER = _DELETE_GROUP = 2
_AGGREGATE = struct.Struct("!QQI4x")


class Confirmations:
    """When entries were confirmed, by the hash of their owner in the cookie; and who waits for how many."""

    def __init__(self) -> None:
        self.on = False
        """Entries are not noted while nobody looks."""
        self._found: defaultdict[int, list[tuple[float, int]]] = defaultdict(list)
        self._waiting: dict[int, tuple[float, int, asyncio.Future[float]]] = {}

    def note(self, owner: int, at: float, entries: int) -> None:
        self._found[owner].append((at, entries))
        waiting = self._waiting.get(owner)
        if waiting is not None:
            since, wanted, told = waiting
            if self.count(owner, since) >= wanted:
                del self._waiting[owner]
                if not told.done():
                    told.set_result(at)

    def count(self, owner: int, since: float) -> int:
        return sum(entries for at, entries in self._found.get(owner, ()) if at >= since)

    def last(self, owner: int, since: float) -> float:
        """When one of its entries was confirmed last; `since` if none was."""
        return max((at for at, _ in self._found.get(owner, ()) if at >= since), default=since)

    async def reach(self, owner: int, since: float, entries: int, limit: float) -> float:
        """When the last of so many entries was confirmed. Raises TimeoutError."""
        if self.count(owner, since) >= entries:
            return self.last(owner, since)
        told: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting[owner] = since, entries, told
        async with asyncio.timeout(limit):
            return await told

    def forget(self, owner: int) -> None:
        self._found.pop(owner, None)
        self._waiting.pop(owner, None)


class Switches:
    """What all fake switches share: where they dial, and what they have counted together."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.up = True
        """They dial again when they are cut off."""
        self.all: dict[str, FakeBulkSwitch] = {}
        self.flow_mods = self.connects = self.losses = self.reads = 0
        self.last_change = 0.0
        """When a barrier behind a change was answered last."""
        self.confirmations = Confirmations()
        self.on_packet_out: Callable[[FakeBulkSwitch, bytes], None] = lambda switch, frame: None

    @property
    def entries(self) -> int:
        return sum(len(s.flows) + len(s.meters) + len(s.groups) for s in self.all.values())


class FakeBulkSwitch(asyncio.Protocol):
    def __init__(self, shared: Switches, id: str, dpid: int, ports: dict[str, int]) -> None:
        self.id, self.dpid, self.ports = id, dpid, dict(ports)
        self.flows: dict[bytes, bytes] = {}
        self.meters: dict[int, bytes] = {}
        self.groups: dict[int, bytes] = {}
        self.owner_of_port: dict[int, int] = {}
        """By port: the hash of the VM there, for meters have no cookie."""
        self.above: dict[int, tuple[FakeBulkSwitch, int]] = {}
        """By port of a leaf: the spine to which its link leads, and the port there."""
        self.transport: asyncio.Transport | None = None
        self._shared = shared
        self._installed: dict[bytes, float] = {}
        """When an entry with a hard timeout was installed."""
        self._rest = b""
        self._staged: dict[bytes, list[bytes]] = {}
        self._unconfirmed: Counter[int] = Counter()
        self._changed = False
        self._dialing: asyncio.Task[None] | None = None
        shared.all[id] = self

    # ---- connection ----

    def dial(self, delay: float) -> None:
        self._dialing = asyncio.get_running_loop().create_task(self._dial(delay))

    async def _dial(self, delay: float) -> None:
        await asyncio.sleep(delay)
        while self._shared.up and self.transport is None:
            try:
                await asyncio.get_running_loop().create_connection(
                    lambda: self, "127.0.0.1", self._shared.port
                )
            except OSError:
                await asyncio.sleep(random.uniform(REDIAL / 2, REDIAL))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._rest, self._staged, self._changed = b"", {}, False
        self._unconfirmed.clear()
        self._shared.connects += 1
        transport.write(message(MessageType.HELLO, 1))

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._shared.losses += 1
        if self._shared.up:
            self.dial(random.uniform(REDIAL / 2, REDIAL))

    def say(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def packet_in(self, frame: bytes, in_port: int, cookie: int) -> None:
        match = struct.pack("!HHII4x", 1, 12, 0x80000004, in_port)
        head = struct.pack("!IHBBQ", 0xFFFFFFFF, len(frame), 1, 0, cookie)
        self.say(message(MessageType.PACKET_IN, 0, head + match + bytes(2) + frame))

    def add_port(self, name: str, number: int, owner: int) -> None:
        self.ports[name] = number
        self.owner_of_port[number] = owner
        self.say(port_status(0, number, name))

    def remove_port(self, name: str) -> None:
        self.say(port_status(1, self.ports.pop(name), name))

    # ---- messages ----

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        at, end = 0, len(data)
        answers: list[bytes] = []
        while end - at >= 8:
            kind, stop = data[at + 1], at + (data[at + 2] << 8 | data[at + 3])
            if stop > end:
                break
            if kind == MessageType.BUNDLE_ADD_MESSAGE:
                self._staged[data[at + 8 : at + 12]].append(data[at + 16 : stop])
            else:
                self._take(kind, data[at:stop], answers)
            at = stop
        self._rest = data[at:]
        if answers:
            self.say(b"".join(answers))

    def _take(self, kind: int, raw: bytes, answers: list[bytes]) -> None:
        xid = int.from_bytes(raw[4:8])
        match kind:
            case MessageType.BARRIER_REQUEST:
                if self._changed:
                    self._confirm()
                answers.append(message(MessageType.BARRIER_REPLY, xid))
            case MessageType.BUNDLE_CONTROL:
                answers.append(self._bundle(xid, raw[8:12], raw[13], raw[14:16]))
            case MessageType.FLOW_MOD | MessageType.GROUP_MOD | MessageType.METER_MOD:
                self._apply(raw)
            case MessageType.ECHO_REQUEST:
                answers.append(message(MessageType.ECHO_REPLY, xid, raw[8:]))
            case MessageType.ROLE_REQUEST:
                answers.append(message(MessageType.ROLE_REPLY, xid, raw[8:]))
            case MessageType.FEATURES_REQUEST:
                answers.append(features(xid, self.dpid))
            case MessageType.MULTIPART_REQUEST:
                answers += self._multipart(xid, raw)
            case MessageType.PACKET_OUT:
                frame = raw[24 + int.from_bytes(raw[16:18]) :]
                if int.from_bytes(frame[12:14]) == EtherType.LLDP:
                    self._probe(int.from_bytes(raw[28:32]), frame)
                else:
                    self._shared.on_packet_out(self, frame)

    def _probe(self, port: int, frame: bytes) -> None:
        """Links lose nothing: the spine sends a probe up, and back, and the leaf sends it up once more."""
        cookie = COOKIE_MARK | Reason.PROBE << 32
        if port == PortNo.TABLE:
            self.packet_in(frame, PortNo.CONTROLLER, cookie)
        elif port in self.above:
            spine, there = self.above[port]
            spine.packet_in(frame, there, cookie)
            self.packet_in(frame, port, cookie)

    def _bundle(self, xid: int, number: bytes, step: int, flags: bytes) -> bytes:
        match step:
            case BundleStep.OPEN_REQUEST:
                self._staged[number] = []
            case BundleStep.COMMIT_REQUEST:
                for inside in self._staged.pop(number):
                    self._apply(inside)
            case BundleStep.DISCARD_REQUEST:
                self._staged.pop(number, None)
        body = _BUNDLE_REPLY.pack(int.from_bytes(number), step + 1, int.from_bytes(flags))
        return message(MessageType.BUNDLE_CONTROL, xid, body)

    def _apply(self, raw: bytes) -> None:
        self._changed = True
        match raw[1]:
            case MessageType.FLOW_MOD:
                self._shared.flow_mods += 1
                length = raw[50] << 8 | raw[51]
                key = raw[24:25] + raw[30:32] + raw[50 : 48 + length]
                if raw[25] == 0:
                    self.flows[key] = raw
                    if raw[28] or raw[29]:
                        self._installed[key] = time.monotonic()
                else:
                    self.flows.pop(key, None)
                if self._shared.confirmations.on:
                    self._unconfirmed[int.from_bytes(raw[12:16])] += 1
            case MessageType.METER_MOD:
                number = int.from_bytes(raw[12:16])
                if raw[9] == _DELETE_METER:
                    self.meters.pop(number, None)
                else:
                    self.meters[number] = raw
                owner = self.owner_of_port.get((number - 16) // 4)
                if owner is not None and self._shared.confirmations.on:
                    self._unconfirmed[owner] += 1
            case MessageType.GROUP_MOD:
                number = int.from_bytes(raw[12:16])
                if raw[9] == _DELETE_GROUP:
                    self.groups.pop(number, None)
                else:
                    self.groups[number] = raw

    def _confirm(self) -> None:
        self._changed = False
        now = self._shared.last_change = time.monotonic()
        for owner, entries in self._unconfirmed.items():
            self._shared.confirmations.note(owner, now, entries)
        self._unconfirmed.clear()

    # ---- what it holds ----

    def _multipart(self, xid: int, raw: bytes) -> Iterator[bytes]:
        self._shared.reads += 1
        kind = raw[9]
        bodies = list(_bodies(self._parts(kind, raw)))
        for index, body in enumerate(bodies):
            yield multipart(xid, kind, body, index < len(bodies) - 1)

    def _parts(self, kind: int, raw: bytes) -> Iterable[bytes]:
        match kind:
            case MultipartType.PORT_DESC:
                return (port_desc(number, name) for name, number in self.ports.items())
            case MultipartType.GROUP_DESC:
                return (struct.pack("!HBx", 8 + len(g) - 16, g[10]) + g[12:] for g in self.groups.values())
            case MultipartType.METER_CONFIG:
                return (struct.pack("!H", 8 + len(m) - 16) + m[10:] for m in self.meters.values())
            case MultipartType.FLOW:
                cookie, mask = struct.unpack_from("!QQ", raw, 32)
                chosen = (
                    (key, flow)
                    for key, flow in self.flows.items()
                    if not mask or int.from_bytes(flow[8:16]) & mask == cookie
                )
                return (self._stats(key, flow) for key, flow in chosen)
            case MultipartType.AGGREGATE:  # No frame has ever met an entry here.
                return (_AGGREGATE.pack(0, 0, len(self.flows)),)
            case _:
                return ()

    def _stats(self, key: bytes, flow: bytes) -> bytes:
        body, hard = flow[48:], int.from_bytes(flow[28:30])
        age = int(time.monotonic() - self._installed[key]) if hard else 0
        priority, cookie = int.from_bytes(flow[30:32]), int.from_bytes(flow[8:16])
        head = _FLOW_STATS.pack(48 + len(body), flow[24], age, 0, priority, 0, hard, 0, 0, cookie, 0, 0)
        return head + body


def _bodies(parts: Iterable[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for part in parts:
        if size + len(part) > LARGEST_PART:
            yield b"".join(held)
            held, size = [], 0
        held.append(part)
        size += len(part)
    yield b"".join(held)
