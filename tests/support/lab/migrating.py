"""Migrations of vm1, which is on server1, in steps: started, held where they are, looked at afterwards."""

import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from typing import Any

from qemu.qmp import QMPClient

from retinue.host.taps import Run, add_port
from retinue.hypervisor.monitor import connect
from retinue.hypervisor.passes import HELD_BACK
from retinue_lab.guest.image import ensure_late_pages
from support.lab.health import strip
from support.lab.tools import Events, Json, LabBench, at, eventually, mac_of

START = [at("vm1", "server1"), at("vm2", "server2")]
ON_ITS_WAY = 0.2
"""Seconds that a packet may be on its way, on a busy machine."""


async def go_home(bench: LabBench, vms: Sequence[Json]) -> None:
    """Return when these VMs are where they were registered."""
    for vm in vms:
        if (await bench.vm(vm["id"]))["server"] != vm["server"]:
            await bench.migration(vm["id"], target_server=vm["server"])


async def network(bench: LabBench) -> dict[str, Any]:
    """All that a migration could leave behind: bindings, and the flows of every switch."""
    rows = [{k: v for k, v in row.items() if k != "lease_end"} for row in await bench.bindings()]
    return {"bindings": rows} | {id: strip(flows) for id, flows in (await bench.all_flows()).items()}


async def reaches(events: Events, migration: str, state: str) -> Json:
    step = await events.until(
        "migration.step", lambda e: e["migration"]["id"] == migration and e["migration"]["state"] == state
    )
    return dict(step["migration"])


async def has_ended(bench: LabBench, migration: str) -> bool:
    return str((await bench.get(f"migrations/{migration}"))["state"]) in ("done", "undone")


async def begin(bench: LabBench, vm: str = "vm1", to: str = "server2") -> str:
    return str((await bench.post("migrations", {"vm": vm, "target_server": to}))["id"])


async def start_agent(bench: LabBench, server: str) -> None:
    config = bench.lab.directory / "agents" / server / "agent.toml"
    argv = [sys.executable, "-m", "retinue.cli.main", "agent", "run", "--config", str(config)]
    own = {"LD_PRELOAD": str(ensure_late_pages())}  # As the laboratory's own.
    await asyncio.to_thread(bench.lab.spawn, server, argv, log=f"{server}-agent", env=own, ready=True)


def qemu_of(bench: LabBench, server: str) -> int:
    """The process, in the sandbox's numbers, of the machine last started on a server."""
    pids = qemus_of(bench, server)
    assert pids, f"{server} has no machine"
    return pids[-1]


def qemus_of(bench: LabBench, server: str) -> list[int]:
    """Those of all that a server has, as they are written down; the last is the latest."""
    notes = (bench.lab.directory / "agents" / server / "vms").glob("*.json")
    latest = sorted(notes, key=lambda path: path.stat().st_mtime_ns)
    return [int(json.loads(note.read_bytes())["pid"]) for note in latest]


async def held_back(bench: LabBench, server: str) -> None:
    """Return when the memory of the VM that leaves a server is there but for what is held back."""
    sockets = (bench.lab.directory / "agents" / server / "vms").glob("*.qmp")
    qmp = QMPClient()
    await connect(qmp, str(max(sockets, key=lambda path: path.stat().st_mtime_ns)))

    async def little_remains() -> bool:
        said: Any = await qmp.execute("query-migrate")
        return bool(0 < said.get("ram", {}).get("remaining", 0) <= HELD_BACK)

    try:
        await eventually(little_remains)
    finally:
        await qmp.disconnect()


async def takes_memory(bench: LabBench, server: str) -> None:
    """Return when the QEMU that waits for a VM there has begun to take its memory in."""
    sockets = (bench.lab.directory / "agents" / server / "vms").glob("*.qmp")
    qmp = QMPClient("observer")
    await connect(qmp, str(max(sockets, key=lambda path: path.stat().st_mtime_ns)))

    async def takes() -> bool:
        said: Any = await qmp.execute("query-migrate")
        return bool(said.get("status") == "active")

    try:
        await eventually(takes)
    finally:
        await qmp.disconnect()


SLOWLY, AT_ONCE = 1 << 20, 0
"""Bytes a second: so there is something to come for a while; and without a limit."""


