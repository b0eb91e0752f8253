"""The pipeline on fake switches: what each role does with a frame."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

from retinue.core.model import VM, Network, PortRef, Service, VMPort
from retinue.core.packets import (
    ARP,
    BROADCAST,
    ArpOp,
    Ethernet,
    EtherType,
    arp_request,
    build_udp4,
    dhcp_frame,
    discover,
    offer,
    parse,
    parse_arp,
)
from retinue.core.pipeline.compiler import Compiler, contribution
from retinue.core.pipeline.cookies import SPOOF_ATTEMPTS, Reason, cookie, reason_of
from retinue.core.pipeline.entry import CONTROLLER, Field, Flow, Output, PortNo
from retinue.core.pipeline.meters import VMMeter
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay import underlay_of
from support.fabric.networks import (
    GATEWAY,
    GATEWAY_MAC,
    INFRA_GATEWAY,
    UPLINK,
    add_ipv6,
    add_vm,
    fabric,
    holding6,
    leaf_port,
    moved,
    server,
    vm_ip,
    vm_mac,
    vm_port,
)
from support.fabric.world import (
    EVERYWHERE,
    NOWHERE,
    OUTSIDE,
    FabricWorld,
    dhcp_answer,
    fragments,
    rarp,
    tagged,
    udp_frame,
)
from support.fakes.switch import Delivery


@pytest.fixture
def world() -> FabricWorld:
    """vm1 on server1, vm2 on server2 (other leaf), vm3 on server3 (same leaf), vm4 on server1."""
    net = fabric()
    for number, at in ((1, 1), (2, 2), (3, 3), (4, 1)):
        add_vm(net, number, at)
    return FabricWorld(net)


@pytest.mark.parametrize("dst_mac", [GATEWAY_MAC, vm_mac(2), "52:54:00:99:99:99"])
def test_unknown_unicast_becomes_the_gateways_and_is_routed_by_ip(world: FabricWorld, dst_mac: str) -> None:
    world.reaches(1, 1, to=2, locations=[2], dst_mac=dst_mac)
    world.reaches(1, 1, to=3, locations=[3], dst_mac=dst_mac)


def test_edge_rewrites_only_the_destination_mac(world: FabricWorld) -> None:
    frame = udp_frame(vm_mac(1), vm_mac(2), vm_ip(1), vm_ip(2))
    result = world.fabric["edge1"].receive(frame, vm_port(1))
    ((port, sent),) = result.outputs
    assert port == UPLINK
    assert sent == bytes.fromhex(GATEWAY_MAC.replace(":", "")) + frame[6:]


def test_local_traffic_stays_local_by_mac_and_turns_at_the_leaf_by_the_gateways(world: FabricWorld) -> None:
    by_mac = udp_frame(vm_mac(1), vm_mac(4), vm_ip(1), vm_ip(4))
    (delivery,) = world.send(1, 1, by_mac)
    assert [hop.switch for hop in delivery.hops] == ["edge1"]
    stale = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), vm_ip(4))
    (delivery,) = world.send(1, 1, stale)
    assert [hop.switch for hop in delivery.hops] == ["edge1", "leaf1", "edge1"]
    world.comes_once(delivery, {("edge1", vm_port(4))}, vm_mac(4))


def test_paths_through_both_spines_are_used(world: FabricWorld) -> None:
    frame = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), vm_ip(2))
    ways = {hop.switch for delivery in world.send(1, 1, frame) for hop in delivery.hops}
    assert ways == {"edge1", "leaf1", "spine1", "spine2", "leaf2", "edge2"}


def test_ttl_goes_down_once(world: FabricWorld) -> None:
    frame = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), vm_ip(2))
    for delivery in world.send(1, 1, frame):
        assert delivery.arrivals[0][2][22] == frame[22] - 1


def test_outside_is_reached_and_reaches(world: FabricWorld) -> None:
    for vm, at in ((1, 1), (2, 2), (3, 3)):
        world.reaches_outside(vm, at)
        world.reaches_from_outside(vm, [at])


def test_nothing_is_flooded(world: FabricWorld) -> None:
    world.floods_nothing(1, 1)
    to_nobody = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), IPv4Address("10.1.0.200"))
    world.goes_nowhere(1, 1, to_nobody)


def test_spoofing_is_dropped_and_reported(world: FabricWorld) -> None:
    for vm, at in ((4, 1), (2, 2), (3, 3)):
        world.spoofs(vm, at, victim=1)


def test_the_announcement_of_a_vm_that_has_arrived_is_dropped_without_a_word(world: FabricWorld) -> None:
    (delivery,) = world.send(1, 1, rarp(vm_mac(1), vm_mac(1)))
    assert not delivery.arrivals
    assert not delivery.to_controller


@pytest.mark.parametrize("eth_type", [0x88CC, 0x86DD, 0x0842])
def test_honest_noise_is_dropped_without_a_word(world: FabricWorld, eth_type: int) -> None:
    """A guest's LLDP, IPv6 and the like, from its own MAC; from another MAC it is a spoofing."""
    for dst in ("01:80:c2:00:00:0e", "33:33:00:00:00:16", GATEWAY_MAC, vm_mac(4)):
        (delivery,) = world.send(1, 1, Ethernet(dst, vm_mac(1), eth_type, bytes(46)).build())
        assert not delivery.arrivals
        assert not delivery.to_controller
        world.is_reported_spoofed(1, 1, Ethernet(dst, vm_mac(2), eth_type, bytes(46)).build())


