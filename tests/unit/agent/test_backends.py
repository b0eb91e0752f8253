"""An agent's start on a server where an earlier one has left things that cannot be cleared at once."""

import asyncio
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from retinue.agent.backends import LibvirtBackend, QemuBackend
from retinue.agent.config import AgentConfig, LibvirtTable, VMTable
from retinue.host.errors import HostError
from retinue.hypervisor import Left
from retinue.hypervisor.libvirt.connection import LibvirtHost
from retinue.hypervisor.libvirt.machine import LibvirtMachine
from support.agents.world import bench_up
from support.fakes.libvirt import FakeLibrary
from support.virtual_time import run

CONFIG = AgentConfig("server1", "http://192.0.2.1:8080", "127.0.0.1:0", "/nowhere", "br0")


@pytest.mark.parametrize("trouble", ["a busy port", "the switch is away"])
def test_an_agent_starts_and_clears_later(tmp_path: Path, trouble: str) -> None:
    async def story() -> None:
        backend = QemuBackend(CONFIG, VMTable("/k", "/i"), tmp_path / "vms")
        tries = 0

        async def clear(but: Callable[[], Collection[str]]) -> list[str]:
            nonlocal tries
            tries += 1
            if tries < 5 and trouble == "the switch is away":
                raise HostError("ovs-vsctl: database connection failed")
            return ["tap-vm3"] if tries < 5 else []

        backend.ports.clear = clear  # type: ignore[method-assign]
        async with bench_up() as bench:
            await backend.begin(bench.source.dispatcher)
            assert tries == 1
            await asyncio.sleep(60)
            assert tries == 5, "until it is so, and not for ever"
            await backend.end()

    run(story())


async def test_what_could_not_be_adopted_while_libvirtd_was_away_is_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody would know that some of it lacks memory, which another agent has begun to bring."""
    monkeypatch.setattr(LibvirtHost, "library", FakeLibrary())
    table = LibvirtTable(folder=str(tmp_path / "shared"), control="qemu+tcp://server1/system")
    backend = LibvirtBackend(CONFIG, table, tmp_path)
    tries = 0

    async def adopt(listener: object) -> Left[LibvirtMachine]:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise HostError("libvirtd is away")
        return Left()

    monkeypatch.setattr(backend.hypervisor, "adopt", adopt)
    async with bench_up() as bench:
        for _ in range(3):
            backend._is_back(bench.source.dispatcher)
            assert backend._catching_up is not None
            await backend._catching_up
    assert tries == 2, "until it was possible, and then no more"
    await backend.end()
