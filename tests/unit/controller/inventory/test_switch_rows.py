"""Rows that a switch made by itself and reports: judged by the rules of all, and bindings like others."""

from collections.abc import AsyncIterator
from ipaddress import IPv4Address

import pytest

from retinue.core.model import IP, VM, Origin, VMPort
from retinue.core.snooping.switch_rows import SwitchRow
from support.fabric.networks import GATEWAY_MAC, add_vm, fabric, vm_ip, vm_mac, vm_port
from support.fabric.world import udp_frame
from support.fakes.session import FakeNetwork
from support.recent_events import recent

NEW = IPv4Address("10.1.0.150")


class World:
    """vm1 on server1 has no address, vm2 on server2 and vm4 beside vm1 have theirs."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.fake = FakeNetwork(fabric(), clock=lambda: self.now)
        add_vm(self.fake.net, 1, 1, bound=False)
        for number, at in ((2, 2), (4, 1)):
            add_vm(self.fake.net, number, at)
        port = VMPort(vm_port(1), "tap1")
        self.fake.net.set_vm_port("vm1", "edge1", port)

    def row(self, mac: str = "", ip: IP = NEW, port: str = "tap1", end: float | None = 1600.0) -> SwitchRow:
        return SwitchRow(mac or vm_mac(1), ip, port, end)

    async def reported(self, *rows: SwitchRow, switch: str = "edge1") -> list[str]:
        said = await self.fake.controller.switch_rows.reported(switch, rows)
        await self.fake.settle()
        return said

    def reaches(self) -> bool:
        self.fake.heard.clear()
        self.fake.send("edge1", vm_port(1), udp_frame(vm_mac(1), GATEWAY_MAC, NEW, vm_ip(2)))
        self.fake.send("edge2", vm_port(2), udp_frame(vm_mac(2), GATEWAY_MAC, vm_ip(2), NEW))
        return [(switch, port) for switch, port, _ in self.fake.heard] == [
            *(("edge2", vm_port(2)), ("edge1", vm_port(1)))
        ]

    def holds(self, vm: str = "vm1") -> list[str]:
        return [str(held.ip) for held in self.fake.net.held_by(vm)]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    await made.fake.start()
    yield made
    await made.fake.stop()


async def test_a_row_of_the_switchs_own_is_a_binding(world: World) -> None:
    assert not world.reaches()
    assert await world.reported(world.row()) == [""]
    assert world.reaches()
    (row,) = world.fake.net.bindings(["vm1"])
    assert (row.origin, row.kind, row.switch, row.lease_end) == (Origin.SWITCH, "dynamic", "edge1", 1600.0)
    assert [event.type for event in recent(world.fake.controller.events, "binding.", 10)] == ["binding.added"]
    # It ends with its lease, on the switch as well.
    world.now = 1601.0
    for switch in world.fake.fabric.switches.values():
        switch.expire(world.now)
    await world.fake.controller.dhcp.expire()
    await world.fake.settle()
    assert not world.reaches() and world.holds() == []


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"mac": "52:54:00:00:00:99"}, "no VM has MAC 52:54:00:00:00:99"),
        ({"mac": vm_mac(2), "port": "tap2"}, "VM vm2 is at switch edge2, not at edge1"),
        ({"port": "tap4"}, "NIC vm1 has port tap1 there, not tap4"),
        ({"ip": vm_ip(2)}, "10.1.0.102 is held by VM vm2"),
        ({"ip": IPv4Address("10.1.0.254")}, "it is not free"),
        ({"ip": IPv4Address("10.0.0.12")}, "it is not free"),
        ({"ip": IPv4Address("192.0.2.1")}, "192.0.2.1 is in no subnet"),
    ],
)
async def test_it_is_judged_as_all_are(world: World, row: dict[str, object], why: str) -> None:
    """Neither theft of an address or a MAC, nor another port: rejected, told, and nothing changes."""
    before = world.fake.net.bindings()
    assert await world.reported(world.row(**row)) == [why]  # type: ignore[arg-type]
    assert world.fake.net.bindings() == before
    assert [event.type for event in recent(world.fake.controller.events, "binding.", 10)] == [
        "binding.rejected"
    ]


async def test_what_dhcp_or_a_manager_gave_is_known_better(world: World) -> None:
    (before,) = world.fake.net.held_by("vm4")
    row = SwitchRow(vm_mac(4), vm_ip(4), str(vm_port(4)), 1600.0)
    assert await world.reported(row) == [""]
    assert world.fake.net.held_by("vm4") == (before,)
    assert await world.reported() == []
    assert world.fake.net.held_by("vm4") == (before,), "and is not the switch's to end"


async def test_one_that_the_switch_has_no_longer_ends_and_one_renewed_lasts(world: World) -> None:
    await world.reported(world.row())
    await world.reported(world.row(end=1600.5))
    assert [held.lease_end for held in world.fake.net.held_by("vm1")] == [1600.0], "the same, rounded"
    await world.reported(world.row(end=2200.0))
    assert [held.lease_end for held in world.fake.net.held_by("vm1")] == [2200.0]
    await world.reported(world.row(ip=IPv4Address("10.1.0.151")))
    assert world.holds() == ["10.1.0.151"]
    (told,) = recent(world.fake.controller.events, "binding.removed", 10)
    assert told.data["reason"] == "the switch that had made it has it no longer"


async def test_a_switch_that_a_vm_has_left_ends_nothing(world: World) -> None:
    """Its table is cleared after a migration; the VM has the address where it is."""
    await world.reported(world.row())
    net = world.fake.net
    net.set_vm_port("vm1", "edge2", VMPort(vm_port(1)))
    moved = VM("vm1", net.vms["vm1"].nics, "server2")
    await world.fake.controller.context.install(net.put_vm(moved))
    assert await world.reported() == []
    assert await world.reported(switch="edge2") == []
    assert world.holds() == [str(NEW)]
