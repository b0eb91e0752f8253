"""A migration that comes to nothing leaves the network as it was, and no VM is lost or runs twice."""

import contextlib
import json
import signal
from collections.abc import AsyncIterator

import pytest

from retinue.protocol.errors import RejectedError
from support.lab.losses import lost_spans
from support.lab.migrating import (
    START,
    as_before,
    begin,
    go_on,
    has_ended,
    held_in,
    network,
    qemu_of,
    reaches,
    start_agent,
)
from support.lab.tools import LabBench, eventually, long

pytestmark = [
    pytest.mark.lab,
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.usefixtures("home"),
]

VMS = START


@pytest.mark.parametrize(
    "state",
    [
        *(long("matched"), long("admitting"), long("prepared"), long("copying"), long("diverted"), "stopped"),
    ],
)
async def test_a_move_can_be_cancelled(bench: LabBench, state: str) -> None:
    before = await network(bench)
    async with bench.traffic(await bench.address("vm1")) as traffic, bench.events() as events:
        migration = await held_in(bench, events, state)
        try:
            await bench.post(f"migrations/{migration}/cancel")
        finally:
            await go_on(bench)
        undone = await reaches(events, migration, "undone")
        assert undone["reason"] == "cancelled by the operator"
        passed = [step["state"] for step in undone["steps"]]
        assert passed[passed.index("rolling back") - 1] == ("diverted" if state == "stopped" else state)
        figures, record = await traffic.end()
    # "stopped": what came to the target until the VM stopped is handed back, and of what came since
    # the source has copies. In "diverted" nothing is diverted yet, for the target's switch has not confirmed.
    assert (figures.lost, figures.duplicated) == (0, 0), (figures, undone, lost_spans(record))
    if state == "stopped":
        assert undone["figures"]["handed_back"] > 0
    await as_before(bench, before)


@pytest.mark.long
async def test_one_whose_target_has_not_been_found_can_be_cancelled(bench: LabBench) -> None:
    """It is planned, and no more: server3 was never seen, for its cable is out."""
    before = await network(bench)
    async with (
        server3_was_never_found(bench),
        bench.traffic(await bench.address("vm1")) as traffic,
        bench.events() as events,
    ):
        migration = await begin(bench, to="server3")
        assert (await bench.get(f"migrations/{migration}"))["state"] == "planned"
        await bench.post(f"migrations/{migration}/cancel")
        undone = await reaches(events, migration, "undone")
        assert undone["reason"] == "cancelled by the operator"
        assert "matched" not in [step["state"] for step in undone["steps"]]
        await bench.unharmed(traffic)
    await as_before(bench, before)


@contextlib.asynccontextmanager
async def server3_was_never_found(bench: LabBench) -> AsyncIterator[None]:
    """Nor has the database where it was; at the end its cable is in, and it is found."""
    rows = [{"op": "delete", "table": "ServerLocation", "where": [["server", "==", "server3"]]}]
    database = str(bench.lab.directory / "controller.db")
    bench.kill("controller", signal.SIGKILL)
    await bench.run("fabric", "ip", "link", "set", "leaf1-server3", "down")
    await bench.run("sandbox", "ovsdb-tool", "transact", database, json.dumps(["Retinue", *rows]))
    await bench.restart_controller()
    last = (await bench.get("status"))["last_event"]
    try:
        assert (await bench.server("server3"))["state"] == "missing"
        await eventually(lambda: agent_is_there(bench, "server3"))
        yield
    finally:
        await bench.run("fabric", "ip", "link", "set", "leaf1-server3", "up")
    async with bench.events(since=last) as events:
        await events.until("server.detected", lambda e: e["server"] == "server3")


async def agent_is_there(bench: LabBench, server: str) -> bool:
    return bool((await bench.get(f"entities/{server}"))["measured"])


@pytest.mark.long
async def test_past_the_point_of_no_return_a_cancel_says_so(bench: LabBench) -> None:
    async with bench.events() as events:
        migration = await begin(bench)
        await reaches(events, migration, "done")
        with pytest.raises(RejectedError, match="there is no way back"):
            await bench.post(f"migrations/{migration}/cancel")