async def sends(bench: LabBench, server: str, bytes_a_second: int, vm: str = "*") -> None:
    """So quickly the QEMU that is there sends, unasked, what follows a VM by post-copy."""
    [monitor] = (bench.lab.directory / "agents" / server / "vms").glob(f"tap-{vm}-*.qmp")
    qmp = QMPClient("observer")
    await connect(qmp, str(monitor))
    await qmp.execute("migrate-set-parameters", {"max-postcopy-bandwidth": bytes_a_second})
    await qmp.disconnect()


# ---- held where it is ----


async def held_in(bench: LabBench, events: Events, state: str) -> str:
    """A migration that has got so far, and no further until `go_on`."""
    try:
        return await _held_in(bench, events, state)
    except BaseException:
        await go_on(bench)
        raise


async def _held_in(bench: LabBench, events: Events, state: str) -> str:
    if state == "matched":
        # The VM's port at the target cannot come to be while the switch there stands still.
        bench.kill("server2-vswitchd", signal.SIGSTOP)
        migration = await begin(bench)
    elif state == "admitting":
        # The port is there before, as the agent makes it: what the switch that stands still lacks is flows.
        await add_port(at_target(bench), bridge="br0", tap="tap-vm1", vm="vm1", mac=mac_of("vm1"))
        bench.kill("server2-vswitchd", signal.SIGSTOP)
        migration = await begin(bench)
    elif state == "prepared":
        # The source does not hear that it is to copy.
        bench.kill("server1-agent", signal.SIGSTOP)
        migration = await begin(bench)
    elif state == "copying":
        migration = await begin(bench)
        await reaches(events, migration, "admitting")
        # The target's machine is there, and takes no memory in.
        await bench.run("sandbox", "kill", "-STOP", str(qemu_of(bench, "server2")))
        await reaches(events, migration, "copying")
        bench.kill("server2-vswitchd", signal.SIGSTOP)
    elif state == "stopped":
        return await _stopped(bench, events)
    else:
        migration = await begin(bench)
        await reaches(events, migration, "copying")
        await takes_memory(bench, "server2")  # Its agent has asked its switch by then.
        bench.kill("server2-vswitchd", signal.SIGSTOP)
    await reaches(events, migration, state)
    return migration


async def _stopped(bench: LabBench, events: Events) -> str:
    """A migration whose VM stands still, for its target takes nothing in."""
    migration = await begin(bench)
    await reaches(events, migration, "copying")
    bench.kill("controller", signal.SIGSTOP)  # Nobody diverts, so the VM is not stopped ...
    try:
        await held_back(bench, "server1")
        # ... till the target takes nothing in.
        await bench.run("sandbox", "kill", "-STOP", str(qemu_of(bench, "server2")))
    finally:
        bench.kill("controller", signal.SIGCONT)
    await events.until(
        "migration.step", lambda e: e["migration"]["id"] == migration and e["migration"]["stopped_at"]
    )
    return migration


def at_target(bench: LabBench) -> Run:
    async def run(argv: Sequence[str]) -> str:
        return await bench.run("server2", *argv)

    return run


async def go_on(bench: LabBench) -> None:
    """Whatever was stopped runs on; what a test has killed meanwhile does not."""
    running = {daemon.name for daemon in bench.lab.daemons() if daemon.running}
    for stopped in {"server2-vswitchd", "server1-agent"} & running:
        bench.kill(stopped, signal.SIGCONT)
    for pid in qemus_of(bench, "server2"):
        await bench.run("sandbox", "sh", "-c", f"kill -CONT {pid} || true")


async def as_before(bench: LabBench, before: dict[str, Any]) -> None:
    differs: list[str] = []

    async def same() -> bool:
        now, machines = await network(bench), await bench.machines("vm1")
        differs[:] = [f"machines: {machines}"] * (machines != ["server1"])
        for what in now:
            more = [one for one in now[what] if one not in before[what]]
            less = [one for one in before[what] if one not in now[what]]
            differs.extend([f"{what}: too many {more}, missing {less}"] * (more + less != []))
        return not differs

    try:
        await eventually(same)
    except AssertionError as error:
        raise AssertionError(f"not as before: {differs}") from error
    assert await bench.ping("vm1", "203.0.113.9")
    # And it can be moved afterwards, without loss.
    async with bench.traffic(await bench.address("vm1")) as traffic:
        await bench.migration("vm1", target_server="server2")
        await bench.unharmed(traffic)
