"""A VM with several NICs on real parts: each with its lease, both migrated in one step, more put in later."""

import asyncio
import re
import sys
from ipaddress import IPv4Address

import pytest

from support.fabric.world import tagged, udp_frame
from support.lab import vlan_router
from support.lab.programs import popen_in
from support.lab.start import running
from support.lab.tools import BOOT_PATIENCE, Json, LabBench, eventually

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.usefixtures("home")]

THIRD = "52:54:00:00:01:03"
GATEWAY, FABRIC_MAC = "10.1.0.254", "00:00:de:ad:be:ef"
MACS = ["52:54:00:00:01:01", "52:54:00:00:01:02"]
VMS: list[Json] = [{"id": "vm1", "server": "server1", "nics": [{"mac": mac} for mac in MACS]}]


VLAN_50, IPV4 = bytes.fromhex("81000032"), bytes.fromhex("0800")


async def addresses(bench: LabBench, nics: int, vm: str = "vm1") -> list[str]:
    """What each NIC holds, when so many NICs hold an address that the guest has set."""

    async def all_hold() -> bool:
        return [bool(nic["holds"]) for nic in (await bench.vm(vm))["nics"]] == [True] * nics

    await eventually(all_hold, BOOT_PATIENCE)
    held = [str(nic["holds"][0]) for nic in (await bench.vm(vm))["nics"]]
    for number, address in enumerate(held):
        await bench.guest(
            vm, f"until ip -4 addr show dev eth{number} | grep -q {address}/; do usleep 20000; done"
        )
    return held


async def test_both_nics_migrate_and_lose_double_and_reorder_nothing(bench: LabBench) -> None:
    first, second = await addresses(bench, 2)
    async with bench.traffic(first, pps=500) as to_first, bench.traffic(second, pps=500) as to_second:
        async with bench.events() as events:
            for target in ("server2", "server1"):
                migration = await bench.migration("vm1", target_server=target)
                renewed = [
                    await events.until(
                        "renewal.acked",
                        lambda e, mac=mac, target=target: (  # type: ignore[misc]
                            e["renewal"]["mac"] == mac and e["renewal"]["server"] == target
                        ),
                    )
                    for mac in MACS
                ]
                assert {e["renewal"]["ip"] for e in renewed} == {first, second}
                assert migration["stopped_at"] <= migration["resumed_at"]
                rows = {(row["switch"], row["mac"]) for row in await bench.bindings("vm1") if row["active"]}
                edge = (await bench.vm("vm1"))["switch"]
                assert rows == {(edge, mac) for mac in MACS}
        figures = [await bench.unharmed(traffic) for traffic in (to_first, to_second)]
    assert all(of.sent > 500 and of.reordered == 0 for of in figures), figures
    assert await bench.machines("vm1") == ["server1"]


async def echoes_until(end: asyncio.Event, bench: LabBench, vm: str, to: str) -> list[str]:
    """What a guest's pings say, hundred by hundred; the last of them begins before the end."""
    said = []
    while not end.is_set():
        said.append(await bench.guest(vm, f"ping -q -i 0.02 -c 100 {to}", check=False))
    return said


RED = ("52:54:00:00:02:01", "52:54:00:00:02:02", "52:54:00:00:02:03")


