"""A VM with several NICs on real parts: each with its lease, both migrated in one step, more put in later."""

import asyncio

import pytest

from support.lab.start import running
from support.lab.tools import BOOT_PATIENCE, Json, LabBench, eventually

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.usefixtures("home")]

THIRD = "52:54:00:00:01:03"
GATEWAY = "10.1.0.254"
MACS = ["52:54:00:00:01:01", "52:54:00:00:01:02"]
VMS: list[Json] = [{"id": "vm1", "server": "server1", "nics": [{"mac": mac} for mac in MACS]}]


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

    assert await bench.ping("peer", GATEWAY), "its own gateway answers"
    assert not await bench.ping("peer", "203.0.113.9"), "a VRF has no way out"
    assert not await bench.ping("peer", "10.0.0.11"), "nor to servers"
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
    for vm in ("twin", "peer"):
        await bench.cli("vm", "remove", vm)
    for command in (("subnet", "remove", "red1"), ("vnet", "remove", "reds"), ("vrf", "remove", "red")):
        await bench.cli(*command)


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
