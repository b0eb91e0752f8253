"""Bytes of the other side to messages (OpenFlow 1.4, section 7; 1.3 differs in the description of a port).

Whatever is wrong ends in ProtocolError.

What is well-formed but beyond our values is no error: somebody else's flow entry is counted and left out, a
message of a kind we never asked for becomes Other.
"""

from collections.abc import Callable, Iterator
from struct import Struct
from struct import error as struct_error

from retinue.core.pipeline.entry import Field, Flow, Group, Meter
from retinue.security.listener.rejections import Rejection
from retinue.southbound.openflow.codec.actions import decode_actions, decode_buckets, decode_instructions
from retinue.southbound.openflow.codec.messages import (
    AggregateStats,
    BarrierReply,
    BundleAdd,
    BundleControl,
    EchoReply,
    EchoRequest,
    ErrorMessage,
    FeaturesReply,
    FlowMod,
    FlowRemoved,
    FlowStats,
    GroupDesc,
    GroupMod,
    Hello,
    Message,
    MeterConfig,
    MeterMod,
    MeterStats,
    MultipartReply,
    Other,
    PacketIn,
    PacketOut,
    Part,
    PortDesc,
    PortStatus,
    RoleReply,
    RoleStatus,
)
from retinue.southbound.openflow.codec.oxm import decode_match
from retinue.southbound.openflow.codec.wire import (
    HEADER,
    HEADER_BYTES,
    OLDER,
    MessageType,
    ModCommand,
    MultipartType,
    ProtocolError,
    UnknownFieldError,
    check_version,
)

_ERROR = Struct("!HH")
_FEATURES = Struct("!QIBB2xII")
_PACKET_IN = Struct("!IHBBQ")
_FLOW_REMOVED = Struct("!QHBBIIHHQQ")
_PORT_STATUS = Struct("!B7x")
_PORT = Struct("!IH2x6s2x16sII")
_OLDER_PORT = Struct("!I4x6s2x16sII24x")
"""Of 1.3: without a length, and followed by features and speeds (section 7.2.1)."""
_MULTIPART = Struct("!HH4x")
_FLOW_STATS = Struct("!HBxIIHHHHH2xQQQ")
_GROUP_DESC = Struct("!HBxI")
_METER_CONFIG = Struct("!HHI")
_METER_BAND = Struct("!HHII4x")
_AGGREGATE = Struct("!QQI4x")
_METER_STATS = Struct("!IH6xIQQII")
_BAND_STATS = Struct("!QQ")
_ROLE = Struct("!I4xQ")
_FLOW_MOD = Struct("!QQBBHHHIIIHH")
_GROUP_MOD = Struct("!HBxI")
_PACKET_OUT = Struct("!IIH6x")
_BUNDLE_CONTROL = Struct("!IHH")
_BUNDLE_ADD = Struct("!I2xH")

_KILOBITS, _PACKETS, _DROP_BAND = 1, 2, 1
_ALL_GROUP, _SELECT_GROUP = 0, 1


def decode(data: bytes) -> Message:
    """One whole message, as a Framer hands it out. Raises ProtocolError."""
    if len(data) < HEADER_BYTES:
        raise ProtocolError(f"message of {len(data)} bytes has no header", Rejection.LENGTH)
    version, kind, length, xid = HEADER.unpack_from(data)
    if length != len(data):
        raise ProtocolError(f"message of {len(data)} bytes says it has {length}", Rejection.LENGTH)
    check_version(version, kind)
    reader = _READERS.get(kind)
    try:
        if reader is not None:
            return reader(data, xid)
    except struct_error as problem:
        raise ProtocolError(f"{MessageType(kind).name} of {length} bytes is cut short: {problem}") from None
    except UnknownFieldError:
        pass
    return Other(xid, kind, data[HEADER_BYTES:])


