"""Routers that VRFs have: what must hold of what tenants send out by them, and of what comes in there."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from retinue.core.model import IP, Network, PortRef, Prefix, Server, Service, Subinterface
from retinue.core.packets import arp_request, parse, parse_arp, tagged
from retinue.core.pipeline.cookies import SPOOF_ATTEMPTS, reason_of
from support.fabric import ipv6
from support.fabric.ipv6 import OUTSIDE6
from support.fabric.networks import GATEWAY, GATEWAY_MAC
from support.fabric.prefixes import udp
from support.fabric.world import OUTSIDE, FabricWorld
from support.fakes.switch import Delivery

EXIT_PORT = 92
RED_VLAN, GREEN_VLAN = 100, 7
"""Red's tag at its router's port; and green's, which is the tag of red on the fabric's links."""
ROUTER_ADDRESS = IPv4Address("10.1.0.253")
"""Of each VRF's router, in a subnet of the VRF."""
ALL: tuple[Prefix, ...] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


def add_exits(net: Network, vrfs: dict[str, int], *, apart: bool, leaf: str = "leaf1") -> None:
    """A way out for these VRFs, by VLAN: by the default VRF's router, or (`apart`) by one that is in no other
    VRF, at a leaf of its own choice."""
    if apart:
        net.set_ports(leaf, net._numbers[leaf] | {"exit": EXIT_PORT})
        router = Server(
            "exit", "02:00:00:00:03:01", services=frozenset({Service.ROUTER}), given_at=PortRef(leaf, "exit")
        )
    else:
        router = net.servers["router"]
    subs = tuple(Subinterface(vrf, vlan, ALL, ROUTER_ADDRESS) for vrf, vlan in vrfs.items())
    net.put_server(replace(router, subinterfaces=subs))


@dataclass(frozen=True)
class Exit:
    """A VRF's router, and where its frames come and go."""

    router: Server
    of: Subinterface
    switch: str
    port: int

    def frame(self, src: IP, dst: IP, vlan: int | None = None) -> bytes:
        return tagged(udp(self.router.mac, GATEWAY_MAC, src, dst), self.of.vlan if vlan is None else vlan)


def exits(net: Network) -> Iterator[Exit]:
    for server in net.servers.values():
        at = net.location(server.id)
        port = None if at is None else net.port_number(at)
        if at is not None and port is not None:
            yield from (Exit(server, one, at.switch, port) for one in server.subinterfaces)


def exit_of(net: Network, vrf: str) -> Exit | None:
    return next((one for one in exits(net) if one.of.vrf == vrf), None)


def goes_out(delivery: Delivery, way: Exit | None) -> None:
    """It comes to the VRF's router with the tag that it has there, once; or, without one, nowhere."""
    if way is None:
        assert not delivery.arrivals, f"there is no way out: {delivery}"
        return
    [(switch, port, frame)] = delivery.arrivals
    assert (switch, port) == (way.switch, way.port), f"{way.of.vrf} goes out at {switch} port {port}"
    read = parse(frame)
    assert (read.vlan, read.dst, read.src) == (way.of.vlan, way.router.mac, GATEWAY_MAC)
    assert not delivery.to_controller


def outsides(src: IP) -> Iterator[IP]:
    """Addresses beyond the router, and its own."""
    if src.version == 6:
        yield OUTSIDE6
    else:
        yield from (OUTSIDE, ROUTER_ADDRESS)


def is_guarded(world: FabricWorld, way: Exit, own: list[IP], elsewhere: list[IP]) -> None:
    """Nothing comes in from a VRF's router as from the VRF itself, under another tag, or to another VRF."""
    send = world.fabric.all_paths
    for src in own:
        for delivery in send(way.switch, way.port, way.frame(src, src)):
            assert not delivery.arrivals, f"delivered: {delivery}"
            assert [reason_of(cookie) in SPOOF_ATTEMPTS for _, cookie, _, _ in delivery.to_controller] == [
                True
            ]
    tags = {one.of.vlan for one in exits(world.net) if one.router == way.router}
    others = {vrf.tag for vrf in world.net.vrfs.values()} | {RED_VLAN, GREEN_VLAN, 4000}
    if way.router.routes:
        others -= {0}
    for vlan in others - tags:
        for dst in (*own, *elsewhere):
            for delivery in send(way.switch, way.port, way.frame(_outside(dst), dst, vlan)):
                assert not delivery.arrivals, f"delivered: {delivery}"
    for one in world.net.servers.values():
        at = world.net.location(one.id)
        port = None if at is None else world.net.port_number(at)
        if at is None or port is None or one == way.router:
            continue
        known = {there.of.vlan for there in exits(world.net) if there.router == one}
        for dst in own if way.of.vlan not in known and not one.edge else ():
            for delivery in send(at.switch, port, way.frame(_outside(dst), dst)):
                assert not delivery.arrivals, f"delivered: {delivery}"


def asks_for_its_gateways(world: FabricWorld, way: Exit) -> None:
    """The VRF's gateway is found by ARP under its tag; another VRF's is not."""
    for asked in (GATEWAY, IPv4Address("10.9.0.254"), IPv4Address("10.0.0.254")):
        question = tagged(arp_request(way.router.mac, ROUTER_ADDRESS, asked), way.of.vlan)
        is_its_own = any(subnet.gateway == asked for subnet in world.net.subnets_in(way.of.vrf))
        for delivery in world.fabric.all_paths(way.switch, way.port, question):
            assert delivery.to_controller, "the controller has all ARP of routers"
            if not is_its_own:
                assert not delivery.arrivals
                continue
            [(switch, port, answer)] = delivery.arrivals
            assert (switch, port, parse(answer).vlan) == (way.switch, way.port, way.of.vlan)
            assert parse_arp(parse(answer).payload).sha == GATEWAY_MAC


def _outside(dst: IP) -> IP:
    return OUTSIDE if dst.version == 4 else ipv6.OUTSIDE6
