"""Two access routers on a running fabric: one is lost, the other is the way, until it is there again."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from retinue.controller.errors import RequestError
from retinue.controller.kinds import restore
from retinue.controller.state import State
from retinue.core.model import PortRef, Server, Service
from retinue.core.packets import (
    ND,
    NeighbourAdvertisement,
    NeighbourSolicitation,
    arp_reply,
    nd_frame,
    parse,
    parse_arp,
    parse_nd,
)
from retinue.core.router_watch import RouterLimits
from retinue.southbound.openflow.codec.messages import PortDesc, PortStatus
from retinue.southbound.openflow.codec.wire import PortReason
from support.fabric.networks import GATEWAY_MAC, add_ipv6, add_vm, fabric, vm_ip, vm_mac, vm_port
from support.fabric.world import OUTSIDE, udp_frame
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork
from support.recent_events import recent

PORTS = {"router": ("leaf2", 91), "router2": ("leaf1", 92)}
LIMITS = RouterLimits(silence=3.0, hold=10.0)


class World:
    """Routers answer whoever asks them, unless they are silent; vm1 is at server1, vm2 at server2."""

    def __init__(self, store: MemoryStore, *, ipv6: bool = False) -> None:
        self.now = 1000.0
        net = fabric()
        if ipv6:
            add_ipv6(net)
        net.set_ports("leaf1", net._numbers["leaf1"] | {"router2": 92})
        address = IPv6Address("fd00:1::99") if ipv6 else IPv4Address("10.0.0.2")
        routes: list[IPv4Network | IPv6Network] = [IPv4Network("0.0.0.0/0")]
        routes += [IPv6Network("::/0")] if ipv6 else []
        net.put_server(
            Server(
                "router2", "02:00:00:00:02:01", address, services=frozenset({Service.ROUTER}),
                routes=tuple(routes), given_at=PortRef("leaf1", "router2"), metric=10,
            )
        )  # fmt: skip
        for number in (1, 2):
            add_vm(net, number, number)
        self.fake = FakeNetwork(net, lambda: self.now, store, router_limits=LIMITS)
        self.silent: set[str] = set()
        self.asked: list[str] = []
        for router, at in PORTS.items():
            self.fake.hosts[at] = lambda frame, router=router: self.hears(router, frame)  # type: ignore[misc]

    def hears(self, router: str, frame: bytes) -> None:
        ethernet = parse(frame)
        server = self.fake.net.servers[router]
        if ethernet.ethertype not in (0x0806, 0x86DD) or ethernet.dst != server.mac:
            return
        if ethernet.ethertype == 0x0806:
            answer = arp_reply(parse_arp(ethernet.payload), server.mac)
        else:
            asked = parse_nd(ethernet.payload)
            assert isinstance(asked.message, NeighbourSolicitation)
            told = NeighbourAdvertisement(asked.message.target, router=True, solicited=True)
            answer = nd_frame(ND(asked.message.target, asked.src, told), server.mac, ethernet.src)
        self.asked.append(router)
        if router not in self.silent:
            self.fake.send(*PORTS[router], answer)

    async def seconds(self, count: int) -> None:
        for _ in range(count):
            self.now += 1.0
            self.fake.controller.router_watch.look()
            await self.fake.settle()

    async def link(self, router: str, *, up: bool) -> None:
        switch, number = PORTS[router]
        port = PortDesc(number, router, bytes(6), 0, 0 if up else 1)
        session = self.fake.sessions[switch]
        self.fake.controller.port_status(session, PortStatus(0, PortReason.MODIFY, port))  # type: ignore[arg-type]
        await self.fake.settle()

    def way(self, vm: int = 1) -> str:
        """By which router a packet goes out."""
        self.fake.heard.clear()
        self.fake.send(f"edge{vm}", vm_port(vm), udp_frame(vm_mac(vm), GATEWAY_MAC, vm_ip(vm), OUTSIDE))
        ((switch, port, _),) = self.fake.heard
        return next(router for router, at in PORTS.items() if at == (switch, port))

    def router(self) -> Server:
        return self.fake.net.servers["router"]

    def ways(self) -> list[str]:
        return [self.way(1), self.way(2)]

    def told(self) -> list[tuple[str, str]]:
        found = recent(self.fake.controller.events, "router.", 100)
        return [(event.type, event.data["server"]) for event in found]


@pytest.fixture
async def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def world(store: MemoryStore) -> AsyncIterator[World]:
    made = World(store)
    await made.fake.start()
    yield made
    await made.fake.stop()


async def test_both_are_asked_each_second_and_the_better_is_the_way(world: World) -> None:
    assert world.ways() == ["router", "router"]
    await world.seconds(60)
    assert world.asked == ["router", "router2"] * 60
    assert world.ways() == ["router", "router"] and not world.told()


async def test_without_its_link_it_is_given_up_at_once_and_used_again_after_a_while(world: World) -> None:
    await world.seconds(2)
    await world.link("router", up=False)
    assert world.ways() == ["router2", "router2"]
    world.silent.add("router")
    await world.seconds(20)
    world.silent.clear()
    await world.link("router", up=True)
    await world.seconds(10)
    assert world.ways() == ["router2", "router2"], "not before it has been well for a while"
    await world.seconds(2)
    assert world.ways() == ["router", "router"]
    assert world.told() == [("router.lost", "router"), ("router.returned", "router")]


async def test_one_that_does_not_answer_is_given_up(world: World) -> None:
    await world.seconds(5)
    world.silent.add("router")
    await world.seconds(3)
    assert world.ways() == ["router", "router"]
    await world.seconds(1)
    assert world.ways() == ["router2", "router2"]
    (lost,) = recent(world.fake.controller.events, "router.lost", 100)
    assert lost.data["reason"] == "it has not answered for 3 s"
    assert world.fake.net.lost_routers == {"router": "it has not answered for 3 s"}


async def test_the_other_is_not_given_up_for_one_that_is_not_there_either(world: World) -> None:
    world.silent = {"router", "router2"}
    await world.seconds(10)
    assert world.ways() == ["router", "router"], "as if both were there"
    world.silent = {"router"}
    await world.seconds(20)
    assert world.ways() == ["router2", "router2"]


async def test_who_answers_at_another_port_is_not_it(world: World) -> None:
    """A server that answers for the router keeps nobody's traffic at a router that has gone."""
    await world.seconds(1)
    world.silent.add("router")
    for _ in range(5):
        await world.seconds(1)
        question = world.fake.controller.arp.locations.question(world.router())
        assert question is not None
        world.fake.send("leaf1", 92, arp_reply(parse_arp(parse(question).payload), world.router().mac))
    assert world.ways() == ["router2", "router2"]


