"""Flooding in a vnet, told in single cases; the property tests have every state of a move."""

from dataclasses import replace

import pytest

from retinue.core.model import Flood, ModelError, Network, PortRef, VMPort, Vnet
from retinue.core.model.network import NOTHING, Owner
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.entry import Flow, Group, Meter
from retinue.core.pipeline.flooding import GROUPS, vnet_of_group
from retinue.core.pipeline.knowledge import Knowledge
from retinue.core.pipeline.meters import FLOOD_RATE, flood_meter, port_of_flood_meter
from support.fabric.flooded import GROUP_MAC, MDNS, VNETS, Flooded, Member, add_vm, add_vnets
from support.fabric.networks import fabric, moved, vm_port
from support.fabric.world import FabricWorld, udp_frame

SHOP, GROUP = VNETS["shop"], GROUPS + VNETS["shop"].vlan
IN_SHOP = [Member(1, "vm1", "shop"), Member(2, "vm2", "shop"), Member(3, "vm3", "shop")]


@pytest.fixture
def world() -> Flooded:
    """A VM of the vnet on each server; server1 and server3 are under leaf1, server2 under leaf2."""
    net = fabric()
    add_vnets(net, ipv6=True)
    for at, one in enumerate(IN_SHOP, 1):
        add_vm(net, one.vm, at, [one])
    places = {one.vm: at for at, one in enumerate(IN_SHOP, 1)}
    return Flooded(FabricWorld(net), IN_SHOP, places, {vm: ({at}, set()) for vm, at in places.items()}, True)


def test_a_vnet_floods_only_with_a_vlan() -> None:
    with pytest.raises(ModelError, match="vnet shop: flooding needs a VLAN, which tells its frames from"):
        Vnet("shop", flood=Flood.CONTROLLED)
    assert not Vnet("shop").floods


def test_each_member_has_one_copy_and_the_sender_none(world: Flooded) -> None:
    world.check()


def test_a_group_is_known_by_its_vnets_vlan(world: Flooded) -> None:
    net = world.world.net
    assert vnet_of_group(net, GROUP) == SHOP
    assert vnet_of_group(net, GROUPS + VNETS["quiet"].vlan) is None
    assert vnet_of_group(net, 1) is None


def test_what_flooding_costs(world: Flooded) -> None:
    """Of a vnet: an edge three entries and a group; a NIC three and a meter, by its one IPv4 subnet."""
    program = world.world.compiler.program
    with_it = {switch: len(program(switch)) for switch in world.world.net.switches}
    world.world.apply(world.world.net.put_vnet(replace(SHOP, flood=Flood.DROPPED)))
    cost = {switch: count - len(program(switch)) for switch, count in with_it.items()}
    edge, leaf1, leaf2, spine = 3 + (3 + 1), 1 + 2 + 2, 1 + 1 + 2, 1 + 1
    assert cost == {
        **dict.fromkeys(("edge1", "edge2", "edge3"), edge),
        "leaf1": leaf1,
        "leaf2": leaf2,
        **dict.fromkeys(("spine1", "spine2"), spine),
    }


def test_a_move_changes_the_groups_of_two_edges_at_the_diversion_and_no_more(world: Flooded) -> None:
    net, compiler = world.world.net, world.world.compiler
    net.set_vm_port("vm2", "edge3", VMPort(vm_port(2)))
    admitted = replace(net.vms["vm2"], also=frozenset({"server3"}))
    compiler.update(net.everything() | net.put_vm(admitted))
    changed = compiler.update(net.put_vm(moved(admitted, "server3")))
    groups = {switch for switch, keys in changed.items() if ("group", GROUP) in keys}
    assert groups == {"edge2", "edge3"}


def test_a_nic_that_is_shut_sends_and_hears_nothing(world: Flooded) -> None:
    net = world.world.net
    vm = net.vms["vm3"]
    world.world.apply(net.put_vm(replace(vm, nics=(replace(vm.nic, enabled=False),))))
    world.world.goes_nowhere(3, 3, udp_frame(IN_SHOP[2].mac, GROUP_MAC, IN_SHOP[2].ip, MDNS))
    world.members = IN_SHOP[:2]
    world.check()