def test_what_a_spine_sends_is_ip_for_a_server_and_nothing_else(world: FabricWorld) -> None:
    """ARP ends at a leaf: from a spine none is answered, told or handed on; nor is anything else."""
    for spine in (1, 2):
        for frame in (
            arp_request(server(2).mac, IPv4Address("10.0.0.12"), IPv4Address("10.0.0.11"), dst=server(1).mac),
            Ethernet(server(1).mac, GATEWAY_MAC, 0x86DD, bytes(46)).build(),
            Ethernet(server(1).mac, GATEWAY_MAC, 0x88B5, bytes(46)).build(),
        ):
            result = world.fabric["leaf1"].receive(frame, spine)
            assert not result.outputs
            assert not result.to_controller
        for src, sender, asked in (
            (server(2).mac, IPv4Address("10.0.0.12"), INFRA_GATEWAY),
            (vm_mac(2), vm_ip(2), GATEWAY),
            (vm_mac(2), vm_ip(2), vm_ip(1)),
        ):
            result = world.fabric["leaf1"].receive(arp_request(src, sender, asked), spine)
            assert not result.outputs
            assert not result.to_controller


def test_an_arp_reply_is_not_answered(world: FabricWorld) -> None:
    """Only questions are: for a VM beside it, one elsewhere, the gateway, and for the asker itself."""
    for tpa in (vm_ip(4), vm_ip(2), GATEWAY, vm_ip(1)):
        reply = ARP(ArpOp.REPLY, vm_mac(1), vm_ip(1), vm_mac(4), tpa).build()
        for dst in (vm_mac(4), BROADCAST, GATEWAY_MAC):
            (delivery,) = world.send(1, 1, Ethernet(dst, vm_mac(1), EtherType.ARP, reply).build())
            assert not delivery.arrivals
            assert not delivery.to_controller


def test_without_a_binding_only_dhcp_and_what_precedes_it_passes() -> None:
    net = fabric()
    add_vm(net, 1, at=1, bound=False)
    world = FabricWorld(net)
    world.is_reported_spoofed(1, 1, udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), OUTSIDE))
    frame = dhcp_frame(discover(vm_mac(1), 7), vm_mac(1), BROADCAST, NOWHERE, EVERYWHERE, 68, 67)
    (delivery,) = world.send(1, 1, frame)
    assert not delivery.arrivals
    assert [reason_of(cookie) for _, cookie, _, _ in delivery.to_controller] == [Reason.DHCP_CLIENT]
    probe = arp_request(vm_mac(1), NOWHERE, vm_ip(1))
    (delivery,) = world.send(1, 1, probe)
    assert [reason_of(cookie) for _, cookie, _, _ in delivery.to_controller] == [Reason.VM_ARP]