def _hello(data: bytes, xid: int) -> Hello:
    versions: set[int] = set()
    at = HEADER_BYTES
    while at + 4 <= len(data):
        kind, length = _ERROR.unpack_from(data, at)
        if length < 4 or at + length > len(data):
            raise ProtocolError(f"HELLO has an element of {length} bytes, {len(data) - at} are left")
        if kind == 1:
            for word in range((length - 4) // 4):
                bits = int.from_bytes(data[at + 4 + 4 * word : at + 8 + 4 * word])
                versions.update(32 * word + bit for bit in range(32) if bits >> bit & 1)
        at += length + -length % 8
    return Hello(xid, data[0], frozenset(versions))


def _error(data: bytes, xid: int) -> ErrorMessage:
    kind, code = _ERROR.unpack_from(data, 8)
    return ErrorMessage(xid, kind, code, data[12:])


def _features(data: bytes, xid: int) -> FeaturesReply:
    dpid, buffers, tables, auxiliary, capabilities, _ = _FEATURES.unpack_from(data, 8)
    return FeaturesReply(xid, dpid, buffers, tables, auxiliary, capabilities)


def _packet_in(data: bytes, xid: int) -> PacketIn:
    buffer_id, _, reason, table, cookie = _PACKET_IN.unpack_from(data, 8)
    match, at = decode_match(data, 24, skip_unknown=True)
    if len(data) < at + 2:
        raise ProtocolError("PACKET_IN ends before its frame")
    in_port = match[0][1] if match and match[0][0] is Field.IN_PORT else 0
    return PacketIn(xid, buffer_id, reason, table, cookie, in_port, data[at + 2 :], match)


def _flow_removed(data: bytes, xid: int) -> FlowRemoved:
    cookie, priority, reason, table, seconds, nanos, _, hard, packets, nbytes = _FLOW_REMOVED.unpack_from(
        data, 8
    )
    match, _ = decode_match(data, 48)
    duration = seconds + nanos * 1e-9
    return FlowRemoved(xid, reason, table, priority, match, cookie, packets, nbytes, duration, hard)


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "replace")


def _port(data: bytes, at: int, end: int) -> tuple[PortDesc, int]:
    form = _OLDER_PORT if data[0] == OLDER else _PORT
    if end - at < form.size:
        raise ProtocolError("port description is cut short")
    if form is _OLDER_PORT:
        number, mac, name, config, state = form.unpack_from(data, at)
        return PortDesc(number, _text(name), mac, config, state), at + form.size
    number, length, mac, name, config, state = _PORT.unpack_from(data, at)
    if length < _PORT.size or length > end - at:
        raise ProtocolError(f"port description says it is {length} bytes long, {end - at} are left")
    return PortDesc(number, _text(name), mac, config, state), at + length


def _port_status(data: bytes, xid: int) -> PortStatus:
    (reason,) = _PORT_STATUS.unpack_from(data, 8)
    port, _ = _port(data, 16, len(data))
    return PortStatus(xid, reason, port)


def _barrier_reply(data: bytes, xid: int) -> BarrierReply:
    return BarrierReply(xid)


def _role_reply(data: bytes, xid: int) -> RoleReply:
    role, generation_id = _ROLE.unpack_from(data, 8)
    return RoleReply(xid, role, generation_id)


def _role_status(data: bytes, xid: int) -> RoleStatus:
    role, generation_id = _ROLE.unpack_from(data, 8)
    return RoleStatus(xid, role, generation_id)


# ---- answers of many parts ----


def _multipart(data: bytes, xid: int) -> MultipartReply:
    kind, flags = _MULTIPART.unpack_from(data, 8)
    reader = _PARTS.get(kind)
    if reader is None:
        raise UnknownFieldError(f"multipart reply of type {kind}")
    parts = list(reader(data, 16))
    known = tuple([part for part in parts if part is not None])
    return MultipartReply(xid, kind, bool(flags & 1), known, len(parts) - len(known))


