"""Two controllers and three members of a database: the leader is killed, then another, and both come back."""

import contextlib
import time
from collections.abc import Iterator

import pytest

from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology import topology_file
from support.lab.controllers import controllers_of
from support.lab.health import calm
from support.lab.start import boot, lab_of
from support.lab.tools import LabBench, at, eventually

pytestmark = [pytest.mark.lab, pytest.mark.long]

VMS = [at("vm1", "server1", "10.1.0.51")]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    network = topology_file.with_controllers(topology_file.load(), 2, 3)
    with lab_of(tmp_path_factory.mktemp("labs"), network, name="three") as handle:
        boot(handle, VMS)
        yield handle


async def leader(bench: LabBench) -> str:
    """The member that leads, once there is one."""
    found: list[str] = []

    async def there_is() -> bool:
        for node in bench.topology.database_nodes:
            control = bench.lab.directory / "databases" / node / "control.sock"
            with contextlib.suppress(AssertionError):
                said = await bench.run(node, "ovs-appctl", "-t", str(control), "cluster/status", "Retinue")
                if "Role: leader" in said:
                    found.append(node)
        return bool(found)

    await eventually(there_is)
    return found[-1]


async def test_a_member_that_is_killed_leader_or_not_costs_no_packet_and_no_change(bench: LabBench) -> None:
    """What is registered while a member is away is in the database when it is back."""
    async with controllers_of(bench) as both:
        for turn in range(2):
            first = await leader(bench)
            victim = first if turn == 0 else next(n for n in bench.topology.database_nodes if n != first)
            async with bench.traffic(await bench.address("vm1")) as traffic:
                killed = time.time()
                bench.kill(victim)
                vm = f"vm{7 + turn}"
                at_last = await both.post_as_soon_as_possible("vms", at(vm, "server2", f"10.1.0.6{turn}"))
                now = await leader(bench)
                assert now != victim

                async def is_in(name: str = vm, member: str = now) -> bool:
                    return name in await both.rows(member)

                await eventually(is_in)
                print(f"{victim} killed: registered after {at_last - killed:.2f} s, led by {now}")
                bench.lab.start_database(victim)
                await both.all_connected()
                await calm(bench)
                await bench.unharmed(traffic)
            reports = await both.reports()
            assert sorted(report["role"] for report in reports.values()) == ["active", "standby"]
