"""NICs in trunks on an edge: what is not in every state of the property tests, and what it costs."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from retinue.core.model import Flood, Subnet, VMPort, Vnet
from retinue.core.model.network import Owner
from retinue.core.packets import arp_request, parse, parse_arp
from retinue.core.pipeline.compiler import contribution
from support.fabric.networks import GATEWAY_MAC, add_vm, assignment, fabric, vm_ip, vm_mac, vm_port
from support.fabric.trunked import REDS, SHOP, Member, Trunked, add_places
from support.fabric.trunked import add_vm as add_trunked
from support.fabric.world import FabricWorld, tagged, udp_frame

FW, SHOP_NIC, RED_NIC = Member(20, "fw", None, 20), Member(21, "fw", SHOP, 20), Member(22, "fw", REDS, 20)


@pytest.fixture
def world() -> Trunked:
    """fw, with two VLANs in a trunk, and vm1, which has none."""
    net = fabric()
    add_places(net, ipv6=False)
    add_trunked(net, "fw", 1, [FW, SHOP_NIC, RED_NIC])
    add_vm(net, 1, 2)
    members = [FW, SHOP_NIC, RED_NIC, Member(1, "vm1", None, 1)]
    return Trunked(FabricWorld(net), members, {"fw": 1, "vm1": 2}, {"fw": {1}, "vm1": {2}})


def shut(world: Trunked, member: Member) -> None:
    net = world.world.net
    nic = next(nic for nic in net.vms["fw"].nics if nic.mac == member.mac)
    world.world.apply(net.change_nic("fw", nic, replace(nic, enabled=False)))


@pytest.mark.parametrize("member", [FW, SHOP_NIC])
def test_one_that_is_disabled_is_quiet_and_the_others_go_on(world: Trunked, member: Member) -> None:
    """Also where it is the carrier, whose port it is."""
    shut(world, member)
    for delivery in world.send(member, udp_frame(member.mac, GATEWAY_MAC, member.ip, vm_ip(1))):
        assert (delivery.arrivals, delivery.to_controller) == ((), ())
    to_it = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), member.ip)
    for delivery in world.world.fabric.all_paths("edge2", vm_port(1), to_it):
        assert not delivery.arrivals
    other = SHOP_NIC if member is FW else FW
    for delivery in world.send(other, udp_frame(other.mac, GATEWAY_MAC, other.ip, vm_ip(1))):
        assert [switch for switch, _, _ in delivery.arrivals] == ["edge2"]
    world.world.is_reported_spoofed(20, 1, udp_frame(vm_mac(99), GATEWAY_MAC, other.ip, vm_ip(1)))


def test_a_priority_alone_is_no_vlan_and_one_with_a_vlan_is_its_vlan(world: Trunked) -> None:
    frame = udp_frame(FW.mac, GATEWAY_MAC, FW.ip, vm_ip(1))
    first = udp_frame(SHOP_NIC.mac, GATEWAY_MAC, SHOP_NIC.ip, vm_ip(1))
    for sent in (tagged(frame, 0), tagged(first, 7 << 13 | SHOP.vlan)):
        for delivery in world.world.fabric.all_paths("edge1", vm_port(20), sent):
            [(switch, port, came)] = delivery.arrivals
            assert (switch, port, parse(came).vlan) == ("edge2", vm_port(1), None)


def test_a_neighbour_without_a_trunk_is_told_its_mac_untagged_and_it_asks_the_controller(
    world: Trunked,
) -> None:
    """On one server: the switch answers whoever has a port, and the controller who has none."""
    near = Member(30, "near", SHOP, 30)
    add_trunked(world.world.net, "near", 1, [near])
    world.world.apply([Owner("vm", "near")])
    asked = arp_request(near.mac, near.ip, SHOP_NIC.ip)
    for delivery in world.world.fabric.all_paths("edge1", vm_port(30), asked):
        [(switch, port, said)] = delivery.arrivals
        assert (switch, port, parse(said).vlan) == ("edge1", vm_port(30), None)
        assert parse_arp(parse(said).payload).sha == SHOP_NIC.mac
    for delivery in world.send(SHOP_NIC, arp_request(SHOP_NIC.mac, SHOP_NIC.ip, near.ip)):
        [(_, _, _, question)] = delivery.to_controller
        assert not delivery.arrivals and parse(question).vlan is None
    for sender, receiver in ((near, SHOP_NIC), (SHOP_NIC, near)):
        frame = udp_frame(sender.mac, receiver.mac, sender.ip, receiver.ip)
        sent = tagged(frame, sender.vlan) if sender.vlan else frame
        for delivery in world.world.fabric.all_paths("edge1", vm_port(sender.port), sent):
            [(switch, port, came)] = delivery.arrivals
            assert (switch, port, parse(came).vlan or 0) == ("edge1", vm_port(receiver.port), receiver.vlan)
            assert parse(came).payload == parse(frame).payload, "the TTL stays"


def test_what_it_sends_to_a_group_is_not_its_carriers_vnets(world: Trunked) -> None:
    """That floods, to vm1, what the carrier sends."""
    net = world.world.net
    net.put_vnet(Vnet("loud", 90, flood=Flood.CONTROLLED))
    for vm in (net.vms["fw"], net.vms["vm1"]):
        for held in net.assignments_of(vm, vm.nic):
            net.unassign(held.key)
        net.put_vm(replace(vm, nics=(replace(vm.nic, vnet="loud"), *vm.nics[1:])))
    net.add_subnet(Subnet("loud", IPv4Network("10.8.0.0/24"), IPv4Address("10.8.0.254"), vnet="loud"))
    mine = IPv4Address("10.8.0.1")
    net.assign(replace(assignment(20), vm="fw", ip=mine, mac=FW.mac))
    world.world.apply(net.everything())
    group, to_all = "01:00:5e:00:00:05", IPv4Address("224.0.0.5")
    (way,) = {way.arrivals[0][:2] for way in world.send(FW, udp_frame(FW.mac, group, mine, to_all))}
    assert way == ("edge2", vm_port(1))
    for member in (SHOP_NIC, RED_NIC):
        for delivery in world.send(member, udp_frame(member.mac, group, member.ip, to_all)):
            assert (delivery.arrivals, delivery.to_controller) == ((), ())


def test_what_a_vlan_costs_at_its_edge(world: Trunked) -> None:
    """With one IPv4 address 16 entries, and two for each gateway of its VRF; a NIC with a port has 21."""
    net = world.world.net

    def entries() -> int:
        return len(contribution(net, Owner("vm", "fw"))["edge1"])

    with_both, vm = entries(), net.vms["fw"]
    for held in net.assignments_of(vm, vm.nics[2]):
        net.unassign(held.key)
    net.put_vm(replace(vm, nics=vm.nics[:2]))
    of_a_vlan, before = with_both - entries(), entries()
    net.put_vm(replace(vm, nics=(*vm.nics[:2], replace(vm.nics[2], trunk="", slot=2))))
    net.set_vm_port("fw-3", "edge1", VMPort(77))
    net.assign(replace(assignment(20), vm="fw", ip=RED_NIC.ip, mac=RED_NIC.mac, vrf="red"))
    of_a_nic = entries() - before
    assert (of_a_vlan, of_a_nic) == (16 + 2 * len(list(net.subnets_in("red"))), 21)