def _pieces(data: bytes, at: int, what: str, shortest: int) -> Iterator[tuple[int, int]]:
    """Start and end of each of the structures, led by their length, that fill the rest of a message."""
    while at < len(data):
        length = int.from_bytes(data[at : at + 2])
        if len(data) - at < shortest or length < shortest or length > len(data) - at:
            raise ProtocolError(f"{what} says it is {length} bytes long, {len(data) - at} are left")
        yield at, at + length
        at += length


def _flow_parts(data: bytes, at: int) -> Iterator[Part | None]:
    for start, end in _pieces(data, at, "flow entry", _FLOW_STATS.size + 8):
        (_, table, seconds, nanos, priority, idle, hard, _, _, cookie, packets, nbytes) = (
            _FLOW_STATS.unpack_from(data, start)
        )
        entry = data[start:end]
        try:
            match, behind = decode_match(entry, _FLOW_STATS.size)
            actions, goto, meter = decode_instructions(entry, behind, len(entry))
        except UnknownFieldError:
            yield None
            continue
        if idle:  # Ours never end for want of traffic.
            yield None
            continue
        flow = Flow(table, priority, match, actions, goto, meter, cookie)
        yield FlowStats(flow, packets, nbytes, seconds + nanos * 1e-9, hard)


def _aggregate_parts(data: bytes, at: int) -> Iterator[Part | None]:
    if len(data) - at != _AGGREGATE.size:
        raise ProtocolError(f"sums over flows have {_AGGREGATE.size} bytes, not {len(data) - at}")
    packets, _, flows = _AGGREGATE.unpack_from(data, at)
    yield AggregateStats(packets, flows)


def _group_parts(data: bytes, at: int) -> Iterator[Part | None]:
    for start, end in _pieces(data, at, "group", _GROUP_DESC.size):
        _, kind, number = _GROUP_DESC.unpack_from(data, start)
        try:
            buckets = decode_buckets(data, start + _GROUP_DESC.size, end, weight=int(kind == _SELECT_GROUP))
        except UnknownFieldError:
            yield GroupDesc(number, None)
            continue
        group = Group(number, buckets, replicates=kind == _ALL_GROUP)
        yield GroupDesc(number, group if kind in (_ALL_GROUP, _SELECT_GROUP) else None)


def _meter_parts(data: bytes, at: int) -> Iterator[Part | None]:
    for start, end in _pieces(data, at, "meter", _METER_CONFIG.size):
        _, flags, number = _METER_CONFIG.unpack_from(data, start)
        yield MeterConfig(number, _meter(data, start + _METER_CONFIG.size, end, number, flags))


def _meter(data: bytes, at: int, end: int, number: int, flags: int) -> Meter | None:
    """A meter of one band that drops, counted in packets or in kilobits; None for any other."""
    if end - at != _METER_BAND.size or flags & (_KILOBITS | _PACKETS) not in (_KILOBITS, _PACKETS):
        return None
    kind, length, rate, burst = _METER_BAND.unpack_from(data, at)
    if (kind, length) != (_DROP_BAND, _METER_BAND.size):
        return None
    return Meter(number, rate, burst, bool(flags & _KILOBITS))


def _meter_stats_parts(data: bytes, at: int) -> Iterator[Part | None]:
    while at < len(data):
        if len(data) - at < _METER_STATS.size:
            raise ProtocolError("the counts of a meter are cut short")
        number, length, _, frames, *_ = _METER_STATS.unpack_from(data, at)
        if length > len(data) - at or length < _METER_STATS.size or (length - _METER_STATS.size) % 16:
            raise ProtocolError(
                f"the counts of a meter say they are {length} bytes long, {len(data) - at} are left"
            )
        bands = range(at + _METER_STATS.size, at + length, _BAND_STATS.size)
        yield MeterStats(number, frames, sum(_BAND_STATS.unpack_from(data, band)[0] for band in bands))
        at += length


def _port_parts(data: bytes, at: int) -> Iterator[Part | None]:
    while at < len(data):
        port, at = _port(data, at, len(data))
        yield port


