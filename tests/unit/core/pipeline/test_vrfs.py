"""Two tenants with the same addresses on the same servers: nothing crosses, and what that costs."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from retinue.core.model import DEFAULT_VRF, NIC, VM, Network, VMPort, Vrf
from retinue.core.model.network import Owner
from retinue.core.packets import arp_request
from retinue.core.pipeline.compiler import Compiler, contribution
from retinue.core.pipeline.cookies import Reason, reason_of
from retinue.core.pipeline.entry import (
    Action,
    Field,
    Flow,
    Output,
    PopVlan,
    PortNo,
    PushVlan,
    SetField,
    match,
)
from retinue.core.pipeline.priorities import VRF_BAND
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.vrfs import at_edge
from support.fabric.ipv6 import vm_ip6
from support.fabric.networks import add_vm as add_default_vm
from support.fabric.networks import fabric, vm_ip, vm_mac, vm_port
from support.fabric.tenants import Held, Tenants, add_tenants, add_vm
from support.fabric.world import FabricWorld


def held(number: int, vm: str, vrf: str, of: int) -> Held:
    return Held(number, vm, vrf, vm_ip(of), vm_ip6(of))


@pytest.fixture
def tenants() -> Tenants:
    """vm1 and vm2 in the default VRF; red and green have the same addresses at the same servers; `both` has a
    NIC in red and one in the default VRF."""
    net = fabric()
    add_tenants(net, ipv6=True)
    nics = {
        "vm1": (1, [held(1, "vm1", DEFAULT_VRF, 1)]),
        "vm2": (2, [held(2, "vm2", DEFAULT_VRF, 2)]),
        "red1": (1, [held(11, "red1", "red", 1)]),
        "red2": (2, [held(12, "red2", "red", 2)]),
        "green1": (1, [held(13, "green1", "green", 1)]),
        "both": (1, [held(14, "both", "red", 3), held(15, "both", DEFAULT_VRF, 3)]),
        "beside": (3, [Held(16, "beside", "red", IPv4Address("10.9.0.7"))]),
        "near": (3, [Held(17, "near", "red", IPv4Address("10.9.0.8"))]),
    }
    for vm, (at, held_by) in nics.items():
        add_vm(net, vm, at, held_by)
    places = {vm: server for vm, (server, _) in nics.items()}
    every = [nic for _, held_by in nics.values() for nic in held_by]
    return Tenants(FabricWorld(net), every, places, {vm: {server} for vm, server in places.items()})


def test_nothing_crosses(tenants: Tenants) -> None:
    tenants.check()


def test_a_copy_and_what_is_forwarded_keep_their_vrf(tenants: Tenants) -> None:
    """While it is paused a tenant's VM is found at two servers, and so is nobody else."""
    world, net = tenants.world, tenants.world.net
    vm = net.vms["both"]
    for number, nic in enumerate(vm.nics):
        net.set_vm_port(nic.port_id, "edge3", VMPort(vm_port(14 + number)))
    away = replace(vm, server="server3", also=frozenset({"server1"}))
    world.apply(net.put_vm(replace(away, forwarded_from="server1", copied_to="server1")))
    tenants.at["both"] = 3
    tenants.may_arrive["both"] = {1, 3}
    world.copied |= {14, 15}
    tenants.check()
    both_places = {("edge1", vm_port(14)), ("edge3", vm_port(14))}
    from_red = [one for one in tenants.nics if one.vm in ("red1", "red2", "beside")]
    for sender in from_red:
        for delivery in tenants.reach(sender, tenants.nics[5]):
            assert {(switch, port) for switch, port, _ in delivery.arrivals} == both_places
    world.apply(net.put_vm(replace(vm, server="server3", forwarded_from="server1")))
    world.copied.clear()
    tenants.may_arrive["both"] = {3}
    tenants.check()


UP = 9
TAG7 = (PushVlan(), SetField(Field.VLAN_VID, 0x1007))


@pytest.mark.parametrize(
    ("table", "outputs", "actions"),
    [
        (Table.FORWARD, [3], [PopVlan(), Output(3)]),
        (Table.FORWARD, [UP], [Output(UP)]),
        (Table.FORWARD, [3, 4], [PopVlan(), Output(3), Output(4)]),
        (Table.FORWARD, [3, UP], [PopVlan(), Output(3), *TAG7, Output(UP)]),
        (Table.FORWARD, [UP, 3], [Output(UP), PopVlan(), Output(3)]),
        (Table.FORWARD, [3, UP, 4], [PopVlan(), Output(3), *TAG7, Output(UP), PopVlan(), Output(4)]),
        (Table.DELIVER, [PortNo.IN_PORT, 3], [Output(PortNo.IN_PORT), PopVlan(), Output(3)]),
        (Table.DELIVER, [UP], [PopVlan(), Output(UP)]),
    ],
)
def test_a_frame_has_its_tag_where_it_goes_up_and_nowhere_else(
    table: Table, outputs: list[int], actions: list[Action]
) -> None:
    entry = Flow(table, 5, match(), tuple(Output(port) for port in outputs))
    (led,) = at_edge([entry], 7, UP)
    assert list(led.actions) == actions
    assert (led.priority, led.match) == (VRF_BAND + 5, ((Field.VLAN_VID, 0x1007, None),))
    assert list(at_edge([entry], 0, UP)) == [entry], "in the default VRF nothing has one"


def test_entries_a_tenants_vm_costs_are_those_of_any_vm() -> None:
    def cost(net: Network, vm: str) -> dict[str, int]:
        return {switch: len(entries) for switch, entries in contribution(net, Owner("vm", vm)).items()}

    net = fabric()
    add_tenants(net)
    add_default_vm(net, 1, 1)
    add_vm(net, "twin", 1, [Held(11, "twin", "red", vm_ip(1))])
    assert cost(net, "twin") == cost(net, "vm1")


def test_a_vrf_costs_a_few_entries_a_switch_and_the_next_one_none() -> None:
    net = fabric()

    def size() -> dict[str, int]:
        compiler = Compiler(net)
        compiler.update(net.everything())
        return {switch: len(program) for switch, program in compiler.programs.items()}

    alone = size()
    net.put_vrf(Vrf("red", 7))
    first = size()
    more = {switch: first[switch] - alone[switch] for switch in alone}
    assert (more["edge1"], more["spine1"], more["leaf2"]) == (11, 3, 11)
    net.put_vrf(Vrf("green", 8))
    assert size() == first


def test_a_nic_without_an_address_is_in_its_vrf_already() -> None:
    """Its ARP probe comes to the controller without a tag, and says by the port whose it is."""
    net = fabric()
    add_tenants(net)
    net.put_vm(VM("new", (NIC(vm_mac(11), "new", vnet="rednet"),), "server1"))
    net.set_vm_port("new", "edge1", VMPort(vm_port(11)))
    world = FabricWorld(net)
    [delivery] = world.send(11, 1, arp_request(vm_mac(11), IPv4Address(0), vm_ip(1)))
    [(switch, cookie, port, frame)] = delivery.to_controller
    assert reason_of(cookie) is Reason.VM_ARP
    assert frame == arp_request(vm_mac(11), IPv4Address(0), vm_ip(1))
    assert net.vrf_at(switch, port) == "red"
