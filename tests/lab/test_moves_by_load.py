"""Migrations that nobody asked for, on real parts: by the load of servers, by pressure, by where a client is.

Each reason is measured, goes over its threshold and is kept with the migration. What VMs are promised, and
what goes over an uplink, is each server's own; processors and their pressure are those of the machine that
all of the laboratory's servers are.
"""

import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.lab.migrating import start_agent
from support.lab.other_config import controller_with
from support.lab.tools import Events, Json, LabBench, at, eventually

pytestmark = [pytest.mark.lab, pytest.mark.long, pytest.mark.usefixtures("home")]

VMS = [at("vm1", "server1"), at("vm2", "server1"), at("vm3", "server3")]
SERVERS = ("server1", "server2", "server3")
ROOM_MIB = 1024
"""What the operator has VMs take of each server: a VM's 128 MiB are an eighth of it."""
NO_THRESHOLD_TO_SPARE = 0.1
"""Per cent."""

_SENDS = """
import socket, sys, time
wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print("sends", flush=True)
while True:
    for _ in range(12):
        wire.sendto(bytes(1400), (sys.argv[1], 9))
    time.sleep(0.005)
"""
_COMPUTES = "echo computes; while :; do :; done"
AT_ONCE = 4


@pytest.fixture(autouse=True)
async def sizes(bench: LabBench) -> None:
    """What a server has for VMs is said by the operator, and what is in use is reported by all agents."""
    profile = {"memory_mib": ROOM_MIB, "cpus": 4}
    await bench.post("entities", [{"name": one, "kind": "server", "profile": profile} for one in SERVERS])
    await eventually(lambda: all_have_reported(bench))


async def all_have_reported(bench: LabBench) -> bool:
    rows = [(await bench.get(f"entities/{server}"))["measured"] for server in SERVERS]
    return all(row is not None for row in rows) and len(rows[0]["vms"]) == 2


def placement(**keys: int) -> str:
    return "\n[placement]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())


async def migrates(bench: LabBench, events: Events) -> tuple[Json, Json]:
    """The next migration, when it is done, and what is kept of why."""
    ended = await events.until("migration.step", lambda e: e["migration"]["state"] in ("done", "undone"))
    migration = ended["migration"]
    assert migration["state"] == "done", migration["reason"]
    explained = json.loads(await bench.cli("placement", "explain", migration["id"], "--json"))
    assert explained["same"], "made once more, the decision is the same"
    return migration, explained


async def test_a_full_server_gives_a_vm_to_an_empty_one(bench: LabBench) -> None:
    """The domain spreads its VMs unasked; no packet to either is lost, and it is kept why."""
    add = placement(spread_percent=20, spread_seconds=0, rest_seconds=0)
    addresses = [await bench.address(vm) for vm in ("vm1", "vm2")]
    async with (
        controller_with(bench, lambda config: config + add),
        bench.events() as events,
        bench.traffic(addresses[0]) as first,
        bench.traffic(addresses[1]) as second,
    ):
        migration, kept = await migrates(bench, events)
        for traffic in (first, second):
            await bench.unharmed(traffic)
    assert (migration["source"], migration["target"]) == ("server1", "server2")
    wish = kept["snapshot"]["wish"]
    assert (wish["reason"], wish["measured"], wish["threshold"]) == ("utilisation", 2500, 2000)
    assert migration["placement"]["reason"] == "utilisation"
    assert await bench.machines(migration["vm"]) == ["server2"]


async def test_a_vm_follows_its_client(bench: LabBench) -> None:
    """vm1's client is vm3, in another rack's server behind the same leaf; a server of its own is nearer."""
    client = await bench.address("vm3")
    await bench.post("entities", {"name": "vm1", "kind": "vm", "profile": {"clients": [client]}})
    add = placement(follow_switches=1, follow_seconds=0, rest_seconds=0, margin=1)
    async with controller_with(bench, lambda config: config + add), bench.events() as events:
        async with bench.traffic(await bench.address("vm1")) as traffic:
            migration, kept = await migrates(bench, events)
            await bench.unharmed(traffic)
        await bench.request("DELETE", "entities/vm1")
    assert (migration["vm"], migration["target"]) == ("vm1", "server3")
    wish = kept["snapshot"]["wish"]
    assert (wish["reason"], wish["threshold"]) == ("clients", 100)
    assert wish["measured"] >= wish["threshold"]
    assert kept["decision"]["decided_by"] == "distance"
    assert await bench.ping("vm1", client)