@pytest.mark.parametrize("vlan", [0, 666])
def test_tagged_frames_do_not_travel(world: FabricWorld, vlan: int) -> None:
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
        if vlan == 0 and switch == "edge1" and port != UPLINK:
            # A priority and no VLAN: it travels as untagged.
            assert (result.outputs, result.to_controller) == (untagged.outputs, untagged.to_controller)
            continue
        assert not result.outputs, f"{switch} port {port}"
        reasons = {reason_of(cookie) for cookie, _, _ in result.to_controller}
        assert reasons <= SPOOF_ATTEMPTS, f"{switch} port {port}"


def test_a_rogue_dhcp_server_is_silent(world: FabricWorld) -> None:
    reply = offer(discover(vm_mac(1), 7), vm_ip(1), vm_ip(2), 60)
    frame = dhcp_frame(reply, vm_mac(2), BROADCAST, vm_ip(2), EVERYWHERE, 67, 68)
    world.is_reported_spoofed(2, 2, frame)
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


@pytest.mark.parametrize("sport", [53, 4011])
def test_a_boot_server_at_the_dhcp_servers_place_reaches_a_vm(world: FabricWorld, sport: int) -> None:
    """PXE's proxy DHCP answers from port 4011. Trust is in the place: nobody else's comes through."""
    dhcp = world.net.servers["dhcp"]
    assert isinstance(dhcp.address, IPv4Address)

    def sent(src: IPv4Address, mac: str = dhcp.mac, port: int = 90) -> list[Delivery]:
        frame = Ethernet(GATEWAY_MAC, mac, 0x0800, build_udp4(src, vm_ip(1), sport, 68, b"boot")).build()
        return world.fabric.all_paths("leaf2", port, frame)

    for delivery in sent(dhcp.address):
        ((switch, port, frame),) = delivery.arrivals
        assert (switch, port, frame[:6]) == ("edge1", vm_port(1), bytes.fromhex(vm_mac(1).replace(":", "")))
    router = world.net.servers["router"].mac
    others = (sent(OUTSIDE), sent(vm_ip(2)), sent(OUTSIDE, router, 91), sent(dhcp.address, router, 91))
    assert not [delivery for one in others for delivery in one if delivery.arrivals]


def test_fragments_of_an_ordinary_datagram_arrive(world: FabricWorld) -> None:
    payload = build_udp4(vm_ip(1), vm_ip(2), 4000, 53, bytes(2000))
    parts = fragments(Ethernet(GATEWAY_MAC, vm_mac(1), 0x0800, payload).build(), 1480)
    for sent in parts:
        for delivery in world.send(1, 1, sent):
            ((switch, port, frame),) = delivery.arrivals
            assert (switch, port) == ("edge2", vm_port(2))
            assert frame[34:] == sent[34:]
            assert not delivery.to_controller


def test_the_router_and_the_dhcp_server_send_as_nobody_else(world: FabricWorld) -> None:
    for vm in (1, 2, 3):
        world.services_speak_for_themselves(vm)


def test_a_flood_of_spoof_attempts_at_a_leaf_holds_up_neither_dhcp_nor_arp(world: FabricWorld) -> None:
    """What the leaf reports as spoofed has a meter that nothing honest passes."""
    spoofed = {f.meter for f in world.fabric["leaf2"].flows.values() if reason_of(f.cookie) in SPOOF_ATTEMPTS}
    honest = {
        f.meter for f in world.fabric["leaf2"].flows.values() if reason_of(f.cookie) not in SPOOF_ATTEMPTS
    }
    assert len(spoofed) == 1
    assert not spoofed & honest


def test_the_dhcp_servers_port_is_trusted(world: FabricWorld) -> None:
    reply = offer(discover(vm_mac(1), 7), vm_ip(1), IPv4Address("10.1.0.2"), 60)
    dhcp = world.net.servers["dhcp"]
    frame = dhcp_frame(reply, dhcp.mac, vm_mac(1), IPv4Address("10.1.0.2"), vm_ip(1), 67, 68)
    (delivery,) = world.fabric.all_paths("leaf2", 90, frame)
    assert not delivery.arrivals
    assert [reason_of(c) for _, c, _, _ in delivery.to_controller] == [Reason.DHCP_SERVER]


