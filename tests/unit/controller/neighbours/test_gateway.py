"""Packets whose time to live ends at the gateway: their sender hears so, and nobody else."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from retinue.core.packets import Ethernet, EtherType, parse
from retinue.core.packets.ipv4 import split_ipv4
from retinue.core.pipeline.meters import LeafMeter
from support.fabric.networks import GATEWAY, GATEWAY_MAC, add_vm, fabric, vm_ip, vm_mac, vm_port
from support.fabric.sample_frames import icmp, ipv4, udp
from support.fabric.tenants import Held, add_tenants
from support.fabric.tenants import add_vm as add_tenant_vm
from support.fakes.session import FakeNetwork

OWN = vm_ip(1)
FAR = IPv4Address("203.0.113.9")
ONE = vm_port(1)
ANSWERED = "packets whose time to live ended, answered"


@pytest.fixture
async def fake() -> AsyncIterator[FakeNetwork]:
    made = FakeNetwork(fabric(), clock=lambda: 1000.0)
    for number in (1, 2):
        add_vm(made.net, number, at=number)
    await made.start()
    made.heard.clear()
    yield made
    await made.stop()


def probe(ttl: int, dst: IPv4Address = FAR, src: IPv4Address = OWN, fragment: int = 0) -> bytes:
    """As traceroute sends it."""
    packet = ipv4(src, dst, udp(b"probe", 40000, 33434), ttl=ttl, fragment=fragment)
    return Ethernet(GATEWAY_MAC, vm_mac(1), EtherType.IPV4, packet).build()


@pytest.mark.parametrize("dst", [FAR, vm_ip(2)])
async def test_the_first_hop_is_the_gateway_of_the_senders_subnet(
    fake: FakeNetwork, dst: IPv4Address
) -> None:
    fake.send("edge1", ONE, probe(1, dst))
    ((switch, port, frame),) = fake.heard
    assert (switch, port) == ("edge1", ONE)
    ethernet = parse(frame)
    header, body = split_ipv4(ethernet.payload)
    assert (ethernet.dst, ethernet.src) == (vm_mac(1), GATEWAY_MAC)
    assert (header[12:16], header[16:20]) == (GATEWAY.packed, vm_ip(1).packed)
    assert body[:2] == bytes((11, 0))
    assert probe(1, dst)[14:].startswith(body[8:]), "as it was sent"
    assert len(body) > 8 + 20 + 8
    assert fake.controller.context.counters[ANSWERED] == 1


@pytest.mark.parametrize("dst", [FAR, vm_ip(2)])
async def test_who_asks_from_a_prefix_that_is_routed_to_it_hears_it_from_its_own_gateway(
    fake: FakeNetwork, dst: IPv4Address
) -> None:
    net, prefix = fake.net, IPv4Network("198.51.100.0/28")
    nic = net.vms["vm1"].nic
    await fake.controller.context.install(net.change_nic("vm1", nic, replace(nic, prefixes=(prefix,))))
    fake.send("edge1", ONE, probe(1, dst, src=prefix[3]))
    ((switch, port, frame),) = fake.heard
    assert (switch, port, parse(frame).dst) == ("edge1", ONE, vm_mac(1))
    header, body = split_ipv4(parse(frame).payload)
    assert (header[12:16], header[16:20], body[:2]) == (GATEWAY.packed, prefix[3].packed, bytes((11, 0)))
    await fake.controller.context.install(net.unassign(vm_ip(1)))
    fake.heard.clear()
    fake.send("edge1", ONE, probe(1, dst, src=prefix[3]))
    assert not fake.heard, "without an address it has no gateway"


async def test_who_asks_from_outside_hears_it_from_the_gateway_where_it_was_to_go(fake: FakeNetwork) -> None:
    packet = ipv4(FAR, vm_ip(1), udp(b"probe", 40000, 33434), ttl=1)
    fake.send("leaf2", 91, Ethernet(GATEWAY_MAC, "02:00:00:00:01:01", EtherType.IPV4, packet).build())
    ((switch, port, frame),) = fake.heard
    assert (switch, port) == ("leaf2", 91)
    header, _ = split_ipv4(parse(frame).payload)
    assert (header[12:16], header[16:20]) == (GATEWAY.packed, FAR.packed)


async def test_one_that_lives_longer_goes_on(fake: FakeNetwork) -> None:
    fake.send("edge1", ONE, probe(2, vm_ip(2)))
    assert [(switch, port) for switch, port, _ in fake.heard] == [("edge2", vm_port(2))]


async def test_spoofed_ones_and_dead_ones_are_not_answered(fake: FakeNetwork) -> None:
    fake.send("edge1", ONE, probe(1, src=vm_ip(2)))
    fake.send("edge1", ONE, probe(0))
    assert not fake.heard
    assert not fake.controller.context.counters[ANSWERED]


async def test_who_is_in_no_subnet_is_not_answered(fake: FakeNetwork) -> None:
    for frame in (probe(1, src=FAR), probe(1, fragment=185), b"\0" * 14, b""):
        fake.controller.gateway.expired("leaf1", 1, frame)
    assert not fake.heard
    counters = fake.controller.context.counters
    unanswered = sum(n for name, n in counters.items() if "not answered: sender unknown" in name)
    assert unanswered + counters["bad IP frames"] == 4


async def test_a_tenant_hears_it_from_its_own_gateway(fake: FakeNetwork) -> None:
    """It has vm1's address, and a gateway of its own in that subnet; and nothing goes on to vm1's."""
    net = fake.net
    add_tenants(net)
    own = IPv4Address("10.1.0.1")
    net.add_subnet(replace(net.subnets["redblue"], gateway=own))
    add_tenant_vm(net, "twin", 1, [Held(11, "twin", "red", OWN)])
    await fake.controller.context.install(net.everything())
    for dst in (FAR, vm_ip(2)):
        fake.heard.clear()
        packet = ipv4(OWN, dst, udp(b"probe", 40000, 33434), ttl=1)
        fake.send("edge1", vm_port(11), Ethernet(GATEWAY_MAC, vm_mac(11), EtherType.IPV4, packet).build())
        ((switch, port, frame),) = fake.heard
        assert (switch, port) == ("edge1", vm_port(11))
        header, _ = split_ipv4(parse(frame).payload)
        assert (parse(frame).vlan, header[12:16], header[16:20]) == (None, own.packed, OWN.packed)


async def test_a_flood_of_them_stops_at_the_leaf(fake: FakeNetwork) -> None:
    for switch in fake.fabric.switches.values():
        if switch.name.startswith("leaf"):
            switch.exhausted.add(LeafMeter.EXPIRED)
    fake.send("edge1", ONE, probe(1))
    assert not fake.heard


async def test_a_ping_in_fragments_is_answered_whole_or_not_at_all(fake: FakeNetwork) -> None:
    """Only the first fragment has an ICMP header: it alone would come back."""

    def ping(fragment: int) -> bytes:
        packet = ipv4(vm_ip(1), GATEWAY, icmp(8, b"x" * 64), fragment=fragment)
        return Ethernet(GATEWAY_MAC, vm_mac(1), EtherType.IPV4, packet).build()

    fake.send("edge1", ONE, ping(0x2000))
    fake.send("edge1", ONE, ping(185))
    assert not fake.heard
    fake.send("edge1", ONE, ping(0))
    assert len(fake.heard) == 1
