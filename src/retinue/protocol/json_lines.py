"""A socket of this machine for those on it: a JSON object a line, each answered by one."""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from retinue.socket_addresses import short_path

LONGEST_REQUEST = 1 << 20
LONGEST_ANSWER = 1 << 22

Json = dict[str, Any]


class RequestError(Exception):
    """The request cannot be done, or is not answered; the message says why."""


@contextlib.asynccontextmanager
async def serving(
    path: Path,
    answer: Callable[[bytes], Awaitable[Json]],
    encode: Callable[[Json], bytes] = msgspec.json.encode,
) -> AsyncIterator[None]:
    """Listen at `path` inside the context, for this user only.

    `answer` says {"error": SENTENCE} of a request that cannot be done.
    """
    path.unlink(missing_ok=True)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # ValueError: a line too long to be a request.
        with contextlib.suppress(ConnectionError, ValueError):
            while line := await reader.readline():
                writer.write(encode(await answer(line)) + b"\n")
                await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(connected, sock=_listening(path), limit=LONGEST_REQUEST)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


def _listening(path: Path) -> socket.socket:
    """A socket that is this user's from the moment it is there."""
    listening = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        with short_path(path) as name:
            listening.bind(name)
    except OSError:
        listening.close()
        raise
    finally:
        os.umask(before)
    listening.setblocking(False)
    return listening


async def ask(path: Path, whom: str, **request: Any) -> Json:
    """One answer. Raises RequestError, which names whom was asked, also for one that says "error"."""
    try:
        with short_path(path) as name:
            reader, writer = await asyncio.open_unix_connection(name, limit=LONGEST_ANSWER)
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            line = await reader.readline()
        finally:
            writer.close()
    except (OSError, ValueError) as error:
        raise RequestError(f"{whom} does not answer: {error}") from error
    return _answer(line, whom)


def ask_blocking(path: Path, whom: str, timeout: float, **request: Any) -> Json:
    """The same for programs without an event loop; `timeout` is in seconds."""
    try:
        with socket.socket(socket.AF_UNIX) as wire:
            wire.settimeout(timeout)
            with short_path(path) as name:
                wire.connect(name)
            wire.sendall(json.dumps(request).encode() + b"\n")
            with wire.makefile("rb") as lines:
                line = lines.readline()
    except OSError as error:
        raise RequestError(f"{whom} does not answer: {error}") from error
    return _answer(line, whom)


def _answer(line: bytes, whom: str) -> Json:
    try:
        answer: Json = msgspec.json.decode(line, type=Json)
    except (ValueError, RecursionError) as error:  # msgspec.DecodeError is a ValueError.
        reason = f"{error}" if line else "the connection has ended"
        raise RequestError(f"{whom} does not answer: {reason}") from error
    if "error" in answer:
        raise RequestError(f"{whom}: {answer['error']}")
    return answer
