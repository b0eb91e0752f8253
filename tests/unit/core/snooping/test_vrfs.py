"""DHCP of tenants with the same addresses: who is asked, what a lease is of, how a relay tells the VRF."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from retinue.core.model import DEFAULT_VRF, NIC, VM, Allowed, Network, VMPort
from retinue.core.packets import DHCP, ack, discover, offer, release, request
from retinue.core.snooping import (
    Bind,
    ClientMessage,
    Effect,
    Rejected,
    Release,
    ServerMessage,
    Snooper,
    ToServers,
    ToVM,
    relay,
)
from retinue.core.snooping.own_addresses import OwnAddresses
from support.fabric.networks import GATEWAY, fabric, vm_ip, vm_mac, vm_port
from support.fabric.networks import add_vm as add_default_vm
from support.fabric.tenants import Held, add_tenants, add_vm

SERVER = IPv4Address("10.1.0.2")
NOBODY, EVERYBODY = IPv4Address(0), IPv4Address("255.255.255.255")
RED, OWN = 11, 12
"""The NICs of a tenant's VM, and of one that is its DHCP server."""


@pytest.fixture
def net() -> Network:
    """vm1 holds an address; in the VRF red `twin` has asked for none yet."""
    net = fabric()
    add_tenants(net)
    add_default_vm(net, 1, 1)
    net.put_vm(VM("twin", (NIC(vm_mac(RED), "twin", vnet="rednet"),), "server1"))
    net.set_vm_port("twin", "edge1", VMPort(vm_port(RED)))
    net.add_subnet(replace(net.subnets["redblue"], dhcp=(SERVER,)))
    return net


def says(snooper: Snooper, dhcp: DHCP, nic: int = RED, src: IPv4Address = NOBODY) -> list[Effect]:
    message = ClientMessage("edge1", vm_port(nic), vm_mac(nic), dhcp, src, EVERYBODY)
    return snooper.client(message, 1000.0)


def grants(snooper: Snooper, ip: IPv4Address, server: str = "dhcp", nic: int = RED) -> list[Effect]:
    asked = discover(vm_mac(nic), 7)
    says(snooper, asked, nic)
    snooper.server(ServerMessage(server, offer(asked, ip, SERVER, 600), SERVER), 1000.0)
    wanted = request(vm_mac(nic), 7, ip, SERVER)
    says(snooper, wanted, nic)
    return snooper.server(ServerMessage(server, ack(wanted, ip, SERVER, 600), SERVER), 1000.0)


def test_a_lease_is_of_the_vrf_of_its_nic_whoever_has_the_address_elsewhere(net: Network) -> None:
    snooper = Snooper(net)
    [bind, to_vm] = grants(snooper, vm_ip(1))
    assert isinstance(bind, Bind)
    assert (bind.assignment.vm, bind.assignment.vrf, bind.renewed) == ("twin", "red", False)
    assert to_vm == ToVM("twin")
    net.assign(bind.assignment)
    given = release(vm_ip(1), vm_mac(RED), 9, SERVER)
    [ended, told] = says(snooper, given, src=vm_ip(1))
    assert ended == Release(bind.assignment, "released by the VM"), "its own, and not vm1's"
    assert told == ToServers("twin", vm_ip(1))


def test_to_a_server_of_the_default_vrf_goes_the_relay_and_names_the_vrf(net: Network) -> None:
    """The server stands in a prefix that the tenant has, too, and is not reached straight for it."""
    [way] = relay.ways(net, "twin", discover(vm_mac(RED), 7), None, {})
    gateway = GATEWAY
    assert (way.server.id, way.giaddr, way.vrf) == ("dhcp", gateway, "red")
    [straight] = relay.ways(net, "vm1", discover(vm_mac(1), 7), None, {})
    assert straight.giaddr is None
    relayed = relay.toward_server(discover(vm_mac(RED), 7), gateway, "edge1:20", "twin", way.vrf)
    assert relayed is not None
    assert relayed.relay_agent is not None
    assert relayed.relay_agent.endswith(b"\x97\x04\x00red\x98\x00"), "suboptions 151 and 152 (RFC 6607)"
    plain = relay.toward_server(discover(vm_mac(1), 7), gateway, "edge1:20", "vm1")
    assert plain is not None
    assert plain.relay_agent == b"\x01\x08edge1:20\x02\x03vm1"


