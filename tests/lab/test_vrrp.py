"""VRRP by multicast, on real parts: in a vnet that floods keepalived needs no list of peers."""

from collections.abc import AsyncIterator, Iterator

import pytest

from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology import SANDBOX
from retinue_lab.topology.topology_file import load
from support.lab import keepalived
from support.lab.start import lab_of
from support.lab.tools import LabBench

pytestmark = [pytest.mark.lab, pytest.mark.no_vms]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    with lab_of(tmp_path_factory.mktemp("labs"), load("vrrp"), "vrrp", agents=False) as handle:
        yield handle


@pytest.fixture
async def routers(bench: LabBench) -> AsyncIterator[None]:
    await keepalived.start(bench, "balanced")
    yield
    await keepalived.stop(bench)


@pytest.mark.usefixtures("routers")
async def test_keepalived_needs_no_list_of_peers(bench: LabBench) -> None:
    """The backup hears the master's multicast, of both families, and takes over when it ends."""
    one, two, _ = (router.client for router in keepalived.ALL)
    async with bench.events(0) as events:
        for ip in keepalived.SHARED:
            await events.until("address.taken", lambda e, ip=ip: (e["ip"], e["vm"]) == (ip, one.name))  # type: ignore[misc]
        async with bench.lines(SANDBOX, "ip", "netns", "exec", keepalived.NEIGHBOUR.client.name,
                               "ping", "-n", "-i", "0.02", keepalived.SHARED[0]) as pings:  # fmt: skip
            await pings.until("bytes from", times=100)
            taken = [(e["ip"], e["vm"]) for e in events.of("address.taken")]
            assert set(taken) == {(ip, one.name) for ip in keepalived.SHARED}, (
                "the backup has heard the master"
            )
            await keepalived.plug(bench, keepalived.MASTER, "down")
            for ip in keepalived.SHARED:
                await events.until("address.taken", lambda e, ip=ip: (e["ip"], e["vm"]) == (ip, two.name))  # type: ignore[misc]
            await pings.until("bytes from", times=len(pings.those("bytes from")) + 50)