async def test_a_vm_goes_where_more_bandwidth_is_left(bench: LabBench) -> None:
    """server1's uplink is in use, by the server's own traffic; its agent measures it and asks."""
    only = {f"weight_{what}": 0 for what in ("memory", "cpu", "distance", "image")}
    add = placement(margin=0, rest_seconds=0, **only)
    busy = ("server1", sys.executable, "-I", "-S", "-c", _SENDS, str(dhcp_server(bench)))
    async with (
        controller_with(bench, lambda config: config + add),
        agents_with(bench, *SERVERS, uplink='"up0"'),
        bench.events() as events,
        bench.lines(*busy) as sends,
    ):
        await sends.until("sends")
        async with agents_with(bench, "server1", uplink='"up0"', bandwidth=NO_THRESHOLD_TO_SPARE, seconds=1):
            migration, kept = await migrates(bench, events)
    assert migration["source"] == "server1"
    wish = kept["snapshot"]["wish"]
    assert (wish["reason"], wish["threshold"]) == ("bandwidth", 100 * NO_THRESHOLD_TO_SPARE)
    assert wish["measured"] >= wish["threshold"]
    used = {one["server"]: one["bandwidth_used_mbps"] for one in kept["snapshot"]["servers"]}
    assert used["server1"] > used[migration["target"]]
    assert kept["by"] == "server1"
    assert kept["decision"]["gain"] > 0


async def test_a_vm_goes_where_less_waits_for_a_processor(bench: LabBench) -> None:
    """The kernel says that something waits; server1's agent asks, and its smallest VM goes where less is
    promised."""
    if not await has_pressure(bench):
        pytest.skip("this kernel tells no pressure (PSI)")
    add = placement(margin=1, rest_seconds=0)
    async with (
        controller_with(bench, lambda config: config + add),
        bench.events() as events,
        contextlib.AsyncExitStack() as busy,
    ):
        for _ in range(AT_ONCE):
            computes = await busy.enter_async_context(bench.lines("server1", "sh", "-c", _COMPUTES))
            await computes.until("computes")
        async with agents_with(bench, "server1", cpu_pressure=NO_THRESHOLD_TO_SPARE, seconds=1):
            migration, kept = await migrates(bench, events)
    assert migration["source"] == "server1"
    wish = kept["snapshot"]["wish"]
    assert (wish["reason"], wish["threshold"]) == ("computing", 100 * NO_THRESHOLD_TO_SPARE)
    assert wish["measured"] >= wish["threshold"]
    assert kept["by"] == "server1"
    assert kept["decision"]["gain"] >= 100, "it must be worth it"


async def has_pressure(bench: LabBench) -> bool:
    return "some" in await bench.run("server1", "sh", "-c", "cat /proc/pressure/cpu || true")


def dhcp_server(bench: LabBench) -> str:
    assert bench.topology.dhcp is not None
    return str(bench.topology.dhcp.address)


@contextlib.asynccontextmanager
async def agents_with(bench: LabBench, *servers: str, **mobility: str | float) -> AsyncIterator[None]:
    """These servers' agents run with another table `mobility`, inside the context; their VMs run on."""
    before = {server: agent_file(bench, server).read_text() for server in servers}
    table = "\n[mobility]\n" + "".join(f"{key} = {value}\n" for key, value in mobility.items())
    try:
        for server in servers:
            await again(bench, server, before[server].partition("\n[mobility]")[0] + table)
        yield
    finally:
        for server in servers:
            await again(bench, server, before[server])


async def again(bench: LabBench, server: str, config: str) -> None:
    agent_file(bench, server).write_text(config)
    bench.kill(f"{server}-agent")
    await start_agent(bench, server)


def agent_file(bench: LabBench, server: str) -> Path:
    return bench.lab.directory / "agents" / server / "agent.toml"