async def test_a_tenant_with_the_same_addresses_is_apart_and_migrates_without_loss(bench: LabBench) -> None:
    """VRF red has the addresses of vm1's NICs; twin has a NIC in it, and one in the default VRF.

    Both of twin's NICs are sent packets while it migrates, and vm1 all the while.
    """
    first, second = await addresses(bench, 2)
    for command in (
        ("vrf", "add", "red"),
        ("vnet", "add", "reds", "--vrf", "red"),
        ("subnet", "add", "red1", "--prefix", "10.1.0.0/24", "--gateway", GATEWAY, "--vnet", "reds"),
    ):
        await bench.cli(*command)
    red = [f"mac={mac},vnet=reds,address={ip}" for mac, ip in zip(RED, (first, second), strict=False)]
    async with bench.events() as events:
        await bench.cli("vm", "add", "twin", "--server", "server1", "--nic", red[0], "--nic", f"mac={RED[2]}")
        await bench.cli("vm", "add", "peer", "--server", "server2", "--nic", red[1])
        for vm in ("twin", "peer"):
            await running(bench, events, vm)
    _, outside = await addresses(bench, 2, "twin")
    rows = {(row["vrf"], row["ip"], row["mac"]) for row in await bench.bindings()}
    assert rows >= {("default", first, MACS[0]), ("default", second, MACS[1])}
    assert rows >= {("red", first, RED[0]), ("red", second, RED[1])}

    assert await bench.answering("peer", GATEWAY, "203.0.113.9", "10.0.0.11") == [GATEWAY], (
        "a VRF has no way out, nor to servers; its own gateway answers"
    )
    async with bench.traffic(first, pps=200) as to_vm1, bench.traffic(outside, pps=200) as to_twin:
        moved = asyncio.Event()
        pinged = asyncio.create_task(echoes_until(moved, bench, "peer", first))
        for target in ("server3", "server2"):
            await bench.migration("twin", target_server=target)
        moved.set()
        assert all(", 0% packet loss" in said and "dup" not in said for said in await pinged), pinged.result()
        await bench.unharmed(to_twin)
        await bench.unharmed(to_vm1)
    assert await bench.ping("peer", first), "on one server, too"
    await goes_out(bench, "red", 100, "peer")
    for vm in ("twin", "peer"):
        await bench.cli("vm", "remove", vm)
    for command in (("subnet", "remove", "red1"), ("vnet", "remove", "reds"), ("vrf", "remove", "red")):
        await bench.cli(*command)


async def goes_out(bench: LabBench, vrf: str, vlan: int, vm: str) -> None:
    """The VRF is given a way out by a VLAN of the router; its VM pings outside by it while it migrates."""
    router = ("--router", "router")
    own = ("--address", "10.1.0.253")
    await bench.cli("vrf", "add-router", vrf, *router, "--vlan", str(vlan), "--route", "0.0.0.0/0", *own)
    program = (sys.executable, "-I", "-S", vlan_router.__file__, "eth0", str(vlan))
    answers = await popen_in(bench.lab)("router", program)
    assert answers.stdout is not None and answers.stdin is not None
    assert await answers.stdout.readline() == b"listens\n"
    assert await bench.ping(vm, "203.0.113.9")
    # Its own shell ends when it migrates.
    await bench.guest(vm, "ping -i 0.02 203.0.113.9 >/tmp/pinged 2>&1 & echo $! >/tmp/pinged.pid")
    for target in ("server1", "server3"):
        await bench.migration(vm, target_server=target)
    await bench.guest(vm, "kill -INT $(cat /tmp/pinged.pid)")
    said = await bench.guest(
        vm, "until grep -q 'packets received' /tmp/pinged; do usleep 20000; done; cat /tmp/pinged"
    )
    numbers = [int(number) for number in re.findall(r"seq=(\d+)", said)]
    assert len(numbers) > 50 and numbers == list(range(len(numbers))), said
    answers.stdin.close()
    assert int(await answers.stdout.readline()) >= len(numbers), "they came with the tag"
    assert await answers.wait() == 0
    await bench.cli("vrf", "remove-router", vrf, *router)
    assert not await bench.ping(vm, "203.0.113.9"), "without a router a VRF has no way out"


BANK = ("52:54:00:00:05:01", "52:54:00:00:05:02")
TILL, TILL_IP = "52:54:00:00:05:03", "10.3.0.9"


