"""OVSDB values and message framing: what is written is what is read, however the bytes are cut."""

import json
import math
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from retinue.southbound.ovsdb.values import UUID, ColumnType, NamedUUID, from_wire, to_wire
from retinue.southbound.ovsdb.wire import Framer, decode, encode

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
uuids = st.uuids().map(lambda u: UUID(str(u)))
atoms = st.one_of(
    texts,
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
    uuids,
    texts.map(NamedUUID),
)
values = st.one_of(atoms, st.lists(atoms, max_size=5).map(tuple), st.dictionaries(atoms, atoms, max_size=5))


def shape(value: Any) -> Any:
    """The value with its types, since True == 1 == 1.0 and a UUID equals its text."""
    if isinstance(value, tuple):
        return [shape(v) for v in value]
    if isinstance(value, dict):
        return {"map": [(shape(k), shape(v)) for k, v in value.items()]}
    return type(value).__name__, value


@given(values)
def test_values_survive_the_wire(value: Any) -> None:
    text = encode({"result": to_wire(value), "id": 1})
    assert shape(from_wire(decode(text).result)) == shape(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('{}[]"\\a é\n'), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text('{}"\\b', max_size=4), inner, max_size=4)
    ),
    max_leaves=30,
)
documents = st.dictionaries(st.text('{}"\\k', max_size=4), json_values, max_size=4)


@given(
    st.lists(st.tuples(documents, st.sampled_from(["", " ", "\r\n\t"])), max_size=6),
    st.lists(st.integers(0, 400), max_size=12),
)
def test_messages_are_found_wherever_the_stream_is_cut(
    parts: list[tuple[dict[str, Any], str]], cuts: list[int]
) -> None:
    stream = b"".join(json.dumps(document).encode() + space.encode() for document, space in parts)
    edges = sorted({0, len(stream), *(c for c in cuts if c < len(stream))})
    framer = Framer()
    found = [m for a, b in pairwise(edges) for m in framer.feed(stream[a:b])]
    assert [json.loads(m) for m in found] == [document for document, _ in parts]
    assert framer.pending == 0


@given(documents)
def test_messages_are_found_byte_by_byte(document: dict[str, Any]) -> None:
    framer, found = Framer(), []
    for byte in json.dumps(document).encode():
        found += framer.feed(bytes([byte]))
    assert [json.loads(m) for m in found] == [document]


integer_sets = st.frozensets(st.integers(-5, 5))
integer_maps = st.dictionaries(st.integers(-5, 5), st.integers(0, 2))


@given(integer_sets, integer_sets)
def test_a_difference_of_sets_gives_the_new_set(old: frozenset[int], new: frozenset[int]) -> None:
    column = ColumnType("integer", least=0, most=math.inf)
    assert column.change(tuple(sorted(old)), to_wire(old ^ new)) == tuple(sorted(new))


@given(integer_maps, integer_maps)
def test_a_difference_of_maps_gives_the_new_map(old: dict[int, int], new: dict[int, int]) -> None:
    column = ColumnType("integer", "integer", 0, math.inf)
    difference = {k: new.get(k, old.get(k)) for k in {*old, *new} if old.get(k) != new.get(k)}
    assert column.change(old, to_wire(difference)) == new  # type: ignore[arg-type]
