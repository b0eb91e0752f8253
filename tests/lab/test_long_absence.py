"""A controller that is away for longer than leases last, and than anything in a migration waits.

Short leases stand for hours: one VM's ends, as nobody can renew it; another has a static address; a third was
being copied when the controller was killed; a fourth ends by itself meanwhile.
"""

import signal
from collections.abc import Iterator

import msgspec
import pytest

from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology_file import load
from support.lab.guest_dhcp import of_vm
from support.lab.migrating import has_ended, reaches
from support.lab.start import boot, lab_of
from support.lab.tools import LabBench, at, eventually

pytestmark = [pytest.mark.lab, pytest.mark.long]

LEASE = 30
"""Seconds."""
LEASED, ENDING = "vm1", "vm4"
STATIC, MOVING = "10.1.0.41", "10.1.0.42"
VMS = [
    at(LEASED, "server1"),
    at("vm2", "server3", STATIC),
    at("vm3", "server2", MOVING),
    at(ENDING, "server1", "10.1.0.43"),
]
OUTSIDE = "203.0.113.9"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    topology = load()
    assert topology.dhcp is not None
    dhcp = msgspec.structs.replace(topology.dhcp, lease_seconds=LEASE)
    network = msgspec.structs.replace(topology, dhcp=dhcp)
    with lab_of(tmp_path_factory.mktemp("labs"), network) as handle:
        boot(handle, VMS)
        yield handle


async def test_what_ends_meanwhile_ends_what_stands_goes_on_and_all_is_well_when_it_is_back(
    bench: LabBench,
) -> None:
    (lease,) = await bench.bindings(LEASED)
    assert lease["kind"] == "dynamic" and await bench.ping(LEASED, OUTSIDE)
    async with bench.traffic(STATIC) as to_static, bench.traffic(MOVING) as to_moving:
        async with bench.events() as events:
            move = (await bench.post("migrations", {"vm": "vm3", "target_server": "server3"}))["id"]
            await reaches(events, move, "copying")
        bench.kill("controller", signal.SIGKILL)
        await bench.guest(ENDING, "(sleep 0.2; poweroff -f) >/dev/null 2>&1 &")

        async def the_lease_has_ended() -> bool:
            return await bench.flows("edge1", lease["ip"]) == []

        await eventually(the_lease_has_ended, timeout=3 * LEASE)
        assert not await bench.ping(LEASED, OUTSIDE), "its switch has ended it by itself"

        async def it_has_ended_there() -> bool:
            return await bench.machines(ENDING) == []

        await eventually(it_has_ended_there)
        await bench.restart_controller()
        async with bench.events(since=0) as events:
            await events.until("binding.added", of_vm(LEASED))
            await eventually(lambda: has_ended(bench, move))
            assert events.of("controller.error") == []
        assert await bench.ping(LEASED, OUTSIDE)
        assert len(await bench.machines("vm3")) == 1
        for traffic in (to_static, to_moving):
            await bench.unharmed(traffic)

    async def is_off() -> bool:
        return str((await bench.vm(ENDING))["state"]) == "off"

    await eventually(is_off)
    assert (await bench.cli("doctor")).strip() == "All is as it should be."
