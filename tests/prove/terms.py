"""Header fields as unknowns, and matches as conditions on them.

A field of a frame on its way is a number, or still what it was when the frame was sent: `Sent`. Entries only
copy fields, set them, and take one from the time to live; so each condition on a field is one on what was
sent, of the form "these bits are so": a `Bits`. What is known of a fate that way is kept (`Known`), and
decides most conditions without the solver.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import z3

from retinue.core.pipeline.entry import FIELD_BYTES, Field, Match

Bits = tuple[Field, int, int]
"""Of a field as it was sent: the bits of the mask (third) have this value (second)."""
Known = Mapping[Field, tuple[int, int]]
"""By field: value and mask of the bits that are known."""
BESIDE = (Field.IN_PORT, Field.METADATA, Field.TUNNEL_ID, Field.TUN_SRC, Field.TUN_DST)
"""What is not in the frame, and known where it comes in."""
TAGGED = 0x1000


@dataclass(frozen=True, slots=True)
class Sent:
    """What the field was when the frame was sent, less `minus` (of a time to live only)."""

    field: Field
    minus: int = 0


Value = int | Sent
Fields = Mapping[Field, Value]


def width(field: Field) -> int:
    return FIELD_BYTES[field] * 8


def full(field: Field) -> int:
    return (1 << width(field)) - 1


UNKNOWN: dict[Field, z3.BitVecRef] = {
    field: z3.BitVec(field.name.lower(), width(field)) for field in Field if field not in BESIDE
}
"""What is sent."""


SIZE = z3.BitVec("size", 16)
"""Bytes of the packet that is sent, its Ethernet header and tags not counted."""


def anything(in_port: int) -> dict[Field, Value]:
    """The fields of a frame of which nothing is known but where it comes in."""
    fields: dict[Field, Value] = dict.fromkeys(BESIDE, 0)
    fields.update((field, Sent(field)) for field in UNKNOWN)
    fields[Field.IN_PORT] = in_port
    return fields


def possible() -> list[z3.BoolRef]:
    """What is so of every frame: no tag, or a tag's bit; whole, first part or later part."""
    vid, part = UNKNOWN[Field.VLAN_VID], UNKNOWN[Field.IP_FRAG]
    return [
        z3.Or(vid == 0, z3.And(z3.UGE(vid, TAGGED), z3.ULT(vid, 2 * TAGGED))),
        z3.Or(part == 0, part == 1, part == 3),
    ]


def bits_of(match: Match, fields: Fields) -> tuple[Bits, ...] | None:
    """What must have been sent for the frame to match now; None where nothing could."""
    found: list[Bits] = []
    for field, value, mask in match:
        held = fields[field]
        wanted = full(field) if mask is None else mask
        if isinstance(held, int):
            if (held ^ value) & wanted:
                return None
            continue
        if held.minus:
            assert mask is None, "a time to live is matched as a whole"
            value = (value + held.minus) & wanted
        found.append((held.field, value, wanted))
    return tuple(found)


def undecided(bits: Iterable[Bits], known: Known) -> tuple[Bits, ...] | None:
    """Those conditions that what is known leaves open; None where it contradicts one."""
    left: list[Bits] = []
    for field, value, mask in bits:
        has, of = known.get(field, (0, 0))
        if (has ^ value) & mask & of:
            return None
        if mask & ~of:
            left.append((field, value, mask))
    return tuple(left)


def learn(bits: Iterable[Bits], known: Known) -> dict[Field, tuple[int, int]]:
    """What is known when the conditions hold as well."""
    now = dict(known)
    for field, value, mask in bits:
        has, of = now.get(field, (0, 0))
        now[field] = (has | value, of | mask)
    return now


@cache
def condition(field: Field, value: int, mask: int) -> z3.BoolRef:
    """The condition as the solver has it."""
    unknown, low = UNKNOWN[field], (mask & -mask).bit_length() - 1
    high = mask.bit_length() - 1
    if mask == full(field):
        return unknown == value
    if mask >> low == (1 << (high - low + 1)) - 1:  # A prefix, or one bit.
        return z3.Extract(high, low, unknown) == value >> low
    return unknown & mask == value


@cache
def all_of(bits: tuple[Bits, ...]) -> z3.BoolRef:
    return z3.And(*(condition(*one) for one in bits))


@cache
def not_all_of(bits: tuple[Bits, ...]) -> z3.BoolRef:
    return z3.Not(all_of(bits))
