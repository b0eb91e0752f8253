"""The connection between the two ends of a migration: memory one way, a few messages both ways.

Each frame is one byte of kind, four of length, and the contents: memory, memory compressed (zlib, RFC 1950),
its end (no contents), or a message, which is a JSON object with a "type".
"""

import asyncio
import contextlib
import json
import socket
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from retinue.hypervisor.errors import HypervisorError

MEMORY, COMPRESSED, END, MESSAGE = b"M", b"Z", b"E", b"J"
LONGEST_MEMORY = 1 << 20
LONGEST_MESSAGE = 1 << 16
READ_BYTES = 1 << 20
LEVEL = 1
"""Of zlib's compression: the quickest. docs/measurements/memory.md has what others cost."""
WORTH_IT = 1 << 12
"""Bytes: fewer are sent as they are."""


class ChannelError(HypervisorError):
    """The other end hung up, or sent something that does not belong to the protocol."""


Again = Callable[[], Awaitable["Channel"]]


class Channel:
    """One end of the connection. Every method but `close` raises ChannelError."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.compress = False
        """Compress the memory that is sent, where that makes it smaller."""
        self.again: Again | None = None
        """Another connection to the same other end, for who has to go on when this one is broken. Raises
        HypervisorError: there is none, or not yet."""
        self.before_memory: Callable[[], Awaitable[None]] | None = None
        """Done before the first of the memory is received; what it raises `receive` does."""
        self.step_factor = 1.0
        """So many times as long as elsewhere the other end may take for a step, but while the VM stands
        still."""
        self.before_handover: Callable[[], Awaitable[None]] | None = None
        """Done before the other end may run the VM, which stands still meanwhile. Raises nothing."""

    async def send_memory(self, nbytes: bytes | memoryview) -> None:
        """Send up to LONGEST_MEMORY bytes; no bytes mark the end of the memory."""
        if self.compress and len(nbytes) >= WORTH_IT:
            smaller = await asyncio.to_thread(zlib.compress, nbytes, LEVEL)
            if len(smaller) < len(nbytes):
                await self._send(COMPRESSED, smaller)
                return
        await self._send(MEMORY if nbytes else END, nbytes)

    async def send_message(self, type: str, **more: Any) -> None:
        await self._send(MESSAGE, json.dumps({"type": type, **more}).encode())

    async def may_hand_over(self) -> None:
        """Return when the other end may run the VM."""
        if self.before_handover is not None:
            await self.before_handover()

    async def receive(self) -> bytes | dict[str, Any]:
        """Memory, b"" where it ends, or a message. Raises ChannelError."""
        try:
            header = await self._reader.readexactly(5)
            kind, length = header[:1], int.from_bytes(header[1:], "big")
            if (kind, length) == (END, 0):
                return b""
            longest = {MEMORY: LONGEST_MEMORY, COMPRESSED: LONGEST_MEMORY, MESSAGE: LONGEST_MESSAGE}.get(
                kind, -1
            )
            if not 0 < length <= longest:
                raise ChannelError(f"the other end of the migration sends what is not agreed: {header.hex()}")
            contents = await self._reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise ChannelError("the other end of the migration has hung up") from error
        if kind != MESSAGE and self.before_memory is not None:
            before, self.before_memory = self.before_memory, None
            await before()
        if kind == MEMORY:
            return contents
        if kind == COMPRESSED:
            return await asyncio.to_thread(_decompressed, contents)
        try:
            message = json.loads(contents)
        except (ValueError, RecursionError) as error:
            raise ChannelError("the other end of the migration sends a message that is not JSON") from error
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise ChannelError("the other end of the migration sends a message without a type")
        return message

    async def receive_message(self) -> dict[str, Any]:
        """The next message, where memory is not expected. Raises ChannelError."""
        received = await self.receive()
        if isinstance(received, bytes):
            raise ChannelError("the other end of the migration sends memory where a message was due")
        return received

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def abort(self) -> None:
        """Close without a word: `close` over TLS waits up to 30 s for the other end's, which may be hung."""
        self._writer.transport.abort()

    async def _send(self, kind: bytes, contents: bytes | memoryview) -> None:
        try:
            self._writer.write(kind + len(contents).to_bytes(4, "big"))
            self._writer.write(contents)
            await self._writer.drain()
        except OSError as error:
            raise ChannelError("the other end of the migration has hung up") from error


def _decompressed(contents: bytes) -> bytes:
    """Raises ChannelError: it is damaged, or longer than any memory that is sent at once."""
    stream = zlib.decompressobj()
    try:
        nbytes = stream.decompress(contents, LONGEST_MEMORY)
    except zlib.error as error:
        raise ChannelError(f"the other end of the migration sends damaged memory: {error}") from error
    if not nbytes or not stream.eof or stream.unused_data:
        raise ChannelError(
            "the other end of the migration sends memory that is not whole, or too much at once"
        )
    return nbytes


async def broken_channel(again: Again, *, compress: bool = False) -> Channel:
    """In place of one that has ended with the agent that had it."""
    broken, other = await channel_pair()
    broken.again, broken.compress = again, compress
    other.abort()
    return broken


async def channel_pair() -> tuple[Channel, Channel]:
    """Both ends, for a migration inside one process."""
    ends = socket.socketpair()
    streams = [await asyncio.open_connection(sock=end, limit=READ_BYTES) for end in ends]
    return Channel(*streams[0]), Channel(*streams[1])
