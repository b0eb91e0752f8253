"""The anycast gateway on real parts: header fields on the wires, and silent ports."""

import asyncio
import contextlib
import json
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from retinue.core.packets.lldp import NEAREST_BRIDGE
from retinue_lab.measure import arp as arp_program
from retinue_lab.measure.capture import SilentPorts, WatchedPort
from retinue_lab.network.nodes import OFFLOADS
from retinue_lab.topology.topology import FABRIC, SANDBOX, node_of
from support.lab import second_router
from support.lab.frames import ARP, BROADCAST, ICMP, IP, TCP, UDP, Ether, arp, carries, hexed
from support.lab.health import calm
from support.lab.programs import popen_in
from support.lab.tools import LabBench, at, eventually, long, mac_of
from support.lab.watch import Frame, Wanted

pytestmark = pytest.mark.lab

VMS = [at("vm1", "server1"), at("vm2", "server1"), at("vm3", "server2")]
ONE, TWO, THREE = (mac_of(vm["id"]) for vm in VMS)
GATEWAY, GATEWAY_IP = "00:00:de:ad:be:ef", "10.1.0.254"
SERVER2 = "02:00:00:00:00:02"
UNKNOWN = "52:54:00:00:00:99"
NOBODY_IP = "10.1.0.250"
PHYSICAL = "10.1.0.2"
"""The machine of the DHCP server, which is no VM, and is in the VMs' subnet."""
SPINE_LINKS = [("fabric", f"leaf{leaf}-spine{spine}", "inout") for leaf in (1, 2) for spine in (1, 2)]


@pytest.fixture
async def ips(bench: LabBench) -> list[str]:
    """The addresses of vm1, vm2 and vm3."""
    return [await bench.address(vm["id"]) for vm in VMS]


def udp(dst_mac: str, src: str, dst: str, text: str = "probe", ttl: int = 64, sport: int = 9999) -> str:
    """A datagram of vm1."""
    return hexed(
        Ether(src=ONE, dst=dst_mac) / IP(src=src, dst=dst, ttl=ttl) / UDP(sport=sport, dport=9999) / text
    )


def with_text(text: str) -> Wanted:
    return lambda f: carries(f.ether, text)


def pinged(frame: Frame) -> bool:
    return bool(frame.ether.haslayer(ICMP))


def head(frame: Frame) -> tuple[str, str, str, str, int]:
    """MACs, IP addresses and TTL."""
    ip: Any = frame.ether[IP]
    return frame.src, frame.dst, ip.src, ip.dst, ip.ttl


# ---- what leaves the edge, and what becomes of it ----


@pytest.mark.parametrize("dst_mac", [THREE, UNKNOWN, GATEWAY])
async def test_an_unknown_unicast_mac_becomes_the_gateways_and_is_routed(
    bench: LabBench, ips: list[str], dst_mac: str
) -> None:
    """Header fields at every hop from vm1 to vm3, in one subnet, on two leaves."""
    one, _, three = ips
    async with bench.captures(
        ("server1", "up0", "out"),
        ("fabric", "leaf1-spine1", "out"),
        ("fabric", "leaf1-spine2", "out"),
        ("fabric", "leaf2-server2", "out"),
        ("server2", "tap-vm3", "out"),
    ) as (uplink, up1, up2, down, tap):
        text = f"probe to {dst_mac}"
        await bench.send("vm1", udp(dst_mac, one, three, text))
        arrived = await tap.until(with_text(text))
        assert await bench.ping("vm1", three)
        await tap.until(pinged)
        hops = [frame for seen in (uplink, down) for frame in seen.those(with_text(text))]
        crossing = [frame for seen in (up1, up2) for frame in seen.those(with_text(text))]
        assert len(tap.those(with_text(text))) == 1
    assert [head(frame) for frame in hops] == [
        (ONE, GATEWAY, one, three, 64),
        (GATEWAY, SERVER2, one, three, 63),
    ]
    assert [head(frame) for frame in crossing] == [(GATEWAY, GATEWAY, one, three, 63)]
    assert head(arrived) == (GATEWAY, THREE, one, three, 63)


