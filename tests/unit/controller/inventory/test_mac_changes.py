"""A guest that gives its NIC another MAC: what its port shows takes the place of the old one."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from retinue.controller.kinds import restore
from retinue.controller.neighbours.mac_changes import CALM_SECONDS
from retinue.controller.state import State
from retinue.core.model import NIC, ModelError, PortStatus, VMPort, Vnet
from retinue.core.packets import BROADCAST, Ethernet, arp_request
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import GATEWAY_MAC, add_vm, fabric, vm_ip, vm_mac, vm_port
from support.fabric.world import rarp, tagged, udp_frame
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork
from support.recent_events import recent

NEW, NEWER = "52:54:00:aa:00:01", "52:54:00:aa:00:02"


class World:
    """vm1 on server1 may change its MAC, vm2 on server2 may not, vm4 is beside vm1."""

    def __init__(self, store: MemoryStore) -> None:
        self.now = 1000.0
        self.fake = FakeNetwork(fabric(), clock=lambda: self.now, store=store)
        for number, at in ((1, 1), (2, 2), (4, 1)):
            add_vm(self.fake.net, number, at)

    def says(self, mac: str, vm: int = 1, at: int = 1) -> None:
        """The guest asks for the gateway, as it does when it has set up its NIC."""
        gateway = next(iter(self.fake.net.subnets.values())).gateway
        self.fake.send(f"edge{at}", vm_port(vm), arp_request(mac, vm_ip(vm), gateway))  # type: ignore[arg-type]

    def reaches(self, mac: str, vm: int = 1, at: int = 1) -> bool:
        """A packet that it sends under this MAC comes to vm2, and one of vm2's to it."""
        self.fake.heard.clear()
        self.fake.send(f"edge{at}", vm_port(vm), udp_frame(mac, GATEWAY_MAC, vm_ip(vm), vm_ip(2)))
        return [switch for switch, _, _ in self.fake.heard] == ["edge2"]

    def mac_heard(self, vm: int = 1) -> list[str]:
        """As whose a packet from vm2 comes to it."""
        self.fake.heard.clear()
        self.fake.send("edge2", vm_port(2), udp_frame(vm_mac(2), GATEWAY_MAC, vm_ip(2), vm_ip(vm)))
        return [frame[:6].hex(":") for _, _, frame in self.fake.heard]

    def attempts(self) -> list[tuple[str, str]]:
        return [(row.vm, row.claimed_mac) for row in self.fake.controller.context.spoof_attempts.rows()]

    def rows(self) -> set[tuple[str, str]]:
        return {(row.vm, row.mac) for row in self.fake.net.bindings()}


@pytest.fixture
async def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def world(store: MemoryStore) -> AsyncIterator[World]:
    made = World(store)
    await made.fake.start()
    await made.fake.controller.nics.change("vm1", mac_changes=True)
    yield made
    await made.fake.stop()


async def test_a_new_mac_seen_at_the_port_replaces_the_rows_in_place(
    world: World, store: MemoryStore
) -> None:
    """The VM keeps its id, its address and its port; the old MAC is nobody's, and a standby knows."""
    world.says(NEW)
    await world.fake.settle()
    assert world.rows() == {("vm1", NEW), ("vm2", vm_mac(2)), ("vm4", vm_mac(4))}
    assert world.reaches(NEW) and world.mac_heard() == [NEW]
    assert not world.attempts()
    assert not world.reaches(vm_mac(1))
    assert world.fake.net.vm_of_mac(vm_mac(1)) is None
    (told,) = recent(world.fake.controller.events, "nic.mac_changed")
    assert told.data == {"vm": "vm1", "nic": "vm1", "mac": NEW, "before": vm_mac(1)}
    again = State(fabric())
    restore(again, store.load())
    nic = again.net.vms["vm1"].nic
    assert (nic.mac, nic.initial_mac, nic.mac_changes) == (NEW, vm_mac(1), True)
    assert {a.mac for a in again.net.held_by("vm1")} == {NEW}


async def test_anothers_mac_is_not_taken(world: World) -> None:
    """Neither a VM's, a server's, the gateway's, nor a group address: an attempt, like any other's."""
    others = [vm_mac(2), vm_mac(4), world.fake.net.servers["server2"].mac, GATEWAY_MAC, BROADCAST]
    for mac in others:
        world.says(mac)
        await world.fake.settle()
    assert world.rows() == {(f"vm{n}", vm_mac(n)) for n in (1, 2, 4)}
    assert world.attempts() == [("vm1", mac) for mac in others]
    assert world.reaches(vm_mac(1))


