"""Server-sent events (WHATWG HTML, "server-sent events"): the format of the event stream. Pure.

parser = Parser()
for line in lines:                       # each with its line end, as readline gives them
    if (event := parser.line(line)) is not None:
        ...
"""

from dataclasses import dataclass

COMMENT = b": still here\n\n"
"""Keeps an idle stream alive; readers take no notice of it."""


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    type: str
    data: bytes
    """Its data fields, joined by line feeds: JSON, in our stream."""
    id: str = ""


class Parser:
    """Takes a stream line by line. One event that is cut off by the stream's end is never seen."""

    def __init__(self) -> None:
        self._type, self._id = "message", ""
        self._data: list[bytes] = []

    def line(self, line: bytes) -> ServerSentEvent | None:
        """The event that this line ends, if it ends one that carries data."""
        content = line.rstrip(b"\r\n")
        if not content:
            return self._end()
        name, _, value = content.partition(b":")
        value = value.removeprefix(b" ")
        match name:
            case b"event":
                self._type = value.decode(errors="replace")
            case b"id":
                self._id = value.decode(errors="replace")
            case b"data":
                self._data.append(value)
            case _:
                pass  # A comment, whose name is empty, or a field which this stream does not use.
        return None

    def _end(self) -> ServerSentEvent | None:
        event = ServerSentEvent(self._type, b"\n".join(self._data), self._id) if self._data else None
        self._type, self._data = "message", []
        return event


class Lines:
    """Cuts a stream into lines. One that is longer than `longest` bytes is left out, whatever its end
    says."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._held = bytearray()
        self._dropping = False
        self.left_out = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take what arrived; the lines that are now whole, without their ends."""
        *ended, rest = data.split(b"\n")
        whole: list[bytes] = []
        for piece in ended:
            self._hold(piece)
            if self._dropping:
                self.left_out += 1
            else:
                whole.append(bytes(self._held))
            self._held.clear()
            self._dropping = False
        self._hold(rest)
        return whole

    def _hold(self, piece: bytes) -> None:
        if self._dropping or len(self._held) + len(piece) > self._longest:
            self._dropping = True
            self._held.clear()
        else:
            self._held += piece


def encode(type: str, data: bytes, id: int | None = None) -> bytes:
    """One event as it goes over the wire. `data` has no line ends, which JSON needs not have."""
    head = b"" if id is None else b"id: %d\n" % id
    return head + b"event: %s\ndata: %s\n\n" % (type.encode(), data)
