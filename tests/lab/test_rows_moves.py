"""Moves without loss, and moves that come to nothing (rows F1, F2): real VMs, packets counted."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from qemu.qmp import QMPClient

from lab_health import strip
from lab_tools import Bench, Events, Json, RefusedError, at, eventually
from retinue.hypervisor.departure import HELD_BACK

pytestmark = pytest.mark.lab

VMS = [at("vm1", "server1"), at("vm2", "server2")]


@pytest.fixture(autouse=True)
async def home(bench: Bench) -> AsyncIterator[None]:
    """After each test both VMs are where they were."""
    yield
    for vm, server in (("vm1", "server1"), ("vm2", "server2")):
        if (await bench.vm(vm))["server"] != server:
            await bench.move(vm, target_server=server)


async def network(bench: Bench) -> dict[str, Any]:
    """All that a move could leave behind: bindings, and the flows of every switch."""
    rows = [{k: v for k, v in row.items() if k != "lease_end"} for row in await bench.bindings()]
    return {"bindings": rows} | {s.id: strip(await bench.flows(s.id)) for s in bench.topology.switches}


async def reaches(events: Events, move: str, state: str) -> Json:
    step = await events.until("move.step", lambda e: e["move"]["id"] == move and e["move"]["state"] == state)
    return dict(step["move"])


async def begin(bench: Bench, vm: str = "vm1", to: str = "server2") -> str:
    return str((await bench.post("moves", {"vm": vm, "target_server": to}))["id"])


async def start_agent(bench: Bench, server: str) -> None:
    config = bench.lab.directory / "agents" / server / "agent.toml"
    argv = [sys.executable, "-m", "retinue.cli.main", "agent", "run", "--config", str(config)]
    await asyncio.to_thread(bench.lab.spawn, server, argv, log=f"{server}-agent", ready=True)


def qemu_of(bench: Bench, server: str) -> int:
    """The process, in the sandbox's numbers, of the machine last started on a server."""
    notes = (bench.lab.directory / "agents" / server / "vms").glob("*.json")
    return int(json.loads(max(notes, key=lambda path: path.stat().st_mtime_ns).read_bytes())["pid"])


async def held_back(bench: Bench, server: str) -> None:
    """Return when the memory of the VM that leaves a server is there but for what is held back."""
    sockets = (bench.lab.directory / "agents" / server / "vms").glob("*.qmp")
    qmp = QMPClient()
    await qmp.connect(str(max(sockets, key=lambda path: path.stat().st_mtime_ns)))

    async def little_remains() -> bool:
        said: Any = await qmp.execute("query-migrate")
        return bool(0 < said.get("ram", {}).get("remaining", 0) <= HELD_BACK)

    try:
        await eventually(little_remains)
    finally:
        await qmp.disconnect()


# ---- F1 ----


@pytest.mark.parametrize("pps", [200, 1000])
async def test_a_move_loses_doubles_and_reorders_nothing(bench: Bench, pps: int) -> None:
    """F1: from leaf to leaf, within a leaf, and back again at once."""
    async with bench.traffic(await bench.address("vm1"), pps=pps) as traffic:
        for target in ("server2", "server1", "server3"):
            move = await bench.move("vm1", target_server=target)
            assert move["stopped_at"] <= move["resumed_at"]
            assert [s["state"] for s in move["steps"]].index("diverted") > 0
        figures = await bench.unharmed(traffic)
    assert figures.sent > 2 * pps
    assert figures.reordered == 0


@pytest.mark.parametrize(
    "lags", [["server1-vswitchd"], ["fabric-vswitchd"], ["server1-vswitchd", "fabric-vswitchd"]]
)
async def test_flow_caches_that_follow_their_tables_late_lose_nothing(bench: Bench, lags: list[str]) -> None:
    """F1: on a busy switch a confirmed entry may take effect much later."""
    async with bench.traffic(await bench.address("vm1")) as traffic, bench.events() as events:
        async with bench.flow_caches_lag(*lags):
            move = await begin(bench)
            await reaches(events, move, "diverted")
            await asyncio.sleep(0.2)  # That is what is tried: caches so late.
        await reaches(events, move, "done")
        await bench.unharmed(traffic)


