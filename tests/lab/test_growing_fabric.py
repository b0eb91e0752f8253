"""Spines that come and go by command while traffic runs, on real switches: no packet is lost by it."""

import re
from collections.abc import Set

import pytest

from support.lab.health import calm
from support.lab.other_config import controller_with
from support.lab.tools import LabBench, at, eventually

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.long]

VMS = [at("vm1", "server1")]
LEAVES = ("leaf1", "leaf2")


def without_spines(config: str) -> str:
    """No spine stands in the configuration file, and no link."""
    tables = config.split("\n\n")
    return "\n\n".join(one for one in tables if 'role = "spine"' not in one and "[[link]]" not in one)


async def test_spines_are_exchanged_under_traffic_and_nothing_is_lost(bench: LabBench) -> None:
    """One is there; a second one comes, and the first one goes; it comes back, and the second one goes."""
    dpids = {switch.id: hex(switch.dpid) for switch in bench.topology.switches if switch.role == "spine"}
    async with controller_with(bench, without_spines):
        await add(bench, "spine1", dpids["spine1"])
        await used(bench, {"spine1"})
        async with bench.traffic(await bench.address("vm1"), pps=200) as traffic:
            for comes, goes in (("spine2", "spine1"), ("spine1", "spine2")):
                await add(bench, comes, dpids[comes])
                await used(bench, {"spine1", "spine2"})
                said = await bench.cli("switch", "remove", goes, fails=True)
                assert f"switch {goes} is in use by link leaf1:leaf1-{goes}" in said
                for leaf in LEAVES:
                    await bench.cli("link", "remove", f"{leaf}:{leaf}-{goes}")
                    await used(bench, {comes})
                await bench.cli("switch", "remove", goes)
                await calm(bench)
            said = await bench.cli("link", "remove", "leaf1:leaf1-spine1", fails=True)
            assert "it is the only one of leaf1, where server" in said
            await bench.unharmed(traffic)
    await eventually(lambda: links_are_well(bench))
    for leaf in LEAVES:
        assert await ways_up(bench, leaf) == {"spine1", "spine2"}


async def test_a_spine_of_the_file_goes_under_traffic_and_stays_away_over_a_restart(bench: LabBench) -> None:
    """Until it is given again."""
    dpids = {switch.id: hex(switch.dpid) for switch in bench.topology.switches}
    async with bench.traffic(await bench.address("vm1"), pps=200) as traffic:
        for leaf in LEAVES:
            await bench.cli("link", "remove", f"{leaf}:{leaf}-spine2")
        await bench.cli("switch", "remove", "spine2")
        await used(bench, {"spine1"})
        assert "switch spine2" in await bench.cli("doctor", fails=None)
        bench.kill("controller")
        bench.lab.start_controller()
        await eventually(lambda: all_are_back(bench, dpids.keys() - {"spine2"}))
        assert {row["upper"].split(":")[0] for row in (await bench.get("links"))["links"]} == {"spine1"}
        assert [await ways_up(bench, leaf) for leaf in LEAVES] == [{"spine1"}, {"spine1"}]
        await add(bench, "spine2", dpids["spine2"])
        await used(bench, {"spine1", "spine2"})
        await bench.unharmed(traffic)
    assert "switch spine2" not in await bench.cli("doctor", fails=None)


async def all_are_back(bench: LabBench, switches: Set[str]) -> bool:
    rows = (await bench.get("switches"))["switches"]
    return {row["id"] for row in rows if row["connected"] and not row["pending"]} == switches


async def links_are_well(bench: LabBench) -> bool:
    return {row["state"] for row in (await bench.get("links"))["links"]} == {"well"}


async def add(bench: LabBench, spine: str, dpid: str) -> None:
    await bench.cli("switch", "add", spine, "--role", "spine", "--dpid", dpid)
    for leaf in LEAVES:
        await bench.cli("link", "add", f"{leaf}:{leaf}-{spine}", f"{spine}:{spine}-{leaf}")


async def ways_up(bench: LabBench, leaf: str) -> set[str]:
    """Spines to which a leaf sends, as its select group has them."""
    said = await bench.run("fabric", "ovs-ofctl", "--names", "-O", "OpenFlow14", "dump-groups", leaf, "1")
    return set(re.findall(rf"actions=output:\"?{leaf}-([\w-]+)", said))


async def used(bench: LabBench, spines: set[str]) -> None:
    async def are_used() -> bool:
        return all([await ways_up(bench, leaf) == spines for leaf in LEAVES])

    await eventually(are_used)
