"""The pipeline on fake switches: what each role does with a frame (rows A8, B6, C1 to C4, D3, D5)."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from networks import (
    GATEWAY,
    GATEWAY_MAC,
    INFRA_GATEWAY,
    UPLINK,
    add_vm,
    fabric,
    leaf_port,
    server,
    vm_ip,
    vm_mac,
    vm_port,
)
from retinue.flows.compiler import Compiler
from retinue.flows.entry import PortNo
from retinue.flows.pipeline import FORGERIES, Reason, reason_of
from retinue.flows.plan import near_server
from retinue.model import PortRef, VMPort
from retinue.model.network import moved
from retinue.packets import (
    BROADCAST,
    ArpOp,
    Ethernet,
    arp_request,
    build_udp4,
    dhcp_frame,
    discover,
    offer,
    parse,
    parse_arp,
)
from world import EVERYWHERE, NOWHERE, OUTSIDE, World, dhcp_answer, fragments, rarp, tagged, udp_frame


@pytest.fixture
def world() -> World:
    """vm1 on server1, vm2 on server2 (other leaf), vm3 on server3 (same leaf), vm4 on server1."""
    net = fabric()
    for number, at in ((1, 1), (2, 2), (3, 3), (4, 1)):
        add_vm(net, number, at)
    return World(net)


@pytest.mark.parametrize("dst_mac", [GATEWAY_MAC, vm_mac(2), "52:54:00:99:99:99"])
def test_unknown_unicast_becomes_the_gateways_and_is_routed_by_ip(world: World, dst_mac: str) -> None:
    world.reaches(1, 1, to=2, places=[2], dst_mac=dst_mac)
    world.reaches(1, 1, to=3, places=[3], dst_mac=dst_mac)


def test_edge_rewrites_only_the_destination_mac(world: World) -> None:
    frame = udp_frame(vm_mac(1), vm_mac(2), vm_ip(1), vm_ip(2))
    result = world.fabric["edge1"].receive(frame, vm_port(1))
    ((port, sent),) = result.outputs
    assert port == UPLINK
    assert sent == bytes.fromhex(GATEWAY_MAC.replace(":", "")) + frame[6:]


def test_local_traffic_stays_local_by_mac_and_turns_at_the_leaf_by_the_gateways(world: World) -> None:
    by_mac = udp_frame(vm_mac(1), vm_mac(4), vm_ip(1), vm_ip(4))
    (delivery,) = world.send(1, 1, by_mac)
    assert [hop.switch for hop in delivery.hops] == ["edge1"]
    stale = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), vm_ip(4))
    (delivery,) = world.send(1, 1, stale)
    assert [hop.switch for hop in delivery.hops] == ["edge1", "leaf1", "edge1"]
    world.comes_once(delivery, {("edge1", vm_port(4))}, vm_mac(4))


def test_paths_through_both_spines_are_used(world: World) -> None:
    frame = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), vm_ip(2))
    ways = {hop.switch for delivery in world.send(1, 1, frame) for hop in delivery.hops}
    assert ways == {"edge1", "leaf1", "spine1", "spine2", "leaf2", "edge2"}


def test_ttl_goes_down_once(world: World) -> None:
    frame = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), vm_ip(2))
    for delivery in world.send(1, 1, frame):
        assert delivery.arrivals[0][2][22] == frame[22] - 1


def test_outside_is_reached_and_reaches(world: World) -> None:
    for vm, at in ((1, 1), (2, 2), (3, 3)):
        world.reaches_outside(vm, at)
        world.reaches_from_outside(vm, [at])


def test_nothing_is_flooded(world: World) -> None:
    world.floods_nothing(1, 1)
    to_nobody = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), IPv4Address("10.1.0.200"))
    world.goes_nowhere(1, 1, to_nobody)


def test_forgery_is_dropped_and_reported(world: World) -> None:
    for vm, at in ((4, 1), (2, 2), (3, 3)):
        world.forges(vm, at, victim=1)


def test_the_announcement_of_a_vm_that_has_arrived_is_dropped_without_a_word(world: World) -> None:
    (delivery,) = world.send(1, 1, rarp(vm_mac(1), vm_mac(1)))
    assert not delivery.arrivals
    assert not delivery.to_controller


def test_without_a_binding_only_dhcp_and_what_precedes_it_passes() -> None:
    net = fabric()
    add_vm(net, 1, at=1, bound=False)
    world = World(net)
    world.is_reported_forged(1, 1, udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), OUTSIDE))
    frame = dhcp_frame(discover(vm_mac(1), 7), vm_mac(1), BROADCAST, NOWHERE, EVERYWHERE, 68, 67)
    (delivery,) = world.send(1, 1, frame)
    assert not delivery.arrivals
    assert [reason_of(cookie) for _, cookie, _, _ in delivery.to_controller] == [Reason.DHCP_CLIENT]
    probe = arp_request(vm_mac(1), NOWHERE, vm_ip(1))
    (delivery,) = world.send(1, 1, probe)
    assert [reason_of(cookie) for _, cookie, _, _ in delivery.to_controller] == [Reason.VM_ARP]


@pytest.mark.parametrize("vlan", [0, 666])
def test_tagged_frames_do_not_travel(world: World, vlan: int) -> None:
    """Every port is an access port: a tag would be carried to the router's port and there mean something."""
    mac, ip, router = server(1).mac, IPv4Address("10.0.0.11"), world.net.servers["router"]
    dhcp = world.net.servers["dhcp"]
    reply = offer(discover(vm_mac(1), 7), vm_ip(1), IPv4Address("10.1.0.2"), 60)
    sent = [
        ("edge1", vm_port(1), udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), OUTSIDE)),
        ("edge1", PortNo.LOCAL, udp_frame(mac, GATEWAY_MAC, ip, vm_ip(2))),
        ("edge1", PortNo.LOCAL, arp_request(mac, ip, INFRA_GATEWAY)),
        ("edge1", UPLINK, udp_frame(GATEWAY_MAC, mac, vm_ip(2), vm_ip(1))),
        ("edge1", UPLINK, arp_request(GATEWAY_MAC, INFRA_GATEWAY, ip, dst=mac)),
        ("leaf2", 91, udp_frame(router.mac, GATEWAY_MAC, OUTSIDE, vm_ip(1))),
        ("leaf2", 91, arp_request(router.mac, IPv4Address("10.0.0.1"), INFRA_GATEWAY)),
        ("leaf2", 90, dhcp_frame(reply, dhcp.mac, vm_mac(1), IPv4Address("10.1.0.2"), vm_ip(1), 67, 68)),
        ("leaf1", 1, udp_frame(GATEWAY_MAC, mac, vm_ip(2), vm_ip(1))),
        ("spine1", 1, udp_frame(GATEWAY_MAC, GATEWAY_MAC, vm_ip(1), vm_ip(2))),
        ("spine1", 2, udp_frame(GATEWAY_MAC, mac, vm_ip(2), vm_ip(1))),
    ]
    for switch, port, frame in sent:
        untagged = world.fabric[switch].receive(frame, port)
        assert untagged.outputs or untagged.to_controller, "the frame must travel without its tag"
        result = world.fabric[switch].receive(tagged(frame, vlan), port)
        assert not result.outputs, f"{switch} port {port}"
        reasons = {reason_of(cookie) for cookie, _, _ in result.to_controller}
        assert reasons <= FORGERIES, f"{switch} port {port}"


