"""Path MTU between vnets on real parts: what is too large is answered by the gateway, and TCP goes on.

vm1 is in a network that takes 1,500 bytes, vm2 in a vnet whose MTU becomes 1,400 while it runs: its guest
still believes in 1,500, and tells so as TCP's largest segment, so that only the gateway can tell vm1.
"""

import asyncio
import contextlib
from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6

from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology_file import load
from support.lab.start import boot, lab_of
from support.lab.tools import Doorman, LabBench, at, eventually, mac_of
from support.lab.watch import Frame

pytestmark = [pytest.mark.lab, pytest.mark.patient]

NARROW = 1400
SUBNETS = (("n4", "10.7.0.0/24", "10.7.0.254"), ("n6", "fd00:7::/64", "fd00:7::fe"))
OWN = {4: "10.7.0.5", 6: "fd00:7::5"}
SENDER = {4: "10.1.0.51", 6: "fd00:1::51"}
GATEWAY = {4: "10.1.0.254", 6: "fd00:1::fe"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    with lab_of(tmp_path_factory.mktemp("labs"), load("dual-stack"), "narrow") as handle:
        asyncio.run(lay_out(handle))
        nic = {"mac": mac_of("vm2"), "vnet": "narrow", "addresses": list(OWN.values())}
        boot(
            handle,
            [at("vm1", "server1", *SENDER.values()), {"id": "vm2", "server": "server2", "nics": [nic]}],
        )
        asyncio.run(lower(handle))
        yield handle


async def lay_out(lab: LabHandle) -> None:
    with contextlib.closing(Doorman(lab)) as doorman:
        async with contextlib.aclosing(LabBench(lab, doorman)) as bench:
            await bench.cli("vnet", "add", "narrow")
            for id, prefix, gateway in SUBNETS:
                given = ("--prefix", prefix, "--gateway", gateway, "--vnet", "narrow")
                await bench.cli("subnet", "add", id, *given)


async def lower(lab: LabHandle) -> None:
    with contextlib.closing(Doorman(lab)) as doorman:
        async with contextlib.aclosing(LabBench(lab, doorman)) as bench:
            for vm, to in (("vm1", GATEWAY[6]), ("vm2", "fd00:7::fe")):
                await eventually(lambda vm=vm, to=to: bench.ping(vm, to))  # type: ignore[misc]
            await bench.cli("vnet", "set", "narrow", "--mtu", str(NARROW))


def size_told(frame: Frame, version: int) -> int | None:
    """The size that the gateway says does; None for any other frame."""
    ether = frame.ether
    if version == 6:
        told = ether.haslayer(ICMPv6PacketTooBig) and ether[IPv6].src == GATEWAY[6]
        return int(ether[ICMPv6PacketTooBig].mtu) if told else None
    told = ether.haslayer(ICMP) and (ether[ICMP].type, ether[ICMP].code) == (3, 4)
    return int(ether[ICMP].nexthopmtu) if told and ether[IP].src == GATEWAY[4] else None


def packet_of_tcp(frame: Frame) -> int:
    """Bytes of an IP packet that is TCP's; 0 of any other."""
    return len(frame.data) - 14 if frame.ether.haslayer(TCP) else 0


@pytest.mark.parametrize("version", [4, 6])
async def test_tcp_learns_the_size_from_the_gateway_and_all_arrives(bench: LabBench, version: int) -> None:
    port = 5000 + version
    listens = f"nc -l -p {port} </tmp/silence >/tmp/got; md5sum </tmp/got >/tmp/sum"
    await bench.guest("vm2", "[ -p /tmp/silence ] || mkfifo /tmp/silence")
    await bench.guest("vm2", f"sleep 900 >/tmp/silence & ({listens}) >/dev/null 2>&1 &")
    await bench.guest("vm2", f"until netstat -ltn | grep -q :{port}; do usleep 20000; done")
    places = (("server1", "tap-vm1", "out"), ("server1", "tap-vm1", "in"), ("server2", "tap-vm2", "out"))
    async with bench.captures(*places) as (to_sender, from_sender, to_receiver):
        await bench.guest("vm1", "head -c 1000000 /dev/urandom >/tmp/sent")
        await bench.guest("vm1", f"nc {OWN[version]} {port} </tmp/sent")
        sent = await bench.guest("vm1", "md5sum </tmp/sent")
        got = await bench.guest(
            "vm2", "until [ -s /tmp/sum ]; do usleep 20000; done; cat /tmp/sum; rm /tmp/sum"
        )
        await to_sender.until(lambda frame: size_told(frame, version) == NARROW)
    assert got == sent
    sizes = {packet_of_tcp(frame) for frame in from_sender.frames}
    assert {NARROW, 1500} <= sizes, "it has tried more, and then as much as goes"
    assert max(packet_of_tcp(frame) for frame in to_receiver.frames) == NARROW


async def test_what_may_be_fragmented_arrives_in_parts(bench: LabBench) -> None:
    """As from a sender that knows nothing of path MTU; the answers are as large as they were."""
    await bench.guest(
        "vm1", "echo 1 >/proc/sys/net/ipv4/ip_no_pmtu_disc; echo 1 >/proc/sys/net/ipv4/route/flush"
    )
    async with bench.capture("server2", "tap-vm2", "out") as to_receiver:
        said = await bench.guest("vm1", f"ping -c 5 -W 5 -s 1472 {OWN[4]}")
        assert " 5 packets received" in said
        await to_receiver.until(lambda frame: frame.ether.haslayer(IP) == 1 and frame.ether[IP].frag > 0)
    await bench.guest("vm1", "echo 0 >/proc/sys/net/ipv4/ip_no_pmtu_disc")
    counted = (await bench.get("status"))["counters"]
    assert counted["packets larger than where they go takes, fragmented"] == 5