@pytest.mark.parametrize("spines", [0, 1])
def test_an_address_that_nobody_holds_is_none_of_the_routers(spines: int) -> None:
    """Its subnet's route ends it, at a leaf that is alone as at one that has spines."""
    net = fabric(1, spines, (1, 1))
    router = net.servers["router"]
    net.put_server(replace(router, routes=(IPv4Network("0.0.0.0/0"),)))
    for number in (1, 2):
        add_vm(net, number, number)
    world = FabricWorld(net)
    world.reaches(1, 1, to=2, locations=[2])
    world.reaches_outside(1, 1)
    world.goes_nowhere(1, 1, udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), vm_ip(9)))


@pytest.mark.parametrize("service", [Service.DHCP, Service.ROUTER])
def test_a_server_with_vms_that_is_more_than_that_has_its_vms_let_through(service: Service) -> None:
    """They share its port at the leaf; its edge switch has seen to who says what."""
    net = fabric()
    for number in (1, 2):
        add_vm(net, number, number)
    net.put_server(replace(net.servers["server1"], services=frozenset({service})))
    world = FabricWorld(net)
    world.reaches(1, 1, to=2, locations=[2])
    world.reaches_outside(1, 1)


def answer(world: FabricWorld, vm: int, at: int, tpa: IPv4Address) -> tuple[str, IPv4Address] | None:
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


def test_arp_ends_at_the_edge(world: FabricWorld) -> None:
    assert answer(world, 1, 1, GATEWAY) == (GATEWAY_MAC, GATEWAY)
    assert answer(world, 1, 1, vm_ip(4)) == (vm_mac(4), vm_ip(4)), "a local VM by its own MAC"
    assert answer(world, 1, 1, vm_ip(2)) is None, "a remote one is the controller's to answer"
    (delivery,) = world.send(1, 1, arp_request(vm_mac(1), vm_ip(1), vm_ip(1)))
    assert not delivery.arrivals, "an announcement ends here"
    assert not delivery.to_controller


def test_leaf_answers_for_the_gateway_and_the_controller_hears(world: FabricWorld) -> None:
    mac = server(1).mac
    frame = arp_request(mac, IPv4Address("10.0.0.11"), INFRA_GATEWAY)
    (delivery,) = world.fabric.all_paths("edge1", PortNo.LOCAL, frame)
    ((switch, port, reply),) = delivery.arrivals
    assert (switch, port) == ("edge1", PortNo.LOCAL)
    assert parse_arp(parse(reply).payload).sha == GATEWAY_MAC
    ((leaf, cookie, in_port, copy),) = delivery.to_controller
    assert (leaf, reason_of(cookie), in_port) == ("leaf1", Reason.SERVER_ARP, leaf_port(1))
    assert copy == frame


def test_servers_reach_each_other_and_vms(world: FabricWorld) -> None:
    to_server2 = udp_frame(server(1).mac, GATEWAY_MAC, IPv4Address("10.0.0.11"), IPv4Address("10.0.0.12"))
    for delivery in world.fabric.all_paths("edge1", PortNo.LOCAL, to_server2):
        world.comes_once(delivery, {("edge2", PortNo.LOCAL)}, server(2).mac)
    to_vm = udp_frame(server(1).mac, GATEWAY_MAC, IPv4Address("10.0.0.11"), vm_ip(2))
    for delivery in world.fabric.all_paths("edge1", PortNo.LOCAL, to_vm):
        world.comes_once(delivery, {("edge2", vm_port(2))}, vm_mac(2))


def test_ping_of_the_gateway_is_answered_by_the_nearest_switch(world: FabricWorld) -> None:
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


def test_a_binding_ends_on_the_switch_by_itself(world: FabricWorld) -> None:
    """With the controller gone, the edge drops the VM's packets when the lease is over."""
    for switch in world.fabric.switches.values():
        switch.expire(2e10)
    world.is_reported_spoofed(1, 1, udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), OUTSIDE))


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
    _, diverted, _ = large
    assert diverted == 10, "two leaves with two entries each, two spines, two edges with two entries each"


def test_a_servers_new_place_takes_its_vms_along(world: FabricWorld) -> None:
    """The fabric follows a server that is cabled to another leaf."""
    world.net.set_ports("leaf2", {"s1": 1, "s2": 2, "p2": 102, "p1": 55, "dhcp": 90, "router": 91})
    world.apply(world.net.detect("server1", PortRef("leaf2", "p1")), [underlay_of(world.net).near("server1")])
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


