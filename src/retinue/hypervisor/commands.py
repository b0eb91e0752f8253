"""Programs of the server, run to their end."""

import asyncio
from collections.abc import Sequence

from retinue.hypervisor.interface import HypervisorError

COMMAND_LIMIT = 20.0


async def run(argv: Sequence[str]) -> str:
    """What the program prints. Raises HypervisorError, with what it complained of, when it fails."""
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
    except OSError as error:
        raise HypervisorError(f"{argv[0]} cannot be run: {error}") from error
    try:
        async with asyncio.timeout(COMMAND_LIMIT):
            out, said = await process.communicate()
    except TimeoutError:
        process.kill()
        raise HypervisorError(f"`{' '.join(argv)}` did not end within {COMMAND_LIMIT:.0f} s") from None
    if process.returncode != 0:
        raise HypervisorError(f"`{' '.join(argv)}` failed: {said.decode(errors='replace').strip()}")
    return out.decode()
