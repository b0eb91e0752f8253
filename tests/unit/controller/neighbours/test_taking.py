"""An allowed address of IPv6 on a running fabric: it is where it was announced last, as one of IPv4 is.

Those of IPv4: tests/unit/controller/inventory/test_nic_settings.py.
"""

import asyncio
from collections.abc import AsyncIterator
from ipaddress import IPv6Address

import pytest

from retinue.core.model import Allowed, BindingKind
from retinue.core.model.link_local import UNSPECIFIED
from retinue.core.packets import ND, NeighbourAdvertisement, nd_frame, parse, parse_nd
from retinue.core.pipeline.meters import VMMeter
from support.fabric.ipv6 import OUTSIDE6, asks, says, udp6_frame, vm_ip6, vm_local
from support.fabric.networks import GATEWAY6, GATEWAY_MAC, add_ipv6, add_vm, fabric, holding6, vm_mac, vm_port
from support.fakes.session import FakeNetwork
from support.recent_events import recent

SHARED = IPv6Address("fd00:1::200")
VIRTUAL = "00:00:5e:00:02:07"
AT = {1: 1, 2: 2, 3: 3, 4: 1}


@pytest.fixture
async def fake() -> AsyncIterator[FakeNetwork]:
    """vm1 and vm4 on server1, vm2 on server2, vm3 on server3."""
    made = FakeNetwork(fabric(), clock=lambda: 1000.0)
    add_ipv6(made.net)
    for number, at in AT.items():
        add_vm(made.net, number, at)
        made.net.assign(holding6(number))
    await made.start()
    made.heard.clear()
    yield made
    await made.stop()


async def allow(fake: FakeNetwork, *vms: str, mac: str = "") -> None:
    for vm in vms:
        await fake.controller.nics.change(vm, allowed=(Allowed(SHARED, mac),))


async def says_(fake: FakeNetwork, vm: int, message: ND, mac: str = "") -> None:
    """A VM says so; whoever took an address before may have it taken at once."""
    fake.controller.nd._taking._waits.clear()
    fake.heard.clear()
    fake.send(f"edge{AT[vm]}", vm_port(vm), nd_frame(message, mac or vm_mac(vm)))
    await fake.settle()


def holder(fake: FakeNetwork) -> str:
    held = fake.net.assignments.get(SHARED)
    return "" if held is None else held.vm


def heard(fake: FakeNetwork, vm: int) -> list[str]:
    """Where a packet of a VM to the shared address comes out: switch and port."""
    fake.heard.clear()
    fake.send(f"edge{AT[vm]}", vm_port(vm), udp6_frame(vm_mac(vm), GATEWAY_MAC, vm_ip6(vm), SHARED))
    return [f"{switch} {port}" for switch, port, _ in fake.heard]


async def test_it_goes_to_whoever_announces_it(fake: FakeNetwork) -> None:
    await allow(fake, "vm1", "vm2")
    assert heard(fake, 3) == []
    await says_(fake, 3, says(SHARED, SHARED, vm_mac(3)))
    assert holder(fake) == "", "who is not allowed it speaks for another"
    await says_(fake, 1, says(SHARED, SHARED, vm_mac(1)))
    assert [heard(fake, vm) for vm in (3, 4)] == [["edge1 10"]] * 2
    await says_(fake, 2, says(vm_local(2), SHARED, vm_mac(2)))
    assert [heard(fake, vm) for vm in (3, 4)] == [["edge2 11"]] * 2
    told = [(event.data["vm"], event.data["before"]) for event in recent(fake.controller.events, "address")]
    assert told == [("vm1", ""), ("vm2", "vm1")]
    fake.heard.clear()
    fake.send("edge1", vm_port(1), udp6_frame(vm_mac(1), GATEWAY_MAC, SHARED, OUTSIDE6))
    assert not fake.heard, "and the one before it may not send under it any more"


