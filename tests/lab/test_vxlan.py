"""S3.3 on real parts: servers joined by a Linux router that is not ours, and VXLAN between their leaves."""

import sys
from ipaddress import IPv4Interface
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from lab.test_failed_migrations import (
    test_a_move_can_be_cancelled,
    test_a_switch_that_does_not_confirm_stops_the_move_not_the_vm,
    test_an_agent_dies_and_its_vms_do_not,
    test_the_controller_dies_and_comes_back,
    test_the_target_dies,
)
from lab.test_migrations import (
    test_a_move_loses_doubles_and_reorders_nothing,
    test_two_vms_may_change_places_at_once,
    test_what_comes_while_the_vm_stands_still_is_kept_for_the_source,
)
from retinue_lab.topology.topology import TRANSIT
from support.lab.frames import arp, carries
from support.lab.migrating import START
from support.lab.tools import LabBench, eventually, mac_of
from support.lab.watch import Frame

__all__ = [
    "test_a_move_can_be_cancelled",
    "test_a_move_loses_doubles_and_reorders_nothing",
    "test_a_switch_that_does_not_confirm_stops_the_move_not_the_vm",
    "test_an_agent_dies_and_its_vms_do_not",
    "test_the_controller_dies_and_comes_back",
    "test_the_target_dies",
    "test_two_vms_may_change_places_at_once",
    "test_what_comes_while_the_vm_stands_still_is_kept_for_the_source",
]
"""The tests of migrations, and of those that fail, that look at no link of a fabric."""

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.long, pytest.mark.usefixtures("home")]

TOPOLOGY = "vxlan"
VMS = START
ECHOES = (0, 8)
"""ICMP's: replies and requests."""
PPS, VNI, FORGED = 500, 4096, 20
"""Packets a second; the VNI of the default VRF; forged packets."""
SEND = """
import socket, sys
own, to, data, times = sys.argv[1:]
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
out.bind((own, 0))
for _ in range(int(times)):
    out.sendto(bytes.fromhex(data), (to, 4789))
"""


async def test_a_vm_migrates_there_and_back_under_traffic(bench: LabBench) -> None:
    """From the client, by the border's leaf and its tunnels: each request is answered once, in order."""
    address, other = await bench.address("vm1"), await bench.address("vm2")
    assert await bench.ping("vm2", address)
    for target, leaf in (("server2", "leaf2"), ("server3", "leaf3"), ("server1", "leaf1")):
        async with bench.traffic(address, pps=PPS) as traffic:
            await bench.migration("vm1", target_server=target)
            figures = await bench.unharmed(traffic, in_order=True)
        print(f"to {target}: {figures}")
        (route,) = await bench.flows("leaf4", "table=35", f"nw_dst={address} ")
        assert f"set_field:{endpoint(bench, leaf).ip}->tun_dst" in route
        assert await bench.ping("vm1", other), "it is reached from where it is"
        assert await bench.ping("vm2", address)


async def test_a_vm_goes_to_the_server_of_its_neighbour_and_away_again(bench: LabBench) -> None:
    """What its neighbour knows of it, a MAC of its own or the gateway's, leads to it in either place."""
    address = await bench.address("vm2")
    async with bench.traffic(address, pps=PPS) as traffic:
        await bench.migration("vm2", target_server="server1")
        assert await bench.ping("vm1", address)
        await bench.migration("vm2", target_server="server2")
        await bench.unharmed(traffic)
    assert await bench.ping("vm1", address)


