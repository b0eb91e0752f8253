"""Programs on the nodes of a lab, started from a process on the host."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from retinue_lab.processes.processes import Popen


class Commands(Protocol):
    """What a running lab (LabHandle) offers: the host's command line for a program on a node."""

    def command(self, node: str, argv: Sequence[str]) -> list[str]: ...


def popen_in(lab: Commands) -> Popen:
    """Starts programs on the lab's nodes."""

    async def popen(node: str, argv: Sequence[str]) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *lab.command(node, argv), stdin=pipe, stdout=pipe, stderr=pipe
        )

    return popen
