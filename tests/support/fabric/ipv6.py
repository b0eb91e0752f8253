"""What must hold of IPv6 in every state: questions of `world`, of VMs with addresses of both families."""

import struct
from collections.abc import Collection, Iterator
from dataclasses import replace
from ipaddress import IPv6Address

from retinue.core.model import Mac
from retinue.core.model.link_local import (
    ALL_NODES,
    ALL_ROUTERS,
    UNSPECIFIED,
    group_mac,
    link_local,
    solicited_node,
)
from retinue.core.packets import (
    ICMPV6,
    ND,
    Ethernet,
    EtherType,
    NDOptions,
    NeighbourAdvertisement,
    NeighbourSolicitation,
    Redirect,
    RouterAdvertisement,
    RouterSolicitation,
    build_icmpv6,
    build_ipv6,
    nd_frame,
    parse,
    parse_nd,
    upper_checksum,
)
from retinue.core.packets.ipv4 import UDP
from retinue.core.pipeline.cookies import Reason, reason_of
from retinue.core.pipeline.edge_ipv6 import UNREAD_HEADERS
from support.fabric.networks import GATEWAY6, GATEWAY_MAC, holding6, vm_mac, vm_port
from support.fabric.world import MARK, FabricWorld, tagged
from support.fakes.switch import Delivery

OUTSIDE6 = IPv6Address("2001:db8::9")
GATEWAY_LOCAL = link_local(GATEWAY_MAC)
UNROUTABLE6 = tuple(
    IPv6Address(text) for text in ("::", "::1", "::ffff:10.1.0.101", "fe80::1", "ff02::1", "ff0e::9")
)
"""Destinations that no router may forward to."""
FRAGMENT, DESTINATION = 44, 60


def vm_ip6(number: int) -> IPv6Address:
    address = holding6(number).ip
    assert isinstance(address, IPv6Address)
    return address


def vm_local(number: int) -> IPv6Address:
    return link_local(vm_mac(number))


def udp6(src: IPv6Address, dst: IPv6Address, sport: int = 4000, dport: int = 7, hop_limit: int = 64) -> bytes:
    """The IPv6 packet of a datagram that bears the mark."""
    length = 8 + len(MARK)
    datagram = struct.pack("!HHHH", sport, dport, length, 0) + MARK
    found = upper_checksum(src, dst, UDP, datagram)
    return build_ipv6(src, dst, UDP, datagram[:6] + found.to_bytes(2, "big") + datagram[8:], hop_limit)


def frame6(src_mac: Mac, dst_mac: Mac, packet: bytes) -> bytes:
    return Ethernet(dst_mac, src_mac, EtherType.IPV6, packet).build()


def udp6_frame(src_mac: Mac, dst_mac: Mac, src: IPv6Address, dst: IPv6Address) -> bytes:
    return frame6(src_mac, dst_mac, udp6(src, dst))


def extended(packet: bytes, *headers: tuple[int, bytes]) -> bytes:
    """The packet with extension headers put in, each by its number and what follows its first byte."""
    kind, body = packet[6], packet[40:]
    for number, rest in reversed(headers):
        kind, body = number, bytes((kind,)) + rest + body
    return packet[:4] + len(body).to_bytes(2, "big") + bytes((kind,)) + packet[7:40] + body


NOTHING_OF_NOTE = (DESTINATION, b"\0\1\4" + bytes(4))
"""Destination options with padding only."""


def fragment(offset: int, more: bool) -> tuple[int, bytes]:
    return FRAGMENT, b"\0" + (offset << 3 | more).to_bytes(2, "big") + b"abcd"


def asks(src: IPv6Address, target: IPv6Address, mac: Mac | None, dst: IPv6Address | None = None) -> ND:
    to = dst or solicited_node(target)
    return ND(src, to, NeighbourSolicitation(target, NDOptions(source_mac=mac)))