def test_a_rogue_dhcp_server_is_silent(world: World) -> None:
    reply = offer(discover(vm_mac(1), 7), vm_ip(1), vm_ip(2), 60)
    frame = dhcp_frame(reply, vm_mac(2), BROADCAST, vm_ip(2), EVERYWHERE, 67, 68)
    world.is_reported_forged(2, 2, frame)
    # Nor one outside, through the router, nor a server's own stack.
    router = world.net.servers["router"].mac
    for sport in (67, 4000):
        world.serves_no_dhcp(2, 2, victim=1)
        for switch, port, mac, src in (
            ("leaf2", 91, router, OUTSIDE),
            ("edge2", PortNo.LOCAL, server(2).mac, IPv4Address("10.0.0.12")),
        ):
            outside = dhcp_answer(mac, GATEWAY_MAC, src, to=1, sport=sport)
            for sent in (outside, fragments(outside)[0]):
                for delivery in world.fabric.all_paths(switch, port, sent):
                    assert not delivery.arrivals
                    assert [reason_of(c) for _, c, _, _ in delivery.to_controller] == [Reason.ROGUE_DHCP]


def test_fragments_of_an_ordinary_datagram_arrive(world: World) -> None:
    payload = build_udp4(vm_ip(1), vm_ip(2), 4000, 53, bytes(2000))
    parts = fragments(Ethernet(GATEWAY_MAC, vm_mac(1), 0x0800, payload).build(), 1480)
    for sent in parts:
        for delivery in world.send(1, 1, sent):
            ((switch, port, frame),) = delivery.arrivals
            assert (switch, port) == ("edge2", vm_port(2))
            assert frame[34:] == sent[34:]
            assert not delivery.to_controller


