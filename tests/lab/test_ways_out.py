"""A VRF with two ways out, of IPv4 and IPv6, on real parts: one router is lost, and the other takes it over.

Both routers have a VLAN of VRF red, at leaves of their own, and lead outside in the default VRF, too.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import pytest

from retinue_lab.topology.topology import SANDBOX
from support.lab import second_router, vlan_router
from support.lab.programs import popen_in
from support.lab.start import running
from support.lab.tools import LabBench, eventually

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.long]

TOPOLOGY = "dual-stack"
OWN4, OWN6 = "10.1.0.50", "fd00:1::50"
OUTSIDE4, OUTSIDE6 = "203.0.113.9", "2001:db8::9"
"""In VRF red nobody has these: the routers' programs answer for all of outside."""
VLANS = {"router": 100, second_router.NODE: 200}
TAKEN = "ping -q -i 0.05 -c {count} {to}"


@contextlib.asynccontextmanager
async def answering(bench: LabBench, router: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The router answers each ping that comes with its tag."""
    program = (sys.executable, "-I", "-S", vlan_router.__file__, "eth0", str(VLANS[router]))
    there = await popen_in(bench.lab)(SANDBOX, ("ip", "netns", "exec", router, *program))
    assert there.stdout is not None
    assert await there.stdout.readline() == b"listens\n"
    try:
        yield there
    finally:
        if there.returncode is None:
            there.kill()
        await there.wait()


async def answered(program: asyncio.subprocess.Process) -> int:
    """End it; how many pings it has answered."""
    assert program.stdin is not None and program.stdout is not None
    program.stdin.close()
    return int(await program.stdout.readline())


async def test_the_other_router_of_a_vrf_takes_over_both_families(bench: LabBench) -> None:
    await bench.post("vrfs", {"id": "red"})
    await bench.post("vnets", {"id": "reds", "vrf": "red"})
    red = {"vnet": "reds"}
    await bench.post("subnets", red | {"id": "red4", "prefix": "10.1.0.0/24", "gateway": "10.1.0.254"})
    await bench.post("subnets", red | {"id": "red6", "prefix": "fd00:1::/64", "gateway": "fd00:1::fe"})
    nic = red | {"mac": "52:54:00:00:00:50", "addresses": [OWN4, OWN6]}
    async with bench.events() as events:
        await bench.post("vms", {"id": "peer", "server": "server1", "nics": [nic]})
        await running(bench, events, "peer")
    await bench.guest("peer", "until ! ip -6 address show | grep -q tentative; do usleep 50000; done")

    async def both() -> bool:
        return all([await bench.ping("peer", to) for to in (OUTSIDE4, OUTSIDE6)])

    async def lose_nothing(count: int) -> None:
        """Of either family."""
        for to in (OUTSIDE4, OUTSIDE6):
            said = await bench.guest("peer", TAKEN.format(count=count, to=to), check=False)
            assert ", 0% packet loss" in said and "dup" not in said, said

    at = bench.topology.router
    assert at is not None
    # Where there is no fabric its leaf is at the border (`test_ways_out_over_ip`).
    cable = (bench.topology.fabric, "ip", "link", "set", f"{at.leaf}-router")
    assert not await both(), "a VRF has no way out of its own"
    async with (
        second_router.running(bench, metric=10),
        answering(bench, "router") as first,
        answering(bench, second_router.NODE) as second,
        bench.events() as events,
    ):
        for router, own in (("router", "10.1.0.253"), (second_router.NODE, "10.1.0.252")):
            routes = ("--route", "0.0.0.0/0", "--route", "::/0")
            way = ("--router", router, "--vlan", str(VLANS[router]), *routes, "--address", own)
            await bench.cli("vrf", "add-router", "red", *way)
        await eventually(both)
        await lose_nothing(20)
        await bench.run(*cable, "down")
        lost = await events.until("router.lost", lambda e: e["server"] == "router")
        await eventually(both)
        await lose_nothing(20)
        await bench.migration("peer", target_server="server2")
        await lose_nothing(20)
        # It is there again: used after a while, and nothing is lost when it is.
        await bench.run(*cable, "up")
        while not events.of("router.returned"):
            await lose_nothing(20)
        await lose_nothing(20)
        # It goes on forwarding, and says no more that it is there: nothing is lost at all.
        await bench.run("router", "sysctl", "-q", "-w", "net.ipv4.conf.all.arp_ignore=8")
        silent = asyncio.create_task(
            events.until("router.lost", lambda e: e["server"] == "router", after=lost)
        )
        while not silent.done():
            await lose_nothing(20)
        assert (await silent)["reason"] == "it has not answered for 3 s"
        by_second = 4 * 20
        assert await answered(first) >= by_second
        await lose_nothing(20)
        assert await answered(second) >= by_second
