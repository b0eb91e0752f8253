"""Two controllers and the database that they share: the active one is killed, stopped, left without it.

With traffic and migrations going on. A cluster of databases has a module of its own.
"""

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from retinue.protocol.errors import ControllerAwayError, NotServedError, RejectedError
from retinue.security.authority import Authority
from retinue.security.identity import PeerRole
from retinue_lab.network import credentials
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology import topology_file
from support.lab.controllers import Controllers, controllers_of
from support.lab.health import calm, strip
from support.lab.start import boot, lab_of
from support.lab.tools import Json, LabBench, at, eventually
from support.lab.watch import Lines

pytestmark = [pytest.mark.lab, pytest.mark.slow]

VMS = [at("vm1", "server1"), at("vm2", "server2", "10.1.0.50")]
DATABASE = "database1"
TRIALS = 20
MARK = "dl_dst=52:54:00:00:00:77"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    network = topology_file.with_controllers(topology_file.load(), 2, 1)
    with lab_of(tmp_path_factory.mktemp("labs"), network, name="two") as handle:
        boot(handle, VMS)
        yield handle


@pytest.fixture
async def both(bench: LabBench) -> AsyncIterator[Controllers]:
    """At the end both run again, and one is a standby."""
    async with controllers_of(bench) as found:
        yield found
        running = {daemon.name for daemon in bench.lab.daemons() if daemon.running}
        for name in bench.topology.controller_nodes:
            if name not in running:
                bench.lab.start_controller(name)
        await found.all_connected()


async def roles(both: Controllers) -> tuple[str, str]:
    """The active one, and the standby once it stands."""
    active = await both.active()
    standby = next(name for name in both.clients if name != active)
    await both.standing(standby)
    return active, standby


async def migrate(bench: LabBench) -> str:
    """Begin to migrate vm2 to the server where it is not; return once its memory is being copied."""
    target = {"server2": "server3"}.get((await bench.vm("vm2"))["server"], "server2")
    async with bench.events() as events:
        id = str((await bench.post("migrations", {"vm": "vm2", "target_server": target}))["id"])
        await events.until("migration.step", lambda e: e["migration"]["id"] == id and is_copied(e))
    return id


def is_copied(event: Json) -> bool:
    return bool(event["migration"]["state"] == "copying")


async def test_a_standby_takes_over_from_one_that_is_killed_while_a_vm_is_copied(
    bench: LabBench, both: Controllers
) -> None:
    """No packet is lost, the migration ends well, and the standby was told apart before."""
    active, standby = await roles(both)
    said = json.loads(await bench.cli("controller", "status", "--json"))
    assert {row["name"]: row["role"] for row in said["controllers"]} == {active: "active", standby: "standby"}
    with pytest.raises(NotServedError, match=f"the active one is {active} at https://"):
        await both.clients[standby].post("/v1/vms", at("vm9", "server1"))
    async with bench.traffic(await bench.address("vm2")) as traffic:
        id = await migrate(bench)
        killed = time.time()
        bench.kill(active)
        assert await both.active(but=active) == standby
        print(f"served again {time.time() - killed:.2f} s after SIGKILL")
        ended = await both.ended(id)
        assert ended["state"] == "done", ended["reason"]
        await both.all_connected()
        await calm(bench)
        await bench.unharmed(traffic)
    assert (await bench.vm("vm2"))["server"] == ended["target"]


async def test_who_was_first_is_known_to_whoever_takes_over(bench: LabBench, both: Controllers) -> None:
    """Two managers, and a controller each: what one said to the first holds against the other's word."""
    active, standby = await roles(both)
    authority = Authority(credentials.folder(bench.lab.directory))
    shown = []
    for who in ("anna", "bert"):
        authority.issue(PeerRole.MANAGER, who, days=1)
        shown.append(credentials.of(bench.lab.directory, PeerRole.MANAGER, who))
    async with both.client(active, shown[0]) as anna, both.client(standby, shown[1]) as bert:
        await anna.post("/v1/vnets", {"id": "shop", "vlan": 42})
        with pytest.raises(NotServedError):
            await bert.post("/v1/vnets", {"id": "shop", "vlan": 43})
        bench.kill(active)
        assert await both.active(but=active) == standby
        with pytest.raises(RejectedError, match="manager anna was first, at 20"):
            await bert.post("/v1/vnets", {"id": "shop", "vlan": 43})
    (vnet,) = (vnet for vnet in (await bench.get("vnets"))["vnets"] if vnet["id"] == "shop")
    assert vnet["vlan"] == 42
    await bench.request("DELETE", "vnets/shop")


@pytest.mark.long
async def test_how_long_it_takes_until_the_first_new_flow_entry(bench: LabBench, both: Controllers) -> None:
    """From SIGKILL until a switch has an entry of a VM that was registered after it; told, not asserted."""
    active, standby = await roles(both)
    before = {name: strip(await bench.flows(name)) for name in ("leaf1", "spine1")}
    async with bench.flow_changes("spine1") as changes:
        seen = len(changes.those("event="))
        killed = time.time()
        bench.kill(active)
        taken = await both.post_as_soon_as_possible("vms", at("vm7", "server1", "10.1.0.57"))
        entered = await changes.until("event=ADDED", "nw_dst=10.1.0.57")
        assert len(changes.those("event=")) > seen
    print(f"REST after {taken - killed:.2f} s, the first new flow entry after {entered - killed:.2f} s")
    await bench.request("DELETE", "vms/vm7")

    async def as_before() -> bool:
        return {name: strip(await bench.flows(name)) for name in before} == before

    await eventually(as_before)
    assert standby == await both.active()