def test_a_nic_sends_no_more_than_its_meter_lets_through(world: Flooded) -> None:
    meter = flood_meter(vm_port(1))
    assert (meter.rate, meter.burst, meter.kilobits) == (FLOOD_RATE, FLOOD_RATE, False)
    assert world.world.compiler.program("edge1")["meter", meter.id] == meter
    world.world.fabric["edge1"].exhausted.add(meter.id)
    world.world.goes_nowhere(1, 1, udp_frame(IN_SHOP[0].mac, GROUP_MAC, IN_SHOP[0].ip, MDNS))
    assert port_of_flood_meter(meter.id) == vm_port(1)
    program = world.world.compiler.program("edge1").values()
    others = [entry for entry in program if isinstance(entry, Meter) and entry != meter]
    assert others and not [other for other in others if port_of_flood_meter(other.id) is not None]


def test_members_of_one_leaf_need_no_spine(world: Flooded) -> None:
    world.world.apply(world.world.net.remove_vm("vm2"))
    world.members = [IN_SHOP[0], IN_SHOP[2]]
    world.check()
    for switch in ("spine1", "spine2", "leaf2", "edge2"):
        assert ("group", GROUP) not in world.world.compiler.program(switch)


def test_what_flooding_touches(world: Flooded) -> None:
    net = world.world.net
    shop = Owner("vnet", "shop")
    leaves = {Owner("switch", "leaf1"), Owner("switch", "leaf2")}
    assert net.put_vnet(replace(SHOP, mtu=1400)) == leaves, "they look at sizes"
    others = {shop, *(Owner("vm", one.vm) for one in IN_SHOP)}
    assert net.put_vnet(replace(SHOP, vlan=50)) == leaves | others
    assert net.set_vm_port("vm1", "edge1", VMPort(99)) == {shop, Owner("vm", "vm1")}
    assert net.put_vnet(VNETS["quiet"]) == NOTHING
    assert shop in net.remove_vm("vm1")
    assert shop in net.detect("server2", PortRef("leaf2", "elsewhere"))


# ---- after a restart of the controller ----


def restarted(net: Network) -> Knowledge:
    compiler = Compiler(net)
    compiler.update(net.everything())
    return Knowledge(net, compiler, set())


def test_a_group_is_judged_on_an_edge_whose_database_has_been_read(world: Flooded) -> None:
    """Before, ports of its NICs may not have been told: it would lose their buckets."""
    told = restarted(world.world.net)
    held = Group(GROUP, (), replicates=True)
    assert not told.may_judge(held, "edge1")
    told.edges_read.add("edge2")
    assert not told.may_judge(held, "edge1")
    told.edges_read.add("edge1")
    assert told.may_judge(held, "edge1")
    assert told.may_judge(Group(1, ()), "edge3"), "another group is judged at once"


def test_on_leaves_and_spines_it_is_judged_when_all_vms_and_their_servers_are_known(world: Flooded) -> None:
    net = world.world.net
    told, held = restarted(net), Group(GROUP, (), replicates=True)
    for switch in ("leaf1", "spine1"):
        assert not told.may_judge(held, switch)
    told.all_vms_known = True
    for switch in ("leaf1", "spine1"):
        assert told.may_judge(held, switch)
    net.detected.pop("server2")
    assert told.may_judge(held, "leaf1"), "one of its VMs is at a server that was never seen"
    told.all_vms_known, told.edges_read = False, {"edge1", "edge2", "edge3"}
    assert not told.may_judge(held, "leaf1"), "without a database it is about to be seen"
    told.all_vms_known = True
    net.detected["server2"] = PortRef("leaf9", "p1")
    assert told.may_judge(held, "leaf1")
    assert not told.may_judge(held, "spine1"), "its leaf has not told its ports"
    net.detected["server2"] = PortRef("leaf2", "p2")
    net.put_vnet(replace(SHOP, flood=Flood.DROPPED))
    assert told.knows(Owner("vnet", "shop"), "leaf1"), "it floods no longer"


def test_a_group_is_kept_while_a_vm_of_the_vnet_is(world: Flooded) -> None:
    told, held = restarted(world.world.net), Group(GROUP, (), replicates=True)
    assert not told.is_kept(held)
    told.kept.add(Owner("vm", "vm2"))
    assert told.is_kept(held)
    assert not told.is_kept(Group(GROUPS + VNETS["store"].vlan, (), replicates=True))
    assert not told.is_kept(Group(1, ()))
    assert not told.is_kept(flood_meter(3))
    mine = [e for e in told.compiler.program("edge2").values() if isinstance(e, Flow)]
    assert {told.is_kept(entry) for entry in mine} == {True, False}