def says(src: IPv6Address, target: IPv6Address, mac: Mac | None, dst: IPv6Address = ALL_NODES) -> ND:
    return ND(src, dst, NeighbourAdvertisement(target, override=True, options=NDOptions(target_mac=mac)))


def advertises(src: IPv6Address, mac: Mac) -> ND:
    return ND(src, ALL_NODES, RouterAdvertisement(1800, options=NDOptions(source_mac=mac)))


# ---- what must hold ----


def check(
    world: FabricWorld, at: dict[int, int], may_arrive: dict[int, set[int]], *, thorough: bool = False
) -> None:
    """The invariants, as of the property tests: VM N runs on server `at[N]`.

    `thorough` tries each forgery in every guise and against everybody, otherwise in one and against one.
    """
    for sender, location in at.items():
        for receiver in at:
            if receiver == sender:
                continue
            for dst_mac in (GATEWAY_MAC, vm_mac(receiver)):
                reaches(world, sender, location, receiver, may_arrive[receiver], dst_mac)
            if thorough or receiver == min(set(at) - {sender}):
                spoofs(world, sender, location, receiver, thorough)
        extensions_pass(world, sender, location)
        speaks_of_itself(world, sender, location)
        goes_nowhere_else(world, sender, location)
        reaches_outside(world, sender, location)
        for delivery in from_outside(world, sender):
            world.comes(delivery, sender, may_arrive[sender])
        services_speak_for_themselves(world, sender)


def reaches(
    world: FabricWorld, vm: int, at: int, to: int, locations: Collection[int], dst_mac: Mac = GATEWAY_MAC
) -> None:
    for delivery in world.send(vm, at, udp6_frame(vm_mac(vm), dst_mac, vm_ip6(vm), vm_ip6(to))):
        world.comes(delivery, to, locations)


def extensions_pass(world: FabricWorld, vm: int, at: int) -> None:
    """Honest packets in parts, or with options, come to where they are sent."""
    router = world.net.servers["router"]
    assert router.given_at is not None
    packet = udp6(vm_ip6(vm), OUTSIDE6)
    headers = (NOTHING_OF_NOTE, fragment(0, True), fragment(5, False))
    for sent in (extended(packet, header) for header in headers):
        for delivery in world.send(vm, at, frame6(vm_mac(vm), GATEWAY_MAC, sent)):
            world.comes_once(delivery, {(router.given_at.switch, 91)}, router.mac)


def reaches_outside(world: FabricWorld, vm: int, at: int) -> None:
    router = world.net.servers["router"]
    assert router.given_at is not None
    for delivery in world.send(vm, at, udp6_frame(vm_mac(vm), GATEWAY_MAC, vm_ip6(vm), OUTSIDE6)):
        world.comes_once(delivery, {(router.given_at.switch, 91)}, router.mac)


def from_outside(world: FabricWorld, to: int) -> list[Delivery]:
    router = world.net.servers["router"]
    assert router.given_at is not None
    frame = udp6_frame(router.mac, GATEWAY_MAC, OUTSIDE6, vm_ip6(to))
    return world.fabric.all_paths(router.given_at.switch, 91, frame)


def speaks_of_itself(world: FabricWorld, vm: int, at: int) -> None:
    """Honest questions are answered by the switch, or come to the controller alone; what is said without need
    goes to nobody."""
    for frame in questions(vm):
        for delivery in world.send(vm, at, frame):
            is_answered(world, vm, at, frame, delivery)
    for frame in unneeded(vm):
        for delivery in world.send(vm, at, frame):
            assert not delivery.arrivals, f"delivered: {delivery}"
            assert not delivery.to_controller, f"told: {delivery}"


