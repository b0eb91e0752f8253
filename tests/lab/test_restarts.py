"""Switches and controllers that go away and come back, and switches that somebody else changes, with
traffic running through it.
"""

import contextlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from retinue.protocol.errors import ControllerAwayError
from retinue_lab.topology.topology import OPENFLOW_PORT
from support.lab.far_line import far_line
from support.lab.health import calm, strip
from support.lab.migrating import reaches
from support.lab.tools import Events, LabBench, Picks, at, eventually

pytestmark = [pytest.mark.lab, pytest.mark.slow]

VMS = [at("vm1", "server1"), at("vm2", "server2")]
STRANGE = "table=20,priority=999,dl_dst=52:54:00:00:00:77,actions=1"
FABRIC = ("leaf1", "leaf2", "spine1", "spine2")


# ---- switches that go away and come back ----


@contextlib.asynccontextmanager
async def apart(bench: LabBench, events: Events, switch: str) -> AsyncIterator[None]:
    """A switch that is sent elsewhere for its controller: it goes on with what it holds."""
    node, bridge = bench.bridge(switch)
    own = (await bench.run(node, "ovs-vsctl", "get-controller", bridge)).strip()
    nobody = own.replace(f":{OPENFLOW_PORT}", ":9")
    await bench.run(node, "ovs-vsctl", "set-controller", bridge, nobody)
    await events.until("switch.disconnected", of_switch(switch))
    assert (await bench.switch(switch))["connected"] is False
    yield
    await bench.run(node, "ovs-vsctl", "set-controller", bridge, own)


def of_switch(switch: str) -> Picks:
    return lambda e: bool(e["switch"] == switch)


@pytest.mark.parametrize("switch", ["edge1", "leaf1", "spine2"])
async def test_a_switch_that_reconnects_is_sent_nothing_it_has(bench: LabBench, switch: str) -> None:
    """A lost session costs no packet and no flow entry."""
    async with bench.traffic(await bench.address("vm1")) as traffic, bench.events() as events:
        async with apart(bench, events, switch):
            await calm(bench)
        assert await bench.connected(events, switch) == 0
        await bench.unharmed(traffic)


@contextlib.asynccontextmanager
async def older(bench: LabBench, events: Events, switches: Sequence[str]) -> AsyncIterator[None]:
    """These switches have no OpenFlow but 1.3 meanwhile."""

    async def speak(versions: str) -> None:
        for switch in switches:
            async with apart(bench, events, switch):
                node, bridge = bench.bridge(switch)
                await bench.run(node, "ovs-vsctl", "set", "bridge", bridge, f"protocols={versions}")
            await bench.connected(events, switch)

    await speak("OpenFlow13")
    try:
        yield
    finally:
        await speak("OpenFlow14")


async def test_a_vm_migrates_over_switches_without_bundles_and_no_packet_is_lost(bench: LabBench) -> None:
    switches = ("edge1", "edge2", *FABRIC)
    async with bench.traffic(await bench.address("vm1"), pps=1000) as traffic, bench.events() as events:
        async with older(bench, events, switches):
            spoken = {row["id"]: row["openflow"] for row in (await bench.get("switches"))["switches"]}
            assert spoken == {"edge3": "1.4"} | dict.fromkeys(switches, "1.3")
            for target in ("server2", "server1"):
                await bench.migration("vm1", target_server=target)
            audits = json.loads(await bench.cli("switch", "audit", "--json"))["audits"]
            assert [row["missing"] + row["changed"] + row["foreign"] for row in audits] == [0] * len(audits)
        await bench.unharmed(traffic)


@pytest.mark.long
async def test_over_a_far_and_lossy_line_sessions_hold_and_migrations_are_confirmed_or_undone(
    bench: LabBench,
) -> None:
    """100 ms there and back, and one packet in a hundred lost each way: OpenFlow, OVSDB and agents."""
    nodes = ("fabric", "server1", "server2")
    async with bench.traffic(await bench.address("vm1")) as traffic, bench.events() as events:
        async with far_line(bench, nodes, round_trip=0.1, loss=0.01):
            for target in ("server2", "server1"):
                migration = await bench.migration("vm1", target_server=target)
                print(f"far: {migration['steps'][-1]}", file=sys.stderr)
            undone = str((await bench.post("migrations", {"vm": "vm1", "target_server": "server2"}))["id"])
            await bench.post(f"migrations/{undone}/cancel")
            await reaches(events, undone, "undone")
        await bench.unharmed(traffic)
    assert events.of("switch.disconnected") == []
    assert await bench.machines("vm1") == ["server1"]


