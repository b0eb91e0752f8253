"""Connections whose peers have yet to show who they are: never more than so many at once, so that peers which
never do keep no other out.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from retinue.security.listener.rejections import Rejection


class PendingConnection(Protocol):
    """Such a connection. `closed` is done when it has ended."""

    peer: str
    closed: asyncio.Future[None]

    def end(self, reason: str, kind: str = "") -> None:
        """Cut the connection off. `kind` is a Rejection, or "" when the peer has done nothing wrong."""


class PendingConnections:
    """Those of one listener; when there is one more than `most`, one is cut off ("crowded"): the oldest of
    the host that has most of them. So a host that floods a listener pushes out its own connections.

    `reject` is called for each that is cut off for what its peer did: with the peer's address, the reason in
    a sentence, and the Rejection by which it is counted.
    """

    def __init__(
        self, most: int, reject: Callable[[str, str, str], None], known: Callable[[], int] = lambda: 0
    ) -> None:
        """`known`: how many peers are known by name; all of them may come back at once, so that there may be
        as many besides."""
        self._at_least = most
        self._known = known
        self._limit: int | None = None
        self._reject = reject
        self._pending: dict[PendingConnection, str] = {}
        """With its peer's host."""
        self._of_host: dict[str, dict[PendingConnection, None]] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def limit_to(self, most: int) -> None:
        """So many at most, if that is less."""
        self._limit = most

    @property
    def _most(self) -> int:
        most = self._at_least + self._known()
        return most if self._limit is None else min(most, self._limit)

    def enter(self, connection: PendingConnection) -> None:
        host = connection.peer.rpartition(":")[0]
        self._pending[connection] = host
        self._of_host.setdefault(host, {})[connection] = None
        if len(self._pending) > self._most:
            self.crowd_out()

    def crowd_out(self) -> bool:
        """Cut one off to make room; False if there is none."""
        if not self._pending:
            return False
        busiest = max(self._of_host, key=lambda host: len(self._of_host[host]))
        oldest = next(iter(self._of_host[busiest]))
        self._drop(oldest)
        oldest.end(f"{self._most} newer connections without a handshake", Rejection.CROWDED)
        return True

    def leave(self, connection: PendingConnection, reason: str = "", kind: str = "") -> None:
        """The peer has authenticated, or the connection has ended; with a `kind` it was rejected."""
        self._drop(connection)
        if kind:
            self._reject(connection.peer, reason, kind)

    def _drop(self, connection: PendingConnection) -> None:
        host = self._pending.pop(connection, None)
        if host is None:
            return
        of_host = self._of_host[host]
        del of_host[connection]
        if not of_host:
            del self._of_host[host]

    async def end(self, reason: str) -> None:
        """Cut all of them off without rejecting them, and return when they are closed."""
        pending = list(self._pending)
        for connection in pending:
            connection.end(reason)
        await asyncio.gather(*(connection.closed for connection in pending))
