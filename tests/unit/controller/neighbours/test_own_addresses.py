"""Addresses that VMs make themselves, with the controller behind the switches: bound, told, stored, moved."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv6Address

import pytest

from retinue.core.limits import MOST_OWN_ADDRESSES
from retinue.core.model import VMPort
from retinue.core.model.link_local import ALL_ROUTERS, UNSPECIFIED
from retinue.core.packets import (
    ND,
    NeighbourAdvertisement,
    RouterAdvertisement,
    RouterSolicitation,
    nd_frame,
    parse,
    parse_nd,
)
from support.fabric.ipv6 import OUTSIDE6, asks, frame6, udp6, vm_local
from support.fabric.networks import GATEWAY_MAC, add_ipv6, add_vm, fabric, vm_mac, vm_port
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork
from support.recent_events import recent

OWN = IPv6Address("fd00:1::5054:ff:fe00:1")
PRIVATE = IPv6Address("fe80::1234:5678:9abc:def0")


STORE = MemoryStore()


@pytest.fixture
async def fake() -> AsyncIterator[FakeNetwork]:
    made = FakeNetwork(fabric(), lambda: 1000.0, STORE)
    STORE.rows.clear()
    add_ipv6(made.net)
    made.net.subnets["blue6"] = replace(made.net.subnets["blue6"], slaac=True)
    for number in (1, 2):
        add_vm(made.net, number, at=number)
    await made.start()
    made.heard.clear()
    yield made
    await made.stop()


def is_stored(ip: IPv6Address) -> bool:
    return any(a.ip == ip and a.kind == "slaac" for a in STORE.load().assignments)


async def checks(fake: FakeNetwork, target: IPv6Address, vm: int = 1) -> None:
    fake.send(f"edge{vm}", vm_port(vm), nd_frame(asks(UNSPECIFIED, target, None), vm_mac(vm)))
    await fake.settle()


def sends_from(fake: FakeNetwork, src: IPv6Address, vm: int = 1) -> bool:
    """True when a packet to the outside comes to the router."""
    fake.heard.clear()
    fake.send(f"edge{vm}", vm_port(vm), frame6(vm_mac(vm), GATEWAY_MAC, udp6(src, OUTSIDE6)))
    return [(switch, port) for switch, port, _ in fake.heard] == [("leaf2", 91)]


async def test_an_address_that_was_checked_may_be_used(fake: FakeNetwork) -> None:
    assert not sends_from(fake, OWN)
    await checks(fake, OWN)
    assert not fake.heard, "nobody has it, so nobody answers"
    assert sends_from(fake, OWN)
    (added,) = recent(fake.controller.events, "binding.added")
    (row,) = [row for row in added.data["bindings"] if row.ip == OWN]
    assert (row.kind, row.origin, row.lease_end, row.active) == ("slaac", "controller", None, True)
    assert is_stored(OWN)


async def test_the_first_who_checks_has_it(fake: FakeNetwork) -> None:
    await checks(fake, OWN)
    await checks(fake, OWN, vm=2)
    ((switch, port, frame),) = fake.heard
    assert (switch, port) == ("edge2", vm_port(2))
    said = parse_nd(parse(frame).payload).message
    assert isinstance(said, NeighbourAdvertisement)
    assert not sends_from(fake, OWN, vm=2)
    assert sends_from(fake, OWN)


@pytest.mark.parametrize("address", [IPv6Address("fd00:1::abcd"), PRIVATE])
@pytest.mark.parametrize("place", ["on two switches", "on one switch", "one of them migrates"])
async def test_of_two_who_check_it_in_the_same_moment_one_has_it_and_the_other_hears_so(
    fake: FakeNetwork, address: IPv6Address, place: str
) -> None:
    """The second check comes before anything that the first one causes has been done."""
    other = 2
    if place == "on one switch":
        other = add_vm_beside(fake)
    elif place == "one of them migrates":
        fake.net.set_vm_port("vm1", "edge2", VMPort(vm_port(1), "tap1"))
        await fake.controller.context.install(
            fake.net.put_vm(replace(fake.net.vms["vm1"], also=frozenset({"server2"})))
        )
    await fake.settle()
    fake.heard.clear()
    switches = ("edge2" if place == "one of them migrates" else "edge1", f"edge{2 if other == 2 else 1}")
    for number, switch in zip((1, other), switches, strict=True):
        asked = nd_frame(asks(UNSPECIFIED, address, None), vm_mac(number))
        fake.send(switch, vm_port(number), asked)
    await fake.settle()
    assert fake.net.assignments[address].vm == "vm1"
    ((switch, port, frame),) = fake.heard
    assert (switch, port) == (switches[1], vm_port(other))
    said = parse_nd(parse(frame).payload).message
    assert isinstance(said, NeighbourAdvertisement)
    assert said.target == address
    assert [e.data["vm"] for e in recent(fake.controller.events, "binding.rejected")] == []


def add_vm_beside(fake: FakeNetwork) -> int:
    """vm4, on server1 as vm1 is."""
    add_vm(fake.net, 4, at=1)
    fake.controller.context.spawn(fake.controller.context.install(fake.net.everything()), "vm4")
    return 4


async def test_a_link_local_address_that_was_checked_may_ask(fake: FakeNetwork) -> None:
    message = nd_frame(ND(PRIVATE, ALL_ROUTERS, RouterSolicitation()), vm_mac(1))
    fake.send("edge1", vm_port(1), message)
    assert not fake.heard
    await checks(fake, PRIVATE)
    fake.send("edge1", vm_port(1), message)
    ((_, _, frame),) = fake.heard
    said = parse_nd(parse(frame).payload)
    assert said.dst == PRIVATE
    assert isinstance(said.message, RouterAdvertisement)
    (prefix,) = said.message.options.prefixes
    assert prefix.autonomous
    assert not sends_from(fake, PRIVATE), "it ends at the link"
    await checks(fake, PRIVATE, vm=2)
    await checks(fake, vm_local(1), vm=2)
    assert [(switch, port) for switch, port, _ in fake.heard] == [("edge2", vm_port(2))] * 2


async def test_too_many_at_once_are_not_heeded(fake: FakeNetwork) -> None:
    for number in range(MOST_OWN_ADDRESSES + 3):
        await checks(fake, IPv6Address(f"fd00:1::abcd:{number:x}"))
    assert len(fake.net.held_by("vm1")) == 1 + MOST_OWN_ADDRESSES, "its address of IPv4 is the other one"
    assert fake.controller.context.counters["own addresses not bound: a VM makes too many"] == 3


async def test_the_oldest_goes_for_a_new_one(fake: FakeNetwork) -> None:
    now = [1000.0]
    fake.controller.context.clock = lambda: now[0]
    for number in range(MOST_OWN_ADDRESSES + 1):
        now[0] += 100.0
        await checks(fake, IPv6Address(f"fd00:1::abcd:{number:x}"))
    gone = IPv6Address("fd00:1::abcd:0")
    (removed,) = recent(fake.controller.events, "binding.removed")
    assert removed.data["ip"] == gone
    assert not sends_from(fake, gone)
    assert sends_from(fake, IPv6Address(f"fd00:1::abcd:{MOST_OWN_ADDRESSES:x}"))
    assert not is_stored(gone)
