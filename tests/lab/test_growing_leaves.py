"""A leaf with a server that comes and goes while traffic runs, and a router that does, on real switches."""

import asyncio
from collections.abc import Iterator

import msgspec
import pytest
from scapy.layers.inet import ICMP

from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.parts import LeafPart
from retinue_lab.topology.topology import ROUTER
from retinue_lab.topology.topology_file import load
from support.lab import second_router
from support.lab.health import calm
from support.lab.other_config import controller_with
from support.lab.start import boot, lab_of
from support.lab.tools import LabBench, at, eventually

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.long]

LEAF, EDGE, SERVER = LeafPart(id="leaf3", dpid=0x13), "edge3", "server3"
SPINES = ("spine1", "spine2")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    """The default network, but that the third server is at a leaf of its own."""
    network = load(None)
    servers = tuple(
        msgspec.structs.replace(one, leaf=LEAF.id) if one.id == SERVER else one for one in network.server
    )
    network = msgspec.structs.replace(network, leaf=(*network.leaf, LEAF), server=servers)
    with lab_of(tmp_path_factory.mktemp("labs"), network, "leaves") as handle:
        boot(handle, [at("vm1", "server1")])
        yield handle


def without_leaf(config: str) -> str:
    """Neither the leaf stands in the configuration file, nor its links, nor the server there."""
    gone = (f'"{LEAF.id}"', f'"{LEAF.id}:', f'"{EDGE}"')
    return "\n\n".join(one for one in config.split("\n\n") if not any(word in one for word in gone))


async def test_a_leaf_and_its_server_come_and_go_under_traffic_and_nothing_is_lost(bench: LabBench) -> None:
    """A VM goes there and away again, so it is a leaf as any other."""
    part = next(one for one in bench.topology.server if one.id == SERVER)
    async with controller_with(bench, without_leaf):
        assert LEAF.id not in {row["id"] for row in (await bench.get("switches"))["switches"]}
        async with bench.traffic(await bench.address("vm1"), pps=200) as traffic:
            await bench.cli("switch", "add", LEAF.id, "--role", "leaf", "--dpid", hex(LEAF.dpid))
            for spine in SPINES:
                await bench.cli("link", "add", f"{LEAF.id}:{LEAF.id}-{spine}", f"{spine}:{spine}-{LEAF.id}")
            edge = ("--role", "edge", "--dpid", hex(part.dpid), "--uplink", "up0")
            await bench.cli("switch", "add", EDGE, *edge)
            server = {"id": SERVER, "mac": part.mac, "address": str(part.address), "edge": EDGE}
            await bench.post("servers", server)
            await eventually(lambda: all_used(bench, links=3 * len(SPINES)))
            await eventually(lambda: is_there(bench))
            await bench.migration("vm1", target_server=SERVER)
            await calm(bench)
            await bench.migration("vm1", target_server="server2")
            await bench.cli("server", "remove", SERVER)
            await bench.cli("switch", "remove", EDGE)
            for spine in SPINES:
                await bench.cli("link", "remove", f"{LEAF.id}:{LEAF.id}-{spine}")
            await eventually(lambda: all_used(bench, links=2 * len(SPINES)))
            await bench.cli("switch", "remove", LEAF.id)
            await calm(bench)
            print(await bench.unharmed(traffic))
    await eventually(lambda: all_used(bench, links=3 * len(SPINES)))


async def test_a_router_goes_under_traffic_and_comes_again_and_nothing_is_lost(bench: LabBench) -> None:
    """That of the configuration file, by which all goes out; then it takes the other way."""
    outside = str(bench.topology.client.address) if bench.topology.client else ""
    router = next(one for one in (await bench.get("servers"))["servers"] if one["id"] == ROUTER)
    given = {key: router[key] for key in ("id", "mac", "address", "services", "routes", "metric")}
    async with second_router.running(bench, metric=10):
        assert await way_out(bench) == ROUTER
        echoes = asyncio.create_task(bench.guest("vm1", f"ping -q -i 0.05 -c 400 {outside}", check=False))
        await bench.cli("server", "remove", ROUTER)
        assert await way_out(bench) == second_router.NODE
        async with bench.capture("client", "eth1", "in") as by_the_other:
            await by_the_other.until(lambda frame: bool(frame.ether.haslayer(ICMP)), times=20)
        await bench.post("servers", given)
        await eventually(lambda: is_way_out(bench, ROUTER))
        assert not echoes.done(), "it has flowed all the time"
        assert ", 0% packet loss" in await echoes


async def way_out(bench: LabBench) -> str:
    servers = (await bench.get("servers"))["servers"]
    return next(str(one["id"]) for one in servers if "0.0.0.0/0" in one["ways"])


async def is_way_out(bench: LabBench, router: str) -> bool:
    return await way_out(bench) == router


async def all_used(bench: LabBench, links: int) -> bool:
    """So many links, and each is used and well."""
    rows = (await bench.get("links"))["links"]
    return [row["state"] for row in rows] == ["well"] * links


async def is_there(bench: LabBench) -> bool:
    """Found at its leaf, with its switch and its agent."""
    rows = {row["id"]: row for row in (await bench.get("switches"))["switches"]}
    server = await bench.server(SERVER)
    return rows[EDGE]["connected"] and bool(server["detected_at"]) and server["agent"] == "listening"