# ---- while a VM is moved ----


def moving(**changes: object) -> tuple[Network, VM]:
    """vm1 moves from server1 to server2, where vm2 is; its traffic is steered there already."""
    net = fabric()
    add_vm(net, 1, at=1, ports_on=(2,))
    add_vm(net, 2, at=2)
    vm = replace(moved(net.vms["vm1"], "server2"), **changes)  # type: ignore[arg-type]
    net.put_vm(vm)
    return net, vm


def arrivals(world: FabricWorld, frame: bytes) -> dict[str, bytes]:
    """By edge: the frame that comes out at vm1's port, of one that vm2 sends at server2; by either spine."""
    first, *others = [delivery.arrivals for delivery in world.send(2, 2, frame)]
    assert all(set(other) == set(first) for other in others)
    assert {port for _, port, _ in first} == {vm_port(1)}
    assert len({switch for switch, _, _ in first}) == len(first)
    return {switch: frame for switch, _, frame in first}


@pytest.mark.parametrize("forwarded_from", ["", "server1"])
@pytest.mark.parametrize("dst_mac", [vm_mac(1), GATEWAY_MAC])
def test_what_vms_beside_it_send_is_copied_to_the_source_too(dst_mac: str, forwarded_from: str) -> None:
    net, _ = moving(copied_to="server1", forwarded_from=forwarded_from)
    came = arrivals(FabricWorld(net), udp_frame(vm_mac(2), dst_mac, vm_ip(2), vm_ip(1)))
    assert came.keys() == {"edge1", "edge2"}
    assert all(parse(frame).dst == vm_mac(1) for frame in came.values())
    assert parse(came["edge2"]).src == net.servers["server2"].mac, "marked: the source has a copy of it"
    if forwarded_from:
        assert parse(came["edge1"]).src == GATEWAY_MAC, "not the other server's, as which it came"


def test_what_is_not_copied_stays_on_its_switch() -> None:
    net, _ = moving()
    assert arrivals(FabricWorld(net), udp_frame(vm_mac(2), vm_mac(1), vm_ip(2), vm_ip(1))).keys() == {"edge2"}


def test_who_receives_hears_the_gateways_mac_from_all_that_is_routed(world: FabricWorld) -> None:
    for to, at in ((2, 2), (3, 3), (4, 1)):
        for delivery in world.send(1, 1, udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), vm_ip(to))):
            ((switch, _, frame),) = delivery.arrivals
            assert (switch, parse(frame).src) == (f"edge{at}", GATEWAY_MAC)
    for delivery in world.send(1, 1, udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), OUTSIDE)):
        assert parse(delivery.arrivals[0][2]).src == GATEWAY_MAC


# ---- what is not known yet, or has gone ----


def has_no_hole(compiler: Compiler) -> None:
    """No entry sends a frame to a port that has no number."""
    for program in compiler.programs.values():
        for entry in program.values():
            if isinstance(entry, Flow):
                ports = [action.port for action in entry.actions if isinstance(action, Output)]
                assert all(isinstance(port, int) for port in ports), entry


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("switch", ["leaf1", "leaf2", "spine1", "edge1", "edge2"])
def test_ports_of_a_switch_that_are_not_known_have_no_entries(switch: str, ipv6: bool) -> None:
    """A switch that has not told its ports, or tells that it has none, during a migration as at any time."""
    net, _ = moving(copied_to="server1", forwarded_from="server1")
    if ipv6:
        add_ipv6(net)
        net.assign(holding6(1))
    compiler = Compiler(net)
    compiler.update(net.everything())
    known = {name: dict(program) for name, program in compiler.programs.items()}
    ports = dict(net._numbers[switch])
    compiler.update(net.set_ports(switch, {}))
    has_no_hole(compiler)
    assert len(compiler.program(switch)) < len(known[switch])
    compiler.update(net.set_ports(switch, ports))
    assert compiler.programs == known


