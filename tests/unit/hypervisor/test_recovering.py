"""A post-copy whose connection breaks, at the target: how its QEMU is given what comes by another."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from retinue.hypervisor import HypervisorError, another_way, recovering
from retinue.hypervisor.memory_channel import Channel, channel_pair


class PausedQemu:
    """Listens where it is told to, but for the first times."""

    vm = "vm1"

    def __init__(self, folder: Path, deaf: int) -> None:
        self.rest = self.rest_seen = folder / "vm1.rest"
        self.deaf = deaf
        self.came: asyncio.Queue[asyncio.StreamReader] = asyncio.Queue()
        self._listening: list[asyncio.Server] = []

    async def command(self, command: str, arguments: dict[str, Any], *, out_of_band: bool) -> None:
        assert (command, out_of_band) == ("migrate-recover", True), "its main loop may wait for a page"
        if self.deaf:
            self.deaf -= 1
            return
        path = arguments["uri"].removeprefix("unix:")
        self._listening.append(await asyncio.start_unix_server(lambda r, _: self.came.put_nowait(r), path))

    def close(self) -> None:
        for listening in self._listening:
            listening.close()


async def test_a_source_hears_that_it_has_to_come_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for a word, on a connection of which nothing has come here."""
    monkeypatch.setattr(another_way, "AGAIN_SECONDS", 0.0)
    qemu, sources, kept = PausedQemu(tmp_path, deaf=1), list[Channel](), list[Channel]()

    async def again() -> Channel:
        source, here = await channel_pair()
        sources.append(source)
        kept.append(here)  # As the listener does.
        return here

    broken, other = await channel_pair()
    broken.again = again
    paused = asyncio.Event()
    paused.set()
    channel, into = await recovering.at_target(qemu, broken, paused)  # type: ignore[arg-type]
    first, second = sources
    async with asyncio.timeout(20):
        with pytest.raises(HypervisorError, match="hung up"):
            await first.receive()
        assert await second.receive_message() == {"type": "again"}
        await asyncio.get_running_loop().sock_sendall(into, b"the rest")
        assert await (await qemu.came.get()).read(100) == b"the rest"
    assert channel.again is again
    into.close()
    for each in (channel, other, *sources):
        each.abort()
    qemu.close()