@pytest.mark.long
async def test_an_isolated_vnet_has_its_vlan_between_switches_and_nothing_passes_to_another(
    bench: LabBench,
) -> None:
    """bank, VLAN 50, has the addresses of vm1's NICs once more; till is another, VLAN 60, with others."""
    first, second = await addresses(bench, 2)
    for command in (
        ("vnet", "add", "bank", "--vlan", "50", "--isolated"),
        ("vnet", "add", "tills", "--vlan", "60", "--isolated"),
        ("subnet", "add", "bank1", "--prefix", "10.1.0.0/24", "--gateway", GATEWAY, "--vnet", "bank"),
        ("subnet", "add", "till1", "--prefix", "10.3.0.0/24", "--gateway", "10.3.0.254", "--vnet", "tills"),
    ):
        await bench.cli(*command)
    async with bench.events() as events:
        for vm, server, mac, vnet, ip in (
            ("clerk", "server2", BANK[0], "bank", first),
            ("teller", "server1", BANK[1], "bank", second),
            ("till", "server2", TILL, "tills", TILL_IP),
        ):
            nic = f"mac={mac},vnet={vnet},address={ip}"
            await bench.cli("vm", "add", vm, "--server", server, "--nic", nic)
        for vm in ("clerk", "teller", "till"):
            await running(bench, events, vm)
    rows = {(row["vlan"], row["ip"], row["mac"]) for row in await bench.bindings()}
    assert rows >= {(0, first, MACS[0]), (50, first, BANK[0]), (50, second, BANK[1]), (60, TILL_IP, TILL)}

    places = ("server2", "up0", "inout"), ("server2", "tap-clerk", "inout")
    async with bench.captures(*places) as (uplink, tap):
        assert await bench.ping("teller", first)
    pair = {IPv4Address(first).packed, IPv4Address(second).packed}
    echoes = [frame.data for frame in uplink.frames if pair <= {frame.data[30:34], frame.data[34:38]}]
    assert len(echoes) >= 2 and {data[12:18] for data in echoes} == {VLAN_50 + IPV4}, "both ways"
    at_vm = [frame.data for frame in tap.frames if pair <= {frame.data[26:30], frame.data[30:34]}]
    assert len(at_vm) >= 2 and {data[12:14] for data in at_vm} == {IPV4}, "none at the VM's port"
    assert not any(frame.data[12:14] == VLAN_50[:2] for frame in tap.frames)
    assert await bench.ping("till", "10.3.0.254"), "its own gateway answers"
    for there in (first, second, GATEWAY, "203.0.113.9"):
        assert not await bench.ping("till", f"-W 1 {there}"), "nothing is routed to another vnet"

    async with bench.events() as events:
        forged = udp_frame(TILL, FABRIC_MAC, IPv4Address(TILL_IP), IPv4Address(first))
        await bench.send("till", tagged(forged, 50).hex())
        told = await events.until("spoofing", lambda e: e["spoofing"]["vm"] == "till")
        assert (told["spoofing"]["kind"], told["spoofing"]["switch"]) == ("ip", "edge2")
    async with bench.traffic(first, pps=200) as to_vm1:
        moved = asyncio.Event()
        pinged = asyncio.create_task(echoes_until(moved, bench, "teller", first))
        for target in ("server3", "server2"):
            await bench.migration("clerk", target_server=target)
        moved.set()
        assert all(", 0% packet loss" in said and "dup" not in said for said in await pinged), pinged.result()
        await bench.unharmed(to_vm1)
    await goes_out(bench, "bank", 50, "clerk")
    for what in ("vms/clerk", "vms/teller", "vms/till", "subnets/bank1", "subnets/till1"):
        await bench.request("DELETE", what)
    for vnet in ("bank", "tills"):
        await bench.cli("vnet", "remove", vnet)
    assert [row["id"] for row in (await bench.get("vrfs"))["vrfs"]] == ["default"]


TRUNK = ("52:54:00:00:03:01", "52:54:00:00:03:02", "52:54:00:00:03:03")
SHOP, SHOP_PEER, RED_IP, RED_PEER = "10.2.50.1", "10.2.50.2", "10.1.0.77", "10.1.0.78"