@pytest.mark.parametrize("server_", ["server1", "server2"])
def test_a_server_that_was_not_found_yet_has_no_ways(server_: str) -> None:
    net, _ = moving(copied_to="server1", forwarded_from="server1")
    del net.detected[server_]
    compiler = Compiler(net)
    compiler.update(net.everything())
    has_no_hole(compiler)
    leaf = {"server1": "leaf1", "server2": "leaf2"}[server_]
    number = leaf_port(int(server_[-1]))
    for flow in compiler.program(leaf).values():
        assert not (isinstance(flow, Flow) and Output(number) in flow.actions)


# ---- whose an entry is ----


def test_every_entry_says_what_it_is_for_and_whose_it_is() -> None:
    """By its cookie: the reason that the API shows, and the owner."""
    net, _ = moving(copied_to="server1", forwarded_from="server1")
    closed, _ = moving(also=frozenset(), forwarded_from="server1")
    for known in (net, closed):
        for owner in known.everything():
            for program in contribution(known, owner).values():
                for entry in program.values():
                    if isinstance(entry, Flow):
                        reason = reason_of(entry.cookie)
                        assert reason is not None, entry
                        assert entry.cookie == cookie(reason, owner), entry


# ---- IPv6 beside IPv4 ----


def test_ipv6_subnets_and_addresses_change_nothing_of_ipv4s_entries() -> None:
    """Nothing of IPv6 is taken for an address of IPv4."""
    net, vm = moving(copied_to="server1", forwarded_from="server1")
    before, after = Compiler(net), Compiler(net)
    before.update(net.everything())
    add_ipv6(net)
    for number in (1, 2):
        net.assign(holding6(number))
    after.update(net.everything())
    for switch, program in before.programs.items():
        assert program.items() <= after.programs[switch].items(), switch
    more = [f for f in _flows(after) if f not in _flows(before)]
    assert all(_is_ipv6(f) or f.table in (Table.ND, Table.ANSWER) for f in more)
    net.put_vm(replace(vm, also=frozenset(), copied_to="", forwarded_from=""))
    world = FabricWorld(net)
    world.reaches_from_outside(1, [2])
    world.services_speak_for_themselves(1)


def test_without_an_ipv6_subnet_there_are_no_entries_of_ipv6() -> None:
    """Whatever addresses VMs have, and wherever a router leads."""
    net, _ = moving(copied_to="server1", forwarded_from="server1")
    router = net.servers["router"]
    net.put_server(replace(router, routes=(*router.routes, IPv6Network("::/0"))))
    for number in (1, 2):
        net.assign(holding6(number))
    compiler = Compiler(net)
    compiler.update(net.everything())
    assert not [f for f in _flows(compiler) if _is_ipv6(f)]


def _flows(compiler: Compiler) -> list[Flow]:
    return [e for program in compiler.programs.values() for e in program.values() if isinstance(e, Flow)]


def _is_ipv6(flow: Flow) -> bool:
    return (Field.ETH_TYPE, 0x86DD, None) in flow.match


# ---- what holds of all entries ----


def busy() -> Network:
    """VMs at rest, without an address, on the migration, and just moved; IPv6 beside IPv4."""
    net = fabric(servers_on=(1, 2, 1, 2))
    add_ipv6(net)
    add_vm(net, 1, at=1, ports_on=(2,))
    add_vm(net, 2, at=2)
    add_vm(net, 3, at=3, bound=False)
    add_vm(net, 4, at=4, ports_on=(1,))
    net.put_vm(
        replace(moved(net.vms["vm1"], "server2"), copied_to="server1", forwarded_from="server1"),
    )
    net.put_vm(replace(net.vms["vm4"], forwarded_from="server1"))
    return net


def test_what_goes_to_the_controller_is_metered() -> None:
    """By a meter that the switch has; on an edge one of the VM itself, so that it is in nobody's way. So is
    what comes to ANSWER, which makes answers slowly."""
    compiler = Compiler(busy())
    compiler.update(compiler.net.everything())
    for switch, program in compiler.programs.items():
        for flow in program.values():
            if not isinstance(flow, Flow) or flow.table == Table.ANSWER:
                continue
            if CONTROLLER in flow.actions or flow.goto == Table.ANSWER:
                assert ("meter", flow.meter) in program, flow
                if switch.startswith("edge"):
                    field, port, _ = flow.match[0]
                    assert field == Field.IN_PORT
                    assert flow.meter in {kind.id(port) for kind in VMMeter}, flow


