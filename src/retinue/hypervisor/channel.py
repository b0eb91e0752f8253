"""Between the two ends of a move: the VM's memory one way, a few words both ways, over one connection.

Each message is one octet of kind, four of length, and the contents. A word is a JSON object that has "word".
"""

import asyncio
import contextlib
import json
import socket
from typing import Any

from retinue.hypervisor.interface import HypervisorError

MEMORY, END, WORD = b"M", b"E", b"W"
LONGEST_MEMORY = 1 << 20
LONGEST_WORD = 1 << 16
READ_BYTES = 1 << 20


class ChannelError(HypervisorError):
    """The other end hung up, or says something that is not agreed."""


class Channel:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send_memory(self, octets: bytes | memoryview) -> None:
        """At most LONGEST_MEMORY octets; none of them is the end."""
        await self._send(MEMORY if octets else END, octets)

    async def say(self, word: str, **more: Any) -> None:
        await self._send(WORD, json.dumps({"word": word, **more}).encode())

    async def receive(self) -> bytes | dict[str, Any]:
        """Memory, b"" where it ends, or a word. Raises ChannelError."""
        try:
            header = await self._reader.readexactly(5)
            kind, length = header[:1], int.from_bytes(header[1:], "big")
            if (kind, length) == (END, 0):
                return b""
            longest = {MEMORY: LONGEST_MEMORY, WORD: LONGEST_WORD}.get(kind, -1)
            if not 0 < length <= longest:
                raise ChannelError(f"the other end of the move sends what is not agreed: {header.hex()}")
            contents = await self._reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise ChannelError("the other end of the move has hung up") from error
        if kind == MEMORY:
            return contents
        try:
            word = json.loads(contents)
        except (ValueError, RecursionError) as error:
            raise ChannelError("the other end of the move sends words that are not JSON") from error
        if not isinstance(word, dict) or not isinstance(word.get("word"), str):
            raise ChannelError("the other end of the move sends a word without its name")
        return word

    async def hear(self) -> dict[str, Any]:
        """The next word, where memory is not expected."""
        heard = await self.receive()
        if isinstance(heard, bytes):
            raise ChannelError("the other end of the move sends memory where a word was due")
        return heard

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _send(self, kind: bytes, contents: bytes | memoryview) -> None:
        try:
            self._writer.write(kind + len(contents).to_bytes(4, "big"))
            self._writer.write(contents)
            await self._writer.drain()
        except OSError as error:
            raise ChannelError("the other end of the move has hung up") from error


async def channel_pair() -> tuple[Channel, Channel]:
    """Both ends, for a move inside one process."""
    ends = socket.socketpair()
    streams = [await asyncio.open_connection(sock=end, limit=READ_BYTES) for end in ends]
    return Channel(*streams[0]), Channel(*streams[1])