async def test_only_the_difference_is_sent_to_a_switch_whose_flows_were_changed(bench: LabBench) -> None:
    """Entries that were deleted come back, foreign ones go, the rest is left alone."""
    before = strip(await bench.flows("edge2"))
    address = await bench.address("vm2")
    async with bench.traffic(await bench.address("vm1")) as traffic, bench.events() as events:
        async with apart(bench, events, "edge2"):
            for way in ("src", "dst"):
                await ofctl(bench, "del-flows", "br0", f"ip,nw_{way}={address}")
            await ofctl(bench, "add-flow", "br0", STRANGE)
            missing = len(before - strip(await bench.flows("edge2")))
            assert missing == 2
            assert not await bench.ping("vm2", "10.1.0.2"), "the entries that were deleted did matter"
        assert await bench.connected(events, "edge2") == missing + 1
        assert strip(await bench.flows("edge2")) == before
        assert await bench.ping("vm2", "10.1.0.2")
        await bench.unharmed(traffic)


async def test_an_audit_of_switches_in_order_sends_nothing_and_costs_no_packet(bench: LabBench) -> None:
    """Every switch of the network is read while traffic runs through it."""
    before = (await bench.get("status"))["flow_mods"]
    async with bench.traffic(await bench.address("vm1")) as traffic, bench.flow_changes("edge2") as changes:
        said = json.loads(await bench.cli("switch", "audit", "--json"))
        figures, _ = await traffic.end()
        assert (await bench.get("status"))["flow_mods"] == before
        # What was sent before this entry would have been seen before it.
        await ofctl(bench, "add-flow", "br0", STRANGE)
        await changes.until("event=ADDED", "dl_dst=52:54:00:00:00:77")
        assert len(changes.those("event=")) == len(changes.those("event=INITIAL")) + 1
    assert {row["switch"] for row in said["audits"]} == {switch.id for switch in bench.topology.switches}
    assert all(row["missing"] + row["changed"] + row["foreign"] == 0 for row in said["audits"]), said
    assert figures.lost == 0
    assert (await bench.post("switches/edge2/audit"))["foreign"] == 1
    await foreign_ones_go(bench)


async def foreign_ones_go(bench: LabBench) -> None:
    """Return when the controller takes away what is too much."""
    await ofctl(bench, "add-flow", "br0", STRANGE)
    await bench.post("switches/edge2/audit")

    async def gone() -> bool:
        return not await bench.flows("edge2", "priority=999")

    await eventually(gone)


async def test_an_audit_mends_what_was_changed_behind_the_controllers_back(bench: LabBench) -> None:
    """The switch stays connected all the time; only the difference is sent, and it is told."""
    await foreign_ones_go(bench)
    before = strip(await bench.flows("edge2"))
    address = await bench.address("vm2")
    async with bench.traffic(await bench.address("vm1")) as traffic, bench.events() as events:
        for way in ("src", "dst"):
            await ofctl(bench, "del-flows", "br0", f"ip,nw_{way}={address}")
        missing = len(before - strip(await bench.flows("edge2")))
        group = "dl_dst=01:00:00:00:00:00/01:00:00:00:00:00"
        await ofctl(bench, "--strict", "mod-flows", "br0", f"table=20,priority=110,{group},actions=output:1")
        changed = len(before - strip(await bench.flows("edge2"))) - missing
        await ofctl(bench, "add-flow", "br0", STRANGE)
        assert (missing, changed) == (2, 1)
        assert not await bench.ping("vm2", "10.1.0.2"), "the entries that were deleted did matter"
        found = await bench.post("switches/edge2/audit")
        told = await events.until("switch.repaired")
        assert await bench.ping("vm2", "10.1.0.2")
        figures, _ = await traffic.end()
    what = {"switch": "edge2", "missing": 2, "changed": 1, "foreign": 1}
    assert found == {**what, "entries": found["entries"], "mended": True}
    assert {key: told[key] for key in what} == what
    assert strip(await bench.flows("edge2")) == before
    assert events.of("switch.connected") == []
    assert figures.lost == 0


async def ofctl(bench: LabBench, *argv: str) -> None:
    """Change server2's real switch behind the controller's back."""
    await bench.run("server2", "ovs-ofctl", "-O", "OpenFlow14", *argv)


