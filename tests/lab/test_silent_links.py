"""Links between switches that lose frames while their ports stay up are found, left out, and used again."""

import contextlib
import signal
import time
from collections.abc import AsyncIterator

import pytest

from retinue_lab.measure.figures import Traffic
from support.lab.health import calm
from support.lab.tools import LabBench, at, eventually

pytestmark = [pytest.mark.lab, pytest.mark.long]

VMS = [at("vm1", "server1")]
PPS = 1000
NOTHING_PASSES = ("rate", "8bit", "burst", "1", "limit", "1")
"""Of the token bucket filter: no frame fits."""


def ends(spine: str) -> dict[str, str]:
    """By way: the port by which frames leave that go over the link between leaf1 and a spine."""
    return {"up": f"leaf1-{spine}", "down": f"{spine}-leaf1"}


@contextlib.asynccontextmanager
async def losing(
    bench: LabBench, *ports: str, limits: tuple[str, ...] = NOTHING_PASSES
) -> AsyncIterator[None]:
    """What these ports send vanishes, or all that is beyond the limits; they have a carrier all the same."""
    try:
        for port in ports:
            await bench.run("fabric", "tc", "qdisc", "add", "dev", port, "root", "tbf", *limits)
        yield
    finally:
        for port in ports:
            await bench.run("fabric", "tc", "qdisc", "del", "dev", port, "root")


async def sent(bench: LabBench, port: str, unit: str = "packets") -> int:
    return int(await bench.run("fabric", "cat", f"/sys/class/net/{port}/statistics/tx_{unit}"))


async def busy_spine(bench: LabBench, way: str) -> tuple[str, float]:
    """The spine by which the traffic goes this way, and how many bits a second go there."""
    before = {spine: await sent(bench, ends(spine)[way], "bytes") for spine in ("spine1", "spine2")}
    began = time.monotonic()
    await calm(bench)
    rates = {spine: await sent(bench, ends(spine)[way], "bytes") - before[spine] for spine in before}
    spine = max(rates, key=lambda one: rates[one])
    return spine, rates[spine] * 8 / (time.monotonic() - began)


def tell(what: str, figures: Traffic, seconds: float, more: str) -> None:
    """For whoever measures: `pytest -s`."""
    lost = f"lost {figures.lost} of {figures.sent}, longest silence {figures.longest_gap_ms:.0f} ms"
    print(f"\n{what}: {lost}; found after {seconds:.2f} s; {more}")


async def states(bench: LabBench) -> set[str]:
    return {row["state"] for row in (await bench.get("links"))["links"]}


@pytest.fixture(autouse=True)
async def as_if_never_lost(bench: LabBench) -> None:
    """The hold time is that of a first loss."""
    bench.kill("controller", signal.SIGKILL)
    await bench.restart_controller()
    await eventually(lambda: all_well(bench))


@pytest.mark.parametrize("ways", [("up",), ("down",), ("up", "down")], ids=["up", "down", "both"])
async def test_all_that_goes_one_way_or_both_vanishes(bench: LabBench, ways: tuple[str, ...]) -> None:
    """Found within about a second of loss; then nothing is lost, and nothing when it is used again."""
    async with bench.traffic(await bench.address("vm1"), pps=PPS) as traffic, bench.events() as events:
        spine, _ = await busy_spine(bench, ways[0])
        async with losing(bench, *(ends(spine)[way] for way in ways)):
            began = time.time()
            lost = await events.until("link.lost")
            assert (lost["lower"], lost["upper"]) == (f"leaf1:leaf1-{spine}", f"{spine}:{spine}-leaf1")
            assert "comes in at" in lost["reason"]
            await calm(bench)
            assert "lost" in await states(bench)
            assert "traffic goes by others" in await bench.cli("doctor", fails=None)
        back = time.time()
        returned = await events.until("link.returned", after=lost)
        await calm(bench)
        figures, record = await traffic.end()
    assert await all_well(bench)
    found = lost["at"] + 0.3
    tell("+".join(ways), figures, lost["at"] - began, f"used again after {returned['at'] - back:.1f} s")
    assert figures.lost, "the traffic did not go over the link"
    assert record.lost_after(found) == 0, figures
    assert figures.duplicated == 0


async def test_a_share_of_what_goes_one_way_vanishes(bench: LabBench) -> None:
    async with bench.traffic(await bench.address("vm1"), pps=PPS) as traffic, bench.events() as events:
        spine, rate = await busy_spine(bench, "up")
        two_thirds = ("rate", f"{int(rate * 2 / 3)}bit", "burst", "2000", "limit", "2000")
        async with losing(bench, ends(spine)["up"], limits=two_thirds):
            began = time.time()
            lost = await events.until("link.lost")
            await calm(bench)
        await events.until("link.returned", after=lost)
        await calm(bench)
        figures, record = await traffic.end()
    tell("a third", figures, lost["at"] - began, lost["reason"])
    assert figures.lost
    assert record.lost_after(lost["at"] + 0.3) == 0, figures


async def all_well(bench: LabBench) -> bool:
    return await states(bench) == {"well"}


async def test_a_spine_is_used_without_a_controller_and_not_without_its_entries(bench: LabBench) -> None:
    """Its ports stay up all the time. What leaves send it sends back, or does not."""
    async with bench.traffic(await bench.address("vm1"), pps=PPS) as traffic, bench.events() as events:
        spine, _ = await busy_spine(bench, "up")
        target = (await bench.run("fabric", "ovs-vsctl", "get-controller", spine)).split()
        nobody = target[0].rpartition(":")[0] + ":1"
        await bench.run("fabric", "ovs-vsctl", "set-controller", spine, nobody)
        try:
            await events.until("switch.disconnected", lambda e: e["switch"] == spine)
            await calm(bench)
            assert await all_well(bench)
            began = time.time()
            # Open vSwitch deletes all entries of a bridge that has no controller any more.
            await bench.run("fabric", "ovs-vsctl", "del-controller", spine)
            lost = await events.until("link.lost", lambda e: e["upper"].startswith(spine))
            await events.until("link.lost", lambda e: e["upper"].startswith(spine), after=lost)
            well = time.time()
            await calm(bench)
        finally:
            await bench.run("fabric", "ovs-vsctl", "set-controller", spine, *target)
        returned = await events.until("link.returned")
        await events.until("link.returned", after=returned)
        await calm(bench)
        figures, record = await traffic.end()
    tell("no entries", figures, well - began, lost["reason"])
    assert figures.lost
    assert record.lost_after(began) == record.lost_after(0.0), "before that nothing was lost"
    assert record.lost_after(well + 0.3) == 0, figures
