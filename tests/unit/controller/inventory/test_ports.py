"""Which of the ports that switches report is a VM's, which is not and why; what removed VMs leave behind."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from retinue.controller.state import LeftPort, Stored
from retinue.core.limits import HIGHEST_VM_PORT
from retinue.core.model import NIC, VM, PortStatus, Subnet, Vnet
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
    fake.controller.inventory.ports.changed(list(gone), list(now))
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
    assert [one.port.name for one in fake.controller.inventory.ports.rejected.values()] == ["zz0"]
    assert await reports(fake, gone=(SECOND,)) == {"edge1": ("tap1", vm_port(1))}
    assert not fake.controller.inventory.ports.rejected
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
    assert {key: one.reason for key, one in fake.controller.inventory.ports.rejected.items()} == {
        (0x31, "tap1"): unreadable.problem,
        (0x11, "p9"): "switch leaf1 is not the edge of a server",
    }
    assert await reports(fake, port()) == {"edge1": ("tap1", vm_port(1))}
    await reports(fake, taken)
    assert set(fake.net.vms) == {"vm1"}
    assert (0x31, "tap1") not in fake.controller.inventory.ports.rejected
    await reports(fake, gone=(port(),))
    assert set(fake.net.vms) == {"vm2"}, "what was in its way has gone"


@pytest.mark.parametrize("registered", [True, False])
async def test_a_port_whose_number_has_no_meters_is_no_vms(fake: FakeNetwork, registered: bool) -> None:
    """A server asks for the number whose meters are those of others: nobody else's entries wait for it."""
    if registered:
        register(fake)
    high = port(number=HIGHEST_VM_PORT + 1)
    said = f"its number is {HIGHEST_VM_PORT + 1}, and VMs' ports have one up to {HIGHEST_VM_PORT}"
    assert await reports(fake, high) == {}
    assert [reason.split(";")[0] for reason in mismatches(fake)] == [said]
    assert ("vm1" in fake.net.vms) is registered
    assert await reports(fake, port(number=HIGHEST_VM_PORT)) == {"edge1": ("tap1", HIGHEST_VM_PORT)}
    assert not fake.controller.inventory.ports.rejected
    await reports(fake, high)
    assert fake.net.vm_ports.get("vm1", {}) == {}


@pytest.mark.parametrize("registered", [True, False])
async def test_a_port_that_takes_copies_is_no_vms(fake: FakeNetwork, registered: bool) -> None:
    """Whatever id somebody puts on it: else what others send would be copied to the VM."""
    if registered:
        register(fake)
    assert await reports(fake, port(name="mirror0")) == {}
    assert [reason.split(";")[0] for reason in mismatches(fake)] == [
        "a port called mirror0 takes copies of what others send"
    ]
    assert ("vm1" in fake.net.vms) is registered


# ---- VLAN tags, as libvirt gives them to ports ----


async def test_a_ports_vlan_tag_must_be_that_of_the_nics_vnet(fake: FakeNetwork) -> None:
    """What the XML of a domain says in `<vlan>`, Open vSwitch has on the port."""
    fake.net.put_vnet(Vnet("shop", 42))
    fake.net.add_subnet(Subnet("shop1", IPv4Network("10.2.0.0/24"), IPv4Address("10.2.0.254"), vnet="shop"))
    vm = VM("vm1", (NIC(vm_mac(1), "vm1", vnet="shop"),), "server1")
    fake.controller.inventory.register_vms([vm])
    assert await reports(fake, replace(port(), tag=43)) == {}
    assert mismatches(fake) == [
        "its VLAN tag is 43, and the NIC is in vnet shop (VLAN 42); take the tag away (of libvirt: "
        "`<vlan>`), or put the NIC into the vnet with that VLAN"
    ]
    assert await reports(fake, replace(port(), tag=42)) == {"edge1": ("tap1", vm_port(1))}
    assert not fake.controller.inventory.ports.rejected
    await fake.controller.vnets.set_vnet(Vnet("shop", 43))
    assert await reports(fake) == {}, "the vnet has another VLAN now"
    await fake.controller.vnets.set_vnet(Vnet("shop", 42))
    assert await reports(fake) == {"edge1": ("tap1", vm_port(1))}
    assert await reports(fake, replace(port(), trunks=(42, 7))) == {}
    said = "its port is a trunk of VLANs 7, 42, and the NIC has no trunk; make both the same"
    assert mismatches(fake)[-1] == said
    assert await reports(fake, port()) == {"edge1": ("tap1", vm_port(1))}, "without a tag it is as ever"


async def test_a_tag_where_the_vnet_has_none_is_refused(fake: FakeNetwork) -> None:
    register(fake)
    assert await reports(fake, replace(port(), tag=5)) == {}
    assert "the NIC is in vnet default (no VLAN)" in mismatches(fake)[0]


async def test_a_vm_that_nobody_registered_is_in_the_vnet_of_its_tag(fake: FakeNetwork) -> None:
    assert await reports(fake, replace(port(), tag=42)) == {}
    assert mismatches(fake) == [
        "its VLAN tag is 42, which is no vnet's; `retinue vnet add ID --vlan 42` makes one"
    ]
    assert "vm1" not in fake.net.vms
    await fake.controller.vnets.add_vnets([Vnet("shop", 42)])
    assert await reports(fake) == {"edge1": ("tap1", vm_port(1))}, "it is looked at again"
    assert fake.net.vms["vm1"].nic.vnet == "shop"
    assert not fake.controller.inventory.ports.rejected


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
    again.controller.inventory.ports.edge_read([0x31, 0x32, 0x33], ["vm1"])
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
    inventory.ports.edge_read([0x31], ["vm1"])
    await inventory.remove_vm("vm1")
    assert fake.controller.context.state.left_ports == {"vm1": LeftPort("vm1", "vm1", ("edge1",))}
    await reports(fake, gone=(port(),))
    assert not fake.controller.context.state.left_ports
    await reports(fake, port())
    await inventory.remove_vm("vm1")
    again = await after_restart(fake)
    assert again.controller.context.state.left_ports
    again.controller.inventory.ports.edge_read([0x31], [])
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
