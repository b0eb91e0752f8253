"""A socket of this machine for those on it: a JSON object a line, each answered by one."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

LONGEST_REQUEST = 1 << 20
LONGEST_ANSWER = 1 << 22

Json = dict[str, Any]


class RequestError(Exception):
    """It cannot be done; the message says why."""


@contextlib.asynccontextmanager
async def serving(path: Path, answer: Callable[[bytes], Awaitable[Json]]) -> AsyncIterator[None]:
    """Listen at `path` inside the context, for this user only."""
    path.unlink(missing_ok=True)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ValueError):
            while line := await reader.readline():
                writer.write(msgspec.json.encode(await answer(line)) + b"\n")
                await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(connected, path, limit=LONGEST_REQUEST)
    path.chmod(0o600)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


async def ask(path: Path, whom: str, **request: Any) -> Json:
    """One answer. Raises RequestError, which names whom was asked, also for one that says "error"."""
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=LONGEST_ANSWER)
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            answer: Json = json.loads(await reader.readline())
        finally:
            writer.close()
    except (OSError, ValueError) as error:
        raise RequestError(f"{whom} does not answer: {error}") from error
    if "error" in answer:
        raise RequestError(f"{whom}: {answer['error']}")
    return answer
