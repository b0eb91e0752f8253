"""The network's part in the channel of a migration, where the agents speak to each other by our switches: a
meter for what goes between the two servers, there for as long as the VM is on its way, and gone with it."""

import contextlib
import re
from collections.abc import AsyncIterator

import pytest

from support.lab.migrating import begin, reaches, start_agent
from support.lab.other_config import controller_with
from support.lab.tools import LabBench, at, eventually

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.long, pytest.mark.usefixtures("home")]

VMS = [at("vm1", "server1"), at("vm2", "server3")]
MBPS, MEGABYTES = 20, 20
"""What the channel lets through, and memory of the guest's that cannot be made smaller."""
LEAST = 0.8 * 8 * MEGABYTES / MBPS
"""Seconds for that memory; what one burst lets through at once is a fifth of a second's."""


@contextlib.asynccontextmanager
async def agents_by_the_fabric(bench: LabBench, *servers: str) -> AsyncIterator[None]:
    """These servers' agents take VMs in at the server's own address, which is behind its edge switch."""
    files = {one: bench.lab.directory / "agents" / one / "agent.toml" for one in servers}
    before = {one: file.read_text() for one, file in files.items()}

    async def again(server: str, config: str) -> None:
        files[server].write_text(config)
        bench.kill(f"{server}-agent")
        await start_agent(bench, server)

    try:
        for server, config in before.items():
            own = next(one.address for one in bench.topology.server if one.id == server)
            await again(server, re.sub(r'^listen = "[0-9.]+:', f'listen = "{own}:', config, flags=re.M))
        yield
    finally:
        for server, config in before.items():
            await again(server, config)


async def metered(bench: LabBench, edge: str) -> list[int]:
    """Bytes that have passed each entry of a channel at an edge."""
    found = await bench.flows(edge, "table=0", "priority=107,", "tcp,", "meter:3")
    return [int(count) for line in found for count in re.findall(r"n_bytes=(\d+)", line)]


async def test_a_migration_has_a_meter_while_it_is_under_way_and_no_longer(bench: LabBench) -> None:
    fill = f"head -c {MEGABYTES}000000 /dev/urandom >/tmp/filled"
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(
            controller_with(bench, lambda config: f"channel_mbps = {MBPS}\n{config}")
        )
        await stack.enter_async_context(agents_by_the_fabric(bench, "server1", "server2"))
        await bench.guest("vm1", fill)
        assert not await metered(bench, "edge1")
        events = await stack.enter_async_context(bench.events())
        traffic = await stack.enter_async_context(bench.traffic(await bench.address("vm1")))
        id = await begin(bench, "vm1", "server2")
        await reaches(events, id, "copying")
        passed: list[int] = []

        async def half_has_passed() -> bool:
            passed[:] = await metered(bench, "edge1")
            return bool(passed) and passed[0] > MEGABYTES * 500_000

        await eventually(half_has_passed)
        assert len(passed) == 1 and len(await metered(bench, "edge2")) == 1
        assert not await metered(bench, "edge3")
        done = await reaches(events, id, "done")
        assert not await metered(bench, "edge1") and not await metered(bench, "edge2")
        when = {step["state"]: step["at"] for step in done["steps"]}
        took = when["switching"] - when["copying"]
        print(f"{MEGABYTES} MB and more by {MBPS} Mbit/s: {took:.2f} s, at least {LEAST:.2f}")
        assert took > LEAST
        print(await bench.unharmed(traffic))
        await bench.migration("vm1", target_server="server1")
        assert not await metered(bench, "edge1")
