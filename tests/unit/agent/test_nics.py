"""An agent and VMs with several NICs: a port for each, plugged in and out while the VM runs."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from retinue.agent.vms.vm_spec import spec
from retinue.hypervisor import Left, NICSpec
from retinue.hypervisor.paths import MachineFiles
from retinue.hypervisor.qemu import notes
from retinue.hypervisor.qemu.notes import Note
from retinue.protocol.events import ControllerEvent, EventType
from retinue.protocol.nics import NICRecord, SubnetRecord
from retinue.protocol.vms import VMState
from support.agents.world import TABLE, VM, FakeServer, TwoServers, bench_up

FIRST = NICRecord("web", VM.mac)
SECOND = NICRecord("web-2", "52:54:00:00:00:02", slot=2)
THIRD = NICRecord("other", "52:54:00:00:00:03", slot=3)
TWO = replace(VM, nics=[FIRST, SECOND])


@pytest.fixture
async def bench() -> AsyncIterator[TwoServers]:
    async with bench_up() as made:
        yield made


async def running(bench: TwoServers) -> None:
    await bench.after(ControllerEvent(EventType.VM_REGISTERED, vm=TWO))
    await bench.after(ControllerEvent(EventType.VM_READY, vm=TWO))


def nics(*wanted: NICRecord) -> ControllerEvent:
    return ControllerEvent(EventType.VM_NICS, vm=replace(VM, nics=list(wanted)))


async def test_each_nic_has_a_port_from_the_registration_to_the_removal(bench: TwoServers) -> None:
    assert await bench.after(ControllerEvent(EventType.VM_REGISTERED, vm=TWO)) == [
        "server1: plug web 52:54:00:00:00:01",
        "server1: plug web-2 52:54:00:00:00:02",
    ]
    await bench.after(ControllerEvent(EventType.VM_READY, vm=TWO))
    assert bench.source.machine.spec.ports == ("tap-web", "tap-web-2")
    bench.source.ports.plugged.discard("web-2")
    assert await bench.after(ControllerEvent(EventType.PORT_REMOVED, vm_id="web")) == [
        "server1: plug web-2 52:54:00:00:00:02"
    ], "the one that is gone, and no other"
    assert await bench.after(ControllerEvent(EventType.VM_REMOVED, vm=TWO)) == [
        "server1: quit",
        "server1: unplug web",
        "server1: unplug web-2",
    ]


async def test_a_nic_is_put_in_its_port_first_and_taken_out_its_port_last(bench: TwoServers) -> None:
    await running(bench)
    assert await bench.after(nics(FIRST, SECOND, THIRD)) == [
        "server1: plug other 52:54:00:00:00:03",
        "server1: has tap-web-2 tap-other",
    ]
    assert await bench.after(nics(FIRST, THIRD)) == ["server1: has tap-other", "server1: unplug web-2"]
    assert await bench.after(nics(FIRST, THIRD)) == [], "it is so already"
    assert bench.source.machine.spec.more_nics == (NICSpec("other", THIRD.mac, "tap-other", 3),)


async def test_a_nic_in_a_trunk_is_no_device_and_has_no_port(bench: TwoServers) -> None:
    await running(bench)
    in_trunk = NICRecord("web-3", THIRD.mac, vnet="shop", slot=0, trunk="web", vlan=50)
    assert await bench.after(nics(FIRST, SECOND, in_trunk)) == []
    assert await bench.after(nics(FIRST, in_trunk)) == [
        "server1: has no further NICs",
        "server1: unplug web-2",
    ]


async def test_a_vm_that_is_off_has_other_ports_and_starts_with_them(bench: TwoServers) -> None:
    await bench.after(ControllerEvent(EventType.VM_REGISTERED, vm=TWO))
    assert await bench.after(nics(FIRST, THIRD)) == [
        "server1: plug other 52:54:00:00:00:03",
        "server1: unplug web-2",
    ]
    await bench.after(ControllerEvent(EventType.VM_READY, vm=replace(VM, nics=[FIRST, THIRD])))
    assert bench.source.machine.spec.ports == ("tap-web", "tap-other")


async def test_the_port_of_a_vm_that_is_off_is_made_anew_for_another_mac(bench: TwoServers) -> None:
    await bench.after(ControllerEvent(EventType.VM_REGISTERED, vm=TWO))
    other = replace(SECOND, mac=THIRD.mac)
    assert await bench.after(nics(FIRST, other)) == [f"server1: plug web-2 {THIRD.mac}"]
    await bench.after(ControllerEvent(EventType.VM_READY, vm=replace(VM, nics=[FIRST, other])))
    assert bench.source.machine.spec.more_nics == (NICSpec("web-2", THIRD.mac, "tap-web-2", 2),)


async def test_a_guest_that_does_not_let_go_keeps_its_port_until_it_does(bench: TwoServers) -> None:
    await running(bench)
    bench.source.machine.stuck = True
    assert await bench.after(nics(FIRST)) == []
    assert bench.source.ports.plugged == {"web", "web-2"}
    bench.source.machine.stuck = False
    assert await bench.after(nics(FIRST)) == ["server1: has no further NICs", "server1: unplug web-2"]


async def test_a_target_has_the_port_of_each_nic_and_a_machine_built_alike(bench: TwoServers) -> None:
    await running(bench)
    opened = ControllerEvent("migration.open_target", vm=TWO, migration=bench.migration())
    told = await bench.after(opened)
    assert told[:2] == ["server2: plug web 52:54:00:00:00:01", "server2: plug web-2 52:54:00:00:00:02"]
    assert bench.target.machine.spec == bench.source.machine.spec
    undone = await bench.after(ControllerEvent("migration.roll_back", vm=TWO, migration=bench.migration()))
    assert {"server2: unplug web", "server2: unplug web-2"} <= set(undone)
    assert bench.source.ports.plugged == {"web", "web-2"}


async def test_another_agent_knows_each_nic_and_mends_what_the_first_did_not_come_to_do(
    bench: TwoServers,
) -> None:
    """It looks at what the machine has: nobody tells it once more."""
    await running(bench)
    machine = bench.source.machine
    await bench.source.down()
    port = int(bench.source.transfer.address.rpartition(":")[2])
    bench.agents["server1"] = await FakeServer.up(bench.world, "server1", port)
    machine.on_event = bench.source.dispatcher.listener("web")
    await bench.source.dispatcher.adopt_all(Left([machine]))
    assert [line for line in await bench.settled() if "plug" in line] == [
        "server1: plug web 52:54:00:00:00:01",
        "server1: plug web-2 52:54:00:00:00:02",
    ]
    changed = replace(VM, nics=[FIRST, THIRD], state=VMState.RUNNING)
    assert [line for line in await bench.catch_up("server1", vms=(changed,)) if "tells" not in line] == [
        "server1: plug other 52:54:00:00:00:03",
        "server1: has tap-other",
        "server1: unplug web-2",
    ]
    again = await bench.catch_up("server1", vms=(changed,))
    assert [line for line in again if "tells" not in line] == []


def test_a_machines_note_has_its_nics(tmp_path: Path) -> None:
    files = MachineFiles.named(tmp_path, "tap-web-1")
    made = spec(TWO, TABLE)
    notes.write(files, Note(made))
    read = notes.read(files.note)
    assert read is not None and read.spec == made


def test_the_guest_is_told_of_each_nic_what_it_is_to_do() -> None:
    static = NICRecord("web-2", SECOND.mac, addresses=["10.1.0.51"])
    vm = replace(VM, nics=[FIRST, static, THIRD], subnets={})
    table = replace(TABLE, append="ip={ipv4}", append_each_nic="nic{nic}={ipv4}")
    assert "ip=dhcp nic1=10.1.0.51/24 nic2=dhcp" in spec(vm, table).append
    assert "nic" not in spec(vm, replace(table, append_each_nic="")).append


def test_the_same_address_in_two_vrfs_is_told_each_guests_nic_with_its_own_subnet() -> None:
    """One NIC's subnet is no other's, even where the address is the same."""
    one, two = SubnetRecord(24, "10.1.0.254"), SubnetRecord(20, "10.1.15.254")
    first, second = (
        replace(nic, addresses=["10.1.0.51"], subnets={"10.1.0.51": subnet})
        for nic, subnet in ((FIRST, one), (SECOND, two))
    )
    table = replace(TABLE, append="ip={ipv4}", append_each_nic="nic{nic}={ipv4}")
    line = spec(replace(VM, nics=[first, second]), table).append
    assert "ip=10.1.0.51/24,10.1.0.254 nic1=10.1.0.51/20,10.1.15.254" in line


async def test_each_nic_has_the_mtu_of_its_network_and_keeps_it_while_it_is_there(bench: TwoServers) -> None:
    """A network's other MTU is no other NIC: none is plugged out for it."""
    slower = replace(SECOND, mtu=1400)
    made = spec(replace(VM, mtu=1450, nics=[replace(FIRST, mtu=1300), slower, THIRD]), TABLE)
    assert [nic.mtu for nic in made.nics] == [1300, 1400, 1450]
    await running(bench)
    assert await bench.after(nics(FIRST, slower)) == []
    assert bench.source.machine.spec.ports == ("tap-web", "tap-web-2")
