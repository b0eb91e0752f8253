"""Kea with UDP sockets in the VMs' own subnet, where it hears no broadcast: it is relayed to, and may know a
VM by its id."""

from collections.abc import Iterator
from copy import deepcopy

import msgspec
import pytest

from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology_file import load
from support.lab.frames import BOOTP, IP, dhcp_type
from support.lab.leases import renewed_by_the_guest
from support.lab.start import boot, lab_of, running
from support.lab.tools import Json, LabBench, at

pytestmark = pytest.mark.lab

SERVER, GATEWAY = "10.1.0.2", "10.1.0.254"
KEPT = "10.1.0.77"
"""Outside the pool that all others have."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    topology = load()
    assert topology.dhcp is not None
    dhcp = msgspec.structs.replace(topology.dhcp, program="kea-udp")
    network = msgspec.structs.replace(topology, dhcp=dhcp)
    with lab_of(tmp_path_factory.mktemp("labs"), network, "by-vm") as handle:
        boot(handle, [at("vm1", "server1")])
        yield handle


async def test_a_server_of_the_vms_own_subnet_that_hears_no_broadcast_serves_them(bench: LabBench) -> None:
    async with bench.capture("dhcp", "eth0") as at_server:
        await renewed_by_the_guest(bench, "vm1")
        answer = await at_server.until(lambda f: dhcp_type(f.ether) == "ack")
    asked = next(f.ether for f in at_server.frames if dhcp_type(f.ether) == "request")
    assert (asked[IP].dst, asked[BOOTP].giaddr, answer.ether[IP].dst) == (SERVER, GATEWAY, GATEWAY)
    assert await bench.ping("vm1", SERVER), "they are neighbours"


async def test_a_lease_is_keyed_by_the_vms_id(bench: LabBench, kea: Json) -> None:
    """The address is kept for `kept`, whatever MAC it has; its migration renews it by the same key."""
    wanted = deepcopy(kea)
    (subnet,) = wanted["Dhcp4"]["subnet4"]
    (pool,) = subnet["pools"]
    wanted["Dhcp4"]["client-classes"] = [
        {"name": "kept", "test": "relay4[2].hex == 'kept'"},
        {"name": "others", "test": "not member('kept')"},
    ]
    subnet["pools"] = [
        {**pool, "client-class": "others"},
        {"pool": f"{KEPT} - {KEPT}", "client-class": "kept"},
    ]
    await bench.kea("config-set", wanted)
    for mac in ("52:54:00:00:07:01", "52:54:00:00:07:02"):
        async with bench.events() as events:
            await bench.post("vms", {"id": "kept", "mac": mac, "server": "server1"})
            await running(bench, events, "kept")
        (row,) = await bench.bindings("kept")
        assert (row["mac"], row["ip"]) == (mac, KEPT)
        async with bench.traffic(KEPT) as echoes, bench.events() as events:
            await bench.migration("kept", target_server="server2")
            acked = await events.until("renewal.acked", lambda e: e["vm"] == "kept")
            await bench.unharmed(echoes)
        assert acked["renewal"]["ip"] == KEPT
        await bench.request("DELETE", "vms/kept")
    await renewed_by_the_guest(bench, "vm1")
