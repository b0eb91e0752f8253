"""What a client of NBD has asked and has no whole answer to: pure, told the bytes of both directions.

Only the frames are read, as NBD's protocol has them (option haggling, then requests with simple or
structured replies). Who speaks otherwise is not followed any more, and `followed` is False from there on.
"""

from collections.abc import Generator

OPTION, OPTION_REPLY = b"IHAVEOPT", (0x3E889045565A9).to_bytes(8, "big")
REQUEST = (0x25609513).to_bytes(4, "big")
SIMPLE_REPLY, STRUCTURED_REPLY = (0x67446698).to_bytes(4, "big"), (0x668E33EF).to_bytes(4, "big")
GREETING, REST_OF_GREETING = b"NBDM", 14
EXPORT_NAME = 1
"""The one option that has no reply of the usual form; it is old, and QEMU's client does not use it."""
ACKNOWLEDGED, IS_ERROR = 1, 1 << 31
"""Types of a reply that is an option's last."""
READ, WRITE, DISCONNECT = 0, 1, 2
DONE = 1
"""Flag of a structured reply: the last one to its request."""
CLIENT_FLAGS = 4
"""Bytes that the client says first."""

_Parser = Generator[int, bytes, None]
"""Asks for so many bytes; for a negative number, has as many go by."""


class NbdQuestions:
    def __init__(self) -> None:
        self.followed = True
        self._options = 0
        """Asked, and without a last reply."""
        self._requests: dict[bytes, int] = {}
        """By cookie: bytes that a simple reply brings."""
        self._from_client = _Side(self._client())
        self._from_server = _Side(self._server())

    def asked(self, nbytes: bytes) -> None:
        """The client has said so."""
        self._follow(self._from_client, nbytes)

    def answered(self, nbytes: bytes) -> None:
        """The server has said so."""
        self._follow(self._from_server, nbytes)

    @property
    def is_owed(self) -> bool:
        """There is a question without an answer, or an answer that is not whole."""
        return bool(self._options or self._requests)

    def _follow(self, side: "_Side", nbytes: bytes) -> None:
        if self.followed:
            try:
                side.take(nbytes)
            except _UnknownError:
                self.followed = False

    def _client(self) -> _Parser:
        yield CLIENT_FLAGS
        while True:
            start = yield 4
            if start == REQUEST:
                rest = yield 24
                kind, cookie, length = int.from_bytes(rest[2:4], "big"), rest[4:12], rest[20:24]
                size = int.from_bytes(length, "big")
                if kind != DISCONNECT:
                    self._requests[cookie] = size if kind == READ else 0
                if kind == WRITE:
                    yield -size
            elif start == OPTION[:4]:
                rest = yield 12
                if rest[:4] != OPTION[4:]:
                    raise _UnknownError
                option, size = int.from_bytes(rest[4:8], "big"), int.from_bytes(rest[8:12], "big")
                if option == EXPORT_NAME:
                    raise _UnknownError
                yield -size
                self._options += 1
            else:
                raise _UnknownError

    def _server(self) -> _Parser:
        while True:
            start = yield 4
            if start == GREETING:
                yield -REST_OF_GREETING
            elif start == OPTION_REPLY[:4]:
                rest = yield 16
                if rest[:4] != OPTION_REPLY[4:]:
                    raise _UnknownError
                kind, size = int.from_bytes(rest[8:12], "big"), int.from_bytes(rest[12:16], "big")
                yield -size
                self._options -= kind == ACKNOWLEDGED or bool(kind & IS_ERROR)
            elif start == SIMPLE_REPLY:
                rest = yield 12
                brings = self._requests.get(rest[4:12], 0)
                yield -(0 if any(rest[:4]) else brings)
                self._requests.pop(rest[4:12], None)
            elif start == STRUCTURED_REPLY:
                rest = yield 16
                yield -int.from_bytes(rest[12:16], "big")
                if int.from_bytes(rest[:2], "big") & DONE:
                    self._requests.pop(rest[4:12], None)
            else:
                raise _UnknownError


class _UnknownError(Exception):
    pass


class _Side:
    """Gives a parser what it asks for, in whatever pieces that comes."""

    def __init__(self, parser: _Parser) -> None:
        self._parser = parser
        self._wanted = next(parser)
        self._held = b""

    def take(self, nbytes: bytes) -> None:
        while True:
            if self._wanted > 0:
                missing = self._wanted - len(self._held)
                self._held, nbytes = self._held + nbytes[:missing], nbytes[missing:]
                if len(self._held) < self._wanted:
                    return
            else:
                goes_by = min(-self._wanted, len(nbytes))
                nbytes, self._wanted = nbytes[goes_by:], self._wanted + goes_by
                if self._wanted:
                    return
            held, self._held = self._held, b""
            self._wanted = self._parser.send(held)