async def test_a_trunk_brings_each_vlan_to_its_vnet_and_migrates_with_the_vm(bench: LabBench) -> None:
    """fw has one port: untagged vnet shop, VLAN 30 the default vnet, by DHCP, and VLAN 60 VRF red.

    It is sent packets by VLAN 30 while it migrates, and by the two others before and after.
    """
    shop1 = {"id": "shop1", "prefix": "10.2.50.0/24", "gateway": "10.2.50.254", "vnet": "shop"}
    red1 = {"id": "red1", "prefix": "10.1.0.0/24", "gateway": GATEWAY, "vnet": "reds"}
    await bench.put("vnets/default", {"vlan": 30})
    await bench.post("vrfs", {"id": "red"})
    await bench.post("vnets", [{"id": "shop", "vlan": 50}, {"id": "reds", "vrf": "red", "vlan": 60}])
    await bench.post("subnets", [shop1, red1])
    carrier = f"mac={TRUNK[0]},vnet=shop,address={SHOP}"
    carried = f"mac={TRUNK[1]},trunk=fw,vnet=default", f"mac={TRUNK[2]},trunk=fw,vnet=reds,address={RED_IP}"
    nics = [word for nic in (carrier, *carried) for word in ("--nic", nic)]
    peer = ["--nic", f"vnet=shop,address={SHOP_PEER}", "--nic", f"vnet=reds,address={RED_PEER}"]
    async with bench.events() as events:
        await bench.cli("vm", "add", "fw", "--server", "server1", *nics)
        await bench.cli("vm", "add", "peer", "--server", "server1", *peer)
        for vm in ("fw", "peer"):
            await running(bench, events, vm)
    assert "tap-fw-2" not in await bench.run("server1", "ovs-vsctl", "list-ports", "br0")
    await bench.guest("fw", f"vlan-nic eth0 30 {TRUNK[1]} dhcp")
    await bench.guest("fw", f"vlan-nic eth0 60 {TRUNK[2]} {RED_IP}/24,{GATEWAY}")
    await bench.guest("fw", "until ip -4 addr show dev eth30 | grep -q inet; do usleep 20000; done")
    (leased,) = (await bench.vm("fw"))["nics"][1]["holds"]

    async def each_answers() -> None:
        for ip in (SHOP, RED_IP):
            said = await bench.guest("peer", f"ping -c 3 -i 0.1 -W 5 {ip}", check=False)
            assert " 0% packet loss" in said, said
        assert await bench.ping("fw", f"-I {leased} 203.0.113.9"), "by its gateway, to the outside"
        assert await bench.ping("fw", f"-I {RED_IP} {GATEWAY}"), "its VRF's gateway answers, with its tag"

    await each_answers()
    async with bench.traffic(leased, pps=200) as traffic, bench.events() as events:
        for target in ("server2", "server3"):
            await bench.migration("fw", target_server=target)
            rows = {(row["switch"], row["mac"]) for row in await bench.bindings("fw") if row["active"]}
            assert rows == {((await bench.vm("fw"))["switch"], mac) for mac in TRUNK}
            renewed = await events.until(
                "renewal.acked",
                lambda e, target=target: e["renewal"]["server"] == target,  # type: ignore[misc]
            )
            assert (renewed["renewal"]["ip"], renewed["renewal"]["vlan"]) == (leased, 30)
            await each_answers()
        await bench.unharmed(traffic)
    assert not await bench.ping("fw", f"-W 1 -I {RED_IP} 203.0.113.9"), "a VRF has no way out"
    async with bench.events() as events:
        hops = udp_frame(TRUNK[1], FABRIC_MAC, IPv4Address(leased), IPv4Address(RED_PEER))
        unknown = udp_frame(TRUNK[0], FABRIC_MAC, IPv4Address(SHOP), IPv4Address(SHOP_PEER))
        for mac, frame in ((TRUNK[1], tagged(hops, 60)), (TRUNK[0], tagged(unknown, 99))):
            await bench.send("fw", frame.hex())
            told = await events.until(
                "spoofing",
                lambda e, mac=mac: (e["spoofing"]["vm"], e["spoofing"]["claimed_mac"]) == ("fw", mac),  # type: ignore[misc]
            )
            assert (told["spoofing"]["kind"], told["spoofing"]["switch"]) == ("ip", "edge3")
    await bench.cli("vm", "nic", "remove", "fw", "fw-3")
    assert not await bench.ping("peer", f"-W 1 {RED_IP}")
    assert await bench.ping("peer", SHOP)
    gone = ("vms/fw", "vms/peer", "subnets/red1", "subnets/shop1", "vnets/reds", "vnets/shop", "vrfs/red")
    for what in gone:
        await bench.request("DELETE", what)
    await bench.put("vnets/default", {"vlan": 0})


