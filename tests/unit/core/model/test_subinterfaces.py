"""Routers of VRFs: what a subinterface may be, and whose addresses and routes it has."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_network

import pytest

from retinue.core.model import ModelError, Network, Server, Subinterface, Subnet
from retinue.core.model.network import NOTHING, Owner
from retinue.core.model.ways import router_to, routers_beside, way_to
from support.fabric.networks import fabric, vm_ip
from support.fabric.tenants import Held, add_tenants, add_vm
from support.fabric.ways_out import ALL, ROUTER_ADDRESS, add_exits
from support.fabric.world import OUTSIDE

EVERYTHING = IPv4Network("0.0.0.0/0")
PREFIX = IPv4Network("10.8.0.0/28")


@pytest.fixture
def net() -> Network:
    """Red's router is at leaf1, with VLAN 100; `twin` has red's 10.1.0.101, and 10.8.0.0/28 behind it."""
    net = fabric()
    add_tenants(net)
    add_vm(net, "twin", 1, [Held(11, "twin", "red", vm_ip(1), prefix=PREFIX)])
    add_exits(net, {"red": 100}, apart=True)
    return net


def with_subs(net: Network, *subs: Subinterface, **other: object) -> Server:
    return replace(net.servers["exit"], subinterfaces=subs, **other)  # type: ignore[arg-type]


def test_a_way_is_one_of_its_vrf(net: Network) -> None:
    assert (way_to(net, EVERYTHING, "red"), way_to(net, EVERYTHING)) == ("exit", "router")
    assert way_to(net, EVERYTHING, "green") == ""
    assert [router_to(net, OUTSIDE, vrf) for vrf in ("red", "default", "green")] == ["exit", "router", ""]
    assert not routers_beside(net, "exit"), "the default VRF's router leads nowhere that this one does"
    found = net.server_of_address(ROUTER_ADDRESS, "red")
    assert found is not None and found.id == "exit"
    assert net.server_of_address(ROUTER_ADDRESS) is None
    net.put_server(with_subs(net))
    assert net.server_of_address(ROUTER_ADDRESS, "red") is None
    assert way_to(net, EVERYTHING, "red") == ""


def test_of_several_routers_of_a_vrf_one_is_the_way(net: Network) -> None:
    other = replace(net.servers["router"], metric=7)
    net.put_server(replace(other, subinterfaces=(Subinterface("red", 9, ALL),)))
    assert way_to(net, EVERYTHING, "red") == "exit"
    assert routers_beside(net, "exit") == {"router"}
    assert {Owner("server", id) for id in ("exit", "router")} <= net.lose_router("exit", "silent")
    assert way_to(net, EVERYTHING, "red") == "router"
    assert net.lose_router("exit", "silent") == NOTHING


REFUSED: dict[str, tuple[Subinterface, str]] = {
    "a VRF that is not there": (Subinterface("grey", 9), "there is no VRF grey"),
    "the default VRF": (
        Subinterface("default", 9),
        "VRF default has the router's address and routes themselves",
    ),
    "no tag": (Subinterface("green", 0), "VLAN 0 of its subinterface is not between 1 and 4094"),
    "a tag that there is not": (Subinterface("green", 4095), "VLAN 4095 of its subinterface"),
    "a tag twice": (Subinterface("green", 100), "each with a VLAN of its own"),
    "a VRF twice": (Subinterface("red", 9), "one subinterface for each VRF"),
    "a gateway's address": (
        Subinterface("green", 9, (), IPv4Address("10.1.0.254")),
        "10.1.0.254 is the gateway of subnet greenblue",
    ),
    "a subnet": (
        Subinterface("green", 9, (IPv4Network("10.9.0.0/24"),)),
        "10.9.0.0/24 is subnet greenbeside",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(net: Network, case: str) -> None:
    wrong, why = REFUSED[case]
    before = net.servers["exit"]
    with pytest.raises(ModelError, match=why.replace(".", r"\.")):
        net.put_server(with_subs(net, *before.subinterfaces, wrong))
    assert net.servers["exit"] == before


def test_what_is_a_vms_in_the_vrf_is_not_its_routers(net: Network) -> None:
    for wrong, why in (
        (Subinterface("red", 9, (), vm_ip(1)), "10.1.0.101 is held by VM twin"),
        (Subinterface("red", 9, (), PREFIX[1]), "10.8.0.1 is in 10.8.0.0/28, which is routed to VM twin"),
        (Subinterface("red", 9, (PREFIX,)), "10.8.0.0/28 is routed to VM twin"),
    ):
        with pytest.raises(ModelError, match=why):
            net.put_server(with_subs(net, wrong))
    net.put_server(with_subs(net, Subinterface("green", 9, (PREFIX,), vm_ip(1))))


def test_only_a_router_at_a_port_that_is_known_has_one(net: Network) -> None:
    own = net.servers["exit"].subinterfaces
    with pytest.raises(ModelError, match="say at which port it is"):
        net.put_server(with_subs(net, *own, given_at=None))
    with pytest.raises(ModelError, match="only a router, which runs no VMs"):
        net.put_server(with_subs(net, *own, services=frozenset()))
    net.put_server(with_subs(net))
    with pytest.raises(ModelError, match="only a router"):
        net.put_server(replace(net.servers["server1"], subinterfaces=own))


def test_what_a_router_has_in_a_vrf_is_nobody_elses_there(net: Network) -> None:
    with pytest.raises(ModelError, match=f"{ROUTER_ADDRESS} is the address of server exit"):
        net.put_server(
            replace(net.servers["router"], subinterfaces=(Subinterface("red", 9, (), ROUTER_ADDRESS),))
        )
    held = replace(net.held_by("twin")[0], ip=ROUTER_ADDRESS)
    with pytest.raises(ModelError, match=f"{ROUTER_ADDRESS} is the address of server exit"):
        net.assign(held)
    part = IPv4Network("10.7.0.0/24")
    net.put_server(with_subs(net, Subinterface("red", 100, (part,), IPv4Address("10.6.0.1"))))
    with pytest.raises(ModelError, match=r"10\.7\.0\.0/24 is reached through server exit"):
        net.add_subnet(Subnet("x", part, part[1], vnet="rednet"))
    vm = net.vms["twin"]
    for wrong, why in (("10.7.0.0/23", "10.7.0.0/24 is reached through"), ("10.6.0.0/24", "10.6.0.1 is the")):
        with pytest.raises(ModelError, match=why):
            net.put_vm(replace(vm, nics=(replace(vm.nic, prefixes=(ip_network(wrong, strict=False),)),)))
    net.put_vm(replace(vm, nics=(replace(vm.nic, prefixes=(IPv4Network("10.7.0.0/28"),)),)))


def test_a_prefix_is_routed_in_each_vrf_by_itself(net: Network) -> None:
    add_vm(net, "other", 2, [Held(12, "other", "green", vm_ip(1), prefix=PREFIX)])
    assert [net.routed_to(PREFIX[3], vrf) for vrf in ("red", "green", "default")] == [
        (PREFIX, "twin"),
        (PREFIX, "other"),
        None,
    ]
    with pytest.raises(ModelError, match=r"10\.8\.0\.0/28 is routed to VM twin"):
        add_vm(net, "third", 2, [Held(13, "third", "red", vm_ip(2), prefix=PREFIX)])


def test_a_vrf_with_a_router_stays(net: Network) -> None:
    net.put_server(with_subs(net, Subinterface("green", 9, ALL)))
    for vnet in ("greennet", "greennet-2"):
        for subnet in [s.id for s in net.subnets.values() if s.vnet == vnet]:
            net.remove_subnet(subnet)
        net.remove_vnet(vnet)
    with pytest.raises(ModelError, match="VRF green is in use by router exit"):
        net.remove_vrf("green")