async def test_nothing_is_flooded_whatever_a_vm_sends(bench: LabBench, ips: list[str]) -> None:
    """What is for everybody or for nobody reaches nobody; honest traffic only its receiver."""
    one, two, three = ips
    macs = {node_of(part): part.mac for part in bench.topology.attached}
    known = frozenset({GATEWAY, NEAREST_BRIDGE, *macs.values()})  # The controller's probes of links.
    ports = [
        WatchedPort("server1", "tap-vm2", frozenset({TWO}), "out"),
        WatchedPort("server2", "tap-vm3", frozenset({THREE}), "out"),
        WatchedPort("server1", "br0", frozenset({macs["server1"]})),
        *(WatchedPort(server, "up0", frozenset({macs[server]})) for server in ("server2", "server3")),
        *(WatchedPort(node, "eth0", frozenset({macs[node]})) for node in ("dhcp", "router")),
        *(WatchedPort(node, link, known, direction) for node, link, direction in SPINE_LINKS),
    ]
    silent = SilentPorts(popen_in(bench.lab), ports)
    await silent.start()
    async with (
        bench.capture("server1", "tap-vm1", "in") as sent,
        bench.capture("server1", "up0", "out") as uplink,
    ):
        group = [
            udp(BROADCAST, one, "255.255.255.255", "group"),
            udp(BROADCAST, one, "10.1.0.255", "group"),
            udp(BROADCAST, one, three, "group"),
            udp("01:00:5e:00:00:fb", one, "224.0.0.251", "group"),
            udp("01:00:5e:7f:ff:fa", one, "239.255.255.250", "group"),
            udp("33:33:00:00:00:fb", one, "224.0.0.251", "group"),
        ]
        nobody = [
            udp(UNKNOWN, one, NOBODY_IP, "nobody"),
            udp(GATEWAY, one, NOBODY_IP, "nobody"),
            udp(TWO, one, NOBODY_IP, "strange"),
        ]
        quiet = [
            arp("who-has", ONE, one, NOBODY_IP),
            arp("who-has", ONE, one, one),
            arp("is-at", ONE, one, one),
            arp("who-has", ONE, one, three),
            *(hexed(Ether(src=ONE, dst=to, type=0x88B5) / ("other" * 10)) for to in (BROADCAST, UNKNOWN)),
            hexed(Ether(src=ONE, dst="01:80:c2:00:00:0e", type=0x88CC) / ("other" * 10)),
        ]
        await bench.send("vm1", *group, *nobody, *quiet, times=3)
        frames = {*group, *nobody, *quiet}
        await sent.until(lambda f: f.data.hex() in frames, times=3 * len(frames))
        for to in (two, three, "203.0.113.9", "10.1.0.2", GATEWAY_IP):
            assert await bench.ping("vm1", to)
        await uplink.until(pinged, times=3)
        assert uplink.those(with_text("group")) == []
        assert [f.dst for f in uplink.those(with_text("nobody"))] == [GATEWAY] * 6
        assert [str(f) for f in uplink.frames if f.ethertype != 0x0800] == []
    noise = {port: str(found) for port, found in (await silent.stop()).items() if found.count}
    # A frame that names the neighbour's MAC is the neighbour's, whatever address is in it.
    assert noise == {}


async def test_the_ttl_is_taken_down_once_and_ends_a_packet(bench: LabBench, ips: list[str]) -> None:
    """To IP the fabric is one router; between VMs of one server there is none."""
    one, two, three = ips
    async with bench.captures(
        ("server1", "tap-vm2", "out"), ("server2", "tap-vm3", "out"), ("client", "eth0", "in")
    ) as (local, remote, outside):
        await bench.send(
            "vm1",
            udp(TWO, one, two, "local"),
            udp(GATEWAY, one, three, "ends", ttl=1),
            udp(GATEWAY, one, three, "passes", ttl=2),
            udp(GATEWAY, one, "203.0.113.9", "outside"),
        )
        ttls = [
            (await seen.until(with_text(text))).ether[IP].ttl
            for seen, text in ((local, "local"), (remote, "passes"), (outside, "outside"))
        ]
        assert remote.those(with_text("ends")) == []
    assert ttls == [64, 1, 62]


# ---- who answers ARP, and with which MAC ----


