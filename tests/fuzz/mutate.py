"""How valid input is damaged: bytes anywhere, or values of a JSON document."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import Any

LONGEST = 1 << 14
"""Bytes that an input may grow to."""
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF)
WORDS = (0, 1, 2, 7, 8, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 255, 65536, 1 << 31, (1 << 63) - 1, -(1 << 63), 1 << 64, 0.5, -0.0, 1e308,
    "", " ", "\0", "a" * 300, "é", "\ud800", "10.1.0.1", "fd00::1", "52:54:00:00:00:01", "uuid", "set", "map",
    [], {}, [[]], [{}], {"": None}, ["uuid", "x"], ["set", [1, [2]]], ["map", [[1, 2], [3]]], ["map", [[]]],
)  # fmt: skip
"""Values where others belong."""


def damaged(sample: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """The sample with one to eight changes."""
    data = bytearray(sample)
    for _ in range(1 + int(random.expovariate(0.7)) % 8):
        random.choice(_CHANGES)(data, others, random)
    del data[LONGEST:]
    return bytes(data)


def _flip(data: bytearray, _: Sequence[bytes], random: Random) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _edge(data: bytearray, _: Sequence[bytes], random: Random) -> None:
    if data:
        data[random.randrange(len(data))] = random.choice(EDGES)


def _word(data: bytearray, _: Sequence[bytes], random: Random) -> None:
    if len(data) >= 2:
        at = random.randrange(len(data) - 1)
        data[at : at + 2] = random.choice(WORDS).to_bytes(2, "big")


def _nudge(data: bytearray, _: Sequence[bytes], random: Random) -> None:
    """A length that is a little wrong."""
    if data:
        at = random.randrange(len(data))
        data[at] = (data[at] + random.choice((-8, -4, -2, -1, 1, 2, 4, 8))) & 0xFF


def _cut(data: bytearray, _: Sequence[bytes], random: Random) -> None:
    if data:
        del data[random.randrange(len(data)) :]


def _leave_out(data: bytearray, _: Sequence[bytes], random: Random) -> None:
    if data:
        at = random.randrange(len(data))
        del data[at : at + random.choice((1, 2, 4, 8, 16))]


def _insert(data: bytearray, _: Sequence[bytes], random: Random) -> None:
    at = random.randrange(len(data) + 1)
    data[at:at] = random.randbytes(random.choice((1, 2, 4, 8, 32)))


def _double(data: bytearray, _: Sequence[bytes], random: Random) -> None:
    if data:
        at = random.randrange(len(data))
        data[at:at] = data[at : at + random.choice((1, 4, 8, 16, 64))] * random.choice((1, 1, 1, 50))


def _splice(data: bytearray, others: Sequence[bytes], random: Random) -> None:
    other = random.choice(others)
    at = random.randrange(len(data) + 1)
    data[at:] = other[random.randrange(len(other) + 1) :]


_CHANGES: tuple[Callable[[bytearray, Sequence[bytes], Random], None], ...] = (
    _flip, _flip, _edge, _edge, _word, _word, _nudge, _nudge, _cut, _leave_out, _insert, _double, _splice,
)  # fmt: skip


# ---- JSON ----


def damaged_json(sample: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """The document with values changed, or, now and then, with its bytes damaged."""
    if random.random() < 0.3:
        return damaged(sample, others, random)
    value = _value(sample)
    for _ in range(1 + int(random.expovariate(0.8)) % 5):
        value = _changed(value, _value(random.choice(others)), random)
    if random.random() < 0.01:
        value = _deep(value, random.choice((10, 200, 5000)))
    # Half a surrogate pair is written as JSON has it.
    return json.dumps(value).encode()[:LONGEST]


@cache
def _value(sample: bytes) -> Any:
    """What the document says; nobody changes it, changes are made in copies."""
    return json.loads(sample)


def _changed(value: Any, other: Any, random: Random) -> Any:
    """One place anywhere in it is another."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        changed, key = dict(value), random.choice(list(value))
        match random.randrange(8):
            case 0:
                del changed[key]
            case 1:
                changed[random.choice(("", "x", "id", "type", "\ud800"))] = changed[key]
            case 2 if isinstance(other, dict):
                changed.update(other)
            case _:
                changed[key] = _changed(changed[key], other, random)
        return changed
    if isinstance(value, list) and value and random.random() < 0.85:
        rows, at = list(value), random.randrange(len(value))
        match random.randrange(6):
            case 0:
                del rows[at]
            case 1:
                rows.append(rows[at])
            case _:
                rows[at] = _changed(rows[at], other, random)
        return rows
    if isinstance(value, str) and value and random.random() < 0.3:
        at = random.randrange(len(value))
        return value[:at] + random.choice(("", "-", ":", "/", "\n", "\ud800", value)) + value[at + 1 :]
    return other if random.random() < 0.1 else random.choice(ODD)


def _deep(value: Any, levels: int) -> Any:
    for _ in range(min(levels, 900)):  # More, Python's own encoder does not take.
        value = [value]
    return value
