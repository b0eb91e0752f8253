"""The other end of an OVSDB connection, played by a test: it reads what came and sends what the test says."""

import asyncio
import json
import socket
from typing import Any

from retinue.southbound.ovsdb import Connection

PATIENCE = 60.0


class OvsdbPeer:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._text = ""

    async def read(self) -> dict[str, Any]:
        """The next message that comes in."""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    message, end = json.JSONDecoder().raw_decode(self._text)
                except ValueError:
                    data = await self.reader.read(65536)
                    if not data:
                        raise ConnectionResetError("closed") from None
                    self._text += data.decode()
                else:
                    self._text = self._text[end:]
                    assert isinstance(message, dict)
                    return message

    async def expect(self, method: str) -> dict[str, Any]:
        message = await self.read()
        assert message["method"] == method, message
        return message

    async def answer(self, method: str, result: Any, *then: dict[str, Any]) -> dict[str, Any]:
        """Take a request, answer it, and send `then` in the same piece."""
        request = await self.expect(method)
        self.send({"id": request["id"], "result": result, "error": None}, *then)
        return request

    def send(self, *messages: dict[str, Any]) -> None:
        self.writer.write("".join(json.dumps(m) for m in messages).encode())

    async def gone(self) -> None:
        """Wait until the other side has closed."""
        async with asyncio.timeout(PATIENCE):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionError:
                pass

    def close(self) -> None:
        self.writer.transport.abort()


async def pair(probe: float | None = None, limit: int = 1 << 20) -> tuple[Connection, OvsdbPeer]:
    """A connection, and the peer at its other end."""
    near, far = socket.socketpair()
    connection = Connection(*await asyncio.open_connection(sock=near), "peer", probe=probe, limit=limit)
    return connection, OvsdbPeer(*await asyncio.open_connection(sock=far))