async def asked(bench: LabBench, vm: str, mac: str, own: str, wanted: str) -> list[str]:
    """The MACs that answer a VM's ARP request; another request, for the gateway, shows the end of waiting."""
    tap = f"tap-{vm}"
    server = (await bench.vm(vm))["server"]
    async with bench.capture(server, tap, "out") as answers:
        await bench.send(vm, arp("who-has", mac, own, wanted), arp("who-has", mac, own, GATEWAY_IP))
        await answers.until(lambda f: f.ether.haslayer(ARP) and f.ether[ARP].psrc == GATEWAY_IP)
        # The controller answers later than the switch: what it says to this comes after what it said before.
        other = "10.1.0.2"
        await bench.send(vm, arp("who-has", mac, own, other))
        await answers.until(lambda f: f.ether.haslayer(ARP) and f.ether[ARP].psrc == other)
        found = answers.those(lambda f: f.ether.haslayer(ARP) and f.ether[ARP].psrc == wanted)
    for frame in found:
        reply = frame.ether[ARP]
        assert (reply.op, reply.hwdst, reply.pdst, frame.dst) == (2, mac, own, mac)
        assert frame.src == reply.hwsrc
    return [frame.ether[ARP].hwsrc for frame in found]


async def test_arp_is_answered_with_the_gateways_mac_for_remote_hosts_and_the_own_for_local_ones(
    bench: LabBench, ips: list[str]
) -> None:
    """Exactly one answer for a host of the subnet, wherever it is; none for nobody, none for oneself."""
    one, two, three = ips
    assert await asked(bench, "vm1", ONE, one, three) == [GATEWAY]
    assert await asked(bench, "vm1", ONE, one, two) == [TWO]
    assert await asked(bench, "vm3", THREE, three, one) == [GATEWAY]
    assert await asked(bench, "vm3", THREE, three, two) == [GATEWAY]
    assert await asked(bench, "vm1", ONE, one, NOBODY_IP) == []
    assert await asked(bench, "vm1", ONE, one, one) == []
    assert await asked(bench, "vm1", ONE, one, "10.0.0.12") == [], "a host of another subnet"


async def test_all_leaves_share_one_gateway_and_answer_servers_too(bench: LabBench) -> None:
    """One MAC and, a subnet, one IP, on every edge switch and leaf."""
    for server, own, other in (("server1", "10.0.0.11", "10.0.0.12"), ("server2", "10.0.0.12", "10.0.0.13")):
        for wanted in ("10.0.0.254", other):
            program = [sys.executable, "-I", "-S", arp_program.__file__, "br0", own, wanted, "8"]
            assert (await bench.run(server, *program)).strip() == GATEWAY, f"{server} asks for {wanted}"
        assert "1 received" in await bench.run(server, "ping", "-c", "1", "-W", "5", other)
    for vm in ("vm1", "vm3"):
        await bench.guest(vm, f"ip neigh flush dev eth0; ping -c 1 -W 5 {GATEWAY_IP}")
        assert GATEWAY in await bench.guest(vm, f"ip neigh show {GATEWAY_IP}")


async def test_traceroute_shows_the_gateway_and_a_ping_of_any_size_has_one_fate(bench: LabBench) -> None:
    """A ping of more than fits one packet comes in fragments; the switch answers none of them."""
    shown = await bench.guest("vm1", "traceroute -n -q 1 -w 5 -m 2 203.0.113.9", timeout=60)
    hops = [line.split()[1] for line in shown.splitlines() if line.split()[0].isdigit()]
    assert hops == [GATEWAY_IP, "10.0.0.1"], shown
    assert "1 packets received" in await bench.guest("vm1", f"ping -c 1 -W 5 -s 1472 {GATEWAY_IP}")
    async with bench.capture("server1", "tap-vm1", "out") as tap:
        await bench.guest("vm1", f"ping -c 1 -W 1 -s 1473 {GATEWAY_IP}", check=False)
        assert await bench.ping("vm1", GATEWAY_IP)
        await tap.until(pinged)
        assert len(tap.those(pinged)) == 1


async def test_no_arp_crosses_the_fabric(bench: LabBench, ips: list[str]) -> None:
    """VMs' ARP ends at their edge switch, servers' at their leaf."""
    one, _, three = ips
    async with bench.captures(("server1", "up0", "inout"), *SPINE_LINKS) as seen:
        for vm, to in (("vm1", three), ("vm3", one)):
            await bench.guest(vm, f"ip neigh flush dev eth0; ping -c 1 -W 5 {to}")
        answered = bench.lab.announce()
        assert all(answered.values()), answered
        assert await bench.ping("vm1", three)
        uplink, *links = seen
        await uplink.until(pinged, times=6)

        async def crossed() -> bool:
            """Three requests and three replies, each over the links of both leaves."""
            return sum(len(link.those(pinged)) for link in links) == 12

        await eventually(crossed)
    assert [str(f) for link in links for f in link.frames if f.ethertype == 0x0806] == []
    assert [str(f) for f in uplink.frames if f.ethertype == 0x0806 and ONE in (f.src, f.dst)] == []
    assert uplink.those(lambda f: f.ethertype == 0x0806), "the server's own ARP should have been seen"


