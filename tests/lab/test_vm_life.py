"""A VM's life on real parts: it reboots, is switched off and on, crashes, and loses its port."""

import json
from typing import Any

import pytest

from retinue.core.model import Ending
from support.lab.guest_dhcp import of_vm
from support.lab.tools import BOOT_PATIENCE, Events, LabBench, at, eventually, long

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.patient]

VMS = [at("vm1", "server1"), {**at("vm2", "server2", "10.1.0.50"), "restart": "on-crash"}]

OWN = "10.1.0.150"
"""A static address among those that the DHCP server gives out."""


async def boots(bench: LabBench, vm: str) -> int:
    return (await bench.console(vm)).count("RETINUE READY")


async def where(bench: LabBench, vm: str) -> tuple[Any, ...]:
    shown = await bench.vm(vm)
    rows = await bench.bindings(vm)
    bound = sorted((row["ip"], row["mac"], row["switch"], row["port"]) for row in rows)
    return shown["server"], shown["port"], shown["holds"], bound


async def has_booted(bench: LabBench, vm: str, before: int) -> None:
    async def again() -> bool:
        return await boots(bench, vm) > before

    await eventually(again, BOOT_PATIENCE)


async def booted(bench: LabBench, vm: str, before: int) -> None:
    """Return when the guest has booted once more, and answers."""
    await has_booted(bench, vm, before)
    address = await bench.address(vm)

    async def answers() -> bool:
        return await bench.ping("vm2" if vm == "vm1" else "vm1", address)

    await eventually(answers, BOOT_PATIENCE)


async def is_in_state(bench: LabBench, vm: str, state: str) -> None:
    async def so() -> bool:
        return bool((await bench.vm(vm))["state"] == state)

    await eventually(so, BOOT_PATIENCE)


async def stopped(events: Events, vm: str) -> dict[str, Any]:
    return await events.until("vm.stopped", lambda e: e["vm"]["id"] == vm, timeout=BOOT_PATIENCE)


@pytest.mark.parametrize("how", ["inside", long("reboot"), long("reset")])
async def test_a_vm_that_reboots_is_where_it_was(bench: LabBench, how: str) -> None:
    before, place = await boots(bench, "vm1"), await where(bench, "vm1")
    machines = await bench.machines("vm1")
    async with bench.events() as events:
        if how == "inside":
            await bench.guest("vm1", "(sleep 0.2; reboot -f) >/dev/null 2>&1 &")
        else:
            await bench.cli("vm", how, "vm1")
        await booted(bench, "vm1", before)
        assert events.of("vm.stopped") == []
        assert events.of("port.removed") == []
    assert await where(bench, "vm1") == place
    assert await bench.machines("vm1") == machines
    assert (await bench.vm("vm1"))["state"] == "running"


async def test_a_port_that_somebody_takes_out_is_put_back(bench: LabBench) -> None:
    async with bench.events() as events:
        await bench.run("server1", "ovs-vsctl", "del-port", "br0", "tap-vm1")
        await events.until("port.removed")
        await events.until("port.added")

    async def answers() -> bool:
        return await bench.ping("vm2", await bench.address("vm1"))

    await eventually(answers)


@pytest.mark.parametrize("how", ["inside", "soft", long("hard")])
async def test_a_vm_that_is_off_stays_off_until_it_is_started(bench: LabBench, how: str) -> None:
    pressed = (await bench.console("vm1")).count("RETINUE OFF")
    async with bench.events() as events:
        if how == "inside":
            await bench.guest("vm1", "(sleep 0.2; poweroff -f) >/dev/null 2>&1 &")
            assert (await stopped(events, "vm1"))["how"] == Ending.OFF
        else:
            await bench.cli("vm", "stop", "vm1", "--wait", *(["--hard"] if how == "hard" else []))
            heeded = (await bench.console("vm1")).count("RETINUE OFF") > pressed
            assert heeded == (how == "soft")
    assert (await bench.vm("vm1"))["state"] == "off"
    assert await bench.machines("vm1") == []
    if how == "inside":
        bench.kill("controller")
        await bench.restart_controller()
        async with bench.events() as events:
            await bench.cli("vm", "start", "vm2")  # Which runs: when that is known, agents have caught up.
            await is_in_state(bench, "vm2", "running")
        assert (await bench.vm("vm1"))["state"] == "off"
        assert await bench.machines("vm1") == []
    await bench.cli("vm", "start", "vm1", "--wait")
    await booted(bench, "vm1", 0)
    assert (await bench.vm("vm1"))["state"] == "running"