async def test_while_its_leaf_is_away_nothing_is_concluded(world: World) -> None:
    await world.seconds(1)
    world.fake.sessions["leaf2"].close("gone")
    await world.seconds(30)
    assert not world.told()
    world.fake.connect("leaf2")
    await world.fake.settle()
    await world.seconds(5)
    assert not world.told() and world.ways() == ["router", "router"]


async def test_a_restart_leaves_the_traffic_where_it_is(world: World, store: MemoryStore) -> None:
    """One that was lost is not the way again because nobody has asked it yet."""
    world.silent.add("router")
    await world.seconds(5)
    assert world.ways() == ["router2", "router2"]
    again = World(store)
    again.now = world.now
    restore(again.fake.controller.context.state, store.load())
    assert again.fake.net.lost_routers == {"router": "it has not answered for 3 s"}
    await again.fake.start()
    again.silent.add("router")
    await again.seconds(20)
    assert again.ways() == ["router2", "router2"] and not again.told()
    again.silent.clear()
    await again.seconds(12)
    assert again.ways() == ["router", "router"] and again.told() == [("router.returned", "router")]
    assert State(fabric()).net.lost_routers == {} and not store.load().lost_routers
    await again.fake.stop()


async def test_one_that_is_alone_again_is_lost_no_more(world: World) -> None:
    """There is nowhere else to go: it is not asked, and it is the way."""
    world.silent.add("router")
    await world.seconds(5)
    context = world.fake.controller.context
    await context.install(world.fake.net.remove_server("router2"))
    await world.seconds(1)
    assert world.fake.net.lost_routers == {} and world.ways() == ["router", "router"]
    world.asked.clear()
    await world.seconds(5)
    assert world.asked == []


async def test_a_manager_makes_another_the_better_one(world: World) -> None:
    better = replace(world.fake.net.servers["router2"], metric=0)
    worse = replace(world.router(), metric=1)
    await world.fake.controller.inventory.put_servers([better, worse])
    assert world.ways() == ["router2", "router2"]


async def test_one_with_an_ipv6_address_is_asked_by_neighbour_discovery(store: MemoryStore) -> None:
    world = World(store, ipv6=True)
    await world.fake.start()
    await world.seconds(10)
    assert world.asked == ["router", "router2"] * 10 and not world.told()
    world.silent.add("router2")
    await world.seconds(5)
    assert world.told() == [("router.lost", "router2")]
    await world.fake.stop()


async def test_one_that_is_about_to_be_removed_is_not_the_way_again_though_it_answers(world: World) -> None:
    """Else what is on its way to it, when it goes, is lost."""
    await world.seconds(2)
    fabric_inventory = world.fake.controller.fabric
    fabric_inventory._still_coming = 3600.0
    going = asyncio.create_task(fabric_inventory.remove_server("router"))
    await world.fake.settle()
    await world.seconds(3)
    assert world.ways() == ["router2", "router2"] and world.told() == [("router.lost", "router")]
    with pytest.raises(RequestError, match="server router is being removed already"):
        await fabric_inventory.remove_server("router")
    going.cancel()
    await asyncio.gather(going, return_exceptions=True)
    await world.seconds(1)
    assert world.ways() == ["router", "router"], "nobody removes it any more"
    assert "router" in world.fake.net.servers