# ---- paths ----


async def test_vms_on_one_server_talk_locally(bench: LabBench, ips: list[str]) -> None:
    """The neighbour's own MAC leads straight to its port; nothing goes up."""
    one, two, _ = ips
    async with bench.captures(("server1", "tap-vm2", "inout"), ("server1", "up0", "inout")) as (tap, uplink):
        await bench.guest("vm1", f"ip neigh flush dev eth0; ping -c 3 -i 0.2 -W 5 {two}")
        assert await bench.ping("vm1", "10.1.0.2")
        await uplink.until(pinged, times=2)
        heads = [head(f) for f in tap.those(pinged)]
        assert [str(f) for f in uplink.frames if two in str(f)] == []
    assert heads == [(ONE, TWO, one, two, 64), (TWO, ONE, two, one, 64)] * 3


async def test_equal_cost_paths_are_shared_by_flows_and_kept_by_each(bench: LabBench, ips: list[str]) -> None:
    """64 flows use both spines, and each flow only one of them."""
    one, _, three = ips
    flows = range(20000, 20064)
    async with bench.captures(
        ("fabric", "leaf1-spine1", "out"), ("fabric", "leaf1-spine2", "out"), ("server2", "tap-vm3", "out")
    ) as (first, second, tap):
        ether, ip = Ether(src=ONE, dst=GATEWAY), IP(src=one, dst=three)
        segments = [hexed(ether / ip / TCP(sport=port, dport=9999, flags="A") / "path") for port in flows]
        for some in (segments[:32], segments[32:]):
            await bench.send("vm1", *some, times=3)
        await tap.until(with_text("path"), times=3 * len(flows))
        paths = [
            Counter(f.ether[TCP].sport for f in seen.those(with_text("path"))) for seen in (first, second)
        ]
    assert paths[0] + paths[1] == Counter(dict.fromkeys(flows, 3))
    assert paths[0].keys() & paths[1].keys() == set()
    assert min(len(path) for path in paths) >= 8, "the load is not shared"


# ---- traffic that must not notice ----


ECHO = 4007
"""Port of the connection that lasts."""
EVERY = 0.05
"""Seconds from one echo to the next."""
ON_THEIR_WAY = 15.0
"""Seconds in which the last of them are answered, on whichever machine."""


@contextlib.asynccontextmanager
async def flowing(bench: LabBench, vm: str, to: str) -> AsyncIterator[None]:
    """Numbered echoes from a VM to another while the context lasts, of which none is lost or doubled.

    What has come is what the VM's kernel has counted, whoever else asks there. BusyBox's ping gives its
    socket 7 KiB: in a VM that has just migrated on a busy machine it is not run for a moment, and its socket,
    to which what others ask of the VM comes, too, drops some. Those that ping has seen are in order, and each
    once.
    """
    file = "/tmp/flowing"
    before = await icmp(bench, vm)
    await bench.guest(vm, f"ping -i {EVERY} -W 5 {to} >{file} 2>&1 & echo $! >{file}.pid")
    await bench.guest(vm, f"until grep -q seq=3 {file}; do usleep 20000; done")
    try:
        yield
    finally:
        said = await bench.guest(
            vm,
            f"kill -INT $(cat {file}.pid); "
            f"until grep -q 'packets received' {file}; do usleep 20000; done; cat {file}",
        )
    numbers = [int(number) for number in re.findall(r"seq=(\d+)", said)]
    assert len(numbers) > 10
    assert numbers == sorted(set(numbers)), said
    missing: dict[str, int] = {}

    async def all_have_come() -> bool:
        after = await icmp(bench, vm)
        grown = {name: after[name] - before[name] for name in ("OutEchos", "InEchoReps")}
        missing[vm] = grown["OutEchos"] - grown["InEchoReps"]
        return missing[vm] == 0

    try:
        await eventually(all_have_come, timeout=ON_THEIR_WAY)
    except AssertionError as error:
        raise AssertionError(f"{missing} of the echoes have no answer: {said}") from error


async def icmp(bench: LabBench, vm: str) -> dict[str, int]:
    """What a VM's kernel has counted of ICMP."""
    names, counts = re.findall(r"^Icmp: (.+)$", await bench.guest(vm, "cat /proc/net/snmp"), re.M)
    return {name: int(count) for name, count in zip(names.split(), counts.split(), strict=True)}


