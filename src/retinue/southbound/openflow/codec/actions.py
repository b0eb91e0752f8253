"""Actions, buckets and instructions to and from bytes (OpenFlow 1.4, sections 7.2.4 to 7.2.6).

`RegMove`, `Resubmit` and `CheckLarger` are Nicira's reg_move, resubmit and check_pkt_larger, which Open
vSwitch speaks in every OpenFlow version; the rest is plain OpenFlow.
"""

from collections.abc import Iterable
from struct import Struct

from retinue.core.pipeline.entry import (
    Action,
    CheckLarger,
    DecTtl,
    Flow,
    Output,
    PopVlan,
    PortNo,
    PushVlan,
    RegMove,
    Resubmit,
    SetField,
    ToGroup,
)
from retinue.southbound.openflow.codec.oxm import BITS, FIELD_OF_HEADER, FIELD_OF_MOVE, HEADERS, encode_field
from retinue.southbound.openflow.codec.wire import (
    ANY_GROUP,
    NO_MAX_LENGTH,
    PADDING,
    ProtocolError,
    UnknownFieldError,
)

OUTPUT, PUSH_VLAN, POP_VLAN, GROUP, DEC_NW_TTL, SET_FIELD, EXPERIMENTER = 0, 17, 18, 22, 24, 25, 0xFFFF
GOTO_TABLE, APPLY_ACTIONS, METER = 1, 4, 6
NICIRA, REG_MOVE, RESUBMIT_TABLE, CHECK_PKT_LARGER = 0x00002320, 6, 14, 49
SAME_PORT = 0xFFF8
"""The port of a resubmitted frame stays (OFPP_IN_PORT, in the 16 bits of OpenFlow 1.0)."""

_HEAD = Struct("!HH")
_OUTPUT = Struct("!HHIH6x")
_GROUP = Struct("!HHI")
_MOVE = Struct("!HHIHHHHII")
_LARGER = Struct("!HHIHHHI6x")
_RESUBMIT = Struct("!HHIHHB3x")
_GOTO = Struct("!HHB3x")
_METER = Struct("!HHI")
_APPLY = Struct("!HH4x")
_BUCKET = Struct("!HHII4x")
_DEC_TTL = _HEAD.pack(DEC_NW_TTL, 8) + bytes(4)
_PUSH_VLAN = _HEAD.pack(PUSH_VLAN, 8) + bytes((0x81, 0x00, 0, 0))
"""The tag's EtherType is that of IEEE 802.1Q."""
_POP_VLAN = _HEAD.pack(POP_VLAN, 8) + bytes(4)


def encode_action(action: Action) -> bytes:
    """One action. Raises OverflowError, KeyError or struct.error for a value that has no place in it."""
    kind = type(action)
    if kind is Output:
        length = NO_MAX_LENGTH if action.port == PortNo.CONTROLLER else 0  # type: ignore[union-attr]
        return _OUTPUT.pack(OUTPUT, 16, action.port, length)  # type: ignore[union-attr]
    if kind is SetField:
        field = encode_field(action.field, action.value)  # type: ignore[union-attr]
        size = 4 + len(field)
        pad = PADDING[size % 8]
        return _HEAD.pack(SET_FIELD, size + len(pad)) + field + pad
    match action:
        case ToGroup(group):
            return _GROUP.pack(GROUP, 8, group)
        case DecTtl():
            return _DEC_TTL
        case PushVlan():
            return _PUSH_VLAN
        case PopVlan():
            return _POP_VLAN
        case Resubmit(table):
            return _RESUBMIT.pack(EXPERIMENTER, 16, NICIRA, RESUBMIT_TABLE, SAME_PORT, table)
        case CheckLarger(larger_than, into, bit):
            if bit >= BITS[into]:
                raise ValueError(f"{into.name} has no bit {bit}")
            return _LARGER.pack(EXPERIMENTER, 24, NICIRA, CHECK_PKT_LARGER, larger_than, bit, HEADERS[into])
        case RegMove(source, target):
            bits = BITS[source]
            if bits != BITS[target]:
                raise ValueError(
                    f"{source.name} and {target.name} differ in width; one cannot be moved to the other"
                )
            return _MOVE.pack(
                EXPERIMENTER, 24, NICIRA, REG_MOVE, bits, 0, 0, HEADERS[source], HEADERS[target]
            )
    raise TypeError(f"{action!r} is no action")


def encode_actions(actions: Iterable[Action]) -> bytes:
    return b"".join([encode_action(action) for action in actions])


def encode_instructions(flow: Flow) -> bytes:
    """The flow's instructions in the order Open vSwitch reports them: meter, actions, goto."""
    encoded = b""
    if flow.meter is not None:
        encoded = _METER.pack(METER, 8, flow.meter)
    if flow.actions:
        actions = encode_actions(flow.actions)
        encoded += _APPLY.pack(APPLY_ACTIONS, 8 + len(actions)) + actions
    if flow.goto is not None:
        encoded += _GOTO.pack(GOTO_TABLE, 8, flow.goto)
    return encoded


def encode_buckets(buckets: Iterable[tuple[Action, ...]], weight: int = 1) -> bytes:
    """Buckets of a group, each of this weight: one in a select group, none in others."""
    encoded = []
    for bucket in buckets:
        actions = encode_actions(bucket)
        encoded.append(_BUCKET.pack(_BUCKET.size + len(actions), weight, PortNo.ANY, ANY_GROUP) + actions)
    return b"".join(encoded)


