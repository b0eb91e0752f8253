"""S3.1: leaves that are routers and not ours: the way of a packet over them, and what they are told."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from retinue.core.model import (
    DEFAULT_VNET,
    Flood,
    GatewayGroup,
    Link,
    ModelError,
    Network,
    PortRef,
    Role,
    Service,
    Subnet,
    Switch,
    Vrf,
)
from retinue.core.model.constraints import check_tiers
from retinue.core.model.plain_routers import OTHERS
from retinue.core.packets import parse
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.diff import difference
from retinue.core.pipeline.entry import Flow, Program, key_of
from retinue.core.pipeline.matches import ip_match
from retinue.core.pipeline.priorities import Route
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay import underlay_of
from retinue.core.pipeline.underlay.router_table import entries, taken_back, told
from retinue.core.pipeline.underlay.routers import PlainRouters
from support.fabric.networks import (
    GATEWAY_MAC,
    add_vm,
    fabric,
    moved,
    server,
    vm_ip,
    vm_mac,
    vm_port,
)
from support.fabric.prefixes import of as prefixes_of
from support.fabric.world import FabricWorld, udp_frame

SUBNETS = {IPv4Network("10.0.0.0/24"): None, IPv4Network("10.1.0.0/24"): None}


def network(servers_on: tuple[int, ...] = (1, 2, 1)) -> Network:
    """Two routers; vm1 and vm2 are at server 1, vm3 at server 2, vm4 at server 3."""
    net = fabric(2, 0, servers_on, over_routers=True)
    for number, at in ((1, 1), (2, 1), (3, 2), (4, 3)):
        add_vm(net, number, at, ports_on=(1, 2, 3))
    return net


def host(address: str) -> IPv4Network:
    return IPv4Network(address)


def table_of(net: Network, router: str) -> dict[IPv4Network, IPv4Address | None]:
    compiler = Compiler(net)
    compiler.update(net.everything())
    return told(net, (one for one in compiler.program(router).values() if isinstance(one, Flow)))


# ---- on the way ----


def hops(world: FabricWorld, at: int, sender: int, to: int, mac: str) -> list[str]:
    frame = udp_frame(vm_mac(sender), mac, vm_ip(sender), vm_ip(to))
    (delivery,) = world.send(sender, at, frame)
    ((switch, port, came),) = delivery.arrivals
    assert port == vm_port(to)
    assert parse(came).dst == vm_mac(to)
    return [hop.switch for hop in delivery.hops] + ([switch] if switch != delivery.hops[-1].switch else [])


def test_a_vm_that_has_moved_is_spoken_to_by_the_mac_that_was_known_of_it() -> None:
    """Figure 3: the MAC that vm1 knows of vm2 is no neighbour's any more; the edge writes the router's."""
    world = FabricWorld(network())
    assert hops(world, 1, 1, 2, vm_mac(2)) == ["edge1"]
    world.apply(world.net.put_vm(replace(moved(world.net.vms["vm2"], "server2"), also=frozenset())))
    assert hops(world, 1, 1, 2, vm_mac(2)) == ["edge1", "leaf1", "leaf2", "edge2"]
    assert hops(world, 2, 2, 1, vm_mac(1)) == ["edge2", "leaf2", "leaf1", "edge1"]
    # What has become its neighbour is still sent to by the gateway's MAC: as in figure 4, by the router.
    assert hops(world, 2, 2, 3, GATEWAY_MAC) == ["edge2", "leaf2", "edge2"]


def test_without_the_rewrite_it_stops_at_the_leaf() -> None:
    """ "A Layer 2 lookup miss will also occur at the ToR", which "will be dropped" (S3.10)."""
    net = network()
    net.rewrites = False
    world = FabricWorld(net)
    world.apply(net.put_vm(replace(moved(net.vms["vm2"], "server2"), also=frozenset())))
    frame = udp_frame(vm_mac(1), vm_mac(2), vm_ip(1), vm_ip(2))
    (delivery,) = world.send(1, 1, frame)
    assert [hop.switch for hop in delivery.hops] == ["edge1", "leaf1"]
    assert parse(delivery.hops[-1].frame).dst == vm_mac(2), "as it was sent"
    assert not delivery.arrivals
    assert hops(world, 1, 1, 2, GATEWAY_MAC)[-1] == "edge2", "who asks anew goes on"


def test_what_comes_late_is_given_to_the_router_again() -> None:
    world = FabricWorld(network())
    vm = replace(moved(world.net.vms["vm2"], "server2"), also=frozenset(), forwarded_from="server1")
    world.apply(world.net.put_vm(vm))
    late = udp_frame(GATEWAY_MAC, server(1).mac, IPv4Address("203.0.113.9"), vm_ip(2))
    (delivery,) = world.fabric.all_paths("edge1", 1, late)
    assert [hop.switch for hop in delivery.hops] == ["edge1", "leaf1", "leaf2", "edge2"]


# ---- what routers are told ----


def test_each_router_is_told_the_server_of_each_vm_and_that_a_subnet_leads_nowhere() -> None:
    expected = SUBNETS | {
        host("10.1.0.101"): IPv4Address("10.0.0.11"),
        host("10.1.0.102"): IPv4Address("10.0.0.11"),
        host("10.1.0.103"): IPv4Address("10.0.0.12"),
        host("10.1.0.104"): IPv4Address("10.0.0.13"),
    }
    net = network()
    assert table_of(net, "leaf1") == table_of(net, "leaf2") == expected


def test_a_prefix_that_is_routed_to_a_nic_is_one_route() -> None:
    net = network()
    vm = net.vms["vm3"]
    net.change_nic("vm3", vm.nic, replace(vm.nic, prefixes=prefixes_of(1)))
    (prefix,) = (one for one in prefixes_of(1) if isinstance(one, IPv4Network))
    assert table_of(net, "leaf1")[prefix] == IPv4Address("10.0.0.12")


def test_a_move_is_one_route_on_each_router_that_is_replaced() -> None:
    net = network()
    compiler = Compiler(net)
    compiler.update(net.everything())
    before: dict[str, Program] = {one: dict(compiler.program(one)) for one in ("leaf1", "leaf2")}
    keys = compiler.update(net.put_vm(replace(moved(net.vms["vm1"], "server3"), also=frozenset())))
    for router, installed in before.items():
        change = difference(compiler.program(router), installed, keys[router])
        assert told(net, change.add) == {host("10.1.0.101"): IPv4Address("10.0.0.13")}
        assert taken_back(change.remove) <= {host("10.1.0.101")}, "its way back by the port it came by"


@pytest.mark.parametrize("router", ["leaf1", "leaf2"])
def test_a_table_that_is_as_it_should_be_stands_for_the_whole_program(router: str) -> None:
    net = network()
    compiler = Compiler(net)
    compiler.update(net.everything())
    found = {key_of(flow): flow for flow in entries(net, router, table_of(net, router))}
    assert found == compiler.program(router)


def test_what_is_missing_from_a_table_or_wrong_in_it_is_told() -> None:
    net = network()
    compiler = Compiler(net)
    compiler.update(net.everything())
    table = table_of(net, "leaf1")
    del table[host("10.1.0.101")], table[IPv4Network("10.1.0.0/24")]
    table |= {
        host("10.1.0.102"): IPv4Address("10.0.0.12"),  # Another server's.
        host("10.1.0.103"): IPv4Address("192.0.2.77"),  # No server's.
        host("10.1.0.250"): IPv4Address("10.0.0.11"),  # Nobody holds it.
        host("10.1.0.251"): IPv4Address("192.0.2.77"),  # Nobody holds it, and no server's.
        IPv4Network("10.9.0.0/24"): None,
    }
    found: Program = {key_of(flow): flow for flow in entries(net, "leaf1", table)}
    wanted = compiler.program("leaf1")
    change = difference(wanted, found, {*wanted, *found})
    assert told(net, change.add) == {
        host("10.1.0.101"): IPv4Address("10.0.0.11"),
        host("10.1.0.102"): IPv4Address("10.0.0.11"),
        host("10.1.0.103"): IPv4Address("10.0.0.12"),
        IPv4Network("10.1.0.0/24"): None,
    }
    gone = taken_back(change.remove) - told(net, change.add).keys()
    assert gone == {host("10.1.0.250"), host("10.1.0.251"), IPv4Network("10.9.0.0/24")}


@pytest.mark.parametrize("router", ["leaf1", "leaf2"])
def test_a_server_with_another_address_is_another_next_hop(router: str) -> None:
    """Of the same MAC, at the same port: nothing of a frame changes, and all its VMs' routes do."""
    net = network()
    compiler = Compiler(net)
    compiler.update(net.everything())
    before, table = dict(compiler.program(router)), table_of(net, router)
    there = replace(net.servers["server1"], address=IPv4Address("10.0.0.21"))
    keys = compiler.update(net.put_server(there)).get(router, {})
    change = difference(compiler.program(router), before, keys)
    moved_on = {host("10.1.0.101"): there.address, host("10.1.0.102"): there.address}
    assert told(net, change.add) == moved_on
    # An audit, too, sees by the router's table that it was not told.
    found: Program = {key_of(flow): flow for flow in entries(net, router, table)}
    assert told(net, difference(compiler.program(router), found, {*found}).add) == moved_on