@contextlib.asynccontextmanager
async def connection(bench: LabBench, vm: str, to: str, at: str) -> AsyncIterator[None]:
    """One connection over TCP from a VM to another, which is `at` the address `to`, while the context lasts.

    Each line that is written comes back, in order, and the connection is the same one to the end.
    """
    file = "/tmp/connection"
    await bench.guest(at, f"nc -l -p {ECHO} -e cat >/dev/null 2>&1 & usleep 200000")
    lines = "i=0; while usleep 50000; do echo $i; i=$((i + 1)); done"
    await bench.guest(vm, f"({lines}) | nc {to} {ECHO} >{file} 2>&1 & echo $! >{file}.pid")
    arrived = f"wc -l <{file}"
    await bench.guest(vm, f"until [ $({arrived}) -gt 3 ]; do usleep 20000; done")
    try:
        yield
    finally:
        before = int(await bench.guest(vm, arrived))
        await bench.guest(vm, f"until [ $({arrived}) -gt {before + 3} ]; do usleep 20000; done")
        said = await bench.guest(vm, f"kill $(cat {file}.pid); cat {file}")
        await bench.guest(at, "killall nc", check=False)
    lines_back = said.splitlines()
    assert lines_back == [str(number) for number in range(len(lines_back))]


async def test_a_subnet_comes_and_goes_and_nobody_elses_packet_with_it(
    bench: LabBench, ips: list[str]
) -> None:
    """Its gateway answers while it is there; traffic on the same server and to another one goes on."""
    _, two, _ = ips
    gateway = "10.77.0.254"
    async with flowing(bench, "vm1", two), flowing(bench, "vm3", two):
        await bench.cli("vnet", "add", "shop", "--vlan", "42")
        given = ("--prefix", "10.77.0.0/24", "--gateway", gateway, "--vnet", "shop")
        await bench.cli("subnet", "add", "green", *given)
        await bench.guest("vm2", f"ip route add {gateway} via {GATEWAY_IP}; ping -c 1 -W 5 {gateway}")
        await bench.cli("subnet", "set", "green", "--prefix", "10.77.0.0/23")
        await bench.cli("subnet", "remove", "green")
        await bench.cli("vnet", "remove", "shop")
        assert "0 packets received" in await bench.guest("vm2", f"ping -c 1 -W 1 {gateway}", check=False)


# ---- a host that is no VM ----


async def test_a_physical_host_and_a_vm_of_its_subnet_talk_on_through_a_migration(
    bench: LabBench, ips: list[str]
) -> None:
    """It asks for the VM by ARP as any host does, and is told the gateway's MAC."""
    one, _, _ = ips
    await bench.run("dhcp", "ip", "neigh", "flush", "dev", "eth0")
    async with flowing(bench, "vm1", PHYSICAL), bench.traffic(one, node="dhcp") as traffic:
        for target in ("server2", "server1"):
            await bench.migration("vm1", target_server=target)
        await bench.unharmed(traffic)
    known = await bench.run("dhcp", "ip", "neigh", "show", one)
    assert f"lladdr {GATEWAY}" in known
    assert GATEWAY in await bench.guest("vm1", f"ip neigh show {PHYSICAL}")


# ---- an anycast address of a service ----

SERVICE = "10.9.9.9"


async def test_a_service_is_found_at_the_nearest_and_no_packet_is_lost_as_members_come_and_go(
    bench: LabBench,
) -> None:
    """vm1 on server1 is a member all the time; vm3, beside vm2 who asks, joins, migrates and leaves."""
    for member in ("vm1", "vm3"):
        await bench.guest(member, f"ip address add {SERVICE}/32 dev lo")
    await bench.cli("vm", "nic", "set", "vm1", "--anycast", SERVICE)
    await bench.migration("vm2", target_server="server2")
    async with flowing(bench, "vm2", SERVICE):
        await bench.cli("vm", "nic", "set", "vm3", "--anycast", SERVICE)
        assert await reached(bench, "vm2") == "vm3", "the one under its own leaf"
        await bench.migration("vm3", target_server="server3")
        assert await reached(bench, "vm2") in ("vm1", "vm3"), "both are under the other leaf"
        await bench.cli("vm", "nic", "set", "vm1", "--load", "10")
        assert await reached(bench, "vm2") == "vm3", "the less loaded"
        await bench.cli("vm", "nic", "set", "vm3", "--anycast", "none")
        assert await reached(bench, "vm2") == "vm1"
    await bench.cli("vm", "nic", "set", "vm1", "--anycast", "none", "--load", "0")
    for vm, home in (("vm2", "server1"), ("vm3", "server2")):
        await bench.migration(vm, target_server=home)


