"""Real Open vSwitch does with our pipeline's entries what the fake switch does, frame by frame, byte by byte.

So what the unit and property tests find on fake switches holds for real ones.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Network

import pytest

from retinue.core.model import Allowed, Assignment, BindingKind, Network, Origin, VMPort
from retinue.core.model.link_local import link_local
from retinue.core.packets import (
    BROADCAST,
    Ethernet,
    arp_reply,
    arp_request,
    build_icmpv6,
    build_udp4,
    dhcp_frame,
    discover,
    nd_frame,
    offer,
    parse,
    parse_arp,
)
from retinue.core.pipeline.cookies import Reason, reason_of
from retinue.core.pipeline.entry import Change, Field, Flow, Group, Meter, PortNo
from support.fabric import hostile, ipv6
from support.fabric.flooded import GROUP_MAC, GROUP_MAC6, MDNS, MDNS6, Member, add_vnets
from support.fabric.flooded import add_vm as add_flooded
from support.fabric.networks import (
    GATEWAY,
    GATEWAY6,
    GATEWAY_MAC,
    INFRA_GATEWAY,
    OTHER_GATEWAY_MAC,
    UPLINK,
    add_ipv6,
    add_vm,
    fabric,
    group,
    holding6,
    moved,
    split,
    vm_ip,
    vm_mac,
    vm_port,
)
from support.fabric.sample_frames import icmp, ipv4
from support.fabric.storage import (
    FORWARDER_PORT,
    add_forwarder,
    advertisement,
    answers,
    asks,
    clears,
    forgeries,
    from_forwarder,
    keep_alive,
    login,
    solicitation,
    to_forwarder,
)
from support.fabric.tenants import Held, add_tenants
from support.fabric.tenants import add_vm as add_tenants_vm
from support.fabric.ways_out import EXIT_PORT, GREEN_VLAN, RED_VLAN, ROUTER_ADDRESS, add_exits
from support.fabric.world import (
    EVERYWHERE,
    NOWHERE,
    OUTSIDE,
    FabricWorld,
    dhcp_answer,
    fragments,
    tagged,
    udp_frame,
)
from support.oracles.ovs import RealSwitch, assert_agrees

pytestmark = [pytest.mark.lab, pytest.mark.no_vms]


@pytest.fixture(scope="module")
def world() -> FabricWorld:
    """vm1 on server1 and, as in the middle of a migration, admitted on server2; vm2 and vm4 beside it."""
    net = fabric()
    add_ipv6(net)
    split(net)  # vm1, vm2 and vm3 have a subnet, and vm4 another.
    moving = add_vm(net, 1, 1, ports_on=(2,))
    net.put_vm(replace(moving, also=frozenset({"server2"})))
    for number, at in ((2, 2), (3, 3), (4, 1)):
        add_vm(net, number, at)
    for number in (1, 2, 4):
        net.assign(holding6(number))
    add_vm(net, 5, 1, bound=False)
    # vm4 serves DHCP at a rate, and has an address that vm2 may take; server2 is in a gateway group.
    group(net)
    shared = Allowed(IPv4Address("10.1.0.200"))
    for number, trusted in ((2, False), (4, True)):
        nic = net.vms[f"vm{number}"].nic
        changed = replace(nic, allowed=(shared,), trusted=trusted, rate=int(trusted) * 1_000_000)
        net.change_nic(f"vm{number}", nic, changed)
    net.take(Assignment(shared.ip, vm_mac(4), "vm4", BindingKind.ALLOWED, Origin.CONTROLLER))
    return FabricWorld(net)


PORTS: dict[str, list[int]] = {
    "edge1": [UPLINK, vm_port(1), vm_port(4), vm_port(5), PortNo.LOCAL],
    "edge2": [UPLINK, vm_port(1), vm_port(2), vm_port(6)],
    "leaf1": [1, 2, 101, 103],
    "leaf2": [1, 2, 102, 90, 91],
    "spine1": [1, 2],
}


NONE: Mapping[str, Sequence[int]] = {}


@pytest.mark.parametrize("switch", PORTS)
def test_every_frame_at_every_port(world: FabricWorld, switch: str) -> None:
    assert agrees_on(world, switch, frames(world.net)) > 10, "the frames must exercise the switch"


def agrees_on(
    world: FabricWorld, switch: str, sent: Iterable[bytes], more: Mapping[str, Sequence[int]] = NONE
) -> int:
    """Each frame into each port; how often something came out. `more`: ports beside those of PORTS."""
    ports = [*PORTS[switch], *more.get(switch, ())]
    program = list(world.compiler.program(switch).values())
    # What a meter drops depends on time: here none does.
    meters = [replace(m, rate=10**6, burst=10**6) for m in program if isinstance(m, Meter)]
    # What is only for frames of the controller's own comes in by no port.
    ours = (Field.IN_PORT, PortNo.CONTROLLER, None)
    flows = [f for f in program if isinstance(f, Flow) and ours not in f.match]
    groups = [g for g in program if isinstance(g, Group)]
    fake = world.fabric[switch]
    fake.apply(Change(meters=tuple(meters)))
    seen = 0
    with RealSwitch(ports) as real:
        real.install([replace(f, expires_at=None) for f in flows], groups, meters)
        each = list(sent)
        for port in ports:
            for frame in each:
                observed = assert_agrees(real, fake, frame, port)
                seen += bool(observed.outputs)
    return seen


@pytest.mark.parametrize("switch", PORTS)
def test_what_is_flooded_comes_to_each_once(switch: str) -> None:
    """Groups of type ALL, tags put and taken, and no copy back; vm1 is paused, at two servers."""
    net = fabric()
    add_vnets(net, ipv6=True)
    members = [Member(1, "vm1", "shop"), Member(2, "vm2", "shop"), Member(4, "vm4", "shop")]
    members += [Member(5, "vm5", "reds"), Member(3, "vm3", "shop"), Member(6, "vm6", "reds")]
    places = {"vm1": 1, "vm2": 2, "vm3": 3, "vm4": 1, "vm5": 1, "vm6": 2}
    for one in members:
        vm = add_flooded(net, one.vm, places[one.vm], [one])
        if one.vm == "vm1":
            net.set_vm_port("vm1", "edge2", VMPort(vm_port(1)))
            net.put_vm(replace(moved(vm, "server2"), copied_to="server1", forwarded_from="server1"))
    sent: list[bytes] = []
    for one in members:
        for mac, dst in ((GROUP_MAC, MDNS), (BROADCAST, EVERYWHERE), (BROADCAST, vm_ip(1))):
            honest = udp_frame(one.mac, mac, one.ip, dst)
            sent += [honest, *(tagged(honest, vlan) for vlan in (0, 7, 42, 43))]
        link = ipv6.udp6_frame(one.mac, GROUP_MAC6, link_local(one.mac), MDNS6)
        sent += [link, tagged(link, 42), tagged(link, 7)]
    assert agrees_on(FabricWorld(net), switch, sent) > 5, "the frames must exercise the switch"


@pytest.mark.parametrize("switch", ["leaf1", "leaf2", "spine1"])
def test_a_vrf_goes_out_by_its_routers_tag(switch: str) -> None:
    """Red by VLAN 100 of a router at leaf1, green by VLAN 7 (red's own on the links)."""
    net = fabric()
    add_tenants(net, ipv6=True)
    delegated = IPv6Network("fd00:8::/60")
    inside = Held(1, "vm1", "red", vm_ip(1), ipv6.vm_ip6(1), delegated=delegated)
    add_tenants_vm(net, "vm1", 1, [inside])
    add_tenants_vm(net, "vm2", 2, [Held(2, "vm2", "green", vm_ip(1))])
    add_exits(net, {"red": RED_VLAN, "green": GREEN_VLAN}, apart=True)
    mac = net.servers["exit"].mac
    plain = [
        udp_frame(mac, GATEWAY_MAC, src, dst) for src in (OUTSIDE, vm_ip(1)) for dst in (vm_ip(1), OUTSIDE)
    ]
    plain += [
        udp_frame(GATEWAY_MAC, mac, vm_ip(1), OUTSIDE),
        udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), OUTSIDE),
    ]
    plain += [arp_request(mac, ROUTER_ADDRESS, asked) for asked in (GATEWAY, INFRA_GATEWAY, vm_ip(1))]
    plain += [ipv6.udp6_frame(mac, GATEWAY_MAC, ipv6.OUTSIDE6, ip) for ip in (inside.ip6, delegated[7]) if ip]
    plain += [
        ipv6.udp6_frame(vm_mac(1), GATEWAY_MAC, delegated[7], ipv6.OUTSIDE6),
        Ethernet(GATEWAY_MAC, mac, 0x0800, ipv4(OUTSIDE, GATEWAY, icmp(8, b"x"))).build(),
    ]
    sent = [*plain, *(tagged(frame, vlan) for frame in plain for vlan in (RED_VLAN, GREEN_VLAN, 4094, 300))]
    seen = agrees_on(FabricWorld(net), switch, sent, {"leaf1": (EXIT_PORT,)})
    assert seen > 10, "the frames must exercise the switch"


