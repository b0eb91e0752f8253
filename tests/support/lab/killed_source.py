"""A source's agent that is killed at one moment of a migration: a process of its own, which hangs there.

    python -m support.lab.killed_source FOLDER MOMENT POSTCOPY DESCRIPTOR...

It takes up the machine in the folder, says so, is told to go on, migrates it by its connections (the first
for the memory, the others for disks), and says when it is at the moment. Then it does nothing, and is killed.
"""

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from retinue.core.migration import copying
from retinue.core.migration.copying import CopyOptions, Postcopy
from retinue.hypervisor import Channel, Event, QemuHypervisor, Stopped, ignore
from retinue.hypervisor.memory_channel import READ_BYTES
from retinue.hypervisor.qemu.mirrors import Mirrors

MOMENTS = ("stopped", "before the disks", "after the disks", "sent")
HANGS = 600.0


def hang() -> None:
    print("now", flush=True)
    time.sleep(HANGS)


def around(before: str, after: str, moment: str) -> Callable[[Mirrors], Coroutine[Any, Any, None]]:
    finish = Mirrors.finish

    async def hanging(mirrors: Mirrors) -> None:
        if moment == before:
            hang()
        await finish(mirrors)
        if moment == after:
            hang()

    return hanging


async def channel(descriptor: int) -> Channel:
    end = socket.socket(fileno=descriptor)
    return Channel(*await asyncio.open_connection(sock=end, limit=READ_BYTES))


async def main(folder: str, moment: str, postcopy: str, memory: str, *disks: str) -> None:
    left = await QemuHypervisor(Path(folder)).adopt(lambda vm: ignore)
    [source] = left.machines
    print("adopted", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    brings, copies = await channel(int(memory)), [await channel(int(disk)) for disk in disks]

    def hear(event: Event) -> None:
        if moment == "stopped" and isinstance(event, Stopped):
            hang()

    async def all_is_sent() -> None:
        if moment == "sent":
            hang()

    async def open_disk(number: int) -> Channel:
        return copies[number - 1]

    async def divert(taps: object) -> bool:
        return True

    brings.before_handover = all_is_sent
    Mirrors.finish = around("before the disks", "after the disks", moment)  # type: ignore[method-assign, assignment]
    copying.LEAST_PAUSE = 0.0
    options = CopyOptions(postcopy=Postcopy(postcopy))
    await QemuHypervisor(Path(folder)).run_outgoing(source, brings, hear, divert, 0.0, options, open_disk)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