async def test_two_vms_may_change_places_at_once(bench: Bench) -> None:
    first, second = await begin(bench, "vm1", "server2"), await begin(bench, "vm2", "server1")
    async with bench.events(since=0) as events:
        await reaches(events, first, "done")
        await reaches(events, second, "done")
    assert await bench.machines("vm1") == ["server2"]
    assert await bench.machines("vm2") == ["server1"]
    assert await bench.ping("vm1", await bench.address("vm2"))


async def test_a_vm_on_its_way_is_not_sent_elsewhere(bench: Bench) -> None:
    async with bench.events() as events:
        move = await begin(bench)
        with pytest.raises(RefusedError, match=f"being moved already: move {move}"):
            await begin(bench, to="server3")
        await reaches(events, move, "done")
    assert await bench.machines("vm1") == ["server2"]


# ---- F2: a move that comes to nothing leaves the network as it was ----


async def held_in(bench: Bench, events: Events, state: str) -> str:
    """A move that has got so far, and no further while the target's switch says nothing."""
    if state == "admitting":
        bench.kill("server2-vswitchd", signal.SIGSTOP)
        move = await begin(bench)
        # Its port cannot come to be while its switch stands still.
        await reaches(events, move, "matched")
        return move
    move = await begin(bench)
    await reaches(events, move, "copying")
    bench.kill("server2-vswitchd", signal.SIGSTOP)
    await reaches(events, move, state)
    return move


def go_on(bench: Bench) -> None:
    bench.kill("server2-vswitchd", signal.SIGCONT)


@pytest.mark.parametrize("state", ["admitting", "copying", "diverted"])
async def test_a_move_can_be_cancelled(bench: Bench, state: str) -> None:
    before = await network(bench)
    async with bench.traffic(await bench.address("vm1")) as traffic, bench.events() as events:
        move = await held_in(bench, events, state)
        try:
            await bench.post(f"moves/{move}/cancel")
        finally:
            go_on(bench)
        undone = await reaches(events, move, "undone")
        assert undone["reason"] == "cancelled by the operator"
        figures, _ = await traffic.end()
    await as_before(bench, before)
    # What went to the target between the diversion and its undoing is gone with the target's queue.
    assert figures.lost == 0 or "diverted" in [step["state"] for step in undone["steps"]], figures


async def as_before(bench: Bench, before: dict[str, Any]) -> None:
    async def same() -> bool:
        return await network(bench) == before and await bench.machines("vm1") == ["server1"]

    await eventually(same)
    assert await bench.ping("vm1", "203.0.113.9")
    # And it can be moved afterwards, without loss.
    async with bench.traffic(await bench.address("vm1")) as traffic:
        await bench.move("vm1", target_server="server2")
        await bench.unharmed(traffic)


async def test_past_the_point_of_no_return_a_cancel_says_so(bench: Bench) -> None:
    async with bench.events() as events:
        move = await begin(bench)
        await reaches(events, move, "done")
        with pytest.raises(RefusedError, match="there is no way back"):
            await bench.post(f"moves/{move}/cancel")


async def test_a_switch_that_does_not_confirm_stops_the_move_not_the_vm(bench: Bench) -> None:
    before = await network(bench)
    async with bench.events() as events:
        move = await held_in(bench, events, "diverted")
        rolled = await reaches(events, move, "rolling back")
        go_on(bench)
        assert "have not confirmed in time" in rolled["reason"]
        await reaches(events, move, "undone")
    await as_before(bench, before)


@pytest.mark.parametrize("state", ["copying", "diverted"])
async def test_the_target_dies(bench: Bench, state: str) -> None:
    before = await network(bench)
    async with bench.events() as events:
        move = await held_in(bench, events, state)
        await bench.run("sandbox", "kill", "-9", str(qemu_of(bench, "server2")))
        go_on(bench)
        await reaches(events, move, "undone")
    await as_before(bench, before)


