"""S3.1 on real parts: edges alone are ours; the leaves are two routers of Linux, with host routes by an
adapter.

What a migration loses, doubles or reorders is asked by the same tests as of other networks. But one: while
the VM stands still its source gets no copies, so what its target has got by then is lost with a target that
dies.
"""

import contextlib
from functools import partial

import pytest

from lab.test_anycast_gateway import flowing, pinged
from lab.test_failed_migrations import (
    test_a_move_can_be_cancelled,
    test_an_agent_dies_and_its_vms_do_not,
    test_the_controller_dies_and_comes_back,
    test_the_target_dies,
)
from lab.test_migrations import (
    test_a_move_loses_doubles_and_reorders_nothing,
    test_two_vms_may_change_places_at_once,
)
from support.lab.frames import IP
from support.lab.other_config import controller_with
from support.lab.tools import Json, LabBench, at, mac_of

__all__ = [
    "test_a_move_can_be_cancelled",
    "test_a_move_loses_doubles_and_reorders_nothing",
    "test_an_agent_dies_and_its_vms_do_not",
    "test_the_controller_dies_and_comes_back",
    "test_the_target_dies",
    "test_two_vms_may_change_places_at_once",
]

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.long, pytest.mark.usefixtures("home")]

TOPOLOGY = "tor"
ONE_IP, TWO_IP = "10.1.0.101", "10.1.0.102"
VMS = [at("vm1", "server1", ONE_IP), at("vm2", "server2", TWO_IP)]
GATEWAY = "00:00:de:ad:be:ef"
OURS = ("proto", "220", "metric", "220")


async def route(bench: LabBench, router: str, address: str) -> str:
    """As the router's kernel has it."""
    return (await bench.run(router, "ip", "route", "show", "exact", f"{address}/32", *OURS[:2])).strip()


async def test_a_vm_goes_round_all_servers_under_traffic_from_outside(bench: LabBench) -> None:
    """Within a router, to another one, and back; both have the way, and a frame is for its server's MAC."""
    for target, ways in (
        ("server2", ("via 10.0.0.12 dev tor1-server2", "via 172.16.1.1 dev tor2-tor1")),
        ("server3", ("via 172.16.1.2 dev tor1-tor2", "via 10.0.0.13 dev tor2-server3")),
        ("server1", ("via 10.0.0.11 dev tor1-server1", "via 172.16.1.1 dev tor2-tor1")),
    ):
        async with bench.traffic(ONE_IP, pps=500) as traffic:
            await bench.migration("vm1", target_server=target)
            figures = await bench.unharmed(traffic)
        print(f"to {target}: {figures}")
        assert figures.reordered == 0
        for router, way in zip(("tor1", "tor2"), ways, strict=True):
            assert way in await route(bench, router, ONE_IP)
        assert await bench.ping("vm1", TWO_IP)
        assert await bench.ping("vm2", ONE_IP)


async def stale(bench: LabBench) -> None:
    """vm2 becomes vm1's neighbour, and each keeps the other's own MAC from then on."""
    await bench.migration("vm2", target_server="server1")
    await bench.guest("vm1", f"arp -s {TWO_IP} {mac_of('vm2')}")
    await bench.guest("vm2", f"arp -s {ONE_IP} {mac_of('vm1')}")


async def fresh(bench: LabBench) -> None:
    await bench.guest("vm1", f"arp -d {TWO_IP}")
    await bench.guest("vm2", f"arp -d {ONE_IP}")


@pytest.mark.parametrize("target", ["server2", "server3"])
async def test_flows_go_on_with_stale_caches_by_a_leaf_that_is_not_ours(bench: LabBench, target: str) -> None:
    """US 9,515,930, L74: the MAC of a neighbour that has left is not known at the edge, which writes the
    shared one; the leaf routes, and either way all that flowed meanwhile has come."""
    await stale(bench)
    async with flowing(bench, "vm1", TWO_IP), flowing(bench, "vm2", ONE_IP):
        await bench.migration("vm2", target_server=target)
    async with bench.capture("server1", "up0", "out") as uplink:
        assert await bench.ping("vm1", TWO_IP)
        asked = await uplink.until(lambda f: pinged(f) and f.ether[IP].dst == TWO_IP)
        assert asked.dst == GATEWAY
    assert mac_of("vm2") in await bench.guest("vm1", f"ip neigh show {TWO_IP}"), "it is as stale as before"
    await fresh(bench)
    assert await bench.ping("vm1", TWO_IP)