def test_the_router_and_the_dhcp_server_send_as_nobody_else(world: World) -> None:
    for vm in (1, 2, 3):
        world.services_speak_for_themselves(vm)


def test_a_flood_of_forgeries_at_a_leaf_holds_up_neither_dhcp_nor_arp(world: World) -> None:
    """What the leaf reports as forged has a meter that nothing honest passes."""
    forged = {f.meter for f in world.fabric["leaf2"].flows.values() if reason_of(f.cookie) in FORGERIES}
    honest = {f.meter for f in world.fabric["leaf2"].flows.values() if reason_of(f.cookie) not in FORGERIES}
    assert len(forged) == 1
    assert not forged & honest


def test_the_dhcp_servers_port_is_trusted(world: World) -> None:
    reply = offer(discover(vm_mac(1), 7), vm_ip(1), IPv4Address("10.1.0.2"), 60)
    dhcp = world.net.servers["dhcp"]
    frame = dhcp_frame(reply, dhcp.mac, vm_mac(1), IPv4Address("10.1.0.2"), vm_ip(1), 67, 68)
    (delivery,) = world.fabric.all_paths("leaf2", 90, frame)
    assert not delivery.arrivals
    assert [reason_of(c) for _, c, _, _ in delivery.to_controller] == [Reason.DHCP_SERVER]


def answer(world: World, vm: int, at: int, tpa: IPv4Address) -> tuple[str, IPv4Address] | None:
    """MAC and IP the switch answers a VM's ARP request with; None when it leaves it to the controller."""
    question = arp_request(vm_mac(vm), vm_ip(vm), tpa)
    (delivery,) = world.send(vm, at, question)
    if not delivery.arrivals:
        return None
    ((switch, port, frame),) = delivery.arrivals
    assert (switch, port) == (f"edge{at}", vm_port(vm)), "the answer goes to the asker alone"
    ethernet = parse(frame)
    reply = parse_arp(ethernet.payload)
    assert (reply.op, reply.tha, reply.tpa) == (ArpOp.REPLY, vm_mac(vm), vm_ip(vm))
    assert (ethernet.dst, ethernet.src) == (vm_mac(vm), reply.sha)
    return reply.sha, reply.spa


def test_arp_ends_at_the_edge(world: World) -> None:
    assert answer(world, 1, 1, GATEWAY) == (GATEWAY_MAC, GATEWAY)
    assert answer(world, 1, 1, vm_ip(4)) == (vm_mac(4), vm_ip(4)), "a local VM by its own MAC (row C3)"
    assert answer(world, 1, 1, vm_ip(2)) is None, "a remote one is the controller's to answer"
    (delivery,) = world.send(1, 1, arp_request(vm_mac(1), vm_ip(1), vm_ip(1)))
    assert not delivery.arrivals, "an announcement ends here"
    assert not delivery.to_controller


def test_leaf_answers_for_the_gateway_and_the_controller_hears(world: World) -> None:
    mac = server(1).mac
    frame = arp_request(mac, IPv4Address("10.0.0.11"), INFRA_GATEWAY)
    (delivery,) = world.fabric.all_paths("edge1", PortNo.LOCAL, frame)
    ((switch, port, reply),) = delivery.arrivals
    assert (switch, port) == ("edge1", PortNo.LOCAL)
    assert parse_arp(parse(reply).payload).sha == GATEWAY_MAC
    ((leaf, cookie, in_port, copy),) = delivery.to_controller
    assert (leaf, reason_of(cookie), in_port) == ("leaf1", Reason.SERVER_ARP, leaf_port(1))
    assert copy == frame


