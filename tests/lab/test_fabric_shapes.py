"""A migration under traffic in other fabrics than leaf and spine: nothing is lost, doubled or reordered."""

from collections.abc import Iterator

import msgspec
import pytest

from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology_file import load
from support.lab.start import boot, lab_of
from support.lab.tools import LabBench, at

pytestmark = [pytest.mark.lab, pytest.mark.long]


BY_MAC = "-by-mac"
"""After a topology's name: its spines and cores know servers' MACs alone (S3.4)."""


@pytest.fixture(scope="module", params=["three-tiers", "one-switch", f"three-tiers{BY_MAC}"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    name: str = request.param
    network = load(name.removesuffix(BY_MAC))
    if name.endswith(BY_MAC):
        network = msgspec.structs.replace(network, spines="mac")
    with lab_of(tmp_path_factory.mktemp("labs"), network, name) as handle:
        boot(handle, [at("vm1", "server1"), at("vm2", "server2")])
        yield handle


async def test_a_vm_migrates_there_and_back_under_traffic(bench: LabBench) -> None:
    """From one pod to the other, by the cores; or from one port of the switch to another."""
    address, other = await bench.address("vm1"), await bench.address("vm2")
    assert await bench.ping("vm2", address)
    above = [switch.id for switch in bench.topology.switches if switch.role in ("core", "spine")]
    by_mac = bench.topology.spines == "mac"
    routing = ["leaf1", "leaf2"] if by_mac else [one for one in above if one.startswith("core")]
    for target in ("server2", "server1"):
        async with bench.traffic(address) as traffic:
            await bench.migration("vm1", target_server=target)
            figures = await bench.unharmed(traffic)
        print(f"{bench.lab.name}, to {target}: {figures}")
        assert figures.reordered == 0
        mac = (await bench.server(target))["mac"]
        for switch in routing:
            (route,) = (
                one for one in await bench.flows(switch, f"nw_dst={address} ") if "in_port" not in one
            )
            assert mac in route
        for switch in above if by_mac else ():
            assert not await bench.flows(switch, "nw_dst="), "no spine or core knows an address"
        assert await bench.ping("vm1", other), "it is reached from where it is"


async def test_every_link_between_switches_is_used_by_what_goes_over_it(bench: LabBench) -> None:
    """In three tiers what goes from pod to pod goes by a core, and once."""
    cores = [switch.id for switch in bench.topology.switches if switch.role == "core"]
    before = [await crossed(bench, core) for core in cores]
    assert await bench.ping("vm1", await bench.address("vm2"))
    after = [await crossed(bench, core) for core in cores]
    assert sum(after) - sum(before) >= 2 * bool(cores), "an echo and its answer"


async def crossed(bench: LabBench, core: str) -> int:
    """Packets that a core has sent to servers, those among them that its flow cache has."""
    node, _ = bench.bridge(core)
    await bench.run(node, "ovs-appctl", "revalidator/wait")
    sent = await bench.flows(core, "table=40")
    return sum(int(flow.split("n_packets=")[1].split(",")[0]) for flow in sent)
