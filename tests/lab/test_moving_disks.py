"""VMs with disks on real agents: images fetched when they are needed, disks that move with their VMs."""

import json
import signal
import stat
import statistics
import sys
from pathlib import Path

import pytest

from retinue_lab.network import agents
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
from support.lab.migrating import SLOWLY, begin, reaches, sends, start_agent
from support.lab.tools import LabBench, eventually, long
from support.oracles.qcow2 import content

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.alone]


async def added(bench: LabBench, vm: str, *disks: str, server: str = "server1") -> None:
    words = [word for disk in disks for word in ("--disk", disk)]
    await bench.cli("vm", "add", vm, "--server", server, *words)
    await runs(bench, vm)


async def runs(bench: LabBench, vm: str, boots: int = 1) -> None:
    """Return when it has booted so often, and has an address."""

    async def ready() -> bool:
        its = await bench.vm(vm)
        booted = (await bench.console(vm)).count("RETINUE READY") >= boots
        return its["state"] == "running" and bool(its["holds"]) and booted

    await eventually(ready, timeout=120)


async def test_a_disk_goes_there_and_back_under_traffic(bench: LabBench, tmp_path: Path) -> None:
    base = await published(bench, tmp_path, "base-1", "server3")
    await added(bench, "disky", f"image=base-1,size={SIZE}M")
    assert f"private, {SIZE}M, over image base-1" in await bench.cli("vm", "show", "disky")
    images = {
        server: folder(bench, server) / "content" / "base" / "base-1" for server in ("server1", "server2")
    }
    assert sha256(images["server1"].read_bytes()) == sha256(base), "fetched, for the VM was to start there"
    assert not images["server2"].exists()
    [own] = overlays(bench, "server1")
    assert stat.S_IMODE(own.stat().st_mode) == 0o600
    await scribble(bench, "disky")
    pauses = []
    async with bench.traffic(await bench.address("disky"), pps=500) as traffic:
        for to, back in (("server2", "server1"), ("server1", "server2")):
            done = await bench.migration("disky", target_server=to)
            pauses.append(1000 * (done["resumed_at"] - done["stopped_at"]))
            await nothing_is_left(bench, back)
            assert len(overlays(bench, to)) == 1
            await all_verified(bench, "disky")
        figures, record = await traffic.end()
    assert (figures.lost, figures.duplicated, figures.reordered) == (0, 0, 0), (figures, lost_spans(record))
    await bench.guest("disky", "kill $(cat /tmp/pid); while kill -0 $(cat /tmp/pid); do usleep 20000; done")
    assert (await written(bench, "disky"))["wrong"] == 0
    inside = (await bench.guest("disky", "sha256sum /dev/vda", timeout=120)).split()[0]
    await bench.cli("vm", "stop", "disky", "--wait")
    [own] = overlays(bench, "server1")
    outside = content(own, base)
    assert (sha256(outside), len(outside)) == (inside, SIZE * MIB)
    assert outside[WRITTEN * MIB : BASE * MIB] == base[WRITTEN * MIB :]
    for image in images.values():
        assert sha256(image.read_bytes()) == sha256(base), "nobody has written it"
    print(
        f"paused {[round(one, 1) for one in pauses]} ms, median {statistics.median(pauses):.1f}",
        file=sys.stderr,
    )

    await bench.cli("vm", "start", "disky", "--wait")
    consoles = (folder(bench, "server1") / "vms").glob("tap-disky-*.console")
    latest = max(consoles, key=lambda path: int(path.stem.rpartition("-")[2]))

    async def booted() -> bool:
        return "RETINUE READY" in latest.read_text(errors="replace")

    await eventually(booted, timeout=120)
    again = (await bench.guest("disky", "sha256sum /dev/vda", timeout=120)).split()[0]
    assert again == inside, "what was written is there after a stop"
    refused = await bench.cli("image", "remove", "base-1", fails=True)
    assert "disky" in refused
    await bench.cli("vm", "remove", "disky")
    await nothing_is_left(bench, "server1")


BY_POSTCOPY = {"postcopy": "required", "downtime_ms": 0}
MEMORY_MIB, MEMORY_RATE = 32, 300


@pytest.mark.long
@pytest.mark.parametrize("killed", [(), ("server1", "server2")], ids=["none", "both"])
async def test_a_disk_goes_by_postcopy_under_traffic(bench: LabBench, killed: tuple[str, ...]) -> None:
    """And where both agents are killed with memory to come."""
    vm = f"hurried{len(killed)}"
    await added(bench, vm, "size=32M")
    await scribble(bench, vm)
    await bench.guest(vm, f"scribble {MEMORY_MIB} {MEMORY_RATE} /tmp/scribbled >/dev/null 2>&1 &")
    await bench.guest(vm, "until [ -f /tmp/scribbled ]; do usleep 20000; done")
    if killed:  # So that there is memory to come. QEMU's brake makes the pause longer, too.
        await sends(bench, "server1", SLOWLY, vm)
    async with (
        bench.traffic(await bench.address(vm), pps=200) as traffic,
        bench.events() as events,
    ):
        asked = {"vm": vm, "target_server": "server2", **BY_POSTCOPY}
        migration = str((await bench.post("migrations", asked))["id"])
        await events.until(
            "migration.copying", lambda event: event["migration_id"] == migration and bool(event["postcopy"])
        )
        for server in killed:
            bench.kill(f"{server}-agent", signal.SIGKILL)
        for server in killed:
            await start_agent(bench, server)
        done = await reaches(events, migration, "done")
        print(f"paused {1000 * (done['resumed_at'] - done['stopped_at']):.0f} ms", file=sys.stderr)
        await all_verified(bench, vm)
        await bench.guest(vm, "until [ $(cut -d' ' -f4 /tmp/scribbled) -gt 0 ]; do usleep 20000; done")
        assert (await bench.guest(vm, "cut -d' ' -f6 /tmp/scribbled")).strip() == "0"
        await bench.unharmed(traffic, in_order=True)
    assert [vm in one.name for one in overlays(bench, "server2")].count(True) == 1
    await bench.guest(vm, "kill $(cat /tmp/pid); while kill -0 $(cat /tmp/pid); do usleep 20000; done")
    await bench.guest(vm, "killall scribble")
    inside = (await bench.guest(vm, "sha256sum /dev/vda", timeout=120)).split()[0]
    await bench.cli("vm", "stop", vm, "--wait")
    [own] = [one for one in overlays(bench, "server2") if vm in one.name]
    assert sha256(content(own, b"")) == inside
    await bench.cli("vm", "remove", vm)