BOX, BOX_MAC, BOX_ADDRESS = "box", "02:00:00:00:00:b1", "10.0.0.40"
BOX_CABLE = f"""
    ip netns add {BOX}
    ip link add leaf1-{BOX} netns {FABRIC} type veth peer name eth0 netns {BOX} address {BOX_MAC}
    ip netns exec {BOX} ethtool -K eth0 {OFFLOADS} > /dev/null
    ip netns exec {FABRIC} ethtool -K leaf1-{BOX} {OFFLOADS} > /dev/null
    ip -n {FABRIC} link set leaf1-{BOX} up
    ip -n {BOX} link set lo up
    ip -n {BOX} link set eth0 up
    ip -n {BOX} address add {BOX_ADDRESS}/24 dev eth0
    ip -n {BOX} address add {SERVICE}/32 dev lo
    ip -n {BOX} route add default via 10.0.0.254
"""


async def test_a_machine_that_runs_no_vms_is_a_member_beside_a_vm_and_no_packet_is_lost(
    bench: LabBench,
) -> None:
    """vm3 is a member under the other leaf; the machine joins under the asker's own, is asked, and leaves.
    The asker is one that has never been a member itself."""

    async def heard_by_box() -> int:
        said = await bench.run(SANDBOX, "ip", "netns", "exec", BOX, "cat", "/proc/net/snmp")
        names, counts = re.findall(r"^Icmp: (.+)$", said, re.M)
        return int(dict(zip(names.split(), counts.split(), strict=True))["InEchos"])

    await bench.run(SANDBOX, "sh", "-ec", BOX_CABLE)
    await bench.run(FABRIC, "ovs-vsctl", "add-port", "leaf1", f"leaf1-{BOX}")
    box = {"id": BOX, "mac": BOX_MAC, "address": BOX_ADDRESS, "at": f"leaf1:leaf1-{BOX}"}
    await bench.post("servers", box)
    await bench.guest("vm3", f"ip address add {SERVICE}/32 dev lo", check=False)  # A test before may have.
    await bench.cli("vm", "nic", "set", "vm3", "--anycast", SERVICE)
    async with flowing(bench, "vm2", SERVICE):
        alone = await heard_by_box()
        await bench.post("servers", {**box, "anycast": [SERVICE]})
        await bench.guest("vm2", f"ping -c 5 -W 5 {SERVICE}")
        joined = await heard_by_box()
        assert (alone, joined >= 5) == (0, True), "the one under its own leaf"
        await bench.post("servers", {**box, "anycast": []})
        left = await heard_by_box()
        await bench.guest("vm2", f"ping -c 5 -W 5 {SERVICE}")
        assert await heard_by_box() - left <= 1, "but what was on its way"
    await bench.cli("vm", "nic", "set", "vm3", "--anycast", "none")
    await bench.request("DELETE", f"servers/{BOX}")


async def reached(bench: LabBench, vm: str) -> str:
    """Who of vm1 and vm3 answers to a VM: whose count of echoes grows."""

    async def heard() -> dict[str, int]:
        return {member: (await icmp(bench, member))["InEchos"] for member in ("vm1", "vm3")}

    before = await heard()
    await bench.guest(vm, f"ping -c 5 -i 0.2 -W 5 {SERVICE}")
    after = await heard()
    grown = [member for member in before if after[member] > before[member]]
    assert len(grown) == 1, (before, after)
    return grown[0]


# ---- stale ARP caches ----


