"""How the laboratory's tools start programs on its nodes."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

Popen = Callable[[str, Sequence[str]], Awaitable[asyncio.subprocess.Process]]
"""Start a program on the node of that name; its standard input, output and error must be pipes."""


class Commands(Protocol):
    """What a running lab (sandbox.LabHandle) offers: the host's command line for a program in a node."""

    def command(self, node: str, argv: Sequence[str]) -> list[str]: ...


def popen_in(lab: Commands) -> Popen:
    """Starts programs in the lab's nodes from a process on the host."""

    async def popen(node: str, argv: Sequence[str]) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *lab.command(node, argv), stdin=pipe, stdout=pipe, stderr=pipe
        )

    return popen
