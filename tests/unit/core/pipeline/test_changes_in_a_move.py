"""What an operator sets of a vnet, a subnet or a gateway in the middle of a migration: nothing is lost by it.

Each change in each state of the migration, and each packet after every single switch that was told.
"""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from retinue.core.model import DEFAULT_VNET, Flood, GatewayGroup, Network
from retinue.core.model.network import Touched
from retinue.core.packets import parse
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.underlay import underlay_of
from support.fabric import ipv6
from support.fabric.networks import (
    GATEWAY_MAC,
    add_ipv6,
    add_vm,
    fabric,
    holding6,
    moved,
    vm_ip,
    vm_mac,
    vm_port,
)
from support.fabric.world import FabricWorld, udp_frame
from support.fakes.switch import Delivery

AT = {1: 1, 2: 2, 3: 3, 4: 1}
"""vm1 migrates from server1 to server2; vm2 is at its target, vm4 at its source, vm3 elsewhere."""
MAC = "02:00:5e:00:07:01"


def admitted(net: Network) -> tuple[Touched, set[int]]:
    return net.put_vm(replace(net.vms["vm1"], also=frozenset({"server2"}))), {1}


def diverted(net: Network) -> tuple[Touched, set[int]]:
    net.put_vm(replace(net.vms["vm1"], also=frozenset({"server2"})))
    return net.put_vm(moved(net.vms["vm1"], "server2")), {2}


def paused(net: Network) -> tuple[Touched, set[int]]:
    """It is delivered at its target, a copy goes to its source, and what comes late there goes on."""
    diverted(net)
    both = replace(net.vms["vm1"], copied_to="server1", forwarded_from="server1")
    return net.put_vm(both), {1, 2}


def closed(net: Network) -> tuple[Touched, set[int]]:
    diverted(net)
    return net.put_vm(replace(net.vms["vm1"], also=frozenset(), forwarded_from="server1")), {2}


Set = Callable[[Network], Touched]
CHANGES: dict[str, list[Set]] = {
    "MTU": [
        lambda net: net.put_vnet(replace(DEFAULT_VNET, mtu=1400)),
        lambda net: net.put_vnet(replace(DEFAULT_VNET, mtu=0)),
    ],
    "flood": [
        lambda net: net.put_vnet(replace(DEFAULT_VNET, flood=Flood.CONTROLLED, vlan=30)),
        lambda net: net.put_vnet(replace(DEFAULT_VNET, vlan=30)),
    ],
    "gateway": [
        lambda net: net.add_subnet(replace(net.subnets["blue"], gateway=IPv4Address("10.1.0.253"))),
        lambda net: net.add_subnet(replace(net.subnets["blue"], gateway=IPv4Address("10.1.0.254"))),
    ],
    "MAC of the target's group": [
        lambda net: net.put_gateway_group(GatewayGroup("rack7", MAC)),
        lambda net: net.put_server(replace(net.servers["server2"], gateway_group="rack7")),
        lambda net: net.put_server(replace(net.servers["server2"], gateway_group="")),
    ],
    "MAC of the source's group": [
        lambda net: net.put_gateway_group(GatewayGroup("rack7", MAC)),
        lambda net: net.put_server(replace(net.servers["server1"], gateway_group="rack7")),
        lambda net: net.put_server(replace(net.servers["server1"], gateway_group="")),
    ],
    "MAC of all others": [
        lambda net: net.put_gateway_group(GatewayGroup("rack7", MAC)),
        lambda net: net.put_gateway_group(GatewayGroup("rack7", MAC, default=True)),
    ],
}


@pytest.mark.parametrize(
    ("state", "over_ip"),
    [(admitted, False), (diverted, False), (paused, False), (paused, True), (closed, False)],
    ids=["admitted", "diverted", "paused", "paused, tunnels", "closed"],
)
@pytest.mark.parametrize("what", CHANGES)
def test_nothing_is_lost_by_what_is_set_meanwhile(
    what: str, state: Callable[[Network], tuple[Touched, set[int]]], over_ip: bool
) -> None:
    net = fabric(over_ip=over_ip)
    add_ipv6(net)
    for number, at in AT.items():
        add_vm(net, number, at, ports_on=(2,) if number == 1 else ())
        net.assign(holding6(number))
    world = FabricWorld(net)
    touched, may = state(net)
    world.apply(touched)
    others = {number: {at} for number, at in AT.items() if number != 1}
    arrive(world, others | {1: may})
    for change in CHANGES[what]:
        world.apply(change(net), each=lambda: arrive(world, others | {1: may}))
        arrive(world, others | {1: may})
        is_up_to_date(world)
    # And the migration goes on from there.
    order = underlay_of(net).order_to_divert("server1", "server2")
    at_target = moved(replace(net.vms["vm1"], also=frozenset({"server2"})), "server2")
    if state is admitted:
        world.apply(net.put_vm(at_target), order, each=lambda: arrive(world, others | {1: {1, 2}}, {2}))
    ended = replace(net.vms["vm1"], also=frozenset(), copied_to="", forwarded_from="")
    world.apply(net.put_vm(ended), each=lambda: arrive(world, others | {1: {1, 2}}, {2}))
    arrive(world, others | {1: {2}}, {2})
    is_up_to_date(world)


def is_up_to_date(world: FabricWorld) -> None:
    fresh = Compiler(world.net)
    fresh.update(world.net.everything())
    assert world.compiler.programs == fresh.programs


def arrive(world: FabricWorld, may: dict[int, set[int]], runs: set[int] | None = None) -> None:
    """Of both families, from everybody and from outside, by whichever MAC the gateway or the VM is known.

    `runs`: where vm1 sends from; None: wherever it is delivered."""
    router = world.net.servers["router"]
    assert router.given_at is not None
    for number, places in ((1, may[1]), (2, may[2])):
        for sender, at in AT.items():
            if sender == number:
                continue
            froms = {at} if sender != 1 else runs or may[1]
            for dst in (GATEWAY_MAC, vm_mac(number)):
                for frame in (
                    udp_frame(vm_mac(sender), dst, vm_ip(sender), vm_ip(number)),
                    ipv6.udp6_frame(vm_mac(sender), dst, ipv6.vm_ip6(sender), ipv6.vm_ip6(number)),
                ):
                    for place in froms:
                        for delivery in world.send(sender, place, frame):
                            comes(delivery, number, places)
        for delivery in world.from_outside(number) + ipv6.from_outside(world, number):
            comes(delivery, number, places)


def comes(delivery: Delivery, number: int, places: set[int]) -> None:
    came = [(switch, port) for switch, port, _ in delivery.arrivals]
    assert came, f"lost: {delivery}"
    assert len(set(came)) == len(came), f"twice: {delivery}"
    assert set(came) <= {(f"edge{place}", vm_port(number)) for place in places}, came
    assert all(parse(frame).dst == vm_mac(number) for _, _, frame in delivery.arrivals)
    assert not delivery.to_controller
