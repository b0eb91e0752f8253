"""Matches to and from OXM, OpenFlow's type-length-value form of header fields (OpenFlow 1.4, section 7.2.3).

Fields outside `flows.entry.Field` are UnknownFieldError: an entry that has one is somebody else's.
"""

from retinue.core.pipeline.entry import ERICSSON, FIELD_BYTES, NICIRA, Field, Match, MatchTerm
from retinue.southbound.openflow.codec.wire import PADDING, ProtocolError, UnknownFieldError

BASIC_CLASS, NICIRA_CLASS, ERICSSON_CLASS = 0x8000, 0x0001, 0x1000


def _number(field: Field, length: int, masked: bool = False) -> int:
    of = ERICSSON_CLASS if field & ERICSSON else NICIRA_CLASS if field & NICIRA else BASIC_CLASS
    return of << 16 | (field & 0x7F) << 9 | masked << 8 | length


HEADERS: dict[Field, int] = {field: _number(field, size) for field, size in FIELD_BYTES.items()}
"""The OXM header, as a number, of each field without mask."""

BITS: dict[Field, int] = {field: 8 * size for field, size in FIELD_BYTES.items()} | {Field.VLAN_VID: 13}
"""Width in bits of each field; a VLAN id has twelve and one that says there is a tag."""

_ENCODE: dict[Field, tuple[bytes, bytes, int]] = {
    field: (_number(field, size).to_bytes(4), _number(field, 2 * size, True).to_bytes(4), size)
    for field, size in FIELD_BYTES.items()
}
_DECODE: dict[bytes, tuple[Field, int, bool]] = {
    header: (field, size, masked)
    for field, (exact, with_mask, size) in _ENCODE.items()
    for header, masked in ((exact, False), (with_mask, True))
}
FIELD_OF_HEADER: dict[int, Field] = {number: field for field, number in HEADERS.items()}

_NICIRA_NUMBERS: dict[Field, int] = {
    Field.ETH_DST: 0x0000_0001,
    Field.ETH_SRC: 0x0000_0002,
    Field.ETH_TYPE: 0x0000_0003,
    Field.IP_PROTO: 0x0000_0006,
    Field.IPV4_SRC: 0x0000_0007,
    Field.IPV4_DST: 0x0000_0008,
    Field.TCP_SRC: 0x0000_0009,
    Field.TCP_DST: 0x0000_000A,
    Field.UDP_SRC: 0x0000_000B,
    Field.UDP_DST: 0x0000_000C,
    Field.ICMPV4_TYPE: 0x0000_000D,
    Field.ICMPV4_CODE: 0x0000_000E,
    Field.ARP_OP: 0x0000_000F,
    Field.ARP_SPA: 0x0000_0010,
    Field.ARP_TPA: 0x0000_0011,
    Field.TUNNEL_ID: 0x0001_0010,
    Field.ARP_SHA: 0x0001_0011,
    Field.ARP_THA: 0x0001_0012,
    Field.IPV6_SRC: 0x0001_0013,
    Field.IPV6_DST: 0x0001_0014,
    Field.ICMPV6_TYPE: 0x0001_0015,
    Field.ICMPV6_CODE: 0x0001_0016,
    Field.IPV6_ND_TARGET: 0x0001_0017,
    Field.IPV6_ND_SLL: 0x0001_0018,
    Field.IPV6_ND_TLL: 0x0001_0019,
}
"""Class and number that Nicira's own match language (NXM) gives a field of the same width."""

FIELD_OF_MOVE: dict[int, Field] = FIELD_OF_HEADER | {
    (number & 0xFFFF_0000) | (number & 0x7F) << 9 | FIELD_BYTES[field]: field
    for field, number in _NICIRA_NUMBERS.items()
}
"""Fields of a migration by header: Open vSwitch takes OXM headers there and reports NXM ones."""

EMPTY_MATCH = b"\x00\x01\x00\x04\x00\x00\x00\x00"


def encode_field(field: Field, value: int) -> bytes:
    """One field without mask. Raises OverflowError for a value that does not fit."""
    header, _, size = _ENCODE[field]
    return header + value.to_bytes(size)


def encode_match(match: Match) -> bytes:
    """The match as `ofp_match`, padded to a multiple of eight bytes."""
    parts = [b""]
    length = 4
    for field, value, mask in match:
        exact, with_mask, size = _ENCODE[field]
        if mask is None:
            parts.append(exact + value.to_bytes(size))
            length += 4 + size
        else:
            parts.append(with_mask + value.to_bytes(size) + mask.to_bytes(size))
            length += 4 + 2 * size
    parts[0] = b"\x00\x01" + length.to_bytes(2)
    parts.append(PADDING[length % 8])
    return b"".join(parts)


def decode_match(data: bytes, at: int, *, skip_unknown: bool = False) -> tuple[Match, int]:
    """Read `ofp_match` at an offset; return the match and the offset behind its padding.

    Raises ProtocolError, or UnknownFieldError for a field that is not ours (left out instead with
    `skip_unknown`).
    """
    if len(data) < at + 4:
        raise ProtocolError("match is cut short")
    kind, length = int.from_bytes(data[at : at + 2]), int.from_bytes(data[at + 2 : at + 4])
    end = at + length
    behind = end + len(PADDING[length % 8])
    if kind != 1 or length < 4 or behind > len(data):
        raise ProtocolError(f"match of type {kind} and length {length} where {len(data) - at} bytes are left")
    terms: dict[Field, MatchTerm] = {}
    unknown: bytes | None = None
    at += 4
    while at < end:
        if end - at < 4:
            raise ProtocolError("match ends inside a field's header")
        header, value_at = data[at : at + 4], at + 4
        at = value_at + header[3]
        if at > end:
            raise ProtocolError(f"match field {header.hex()} is longer than its match")
        known = _DECODE.get(header)
        if known is None:
            unknown = header
            continue
        field, size, masked = known
        if field in terms:
            raise ProtocolError(f"match has {field.name} twice")
        value = int.from_bytes(data[value_at : value_at + size])
        terms[field] = (field, value, int.from_bytes(data[value_at + size : at]) if masked else None)
    if unknown is not None and not skip_unknown:
        raise UnknownFieldError(f"match field {unknown.hex()}")
    return tuple(terms[field] for field in sorted(terms)), behind
