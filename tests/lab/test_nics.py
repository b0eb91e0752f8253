"""A VM with several NICs on real parts: each with its lease, both migrated in one step, more put in later."""

import pytest

from support.lab.tools import BOOT_PATIENCE, Json, LabBench, eventually

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.usefixtures("home")]

THIRD = "52:54:00:00:01:03"
GATEWAY = "10.1.0.254"
MACS = ["52:54:00:00:01:01", "52:54:00:00:01:02"]
VMS: list[Json] = [{"id": "vm1", "server": "server1", "nics": [{"mac": mac} for mac in MACS]}]


async def addresses(bench: LabBench, nics: int) -> list[str]:
    """What each NIC holds, when so many NICs hold an address that the guest has set."""

    async def all_hold() -> bool:
        return [bool(nic["holds"]) for nic in (await bench.vm("vm1"))["nics"]] == [True] * nics

    await eventually(all_hold, BOOT_PATIENCE)
    held = [str(nic["holds"][0]) for nic in (await bench.vm("vm1"))["nics"]]
    for number, address in enumerate(held):
        await bench.guest(
            "vm1", f"until ip -4 addr show dev eth{number} | grep -q {address}/; do usleep 20000; done"
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
