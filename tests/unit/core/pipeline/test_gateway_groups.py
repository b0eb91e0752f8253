"""Groups of servers with a gateway MAC of their own: what their VMs are told, and migrations between them."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from retinue.core.model import GatewayGroup, ModelError, VMPort
from retinue.core.model.network import Owner
from retinue.core.packets import arp_request, parse, parse_arp
from retinue.core.pipeline.compiler import Compiler
from support.fabric.histories import fresh
from support.fabric.networks import (
    GATEWAY,
    GATEWAY_MAC,
    OTHER_GATEWAY_MAC,
    add_vm,
    fabric,
    group,
    moved,
    server,
    vm_ip,
    vm_mac,
    vm_port,
)
from support.fabric.world import OUTSIDE, FabricWorld, udp_frame


@pytest.fixture
def world() -> FabricWorld:
    """vm1 on server1, vm2 on server2, which is in a group, vm3 on server3."""
    net = fabric()
    group(net)
    for number in (1, 2, 3):
        add_vm(net, number, number)
    return FabricWorld(net)


def test_a_vm_is_told_its_groups_mac_and_hears_from_it(world: FabricWorld) -> None:
    for vm, mac in ((1, GATEWAY_MAC), (2, OTHER_GATEWAY_MAC)):
        (delivery,) = world.send(vm, vm, arp_request(vm_mac(vm), vm_ip(vm), GATEWAY))
        ((_, _, reply),) = delivery.arrivals
        assert parse_arp(parse(reply).payload).sha == mac
        for from_outside in world.from_outside(vm):
            assert parse(from_outside.arrivals[0][2]).src == mac


def test_a_frame_to_any_groups_gateway_is_the_gateways(world: FabricWorld) -> None:
    for vm, to in ((1, 2), (2, 1), (3, 1)):
        for mac in (GATEWAY_MAC, OTHER_GATEWAY_MAC):
            world.reaches(vm, vm, to, [to], mac)


def test_servers_in_no_group_have_the_mac_of_the_group_that_is_theirs(world: FabricWorld) -> None:
    """While the network runs, and nobody else is touched by it: what was known is the gateway's still."""
    net = world.net
    third = GatewayGroup("third", "00:00:de:ad:00:03")
    world.apply(net.put_gateway_group(third))
    world.apply(net.put_gateway_group(replace(third, default=True)))
    for vm, mac in ((1, third.mac), (2, OTHER_GATEWAY_MAC), (3, third.mac)):
        (delivery,) = world.send(vm, vm, arp_request(vm_mac(vm), vm_ip(vm), GATEWAY))
        ((_, _, reply),) = delivery.arrivals
        assert parse_arp(parse(reply).payload).sha == mac
        for from_outside in world.from_outside(vm):
            assert parse(from_outside.arrivals[0][2]).src == mac
        for known in net.gateway_macs:
            world.reaches(vm, vm, 1 + vm % 3, [1 + vm % 3], known)
    with pytest.raises(ModelError, match="servers in no group are in third already"):
        net.put_gateway_group(GatewayGroup("second", OTHER_GATEWAY_MAC, default=True))
    with pytest.raises(ModelError, match="in use by all servers that are in no other"):
        net.remove_gateway_group("third")
    world.apply(net.put_gateway_group(third))
    world.apply(net.remove_gateway_group("third"))


def test_an_edge_answers_as_the_group_of_the_server_it_is_of_now() -> None:
    """Incremental = recomputed when that server is removed, and when another one has the edge."""
    net = fabric()
    group(net)
    second = net.servers["server2"]
    compiler = Compiler(net)
    compiler.update(net.everything())
    compiler.update(net.remove_server("server2"))
    assert {k: v for k, v in compiler.programs.items() if v} == fresh(net), "it is of none now"
    compiler.update(net.put_server(second))
    assert {k: v for k, v in compiler.programs.items() if v} == fresh(net), "it is of the group again"
    compiler.update(net.put_server(replace(second, edge="")))
    assert {k: v for k, v in compiler.programs.items() if v} == fresh(net), "its server let go of it"


def test_flows_go_on_when_a_vm_comes_to_another_group(world: FabricWorld) -> None:
    """Its ARP cache has the gateway's MAC of the group that it has left."""
    net = world.net
    net.set_vm_port("vm1", "edge2", VMPort(vm_port(1)))
    world.apply(net.put_vm(moved(net.vms["vm1"], "server2")))
    for to in (2, 3):
        world.reaches(1, 2, to, [to], GATEWAY_MAC)
        world.reaches(to, to, 1, [2], GATEWAY_MAC)
    for delivery in world.send(1, 2, udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), OUTSIDE)):
        assert len(delivery.arrivals) == 1


def test_a_server_that_joins_a_group_has_another_gateway(world: FabricWorld) -> None:
    net = world.net
    joined = replace(server(3), gateway_group="second")
    assert {Owner("switch", "edge3"), Owner("vm", "vm3")} <= net.put_server(joined)
    world.apply({Owner("switch", "edge3"), Owner("server", "server3"), Owner("vm", "vm3")})
    (delivery,) = world.send(3, 3, arp_request(vm_mac(3), vm_ip(3), GATEWAY))
    assert parse_arp(parse(delivery.arrivals[0][2]).payload).sha == OTHER_GATEWAY_MAC
    assert Owner("switch", "edge3") not in net.put_server(replace(joined, address=IPv4Address("10.0.0.99")))


def test_without_groups_no_entry_is_more() -> None:
    plain, grouped = fabric(), fabric()
    group(grouped)
    counts = []
    for net in (plain, grouped):
        add_vm(net, 1, 1)
        compiler = Compiler(net)
        compiler.update(net.everything())
        counts.append({switch: len(program) for switch, program in compiler.programs.items()})
    more = {switch: count - counts[0][switch] for switch, count in counts[1].items()}
    assert more == {
        "leaf1": 1, "leaf2": 3, "spine1": 1, "spine2": 1, "edge1": 0, "edge2": 0, "edge3": 0,
    }, "one for each MAC, and one for each service's port"  # fmt: skip


def test_what_cannot_be_a_groups_mac() -> None:
    net = fabric()
    add_vm(net, 1, 1)
    group(net)
    for mac, said in (
        (GATEWAY_MAC, "is the gateway's"),
        (OTHER_GATEWAY_MAC, "is the gateway's"),
        (vm_mac(1), "belongs to a VM already"),
        (server(1).mac, "belongs to a server already"),
        ("01:00:5e:00:00:01", "group address"),
    ):
        with pytest.raises(ModelError, match=said):
            net.put_gateway_group(GatewayGroup("new", mac))
    with pytest.raises(ModelError, match="there is no gateway group x"):
        net.put_server(replace(server(1), gateway_group="x"))
    with pytest.raises(ModelError, match="is the gateway's"):
        net.put_server(replace(server(1), mac=OTHER_GATEWAY_MAC))