def test_servers_reach_each_other_and_vms(world: World) -> None:
    to_server2 = udp_frame(server(1).mac, GATEWAY_MAC, IPv4Address("10.0.0.11"), IPv4Address("10.0.0.12"))
    for delivery in world.fabric.all_paths("edge1", PortNo.LOCAL, to_server2):
        world.comes_once(delivery, {("edge2", PortNo.LOCAL)}, server(2).mac)
    to_vm = udp_frame(server(1).mac, GATEWAY_MAC, IPv4Address("10.0.0.11"), vm_ip(2))
    for delivery in world.fabric.all_paths("edge1", PortNo.LOCAL, to_vm):
        world.comes_once(delivery, {("edge2", vm_port(2))}, vm_mac(2))


def test_ping_of_the_gateway_is_answered_by_the_nearest_switch(world: World) -> None:
    icmp = bytes.fromhex("0800f7ff00000000")
    header = build_udp4(vm_ip(1), GATEWAY, 1, 1, b"")[:20]
    packet = bytearray(header[:9] + b"\x01" + header[10:12] + header[12:20] + icmp)
    packet[2:4] = len(packet).to_bytes(2, "big")
    frame = Ethernet(GATEWAY_MAC, vm_mac(1), 0x0800, bytes(packet)).build()
    (delivery,) = world.send(1, 1, frame)
    ((switch, port, reply),) = delivery.arrivals
    assert (switch, port) == ("edge1", vm_port(1))
    assert parse(reply).dst == vm_mac(1)
    assert reply[26:34] == GATEWAY.packed + vm_ip(1).packed
    assert reply[34] == 0


def test_a_binding_ends_on_the_switch_by_itself(world: World) -> None:
    """Row B5: with the controller gone, the edge drops the VM's packets when the lease is over."""
    for switch in world.fabric.switches.values():
        switch.expire(2e10)
    world.is_reported_forged(1, 1, udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), OUTSIDE))


def test_a_move_costs_a_constant_number_of_flow_changes() -> None:
    def cost(spare_servers: int, spare_vms: int) -> list[int]:
        net = fabric(servers_on=(1, 2, *([1] * spare_servers)))
        vm = add_vm(net, 1, at=1, ports_on=(2,))
        for number in range(2, 2 + spare_vms):
            add_vm(net, number, at=3)
        compiler = Compiler(net)
        compiler.update(net.everything())
        counts = []
        for step in (
            replace(vm, also=frozenset({"server2"})),
            moved(vm, "server2"),
            replace(vm, server="server2"),
        ):
            counts.append(sum(map(len, compiler.update(net.put_vm(step)).values())))
        return counts

    small, large = cost(1, 1), cost(20, 50)
    assert small == large
    _, steered, _ = large
    assert steered == 10, "two leaves with two entries each, two spines, two edges with two entries each"


def test_a_servers_new_place_takes_its_vms_along(world: World) -> None:
    """Row B2: the fabric follows a server that is cabled to another leaf."""
    world.net.set_ports("leaf2", {"s1": 1, "s2": 2, "p2": 102, "p1": 55, "dhcp": 90, "router": 91})
    world.apply(world.net.detect("server1", PortRef("leaf2", "p1")), [near_server(world.net, "server1")])
    frame = udp_frame(vm_mac(2), GATEWAY_MAC, vm_ip(2), vm_ip(1))
    (delivery,) = world.send(2, 2, frame)
    assert [(a[0], a[1]) for a in delivery.arrivals] == [("leaf2", 55)]
    assert parse(delivery.arrivals[0][2]).dst == server(1).mac


def test_a_port_that_is_not_known_yet_has_no_flows() -> None:
    net = fabric()
    vm = add_vm(net, 1, at=1)
    net.set_vm_port(vm.id, "edge1", None)
    compiler = Compiler(net)
    compiler.update(net.everything())
    before = len(compiler.program("edge1"))
    changed = compiler.update(net.set_vm_port(vm.id, "edge1", VMPort(vm_port(1))))
    assert changed.keys() == {"edge1"}
    assert len(compiler.program("edge1")) == before + len(changed["edge1"])
