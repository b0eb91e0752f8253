"""A packet to a VM whose server has not been found: held, asked for once, and sent on when it is there."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

import pytest

from retinue.controller.counters import Count
from retinue.controller.neighbours import held_packets
from retinue.controller.switches import programmer
from retinue.core.limits import MOST_HELD_OF_A_VM
from retinue.core.model import NIC, VM, PortRef, PortStatus
from retinue.core.packets import arp_request, parse
from retinue.core.pipeline.cookies import Reason, reason_of
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import (
    GATEWAY_MAC,
    INFRA_GATEWAY,
    add_vm,
    fabric,
    leaf_port,
    vm_ip,
    vm_mac,
    vm_port,
)
from support.fabric.tenants import add_tenants, vnet_of
from support.fabric.world import udp_frame
from support.fakes.session import FakeNetwork

TO = vm_ip(1)
PREFIX = IPv4Network("10.8.0.0/28")
"""Routed to vm1, where it is in a VRF."""


@dataclass
class Unfound:
    """vm1 is registered at server1, which nobody has seen yet; vm2 and vm3 run at server2, at the other
    leaf."""

    fake: FakeNetwork

    def send(self, number: int = 2, to: IPv4Address = TO) -> None:
        self.fake.send("edge2", vm_port(number), udp_frame(vm_mac(number), GATEWAY_MAC, vm_ip(number), to))

    async def found(self) -> None:
        server = self.fake.net.servers["server1"]
        assert isinstance(server.address, IPv4Address)
        self.fake.send("leaf1", leaf_port(1), arp_request(server.mac, server.address, INFRA_GATEWAY))
        await self.fake.settle()

    def at_vm1(self) -> list[bytes]:
        return [frame for s, port, frame in self.fake.heard if (s, port) == ("edge1", vm_port(1))]

    def count(self, what: Count) -> int:
        return self.fake.controller.context.counters[what]


@pytest.fixture(params=["leaves and spines", "leaves over an IP network"])
async def unfound(request: pytest.FixtureRequest) -> AsyncIterator[Unfound]:
    net = fabric(over_ip="IP" in request.param)
    del net.detected["server1"]
    fake = FakeNetwork(net, clock=lambda: 1000.0)
    fake.fabric.cable(("edge1", 1), ("leaf1", leaf_port(1)))
    made = Unfound(fake)
    await fake.start()
    for number in (1, 2, 3):
        add_vm(net, number, min(number, 2))
    await fake.controller.context.install(net.everything())
    await fake.settle()
    yield made
    await fake.stop()


def to_controller(fake: FakeNetwork) -> set[str]:
    """Switches that hand up what is for vm1."""
    return {
        name
        for name, switch in fake.fabric.switches.items()
        if any(reason_of(flow.cookie) is Reason.UNPLACED for flow in switch.flows.values())
    }


async def test_it_is_held_asked_for_once_and_goes_on_in_order(unfound: Unfound) -> None:
    assert to_controller(unfound.fake) == {"leaf1", "leaf2"}
    asked: list[int] = []
    locations = unfound.fake.controller.arp.locations
    ask = locations.ask_for_missing
    held = unfound.fake.controller.held_packets
    held._ask = lambda: (asked.append(1), ask())[1]  # type: ignore[func-returns-value]
    for _ in range(3):
        unfound.send(2)
        unfound.send(3)
    await unfound.fake.settle()
    assert (unfound.at_vm1(), len(asked)) == ([], 1)
    await unfound.found()
    assert unfound.fake.net.location("server1") == PortRef("leaf1", "p1")
    came = [parse(frame) for frame in unfound.at_vm1()]
    assert [frame.payload[12:16] for frame in came] == [vm_ip(2).packed, vm_ip(3).packed] * 3
    assert {(frame.dst, frame.src, frame.payload[8]) for frame in came} == {
        (vm_mac(1), GATEWAY_MAC, parse(udp_frame(vm_mac(2), GATEWAY_MAC, vm_ip(2), vm_ip(1))).payload[8] - 1)
    }, "routed as any packet: by the gateway, one hop"
    assert to_controller(unfound.fake) == set()
    assert unfound.count(Count.HELD_SENT) == 6
    before = len(came)
    unfound.send(2)
    assert len(unfound.at_vm1()) == before + 1 and unfound.count(Count.HELD_SENT) == 6


async def test_it_waits_until_every_switch_has_confirmed_the_way(unfound: Unfound) -> None:
    """Sent on before, it would end at a switch that does not know the VM yet."""
    session = unfound.fake.sessions["leaf1"]
    session.hold = asyncio.Event()
    unfound.send()
    await unfound.found()
    assert unfound.fake.net.location("server1") is not None
    assert unfound.at_vm1() == [] and unfound.count(Count.HELD_DROPPED) == 0
    session.hold.set()
    await unfound.fake.settle()
    assert len(unfound.at_vm1()) == unfound.count(Count.HELD_SENT) == 1


async def test_it_waits_for_the_leaf_that_handed_it_up_to_let_go(
    unfound: Unfound, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent on before, that leaf would hand it up again, and again."""
    monkeypatch.setattr(held_packets, "HELD_LIMIT", 60)
    monkeypatch.setattr(programmer, "SHORTEST_PAUSE", 0.01)
    monkeypatch.setattr(programmer, "LONGEST_PAUSE", 0.01)
    unfound.send()
    await unfound.fake.settle()
    leaf = unfound.fake.sessions["leaf2"]
    leaf.reject = 1_000_000
    await unfound.found()
    assert to_controller(unfound.fake) == {"leaf2"}
    assert (unfound.at_vm1(), unfound.count(Count.HELD_SENT)) == ([], 0)
    leaf.reject = 0
    while unfound.fake.controller.held_packets._of:
        await unfound.fake.settle()
    assert to_controller(unfound.fake) == set()
    assert len(unfound.at_vm1()) == unfound.count(Count.HELD_SENT) == 1


