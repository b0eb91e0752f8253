"""Which of the ports that switches report is a VM's, which is not and why; what removed VMs leave behind."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from retinue.controller.state import LeftPort, Stored
from retinue.core.model import VM, PortStatus
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import fabric, vm_ip, vm_mac, vm_port
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork
from support.recent_events import recent

ADDRESS = (vm_ip(1),)


@pytest.fixture
async def fake() -> AsyncIterator[FakeNetwork]:
    fake = FakeNetwork(fabric(), lambda: 1000.0, MemoryStore())
    await fake.start()
    yield fake
    await fake.stop()


def port(vm: int = 1, edge: int = 1, name: str = "tap1", number: int = 0) -> BridgePort:
    number = number or vm_port(vm)
    return BridgePort(0x30 + edge, "br0", name, number, PortStatus.UP, f"vm{vm}", vm_mac(vm))


async def reports(
    fake: FakeNetwork, *now: BridgePort, gone: tuple[BridgePort, ...] = ()
) -> dict[str, tuple[str, int]]:
    """What is reported; then, by switch, name and number of vm1's port."""
    fake.controller.inventory.vm_ports_changed(list(gone), list(now))
    await fake.settle()
    ports = fake.net.vm_ports.get("vm1", {})
    return {switch: (one.name, one.number) for switch, one in ports.items()}


def mismatches(fake: FakeNetwork) -> list[str]:
    return [str(event.data["reason"]) for event in recent(fake.controller.events, "vm.mismatch", 100)]


def register(fake: FakeNetwork, at: int = 1) -> None:
    vm = VM.with_one_nic("vm1", vm_mac(1), f"server{at}", addresses=ADDRESS)
    fake.controller.inventory.register_vms([vm])


SECOND = port(name="zz0", number=77)


@pytest.mark.parametrize("registered", [True, False])
async def test_a_second_port_with_a_vms_id_takes_nothing_from_the_first(
    fake: FakeNetwork, registered: bool
) -> None:
    """The first one keeps working, the operator is told once, and when one goes the other is the port."""
    if registered:
        register(fake)
    assert await reports(fake, port()) == {"edge1": ("tap1", vm_port(1))}
    assert await reports(fake, SECOND) == {"edge1": ("tap1", vm_port(1))}
    assert await reports(fake, replace(SECOND, status=PortStatus.DOWN)) == {"edge1": ("tap1", vm_port(1))}
    assert mismatches(fake) == ["port tap1 has the same id, and is used"]
    assert [one.port.name for one in fake.controller.inventory.rejected_ports.values()] == ["zz0"]
    assert await reports(fake, gone=(SECOND,)) == {"edge1": ("tap1", vm_port(1))}
    assert not fake.controller.inventory.rejected_ports
    assert await reports(fake, SECOND, gone=(port(),)) == {"edge1": ("zz0", 77)}
    assert await reports(fake, port()) == {"edge1": ("zz0", 77)}
    assert "vm1" in fake.net.vms
    assert await reports(fake, gone=(port(), SECOND)) == {}
    assert ("vm1" in fake.net.vms) is registered


@pytest.mark.parametrize("ports", [(port(), SECOND), (SECOND, port())])
async def test_of_two_ports_found_at_once_the_same_is_chosen_always(
    fake: FakeNetwork, ports: tuple[BridgePort, ...]
) -> None:
    assert await reports(fake, *ports) == {"edge1": ("tap1", vm_port(1))}
    register(fake)
    await fake.settle()
    assert await reports(fake) == {"edge1": ("tap1", vm_port(1))}
    assert mismatches(fake) == ["port tap1 has the same id, and is used"]


async def test_a_port_of_another_mac_is_no_choice(fake: FakeNetwork) -> None:
    register(fake)
    wrong = replace(port(name="aa0", number=2), attached_mac=vm_mac(9))
    assert await reports(fake, wrong) == {}
    assert await reports(fake, port()) == {"edge1": ("tap1", vm_port(1))}
    assert await reports(fake, gone=(port(),)) == {}
    assert len(mismatches(fake)) == 1


