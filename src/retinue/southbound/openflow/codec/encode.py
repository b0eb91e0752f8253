"""Messages of ours to bytes (OpenFlow 1.4, section 7.3). One function a message; each returns it whole.

To a switch of 1.3 they go by way of `wire.in_version`.

A value that has no place in its message raises ValueError with the entry in its text.
"""

from math import ceil
from struct import Struct
from struct import error as struct_error

from retinue.core.pipeline.entry import Flow, Group, Match, Meter, Output, PortNo
from retinue.southbound.openflow.codec.actions import encode_actions, encode_buckets, encode_instructions
from retinue.southbound.openflow.codec.oxm import EMPTY_MATCH, encode_match
from retinue.southbound.openflow.codec.wire import (
    ALL_METERS,
    ANY_GROUP,
    ANY_TABLE,
    HEADER,
    HEADER_BYTES,
    MAX_MESSAGE,
    NO_BUFFER,
    VERSION,
    VERSIONS,
    BundleStep,
    FlowCommand,
    FlowFlag,
    MessageType,
    ModCommand,
    MultipartType,
)

_FLOW_MOD = Struct("!BBHIQQBBHHHIIIHH")
_GROUP_MOD = Struct("!HBxI")
_METER_MOD = Struct("!HHI")
_METER_BAND = Struct("!HHII4x")
_PACKET_OUT = Struct("!BBHIIIH6x")
_PACKET_OUT_TO_PORT = Struct("!BBHIIIH6xHHIH6x")
_MULTIPART = Struct("!HH4x")
_FLOW_REQUEST = Struct("!B3xII4xQQ")
_BUNDLE_CONTROL = Struct("!BBHIIHH")
_BUNDLE_ADD = Struct("!BBHII2xH")
_ROLE = Struct("!I4xQ")
_SET_CONFIG = Struct("!HH")
_FRAG_NX_MATCH = 3

_UNFIT = (OverflowError, KeyError, TypeError, AttributeError, ValueError, struct_error)
"""What packing a value raises when it is out of range or of a wrong kind."""

ATOMIC_ORDERED = 3
"""Bundle flags: all or nothing, in the order given."""

_ALL_GROUP, _SELECT_GROUP = 0, 1
_DROP_BAND = 1
_KILOBITS_AND_BURST, _PACKETS_AND_BURST = 1 | 4, 2 | 4


def _message(kind: MessageType, xid: int, body: bytes = b"") -> bytes:
    length = HEADER_BYTES + len(body)
    if length > MAX_MESSAGE:
        raise ValueError(f"{kind.name} of {length} bytes: a message has at most {MAX_MESSAGE}")
    return HEADER.pack(VERSION, kind, length, xid) + body


# ---- the session itself ----


def hello(xid: int) -> bytes:
    """HELLO that offers the versions we speak."""
    spoken = sum(1 << version for version in VERSIONS)
    return _message(MessageType.HELLO, xid, b"\x00\x01\x00\x08" + spoken.to_bytes(4))


def error(xid: int, kind: int, code: int, data: bytes = b"") -> bytes:
    return _message(MessageType.ERROR, xid, kind.to_bytes(2) + code.to_bytes(2) + data)


def echo_request(xid: int, data: bytes = b"") -> bytes:
    return _message(MessageType.ECHO_REQUEST, xid, data)


def echo_reply(xid: int, data: bytes = b"") -> bytes:
    return _message(MessageType.ECHO_REPLY, xid, data)


def features_request(xid: int) -> bytes:
    return _message(MessageType.FEATURES_REQUEST, xid)