async def test_who_checks_whether_it_is_free_has_it_unless_another_does(fake: FakeNetwork) -> None:
    await allow(fake, "vm1", "vm2")
    await says_(fake, 1, asks(UNSPECIFIED, SHARED, None))
    assert (holder(fake), fake.heard) == ("vm1", [])
    assert fake.net.assignments[SHARED].kind is BindingKind.ALLOWED
    await says_(fake, 2, asks(UNSPECIFIED, SHARED, None))
    assert holder(fake) == "vm1"
    ((_, _, frame),) = fake.heard
    told = parse_nd(parse(frame).payload).message
    assert isinstance(told, NeighbourAdvertisement) and told.target == SHARED, "it hears that another has it"
    await says_(fake, 2, asks(SHARED, GATEWAY6, vm_mac(2)))
    assert (holder(fake), fake.heard) == ("vm1", []), "a question takes it from nobody"


async def test_two_masters_who_do_not_hear_of_each_other_share_it_by_no_storm(
    fake: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both announce it again and again (keepalived, its network split): it is one's at each moment, goes over
    once while it is calm, to who has announced it last, and each time is told."""
    monkeypatch.setattr("retinue.controller.neighbours.taking.CALM_SECONDS", 0.05)
    await allow(fake, "vm1", "vm2")
    sent = {
        switch: fake.controller.context.installer.switches[switch].flow_mods for switch in ("edge1", "edge2")
    }
    for _ in range(50):
        for number in (1, 2):
            said = nd_frame(says(SHARED, SHARED, vm_mac(number)), vm_mac(number))
            fake.send(f"edge{number}", vm_port(number), said)
            assert [heard(fake, vm) for vm in (3, 4)] in ([["edge1 10"]] * 2, [[]] * 2)
    await fake.settle()
    assert (holder(fake), heard(fake, 3)) == ("vm1", ["edge1 10"])
    told = recent(fake.controller.events, "address")
    assert [(event.data["vm"], event.data["before"]) for event in told] == [("vm1", "")]
    await asyncio.sleep(0.1)
    await fake.settle()
    assert (holder(fake), heard(fake, 3)) == ("vm2", ["edge2 11"]), "it is who announced it last"
    told = recent(fake.controller.events, "address")
    assert [(event.data["vm"], event.data["before"]) for event in told] == [("vm1", ""), ("vm2", "vm1")]
    assert fake.fabric["edge1"].meters.keys() >= {VMMeter.ARP.id(vm_port(1))}
    edge = fake.fabric["edge1"]
    edge.exhausted = {VMMeter.ARP.id(vm_port(1))}
    assert not edge.receive(nd_frame(says(SHARED, SHARED, vm_mac(1)), vm_mac(1)), vm_port(1)).to_controller
    after = fake.controller.context.installer.switches["edge1"].flow_mods
    assert after - sent["edge1"] < 100, "of a hundred announcements two were heeded"


async def test_neighbours_find_it_by_the_gateway(fake: FakeNetwork) -> None:
    await allow(fake, "vm1")
    await says_(fake, 1, says(SHARED, SHARED, vm_mac(1)))
    await says_(fake, 4, asks(vm_ip6(4), SHARED, vm_mac(4)))
    ((switch, port, frame),) = fake.heard
    said = parse_nd(parse(frame).payload).message
    assert isinstance(said, NeighbourAdvertisement)
    assert (switch, port, said.options.target_mac) == ("edge1", vm_port(4), GATEWAY_MAC)


async def test_a_virtual_router_speaks_and_asks_under_its_own_mac(fake: FakeNetwork) -> None:
    await allow(fake, "vm1", "vm2", mac=VIRTUAL)
    await says_(fake, 1, says(SHARED, SHARED, vm_mac(1)))
    assert holder(fake) == "", "under its NIC's MAC it is not allowed it"
    await says_(fake, 1, says(SHARED, SHARED, VIRTUAL), VIRTUAL)
    assert heard(fake, 3) == ["edge1 10"]
    assert parse(fake.heard[0][2]).dst == VIRTUAL
    await says_(fake, 1, asks(SHARED, GATEWAY6, VIRTUAL), VIRTUAL)
    ((_, _, frame),) = fake.heard
    assert parse(frame).dst == VIRTUAL, "it is told of the gateway"
    await says_(fake, 1, asks(vm_ip6(1), GATEWAY6, VIRTUAL))
    assert not fake.heard, "for its other addresses it does not speak so"
    assert [e.data["spoofing"].kind for e in recent(fake.controller.events, "spoofing")][-1] == "nd"
