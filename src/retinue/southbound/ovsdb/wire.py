"""JSON-RPC messages out of a byte stream (RFC 7047, section 4), and the bytes of messages to send.

Messages follow one another with nothing between them, so the end of each must be found. Only braces and
strings matter for that, and long stretches that cannot hold an end are skipped at the speed of `bytes`
methods: a reply of 10 MB costs a tenth of what decoding it costs.
"""

import re
from typing import Any

import msgspec

from retinue.core.limits import DEEPEST

REPLY_LIMIT = 64 << 20
"""Bytes one message may have, from a server of ours: the controller's own database."""

_TOKEN = re.compile(rb'[{}"]')
_STRING_PART = re.compile(rb'["\\]')
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_SPACE = re.compile(rb"[ \t\r\n]*")
_NOT_BRACES = bytes(set(range(256)) - set(b"{}"))


class ProtocolError(Exception):
    """The peer does not speak OVSDB as RFC 7047 has it; the message says what it sent instead."""


class Message(msgspec.Struct):
    """One JSON-RPC 1.0 message: a request or notification has a method, a reply has none."""

    method: str | None = None
    params: Any = None
    id: Any = None
    result: Any = None
    error: Any = None


_decoder = msgspec.json.Decoder(Message)
encode = msgspec.json.encode


def decode(data: bytes) -> Message:
    """The message in `data`, which is one whole JSON object. Raises ProtocolError."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as e:
        raise ProtocolError(f"message is not JSON-RPC: {e} in {excerpt(data)}") from e


def excerpt(data: bytes) -> str:
    """The first bytes of `data`, fit for an error message."""
    return repr(data[:60]) + ("..." if len(data) > 60 else "")


def _too_deep() -> ProtocolError:
    return ProtocolError(f"a message is nested deeper than {DEEPEST} levels")


class Framer:
    """Cuts a byte stream into messages.

    `limit` is the most bytes a message may have, and may be changed at any time.
    """

    def __init__(self, limit: int = REPLY_LIMIT) -> None:
        self.limit = limit
        self._held: list[bytes] = []
        """Pieces of the unfinished message, all of them scanned."""
        self._held_bytes = 0
        self._depth = 0
        self._in_string = False
        self._escaped = False
        """The last byte seen was a backslash in a string: the next one means nothing."""

    def feed(self, data: bytes) -> list[bytes]:
        """Take what arrived; return each message that is now whole. Raises ProtocolError."""
        whole: list[bytes] = []
        start = 0
        while start < len(data):
            if not self._depth:
                start = self._next_start(data, start)
                if start == len(data):
                    break
            end = self._end(data, start)
            stop = len(data) if end is None else end
            if self._held_bytes + stop - start > self.limit:
                raise ProtocolError(f"a message is larger than the {self.limit} bytes allowed here")
            piece = data[start:stop]
            if end is None:
                self._held.append(piece)
                self._held_bytes += len(piece)
            else:
                whole.append(b"".join([*self._held, piece]))
                self._held.clear()
                self._held_bytes = 0
            start = stop
        return whole

    @property
    def pending(self) -> int:
        """Bytes held of a message that has not ended."""
        return self._held_bytes

    def _next_start(self, data: bytes, at: int) -> int:
        found = _SPACE.match(data, at)
        at = found.end() if found else at
        if at < len(data) and data[at] != 0x7B:
            raise ProtocolError(f"a message starts with {excerpt(data[at : at + 60])}, not with '{{'")
        return at

    def _end(self, data: bytes, start: int) -> int | None:
        """Scan from `start`; return where the message ends, None if it goes on after `data`."""
        at = start
        if self._in_string or self._escaped:
            at = self._skip_string(data, at)
            if at == len(data):
                return None
        if self._skip_all(data, at):
            return None
        while True:
            found = _TOKEN.search(data, at)
            if found is None:
                return None
            at = found.end()
            match data[at - 1]:
                case 0x7B:
                    self._depth += 1
                    if self._depth > DEEPEST:
                        raise _too_deep()
                case 0x7D:
                    self._depth -= 1
                    if not self._depth:
                        return at
                case _:
                    at = self._skip_string(data, at)
                    if at == len(data):
                        return None

    def _skip_string(self, data: bytes, at: int) -> int:
        """From inside a string: return the place after its closing quote, or the end of `data`."""
        self._in_string = True
        if self._escaped:
            self._escaped = False
            at += 1
        while True:
            found = _STRING_PART.search(data, at)
            if found is None:
                return len(data)
            at = found.end()
            if data[at - 1] == 0x22:
                self._in_string = False
                return at
            if at == len(data):
                self._escaped = True
                return at
            at += 1

    def _skip_all(self, data: bytes, at: int) -> bool:
        """Scan the rest of `data` at once if no message ends in it; else change nothing and say False."""
        if self._depth < 2:
            return False  # the first piece of a message, or its last: look closely
        rest = data[at:]
        if b"\\" in rest:
            rest = _ESCAPE.sub(b"", rest)
        parts = rest.split(b'"')
        braces = b"".join(parts[::2]).translate(None, _NOT_BRACES)
        for _ in range(DEEPEST):  # Each time the innermost level goes: the work grows with the length alone.
            if b"{}" not in braces:
                break
            braces = braces.replace(b"{}", b"")
        if b"{}" in braces:
            raise _too_deep()
        closing = braces.count(b"}")
        if closing >= self._depth:
            return False
        self._depth += len(braces) - 2 * closing
        if self._depth > DEEPEST:
            raise _too_deep()
        self._in_string = len(parts) % 2 == 0
        self._escaped = self._in_string and parts[-1].endswith(b"\\")
        return True