@pytest.mark.parametrize("switch", PORTS)
def test_storage_goes_by_mac_to_its_forwarder_and_back(switch: str) -> None:
    """FCoE and FIP as fake nodes and a fake forwarder send them; vm1 is diverted, and sends at two places."""
    net = fabric()
    add_forwarder(net)
    for number, at in ((1, 1), (2, 2), (4, 1)):
        add_vm(net, number, at, ports_on=(2,) if number == 1 else ())
    for number in (1, 2):
        net.log_in(login(number))
    net.put_vm(replace(moved(net.vms["vm1"], "server2"), copied_to="server1", forwarded_from="server1"))
    sent = [from_forwarder(1), from_forwarder(2), from_forwarder(4), from_forwarder(1) + bytes(1300)]
    for number in (1, 2, 4):
        sent += [to_forwarder(number), *forgeries(number, 1 + number % 2)]
        sent += [solicitation(number), asks(number), answers(number), keep_alive(number, of_port=True)]
    sent += [advertisement(), clears(1), *(tagged(frame, 42) for frame in sent[:6])]
    seen = agrees_on(FabricWorld(net), switch, sent, {"leaf2": (FORWARDER_PORT,)})
    assert seen > 1, "the frames must exercise the switch"


@pytest.mark.parametrize("switch", ["leaf1", "leaf2", "spine1"])
def test_what_is_for_a_vm_whose_server_is_not_found_is_handed_up(switch: str) -> None:
    """By the leaf where it comes in, with the cookie that says so, and nowhere else."""
    net = fabric()
    for number in (1, 2, 3):
        add_vm(net, number, number)
    del net.detected["server1"]
    world, places = FabricWorld(net), [(2, vm_ip(3)), (3, vm_ip(1)), (2, vm_ip(1)), (2, vm_ip(77))]
    sent = [udp_frame(vm_mac(n), GATEWAY_MAC, vm_ip(n), to) for n, to in places]
    agrees_on(world, switch, [*sent, *(tagged(frame, 7) for frame in sent)])
    port = PORTS[switch][-1] if switch != "leaf2" else 102
    up = [world.fabric[switch].receive(frame, port).to_controller for frame in sent]
    handed_up = [reason_of(found[0][0]) for found in up if found]
    assert handed_up == ([] if switch == "spine1" else [Reason.UNPLACED] * 2)