_PARTS: dict[int, Callable[[bytes, int], Iterator[Part | None]]] = {
    MultipartType.FLOW: _flow_parts,
    MultipartType.AGGREGATE: _aggregate_parts,
    MultipartType.GROUP_DESC: _group_parts,
    MultipartType.METER_CONFIG: _meter_parts,
    MultipartType.METER: _meter_stats_parts,
    MultipartType.PORT_DESC: _port_parts,
}


# ---- what a controller says, for whoever plays the switch ----


def _flow_mod(data: bytes, xid: int) -> FlowMod:
    cookie, _, table, command, _, hard, priority, _, _, _, flags, _ = _FLOW_MOD.unpack_from(data, 8)
    match, at = decode_match(data, 48)
    actions, goto, meter = decode_instructions(data, at, len(data))
    return FlowMod(xid, command, Flow(table, priority, match, actions, goto, meter, cookie), hard, flags)


def _group_mod(data: bytes, xid: int) -> GroupMod:
    command, kind, number = _GROUP_MOD.unpack_from(data, 8)
    if kind not in (_ALL_GROUP, _SELECT_GROUP):
        raise UnknownFieldError(f"group of type {kind}")
    buckets = decode_buckets(data, 16, len(data), weight=int(kind == _SELECT_GROUP))
    return GroupMod(xid, command, Group(number, buckets, replicates=kind == _ALL_GROUP))


def _meter_mod(data: bytes, xid: int) -> MeterMod:
    command, flags, number = _METER_CONFIG.unpack_from(data, 8)
    if command == ModCommand.DELETE:
        return MeterMod(xid, command, Meter(number, 0, 0))
    meter = _meter(data, 16, len(data), number, flags)
    if meter is None:
        raise UnknownFieldError(f"meter with flags {flags:#x}")
    return MeterMod(xid, command, meter)


def _packet_out(data: bytes, xid: int) -> PacketOut:
    _, in_port, length = _PACKET_OUT.unpack_from(data, 8)
    end = 24 + length
    if end > len(data):
        raise ProtocolError("PACKET_OUT is shorter than its actions")
    return PacketOut(xid, in_port, decode_actions(data, 24, end), data[end:])


def _bundle_control(data: bytes, xid: int) -> BundleControl:
    bundle, step, flags = _BUNDLE_CONTROL.unpack_from(data, 8)
    return BundleControl(xid, bundle, step, flags)


def _bundle_add(data: bytes, xid: int) -> BundleAdd:
    bundle, flags = _BUNDLE_ADD.unpack_from(data, 8)
    if len(data) < 24:
        raise ProtocolError("BUNDLE_ADD_MESSAGE has no message in it")
    return BundleAdd(xid, bundle, flags, data[16:])


_READERS: dict[int, Callable[[bytes, int], Message]] = {
    MessageType.HELLO: _hello,
    MessageType.ERROR: _error,
    MessageType.ECHO_REQUEST: lambda data, xid: EchoRequest(xid, data[8:]),
    MessageType.ECHO_REPLY: lambda data, xid: EchoReply(xid, data[8:]),
    MessageType.FEATURES_REPLY: _features,
    MessageType.PACKET_IN: _packet_in,
    MessageType.FLOW_REMOVED: _flow_removed,
    MessageType.PORT_STATUS: _port_status,
    MessageType.PACKET_OUT: _packet_out,
    MessageType.FLOW_MOD: _flow_mod,
    MessageType.GROUP_MOD: _group_mod,
    MessageType.MULTIPART_REPLY: _multipart,
    MessageType.BARRIER_REPLY: _barrier_reply,
    MessageType.ROLE_REPLY: _role_reply,
    MessageType.ROLE_STATUS: _role_status,
    MessageType.METER_MOD: _meter_mod,
    MessageType.BUNDLE_CONTROL: _bundle_control,
    MessageType.BUNDLE_ADD_MESSAGE: _bundle_add,
}
