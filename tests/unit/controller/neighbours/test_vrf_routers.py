"""Routers of VRFs on a running fabric: asked and answered under their tags, lost and returned, shown."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import pytest

from retinue.core.model import PortRef, Server, Service, Subinterface
from retinue.core.packets import (
    ND,
    Ethernet,
    EtherType,
    NDOptions,
    NeighbourAdvertisement,
    NeighbourSolicitation,
    arp_reply,
    arp_request,
    build_udp4,
    nd_frame,
    parse,
    parse_arp,
    parse_nd,
    tagged,
)
from retinue.core.packets.icmp import ICMP
from retinue.core.router_watch import RouterLimits
from support.fabric.networks import GATEWAY, GATEWAY6, GATEWAY_MAC, fabric, vm_ip, vm_mac, vm_port
from support.fabric.sample_frames import icmp, ipv4
from support.fabric.tenants import Held, add_tenants, add_vm
from support.fabric.ways_out import ALL, ROUTER_ADDRESS, add_exits
from support.fabric.world import OUTSIDE, udp_frame
from support.fakes.session import FakeNetwork

MAC = "02:00:00:00:03:01"
PORT = ("leaf1", 92)
VLAN = 100


@pytest.fixture
async def fake() -> AsyncIterator[FakeNetwork]:
    """`twin` of VRF red is on server1, `nobody` of the default VRF on server2, both with one address; red's
    router is at leaf1, with VLAN 100."""
    net = fabric()
    add_tenants(net, ipv6=True)
    add_vm(net, "twin", 1, [Held(11, "twin", "red", vm_ip(1), IPv6Address("fd00:1::101"))])
    add_vm(net, "nobody", 2, [Held(12, "nobody", "default", vm_ip(1))])
    add_vm(net, "green1", 2, [Held(13, "green1", "green", vm_ip(2))])
    add_vm(net, "red3", 3, [Held(14, "red3", "red", vm_ip(3))])
    add_vm(net, "own4", 3, [Held(15, "own4", "default", vm_ip(4))])
    add_exits(net, {"red": VLAN}, apart=True)
    made = FakeNetwork(net, clock=lambda: 1000.0, router_limits=RouterLimits(silence=3.0, hold=10.0))
    await made.start()
    made.heard.clear()
    yield made
    await made.stop()


async def said(fake: FakeNetwork, frame: bytes, vlan: int = VLAN) -> list[Ethernet]:
    """What comes back to the router."""
    fake.heard.clear()
    fake.send(*PORT, tagged(frame, vlan))
    await fake.settle()
    return [parse(got) for switch, port, got in fake.heard if (switch, port) == PORT]


async def test_it_finds_its_vrf_s_gateways_and_neighbours_by_arp_under_its_tag(fake: FakeNetwork) -> None:
    for asked in (GATEWAY, vm_ip(1), vm_ip(3)):
        [answer] = await said(fake, arp_request(MAC, ROUTER_ADDRESS, asked))
        assert (answer.vlan, parse_arp(answer.payload).sha) == (VLAN, GATEWAY_MAC)
    # 10.1.0.102 is green's alone; and neither the default VRF's gateway nor a tag of nobody's is answered.
    for asked, vlan in (
        (vm_ip(2), VLAN),
        (vm_ip(4), VLAN),
        (IPv4Address("10.0.0.254"), VLAN),
        (GATEWAY, 99),
        (vm_ip(1), 7),
    ):
        assert not await said(fake, arp_request(MAC, ROUTER_ADDRESS, asked), vlan)


async def test_it_is_found_by_neighbours_of_its_vrf(fake: FakeNetwork) -> None:
    fake.send("edge1", vm_port(11), arp_request(vm_mac(11), vm_ip(1), ROUTER_ADDRESS))
    await fake.settle()
    ((switch, port, frame),) = fake.heard
    assert (switch, port, parse_arp(parse(frame).payload).sha) == ("edge1", vm_port(11), GATEWAY_MAC)
    fake.heard.clear()
    fake.send("edge2", vm_port(12), arp_request(vm_mac(12), vm_ip(1), ROUTER_ADDRESS))
    await fake.settle()
    assert not fake.heard, "to the default VRF it is nobody"


async def test_neighbour_discovery_has_its_tag_too(fake: FakeNetwork) -> None:
    for asked in (GATEWAY6, IPv6Address("fd00:1::101")):
        question = NeighbourSolicitation(asked, NDOptions(source_mac=MAC))
        [answer] = await said(fake, nd_frame(ND(IPv6Address("fe80::1"), asked, question), MAC, GATEWAY_MAC))
        assert answer.vlan == VLAN
        told = parse_nd(answer.payload).message
        assert isinstance(told, NeighbourAdvertisement) and told.options.target_mac == GATEWAY_MAC
    assert not await said(
        fake, nd_frame(ND(IPv6Address("fe80::1"), GATEWAY6, question), MAC, GATEWAY_MAC), 99
    )


async def test_it_pings_the_gateway_and_hears_whose_time_to_live_ended(fake: FakeNetwork) -> None:
    ping = Ethernet(GATEWAY_MAC, MAC, EtherType.IPV4, ipv4(OUTSIDE, GATEWAY, icmp(8, b"x"))).build()
    [answer] = await said(fake, ping)
    assert (answer.vlan, answer.dst) == (VLAN, MAC)
    expired = build_udp4(OUTSIDE, vm_ip(1), 33434, 33434, b"x", 1)
    [told] = await said(fake, Ethernet(GATEWAY_MAC, MAC, EtherType.IPV4, expired).build())
    assert (told.vlan, told.dst, told.payload[9]) == (VLAN, MAC, ICMP)
    assert told.payload[12:16] == GATEWAY.packed


async def test_one_that_is_silent_gives_its_vrf_to_the_other(fake: FakeNetwork) -> None:
    """Asked under its tag, for its address in the VRF; the default VRF's way is another's matter."""
    net, now = fake.net, 1000.0
    net.set_ports("leaf2", net._numbers["leaf2"] | {"exit2": 93})
    spare = Server(
        "exit2", "02:00:00:00:03:02", services=frozenset({Service.ROUTER}),
        given_at=PortRef("leaf2", "exit2"),
        metric=5, subinterfaces=(Subinterface("red", 200, ALL, IPv4Address("10.1.0.252")),),
    )  # fmt: skip
    await fake.controller.inventory.put_servers([spare])
    fake.sessions["leaf2"].ports["exit2"] = 93
    asked: list[tuple[str, int | None]] = []
    answers = {"exit", "exit2"}

    def hears(router: str, at: tuple[str, int]) -> None:
        def heard(frame: bytes) -> None:
            ethernet = parse(frame)
            if ethernet.ethertype != EtherType.ARP:
                return
            asked.append((router, ethernet.vlan))
            if router in answers:
                reply = arp_reply(parse_arp(ethernet.payload), net.servers[router].mac)
                fake.send(*at, tagged(reply, ethernet.vlan or 0))

        fake.hosts[at] = heard

    hears("exit", PORT)
    hears("exit2", ("leaf2", 93))
    context = fake.controller.context

    async def seconds(count: int) -> None:
        nonlocal now
        for _ in range(count):
            now += 1.0
            fake.controller.router_watch.look()
            await fake.settle()

    context.clock = lambda: now
    await seconds(3)
    assert {("exit", VLAN), ("exit2", 200)} == set(asked)
    assert way(fake) == PORT
    answers.discard("exit")
    await seconds(5)
    assert (set(net.lost_routers), way(fake)) == ({"exit"}, ("leaf2", 93))
    answers.add("exit")
    await seconds(12)
    assert way(fake) == PORT


def way(fake: FakeNetwork) -> tuple[str, int]:
    fake.heard.clear()
    fake.send("edge1", vm_port(11), udp_frame(vm_mac(11), GATEWAY_MAC, vm_ip(1), OUTSIDE))
    ((switch, port, _),) = fake.heard
    return switch, port


async def test_a_vrf_is_given_its_way_out_while_all_runs(fake: FakeNetwork) -> None:
    """And a forged source is reported as of the router's port."""
    exit = fake.net.servers["exit"]
    await fake.controller.inventory.put_servers([replace(exit, subinterfaces=())])
    fake.heard.clear()
    fake.send("edge1", vm_port(11), udp_frame(vm_mac(11), GATEWAY_MAC, vm_ip(1), OUTSIDE))
    assert not fake.heard
    other = Subinterface("red", 300, (*ALL, IPv6Network("2001:db8::/32")))
    await fake.controller.inventory.put_servers([replace(exit, subinterfaces=(other,))])
    assert way(fake) == PORT
    before = fake.controller.context.spoof_attempts.total
    await said(fake, udp_frame(MAC, GATEWAY_MAC, vm_ip(2), vm_ip(1)), 300)
    assert fake.controller.context.spoof_attempts.total == before + 1