async def test_a_switch_that_does_not_confirm_stops_the_move_not_the_vm(bench: LabBench) -> None:
    before = await network(bench)
    async with bench.events() as events:
        migration = await held_in(bench, events, "diverted")
        rolled = await reaches(events, migration, "rolling back")
        await go_on(bench)
        assert "have not confirmed in time" in rolled["reason"]
        await reaches(events, migration, "undone")
    await as_before(bench, before)


@pytest.mark.parametrize("state", [long("copying"), long("diverted"), "stopped"])
async def test_the_target_dies(bench: LabBench, state: str) -> None:
    """And with it the queue of its tap, in which the VM's traffic waits: its agent holds that, too."""
    before = await network(bench)
    async with bench.traffic(await bench.address("vm1")) as traffic, bench.events() as events:
        migration = await held_in(bench, events, state)
        await bench.run("sandbox", "kill", "-9", str(qemu_of(bench, "server2")))
        await go_on(bench)
        undone = await reaches(events, migration, "undone")
        figures, record = await traffic.end()
    assert (figures.lost, figures.duplicated) == (0, 0), (figures, undone, lost_spans(record))
    await as_before(bench, before)


@pytest.mark.parametrize(
    ("server", "state"),
    [
        long("server1", "diverted"),
        ("server2", "diverted"),
        long("server1", "copying"),
        long("server2", "copying"),
    ],
)
async def test_an_agent_dies_and_its_vms_do_not(bench: LabBench, server: str, state: str) -> None:
    before = await network(bench)
    async with bench.events() as events:
        migration = await held_in(bench, events, state)
        bench.kill(f"{server}-agent", signal.SIGKILL)
        await go_on(bench)
        await start_agent(bench, server)
        await reaches(events, migration, "undone")
    await as_before(bench, before)


async def test_the_source_dies(bench: LabBench) -> None:
    async with bench.events() as events:
        migration = await held_in(bench, events, "copying")
        await bench.run("sandbox", "kill", "-9", str(qemu_of(bench, "server1")))
        await go_on(bench)
        await events.until("vm.stopped", lambda e: e["vm"]["id"] == "vm1")
        await reaches(events, migration, "undone")

        async def gone() -> bool:
            return await bench.machines("vm1") == []

        await eventually(gone)
        # It can be started again where it is registered, and is by nobody's restart.
        bench.kill("server1-agent", signal.SIGKILL)
        await start_agent(bench, "server1")
        assert (await bench.vm("vm1"))["state"] == "crashed"
        await bench.cli("vm", "start", "vm1")
        await events.until("vm.started", lambda e: e["vm"]["id"] == "vm1")
        await events.until("binding.renewed")


@pytest.mark.parametrize("state", [long("copying"), "diverted"])
async def test_the_controller_dies_and_comes_back(bench: LabBench, state: str) -> None:
    """It finds the migration in its database, and takes it to its end, one or the other."""
    async with bench.events() as events:
        migration = await held_in(bench, events, state)
        bench.kill("controller", signal.SIGKILL)
        await go_on(bench)
    await bench.restart_controller()
    async with bench.events(since=0) as events:
        await eventually(lambda: has_ended(bench, migration))
    location = {"done": "server2", "undone": "server1"}[(await bench.get(f"migrations/{migration}"))["state"]]
    assert await bench.machines("vm1") == [location]
    assert (await bench.vm("vm1"))["server"] == location
    assert [row["switch"] for row in await bench.bindings("vm1")] == [f"edge{location[-1]}"]

    async def reached() -> bool:
        """Switches may go on by flows that they have cached, for a while."""
        return await bench.ping("vm1", "203.0.113.9")

    await eventually(reached)


async def test_an_agent_that_is_started_again_finds_its_vms_running(bench: LabBench) -> None:
    uptime = float(await bench.guest("vm1", "cut -d' ' -f1 /proc/uptime"))
    async with bench.traffic(await bench.address("vm1")) as traffic:
        for number in (signal.SIGKILL, signal.SIGTERM):
            bench.kill("server1-agent", number)
            await start_agent(bench, "server1")
        await bench.unharmed(traffic)
    assert float(await bench.guest("vm1", "cut -d' ' -f1 /proc/uptime")) > uptime