async def test_after_a_move_stale_caches_do_no_harm_and_fresh_ones_keep_traffic_local(
    bench: LabBench, ips: list[str]
) -> None:
    """Both go on with the MACs they knew before, through the leaf; back together, locally again.

    Both caches are stale, the moved VM's and its neighbour's; what flows between them meanwhile is counted,
    and one connection lasts throughout.
    """
    one, two, _ = ips
    await bench.guest("vm1", f"arp -s {two} {TWO}")
    await bench.guest("vm2", f"arp -s {one} {ONE}")
    async with connection(bench, "vm1", two, at="vm2"):
        async with flowing(bench, "vm1", two), flowing(bench, "vm2", one):
            await bench.migration("vm2", target_server="server2")
        async with (
            bench.capture("server1", "up0", "out") as uplink,
            bench.capture("server2", "up0", "out") as there,
        ):
            assert await bench.ping("vm1", two)
            asks = await uplink.until(lambda f: pinged(f) and f.ether[IP].dst == two)
            answers = await there.until(lambda f: pinged(f) and f.ether[IP].dst == one)
            assert (asks.dst, answers.dst) == (GATEWAY, GATEWAY)
        for vm, other in (("vm1", two), ("vm2", one)):
            await bench.guest(vm, f"arp -s {other} {GATEWAY}")
        async with flowing(bench, "vm1", two), flowing(bench, "vm2", one):
            await bench.migration("vm2", target_server="server1")
    async with bench.capture("server1", "up0", "out") as uplink:
        assert await bench.ping("vm1", two), "a stale cache: through the leaf, back to the same server"
        for to in (two, one):
            await uplink.until(lambda f, to=to: pinged(f) and f.ether[IP].dst == to)  # type: ignore[misc]
        await bench.guest("vm1", f"arp -d {two}")
        await bench.guest("vm2", f"arp -d {one}")
        before = len(uplink.frames)
        assert await bench.ping("vm1", two)
        assert await bench.ping("vm1", "10.1.0.2")
        await uplink.until(lambda f: pinged(f) and f.ether[IP].dst == "10.1.0.2")
        after = [f for f in uplink.frames[before:] if f.ether.haslayer(IP)]
        assert [str(f) for f in after if f.ether[IP].dst in (one, two)] == []


async def gateway_of(bench: LabBench, vm: str) -> str:
    """The MAC that a VM's kernel has for the gateway, asked anew."""
    await bench.guest(vm, f"ip neigh flush dev eth0; ping -c 1 -W 5 {GATEWAY_IP}")
    (mac,) = re.findall(r"lladdr (\S+)", await bench.guest(vm, f"ip neigh show {GATEWAY_IP}"))
    return str(mac)


async def test_servers_go_into_a_group_with_a_gateway_mac_of_its_own(bench: LabBench, ips: list[str]) -> None:
    """While flows go on: in and out of the group, and a VM migrates into it and back; nothing is lost."""
    _, _, three = ips
    known = await bench.server("server2")
    given = {key: known[key] for key in ("id", "mac", "address", "edge", "services")}
    group = "02:00:5e:00:07:01"

    async def in_group(id: str) -> None:
        await bench.post("servers", {**given, "gateway_group": id})

    assert await gateway_of(bench, "vm3") == GATEWAY
    assert "can be put into it" in await bench.cli("gateway", "add", "rack7", "--mac", group)
    async with flowing(bench, "vm1", three):
        await in_group("rack7")
        assert json.loads(await bench.cli("gateway", "list", "--json"))["groups"][0]["servers"] == ["server2"]
        async with bench.capture("server2", "up0", "out") as wire:
            # Its cache still has the other MAC.
            assert await bench.ping("vm3", "10.1.0.2")
            await wire.until(lambda f: pinged(f) and f.src == THREE)
            assert {f.dst for f in wire.those(pinged) if f.src == THREE} == {group}
        assert await gateway_of(bench, "vm3") == group
        assert await gateway_of(bench, "vm2") == GATEWAY
        await bench.migration("vm1", target_server="server2")
        assert await bench.ping("vm1", "10.1.0.2")
        await bench.migration("vm1", target_server="server1")
        await in_group("")
    assert await bench.ping("vm3", "10.1.0.2")
    assert await gateway_of(bench, "vm3") == GATEWAY
    assert "is removed" in await bench.cli("gateway", "remove", "rack7")


async def test_servers_in_no_group_are_given_another_gateway_mac_while_flows_go_on(
    bench: LabBench, ips: list[str]
) -> None:
    """By REST, for all of them at once; one that is in a group of its own keeps that."""
    _, _, three = ips
    theirs = "02:00:5e:00:08:01"
    assert await gateway_of(bench, "vm2") == GATEWAY
    await bench.cli("gateway", "add", "all", "--mac", theirs)
    async with flowing(bench, "vm1", three):
        await bench.cli("gateway", "set", "all", "--default")
        for vm in ("vm2", "vm3"):
            assert await gateway_of(bench, vm) == theirs
        async with bench.capture("server1", "up0", "out") as wire:
            assert await bench.ping("vm1", three), "its cache still has the other MAC"
            await wire.until(lambda f: pinged(f) and f.src == ONE)
            # To a MAC that the edge does not know it is the new one, too.
            await bench.guest("vm2", f"arp -s {three} {THREE}; ping -c 1 -W 5 {three}; arp -d {three}")
            asked = await wire.until(lambda f: pinged(f) and f.src == TWO)
            assert asked.dst == theirs
        await bench.migration("vm1", target_server="server2")
        await bench.migration("vm1", target_server="server1")
        await bench.cli("gateway", "set", "all", "--no-default")
    assert await gateway_of(bench, "vm2") == GATEWAY
    assert "is removed" in await bench.cli("gateway", "remove", "all")


