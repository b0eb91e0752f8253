"""Programs of the server, run to their end."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from retinue.host.errors import HostError

COMMAND_LIMIT = 20.0
KILL_LIMIT = 0.5
"""A child of the program's that lives on may hold up its end (seconds)."""


class Ended(NamedTuple):
    """How a program ended: its exit code, its output, and what it wrote to standard error."""

    code: int
    printed: str
    complaint: str


async def run(argv: Sequence[str]) -> str:
    """What the program prints. Raises HostError, with what it complained of, when it fails."""
    code, printed, complaint = await run_to_end(argv, COMMAND_LIMIT)
    if code != 0:
        raise HostError(f"`{' '.join(argv)}` failed: {complaint}")
    return printed


async def run_to_end(argv: Sequence[str], limit: float, env: Mapping[str, str] | None = None) -> Ended:
    """Run a program, and say how it ended. One that has not after `limit` seconds is killed.

    Raises HostError for that, and when it cannot be run at all.
    """
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=env
        )
    except OSError as error:
        raise HostError(f"{argv[0]} cannot be run: {error.strerror}") from error
    try:
        async with asyncio.timeout(limit):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_LIMIT):
                await process.wait()
        raise HostError(f"`{' '.join(argv)}` did not end within {limit:g} s") from None
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(errors="replace"), err.decode(errors="replace").strip())