@pytest.mark.parametrize(("node", "switches"), [("fabric", FABRIC), ("server1", ("edge1",))])
async def test_a_switch_that_crashed_gets_everything_back(
    bench: LabBench, node: str, switches: tuple[str, ...]
) -> None:
    """Killed and started again, empty; all its entries stand again, and traffic flows."""
    before = {switch: strip(await bench.flows(switch)) for switch in switches}
    async with bench.traffic(await bench.address("vm1")) as traffic, bench.events() as events:
        bench.kill(f"{node}-vswitchd")
        for switch in switches:
            await events.until("switch.disconnected", of_switch(switch))
        folder = f"/run/retinue/{node}"
        argv = ["ovs-vswitchd", f"unix:{folder}/db.sock", "-vconsole:off", "-vsyslog:off"]
        bench.lab.spawn(node, [*argv, f"--pidfile={folder}/ovs-vswitchd.pid"], log=f"{node}-vswitchd")
        for switch in switches:
            assert await bench.connected(events, switch) == len(before[switch])

        async def back() -> bool:
            return all([strip(await bench.flows(switch)) == before[switch] for switch in switches])

        await eventually(back)
        assert await bench.ping("vm1", "203.0.113.9")
        assert await bench.ping("vm1", await bench.address("vm2"))
        well = time.time()
        await calm(bench)
        figures, record = await traffic.end()
    assert figures.lost > 0, "the switch was not away at all"
    assert record.lost_after(well) == 0


# ---- the controller ----


async def test_a_controller_that_was_killed_finds_everything_as_it_was(bench: LabBench) -> None:
    """Traffic goes on without it; bindings come back from the database; no flow entry is sent.

    Two hundred numbered requests a second to each VM, from before its end until after its return.
    """
    before = await bench.bindings()
    flows = {switch.id: strip(await bench.flows(switch.id)) for switch in bench.topology.switches}
    servers = await bench.get("servers")
    async with (
        bench.traffic(await bench.address("vm1"), pps=200) as to_first,
        bench.traffic(await bench.address("vm2"), pps=200) as to_second,
    ):
        killed = time.time()
        bench.kill("controller", signal.SIGKILL)
        assert await bench.ping("vm2", "203.0.113.9"), "without a controller what stands goes on"
        sent = await bench.restart_controller()
        back = time.time()
        await calm(bench)
        for traffic in (to_first, to_second):
            assert (await bench.unharmed(traffic)).reordered == 0
            _, record = await traffic.end()
            sent_at = [at / 1e9 for at in record.sent]
            assert sent_at[0] < killed and back < sent_at[-1]
            assert sum(killed < at < back for at in sent_at) > 40
    assert sent == dict.fromkeys(sent, 0)
    assert {switch: strip(await bench.flows(switch)) for switch in flows} == flows
    assert await bench.bindings() == [row | {"lease_end": pytest.approx(row["lease_end"])} for row in before]
    assert await bench.get("servers") == servers
    assert {vm["id"]: vm["state"] for vm in (await bench.get("vms"))["vms"]} == {
        "vm1": "running",
        "vm2": "running",
    }
    migration = await bench.migration("vm2", target_server="server3")
    assert migration["state"] == "done"
    assert await bench.ping("vm2", "203.0.113.9")


WITH_ITS_CLOCK_SET = """
import sys, time
from pathlib import Path
by, wall = Path(sys.argv.pop(1)), time.time
time.time = lambda: wall() + float(by.read_text())
from retinue.cli.main import app
app()
"""
"""A controller on whose machine alone the wall clock was set: by so many seconds as a file says."""


