"""Pods of leaves and spines, and cores between them: who is told when, and where packets and floods go."""

from dataclasses import replace

import pytest

from retinue.core.model import Link, ModelError, PortRef, Role, Switch
from retinue.core.model.constraints import check_tiers
from retinue.core.pipeline.underlay import underlay_of
from support.fabric import networks
from support.fabric.flooded import Flooded, Member, add_vm, add_vnets
from support.fabric.networks import fabric, moved, vm_ip, vm_mac
from support.fabric.world import FabricWorld, udp_frame

ON = (1, 2, 3)
"""server1 and server3 are in one pod, under leaves of their own, server2 is in the other."""


def world() -> FabricWorld:
    net = fabric(3, 2, ON, cores=2)
    for number in (1, 2, 3):
        networks.add_vm(net, number, number)
    return FabricWorld(net)


def roles(made: FabricWorld, vm: int, at: int, to: int) -> list[list[Role]]:
    """By path: the roles of the switches that a packet crosses."""
    frame = udp_frame(vm_mac(vm), made.net.gateway_mac, vm_ip(vm), vm_ip(to))
    ways = made.send(vm, at, frame)
    assert all(len(way.arrivals) == 1 for way in ways)
    return [[made.net.switches[hop.switch].role for hop in way.hops] for way in ways]


def test_only_what_goes_to_another_pod_crosses_a_core() -> None:
    made = world()
    near = [Role.EDGE, Role.LEAF, Role.SPINE, Role.LEAF, Role.EDGE]
    far = [Role.EDGE, Role.LEAF, Role.SPINE, Role.CORE, Role.SPINE, Role.LEAF, Role.EDGE]
    assert roles(made, 1, 1, to=3) == [near] * 2, "by either spine"
    assert roles(made, 1, 1, to=2) == [far] * 2, "by either spine, and the core that it leads to"


def test_the_new_pod_is_told_first_and_the_old_one_after_the_cores() -> None:
    net = world().net
    changed = dict.fromkeys(net.switches, ())
    stages = underlay_of(net).stages(changed, [underlay_of(net).near("server2")])
    assert stages[:4] == [["edge2", "leaf2"], ["spine3", "spine4"], ["core1", "core2"], ["spine1", "spine2"]]


def test_no_packet_is_lost_or_goes_round_whichever_switch_is_told_first() -> None:
    made = world()
    net = made.net
    vm = net.vms["vm1"]
    net.set_vm_port("vm1", "edge2", net.vm_ports["vm1"]["edge1"])
    made.apply(net.put_vm(replace(vm, also=frozenset({"server2"}))))
    told = []

    def each() -> None:
        for sender in (2, 3):
            made.reaches(sender, sender, 1, (1, 2))
        told.append(True)

    near = underlay_of(net).order_to_divert("server1", "server2")
    diverted = moved(vm, "server2")
    made.apply(net.put_vm(diverted), near, each, lambda stage: sorted(stage, reverse=True))
    assert len(told) > 6
    made.reaches(3, 3, 1, (2,))


def test_each_member_of_a_vnet_gets_what_is_flooded_once_in_every_pod() -> None:
    net = fabric(3, 2, ON, cores=2)
    add_vnets(net, ipv6=False)
    members = [Member(number, f"vm{number}", "shop") for number in (1, 2, 3)]
    for at, one in enumerate(members, 1):
        add_vm(net, one.vm, at, [one])
    places = {one.vm: at for at, one in enumerate(members, 1)}
    Flooded(
        FabricWorld(net), members, places, {vm: ({at}, set()) for vm, at in places.items()}, False
    ).check()


def test_a_core_leads_to_each_leaf_by_one_spine_and_every_spine_to_a_core() -> None:
    net = fabric(2, 2, (1, 2), cores=2)
    check_tiers(net)
    with pytest.raises(ModelError, match="core core1 leads to leaf1 by two spines"):
        net.add_link(Link(PortRef("spine1", "c1"), PortRef("core1", "s1")))
    net.add_switch(Switch("spine9", Role.SPINE, 0x99))
    with pytest.raises(ModelError, match="spine spine9 leads to no core"):
        check_tiers(net)
    check_tiers(fabric())
