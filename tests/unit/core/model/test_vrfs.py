"""Routing domains: what may be twice, what is rejected, and that an address is found in its own."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from retinue.core.model import (
    DEFAULT_VRF,
    NIC,
    VM,
    Allowed,
    BindingKind,
    ModelError,
    Network,
    Origin,
    Subnet,
    Vnet,
    Vrf,
    in_vrf,
)
from retinue.core.model.vrfs import free_tag
from support.fabric.networks import GATEWAY, assignment, fabric, vm_ip, vm_mac
from support.fabric.networks import add_vm as add_default_vm
from support.fabric.tenants import Held, add_tenants, add_vm

RED1 = Held(11, "twin", "red", vm_ip(1))


@pytest.fixture
def net() -> Network:
    net = fabric()
    add_tenants(net)
    add_default_vm(net, 1, 1)
    return net


def test_an_address_is_two_vms_at_once_and_each_has_its_row(net: Network) -> None:
    add_vm(net, "twin", 1, [RED1])
    rows = {(row.ip, row.vrf, row.vm, row.mac) for row in net.bindings()}
    assert rows == {(vm_ip(1), DEFAULT_VRF, "vm1", vm_mac(1)), (vm_ip(1), "red", "twin", vm_mac(11))}
    for vrf, vm in ((DEFAULT_VRF, "vm1"), ("red", "twin")):
        holder = net.holder(vm_ip(1), vrf)
        assert holder is not None
        assert holder.vm == vm
    assert net.holder(vm_ip(1), "green") is None


def test_a_vm_has_the_same_address_in_each_of_its_vrfs(net: Network) -> None:
    both = [RED1, replace(RED1, number=12, vrf="green")]
    vm = add_vm(net, "twin", 1, both)
    assert {held.key for held in net.held_by("twin")} == {in_vrf("red", vm_ip(1)), in_vrf("green", vm_ip(1))}
    net.unassign(in_vrf("red", vm_ip(1)))
    assert [held.vrf for held in net.held_by("twin")] == ["green"]
    static = replace(vm, nics=tuple(replace(nic, addresses=(vm_ip(1),)) for nic in vm.nics))
    net.put_vm(static)
    in_one = tuple(replace(nic, vnet="rednet") for nic in static.nics)
    with pytest.raises(ModelError, match=r"address 10\.1\.0\.101 is given twice"):
        replace(static, nics=in_one)


def test_the_same_vrf_by_two_names_is_one(net: Network) -> None:
    """A NIC in no vnet and one in a vnet of the default VRF have their addresses in one."""
    net.put_vnet(Vnet("more"))
    net.add_subnet(Subnet("more", IPv4Network("10.8.0.0/24"), IPv4Address("10.8.0.1"), vnet="more"))
    ip = IPv4Address("10.8.0.7")
    nics = (NIC(vm_mac(7), "vm7", (ip,)), NIC(vm_mac(8), "vm7-2", (ip,), vnet="more", slot=2))
    with pytest.raises(ModelError, match=r"VM vm7: address 10\.8\.0\.7 is given twice"):
        net.put_vm(VM("vm7", nics, "server1"))


def test_leases_of_one_address_end_each_at_its_time(net: Network) -> None:
    add_vm(net, "twin", 1, [RED1])
    held = net.holder(vm_ip(1), "red")
    assert held is not None
    net.assign(replace(held, lease_end=5.0, client_id=b"me"))
    net.assign(replace(assignment(1), lease_end=7.0))
    assert [lease.vm for lease in net.leases_ended(6.0)] == ["twin"]
    net.unassign(held.key)
    assert net.vms_known_as(b"me") == frozenset()
    assert [lease.vm for lease in net.leases_ended(8.0)] == ["vm1"]


def test_what_is_allowed_is_allowed_in_its_vrf(net: Network) -> None:
    shared = Allowed(IPv4Address("10.1.0.200"))
    nic = NIC(vm_mac(11), "twin", vnet="rednet", allowed=(shared,))
    net.put_vm(VM("twin", (nic,), "server1"))
    assert net.allowed_to(shared.ip, "red") == {"twin"}
    assert net.allowed_to(shared.ip) == frozenset()
    net.assign(replace(assignment(1), ip=shared.ip))
    taken = replace(assignment(11, None), ip=shared.ip, vm="twin", kind=BindingKind.ALLOWED, vrf="red")
    net.take(taken)
    assert net.assignments[in_vrf("red", shared.ip)] == taken
    net.remove_vm("twin")
    assert net.allowed_to(shared.ip, "red") == frozenset()


@pytest.mark.parametrize(
    ("vrf", "said"),
    [
        (Vrf("blue", 7), "tag 7 is VRF red's"),
        (Vrf("red", 8), "VRF red has tag 7"),
    ],
)
def test_a_tag_is_one_vrfs(net: Network, vrf: Vrf, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        net.put_vrf(vrf)


@pytest.mark.parametrize(("id", "tag"), [("red", 0), ("red", 4095), (DEFAULT_VRF, 1)])
def test_a_tag_is_a_vlan_and_the_default_vrf_has_none(id: str, tag: int) -> None:
    with pytest.raises(ModelError, match="tag"):
        Vrf(id, tag)


@pytest.mark.parametrize(("id", "tag"), [("red", 1), ("red", 4094), (DEFAULT_VRF, 0)])
def test_any_vlan_will_do_as_a_tag(id: str, tag: int) -> None:
    assert Vrf(id, tag).tag == tag


def test_an_address_of_a_vrf_is_shown_with_it_and_one_of_the_default_vrf_is_itself() -> None:
    assert str(in_vrf("red", vm_ip(1))) == f"{vm_ip(1)}%red"
    assert in_vrf(DEFAULT_VRF, vm_ip(1)) == vm_ip(1)


def test_a_free_tag_is_found() -> None:
    assert free_tag({0, 1, 3}) == 2
    assert free_tag(()) == 1
    assert free_tag(range(4094)) == 4094
    with pytest.raises(ModelError, match="every tag"):
        free_tag(range(4095))


def test_inside_a_vrf_all_is_as_ever(net: Network) -> None:
    add_vm(net, "twin", 1, [RED1])
    for subnet, said in (
        (Subnet("x", IPv4Network("10.1.0.0/25"), vm_ip(2), vnet="rednet"), "subnets redblue and x overlap"),
        (Subnet("redblue", IPv4Network("10.1.0.0/24"), vm_ip(1), vnet="rednet"), "is held by VM twin"),
        (
            Subnet("redblue", IPv4Network("10.1.0.0/26"), IPv4Address("10.1.0.1"), vnet="rednet"),
            "VM twin has",
        ),
        (Subnet("redblue", IPv4Network("10.1.0.0/24"), GATEWAY, vnet="greennet"), "cannot leave vnet rednet"),
    ):
        with pytest.raises(ModelError, match=said):
            net.add_subnet(subnet)
    with pytest.raises(ModelError, match="subnet redblue is in use: VM twin"):
        net.remove_subnet("redblue")
    with pytest.raises(ModelError, match="is held by VM twin"):
        add_vm(net, "third", 1, [replace(RED1, number=13, vm="third")])
    with pytest.raises(ModelError, match="is the gateway of subnet redblue"):
        add_vm(net, "third", 1, [replace(RED1, number=13, vm="third", ip=GATEWAY)])


def test_servers_are_in_the_default_vrf_alone(net: Network) -> None:
    """What a server has there, a tenant may have as well."""
    server = net.servers["dhcp"].address
    assert isinstance(server, IPv4Address)
    add_vm(net, "twin", 1, [replace(RED1, ip=server)])
    assert net.server_of_address(server, "red") is None
    with pytest.raises(ModelError, match="is the address of server dhcp"):
        net.assign(replace(assignment(1), ip=server))


def test_an_address_is_in_the_vrf_of_its_nic(net: Network) -> None:
    vm = add_vm(net, "twin", 1, [RED1])
    for vrf in (DEFAULT_VRF, "green"):
        with pytest.raises(ModelError, match=f"is not in VRF {vrf}"):
            net.assign(replace(assignment(11), ip=vm_ip(9), vm="twin", vrf=vrf))
    static = net.static("twin", vm.nic, vm_ip(9))
    assert (static.vrf, static.origin) == ("red", Origin.MANAGER)
    with pytest.raises(ModelError, match="is in no subnet of vnet"):
        net.change_nic("twin", vm.nic, replace(vm.nic, vnet="greennet", addresses=(IPv4Address("10.7.0.1"),)))
    with pytest.raises(ModelError, match="is not in VRF red"):
        net.change_nic("twin", vm.nic, replace(vm.nic, vnet="greennet"))
    assert net.vms["twin"] == vm


def test_what_is_used_keeps_its_vrf_and_stays(net: Network) -> None:
    with pytest.raises(ModelError, match="vnet rednet cannot leave VRF red: it is in use by subnet redblue"):
        net.put_vnet(Vnet("rednet", vrf="green"))
    with pytest.raises(ModelError, match="there is no VRF grey"):
        net.put_vnet(Vnet("new", vrf="grey"))
    with pytest.raises(ModelError, match="vnet default is in VRF default"):
        net.put_vnet(Vnet("default", vrf="red"))
    with pytest.raises(ModelError, match="VRF red is in use by vnet rednet"):
        net.remove_vrf("red")
    with pytest.raises(ModelError, match="VRF default stays"):
        net.remove_vrf(DEFAULT_VRF)
    net.configured = frozenset({"vrf grey"})
    net.put_vrf(Vrf("grey", 9))
    with pytest.raises(ModelError, match="stands in the configuration file"):
        net.remove_vrf("grey")


def test_a_vm_takes_nothing_that_it_holds_into_another_vrf(net: Network) -> None:
    vm = net.vms["vm1"]
    with pytest.raises(ModelError, match=r"holds 10\.1\.0\.101 in VRF default"):
        net.put_vm(replace(vm, nics=(replace(vm.nic, vnet="rednet"),)))
    assert net.vms["vm1"] == vm


def test_two_nics_may_speak_as_one_virtual_router(net: Network) -> None:
    """With one VRID in each of two VRFs a VM has its MAC twice; it changes and goes all the same."""
    may = Allowed(IPv4Address("10.1.0.200"), "00:00:5e:00:01:07")
    vm = add_vm(net, "twin", 1, [RED1, replace(RED1, number=12, vrf="green")])
    for nic in vm.nics:
        net.change_nic("twin", nic, replace(nic, allowed=(may,)))
    first = net.vms["twin"].nic
    net.change_nic("twin", first, replace(first, rate=7))
    assert net.speaking_as(may.mac) == {"twin"}
    net.remove_vm("twin")
    assert not net.speaking_as(may.mac)
    assert not net.allowed_to(may.ip, "green")