def set_config(xid: int, miss_send_length: int = 0xFFFF) -> bytes:
    """How fragments are treated, and how much of a frame that misses goes to the controller: all of it.

    Fragments are not reassembled. By OpenFlow's default no entry sees the ports of any of them, and a filter
    on ports is passed by cutting the datagram in two. So the first one shows its ports, and later ones, which
    hold none, show ports of zero: OFPC_FRAG_NX_MATCH, an extension of Open vSwitch (openvswitch-ofctl,
    "set-frags"). A switch that has it not rejects the handshake.
    """
    return _message(MessageType.SET_CONFIG, xid, _SET_CONFIG.pack(_FRAG_NX_MATCH, miss_send_length))


def barrier_request(xid: int) -> bytes:
    return _message(MessageType.BARRIER_REQUEST, xid)


def role_request(xid: int, role: int, generation_id: int) -> bytes:
    return _message(MessageType.ROLE_REQUEST, xid, _ROLE.pack(role, generation_id))


# ---- entries ----


def hard_timeout(expires_at: float, now: float) -> int:
    """Seconds until an entry ends, rounded up, within what the field can hold: 1 to 65535."""
    return min(max(ceil(expires_at - now), 1), 0xFFFF)


def flow_add(xid: int, flow: Flow, now: float) -> bytes:
    """Add the flow, or overwrite the one of its key; `now` in seconds since the epoch.

    A flow with `expires_at` gets a hard timeout, and the switch will tell when it ends.
    """
    if flow.expires_at is None:
        return _flow_mod(xid, FlowCommand.ADD, flow, 0, 0)
    return _flow_mod(
        xid, FlowCommand.ADD, flow, hard_timeout(flow.expires_at, now), FlowFlag.SEND_FLOW_REMOVED
    )


def flow_remove(xid: int, flow: Flow) -> bytes:
    """Remove the flow of exactly this key, whatever its actions and cookie."""
    return _flow_mod(xid, FlowCommand.DELETE_STRICT, flow, 0, 0)


def _flow_mod(xid: int, command: int, flow: Flow, timeout: int, flags: int) -> bytes:
    try:
        body = encode_match(flow.match)
        if command == FlowCommand.ADD:
            body += encode_instructions(flow)
        return (
            _FLOW_MOD.pack(
                VERSION,
                MessageType.FLOW_MOD,
                _FLOW_MOD.size + len(body),
                xid,
                flow.cookie,
                0,
                flow.table,
                command,
                0,
                timeout,
                flow.priority,
                NO_BUFFER,
                PortNo.ANY,
                ANY_GROUP,
                flags,
                0,
            )
            + body
        )
    except _UNFIT as problem:
        raise ValueError(f"cannot be put in a flow-mod: {flow}: {problem!r}") from None


def group_add(xid: int, group: Group) -> bytes:
    return _group_mod(xid, ModCommand.ADD, group)


def group_modify(xid: int, group: Group) -> bytes:
    return _group_mod(xid, ModCommand.MODIFY, group)


def group_remove(xid: int, group: int) -> bytes:
    """Remove the group, and with it the flows that send to it. Removing one that is not there is no error."""
    return _group_mod(xid, ModCommand.DELETE, Group(group, ()))


def _group_mod(xid: int, command: ModCommand, group: Group) -> bytes:
    try:
        kind, weight = (_ALL_GROUP, 0) if group.replicates else (_SELECT_GROUP, 1)
        head = _GROUP_MOD.pack(command, kind, group.id)
        return _message(MessageType.GROUP_MOD, xid, head + encode_buckets(group.buckets, weight))
    except _UNFIT as problem:
        raise ValueError(f"cannot be put in a group-mod: {group}: {problem!r}") from None


def meter_add(xid: int, meter: Meter) -> bytes:
    return _meter_mod(xid, ModCommand.ADD, meter)


def meter_modify(xid: int, meter: Meter) -> bytes:
    return _meter_mod(xid, ModCommand.MODIFY, meter)


def meter_remove(xid: int, meter: int) -> bytes:
    """Remove the meter, and with it the flows that use it. Removing one that is not there is no error."""
    body = _METER_MOD.pack(ModCommand.DELETE, _PACKETS_AND_BURST, meter)
    return _message(MessageType.METER_MOD, xid, body)


