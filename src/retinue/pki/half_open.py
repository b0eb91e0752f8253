"""Connections that have yet to show who they are: never more than so many at once, so that those who never do
keep nobody out."""

import asyncio
from collections.abc import Callable
from typing import Protocol


class Newcomer(Protocol):
    """Such a connection. `closed` is done when it has come to its end."""

    peer: str
    closed: asyncio.Future[None]

    def end(self, reason: str, kind: str = "") -> None:
        """Cut it off. Without a kind it is nothing the peer did."""


class HalfOpen:
    """Those of one listener; when there is one more than `most`, the oldest goes ("crowded").

    `refuse` is called for each that is cut off for what the peer did: with who it is, why, and a word to
    count that by.
    """

    def __init__(self, most: int, refuse: Callable[[str, str, str], None]) -> None:
        self._most = most
        self._refuse = refuse
        self._newcomers: dict[Newcomer, None] = {}

    def __len__(self) -> int:
        return len(self._newcomers)

    def enter(self, newcomer: Newcomer) -> None:
        self._newcomers[newcomer] = None
        if len(self._newcomers) > self._most:
            oldest = next(iter(self._newcomers))
            del self._newcomers[oldest]
            oldest.end(f"{self._most} newer connections without a handshake", "crowded")

    def leave(self, newcomer: Newcomer, reason: str = "", kind: str = "") -> None:
        """It has shown who it is, or has ended. Without a kind it is not refused."""
        self._newcomers.pop(newcomer, None)
        if kind:
            self._refuse(newcomer.peer, reason, kind)

    async def end(self, reason: str) -> None:
        """Cut them all off, which is nothing they did, and wait until that is done."""
        newcomers = list(self._newcomers)
        for newcomer in newcomers:
            newcomer.end(reason)
        await asyncio.gather(*(newcomer.closed for newcomer in newcomers))