def _pieces(data: bytes, at: int, end: int, what: str, shortest: int) -> Iterable[tuple[int, int, int]]:
    """Type, offset and length of each of the type-length structures that fill data[at:end]."""
    while at < end:
        if end - at < shortest:
            raise ProtocolError(f"{what} is cut short")
        kind, length = _HEAD.unpack_from(data, at)
        if length < shortest or length % 8 or length > end - at:
            raise ProtocolError(f"{what} of type {kind} says it is {length} bytes long, {end - at} are left")
        yield kind, at, length
        at += length


def decode_actions(data: bytes, at: int, end: int) -> tuple[Action, ...]:
    """The actions in data[at:end]. Raises ProtocolError, or UnknownFieldError for what our flows never
    have."""
    return tuple([_action(data, *piece) for piece in _pieces(data, at, end, "action", 8)])


def _action(data: bytes, kind: int, at: int, length: int) -> Action:
    match kind, length:
        case 0, 16:
            return Output(int.from_bytes(data[at + 4 : at + 8]))
        case 17, 8 if data[at + 4 : at + 6] == b"\x81\x00":
            return PushVlan()
        case 18, 8:
            return PopVlan()
        case 22, 8:
            return ToGroup(int.from_bytes(data[at + 4 : at + 8]))
        case 24, 8:
            return DecTtl()
        case 25, _:
            return _set_field(data, at, length)
        case 0xFFFF, 24 if int.from_bytes(data[at + 8 : at + 10]) == CHECK_PKT_LARGER:
            return _larger(data, at)
        case 0xFFFF, 24:
            return _move(data, at)
        case 0xFFFF, 16:
            return _resubmit(data, at)
        case ((0 | 18 | 22 | 24), _):
            raise ProtocolError(f"action of type {kind} cannot be {length} bytes long")
    raise UnknownFieldError(f"action of type {kind}")


def _set_field(data: bytes, at: int, length: int) -> SetField:
    header = int.from_bytes(data[at + 4 : at + 8])
    size = header & 0xFF
    if 8 + size > length:
        raise ProtocolError("set-field action is shorter than its field")
    field = FIELD_OF_HEADER.get(header)
    if field is None:
        raise UnknownFieldError(f"set-field of {header:#010x}")
    return SetField(field, int.from_bytes(data[at + 8 : at + 8 + size]))


def _move(data: bytes, at: int) -> RegMove:
    _, _, vendor, subtype, bits, source_bit, target_bit, source_header, target_header = _MOVE.unpack_from(
        data, at
    )
    source, target = FIELD_OF_MOVE.get(source_header), FIELD_OF_MOVE.get(target_header)
    if (
        (vendor, subtype, source_bit, target_bit) != (NICIRA, REG_MOVE, 0, 0)
        or source is None
        or target is None
    ):
        raise UnknownFieldError(f"experimenter action {vendor:#x} {subtype}")
    if bits != BITS[source] or bits != BITS[target]:
        raise UnknownFieldError(f"move of {bits} bits of {source.name}")
    return RegMove(source, target)


def _larger(data: bytes, at: int) -> CheckLarger:
    _, _, vendor, _, size, bit, header = _LARGER.unpack_from(data, at)
    field = FIELD_OF_HEADER.get(header)
    if vendor != NICIRA or field is None or bit >= BITS[field]:
        raise UnknownFieldError(
            f"check of size into bit {bit} of {header:#010x}, of experimenter {vendor:#x}"
        )
    return CheckLarger(size, field, bit)


def _resubmit(data: bytes, at: int) -> Resubmit:
    _, _, vendor, subtype, port, table = _RESUBMIT.unpack_from(data, at)
    if (vendor, subtype, port) != (NICIRA, RESUBMIT_TABLE, SAME_PORT):
        raise UnknownFieldError(f"experimenter action {vendor:#x} {subtype}, to port {port:#x}")
    return Resubmit(table)


def decode_instructions(data: bytes, at: int, end: int) -> tuple[tuple[Action, ...], int | None, int | None]:
    """Actions, goto table and meter. Raises ProtocolError, or UnknownFieldError for what our flows
    never have."""
    actions: tuple[Action, ...] = ()
    goto: int | None = None
    meter: int | None = None
    seen = set()
    for kind, start, length in _pieces(data, at, end, "instruction", 8):
        if kind in seen:
            raise ProtocolError(f"instruction of type {kind} comes twice")
        seen.add(kind)
        if kind == APPLY_ACTIONS:
            actions = decode_actions(data, start + 8, start + length)
        elif kind == GOTO_TABLE:
            goto = data[start + 4]
        elif kind == METER:
            meter = int.from_bytes(data[start + 4 : start + 8])
        else:
            raise UnknownFieldError(f"instruction of type {kind}")
    return actions, goto, meter


def decode_buckets(data: bytes, at: int, end: int, weight: int = 1) -> tuple[tuple[Action, ...], ...]:
    """Buckets in data[at:end]. Raises ProtocolError, or UnknownFieldError for those of another weight, and
    for watching ones."""
    buckets = []
    while at < end:
        if end - at < _BUCKET.size:
            raise ProtocolError("bucket is cut short")
        length, its_weight, port, group = _BUCKET.unpack_from(data, at)
        if length < _BUCKET.size or length > end - at:
            raise ProtocolError(f"bucket says it is {length} bytes long, {end - at} are left")
        if (its_weight, port, group) != (weight, PortNo.ANY, ANY_GROUP):
            raise UnknownFieldError(
                f"bucket of weight {its_weight} that watches port {port} and group {group}"
            )
        buckets.append(decode_actions(data, at + _BUCKET.size, at + length))
        at += length
    return tuple(buckets)