async def test_many_are_not_held(unfound: Unfound) -> None:
    for _ in range(MOST_HELD_OF_A_VM + 5):
        unfound.send()
    await unfound.fake.settle()
    assert unfound.count(Count.HELD_DROPPED) == 5
    await unfound.found()
    assert len(unfound.at_vm1()) == MOST_HELD_OF_A_VM


async def test_what_is_not_found_in_time_is_dropped(
    unfound: Unfound, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_packets, "HELD_LIMIT", 0.01)
    unfound.send()
    while unfound.fake.controller.held_packets._of:
        await unfound.fake.settle()
    assert unfound.count(Count.HELD_DROPPED) == 1
    await unfound.found()
    assert unfound.at_vm1() == []


async def test_a_vm_that_is_removed_meanwhile_gets_nothing(unfound: Unfound) -> None:
    unfound.send()
    await unfound.fake.settle()
    await unfound.fake.controller.inventory.remove_vm("vm1")
    await unfound.fake.settle()
    await unfound.found()
    assert unfound.at_vm1() == [] and to_controller(unfound.fake) == set()


async def test_what_is_no_packet_to_such_a_vm_is_dropped_and_counted(unfound: Unfound) -> None:
    held = unfound.fake.controller.held_packets
    for frame in (udp_frame(vm_mac(2), GATEWAY_MAC, vm_ip(2), vm_ip(77)), bytes(20)):
        held.came("leaf2", 1, frame)
    held.came("leaf2", 1, b"")
    assert unfound.count(Count.HELD_DROPPED) == 2 and not held._of


async def test_it_stays_in_its_vrf() -> None:
    """vm2 is in the VRF of vm1, vm3 in the default one, where nobody has the address, nor the prefix."""
    net = fabric()
    add_tenants(net)
    del net.detected["server1"]
    fake = FakeNetwork(net, clock=lambda: 1000.0)
    fake.fabric.cable(("edge1", 1), ("leaf1", leaf_port(1)))
    await fake.start()
    try:
        for number, vnet in ((1, vnet_of("red")), (2, vnet_of("red")), (3, "")):
            prefixes = (PREFIX,) if number == 1 else ()
            of_vm = NIC(vm_mac(number), f"vm{number}", (vm_ip(number),), vnet=vnet, prefixes=prefixes)
            edge = min(number, 2)
            fake.controller.inventory.register_vms([VM(f"vm{number}", (of_vm,), f"server{edge}")])
            port = BridgePort(
                dpid=0x30 + edge, bridge="br0", name=f"tap{number}", number=vm_port(number),
                status=PortStatus.UP, iface_id=f"vm{number}", attached_mac=vm_mac(number),
            )  # fmt: skip
            fake.controller.inventory.ports.changed([], [port])
        await fake.settle()
        made = Unfound(fake)
        for to in (vm_ip(1), PREFIX[5]):
            made.send(2, to)
            made.send(3, to)
        await fake.settle()
        await made.found()
        came = [parse(frame).payload[12:20] for frame in made.at_vm1()]
        assert came == [vm_ip(2).packed + to.packed for to in (vm_ip(1), PREFIX[5])]
    finally:
        await fake.stop()
