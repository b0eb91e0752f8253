"""A network for jumbo frames, on real parts: 9000 bytes from guest to guest, and 1500 to the outside.

Its DHCP server is Kea with UDP sockets, which hears no broadcast: in another subnet, relayed to.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address

import msgspec
import pytest

from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology_file import load
from support.lab.frames import BOOTP, IP, dhcp_type
from support.lab.leases import renewed_by_the_guest
from support.lab.start import boot, lab_of
from support.lab.tools import LabBench, at
from support.lab.watch import Frame

pytestmark = pytest.mark.lab

MTU = 9000
LARGEST = MTU - 28
"""Bytes of an echo's data that fill a packet."""
CLIENT = "203.0.113.9"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    topology = load()
    assert topology.dhcp is not None
    dhcp = msgspec.structs.replace(topology.dhcp, program="kea-udp", address=IPv4Address("10.0.0.2"))
    network = msgspec.structs.replace(topology, mtu=MTU, dhcp=dhcp)
    with lab_of(tmp_path_factory.mktemp("labs"), network, "jumbo") as handle:
        boot(handle, [at("vm1", "server1"), at("vm2", "server2")])
        yield handle


def of_length(frame: Frame, length: int) -> bool:
    return bool(frame.ether.haslayer(IP)) and frame.ether[IP].len == length


def whole(frame: Frame) -> bool:
    return of_length(frame, MTU)


async def echoed(bench: LabBench, to: str, size: int = LARGEST, times: int = 1) -> int:
    """How many of the echoes come back to vm1."""
    said = await bench.guest("vm1", f"ping -c {times} -W 2 -s {size} {to}", check=False)
    return int(said.split(" packets received")[0].rsplit(" ", 1)[-1])


async def test_a_whole_jumbo_frame_reaches_another_guest_also_after_a_migration(bench: LabBench) -> None:
    other = await bench.address("vm2")
    assert (await bench.vm("vm1"))["mtu"] == MTU
    assert "mtu 9000" in await bench.guest("vm1", "ip link show dev eth0"), "virtio has told the guest"
    async with bench.capture("server1", "up0", "out") as uplink:
        assert await echoed(bench, other) == 1
        await uplink.until(whole)
    async with bench.events() as events:
        await bench.migration("vm1", target_server="server3")
        await events.until("renewal.acked", lambda e: bool(e["vm"] == "vm1"))
    async with bench.capture("server3", "up0", "out") as uplink:
        assert await echoed(bench, other) == 1
        await uplink.until(whole)


async def test_a_guest_sends_nothing_that_the_network_does_not_take(bench: LabBench) -> None:
    """Its driver holds to the network's size; what its programs send beyond it, its own kernel cuts."""
    refused = await bench.guest("vm1", "ip link set dev eth0 mtu 9001 2>&1", check=False)
    assert "Invalid argument" in refused
    assert await echoed(bench, await bench.address("vm2"), LARGEST + 1) == 1


async def test_what_is_too_large_for_the_outside_is_answered(bench: LabBench) -> None:
    """The router says how much goes on from it, and the guest sends no more: all but the first come back."""
    server = (await bench.vm("vm1"))["server"]
    async with bench.capture(server, "up0", "out") as uplink:
        assert await echoed(bench, CLIENT, times=4) >= 3
        await uplink.until(lambda f: of_length(f, 1500) and f.ether[IP].dst == CLIENT)


async def test_a_dhcp_server_that_hears_no_broadcast_is_heard_where_it_is_relayed_to(bench: LabBench) -> None:
    """Both guests have their leases from it; its answers come by its kernel, to the gateway."""
    async with bench.capture("dhcp", "eth0") as at_server:
        await renewed_by_the_guest(bench, "vm1")
        answer = await at_server.until(lambda f: dhcp_type(f.ether) == "ack")
    asked = next(f.ether for f in at_server.frames if dhcp_type(f.ether) == "request")
    assert (asked[IP].dst, asked[BOOTP].giaddr) == ("10.0.0.2", "10.1.0.254")
    assert answer.ether[IP].dst == "10.1.0.254"
