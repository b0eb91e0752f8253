"""What users of other systems have met, tried on ours; docs/pains.md says where each was met.

A controller that stalls in the middle of a switch-over, many migrations of one VM, the largest packets while
a VM is at two places, a guest that starts anew where it has come, and work that has nothing to do with a
migration.
"""

import asyncio
import signal

import pytest

from support.lab.migrating import START, has_ended, reaches
from support.lab.tools import BOOT_PATIENCE, LabBench, at, eventually

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.long, pytest.mark.usefixtures("home")]

VMS = START
TIMES = 30
"""In a row; FRR was stuck after about twenty."""
LARGEST = 1472
"""Bytes of data in an ICMP packet that fills an MTU of 1500."""
STALLED = 12.0
"""Seconds: a time that has to pass, more than what is waited for in most steps."""


async def test_a_controller_that_stalls_while_a_vm_switches_over_costs_no_packet(bench: LabBench) -> None:
    address = await bench.address("vm1")
    async with bench.traffic(address, pps=500) as traffic, bench.events() as events:
        id = (await bench.post("migrations", {"vm": "vm1", "target_server": "server2"}))["id"]
        await reaches(events, id, "diverted")
        bench.kill("controller", signal.SIGSTOP)
        try:
            await asyncio.sleep(STALLED)
        finally:
            bench.kill("controller", signal.SIGCONT)
        await eventually(lambda: has_ended(bench, id))
        await bench.unharmed(traffic)
    assert len(await bench.machines("vm1")) == 1


async def test_one_vm_goes_to_and_fro_thirty_times_and_loses_nothing(bench: LabBench) -> None:
    """Nothing counts its migrations, nor holds what one has left against the next."""
    address = await bench.address("vm1")
    before = {switch.id: len(await bench.flows(switch.id)) for switch in bench.topology.switches}
    for number in range(TIMES // 2):
        async with bench.traffic(address) as traffic:
            for target in ("server2", "server1"):
                await bench.migration("vm1", target_server=target)
            await bench.unharmed(traffic)
        assert await bench.ping("vm2", address), f"after {2 * number + 2}"
    assert {switch.id: len(await bench.flows(switch.id)) for switch in bench.topology.switches} == before


async def test_the_largest_packets_pass_all_the_way_through_a_migration(bench: LabBench) -> None:
    """No header comes to them while the VM is at two places, and nobody has to learn another size."""
    address = await bench.address("vm1")
    largest = ("ping", "-M", "do", "-s", str(LARGEST), "-i", "0.01", "-c", "2000", "-q", address)
    pings = asyncio.create_task(bench.run("client", *largest))
    await bench.migration("vm1", target_server="server2")
    assert not pings.done(), "they were to go on"
    said = await pings
    assert "2000 received, 0% packet loss" in said, said


async def test_a_guest_that_starts_anew_where_it_has_come_has_its_address(bench: LabBench) -> None:
    address = await bench.address("vm1")
    await bench.migration("vm1", target_server="server2")
    booted = (await bench.console("vm1")).count("RETINUE READY")
    await bench.guest("vm1", "(sleep 0.2; reboot -f) >/dev/null 2>&1 &")

    async def has_booted() -> bool:
        return (await bench.console("vm1")).count("RETINUE READY") > booted

    await eventually(has_booted, BOOT_PATIENCE)
    assert await bench.address("vm1") == address
    assert await bench.ping("vm1", "203.0.113.9")
    await bench.migration("vm1", target_server="server3")
    assert await bench.ping("vm1", "203.0.113.9")


async def test_what_has_nothing_to_do_with_a_migration_does_it_no_harm(bench: LabBench) -> None:
    """Elsewhere a port that was deleted took the settings of a migration under way with it."""
    address = await bench.address("vm1")
    async with bench.traffic(address, pps=500) as traffic, bench.events() as events:
        await bench.post("vms", [at("vm8", "server2", "10.1.0.61"), at("vm9", "server1", "10.1.0.62")])
        id = (await bench.post("migrations", {"vm": "vm1", "target_server": "server2"}))["id"]
        await reaches(events, id, "copying")
        await bench.cli("vm", "remove", "vm8")
        await bench.cli("vm", "remove", "vm9")
        await bench.cli("subnet", "add", "green", "--prefix", "10.2.0.0/24", "--gateway", "10.2.0.254")
        await bench.cli("subnet", "remove", "green")
        await eventually(lambda: has_ended(bench, id))
        await bench.unharmed(traffic)
    assert (await bench.get(f"migrations/{id}"))["state"] == "done"
