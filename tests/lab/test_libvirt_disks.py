"""Private disks of VMs that libvirt runs: copied by libvirt's own migration, through the agents."""

import statistics
import sys
from pathlib import Path

import pytest

from retinue_lab.errors import LabError
from retinue_lab.network import libvirtd
from retinue_lab.topology.topology_file import load
from support.lab.disks import (
    BASE,
    MIB,
    SIZE,
    WRITTEN,
    all_verified,
    folder,
    overlays,
    published,
    scribble,
    sha256,
    written,
)
from support.lab.losses import lost_spans
from support.lab.migrating import begin, reaches, start_agent
from support.lab.start import running
from support.lab.tools import BOOT_PATIENCE, LabBench, eventually
from support.oracles.qcow2 import content

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.long]

TOPOLOGY = "libvirt"
try:
    libvirtd.check(load(TOPOLOGY))
except LabError as error:
    pytest.skip(str(error), allow_module_level=True)

ONE = "00000000-0000-4000-8000-000000000001"
TWO, THREE = "00000000-0000-4000-8000-000000000002", "00000000-0000-4000-8000-000000000003"


async def added(bench: LabBench, vm: str, disk: str) -> None:
    async with bench.events() as events:
        await bench.cli("vm", "add", vm, "--server", "server1", "--disk", disk)
        await running(bench, events, vm)


async def gone(bench: LabBench, server: str) -> None:
    """Return when no overlay is left there."""

    async def none() -> bool:
        return overlays(bench, server) == []

    await eventually(none)


async def test_a_disk_goes_there_and_back_under_traffic(bench: LabBench, tmp_path: Path) -> None:
    """What the guest has written is compared by the guest, and outside of it; no packet is lost."""
    base = await published(bench, tmp_path, "base-1", "server3")
    await added(bench, ONE, f"image=base-1,size={SIZE}M")
    images = {id: folder(bench, id) / "content" / "base" / "base-1" for id in ("server1", "server2")}
    assert not images["server2"].exists()
    await scribble(bench, ONE)
    pauses = []
    async with bench.traffic(await bench.address(ONE), pps=500) as traffic:
        for target, source in (("server2", "server1"), ("server1", "server2")):
            done = await bench.migration(ONE, target_server=target)
            pauses.append(1000 * (done["resumed_at"] - done["stopped_at"]))
            assert done["figures"]["image_ms"] >= 0, "the target was prepared before its source was touched"
            await gone(bench, source)
            assert len(overlays(bench, target)) == 1
            await all_verified(bench, ONE)
        figures, record = await traffic.end()
    assert (figures.lost, figures.duplicated, figures.reordered) == (0, 0, 0), (figures, lost_spans(record))
    print(f"paused {[round(one, 1) for one in pauses]} ms, {statistics.median(pauses):.1f}", file=sys.stderr)
    await bench.guest(ONE, "kill $(cat /tmp/pid); while kill -0 $(cat /tmp/pid); do usleep 20000; done")
    assert (await written(bench, ONE))["wrong"] == 0
    inside = (await bench.guest(ONE, "sync; sha256sum /dev/vda", timeout=120)).split()[0]
    await bench.cli("vm", "stop", ONE, "--wait")
    [own] = overlays(bench, "server1")
    outside = content(own, base)
    assert (sha256(outside), len(outside)) == (inside, SIZE * MIB)
    assert outside[WRITTEN * MIB : BASE * MIB] == base[WRITTEN * MIB :]
    for image in images.values():
        assert sha256(image.read_bytes()) == sha256(base), "nobody has written it"
    await bench.cli("vm", "start", ONE, "--wait")

    async def booted() -> bool:
        return (await bench.console(ONE)).count("RETINUE READY") == 2

    await eventually(booted, BOOT_PATIENCE)
    again = (await bench.guest(ONE, "sha256sum /dev/vda", timeout=120)).split()[0]
    assert again == inside, "what was written is there after a stop"
    await bench.cli("vm", "remove", ONE)
    await gone(bench, "server1")


@pytest.mark.parametrize(("who", "vm"), [("server2-agent", TWO), ("cancelled", THREE)])
async def test_a_move_that_fails_leaves_the_disk_whole_where_it_is(
    bench: LabBench, who: str, vm: str
) -> None:
    await added(bench, vm, "size=32M")
    await scribble(bench, vm)
    await all_verified(bench, vm)
    async with bench.events() as events:
        migration = await begin(bench, vm, "server2")
        await reaches(events, migration, "copying")
        if who == "cancelled":
            await bench.post(f"migrations/{migration}/cancel")
        else:
            bench.kill(who)
            await start_agent(bench, who.removesuffix("-agent"))
        await reaches(events, migration, "undone")
    await all_verified(bench, vm)
    await gone(bench, "server2")
    await bench.migration(vm, target_server="server2")
    await all_verified(bench, vm)
    refused = await bench.cli("move", "start", vm, "--to", "server1", "--postcopy", fails=True)
    assert "has private disks" in refused
    await bench.cli("vm", "remove", vm)
    await gone(bench, "server2")
