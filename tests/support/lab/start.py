"""Starting labs and VMs for tests."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from retinue_lab.sandbox import handle as sandbox
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology import Topology
from support.lab.tools import BOOT_PATIENCE, Doorman, Events, Json, LabBench, eventually

BOOT_LOOK = 0.2
"""Seconds between two looks at whether a guest has booted."""


@contextlib.contextmanager
def lab_of(
    folder: Path, network: Topology | None = None, name: str = "rows", *, agents: bool = True
) -> Iterator[LabHandle]:
    """A lab with its directory below `folder`, which stands inside the context."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETINUE_LAB_DIR", str(folder))
        handle = sandbox.up(name, network, start_driver=agents, tie_to_parent=True)
        try:
            yield handle
        finally:
            handle.down()


def boot(lab: LabHandle, vms: Sequence[Json]) -> None:
    """Register VMs and return when each runs and holds its address."""
    asyncio.run(_boot(lab, vms))


async def _boot(lab: LabHandle, vms: Sequence[Json]) -> None:
    with contextlib.closing(Doorman(lab)) as doorman:
        async with contextlib.aclosing(LabBench(lab, doorman)) as bench, bench.events() as events:
            await bench.post("vms", vms)
            for vm in vms:
                await running(bench, events, vm["id"])


async def running(bench: LabBench, events: Events, vm: str) -> None:
    """Return when the guest of a VM that has been registered holds its address and answers echoes."""
    await events.until("vm.started", lambda e: e["vm"]["id"] == vm, timeout=BOOT_PATIENCE)
    if not (await bench.vm(vm))["addresses"]:
        await events.until("binding.added", lambda e: e["bindings"][0]["vm"] == vm, timeout=BOOT_PATIENCE)

    async def booted() -> bool:
        return "RETINUE READY" in await bench.console(vm)

    # Each look costs all agents some work, of which the guest's boot has the less.
    await eventually(booted, BOOT_PATIENCE, every=BOOT_LOOK)
    await addressed(bench, vm)


async def addressed(bench: LabBench, vm: str) -> None:
    """Return when the guest has set its address: it is a little behind its binding."""
    await bench.guest(vm, "until ip -4 address show dev eth0 | grep -q inet; do usleep 20000; done")