async def test_a_port_that_is_no_vms_is_told_once_and_shown(fake: FakeNetwork) -> None:
    """Whatever is missing; when it is put right the VM is there."""
    no_mac = replace(port(), attached_mac=None)
    unreadable = replace(no_mac, problem="external_ids:attached-mac of interface tap1: 'x' is no MAC address")
    taken = replace(port(2, 1, "tap2"), attached_mac=vm_mac(1))
    nowhere = BridgePort(0x11, "leaf", "p9", 9, PortStatus.UP, "vm5", vm_mac(5))
    assert await reports(fake, no_mac) == {}
    assert await reports(fake, no_mac) == {}
    assert await reports(fake, unreadable, nowhere) == {}
    assert mismatches(fake) == [
        "its interface has no external_ids:attached-mac",
        unreadable.problem,
        "switch leaf1 is not the edge of a server",
    ]
    assert {key: one.reason for key, one in fake.controller.inventory.rejected_ports.items()} == {
        (0x31, "tap1"): unreadable.problem,
        (0x11, "p9"): "switch leaf1 is not the edge of a server",
    }
    assert await reports(fake, port()) == {"edge1": ("tap1", vm_port(1))}
    await reports(fake, taken)
    assert set(fake.net.vms) == {"vm1"}
    assert (0x31, "tap1") not in fake.controller.inventory.rejected_ports
    await reports(fake, gone=(port(),))
    assert set(fake.net.vms) == {"vm2"}, "what was in its way has gone"


# ---- removed VMs ----


async def after_restart(fake: FakeNetwork) -> FakeNetwork:
    store = fake.controller.context._store
    assert isinstance(store, MemoryStore)
    again = FakeNetwork(fabric(), lambda: 1000.0, store)
    again.controller.restore(store.load())
    await again.start()
    return again


@pytest.mark.parametrize("restarted", [True, False])
async def test_a_vm_that_was_removed_comes_back_by_no_port(fake: FakeNetwork, restarted: bool) -> None:
    """Its agent could not take the port away, whatever was restarted meanwhile."""
    register(fake)
    await reports(fake, port())
    await fake.controller.inventory.remove_vm("vm1")
    again = await after_restart(fake) if restarted else fake
    await reports(again, port(), replace(port(), status=PortStatus.DOWN))
    again.controller.inventory.edge_read([0x31, 0x32, 0x33], ["vm1"])
    await again.settle()
    assert not again.net.vms
    assert not mismatches(again)
    if restarted:
        await again.stop()


async def test_a_vm_removed_while_nobody_knows_its_port_comes_back_by_none(fake: FakeNetwork) -> None:
    register(fake)
    await fake.controller.inventory.remove_vm("vm1")
    await reports(fake, port())
    assert not fake.net.vms


async def test_a_port_that_has_gone_may_come_back_as_another_vms(fake: FakeNetwork) -> None:
    """It goes while the controller looks, or while it does not."""
    inventory = fake.controller.inventory
    register(fake)
    await reports(fake, port())
    inventory.edge_read([0x31], ["vm1"])
    await inventory.remove_vm("vm1")
    assert fake.controller.context.state.left_ports == {"vm1": LeftPort("vm1", "vm1", ("edge1",))}
    await reports(fake, gone=(port(),))
    assert not fake.controller.context.state.left_ports
    await reports(fake, port())
    await inventory.remove_vm("vm1")
    again = await after_restart(fake)
    assert again.controller.context.state.left_ports
    again.controller.inventory.edge_read([0x31], [])
    assert not again.controller.context.state.left_ports
    assert not fake.controller.context._store.load().left_ports  # type: ignore[attr-defined]
    await reports(again, port())
    assert set(again.net.vms) == {"vm1"}
    await again.stop()


async def test_a_vm_may_be_registered_again_though_a_port_was_left(fake: FakeNetwork) -> None:
    register(fake)
    await reports(fake, port())
    await fake.controller.inventory.remove_vm("vm1")
    register(fake)
    await fake.settle()
    assert await reports(fake) == {"edge1": ("tap1", vm_port(1))}
    assert fake.controller.context.state.vm_states["vm1"] == "ready"
    assert not fake.controller.context.state.left_ports


async def test_entries_of_a_vm_that_was_removed_go_as_its_switch_is_read(fake: FakeNetwork) -> None:
    register(fake)
    await reports(fake, port())
    stored = Stored(left_ports=[LeftPort("vm1", "vm1", ("edge1",))])
    again = FakeNetwork(fabric(), lambda: 1000.0)
    again.fabric = fake.fabric
    again.controller.restore(stored)
    await again.start()
    for switch, programmer in again.controller.context.installer.switches.items():
        assert not programmer.held, switch
        assert not programmer.pending, switch
    await again.stop()