def _meter_mod(xid: int, command: ModCommand, meter: Meter) -> bytes:
    try:
        flags = _KILOBITS_AND_BURST if meter.kilobits else _PACKETS_AND_BURST
        head = _METER_MOD.pack(command, flags, meter.id)
        band = _METER_BAND.pack(_DROP_BAND, _METER_BAND.size, meter.rate, meter.burst)
    except _UNFIT as problem:
        raise ValueError(f"cannot be put in a meter-mod: {meter}: {problem!r}") from None
    return _message(MessageType.METER_MOD, xid, head + band)


# ---- bundles ----


def bundle_control(xid: int, bundle: int, step: BundleStep, flags: int = ATOMIC_ORDERED) -> bytes:
    return _BUNDLE_CONTROL.pack(VERSION, MessageType.BUNDLE_CONTROL, 16, xid, bundle, step, flags)


def bundle_add(xid: int, bundle: int, message: bytes, flags: int = ATOMIC_ORDERED) -> bytes:
    """Put a message into a bundle; the message must carry the same xid (section 7.3.9.6)."""
    length = _BUNDLE_ADD.size + len(message)
    if length > MAX_MESSAGE:
        raise ValueError(f"message of {len(message)} bytes does not fit into a bundle")
    return _BUNDLE_ADD.pack(VERSION, MessageType.BUNDLE_ADD_MESSAGE, length, xid, bundle, flags) + message


# ---- frames ----


def packet_out(xid: int, frame: bytes, port: int, in_port: int = PortNo.CONTROLLER) -> bytes:
    """Have the switch send a frame out of a port, as if it had come in at `in_port`."""
    try:
        length = _PACKET_OUT_TO_PORT.size + len(frame)
        head = (VERSION, MessageType.PACKET_OUT, length, xid, NO_BUFFER, in_port, 16)
        if port != PortNo.CONTROLLER:
            return _PACKET_OUT_TO_PORT.pack(*head, 0, 16, port, 0) + frame
        return _PACKET_OUT.pack(*head) + encode_actions((Output(port),)) + frame
    except _UNFIT as problem:
        raise ValueError(
            f"frame of {len(frame)} bytes cannot be sent out of port {port}: {problem}"
        ) from None


# ---- questions ----


def multipart_request(xid: int, kind: MultipartType, body: bytes = b"") -> bytes:
    return _message(MessageType.MULTIPART_REQUEST, xid, _MULTIPART.pack(kind, 0) + body)


def flow_stats_request(xid: int, cookie: int = 0, cookie_mask: int = 0, match: Match = ()) -> bytes:
    """Ask for the flows of all tables whose cookies agree with `cookie` in the mask's bits."""
    body = _FLOW_REQUEST.pack(ANY_TABLE, PortNo.ANY, ANY_GROUP, cookie, cookie_mask)
    return multipart_request(xid, MultipartType.FLOW, body + (encode_match(match) if match else EMPTY_MATCH))


def aggregate_request(xid: int, cookie: int, cookie_mask: int) -> bytes:
    """Ask for the sums over the flows of all tables whose cookies agree with `cookie` in the mask's bits."""
    body = _FLOW_REQUEST.pack(ANY_TABLE, PortNo.ANY, ANY_GROUP, cookie, cookie_mask)
    return multipart_request(xid, MultipartType.AGGREGATE, body + EMPTY_MATCH)


def group_desc_request(xid: int) -> bytes:
    return multipart_request(xid, MultipartType.GROUP_DESC)


def meter_config_request(xid: int) -> bytes:
    return multipart_request(xid, MultipartType.METER_CONFIG, ALL_METERS.to_bytes(4) + bytes(4))


def meter_stats_request(xid: int) -> bytes:
    return multipart_request(xid, MultipartType.METER, ALL_METERS.to_bytes(4) + bytes(4))