async def nothing_is_left(bench: LabBench, server: str) -> None:
    """Of a VM that has gone: its agent removes its disks when it has told that it is free of it."""

    async def gone() -> bool:
        return overlays(bench, server) == []

    await eventually(gone)


@pytest.mark.parametrize(
    "who",
    ["server2-agent", *map(long, ("cancelled", "server1-agent", "target", "source"))],
)
async def test_a_move_that_fails_leaves_the_disk_whole_where_it_is(bench: LabBench, who: str) -> None:
    vm = f"undone-{who}"
    await added(bench, vm, "size=32M")
    await scribble(bench, vm)
    await all_verified(bench, vm)
    async with bench.events() as events:
        # The target's agent takes nothing in: the copy of the disk waits for it.
        migration = await begin(bench, vm, "server2")
        await reaches(events, migration, "copying")
        match who:
            case "cancelled":
                await bench.post(f"migrations/{migration}/cancel")
            case "target" | "source":
                server = {"target": "server2", "source": "server1"}[who]
                await _kill_machine(bench, server, vm)
            case agent:
                bench.kill(agent, signal.SIGKILL)
                await start_agent(bench, agent.removesuffix("-agent"))
        await reaches(events, migration, "undone")
    if who == "source":
        await bench.cli("vm", "start", vm, "--wait")
        await runs(bench, vm, 2)
        await bench.cli("vm", "remove", vm)
        return

    async def cleared() -> bool:
        return all(vm not in one.name for one in overlays(bench, "server2"))

    await eventually(cleared)
    await all_verified(bench, vm)
    await bench.migration(vm, target_server="server2")
    await all_verified(bench, vm)
    await bench.cli("vm", "remove", vm)


async def _kill_machine(bench: LabBench, server: str, vm: str) -> None:
    notes = (folder(bench, server) / "vms").glob("*.json")
    pids = [
        note["pid"] for note in (json.loads(path.read_bytes()) for path in notes) if note["spec"]["id"] == vm
    ]
    await bench.run("sandbox", "kill", "-9", str(pids[-1]))


async def test_what_cannot_be_is_said(bench: LabBench) -> None:
    for disk, why in (
        ("image=nowhere", "no image nowhere"),
        ("size=0G", "such as 20G"),
        ("base=relative", "absolute"),
        ("base=/a,shared=/b", "base and shared"),
        ("format=qcow2,size=1G", "leave it out"),
    ):
        said = await bench.cli("vm", "add", "bad", "--server", "server1", "--disk", disk, fails=True)
        assert why in said, said
    missing = Path(bench.lab.directory) / agents.SHARED / "missing"
    for path, why in (("/etc/passwd", "in none of the folders of disk_paths"), (missing, "there is no file")):
        await bench.cli("vm", "add", "bad", "--server", "server1", "--disk", f"shared={path}")

        async def told(why: str = why) -> bool:
            return why in (await bench.vm("bad"))["power_reason"]

        await eventually(told)
        await bench.cli("vm", "remove", "bad")


async def test_a_fenced_servers_private_disk_keeps_the_vm_and_a_shared_one_does_not(
    bench: LabBench,
) -> None:
    shared = Path(bench.lab.directory) / agents.SHARED / "common.raw"
    shared.parent.mkdir()
    shared.write_bytes(b"kept" + bytes(8 * MIB - 4))
    await bench.cli("vm", "add", "own", "--server", "server3", "--disk", "size=8M")
    await added(bench, "common", f"shared={shared}", server="server3")
    await runs(bench, "own")
    await bench.guest("common", "printf left | dd of=/dev/vda bs=1M seek=1 conv=fsync 2>/dev/null")
    for vm in ("own", "common"):
        await _kill_machine(bench, "server3", vm)
    bench.kill("server3-agent", signal.SIGKILL)
    await bench.cli("server", "fence", "server3")
    refused = await bench.cli("vm", "add", "own", "--server", "server1", fails=True)
    assert "private disk, which is on server3 alone" in refused
    await bench.cli("vm", "add", "common", "--server", "server1")
    await runs(bench, "common")  # Its console at the dead server is out of reach.
    said = await bench.guest(
        "common", "dd if=/dev/vda bs=1M skip=1 2>/dev/null | head -c 4; head -c 4 /dev/vda"
    )
    assert said == "leftkept"