@pytest.mark.long
async def test_a_wall_clock_that_is_set_changes_no_lease_and_no_migration(
    bench: LabBench, tmp_path: Path
) -> None:
    """By a day, forward while the controller is down, and back while it runs and a VM migrates."""
    before, day, by = await bench.bindings(), 86_400, tmp_path / "by"
    by.write_text(str(day))
    files = [str(bench.lab.directory / f"controller.{suffix}") for suffix in ("toml", "db")]
    run = ["controller", "run", "--config", files[0], "--database", files[1]]
    target = {"server2": "server3"}.get((await bench.vm("vm2"))["server"], "server2")
    async with bench.traffic(await bench.address("vm2")) as traffic:
        bench.kill("controller", signal.SIGKILL)
        argv = [sys.executable, "-c", WITH_ITS_CLOCK_SET, str(by), *run]
        bench.lab.spawn("controller", argv, log="controller-set")

        async def is_there() -> bool:
            with contextlib.suppress(ControllerAwayError):
                return all(one["connected"] for one in (await bench.get("switches"))["switches"])
            return False

        try:
            await eventually(is_there)
            await calm(bench)
            # Give or take a lease, which a guest may renew at any time.
            ends = {row["ip"]: pytest.approx(row["lease_end"], rel=0, abs=1000) for row in before}
            assert await bench.bindings() == [row | {"lease_end": ends[row["ip"]]} for row in before]
            by.write_text(str(-day))
            migration = await bench.migration("vm2", target_server=target)
            assert (migration["state"], migration["reason"]) == ("done", "")
            assert {row["ip"]: row["lease_end"] for row in await bench.bindings()} == ends
        finally:
            bench.kill("controller-set", signal.SIGKILL)
            await bench.restart_controller()
        await calm(bench)
        await bench.unharmed(traffic)


async def test_a_controller_takes_nothing_from_a_switch_whose_database_is_late(bench: LabBench) -> None:
    """After a restart the switch is back before its database tells of the VM's port: flows stay."""
    vm = await bench.vm("vm2")
    flows = strip(await bench.flows(vm["switch"]))
    manager = (await bench.run(vm["server"], "ovs-vsctl", "get-manager")).strip()
    async with bench.traffic(await bench.address("vm2")) as traffic:
        await bench.run(vm["server"], "ovs-vsctl", "del-manager")
        bench.kill("controller", signal.SIGKILL)
        sent = await bench.restart_controller()
        async with bench.events() as events:
            await bench.run(vm["server"], "ovs-vsctl", "set-manager", manager)
            await events.until("port.added", lambda e: e["vm"] == "vm2")
        figures, _ = await traffic.end()
    assert sent[vm["switch"]] == 0
    assert figures.lost == 0
    assert strip(await bench.flows(vm["switch"])) == flows


async def test_a_controller_takes_nothing_from_a_switch_whose_neighbour_is_late(bench: LabBench) -> None:
    """After a restart the spines are back before a leaf: their ways to what is on the leaf stay."""
    flows = strip(await bench.flows("spine1"))
    own = (await bench.run("fabric", "ovs-vsctl", "get-controller", "leaf1")).strip()
    async with bench.traffic(await bench.address("vm1")) as traffic:
        nobody = own.replace(f":{OPENFLOW_PORT}", ":9")
        await bench.run("fabric", "ovs-vsctl", "set-controller", "leaf1", nobody)
        bench.kill("controller", signal.SIGKILL)
        bench.lab.start_controller()
        async with bench.events(since=0) as events:
            sent = [await bench.connected(events, spine) for spine in ("spine1", "spine2")]
            await bench.run("fabric", "ovs-vsctl", "set-controller", "leaf1", own)
            sent.append(await bench.connected(events, "leaf1"))
        figures, _ = await traffic.end()
    assert sent == [0, 0, 0]
    assert figures.lost == 0
    assert strip(await bench.flows("spine1")) == flows


@pytest.mark.long
@pytest.mark.parametrize(("source", "target"), [("server2", "server3"), ("server3", "server2")])
async def test_a_controller_killed_while_a_vm_is_copied_costs_no_packet(
    bench: LabBench, source: str, target: str
) -> None:
    """From the router's leaf to the other, and back. (With a standby: test_high_availability.py.)"""
    if (await bench.vm("vm2"))["server"] != source:
        await bench.migration("vm2", target_server=source)
    async with bench.traffic(await bench.address("vm2")) as traffic, bench.events() as events:
        id = (await bench.post("migrations", {"vm": "vm2", "target_server": target}))["id"]
        await events.until("migration.step", step_of(id, "copying"))
        bench.kill("controller", signal.SIGKILL)
        await bench.restart_controller()
        async with bench.events(since=0) as again:
            ended = await again.until("migration.step", step_of(id, "done", "undone"))
            assert again.of("controller.error") == []
        await calm(bench)
        assert await bench.ping("vm2", "203.0.113.9")

        async def confirmed() -> bool:
            return bool((await bench.get("status"))["pending"] == {})

        await eventually(confirmed)
        await bench.unharmed(traffic)
    at = target if ended["migration"]["state"] == "done" else source
    assert (await bench.vm("vm2"))["server"] == at


def step_of(id: str, *states: str) -> Picks:
    return lambda e: bool(e["migration"]["id"] == id and e["migration"]["state"] in states)
