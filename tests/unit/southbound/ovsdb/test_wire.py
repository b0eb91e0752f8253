"""Framing and values: what is rejected, and how it is said."""

import math

import pytest

from retinue.core.limits import DEEPEST
from retinue.southbound.ovsdb.values import UUID, ColumnType, from_wire, row_to_wire, to_wire
from retinue.southbound.ovsdb.wire import Framer, ProtocolError, decode, encode

A = "11111111-2222-3333-4444-555555555555"


def test_several_messages_in_one_piece_and_the_rest_is_kept() -> None:
    framer = Framer()
    assert framer.feed(b'{"a":"}"} {"b":{}}\n{"c"') == [b'{"a":"}"}', b'{"b":{}}']
    assert framer.pending == 4
    assert framer.feed(b":1}") == [b'{"c":1}']


def test_a_long_message_in_many_pieces_takes_the_quick_way_and_is_whole() -> None:
    rows = {f"row {i}": {"text": '} \\" { \\\\', "map": {"x": {}}} for i in range(2000)}
    whole = encode({"id": 1, "result": {"T": rows}})
    stream = whole + b'{"id":2}'
    framer = Framer()
    found = [m for i in range(0, len(stream), 777) for m in framer.feed(stream[i : i + 777])]
    assert found == [whole, b'{"id":2}']


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02", b"[1]", b'"text"', b"}", b'{"a":1}x']
)
def test_what_starts_no_message_is_rejected(garbage: bytes) -> None:
    with pytest.raises(ProtocolError, match="a message starts with"):
        Framer().feed(garbage)


@pytest.mark.parametrize("pieces", [[b'{"a":"' + b"x" * 100 + b'"}'], [b'{"a":"', *[b"x" * 10] * 10]])
def test_the_size_of_a_message_is_limited(pieces: list[bytes]) -> None:
    framer = Framer(limit=99)
    with pytest.raises(ProtocolError, match="larger than the 99 bytes"):
        for piece in pieces:
            framer.feed(piece)


def test_a_message_as_large_as_the_limit_passes() -> None:
    text = b'{"a":"' + b"x" * 100 + b'"}'
    assert Framer(limit=len(text)).feed(text * 3) == [text] * 3


@pytest.mark.parametrize(
    "text",
    [
        b'{"method":1}',
        b'{"id":1e999}',
        b'{"result":"\xff\xfe"}',
        b'{"a" 1}',
        b'{"result":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_bad_json_is_a_protocol_error(text: bytes) -> None:
    with pytest.raises(ProtocolError, match="not JSON-RPC"):
        decode(text)


@pytest.mark.parametrize(
    "value",
    [None, {}, [], ["set"], ["set", [["set", []]]], ["map", [[1]]], ["uuid", "x"], ["uuid", 1], ["odd", []]],
)
def test_what_is_no_value_is_rejected(value: object) -> None:
    with pytest.raises(ProtocolError):
        from_wire(value)


@pytest.mark.parametrize("value", ["a\0b", "\ud800", 2**63, math.nan, math.inf, b"x", ((1,),), {"k": {}}])
def test_what_the_database_cannot_hold_is_not_sent(value: object) -> None:
    with pytest.raises(ValueError, match="column c: "):
        row_to_wire({"c": value})  # type: ignore[dict-item]


OPTIONAL = {"key": "integer", "min": 0, "max": 1}
MANY = {"key": {"type": "uuid", "refTable": "Port"}, "min": 0, "max": "unlimited"}
MAP = {"key": "string", "value": "string", "min": 0, "max": "unlimited"}


@pytest.mark.parametrize(
    ("declared", "wire", "value"),
    [
        ("real", 1, 1.0),
        (OPTIONAL, ["set", []], None),
        (OPTIONAL, 7, 7),
        (OPTIONAL, ["set", [7]], 7),
        (MANY, ["uuid", A], (UUID(A),)),
        (MANY, ["set", []], ()),
        (MAP, ["map", [["a", "b"]]], {"a": "b"}),
    ],
)
def test_a_value_has_one_form_by_its_columns_type(declared: object, wire: object, value: object) -> None:
    read = ColumnType.parse(declared).read(wire)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("declared", "wire"),
    [("integer", "1"), ("integer", True), ("string", ["uuid", A]), ("integer", ["set", [1, 2]]), (MAP, "x"),
     ("string", ["map", []]), ("integer", ["set", []]), (MANY, ["map", []])],
)  # fmt: skip
def test_a_value_of_another_type_is_rejected(declared: object, wire: object) -> None:
    with pytest.raises(ProtocolError, match="expected"):
        ColumnType.parse(declared).read(wire)


@pytest.mark.parametrize("declared", ["text", {}, {"key": "odd"}, {"key": "integer", "max": "many"}, 3])
def test_an_unknown_column_type_is_rejected(declared: object) -> None:
    with pytest.raises(ProtocolError):
        ColumnType.parse(declared)


@pytest.mark.parametrize("declared", [OPTIONAL, MANY, MAP, "string", "boolean", "real", "uuid"])
def test_defaults_are_of_the_columns_own_type(declared: object) -> None:
    column = ColumnType.parse(declared)
    assert column.read(to_wire(column.default)) == column.default


@pytest.mark.parametrize("braces", [3 * DEEPEST, 1000, 65_536])
@pytest.mark.parametrize("piece", [1 << 20, 777, 16])
def test_what_is_nested_deep_is_rejected_before_it_has_been_worked_through(braces: int, piece: int) -> None:
    data = b'{"a":{"b":' + b"{" * braces + b"}" * braces
    framer = Framer()
    with pytest.raises(ProtocolError, match="nested deeper than 32 levels"):
        for start in range(0, len(data), piece):
            framer.feed(data[start : start + piece])
    assert framer.pending <= 4 * braces


@pytest.mark.parametrize("piece", [1 << 20, 7])
def test_what_a_database_needs_is_not_too_deep(piece: int) -> None:
    data = b'{"a":' * (DEEPEST - 2) + b'{"b":[{},{},{}]}' + b"}" * (DEEPEST - 2)
    framer = Framer()
    assert [m for i in range(0, len(data), piece) for m in framer.feed(data[i : i + piece])] == [data]