async def test_without_its_managers_word_it_is_spoofing(world: World) -> None:
    world.says(NEW, 2, 2)
    await world.fake.settle()
    assert world.attempts() == [("vm2", NEW)]
    await world.fake.controller.nics.change("vm1", mac_changes=False)
    world.says(NEW)
    await world.fake.settle()
    assert world.attempts() == [("vm2", NEW), ("vm1", NEW)]
    assert world.rows() == {(f"vm{n}", vm_mac(n)) for n in (1, 2, 4)}


async def test_two_macs_by_turns_are_one_change_in_a_while(world: World) -> None:
    for mac in (NEW, NEWER, NEW, NEWER):
        world.says(mac)
        await world.fake.settle()
    assert ("vm1", NEW) in world.rows()
    assert world.attempts() == [("vm1", NEWER)]
    world.now += CALM_SECONDS
    world.says(NEWER)
    await world.fake.settle()
    assert ("vm1", NEWER) in world.rows()
    assert world.fake.net.vms["vm1"].nic.initial_mac == vm_mac(1)
    world.now += CALM_SECONDS
    world.says(vm_mac(1))
    await world.fake.settle()
    assert world.fake.net.vms["vm1"].nic == replace(
        world.fake.net.vms["vm1"].nic, mac=vm_mac(1), initial_mac="", mac_changes=True
    )


async def test_what_is_no_guests_word_changes_nothing(world: World) -> None:
    """What a hypervisor announces, what has a tag, and what a guest does not speak."""
    lldp = Ethernet("01:80:c2:00:00:0e", NEW, 0x88CC, bytes(46)).build()
    for frame in (rarp(NEW, NEW), tagged(udp_frame(NEW, GATEWAY_MAC, vm_ip(1), vm_ip(2)), 7), lldp):
        world.fake.send("edge1", vm_port(1), frame)
        await world.fake.settle()
    assert ("vm1", vm_mac(1)) in world.rows()


async def test_during_a_migration_it_stays_and_after_it_the_new_one_has_gone_along(world: World) -> None:
    net, install = world.fake.net, world.fake.controller.context.install
    net.set_vm_port("vm1", "edge3", VMPort(vm_port(1)))
    vm = net.vms["vm1"]
    await install(net.put_vm(replace(vm, also=frozenset({"server3"}))))
    world.says(NEW)
    await world.fake.settle()
    assert ("vm1", vm_mac(1)) in world.rows() and world.attempts() == [("vm1", NEW)]
    await install(net.put_vm(replace(vm, server="server3")))
    world.says(NEW, 1, 3)
    await world.fake.settle()
    assert world.reaches(NEW, 1, 3) and world.mac_heard() == [NEW]


async def test_its_port_is_known_by_the_mac_it_was_made_with_and_a_new_one_by_the_last(world: World) -> None:
    ports = world.fake.controller.inventory.ports

    def port(mac: str) -> BridgePort:
        return BridgePort(0x31, "br0", "tap1", vm_port(1), PortStatus.UP, "vm1", mac)

    ports.changed([], [port(vm_mac(1))])
    world.says(NEW)
    await world.fake.settle()
    ports.changed([], [replace(port(vm_mac(1)), status=PortStatus.DOWN)])
    ports.changed([], [port(vm_mac(1))])
    await world.fake.settle()
    assert not ports.rejected and world.reaches(NEW)
    ports.changed([port(vm_mac(1))], [])
    await world.fake.settle()
    nic = world.fake.net.vms["vm1"].nic
    assert (nic.mac, nic.initial_mac) == (NEW, ""), "switched off: its next port is made with the last"
    ports.changed([], [port(NEW)])
    await world.fake.settle()
    assert world.reaches(NEW)


async def test_a_trunk_keeps_its_macs(world: World) -> None:
    """By them its NICs are told apart."""
    net = world.fake.net
    net.put_vnet(Vnet("shop", 30))
    vm = net.vms["vm1"]
    in_trunk = NIC("52:54:00:bb:00:01", "vm1-2", vnet="shop", slot=0, trunk="vm1")
    with pytest.raises(ModelError, match="keeps its MAC"):
        net.put_vm(replace(vm, nics=(vm.nic, in_trunk)))