def test_each_table_that_frames_come_to_ends_with_a_drop() -> None:
    """So that what no entry names is counted; and no frame is sent to a table that is not in the plan."""
    compiler = Compiler(busy())
    compiler.update(compiler.net.everything())
    for switch, program in compiler.programs.items():
        flows = [e for e in program.values() if isinstance(e, Flow)]
        drops = {f.table for f in flows if not f.match and not f.actions and f.goto is None}
        assert {f.table for f in flows} | {f.goto for f in flows if f.goto is not None} == drops, switch
        assert drops <= set(Table)
        assert all(f.priority == 0 for f in flows if not f.match and not f.actions)


def test_the_longest_prefix_wins_also_inside_a_subnet(world: FabricWorld) -> None:
    """A router may lead to a part of a subnet; a host that is known here is reached here."""
    net = world.net
    inside, other = IPv4Address("10.1.0.200"), IPv4Address("10.1.0.190")
    router = net.servers["router"]
    world.apply(net.put_server(replace(router, routes=(*router.routes, IPv4Network("10.1.0.192/26")))))
    for at in ((1, 1), (2, 2)):
        sent = [udp_frame(vm_mac(at[0]), GATEWAY_MAC, vm_ip(at[0]), dst) for dst in (inside, other)]
        for delivery in world.send(*at, sent[0]):
            world.comes_once(delivery, {("leaf2", 91)}, router.mac)
        world.goes_nowhere(*at, sent[1])
    world.reaches(1, 1, to=2, locations=[2])


def test_a_service_speaks_to_the_fabric_by_its_gateway_only(world: FabricWorld) -> None:
    """What a router or DHCP server sends to another MAC is for nobody here."""
    for name, port in (("router", 91), ("dhcp", 90)):
        service = world.net.servers[name]
        assert isinstance(service.address, IPv4Address)
        for dst in (vm_mac(1), server(1).mac, BROADCAST, "01:00:5e:00:00:fb"):
            frame = udp_frame(service.mac, dst, service.address, vm_ip(1))
            for delivery in world.fabric.all_paths("leaf2", port, frame):
                assert not delivery.arrivals


def test_a_servers_own_arp_speaks_for_the_server_only(world: FabricWorld) -> None:
    """By MAC and by the address in ARP itself: it is how servers are found."""
    ip, other = IPv4Address("10.0.0.11"), IPv4Address("10.0.0.12")
    question = arp_request(server(1).mac, ip, other)
    (delivery,) = world.fabric.all_paths("edge1", PortNo.LOCAL, question)
    assert [reason_of(c) for _, c, _, _ in delivery.to_controller] == [Reason.SERVER_ARP]
    for mac in (server(2).mac, vm_mac(1)):
        for eth_src, sha in ((server(1).mac, mac), (mac, server(1).mac), (mac, mac)):
            asked = ARP(ArpOp.REQUEST, sha, ip, "00:00:00:00:00:00", other).build()
            frame = Ethernet(BROADCAST, eth_src, EtherType.ARP, asked).build()
            (delivery,) = world.fabric.all_paths("edge1", PortNo.LOCAL, frame)
            assert not delivery.arrivals
            assert not delivery.to_controller


@pytest.mark.parametrize("also", [frozenset(), frozenset({"server1"})])
def test_what_still_comes_to_the_source_goes_on_and_a_copy_does_not(also: frozenset[str]) -> None:
    net, _ = moving(also=also, forwarded_from="server1")
    world, source = FabricWorld(net), server(1).mac
    for sender in (GATEWAY_MAC, server(3).mac):
        late = udp_frame(sender, source, OUTSIDE, vm_ip(1))
        for delivery in world.fabric.all_paths("edge1", UPLINK, late):
            assert [(s, p) for s, p, _ in delivery.arrivals] == [("edge2", vm_port(1))]
            assert parse(delivery.arrivals[0][2]).dst == vm_mac(1)
    copy = udp_frame(server(2).mac, source, OUTSIDE, vm_ip(1))
    for delivery in world.fabric.all_paths("edge1", UPLINK, copy):
        assert [(s, p) for s, p, _ in delivery.arrivals] == ([("edge1", vm_port(1))] if also else [])