def is_answered(world: FabricWorld, vm: int, at: int, frame: bytes, delivery: Delivery) -> None:
    """By its switch, of what that knows, as by the controller; else the controller is asked."""
    asked = parse_nd(parse(frame).payload)
    told = [reason_of(c) for _, c, _, _ in delivery.to_controller]
    if not delivery.arrivals:
        assert told == [Reason.VM_ND], frame
        assert not is_for_gateway(asked), "its switch answers for the gateway"
        return
    assert isinstance(asked.message, NeighbourSolicitation)
    assert asked.src != UNSPECIFIED, "whether an address is taken the controller says"
    assert (asked.message.options.source_mac, told) == (vm_mac(vm), [])
    its_own = [vm_mac(vm + 1)] if asked.message.target == vm_ip6(vm + 1) else []
    assert delivery.arrivals in {
        ((f"edge{at}", vm_port(vm), nd_frame(answer(asked, mac), mac, vm_mac(vm))),)
        for mac in (*its_own, *world.net.gateway_macs)
    }


def is_for_gateway(asked: ND) -> bool:
    """A question about the gateway that its switch is to answer."""
    named = isinstance(asked.message, NeighbourSolicitation) and asked.message.options.source_mac
    return bool(named) and getattr(asked.message, "target", None) in (GATEWAY6, GATEWAY_LOCAL)


def answer(asked: ND, mac: Mac) -> ND:
    assert isinstance(asked.message, NeighbourSolicitation)
    target, router = asked.message.target, asked.message.target in (GATEWAY6, GATEWAY_LOCAL)
    options = NDOptions(target_mac=mac)
    return ND(target, asked.src, NeighbourAdvertisement(target, router, True, True, options))


def questions(vm: int) -> Iterator[bytes]:
    """What an honest VM asks."""
    mac, own, local, other = vm_mac(vm), vm_ip6(vm), vm_local(vm), vm_ip6(vm + 1)
    asked = [
        *(asks(src, target, mac) for src in (own, local) for target in (other, GATEWAY6, GATEWAY_LOCAL)),
        asks(own, other, None, other),
        *(asks(UNSPECIFIED, target, None) for target in (own, local, other)),
        ND(local, ALL_ROUTERS, RouterSolicitation(NDOptions(source_mac=mac))),
        ND(UNSPECIFIED, ALL_ROUTERS, RouterSolicitation()),
    ]
    return (nd_frame(message, mac) for message in asked)


def unneeded(vm: int) -> list[bytes]:
    """What an honest VM says, and nobody needs to hear; and what is behind a header that no switch reads."""
    mac, own, local, other = vm_mac(vm), vm_ip6(vm), vm_local(vm), vm_ip6(vm + 1)
    report = build_icmpv6(UNSPECIFIED, IPv6Address("ff02::16"), bytes((143, *bytes(7))), 1)
    return [
        *(nd_frame(says(src, target, mac), mac) for src in (own, local) for target in (own, local)),
        nd_frame(says(own, own, None), mac),
        frame6(mac, group_mac(IPv6Address("ff02::16")), report),
        frame6(mac, group_mac(ALL_ROUTERS), udp6(local, ALL_ROUTERS)),
        frame6(mac, vm_mac(vm + 1), udp6(local, vm_local(vm + 1))),
        frame6(mac, vm_mac(vm + 1), udp6(own, vm_local(vm + 1))),
        frame6(mac, vm_mac(vm + 1), udp6(local, other)),
        frame6(mac, GATEWAY_MAC, udp6(local, other)),
        frame6(mac, GATEWAY_MAC, udp6(local, OUTSIDE6)),
        *(frame6(mac, vm_mac(vm + 1), extended(udp6(own, other), (n, bytes(7)))) for n in UNREAD_HEADERS),
    ]