async def test_a_forged_packet_from_an_address_that_is_no_leafs_reaches_nobody(bench: LabBench) -> None:
    """The same from a leaf's address reaches vm2: what keeps the other out is where it is from."""
    vm = await bench.vm("vm2")
    server, address = await bench.server(vm["server"]), await bench.address("vm2")
    to = endpoint(bench, "leaf2")
    assert vm["server"] == "server2"

    def forged(text: str) -> list[str]:
        """What sends so many packets with this text to vm2 through the leaf's tunnel, but for who it is."""
        inner = Ether(src=bench.topology.gateway_mac, dst=server["mac"])
        inner /= IP(src="203.0.113.9", dst=address) / UDP(sport=9999, dport=9) / text.encode()
        data = bytes(VXLAN(vni=VNI, flags=8) / inner).hex()
        return [str(to.ip), data, str(FORGED)]

    async def dropped() -> int:
        """Packets that were dropped as a stranger's."""
        (entry,) = await bench.flows("leaf2", "table=0", "priority=90,")
        return int(entry.split("n_packets=")[1].split(",")[0])

    async def all_dropped() -> bool:
        return await dropped() >= before + FORGED

    before, send = await dropped(), (sys.executable, "-I", "-S", "-c", SEND)
    async with bench.capture("server2", "tap-vm2", "out") as tap:
        await bench.run(TRANSIT, *send, str(to.network[1]), *forged("stranger"))
        await eventually(all_dropped)
        await bench.run("border", *send, str(endpoint(bench, "leaf4").ip), *forged("known"))
        await tap.until(lambda f: carries(f.ether, "known"), times=FORGED)
        assert tap.those(lambda f: carries(f.ether, "stranger")) == []


async def test_vms_are_offered_what_the_tunnels_leave_and_it_passes(bench: LabBench) -> None:
    """1,450 bytes, by virtio and DHCP's option 26; a packet of that size goes to another server and back."""
    assert int(await bench.guest("vm1", "cat /sys/class/net/eth0/mtu")) == 1450
    largest = 1450 - 20 - 8
    assert "1 packets received" in await bench.guest(
        "vm1", f"ping -c 1 -W 5 -s {largest} {await bench.address('vm2')}"
    )


async def test_nothing_crosses_but_routed_packets_from_leaf_to_leaf(bench: LabBench) -> None:
    """What tests of a fabric see at its links, at the wires of the network that is not ours: whatever a VM
    asks and whatever it sends to everybody, only packets cross, each with the gateway's MAC, its server's,
    and one hop less."""
    one, other = await bench.address("vm1"), await bench.address("vm2")
    own, gateway = mac_of("vm1"), bench.topology.gateway_mac
    nobody, unknown = "10.1.0.222", "52:54:00:99:99:99"

    def sent(dst: str, to: str, text: str) -> str:
        frame = Ether(src=own, dst=dst) / IP(src=one, dst=to) / UDP(sport=9999, dport=9999) / text
        return bytes(frame).hex()

    everybody = [sent("ff:ff:ff:ff:ff:ff", to, "group") for to in ("255.255.255.255", "10.1.0.255", other)]
    everybody += [sent("01:00:5e:00:00:fb", "224.0.0.251", "group"), arp("who-has", own, one, nobody)]
    everybody += [arp("who-has", own, one, other), arp("is-at", own, one, one)]
    async with bench.captures(*((TRANSIT, server, "in") for server in ("server1", "server2"))) as wires:
        await bench.guest("vm1", f"ip neigh flush dev eth0; ping -c 3 -i 0.2 -W 5 {other}")
        await bench.send("vm1", *everybody, sent(unknown, nobody, "nobody"), times=3)
        await bench.send("vm1", sent(unknown, other, "last"))
        await wires[0].until(lambda f: b"last" in f.data)
        await bench.guest("vm2", f"ip neigh flush dev eth0; ping -c 1 -W 5 {one}")
    inside = [_inside(frame) for wire in wires for frame in wire.frames]
    crossed = [frame for frame in inside if frame is not None]
    macs = {(await bench.server(server))["mac"] for server in ("server1", "server2")}
    between = [f for f in crossed if f.haslayer(IP) and {f[IP].src, f[IP].dst} == {one, other}]
    assert sum(f.haslayer(ICMP) and f[ICMP].type in ECHOES for f in between) == 3 + 3 + 1 + 1
    assert sum(carries(f, "last") and f.haslayer(UDP) for f in between) >= 1, "by whatever MAC it was sent"
    assert {(f.src, f.dst in macs, f[IP].ttl) for f in between} == {(gateway, True, 63)}
    assert [f.summary() for f in crossed if f not in between] == []


def _inside(frame: Frame) -> Any:
    """What a frame at the wire has in a tunnel; None for what is none."""
    ether = frame.ether
    return ether[VXLAN].payload if ether.haslayer(VXLAN) else None


def endpoint(bench: LabBench, leaf: str) -> IPv4Interface:
    found = next(one.endpoint for one in bench.topology.leaf if one.id == leaf)
    assert found is not None
    return found