def frames(net: Network) -> Iterator[bytes]:
    """Honest and spoofed, of every kind the pipeline knows and some it does not; and some of them tagged."""
    for number, frame in enumerate(untagged(net)):
        yield frame
        if number % 3 == 0:
            yield tagged(frame, (0, 666)[number % 2])


def untagged(net: Network) -> Iterator[bytes]:
    hosts = [(vm_mac(n), vm_ip(n)) for n in (1, 2, 3, 4, 5)]
    servers = [(s.mac, s.address) for s in net.servers.values() if isinstance(s.address, IPv4Address)]
    addresses = [ip for _, ip in hosts + servers] + [OUTSIDE, GATEWAY, IPv4Address("10.1.0.200")]
    for number, (mac, ip) in enumerate(hosts + servers):
        for target in addresses[number % 2 :: 2]:
            yield udp_frame(mac, GATEWAY_MAC, ip, target)
        for dst in (vm_mac(4), vm_mac(2), BROADCAST, "01:00:5e:00:00:fb", servers[0][0], servers[1][0]):
            yield udp_frame(mac, dst, ip, addresses[(number + 1) % 5])
        yield udp_frame(mac, GATEWAY_MAC, addresses[(number + 1) % 5], OUTSIDE)
        yield udp_frame(mac, GATEWAY_MAC, OUTSIDE, addresses[number % 5])
        for target in (GATEWAY, INFRA_GATEWAY, vm_ip(4), vm_ip(2), ip):
            yield arp_request(mac, ip, target)
        yield arp_request(mac, NOWHERE, ip)
        yield arp_request(mac, IPv4Address("10.1.0.200"), IPv4Address("10.1.0.200"))
        yield udp_frame(mac, OTHER_GATEWAY_MAC, ip, IPv4Address("10.1.0.200"))
        yield arp_request(mac, vm_ip(3), vm_ip(3))
        yield arp_reply(parse_arp(parse(arp_request(vm_mac(4), vm_ip(4), ip)).payload), mac)
        yield dhcp_frame(discover(mac, 7), mac, BROADCAST, NOWHERE, EVERYWHERE, 68, 67)
        reply = offer(discover(vm_mac(5), 7), vm_ip(5), ip, 60)
        yield dhcp_frame(reply, mac, BROADCAST, ip, EVERYWHERE, 67, 68)
        yield dhcp_frame(reply, mac, GATEWAY_MAC, ip, vm_ip(5), 67, 68)
        yield dhcp_frame(reply, mac, GATEWAY_MAC, ip, vm_ip(1), 4000, 68)
        yield dhcp_frame(discover(mac, 7), mac, GATEWAY_MAC, ip, IPv4Address("10.1.0.2"), 4000, 67)
        yield from fragments(dhcp_frame(reply, mac, GATEWAY_MAC, ip, vm_ip(1), 67, 68))
        yield from fragments(dhcp_frame(reply, mac, vm_mac(4), ip, vm_ip(4), 4000, 68), 8)
        yield from fragments(dhcp_frame(discover(mac, 7), mac, BROADCAST, NOWHERE, EVERYWHERE, 68, 67))
        yield from fragments(
            Ethernet(GATEWAY_MAC, mac, 0x0800, build_udp4(ip, vm_ip(2), 4000, 53, bytes(90))).build()
        )
        yield ping(mac, ip, GATEWAY)
        yield from fragments(ping(mac, ip, GATEWAY), 8)
        yield ping(mac, ip, INFRA_GATEWAY)
        yield Ethernet(GATEWAY_MAC, mac, 0x86DD, bytes([0x60]) + bytes(39)).build()
        yield Ethernet(BROADCAST, mac, 0x8035, bytes(28)).build()
    for ttl in (1, 2):
        payload = build_udp4(vm_ip(1), vm_ip(2), 1, 2, b"ttl", ttl)
        yield Ethernet(GATEWAY_MAC, vm_mac(1), 0x0800, payload).build()
    yield from of_ipv6(net)
    yield from (frame for _, _, frame in hostile.REPORTED)
    yield from (frame for _, frame in hostile.QUIET)
    whole = arp_request(vm_mac(1), vm_ip(1), GATEWAY)
    yield whole[:30]
    yield udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), OUTSIDE)[:30]


