"""S3.4: spines that know servers' MACs alone, with the example of US 9,515,930 over them."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from retinue.core.model import ModelError, PortRef, Role
from retinue.core.model.constraints import check_tiers
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.diff import difference
from retinue.core.pipeline.entry import Field, Flow
from retinue.core.pipeline.knowledge import Knowledge
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay import underlay_of
from retinue.core.pipeline.underlay.mac_spines import MacSpines
from support.fabric import prefixes
from support.fabric.histories import fresh
from support.fabric.networks import GATEWAY_MAC, add_uplink, add_vm, endpoint, fabric, vm_ip, vm_mac
from support.fabric.us9515930 import B_MAC, example, ip_of, mac_of, migrate_h1, port_of
from support.fabric.world import FabricWorld, udp_frame


def way(world: FabricWorld, host: int, edge: str, dmac: str, to: int) -> list[tuple[str, str]]:
    """The switches that a packet comes to, each with the MAC that it has there; and it arrives."""
    frame = udp_frame(mac_of(host), dmac, ip_of(host), ip_of(to))
    delivery = world.fabric.all_paths(edge, port_of(host), frame)[0]
    ((_, port, _),) = delivery.arrivals
    assert port == port_of(to)
    return [(hop.switch, hop.frame[:6].hex(":")) for hop in delivery.hops]


def test_figure_1_h1_to_h4_the_first_leaf_routes_and_the_spine_goes_by_the_servers_mac() -> None:
    assert way(example(by_mac=True), 1, "vswitch1", GATEWAY_MAC, to=4) == [
        ("vswitch1", GATEWAY_MAC),
        ("L1", GATEWAY_MAC),
        ("spine1", B_MAC),
        ("Lm", B_MAC),
        ("vswitchm", B_MAC),
    ]


def test_figure_3_h1_has_migrated_and_speaks_to_the_mac_that_it_knew() -> None:
    world = example(by_mac=True)
    migrate_h1(world)
    first = way(world, 1, "vswitchm", mac_of(2), to=2)
    assert [switch for switch, _ in first] == ["vswitchm", "Lm", "spine1", "L1", "vswitch1"]
    assert first[1] == ("Lm", GATEWAY_MAC)
    assert [switch for switch, _ in way(world, 2, "vswitch1", mac_of(1), to=1)][1:4] == ["L1", "spine1", "Lm"]


@pytest.mark.parametrize("cores", [0, 2])
def test_a_spine_has_no_entry_about_an_address_and_as_many_with_a_hundred_vms_as_with_one(cores: int) -> None:
    world = FabricWorld(fabric(4, 2, (1, 2, 3, 4), cores, by_mac=True))
    net = world.net
    above = [one.id for role in (Role.SPINE, Role.CORE) for one in net.with_role(role)]
    had = {switch: len(world.installed[switch]) for switch in above}
    for number in range(1, 101):
        vm = add_vm(net, number, 1 + number % 4)
        if number < 3:
            net.put_vm(replace(vm, nics=(replace(vm.nic, prefixes=prefixes.of(number)),)))
    world.apply(net.everything())
    for switch in above:
        flows = [one for one in world.installed[switch].values() if isinstance(one, Flow)]
        assert len(world.installed[switch]) == had[switch]
        assert {flow.table for flow in flows} == {Table.ADMIT, Table.SERVERS}
        fields = {field for flow in flows for field, _, _ in flow.match}
        assert fields <= {Field.IN_PORT, Field.VLAN_VID, Field.ETH_TYPE, Field.ETH_DST, Field.ETH_SRC}


def test_a_service_is_found_in_the_leafs_pod_before_it_is_in_another() -> None:
    """A spine of its pod would send there, if it knew addresses; the other one has less to do."""
    net = fabric(4, 1, (1, 2, 3), 1, by_mac=True)
    service = IPv4Address("10.9.9.9")
    for number, load in ((1, 9), (2, 0)):
        vm = add_vm(net, number, number)
        net.put_vm(replace(vm, nics=(replace(vm.nic, anycast=(service,), load=load),)))
    add_vm(net, 3, 3)
    world = FabricWorld(net)
    (delivery,) = world.send(3, 3, udp_frame(vm_mac(3), GATEWAY_MAC, vm_ip(3), service))
    assert [hop.switch for hop in delivery.hops] == ["edge3", "leaf3", "spine1", "leaf1", "edge1"]
    net.put_vm(replace(net.vms["vm1"], nics=(replace(net.vms["vm1"].nic, anycast=()),)))
    world.apply(net.everything())
    (delivery,) = world.send(3, 3, udp_frame(vm_mac(3), GATEWAY_MAC, vm_ip(3), service))
    assert delivery.hops[-1].switch == "edge2", "where its pod has none"


def test_entries_to_a_server_are_judged_when_its_leaf_has_told_its_ports() -> None:
    net = fabric(by_mac=True)
    knowledge = Knowledge(net, Compiler(net), set())
    told = knowledge.told("leaf1")
    assert underlay_of(net).knows("server2", "leaf1")
    net.set_ports("leaf2", {})
    assert not underlay_of(net).knows("server2", "leaf1")
    assert underlay_of(net).knows("server2", "leaf2"), "it has told itself"
    assert knowledge.told("leaf1") != told, "so all that is held is looked at again"


def test_what_no_host_holds_ends_at_the_senders_leaf() -> None:
    net = fabric(by_mac=True)
    add_vm(net, 1, 1)
    world = FabricWorld(net)
    for delivery in world.send(1, 1, udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), vm_ip(99))):
        assert [hop.switch for hop in delivery.hops] == ["edge1", "leaf1"]
        assert not delivery.arrivals


def test_all_leaves_are_told_of_a_move_at_once_after_the_new_place() -> None:
    net = fabric(3, 2, (1, 2, 3), by_mac=True)
    underlay = underlay_of(net)
    assert isinstance(underlay, MacSpines)
    concerned = underlay.concerned(["server1", "server2"])
    assert {"edge1", "edge2", "leaf1", "leaf2", "leaf3"} <= concerned
    near = underlay.order_to_divert("server1", "server2")
    changed = dict.fromkeys(["edge1", "edge2", "leaf1", "leaf2", "leaf3"], frozenset[str]())
    assert underlay.stages(changed, near) == [["edge2"], ["edge1"], ["leaf2"], ["leaf1", "leaf3"]]
    net.put_switch(replace(net.switches["leaf3"], id="leaf9", dpid=0x19))
    assert underlay.concerned(["server1", "server2"]) == concerned, "nothing comes to one that is new"


def ways(levels: object) -> list[list[str]]:
    assert isinstance(levels, list)
    return [
        sorted(f"{one.lower.switch} {'up' if up else 'down'} {one.upper.switch}" for one, up in level)
        for level in levels
    ]


def test_what_was_sent_before_may_be_on_its_way_from_every_leaf() -> None:
    net = fabric(3, 1, (1, 2, 1), by_mac=True)
    old = [["leaf2 up spine1", "leaf3 up spine1"], ["leaf1 down spine1"]]
    assert ways(underlay_of(net).old_ways("server1", "server2")) == old
    assert ways(underlay_of(net).old_ways("server1", "server3")) == old, "to another server of the same leaf"
    tiers = fabric(4, 1, (1, 2, 3, 4), 1, by_mac=True)
    assert ways(underlay_of(tiers).old_ways("server1", "server2")) == [
        ["leaf2 up spine2", "leaf3 up spine1", "leaf4 up spine2"],
        ["spine2 up core1"],
        ["spine1 down core1"],
        ["leaf1 down spine1"],
    ]


def test_a_leaf_is_waited_for_until_all_servers_there_are_fenced() -> None:
    net = fabric(2, 1, (1, 2, 1), by_mac=True)
    underlay = underlay_of(net)
    net.fence("server1")
    assert underlay.lost_with("server1") == frozenset(), "server3 may send by it"
    net.fence("server3")
    assert underlay.lost_with("server1") == underlay.lost_with("server3") == {"leaf1"}


@pytest.mark.parametrize("cores", [0, 1])
def test_what_comes_by_a_leaf_whose_servers_are_all_fenced_its_spines_drop(cores: int) -> None:
    """The leaf may forward by what it had, and heed nobody: whoever waits for it no more must not hear it."""
    net = fabric(3, 2, (1, 2, 1, 3), cores, by_mac=True)
    add_vm(net, 1, 1)
    add_vm(net, 2, 4)
    world = FabricWorld(net)
    before = dict(world.installed)

    def arrive() -> int:
        """Of what vm1 sends by a leaf that is as it was before anybody was fenced."""
        now = world.installed["leaf1"]
        deaf = difference(before["leaf1"], now, {*now, *before["leaf1"]})
        world.fabric["leaf1"].apply(deaf)
        frame = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), vm_ip(2))
        found = [len(one.arrivals) for one in world.send(1, 1, frame)]
        world.fabric["leaf1"].apply(difference(now, before["leaf1"], {*now, *before["leaf1"]}))
        assert len(set(found)) == 1
        return found[0]

    for what, still in ((net.fence, 1), (net.unfence, 1)):
        world.apply(what("server1"))
        assert arrive() == still, "server3 may send by it"
    for server in ("server3", "server1"):
        world.apply(net.fence(server))
    assert arrive() == 0
    assert world.compiler.programs == fresh(net)
    world.apply(net.unfence("server3"))
    assert arrive() == 1
    world.apply(net.remove_server("server3"))
    assert world.compiler.programs == fresh(net)
    world.apply(net.detect("server4", PortRef("leaf1", "p3")))
    assert world.compiler.programs == fresh(net)
    world.apply(net.remove_vm("vm1") | net.remove_server("server1"))
    assert world.compiler.programs == fresh(net)


def test_a_leaf_to_which_another_servers_second_uplink_leads_is_waited_for() -> None:
    """It may be the one in use in a moment: what server2 sends comes in there then."""
    net = fabric(2, 1, (1, 2), by_mac=True)
    add_uplink(net, 2, leaf=1)
    underlay = underlay_of(net)
    net.fence("server1")
    assert underlay.lost_with("server1") == frozenset()
    net.fence("server2")
    assert underlay.lost_with("server1") == {"leaf1"}
    net.fence("dhcp")
    net.fence("router")
    assert underlay.lost_with("server2") == {"leaf1", "leaf2"}, "both are looked at before it is let in again"


def test_there_is_none_where_no_spine_is_ours() -> None:
    for joined in ("over_ip", "over_routers"):
        net = fabric(2, 0, (1, 2), **{joined: True})
        check_tiers(net)
        net.spines_by_mac = True
        with pytest.raises(ModelError, match='spines = "mac": there are none here'):
            check_tiers(net)
    net = fabric(1, 0, (1,), by_mac=True)
    with pytest.raises(ModelError, match="leaf9: spines join the leaves here"):
        net.put_switch(replace(net.switches["leaf1"], id="leaf9", dpid=9, tunnel="v0", endpoint=endpoint(9)))