@pytest.mark.long
@pytest.mark.parametrize("restarted", [False, True], ids=["", "with vswitchd restarted in between"])
async def test_nothing_of_one_that_was_overtaken_gets_in(
    bench: LabBench, both: Controllers, restarted: bool
) -> None:
    """Stopped, the other takes over and migrates a VM, and it goes on: with a request in its ear."""
    active, standby = await roles(both)
    zombie = both.clients[active]
    with contextlib.suppress(ControllerAwayError):
        await zombie.get("/v1/status")
    bench.kill(active, signal.SIGSTOP)
    late = asyncio.ensure_future(
        zombie.request("POST", "/v1/vms", at("vm8", "server1", "10.1.0.58"), limit=120)
    )
    assert await both.active(but=active) == standby
    ended = await both.ended(await migrate(bench))
    assert ended["state"] == "done", ended["reason"]
    if restarted:
        await restart_switch(bench, "server1")
    await both.all_connected()
    await calm(bench)
    switches = [switch.id for switch in bench.topology.switches]
    async with contextlib.AsyncExitStack() as stack:
        watched = [await stack.enter_async_context(bench.flow_changes(one)) for one in switches]
        rows = await both.rows(DATABASE)
        bench.kill(active, signal.SIGCONT)
        with pytest.raises(ControllerAwayError):
            await late
        report = await both.standing(active)
        assert report["active"]["name"] == standby
        await calm(bench)
        for switch, changes in zip(switches, watched, strict=True):
            assert await changed(bench, switch, changes) == [], switch
        assert await both.rows(DATABASE) == rows
    assert await both.active() == standby
    assert "vm8" not in {vm["id"] for vm in (await bench.get("vms"))["vms"]}


async def changed(bench: LabBench, switch: str, changes: Lines) -> list[str]:
    """What has changed in a switch since it is watched: all that precedes our own entry is seen before it."""
    node, bridge = bench.bridge(switch)
    ofctl = ("ovs-ofctl", "-O", "OpenFlow14")
    await bench.run(node, *ofctl, "add-flow", bridge, f"table=20,priority=999,{MARK},actions=drop")
    await changes.until("event=ADDED", MARK)
    found = [line for _, line in changes.those("event=") if "INITIAL" not in line and MARK not in line]
    await bench.run(node, *ofctl, "--strict", "del-flows", bridge, f"table=20,priority=999,{MARK}")
    return found


async def restart_switch(bench: LabBench, node: str) -> None:
    """It has forgotten who was its master in which generation."""
    folder = f"/run/retinue/{node}"
    bench.kill(f"{node}-vswitchd")
    argv = ["ovs-vswitchd", f"unix:{folder}/db.sock", "-vconsole:off", "-vsyslog:off"]
    bench.lab.spawn(node, [*argv, f"--pidfile={folder}/ovs-vswitchd.pid"], log=f"{node}-vswitchd")
    async with bench.events(since=0) as events:
        await bench.connected(events, node.replace("server", "edge"))


@pytest.mark.long
async def test_without_the_database_traffic_goes_on_and_the_active_one_stays_it(
    bench: LabBench, both: Controllers
) -> None:
    """Killed, and back once the mandate is over: the standby has not taken over, nothing is sent anew."""
    active, standby = await roles(both)
    before = (await both.reports())[active]["active"]
    async with bench.traffic(await bench.address("vm1")) as traffic:
        bench.kill(DATABASE)

        async def may_not() -> bool:
            with contextlib.suppress(NotServedError):
                await both.clients[active].get("/v1/status")
                return False
            return True

        await eventually(may_not)
        bench.lab.start_database(DATABASE)
        assert await both.active() == active
        await both.standing(standby)
        await calm(bench)
        await bench.unharmed(traffic)
    assert (await both.reports())[active]["active"] == before
    await bench.post("vms", at("vm6", "server1", "10.1.0.56"))
    await bench.request("DELETE", "vms/vm6")


@pytest.mark.long
async def test_the_active_one_is_killed_again_and_again_under_migrations(
    bench: LabBench, both: Controllers
) -> None:
    """In any state of a migration; each ends well, and no packet is lost."""
    times = []
    for trial in range(TRIALS):
        active, standby = await roles(both)
        async with bench.traffic(await bench.address("vm2"), pps=100) as traffic:
            id = await migrate(bench)
            await asyncio.sleep(0.05 * trial)
            killed = time.time()
            bench.kill(active)
            assert await both.active(but=active) == standby
            times.append(time.time() - killed)
            ended = await both.ended(id)
            assert ended["state"] == "done", ended["reason"]
            await both.all_connected()
            await calm(bench)
            await bench.unharmed(traffic)
        bench.lab.start_controller(active)
    times.sort()
    print(f"served again after {times[len(times) // 2]:.2f} s ({times[0]:.2f} to {times[-1]:.2f})")