async def test_a_nic_is_plugged_in_and_out_while_the_vm_runs_and_migrates_meanwhile(bench: LabBench) -> None:
    """One that came later is found at the target where it was; one that went leaves no trace."""
    first, second = await addresses(bench, 2)
    async with bench.traffic(first, pps=200) as traffic:
        await bench.cli("vm", "nic", "add", "vm1", "--mac", THIRD)
        await bench.guest("vm1", "until [ -e /sys/class/net/eth2 ]; do usleep 20000; done")
        await bench.guest("vm1", "further-nic eth2 dhcp")
        *_, third = await addresses(bench, 3)
        assert await bench.ping("vm1", f"-I {third} {GATEWAY}")
        async with bench.events() as events:
            await bench.cli("vm", "nic", "remove", "vm1", "vm1-2")
            await bench.guest("vm1", "while [ -e /sys/class/net/eth1 ]; do usleep 20000; done")
            await events.until("port.removed")  # Its agent has seen that the guest has let it go.
        await bench.migration("vm1", target_server="server2")
        async with bench.traffic(third, pps=200) as to_third:
            await bench.migration("vm1", target_server="server1")
            await bench.unharmed(to_third)
        await bench.unharmed(traffic)
    vm = await bench.vm("vm1")
    assert [(nic["id"], nic["slot"]) for nic in vm["nics"]] == [("vm1", 1), ("vm1-3", 3)]
    assert second not in {row["ip"] for row in await bench.bindings()}
    for server in ("server1", "server2"):
        ports = (await bench.run(server, "ovs-vsctl", "list-ports", "br0")).split()
        assert "tap-vm1-2" not in ports
    assert "tap-vm1-3" in (await bench.run("server1", "ovs-vsctl", "list-ports", "br0")).split()


async def test_a_guest_that_may_gives_its_nic_another_mac(bench: LabBench) -> None:
    """Its rows are replaced in place, it is reached under its address, and goes on so after a migration."""
    own, new, ip = "52:54:00:00:04:01", "52:54:00:00:04:99", "10.1.0.90"
    async with bench.events() as events:
        await bench.cli("vm", "add", "changer", "--server", "server1", "--mac", own, "--address", ip)
        await bench.cli("vm", "nic", "set", "changer", "--mac-changes")
        await running(bench, events, "changer")
        assert await bench.ping("changer", GATEWAY)
        await bench.guest(
            "changer",
            f"ip link set eth0 down; ip link set eth0 address {new}; ip link set eth0 up; "
            f"ip route replace default via {GATEWAY}",
        )
        pinged = asyncio.create_task(bench.guest("changer", f"ping -c 30 -i 0.2 {GATEWAY}", check=False))
        told = await events.until("nic.mac_changed", lambda e: e["vm"] == "changer")
        assert (told["mac"], told["before"]) == (new, own)
        await pinged
    assert [(row["mac"], row["ip"]) for row in await bench.bindings("changer")] == [(new, ip)]
    async with bench.traffic(ip, pps=200) as traffic:
        await bench.migration("changer", target_server="server2")
        await bench.unharmed(traffic)
    assert [(row["mac"], row["switch"]) for row in await bench.bindings("changer")] == [(new, "edge2")]
    await bench.cli("vm", "remove", "changer")