def test_a_host_route_without_a_next_hop_is_none() -> None:
    net = network()
    flow = Flow(Table.ROUTE, Route.HOST, ip_match(dst=IPv4Address("10.1.0.101")))
    with pytest.raises(ValueError, match=r"10\.1\.0\.101/32 has no next hop"):
        told(net, [flow])


def test_a_server_is_reached_at_a_port_that_its_router_has_and_that_has_a_link() -> None:
    net = network()
    numbers = {name: net.port_number(PortRef("leaf1", name)) or 0 for name in ("p1", "p3", OTHERS)}

    def reached() -> list[bool]:
        return [underlay_of(net).is_reachable(one) for one in ("server1", "server2", "server3")]

    assert reached() == [True, True, True]
    net.set_ports("leaf1", numbers, ("p1",))
    assert reached() == [False, True, True]
    net.set_ports("leaf1", {"p1": 1, OTHERS: numbers[OTHERS]})
    assert reached() == [True, True, False]
    net.set_ports("leaf1", {})
    assert reached() == [True, True, True], "until it says which ports it has"


# ---- in which order ----


def test_a_source_hands_on_only_when_every_router_knows() -> None:
    net = network()
    underlay = underlay_of(net)
    assert isinstance(underlay, PlainRouters)
    changed = dict.fromkeys(("edge1", "edge2", "leaf1", "leaf2"), ("entry",))
    diverted = underlay.stages(changed, underlay.order_to_divert("server1", "server2"))
    assert diverted == [["edge2"], ["leaf2"], ["leaf1"], ["edge1"]]
    returned = underlay.stages(changed, underlay.order_to_return("server1", "server2"))
    assert returned == [["edge1"], ["leaf1"], ["leaf2"], ["edge2"]]


