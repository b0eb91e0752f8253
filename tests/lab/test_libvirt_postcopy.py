"""Post-copy through libvirt that breaks, at its target: the VM is given back before it ran there, and has
crashed after; a libvirtd that dies takes no VM with it."""

import json
import re
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from retinue_lab.errors import LabError
from retinue_lab.network import libvirtd
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology_file import load
from support.lab.migrating import reaches, start_agent
from support.lab.start import boot, lab_of, running
from support.lab.tools import Events, Json, LabBench, eventually

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.long]

try:
    libvirtd.check(load("libvirt"))
except LabError as error:
    pytest.skip(str(error), allow_module_level=True)

VM = "00000000-0000-4000-8000-000000000001"
VMS: list[Json] = [{"id": VM, "mac": "52:54:00:00:00:01", "server": "server1", "addresses": []}]
ROOT = Path(__file__).resolve().parents[2]
MIB, MUCH_A_SECOND = 32, 300
GIVEN_BACK = "running (post-copy failed)"
"""libvirt's words for a VM at its source."""
SLOWLY = 1 << 19
"""Bytes a second that QEMU sends unasked, of what follows a VM: so there is some for a while."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    with lab_of(tmp_path_factory.mktemp("labs"), load("libvirt"), "libvirt") as handle:
        boot(handle, VMS)
        yield handle


@pytest.fixture(autouse=True)
async def writing(bench: LabBench) -> AsyncIterator[None]:
    """The VM runs at server1, and writes; afterwards it is started anew there."""
    await bench.guest(VM, f"scribble {MIB} {MUCH_A_SECOND} /tmp/scribbled >/dev/null 2>&1 &")
    await bench.guest(VM, "until [ -f /tmp/scribbled ]; do usleep 20000; done")
    yield
    await bench.request("DELETE", f"vms/{VM}")
    async with bench.events() as events:
        await bench.post("vms", VMS)
        await running(bench, events, VM)


async def qemu(bench: LabBench, server: str, what: str) -> None:
    """Send a signal to the VM's QEMU on a server."""
    pidfile = libvirtd.folder(server) / "run" / "qemu" / f"{VM}.pid"
    await bench.run("sandbox", "sh", "-ec", f"kill -{what} $(cat {pidfile})")


async def state(bench: LabBench, server: str) -> str:
    """How libvirt says that the VM is there; "" where it has none."""
    said = await bench.run(server, "sh", "-c", f"virsh domstate --reason {VM} 2>/dev/null || true")
    return said.strip()


async def start_libvirtd(bench: LabBench, server: str) -> None:
    bench.lab.spawn(server, libvirtd.again(server), log=f"{server}-libvirtd")

    async def answers() -> bool:
        return "yes" in await bench.run(server, "sh", "-c", "virsh list >/dev/null 2>&1 && echo yes || true")

    await eventually(answers)


async def forget_the_job(bench: LabBench, server: str) -> None:
    """As docs/libvirt.md has it: libvirt forgets a migration of which it had the job open for ever."""
    [script] = re.findall(r"sed -i .*", (ROOT / "docs" / "libvirt.md").read_text())
    path = libvirtd.folder(server) / "run" / "qemu" / f"{VM}.xml"
    assert "asyncPaused='yes'" in await bench.run("sandbox", "cat", str(path))
    bench.kill(f"{server}-libvirtd")
    await bench.run("sandbox", "sh", "-ec", script.replace("/run/libvirt/qemu/VM.xml", str(path)))
    await start_libvirtd(bench, server)


async def begun(bench: LabBench) -> str:
    wanted = {"vm": VM, "target_server": "server2", "postcopy": "required", "downtime_ms": 0}
    return str((await bench.post("migrations", wanted))["id"])


async def stopped(bench: LabBench, events: Events) -> str:
    """A migration whose VM was stopped for post-copy, and whose target, standing still, does not run it."""
    migration = await begun(bench)
    await reaches(events, migration, "copying")
    bench.kill("fabric-vswitchd", signal.SIGSTOP)  # Who does not confirm is waited for.
    try:
        await reaches(events, migration, "diverted")
        await qemu(bench, "server2", "STOP")
    finally:
        bench.kill("fabric-vswitchd", signal.SIGCONT)
    await events.until(
        "migration.step", lambda e: e["migration"]["id"] == migration and e["migration"]["stopped_at"]
    )
    return migration


async def runs_there(bench: LabBench, events: Events) -> str:
    """A migration whose VM runs at its target with memory to come, which the source's agent holds back."""
    slowly = {"execute": "migrate-set-parameters", "arguments": {"max-postcopy-bandwidth": SLOWLY}}
    await bench.run("server1", "virsh", "qemu-monitor-command", VM, json.dumps(slowly))
    migration = await begun(bench)
    await events.until(
        "migration.step", lambda e: e["migration"]["id"] == migration and e["migration"]["resumed_at"]
    )
    bench.kill("server1-agent", signal.SIGSTOP)
    assert await state(bench, "server2") == "running (post-copy)", "all of it has come: nothing to break"
    return migration


async def runs_there_whole(bench: LabBench) -> None:
    async def settled() -> bool:
        return (await state(bench, "server1"), await state(bench, "server2")) == ("", "running (migrated)")

    await eventually(settled)
    await nothing_is_wrong(bench)
    assert (await bench.vm(VM))["power"] == "running"


async def nothing_is_wrong(bench: LabBench) -> None:
    """The guest has compared all of its memory, and written it, twice since now."""
    enough = int(await bench.guest(VM, "cut -d' ' -f4 /tmp/scribbled")) + 2 * MIB * 256
    compared = f"until [ $(cut -d' ' -f4 /tmp/scribbled) -gt {enough} ]; do usleep 50000; done"
    await bench.guest(VM, compared, timeout=120)
    assert (await bench.guest(VM, "cut -d' ' -f6 /tmp/scribbled")).strip() == "0"