async def test_a_vm_that_is_off_starts_with_another_mac(bench: LabBench) -> None:
    """Its agent keeps its port while it is off, and makes it anew; a VM that runs keeps its MAC."""
    before, other = (await bench.vm("vm1"))["mac"], "52:54:00:99:99:01"
    said = await bench.cli("vm", "nic", "set", "vm1", "--mac", other, fails=True)
    assert "`retinue vm stop vm1`" in said
    for mac in (other, before):
        await bench.cli("vm", "stop", "vm1", "--hard", "--wait")
        await bench.cli("vm", "nic", "set", "vm1", "--mac", mac)
        assert await bench.bindings("vm1") == [], "its lease was that of the old one"
        async with bench.events() as events:
            await bench.cli("vm", "start", "vm1", "--wait")
            await events.until("binding.added", of_vm("vm1"), timeout=BOOT_PATIENCE)
        await booted(bench, "vm1", 0)
        assert (await bench.guest("vm1", "cat /sys/class/net/eth0/address")).strip() == mac
        assert [row["mac"] for row in await bench.bindings("vm1")] == [mac]


async def test_a_crash_is_told_apart_and_the_vm_started_again_where_it_was_asked_for(bench: LabBench) -> None:
    before = await boots(bench, "vm2")
    for vm, server, restarts in (("vm1", "server1", False), ("vm2", "server2", True)):
        async with bench.events() as events:
            await kill_qemu(bench, vm, server)
            told = await stopped(events, vm)
            assert (told["how"], "QEMU has ended" in told["reason"]) == (Ending.CRASHED, True)
            if restarts:
                await events.until("vm.started", lambda e: e["vm"]["id"] == "vm2", timeout=BOOT_PATIENCE)
                continue
            assert (await bench.vm(vm))["state"] == "crashed"
        await bench.cli("vm", "start", "vm1", "--wait")
    await is_in_state(bench, "vm2", "running")
    await has_booted(bench, "vm2", before)
    await booted(bench, "vm1", 0)


async def test_a_vm_that_is_stopped_while_it_migrates_is_off_there_and_starts_as_it_was_changed(
    bench: LabBench,
) -> None:
    """Runs last: vm1 has moved, and has another address, which the DHCP server may give out as well."""
    async with bench.events() as events:
        id = (await bench.post("migrations", {"vm": "vm1", "target_server": "server3"}))["id"]
        assert (await bench.post("vms/vm1/stop", {"hard": True}))["migration"] == id
        await events.until("migration.step", lambda e: e["migration"]["state"] == "done")
        assert (await stopped(events, "vm1"))["server"] == "server3"
    said = await bench.cli("vm", "set", "vm1", "--memory", "192", "--address", OWN)
    assert "VM vm1 is changed: 192 MiB" in said
    (warning,) = (await bench.vm("vm1"))["warnings"]
    assert f"{OWN} is in 10.1.0.100-10.1.0.199" in warning
    await bench.cli("vm", "start", "vm1", "--wait")
    await has_booted(bench, "vm1", 0)

    async def answers() -> bool:
        return await bench.ping("vm2", OWN)

    await eventually(answers, BOOT_PATIENCE)
    found = int(await bench.guest("vm1", "sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo"))
    assert 128 * 1024 < found <= 192 * 1024
    assert "its memory changes only while it is off" in await bench.cli(
        "vm", "set", "vm1", "--memory", "128", fails=True
    )


async def kill_qemu(bench: LabBench, vm: str, server: str) -> None:
    """As it is written down for the server's agent, for the machine that runs."""
    for path in (bench.lab.directory / "agents" / server / "vms").glob(f"tap-{vm}-*.json"):
        await bench.run(server, "kill", "-KILL", str(json.loads(path.read_text())["pid"]))