def test_a_vrf_whose_subnets_name_no_server_asks_nobody(net: Network) -> None:
    net.add_subnet(replace(net.subnets["redblue"], dhcp=()))
    assert relay.ways(net, "twin", discover(vm_mac(RED), 7), None, {}) == []


def test_a_vm_that_is_a_dhcp_server_serves_its_own_vrf(net: Network) -> None:
    """Its address is the default VRF's DHCP server's, too; nobody is taken for the other."""
    net.add_subnet(replace(net.subnets["redblue"], dhcp=()))
    own = Held(OWN, "serves", "red", SERVER)
    vm = add_vm(net, "serves", 1, [own])
    net.put_vm(replace(vm, nics=(replace(vm.nic, trusted=True),)))
    [way] = relay.ways(net, "twin", discover(vm_mac(RED), 7), None, {})
    assert (way.server.id, way.giaddr) == ("VM serves", None)
    [others] = relay.ways(net, "vm1", discover(vm_mac(1), 7), None, {})
    assert others.server.id == "dhcp"
    snooper = Snooper(net)
    [bind, _] = grants(snooper, vm_ip(1), server="VM serves")
    assert isinstance(bind, Bind)
    [rejected] = grants(snooper, vm_ip(5), server="VM serves", nic=1)
    assert rejected == Rejected("DHCP server VM serves of VRF red speaks to a NIC of another VRF")


def test_own_addresses_are_of_the_vrf_of_their_nic() -> None:
    """A tenant makes one that another VM has, by the prefix and on the link; and no second of its VRF."""
    net = fabric()
    add_tenants(net, ipv6=True)
    net.add_subnet(replace(net.subnets["blue6"], slaac=True))
    for number, vrf in ((1, DEFAULT_VRF), (RED, "red"), (OWN, "red")):
        add_vm(net, f"vm{number}", 1, [Held(number, f"vm{number}", vrf, vm_ip(number))])
    for target in (IPv6Address("fd00:1::abcd"), IPv6Address("fe80::abcd")):
        for number in (1, RED, OWN):
            vm = net.vms[f"vm{number}"]
            claim = OwnAddresses().claim(net, vm, vm.nic, target, 1000.0)
            if claim is not None:
                net.assign(claim.assignment)
        holders = {(held.vrf, held.vm) for held in net.assignments.values() if held.ip == target}
        assert holders == {(DEFAULT_VRF, "vm1"), ("red", f"vm{RED}")}


def test_clients_of_two_vrfs_may_have_one_name(net: Network) -> None:
    """Nobody is a spoofer for what somebody calls itself in a VRF that it cannot see."""
    name = (61, b"\0web1")
    held = net.assignments[vm_ip(1)]
    net.assign(replace(held, client_id=name[1]))
    assert isinstance(says(Snooper(net), discover(vm_mac(RED), 7).with_option(*name))[-1], ToServers)
    add_default_vm(net, 2, 1)
    [fault] = says(Snooper(net), discover(vm_mac(2), 7).with_option(*name), 2)
    assert isinstance(fault, Rejected)
    assert fault.spoofed


def test_what_is_allowed_another_is_no_servers_to_give(net: Network) -> None:
    """It would be refused as it is bound, when what the client had is gone already."""
    snooper, wanted = Snooper(net), vm_ip(9)
    vm = net.vms["vm1"]
    net.change_nic(vm.id, vm.nic, replace(vm.nic, allowed=(Allowed(wanted),)))
    add_default_vm(net, 2, 1)
    effects = grants(snooper, wanted, nic=2)
    assert any(isinstance(one, Rejected) and "vm1, which may take it" in one.reason for one in effects)
    assert not any(isinstance(one, Bind | Release) for one in effects)