async def test_what_comes_while_the_vm_stands_still_is_kept_for_the_source(bench: Bench) -> None:
    """Its target is lost while nobody runs the VM: it runs on at the source, and finds what it was sent."""
    before, pps, still = await network(bench), 500, 0.5
    async with bench.traffic(await bench.address("vm1"), pps=pps) as traffic, bench.events() as events:
        move = await begin(bench)
        await reaches(events, move, "copying")
        bench.kill("controller", signal.SIGSTOP)  # Nobody diverts, so the VM is not stopped ...
        await held_back(bench, "server1")
        target = str(qemu_of(bench, "server2"))
        await bench.run("sandbox", "kill", "-STOP", target)  # ... till the target takes nothing in.
        bench.kill("controller", signal.SIGCONT)
        await events.until("move.step", lambda e: e["move"]["id"] == move and e["move"]["stopped_at"])
        await asyncio.sleep(still)  # That is what is tried: a VM that stands still for so long.
        await bench.run("sandbox", "kill", "-9", target)
        await reaches(events, move, "undone")
        figures, _ = await traffic.end()
    assert figures.lost < still * pps / 5, figures

    async def counted() -> bool:
        told = (await bench.get(f"moves/{move}"))["figures"]
        return bool(abs(told.get("lost_about", pps) - figures.lost) < still * pps / 5)

    await eventually(counted)
    assert figures.duplicated == 0
    await as_before(bench, before)


@pytest.mark.parametrize("state", ["copying", "diverted"])
@pytest.mark.parametrize("server", ["server1", "server2"])
async def test_an_agent_dies_and_its_vms_do_not(bench: Bench, server: str, state: str) -> None:
    before = await network(bench)
    async with bench.events() as events:
        move = await held_in(bench, events, state)
        bench.kill(f"{server}-agent", signal.SIGKILL)
        go_on(bench)
        await start_agent(bench, server)
        await reaches(events, move, "undone")
    await as_before(bench, before)


async def test_the_source_dies(bench: Bench) -> None:
    async with bench.events() as events:
        move = await held_in(bench, events, "copying")
        await bench.run("sandbox", "kill", "-9", str(qemu_of(bench, "server1")))
        go_on(bench)
        await events.until("vm.stopped", lambda e: e["vm"]["id"] == "vm1")
        await reaches(events, move, "undone")

        async def gone() -> bool:
            return await bench.machines("vm1") == []

        await eventually(gone)
        # It can be started again where it is booked.
        bench.kill("server1-agent", signal.SIGKILL)
        await start_agent(bench, "server1")
        await events.until("vm.started", lambda e: e["vm"]["id"] == "vm1")
        await events.until("binding.renewed")


@pytest.mark.parametrize("state", ["copying", "diverted"])
async def test_the_controller_dies_and_comes_back(bench: Bench, state: str) -> None:
    """F2, F6: it finds the move in its database, and takes it to its end, one or the other."""
    async with bench.events() as events:
        move = await held_in(bench, events, state)
        bench.kill("controller", signal.SIGKILL)
        go_on(bench)
    await bench.restart_controller()
    async with bench.events(since=0) as events:

        async def ended() -> bool:
            return (await bench.get(f"moves/{move}"))["state"] in ("done", "undone")

        await eventually(ended)
    place = {"done": "server2", "undone": "server1"}[(await bench.get(f"moves/{move}"))["state"]]
    assert await bench.machines("vm1") == [place]
    assert (await bench.vm("vm1"))["server"] == place
    assert [row["switch"] for row in await bench.bindings("vm1")] == [f"edge{place[-1]}"]
    assert await bench.ping("vm1", "203.0.113.9")


async def test_an_agent_that_is_started_again_finds_its_vms_running(bench: Bench) -> None:
    uptime = float(await bench.guest("vm1", "cut -d' ' -f1 /proc/uptime"))
    async with bench.traffic(await bench.address("vm1")) as traffic:
        for number in (signal.SIGKILL, signal.SIGTERM):
            bench.kill("server1-agent", number)
            await start_agent(bench, "server1")
        await bench.unharmed(traffic)
    assert float(await bench.guest("vm1", "cut -d' ' -f1 /proc/uptime")) > uptime
