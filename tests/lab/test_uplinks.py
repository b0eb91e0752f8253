"""Servers with two uplinks, each to another leaf: one fails, loudly or not, and traffic goes by the other.

vm1 is at server1, whose uplinks lead to leaf1 and, if that fails, to leaf2; server2 has them the other way
round, server3 has one, to leaf2. What comes from outside comes by leaf3 and a spine.
"""

import contextlib
import signal
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from retinue_lab.measure.figures import Traffic
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology_file import load
from support.lab.health import calm
from support.lab.start import boot, lab_of
from support.lab.tools import Events, Json, LabBench, at, eventually, long

pytestmark = [pytest.mark.lab]

PPS = 1000
SETTLED = 0.3
"""Seconds after an event in which flow caches follow."""
NOTHING_PASSES = ("rate", "8bit", "burst", "1", "limit", "1")
"""Of the token bucket filter: no frame fits."""
ENDS = {"up": ("server1", "up0"), "down": ("fabric", "leaf1-server1")}
"""By way: where frames leave that go over server1's first uplink."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    with lab_of(tmp_path_factory.mktemp("labs"), load("two-uplinks"), "uplinks") as handle:
        boot(handle, [at("vm1", "server1")])
        yield handle


async def uses(bench: LabBench, server: str) -> str:
    """The leaf port by which a server's traffic goes."""
    return str((await bench.server(server))["at"])


@pytest.fixture(autouse=True)
async def all_well(bench: LabBench) -> None:
    """Each server uses its first uplink, as if none had ever been lost: the hold time is that of a first
    loss."""

    async def well() -> bool:
        states = {row["state"] for row in (await bench.get("links"))["links"]}
        places = [await uses(bench, server) for server in ("server1", "server2")]
        return states == {"well"} and places == ["leaf1:leaf1-server1", "leaf2:leaf2-server2"]

    bench.kill("controller", signal.SIGKILL)
    await bench.restart_controller()
    await eventually(well, timeout=120)


async def used(events: Events, leaf: str, after: Json | None = None) -> Json:
    """Server1 uses the uplink to this leaf."""

    def is_it(event: Json) -> bool:
        return bool(event["server"] == "server1" and event["location"] == f"{leaf}:{leaf}-server1")

    return await events.until("uplink.used", is_it, after=after, timeout=120)


def tell(what: str, figures: Traffic, seconds: float) -> None:
    """For whoever measures: `pytest -s`."""
    lost = f"lost {figures.lost} of {figures.sent}, {figures.lost_requests} of them on the way there"
    print(f"\n{what}: {lost}; longest silence {figures.longest_gap_ms:.0f} ms; found after {seconds:.2f} s")


async def test_a_cable_that_is_pulled_and_plugged_in_again(bench: LabBench) -> None:
    assert {row["lower"] for row in (await bench.get("links"))["links"]} >= {"edge1:up0", "edge1:up1"}
    async with bench.traffic(await bench.address("vm1"), pps=PPS) as traffic, bench.events() as events:
        await calm(bench)
        began = time.time()
        await bench.run("fabric", "ip", "link", "set", "leaf1-server1", "down")
        try:
            there = await used(events, "leaf2")
            await calm(bench)
        finally:
            await bench.run("fabric", "ip", "link", "set", "leaf1-server1", "up")
        await used(events, "leaf1", after=there)
        await calm(bench)
        figures, record = await traffic.end()
    tell("pulled", figures, there["at"] - began)
    assert record.lost_after(there["at"] + SETTLED) == 0, figures
    assert figures.duplicated == 0


@pytest.mark.long
@pytest.mark.parametrize("at_once", [True, False], ids=["at-once", "one-after-the-other"])
@pytest.mark.parametrize("first", ["leaf1", "leaf2"])
async def test_both_cables_are_pulled_and_plugged_in_again(
    bench: LabBench, first: str, at_once: bool
) -> None:
    """Meanwhile nobody reaches the VM; then all do, by whichever is back `first`, and in the end by leaf1."""
    second = "leaf2" if first == "leaf1" else "leaf1"

    async def cables(state: str, *leaves: str) -> None:
        commands = "; ".join(f"ip link set {leaf}-server1 {state}" for leaf in leaves)
        await bench.run("fabric", "sh", "-c", commands)

    async def reached() -> bool:
        return await bench.ping("vm1", "203.0.113.9")

    async def cut_off() -> bool:
        return not await reached()

    async with bench.traffic(await bench.address("vm1"), pps=PPS) as traffic, bench.events() as events:
        await calm(bench)
        last = None
        try:
            if at_once:
                await cables("down", "leaf1", "leaf2")
            else:
                await cables("down", "leaf1")
                last = await used(events, "leaf2")
                await calm(bench)
                await cables("down", "leaf2")
            await eventually(cut_off, timeout=60)
            began = time.time()
            await cables("up", first)
            await eventually(reached, timeout=60)
            back = time.time()
            await calm(bench)
            assert await uses(bench, "server1") == f"{first}:{first}-server1"
        finally:
            await cables("up", first, second)
        if first == "leaf2" or not at_once:
            await used(events, "leaf1", after=last)
        await calm(bench)
        figures, record = await traffic.end()
    tell("both pulled", figures, back - began)
    assert figures.lost, "the traffic did not go over these cables"
    assert record.lost_after(back + SETTLED) == 0, figures
    assert figures.duplicated == 0
    assert await uses(bench, "server1") == "leaf1:leaf1-server1"