async def test_with_the_rewrite_off_flows_stop_at_the_leaf(bench: LabBench) -> None:
    """L72: "a Layer 2 lookup miss will also occur at the ToR", where "the packets will [...] be dropped"."""
    await stale(bench)
    async with contextlib.AsyncExitStack() as without:
        async with flowing(bench, "vm1", TWO_IP):
            await without.enter_async_context(
                controller_with(bench, lambda config: "rewrite = false\n" + config)
            )
        await bench.migration("vm2", target_server="server2")
        async with (
            bench.capture("tor1", "tor1-server1", "in") as leaf,
            bench.capture("tor1", "tor1-server2", "out") as onward,
        ):
            assert not await bench.ping("vm1", TWO_IP)
            came = await leaf.until(lambda f: pinged(f) and f.ether[IP].dst == TWO_IP)
            assert came.dst == mac_of("vm2"), "as it was sent: the leaf is no neighbour of vm2"
            # What is for the gateway's MAC goes on, so it is the rewrite alone that is missing.
            await bench.guest("vm1", f"arp -s {TWO_IP} {GATEWAY}; ping -c 1 -W 1 {TWO_IP} || true")
            went = await onward.until(lambda f: pinged(f) and f.ether[IP].dst == TWO_IP)
            assert onward.those(lambda f: pinged(f) and f.ether[IP].dst == TWO_IP)[0] is went
            await bench.guest("vm1", f"arp -s {TWO_IP} {mac_of('vm2')}")
    assert await bench.ping("vm1", TWO_IP), "the same cache, and the rewrite"
    await fresh(bench)


async def test_a_route_that_is_taken_away_is_put_back_and_others_are_left_alone(bench: LabBench) -> None:
    """The routes of others, for the same address too, are theirs."""
    before = await bench.run("tor1", "ip", "route")
    await bench.run("tor1", "ip", "route", "add", "10.1.0.77/32", "via", "172.16.1.2")
    await bench.run("tor1", "ip", "route", "add", f"{TWO_IP}/32", "via", "10.0.0.12", "metric", "900")
    async with bench.events() as events:
        await bench.run("tor1", "ip", "route", "del", f"{TWO_IP}/32", *OURS)
        gone = await events.until("switch.disconnected", lambda e: e["switch"] == "tor1")
        assert "was changed by somebody else" in gone["reason"]
        await events.until("switch.connected", lambda e: e["switch"] == "tor1")
    assert "via 10.0.0.12" in await route(bench, "tor1", TWO_IP)
    there = await bench.run("tor1", "ip", "route")
    for extra in ("10.1.0.77 via 172.16.1.2", f"{TWO_IP} via 10.0.0.12 dev tor1-server2 metric 900"):
        assert extra in there
        await bench.run("tor1", "ip", "route", "del", *extra.split())
    assert await bench.run("tor1", "ip", "route") == before


def is_of(router: str, event: Json) -> bool:
    return bool(event["switch"] == router)


async def test_a_router_whose_adapter_dies_forwards_on_and_is_taken_up_again(bench: LabBench) -> None:
    pids = (await bench.run("sandbox", "pgrep", "-f", "[l]inux_router.py")).split()
    async with bench.traffic(ONE_IP) as traffic, bench.events() as events:
        for pid in pids:
            await bench.run("sandbox", "kill", "-9", pid)
        for router in ("tor1", "tor2"):
            gone = await events.until("switch.disconnected", partial(is_of, router))
            back = await events.until("switch.connected", partial(is_of, router), after=gone)
            assert back["flow_mods"] == 0, "it holds what it should"
        await bench.unharmed(traffic)


async def test_what_a_router_does_not_confirm_is_not_assumed(bench: LabBench) -> None:
    """tor2 has lost its own way to server3: it can have no route there, and the VM runs on where it is."""
    way = ("10.0.0.13/32", "dev", "tor2-server3", "src", "10.0.0.254")
    await bench.run("tor2", "ip", "route", "del", *way)
    try:
        async with bench.traffic(ONE_IP) as traffic, bench.events() as events:
            id = (await bench.post("migrations", {"vm": "vm1", "target_server": "server3"}))["id"]
            ended = await events.until(
                "migration.step",
                lambda e: e["migration"]["id"] == id and e["migration"]["state"] in ("done", "undone"),
            )
            await bench.unharmed(traffic)
        assert ended["migration"]["state"] == "undone"
        log = (bench.lab.directory / "logs" / "controller.log").read_text()
        assert "the router has no way to server 10.0.0.13" in log
    finally:
        await bench.run("tor2", "ip", "route", "add", *way)
    await bench.migration("vm1", target_server="server3")
    assert await bench.ping("vm1", TWO_IP)
