"""What must hold of prefixes that are routed to NICs, in every state: questions of `world`."""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from retinue.core.model import IP, Prefix
from retinue.core.model.families import in_use
from retinue.core.packets import arp_request
from retinue.core.pipeline.cookies import Reason, reason_of
from support.fabric import ipv6
from support.fabric.networks import GATEWAY, GATEWAY_MAC, vm_ip, vm_mac
from support.fabric.world import OUTSIDE, FabricWorld, udp_frame


def of(number: int) -> tuple[Prefix, ...]:
    """The prefixes that tests route to VM N: one of each family, that of IPv4 one half of a pair's."""
    v4 = IPv4Network((int(IPv4Address("10.9.0.0")) + 16 * number, 28))
    return v4, IPv6Network((int(IPv6Address("fd00:9::")) + (number << 64), 64))


def inside(prefix: Prefix) -> list[IP]:
    """The first, the last and one more address."""
    return [prefix[0], prefix[-1], prefix[5]]


def udp(src_mac: str, dst_mac: str, src: IP, dst: IP) -> bytes:
    if isinstance(src, IPv4Address) and isinstance(dst, IPv4Address):
        return udp_frame(src_mac, dst_mac, src, dst)
    assert isinstance(src, IPv6Address) and isinstance(dst, IPv6Address)
    return ipv6.udp6_frame(src_mac, dst_mac, src, dst)


def held(world: FabricWorld) -> Iterator[tuple[int, Prefix]]:
    """The prefixes that switches deal with, each with the number of its NIC: a VM's first, here."""
    for prefix, vm in world.net.routed():
        if in_use(world.net, prefix.version):
            yield int(vm.removeprefix("vm")), prefix


def check(world: FabricWorld, at: dict[int, int], may_arrive: dict[int, set[int]]) -> None:
    """What is sent to a prefix comes to its NIC; it sends from all of it, and nobody else from any of it."""
    router = world.net.servers["router"]
    assert router.given_at is not None
    for number, prefix in held(world):
        v4 = prefix.version == 4
        for ip in inside(prefix):
            outside: IP = OUTSIDE if v4 else ipv6.OUTSIDE6
            for delivery in world.send(number, at[number], udp(vm_mac(number), GATEWAY_MAC, ip, outside)):
                world.comes_once(delivery, {(router.given_at.switch, 91)}, router.mac)
            arriving = udp(router.mac, GATEWAY_MAC, outside, ip)
            for delivery in world.fabric.all_paths(router.given_at.switch, 91, arriving):
                world.comes(delivery, number, may_arrive[number])
            if world.net.over_routers:
                continue  # Whom they let speak for whom is theirs to say.
            for delivery in world.fabric.all_paths(
                router.given_at.switch, 91, udp(router.mac, GATEWAY_MAC, ip, outside)
            ):
                assert not delivery.arrivals
                assert [reason_of(c) for _, c, _, _ in delivery.to_controller] == [Reason.SPOOFED_IP]
        for other, location in at.items():
            if other == number:
                continue
            own: IP = vm_ip(other) if v4 else ipv6.vm_ip6(other)
            for delivery in world.send(other, location, udp(vm_mac(other), GATEWAY_MAC, own, prefix[5])):
                world.comes(delivery, number, may_arrive[number])
            for delivery in world.send(number, at[number], udp(vm_mac(number), GATEWAY_MAC, prefix[5], own)):
                world.comes(delivery, other, may_arrive[other])
            for mac in (vm_mac(other), vm_mac(number)):
                world.is_reported_spoofed(other, location, udp(mac, GATEWAY_MAC, prefix[5], own))
            beyond = prefix.network_address - 1
            world.is_reported_spoofed(number, at[number], udp(vm_mac(number), GATEWAY_MAC, beyond, own))
        if isinstance(prefix[5], IPv4Address):
            # It may ask for the gateway in the name of any of them, and nobody else may.
            for delivery in world.send(
                number, at[number], arp_request(vm_mac(number), prefix[5], gateway(world, number))
            ):
                ((_, _, answer),) = delivery.arrivals
                assert answer[22:28].hex(":") in world.net.gateway_macs
            for other, location in at.items():
                if other != number:
                    asked = arp_request(vm_mac(other), prefix[5], gateway(world, number))
                    world.is_reported_spoofed(other, location, asked)


def gateway(world: FabricWorld, number: int) -> IPv4Address:
    subnet = world.net.subnet_of(vm_ip(number))
    found = GATEWAY if subnet is None else subnet.gateway
    assert isinstance(found, IPv4Address)
    return found