# ---- what cannot be ----


def test_all_leaves_are_such_routers_or_none() -> None:
    net = network()
    net.add_switch(Switch("ours", Role.LEAF, 99))
    with pytest.raises(ModelError, match="ours: where a leaf is a router that is not ours all are"):
        check_tiers(net)
    net.add_switch(Switch("spine1", Role.SPINE, 98))
    with pytest.raises(ModelError, match="routers of others join each other, and no links"):
        net.add_link(Link(PortRef("leaf1", "s1"), PortRef("spine1", "l1")))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda net: net.put_vrf(Vrf("red", 7)), "one table of routes"),
        (lambda net: net.put_vnet(replace(DEFAULT_VNET, vlan=7, flood=Flood.CONTROLLED)), "floods nothing"),
        (lambda net: net.put_vnet(replace(DEFAULT_VNET, mtu=1400)), "tells no sender its size"),
        (lambda net: net.put_gateway_group(GatewayGroup("one", "00:00:de:ad:00:07")), "groups need leaves"),
        (
            lambda net: net.add_subnet(Subnet("v6", IPv6Network("fd00::/64"), IPv6Address("fd00::1"))),
            "IPv4 only",
        ),
        (
            lambda net: net.add_subnet(
                replace(net.subnets["blue"], dhcp=(IPv4Address("10.0.0.2"),))
            ),
            "no message is relayed",
        ),
        (
            lambda net: net.put_server(replace(net.servers["dhcp"], services=frozenset({Service.DHCP}))),
            "no dhcp server; let a VM be",
        ),
        (lambda net: net.put_server(replace(net.servers["server1"], address=None)), "needs its `address`"),
        (lambda net: net.put_server(replace(net.servers["server1"], given_at=None)), "say at which port"),
    ],
)  # fmt: skip
def test_what_a_router_of_others_cannot_do_is_refused(change, why: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ModelError, match=why):
        change(network())


def test_a_router_is_a_leaf_with_an_endpoint_and_given_places() -> None:
    with pytest.raises(ModelError, match="a router that is not ours is a leaf"):
        Switch("tor1", Role.LEAF, 5, router=True)
    with pytest.raises(ModelError, match="a router that is not ours is a leaf"):
        Switch("tor1", Role.LEAF, 5, router=True, endpoint=IPv4Address(1), tunnel=OTHERS)