def announces(world: FabricWorld, vm: int, at: int, shared: IPv6Address, *, allowed: bool) -> None:
    """What a VM says of an address that another has: to the controller, if it may take it; or it is spoofed.

    From that address, from another of its own, and from its link-local one; but under its own MAC alone.
    """
    mac = vm_mac(vm)
    for src in (shared, vm_ip6(vm), vm_local(vm)):
        frame = nd_frame(says(src, shared, mac), mac)
        if not allowed:
            world.is_reported_spoofed(vm, at, frame)
            continue
        for delivery in world.send(vm, at, frame):
            assert not delivery.arrivals
            assert [reason_of(c) for _, c, _, _ in delivery.to_controller] == [Reason.VM_ND], frame
    for frame in (
        nd_frame(says(shared, shared, vm_mac(vm + 1)), mac),
        nd_frame(says(shared, shared, None), mac),
        nd_frame(says(shared, vm_ip6(vm), mac), mac),
        nd_frame(says(shared, shared, mac), vm_mac(vm + 1)),
        nd_frame(asks(shared, vm_ip6(vm), vm_mac(vm + 1)), mac),
        nd_frame(ND(shared, ALL_ROUTERS, RouterSolicitation()), mac),
    ):
        world.is_reported_spoofed(vm, at, frame)


def goes_nowhere_else(world: FabricWorld, vm: int, at: int) -> None:
    """What no router may forward is not brought to one, by whichever MAC it is sent."""
    for dst in UNROUTABLE6:
        for mac in (GATEWAY_MAC, "02:00:00:00:0f:ff", world.net.servers["router"].mac):
            world.goes_nowhere(vm, at, udp6_frame(vm_mac(vm), mac, vm_ip6(vm), dst))
    router = world.net.servers["router"]
    assert router.given_at is not None
    for src, dst in ((OUTSIDE6, UNROUTABLE6[3]), (OUTSIDE6, ALL_NODES), (link_local(router.mac), vm_ip6(vm))):
        frame = udp6_frame(router.mac, GATEWAY_MAC, src, dst)
        for delivery in world.fabric.all_paths(router.given_at.switch, 91, frame):
            assert not delivery.arrivals, f"delivered: {delivery}"


def spoofs(world: FabricWorld, vm: int, at: int, victim: int, thorough: bool) -> None:
    """Every way in which `vm` may pretend to be `victim`, or a router, fails and is told."""
    for frame in forgeries(vm, victim, thorough):
        world.is_reported_spoofed(vm, at, frame)
        if thorough:
            world.is_reported_spoofed(vm, at, tagged(frame, 0))
    for honest in (
        udp6_frame(vm_mac(vm), vm_mac(victim), vm_ip6(vm), vm_ip6(victim)),
        nd_frame(asks(vm_ip6(vm), vm_ip6(victim), vm_mac(vm)), vm_mac(vm)),
    ):
        world.is_reported_spoofed(vm, at, tagged(honest, 666))
        for with_priority, untagged in zip(
            world.send(vm, at, tagged(honest, 0)), world.send(vm, at, honest), strict=True
        ):
            assert with_priority.arrivals == untagged.arrivals
            assert with_priority.to_controller == untagged.to_controller


