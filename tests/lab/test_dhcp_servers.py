"""DHCP servers of others: a lease from each, renewed by the guest and, after a migration, on its behalf.

Those that answer by their kernel address an ACK to the MAC that ARP gave them, the gateway's. Kea with UDP
sockets is in test_jumbo_frames.
"""

from collections.abc import Iterator
from typing import cast

import msgspec
import pytest

from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology_file import load
from support.lab.leases import renewed_by_the_guest
from support.lab.start import boot, lab_of
from support.lab.tools import LabBench, at, long

pytestmark = pytest.mark.lab

SECONDS = 120
"""Of a lease: the least that dnsmasq grants. No test waits for its half."""


@pytest.fixture(scope="module", params=["dnsmasq", long("isc-dhcpd")])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    topology = load()
    assert topology.dhcp is not None
    dhcp = msgspec.structs.replace(topology.dhcp, program=request.param, lease_seconds=SECONDS)
    network = msgspec.structs.replace(topology, dhcp=dhcp)
    with lab_of(tmp_path_factory.mktemp("labs"), network, cast(str, request.param)) as handle:
        boot(handle, [at("vm1", "server1")])
        yield handle


async def test_the_guest_hears_the_answer_to_its_renewal(bench: LabBench) -> None:
    await renewed_by_the_guest(bench, "vm1")
    assert await bench.ping("vm1", "10.1.0.254")


async def test_a_migration_takes_the_lease_along(bench: LabBench) -> None:
    (before,) = await bench.bindings("vm1")
    async with bench.events() as events, bench.traffic(before["ip"]) as echoes:
        await bench.migration("vm1", target_server="server2")
        acked = await events.until("renewal.acked", lambda e: e["vm"] == "vm1")
        await bench.unharmed(echoes)
    (after,) = await bench.bindings("vm1")
    assert (after["ip"], after["switch"], after["confirmed"]) == (before["ip"], "edge2", True)
    assert after["lease_end"] == acked["renewal"]["lease_end"] >= before["lease_end"]
    await renewed_by_the_guest(bench, "vm1")
