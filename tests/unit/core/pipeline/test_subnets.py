"""Two subnets on one edge: by MAC inside each, by the gateway between them."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from retinue.core.model import Subnet, VMPort
from retinue.core.model.network import Owner
from retinue.core.packets import ARP, arp_request, parse, parse_arp
from retinue.core.pipeline.compiler import contribution
from retinue.core.pipeline.cookies import Reason, reason_of
from retinue.core.pipeline.responders import arp
from support.fabric.networks import (
    GATEWAY_MAC,
    UPLINK,
    add_vm,
    assignment,
    fabric,
    moved,
    vm_ip,
    vm_mac,
    vm_port,
)
from support.fabric.world import NOWHERE, FabricWorld, udp_frame

IN_GREEN = IPv4Address("10.2.0.9")
GREEN = Subnet("green", IPv4Network("10.2.0.0/24"), IPv4Address("10.2.0.254"))
TTL = 22


@pytest.fixture
def world() -> FabricWorld:
    """vm1 and vm2 in blue, vm3 in green, all on server1."""
    net = fabric()
    net.add_subnet(GREEN)
    for number in (1, 2, 3):
        add_vm(net, number, 1, bound=number < 3)
    net.assign(replace(assignment(3), ip=IN_GREEN))
    return FabricWorld(net)


def test_a_frame_to_a_neighbours_mac_in_another_subnet_is_routed(world: FabricWorld) -> None:
    for to_mac in (vm_mac(3), GATEWAY_MAC):
        frame = udp_frame(vm_mac(1), to_mac, vm_ip(1), IN_GREEN)
        (delivery,) = world.send(1, 1, frame)
        assert [hop.switch for hop in delivery.hops] == ["edge1", "leaf1", "edge1"]
        world.comes_once(delivery, {("edge1", vm_port(3))}, vm_mac(3))
        assert delivery.arrivals[0][2][TTL] == frame[TTL] - 1


def test_inside_a_subnet_it_is_handed_over_as_it_is(world: FabricWorld) -> None:
    frame = udp_frame(vm_mac(1), vm_mac(2), vm_ip(1), vm_ip(2))
    (delivery,) = world.send(1, 1, frame)
    assert delivery.arrivals == (("edge1", vm_port(2), frame),)


def test_nobody_learns_the_mac_of_who_is_in_another_subnet(world: FabricWorld) -> None:
    net = world.net
    for asker, tpa in ((1, IN_GREEN), (3, vm_ip(1))):
        spa = vm_ip(1) if asker == 1 else IN_GREEN
        (delivery,) = world.send(asker, 1, arp_request(vm_mac(asker), spa, tpa))
        assert not delivery.arrivals
        ((switch, cookie, _, frame),) = delivery.to_controller
        assert (switch, reason_of(cookie)) == ("edge1", Reason.VM_ARP)
        assert not arp.answers_vm(net, "edge1", parse_arp(parse(frame).payload))


def test_a_probe_for_a_neighbours_address_is_answered_by_the_controller(world: FabricWorld) -> None:
    """Its sender says no address: the switch cannot tell of which subnet it is."""
    (delivery,) = world.send(1, 1, arp_request(vm_mac(1), NOWHERE, vm_ip(2)))
    assert not delivery.arrivals
    ((_, cookie, _, frame),) = delivery.to_controller
    assert reason_of(cookie) is Reason.VM_ARP
    assert arp.answers_vm(world.net, "edge1", parse_arp(parse(frame).payload))
    own = ARP(1, vm_mac(2), NOWHERE, "00:00:00:00:00:00", vm_ip(2))
    assert not arp.answers_vm(world.net, "edge1", own), "and who probes for its own address, by nobody"


def test_a_vm_with_addresses_of_two_subnets_is_a_neighbour_in_both(world: FabricWorld) -> None:
    world.apply(world.net.assign(replace(assignment(1), ip=IPv4Address("10.2.0.1"))))
    for ip, sender in ((vm_ip(2), 2), (IN_GREEN, 3)):
        to = vm_ip(1) if sender == 2 else IPv4Address("10.2.0.1")
        (delivery,) = world.send(sender, 1, udp_frame(vm_mac(sender), vm_mac(1), ip, to))
        assert [hop.switch for hop in delivery.hops] == ["edge1"]


def test_a_vm_has_as_many_entries_as_without_subnets_beside_its_own(world: FabricWorld) -> None:
    alone = fabric()
    add_vm(alone, 1, 1)
    for net in (world.net, alone):
        entries = contribution(net, Owner("vm", "vm1"))
        assert sum(len(program) for program in entries.values()) == 25


def test_an_address_of_no_subnet_has_no_neighbours_and_is_reached(world: FabricWorld) -> None:
    far = IPv4Address("10.9.0.7")
    world.apply(world.net.assign(replace(assignment(2), ip=far)))
    frame = udp_frame(vm_mac(2), vm_mac(1), far, vm_ip(1))
    (delivery,) = world.send(2, 1, frame)
    world.comes_once(delivery, {("edge1", vm_port(1))}, vm_mac(1))
    assert delivery.arrivals[0][2][TTL] == frame[TTL] - 1
    assert UPLINK in world.fabric["edge1"].receive(frame, vm_port(2)).outputs[0]


def test_a_vm_that_has_migrated_is_in_its_new_switchs_table_before_it_speaks(world: FabricWorld) -> None:
    net = world.net
    add_vm(net, 4, 2)
    net.set_vm_port("vm1", "edge2", VMPort(vm_port(1)))
    before = net.vms["vm1"]
    world.apply({*net.put_vm(moved(before, "server2")), Owner("vm", "vm4")})
    (delivery,) = world.send(4, 2, udp_frame(vm_mac(4), vm_mac(1), vm_ip(4), vm_ip(1)))
    assert [hop.switch for hop in delivery.hops] == ["edge2"]
    world.comes_once(delivery, {("edge2", vm_port(1))}, vm_mac(1))