@contextlib.asynccontextmanager
async def losing(bench: LabBench, *ways: str) -> AsyncIterator[None]:
    """What goes these ways over server1's first uplink vanishes; it has a carrier all the same."""
    try:
        for way in ways:
            node, port = ENDS[way]
            await bench.run(node, "tc", "qdisc", "add", "dev", port, "root", "tbf", *NOTHING_PASSES)
        yield
    finally:
        for way in ways:
            node, port = ENDS[way]
            await bench.run(node, "tc", "qdisc", "del", "dev", port, "root")


@pytest.mark.parametrize("ways", [long(("up",)), long(("down",)), long(("up", "down"))])
async def test_all_that_goes_one_way_or_both_vanishes(bench: LabBench, ways: tuple[str, ...]) -> None:
    async with bench.traffic(await bench.address("vm1"), pps=PPS) as traffic, bench.events() as events:
        await calm(bench)
        async with losing(bench, *ways):
            began = time.time()
            there = await used(events, "leaf2")
            await calm(bench)
        await used(events, "leaf1", after=there)
        await calm(bench)
        figures, record = await traffic.end()
    tell("+".join(ways), figures, there["at"] - began)
    assert figures.lost, "the traffic did not go over the link"
    assert record.lost_after(there["at"] + SETTLED) == 0, figures
    assert figures.duplicated == 0


@contextlib.asynccontextmanager
async def no_controller(bench: LabBench, leaf: str, *, entries: bool) -> AsyncIterator[None]:
    """The leaf is not connected; and has no `entries` any more."""
    target = (await bench.run("fabric", "ovs-vsctl", "get-controller", leaf)).split()
    nobody = target[0].rpartition(":")[0] + ":1"
    try:
        await bench.run("fabric", "ovs-vsctl", "set-controller", leaf, nobody)
        if not entries:
            # Open vSwitch deletes all entries of a bridge that has no controller any more.
            await bench.run("fabric", "ovs-vsctl", "del-controller", leaf)
        yield
    finally:
        await bench.run("fabric", "ovs-vsctl", "set-controller", leaf, *target)


@pytest.mark.long
async def test_a_leaf_that_forwards_nothing_any_more_and_whose_ports_are_up(bench: LabBench) -> None:
    async with bench.traffic(await bench.address("vm1"), pps=PPS) as traffic, bench.events() as events:
        await calm(bench)
        began = time.time()
        async with no_controller(bench, "leaf1", entries=False):
            there = await used(events, "leaf2")
            await calm(bench)
        await used(events, "leaf1", after=there)
        await calm(bench)
        figures, record = await traffic.end()
    tell("no entries", figures, there["at"] - began)
    assert figures.lost
    assert record.lost_after(there["at"] + SETTLED) == 0, figures
    assert figures.duplicated == 0


@pytest.mark.long
async def test_vms_migrate_while_a_leaf_is_dead(bench: LabBench) -> None:
    """All of its ports are down, and it is not connected. From a server that was at it to one that is at the
    other leaf alone, and back; nothing waits for the dead one. Then it returns, with what it has missed."""
    (ports,) = [switch.ports for switch in bench.topology.switches if switch.id == "leaf1"]
    address = await bench.address("vm1")
    async with bench.traffic(address, pps=PPS) as traffic, bench.events() as events:
        await calm(bench)
        began = time.time()
        try:
            async with no_controller(bench, "leaf1", entries=True):
                for port in ports:
                    await bench.run("fabric", "ip", "link", "set", port, "down")
                there = await used(events, "leaf2")
                died = time.time()
                await events.until("switch.disconnected", lambda e: e["switch"] == "leaf1")
                await calm(bench)
                for target in ("server3", "server2", "server1"):
                    await bench.migration("vm1", target_server=target)
                await bench.migration("vm1", target_server="server2")
                await calm(bench)
        finally:
            for port in ports:
                await bench.run("fabric", "ip", "link", "set", port, "up")
        await used(events, "leaf1", after=there)
        await calm(bench)
        await bench.migration("vm1", target_server="server1")
        await calm(bench)
        figures, record = await traffic.end()
    tell("dead", figures, there["at"] - began)
    assert record.lost_after(died + SETTLED) == 0, figures
    assert (figures.duplicated, figures.reordered) == (0, 0), figures


@pytest.mark.long
async def test_vms_migrate_from_and_to_servers_with_two_uplinks(bench: LabBench) -> None:
    async with bench.traffic(await bench.address("vm1"), pps=PPS) as traffic:
        for target in ("server2", "server3", "server1"):
            await bench.migration("vm1", target_server=target)
        figures = await bench.unharmed(traffic)
    print(f"\nmigrations: {figures}")
    assert figures.reordered == 0