def of_ipv6(net: Network) -> Iterator[bytes]:
    for vm, other in ((1, 4), (4, 2)):
        yield from ipv6.questions(vm)
        yield from ipv6.unneeded(vm)
        yield from ipv6.forgeries(vm, other, thorough=False)
    router, mac = net.servers["router"].mac, vm_mac(1)
    for src_mac, src in ((mac, ipv6.vm_ip6(1)), (vm_mac(2), ipv6.vm_ip6(2)), (router, ipv6.OUTSIDE6)):
        for dst in (ipv6.vm_ip6(4), ipv6.vm_ip6(2), ipv6.OUTSIDE6, GATEWAY6, *ipv6.UNROUTABLE6):
            yield ipv6.udp6_frame(src_mac, GATEWAY_MAC, src, dst)
        for packet in (
            build_icmpv6(src, GATEWAY6, bytes((128, *bytes(7)))),
            ipv6.udp6(src, ipv6.vm_ip6(4), hop_limit=1),
            ipv6.extended(ipv6.udp6(src, ipv6.vm_ip6(4)), ipv6.fragment(0, True)),
            ipv6.extended(ipv6.udp6(src, ipv6.vm_ip6(4)), ipv6.fragment(5, False)),
        ):
            yield ipv6.frame6(src_mac, GATEWAY_MAC, packet)
    echo = build_icmpv6(ipv6.vm_local(1), ipv6.GATEWAY_LOCAL, bytes((128, *bytes(7))) + b"ping")
    yield ipv6.frame6(mac, GATEWAY_MAC, echo)
    yield nd_frame(ipv6.asks(link_local(router), ipv6.GATEWAY_LOCAL, router), router)
    for server in (net.servers["server1"], net.servers["server2"]):
        yield ipv6.udp6_frame(GATEWAY_MAC, server.mac, ipv6.OUTSIDE6, ipv6.vm_ip6(1))


