"""The listener in front of the HTTP library, with or without TLS; handshakes that fail are counted here."""

import asyncio
import ssl
from collections import Counter

import structlog
from aiohttp import web

from retinue.pki.gate import TlsGate
from retinue.pki.half_open import HalfOpen

log = structlog.get_logger()

HANDSHAKE_SECONDS = 5.0
MAX_HALF_OPEN = 256
"""Handshakes under way; the oldest goes when there is one more."""


class Door:
    def __init__(self, server: web.Server, refused: Counter[str], context: ssl.SSLContext | None) -> None:
        self._protocols = server
        self._refused = refused
        self._context = context
        self._half_open = HalfOpen(MAX_HALF_OPEN, self._refuse)
        self._server: asyncio.Server | None = None

    async def open(self, host: str, port: int) -> int:
        """Listen; the port, which the system chooses when given 0. Raises OSError."""
        factory = self._gate if self._context is not None else self._protocols
        self._server = await asyncio.get_running_loop().create_server(factory, host, port, backlog=1024)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """Stop listening; connections that stand are the HTTP library's."""
        if self._server is not None:
            self._server.close()
        await self._half_open.end("the controller stops")

    def _gate(self) -> TlsGate:
        assert self._context is not None
        return TlsGate(self._context, HANDSHAKE_SECONDS, self._protocols, self._half_open)

    def _refuse(self, peer: str, reason: str, kind: str) -> None:
        self._refused[kind] += 1
        log.warning("REST connection refused", peer=peer, reason=reason)
