"""Broadcast and multicast inside a vnet, on real parts: to each member once, to nobody else."""

import asyncio
import re
from collections.abc import Iterator

import pytest

from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology_file import load
from support.lab.frames import packet
from support.lab.start import boot, lab_of
from support.lab.tools import Json, LabBench, eventually

pytestmark = [pytest.mark.lab, pytest.mark.alone]

VNET, GROUP, GROUP_MAC = "balanced", "224.0.0.1", "01:00:5e:00:00:01"
MEMBERS: list[Json] = [
    {
        "id": f"node{number}",
        "server": f"server{number}",
        "nics": [{"mac": f"52:54:00:00:04:0{number}", "vnet": VNET, "addresses": [f"10.1.0.1{number}"]}],
    }
    for number in (1, 2)
]
APART: Json = {"id": "apart", "server": "server2", "mac": "52:54:00:00:04:09", "addresses": ["10.1.0.19"]}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    with lab_of(tmp_path_factory.mktemp("labs"), load("vrrp"), "vrrp") as handle:
        boot(handle, [*MEMBERS, APART])
        yield handle


@pytest.fixture
async def answering(bench: LabBench) -> None:
    """The other one answers pings to all; who sends them would hear itself."""
    for vm in ("node2",):
        await bench.guest(vm, "echo 0 > /proc/sys/net/ipv4/icmp_echo_ignore_broadcasts")


def counts(said: str) -> tuple[int, int, int]:
    """Sent, answered, and answered once more, by a ping's last words."""
    found = re.search(r"(\d+) packets transmitted, (\d+) packets received,(?: (\d+) duplicates,)?", said)
    assert found is not None, said
    return int(found[1]), int(found[2]), int(found[3] or 0)


@pytest.mark.usefixtures("answering")
async def test_what_is_sent_to_all_comes_to_each_member_once_and_to_nobody_else(bench: LabBench) -> None:
    """By multicast and both kinds of broadcast, from one server to another and, after a migration, on one.

    The VM that is in no vnet has an address of the same subnet, on the same server, and hears nothing.
    """
    for to in (GROUP, "255.255.255.255", "10.1.0.255"):
        async with bench.capture("server2", "tap-apart", "out") as heard:
            assert counts(await bench.guest("node1", f"ping -q -c 20 -i 0.02 -W 2 {to}")) == (20, 20, 0)
            assert not [frame for frame in heard.frames if frame.ether.dst.startswith(("01:00:5e", "ff:"))]
    said = await bench.guest("apart", f"ping -q -c 5 -i 0.02 -W 1 {GROUP}", check=False)
    assert counts(said) == (5, 0, 0), "who is in no vnet reaches nobody"

    pinged = asyncio.create_task(bench.guest("node1", f"ping -q -c 600 -i 0.02 -W 3 {GROUP}"))
    for target in ("server3", "server1"):
        await bench.migration("node2", target_server=target)
    sent, answered, twice = counts(await pinged)
    assert (sent, answered) == (600, 600), "none is lost on the way, or while it moves"
    assert twice <= 4, "at a diversion a copy may come twice"
    assert counts(await bench.guest("node1", f"ping -q -c 20 -i 0.02 -W 2 {GROUP}")) == (20, 20, 0)


@pytest.mark.usefixtures("answering")
async def test_who_sends_too_much_to_all_is_held_back_and_it_is_counted(bench: LabBench) -> None:
    async def flooded() -> Json:
        [shown] = (v["flooded"] for v in (await bench.get("vnets"))["vnets"] if v["id"] == VNET)
        return dict(shown)

    before, [nic] = await flooded(), MEMBERS[0]["nics"]
    # Faster than its rate allows, however busy the machine is: pings come as they are given time.
    await bench.send("node1", packet(nic["mac"], GROUP_MAC, nic["addresses"][0], GROUP), times=2000)

    async def told() -> bool:
        return bool((await flooded())["dropped"] > before["dropped"])

    await eventually(told)
    assert (await flooded())["frames"] > before["frames"]
    counters = (await bench.get("status"))["counters"]
    assert counters["frames not flooded: a NIC sends too many"] > 0
    assert "controlled" in await bench.cli("vnet", "list")