def ping(mac: str, src: IPv4Address, dst: IPv4Address) -> bytes:
    header = bytearray(build_udp4(src, dst, 0x0800, 0xF7FF, b"")[:28])
    header[9] = 1
    header[10:12] = bytes(2)
    header[20:28] = bytes.fromhex("0800f7ff00000000")
    total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, 20, 2))
    header[10:12] = (0xFFFF - ((total & 0xFFFF) + (total >> 16))).to_bytes(2, "big")
    return Ethernet(GATEWAY_MAC, mac, 0x0800, bytes(header)).build()


def test_a_dhcp_servers_message_in_fragments_is_not_delivered_an_ordinary_datagram_is(
    world: FabricWorld,
) -> None:
    """Not by the fake's word but by the real switch's: vm1 to vm2, beside it on edge2."""
    ordinary = build_udp4(vm_ip(1), vm_ip(2), 4000, 53, bytes(2000))
    program = list(world.compiler.program("edge2").values())
    with RealSwitch(PORTS["edge2"]) as real:
        real.install(
            [replace(f, expires_at=None) for f in program if isinstance(f, Flow)],
            [g for g in program if isinstance(g, Group)],
            [replace(m, rate=10**6, burst=10**6) for m in program if isinstance(m, Meter)],
        )
        for sport in (67, 4000):
            spoofed = dhcp_answer(vm_mac(1), vm_mac(2), vm_ip(1), to=2, sport=sport)
            for cut in (8, 64):
                seen = real.observe(fragments(spoofed, cut)[0], vm_port(1))
                assert seen.outputs == ()
                assert [reason_of(cookie) for cookie, _, _ in seen.to_controller] == [Reason.ROGUE_DHCP]
        for part in fragments(Ethernet(vm_mac(2), vm_mac(1), 0x0800, ordinary).build(), 1480):
            assert real.inject(part, vm_port(1)) == [(vm_port(2), part)]