def forgeries(vm: int, victim: int, thorough: bool) -> Iterator[bytes]:
    mac, theirs, own, its = vm_mac(vm), vm_mac(victim), vm_ip6(vm), vm_ip6(victim)
    for src in (its, vm_local(victim), GATEWAY6, GATEWAY_LOCAL, OUTSIDE6):
        yield udp6_frame(mac, GATEWAY_MAC, src, OUTSIDE6)
        yield udp6_frame(mac, theirs, src, its)
    yield udp6_frame(theirs, GATEWAY_MAC, own, OUTSIDE6)
    for served in (udp6(own, its, 547, 546), udp6(vm_local(vm), vm_local(victim), 547, 546)):
        yield frame6(mac, theirs, served)
        yield frame6(mac, theirs, extended(served, NOTHING_OF_NOTE))
        yield frame6(mac, theirs, extended(served, fragment(0, True)))
    # In two parts, of which the first ends before its ports.
    yield frame6(mac, theirs, extended(build_ipv6(own, its, UDP, b""), fragment(0, True)))
    yield nd_frame(asks(UNSPECIFIED, its, None), theirs)
    yield frame6(mac, theirs, udp6(UNSPECIFIED, its))
    # What a router has forwarded is not said on the link, honest though it be.
    for honest in (asks(own, its, mac), says(own, own, mac), asks(UNSPECIFIED, its, None)):
        packet = honest.build()
        yield frame6(mac, group_mac(honest.dst), packet[:7] + b"\xfe" + packet[8:])
    packet = ND(vm_local(vm), ALL_ROUTERS, RouterSolicitation(NDOptions(source_mac=mac))).build()
    yield frame6(mac, group_mac(ALL_ROUTERS), packet[:7] + b"\xfe" + packet[8:])
    for number, message in enumerate(forged_messages(vm, victim)):
        packet = message.build()
        guises = [
            frame6(mac, theirs, packet),
            frame6(mac, theirs, extended(packet, NOTHING_OF_NOTE)),
            frame6(mac, theirs, extended(packet, fragment(0, False))),
            frame6(mac, theirs, extended(packet, fragment(0, True))),
            frame6(theirs, group_mac(message.dst), packet),
            frame6(mac, theirs, extended(packet, NOTHING_OF_NOTE, (FRAGMENT, bytes(7)), NOTHING_OF_NOTE)),
            frame6(mac, group_mac(message.dst), packet),
        ]
        yield from guises if thorough else (guises[number % len(guises)],)
    # In two parts, of which the first ends before the message's type; and headers that say they are longer.
    first = build_ipv6(own, its, DESTINATION, b"")
    yield frame6(mac, theirs, extended(build_ipv6(own, its, ICMPV6, b""), fragment(0, True), NOTHING_OF_NOTE))
    yield frame6(mac, theirs, extended(first, fragment(0, True))[:40] + b"\x3c\0\0\1abcd\x3a\1" + bytes(6))
    yield frame6(mac, theirs, extended(build_ipv6(own, its, ICMPV6, b""), (DESTINATION, b"\5" + bytes(6))))


def forged_messages(vm: int, victim: int) -> Iterator[ND]:
    mac, theirs, own, its = vm_mac(vm), vm_mac(victim), vm_ip6(vm), vm_ip6(victim)
    for src in (its, vm_local(victim), GATEWAY_LOCAL):
        yield asks(src, own, mac)
        yield ND(src, ALL_ROUTERS, RouterSolicitation(NDOptions(source_mac=mac)))
        yield says(src, own, mac)
        yield says(src, src, mac, its)
    yield asks(own, its, theirs)
    yield asks(own, its, GATEWAY_MAC)
    for target in (its, GATEWAY6, GATEWAY_LOCAL, vm_local(victim)):
        yield says(own, target, mac, its)
        yield says(vm_local(vm), target, mac)
        yield says(own, target, theirs)
    yield says(own, own, theirs)
    for src in (vm_local(vm), GATEWAY_LOCAL):
        yield advertises(src, mac)
        yield replace(advertises(src, mac), dst=its)
        yield ND(src, its, Redirect(own, OUTSIDE6, NDOptions(target_mac=mac)))


def services_speak_for_themselves(world: FabricWorld, vm: int) -> None:
    """Neither the router nor the DHCP server sends as anybody of ours; the latter has no IPv6 at all."""
    router, dhcp = world.net.servers["router"], world.net.servers["dhcp"]
    inside = [vm_ip6(vm), IPv6Address("fd00:1::200"), GATEWAY6]
    for server, port, others in ((router, 91, inside), (dhcp, 90, [*inside, OUTSIDE6])):
        assert server.given_at is not None
        for src in others:
            sent = udp6_frame(server.mac, GATEWAY_MAC, src, vm_ip6(vm))
            for delivery in world.fabric.all_paths(server.given_at.switch, port, sent):
                assert not delivery.arrivals
                told = [reason_of(cookie) for _, cookie, _, _ in delivery.to_controller]
                assert told == [Reason.SPOOFED_IP]
