"""The one parser of the event stream."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.protocol import sse
from retinue.protocol.sse import Parser, ServerSentEvent, encode


def parsed(text: bytes) -> list[ServerSentEvent]:
    parser = Parser()
    return [event for line in text.splitlines(keepends=True) if (event := parser.line(line)) is not None]


def test_what_is_encoded_is_read_again() -> None:
    stream = encode("hello", b'{"id":3}') + b": still here\n\n" + encode("vm.ready", b'{"id":4}', 4)
    assert parsed(stream) == [
        ServerSentEvent("hello", b'{"id":3}'),
        ServerSentEvent("vm.ready", b'{"id":4}', "4"),
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"event: a\ndata: 1\ndata: 2\n\n", [ServerSentEvent("a", b"1\n2")]),
        (b"data:1\n\n", [ServerSentEvent("message", b"1")]),
        (b"data:  1\r\n\r\n", [ServerSentEvent("message", b" 1")]),
        (b"event: a\n\n", []),
        (b": comment\n\n\n", []),
        (b"retry: 5\ndata\n\n", [ServerSentEvent("message", b"")]),
        (b"event: a\ndata: 1\n", []),
        (
            b"id: 7\ndata: 1\n\ndata: 2\n\n",
            [ServerSentEvent("message", b"1", "7"), ServerSentEvent("message", b"2", "7")],
        ),
        (b"event: a\n\ndata: 1\n\n", [ServerSentEvent("message", b"1")]),
        (b"event: \xff\ndata: \xff\n\n", [ServerSentEvent("\ufffd", b"\xff")]),
    ],
)
def test_streams_as_the_standard_has_them(text: bytes, found: list[ServerSentEvent]) -> None:
    assert parsed(text) == found


@given(st.lists(st.binary(max_size=30), max_size=20), st.integers(1, 25), st.integers(1, 9))
def test_lines_are_those_of_the_stream_but_for_the_long_ones(
    lines: list[bytes], longest: int, piece: int
) -> None:
    sent = [line.replace(b"\n", b" ") for line in lines]
    data = b"".join(line + b"\n" for line in sent)
    reader = sse.Lines(longest)
    found = [line for i in range(0, len(data), piece) for line in reader.feed(data[i : i + piece])]
    assert found == [line for line in sent if len(line) <= longest]
    assert reader.left_out == len(sent) - len(found)