# ---- links ----


@pytest.mark.parametrize("spine", ["spine1", long("spine2")])
async def test_a_link_between_leaf_and_spine_is_lost_and_nothing_is_sent_there(
    bench: LabBench, spine: str
) -> None:
    """Nor by the other leaf, for which that spine has no way to this one any more; back it costs nothing."""
    cable, ways = f"leaf1-{spine}", {leaf: await up_ports(bench, leaf) for leaf in ("leaf1", "leaf2")}
    async with bench.traffic(await bench.address("vm1")) as traffic:
        await bench.run("fabric", "ip", "link", "set", cable, "down")
        try:
            await eventually(lambda: send_by(bench, 1))
            well = time.time()
            await calm(bench)
        finally:
            back = time.time()
            await bench.run("fabric", "ip", "link", "set", cable, "up")
        await eventually(lambda: send_by(bench, 2))
        await calm(bench)
        figures, record = await traffic.end()
    assert {leaf: await up_ports(bench, leaf) for leaf in ways} == ways
    assert record.lost_after(well) == 0, (figures, back - well)
    assert figures.duplicated == 0


async def up_ports(bench: LabBench, leaf: str) -> set[str]:
    """Ports by which a leaf sends up, as its select group has them."""
    said = await bench.run("fabric", "ovs-ofctl", "-O", "OpenFlow14", "dump-groups", leaf, "1")
    return set(re.findall(r"actions=output:\"?([\w-]+)", said))


async def send_by(bench: LabBench, links: int) -> bool:
    return all([len(await up_ports(bench, leaf)) == links for leaf in ("leaf1", "leaf2")])


# ---- several ways out; last, since the second router stays ----


async def way_out(bench: LabBench) -> dict[str, list[str]]:
    """By router: to what it is the way."""
    servers = (await bench.get("servers"))["servers"]
    return {server["id"]: server["ways"] for server in servers if "router" in server["services"]}


async def test_of_two_routers_one_is_lost_and_traffic_goes_on_by_the_other(bench: LabBench) -> None:
    """First its link, then its answers; when it is there again it is the way again, and nothing is lost."""
    outside = str(bench.topology.client.address) if bench.topology.client else ""
    cable = "leaf2-router"
    async with second_router.running(bench, metric=10), bench.events() as events:
        assert await way_out(bench) == {"router": ["0.0.0.0/0"], "router2": []}
        assert await bench.ping("vm1", outside)
        async with bench.capture("client", "eth1", "in") as at_second:
            await bench.run("fabric", "ip", "link", "set", cable, "down")
            lost = await events.until("router.lost", lambda e: e["server"] == "router")
            assert lost["reason"] == "its port has no link"
            for vm in ("vm1", "vm3"):
                assert await bench.ping(vm, outside)
            await at_second.until(pinged, times=2)
        assert await way_out(bench) == {"router": [], "router2": ["0.0.0.0/0"]}
        # It is there again: used after a while, and no packet is lost then.
        echoes = asyncio.create_task(bench.guest("vm1", f"ping -q -i 0.05 -c 320 {outside}", check=False))
        await bench.run("fabric", "ip", "link", "set", cable, "up")
        await events.until("router.returned", lambda e: e["server"] == "router", after=lost)
        assert await way_out(bench) == {"router": ["0.0.0.0/0"], "router2": []}
        assert ", 0% packet loss" in await echoes
        # It goes on forwarding, and says no more that it is there: nothing is lost at all.
        echoes = asyncio.create_task(bench.guest("vm3", f"ping -q -i 0.05 -c 100 {outside}", check=False))
        await bench.run("router", "sysctl", "-q", "-w", "net.ipv4.conf.all.arp_ignore=8")
        silent = await events.until("router.lost", lambda e: e["server"] == "router", after=lost)
        assert silent["reason"] == "it has not answered for 3 s"
        assert ", 0% packet loss" in await echoes
        assert await way_out(bench) == {"router": [], "router2": ["0.0.0.0/0"]}
