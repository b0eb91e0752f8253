"""Requests that wait for a switch's answer, and which answer or error belongs to which of them."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from retinue.core.pipeline.entry import Change
from retinue.patience import patience
from retinue.southbound.openflow.codec.messages import ErrorMessage, Message
from retinue.southbound.openflow.connection import Connection

BATCH = 500
"""Entries encoded and sent before other tasks run."""


class Rejected(Exception):  # noqa: N818 - callers of the session know this name
    """The switch rejected a request; `errors` says what was rejected and why, one text each.

    `taken`: of a change, what the switch has made all the same; with bundles that is nothing.
    """

    def __init__(self, errors: tuple[str, ...], taken: tuple[Change, ...] = ()) -> None:
        super().__init__("; ".join(errors))
        self.errors = errors
        self.taken = taken


@dataclass(slots=True)
class Request:
    """Replies and errors with transaction ids from `first` to `last`; the answer to `until` ends the wait."""

    first: int
    last: int
    until: int = 0
    done: asyncio.Future[None] | None = None
    replies: list[Message] = field(default_factory=list)
    errors: list[ErrorMessage] = field(default_factory=list)


class Requests:
    """The requests of one connection that are under way."""

    def __init__(self, connection: Connection, switch: str) -> None:
        self._connection = connection
        self._switch = switch
        self._open: list[Request] = []

    @contextmanager
    def open(self, count: int) -> Iterator[Request]:
        """A request of `count` transaction ids; replies to it are collected until the block ends."""
        first = self._connection.xid(count)
        request = Request(first, first + count - 1)
        self._open.append(request)
        try:
            yield request
        finally:
            self._open.remove(request)

    async def send(self, request: Request, messages: Iterable[bytes], until: int) -> None:
        """Send the messages, in as few writes as other work allows, and wait for the answer to `until`.

        Errors are left in the request. Raises ConnectionError when the session ends before.
        """
        request.until = until
        request.done = asyncio.get_running_loop().create_future()
        batch: list[bytes] = []
        for message in messages:
            batch.append(message)
            if len(batch) == BATCH:
                await self._connection.send(b"".join(batch))
                batch.clear()
                await asyncio.sleep(0)
        self._connection.write(b"".join(batch))
        self._connection.check()
        await request.done
        self._connection.check()

    async def ask(self, encode: Callable[[int], bytes], what: str, timeout: float) -> list[Message]:
        """Send one message and return its replies. Raises Rejected, ConnectionError, TimeoutError."""
        with self.open(1) as request:
            try:
                async with patience(timeout):
                    await self.send(request, (encode(request.first),), request.first)
            except TimeoutError:
                text = f"switch {self._switch} did not answer when asked for {what} within {timeout:g} s"
                raise TimeoutError(text) from None
            if request.errors:
                raise Rejected(tuple(f"{what}: {error.text}" for error in request.errors))
            return request.replies

    # ---- from the reader ----

    def replied(self, message: Message, more: bool = False) -> bool:
        """Give a reply to the request it belongs to; False when none waits for it."""
        request = self._of(message.xid)
        if request is None:
            return False
        request.replies.append(message)
        if not more:
            _answered(request, message.xid)
        return True

    def rejected(self, message: ErrorMessage) -> bool:
        """Give an error to the request it belongs to; False when none waits for it."""
        request = self._of(message.xid)
        if request is None:
            return False
        request.errors.append(message)
        _answered(request, message.xid)
        return True

    def lost(self) -> None:
        """The connection ended; waiting requests find that out by `Connection.check`."""
        for request in self._open:
            _answered(request, request.until)

    def _of(self, xid: int) -> Request | None:
        return next((r for r in self._open if r.first <= xid <= r.last), None)


def _answered(request: Request, xid: int) -> None:
    if xid == request.until and request.done is not None and not request.done.done():
        request.done.set_result(None)