@pytest.mark.parametrize("who", ["qemu", "libvirtd"])
async def test_a_vm_whose_target_dies_before_it_ran_there_runs_on_at_its_source(
    bench: LabBench, who: str
) -> None:
    uptime = float(await bench.guest(VM, "cut -d' ' -f1 /proc/uptime"))
    async with bench.events() as events:
        migration = await stopped(bench, events)
        if who == "qemu":
            await qemu(bench, "server2", "KILL")
        else:
            bench.kill("server2-libvirtd")
            await qemu(bench, "server2", "CONT")
            await start_libvirtd(bench, "server2")
        await reaches(events, migration, "undone")
    assert (await state(bench, "server1"), await state(bench, "server2")) == (GIVEN_BACK, "")
    assert float(await bench.guest(VM, "cut -d' ' -f1 /proc/uptime")) > uptime
    assert await bench.ping(VM, "203.0.113.9")
    await nothing_is_wrong(bench)
    # libvirt has the migration's job open still: what that means is said, and how it ends.
    said = await bench.cli("move", "start", VM, "--to", "server2", "--wait", fails=True)
    assert f"`retinue vm stop {VM} --hard`" in said, said
    if who == "qemu":
        await bench.cli("vm", "stop", VM, "--hard", "--wait")
        async with bench.events() as events:
            await bench.cli("vm", "start", VM)
            await events.until("vm.started", lambda e: bool(e["vm"]["id"] == VM))
        await bench.migration(VM, target_server="server2")
    else:
        await forget_the_job(bench, "server1")
        assert await state(bench, "server1") == "running (unpaused)"
        await bench.migration(VM, target_server="server2", postcopy="required", downtime_ms=0)
        await nothing_is_wrong(bench)
        assert float(await bench.guest(VM, "cut -d' ' -f1 /proc/uptime")) > uptime, "it was never off"
    assert await state(bench, "server2") == "running (migrated)"


async def test_a_vm_whose_target_dies_with_memory_to_come_has_crashed_there(bench: LabBench) -> None:
    async with bench.events() as events:
        migration = await runs_there(bench, events)
        try:
            await qemu(bench, "server2", "KILL")
        finally:
            bench.kill("server1-agent", signal.SIGCONT)
        await reaches(events, migration, "done")

    async def crashed() -> bool:
        vm = await bench.vm(VM)
        return (vm["server"], vm["power"]) == ("server2", "crashed")

    await eventually(crashed)
    assert (await state(bench, "server1"), await state(bench, "server2")) == ("", "")
    async with bench.events() as events:
        await bench.cli("vm", "start", VM)
        await events.until("vm.started", lambda e: (e["vm"]["id"], e["server"]) == (VM, "server2"))


async def cut(bench: LabBench, migration: str) -> None:
    """Break the connection between the two agents, at both of its ends."""
    host, _, port = str((await bench.get(f"migrations/{migration}"))["memory_at"]).rpartition(":")
    said = await bench.run("server1", "ss", "-K", "dst", host.strip("[]"), "dport", "=", f":{port}")
    assert f"{host}:{port}" in said, f"no connection to {host}:{port}: {said}"


def ways(bench: LabBench) -> int:
    """How many other ways the source's agent has found."""
    return (bench.lab.directory / "logs" / "server1-agent.log").read_text().count("migration.goes_on")


async def until_ways(bench: LabBench, number: int) -> None:
    async def are_found() -> bool:
        return ways(bench) == number

    await eventually(are_found)


async def test_a_connection_that_breaks_twice_with_memory_to_come_costs_no_vm(bench: LabBench) -> None:
    """libvirt goes on by another one each time, and the guest finds all of its memory right."""
    before = ways(bench)
    async with bench.events() as events:
        migration = await runs_there(bench, events)
        bench.kill("server1-agent", signal.SIGCONT)
        for time in (1, 2):
            await cut(bench, migration)
            await until_ways(bench, before + time)
        await reaches(events, migration, "done")
    await runs_there_whole(bench)


async def test_a_libvirtd_that_dies_with_memory_to_come_takes_no_vm_with_it(bench: LabBench) -> None:
    async with bench.events() as events:
        migration = await runs_there(bench, events)
        try:
            bench.kill("server2-libvirtd")
        finally:
            bench.kill("server1-agent", signal.SIGCONT)
        await start_libvirtd(bench, "server2")
        await reaches(events, migration, "done")
    await runs_there_whole(bench)


@pytest.mark.parametrize("killed", [("server1",), ("server2",), ("server1", "server2")])
async def test_an_agent_that_is_killed_with_memory_to_come_costs_no_vm(
    bench: LabBench, killed: tuple[str, ...]
) -> None:
    """The next one finds a QEMU of libvirt's that has memory to give, or lacks some, and goes on."""
    uptime = float(await bench.guest(VM, "cut -d' ' -f1 /proc/uptime"))
    async with bench.events() as events:
        migration = await runs_there(bench, events)
        bench.kill("server1-agent", signal.SIGCONT)
        for server in killed:
            bench.kill(f"{server}-agent")
        assert (await state(bench, "server2")).startswith("running (post-copy"), "nothing was to come"
        for server in killed:
            await start_agent(bench, server)
        await reaches(events, migration, "done")
    await runs_there_whole(bench)
    assert float(await bench.guest(VM, "cut -d' ' -f1 /proc/uptime")) > uptime, "it was never off"
