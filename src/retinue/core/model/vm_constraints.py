"""What a network rejects of VMs, their NICs, and the addresses that these hold or may take.

Each function looks at one thing to be added, changes nothing, and raises ModelError when it must not be
added.
"""

from collections.abc import Collection
from ipaddress import IPv4Network, IPv6Network

from retinue.core.model.addresses import IP, Mac, ModelError, Prefix
from retinue.core.model.anycast import check_anycast
from retinue.core.model.binding import Assignment, BindingKind
from retinue.core.model.entities import VM
from retinue.core.model.link_local import LINK_LOCAL
from retinue.core.model.nic import NIC, Allowed
from retinue.core.model.ownership import (
    can_be_a_hosts,
    can_be_a_machines,
    not_a_gateways,
    not_a_servers,
)
from retinue.core.model.routed_prefixes import check_delegated, check_not_routed, check_prefixes
from retinue.core.model.trunks import check_trunks
from retinue.core.model.view import NetworkView
from retinue.core.model.vrfs import DEFAULT_VRF, in_vrf


def check_vm(net: NetworkView, vm: VM, without: Collection[Assignment] = ()) -> None:
    """`without` these of its addresses, which are about to be taken back."""
    what = f"VM {vm.id}"
    for nic in vm.nics:
        _check_nic(net, vm, nic)
    static = [in_vrf(net.vrf_of(nic), ip) for nic in vm.nics for ip in nic.addresses]
    if len(set(static)) < len(static):
        twice = next(key for key in static if static.count(key) > 1)
        raise ModelError(f"{what}: address {twice} is given twice")
    check_prefixes(net, vm)
    check_anycast(net, vm)
    check_trunks(net, vm)
    for location in vm.locations:
        if location not in net.servers:
            raise ModelError(f"{what}: there is no server {location}")
        if not net.servers[location].edge:
            raise ModelError(f"{what}: server {location} has no edge switch, it cannot run VMs")
    if vm.host and vm.host not in (host.id for host in net.servers[vm.server].hosts):
        raise ModelError(f"{what}: server {vm.server} has no host {vm.host}")
    if vm.copied_to and (vm.copied_to not in (vm.server, *vm.also) or not vm.also):
        raise ModelError(f"{what}: it is not open at {vm.copied_to}, and nothing can be copied there")
    if vm.forwarded_from == vm.server:
        raise ModelError(f"{what}: {vm.server} cannot forward to itself")
    for held in net.held_by(vm.id):
        if held in without:
            continue
        its = vm.nic_with(held.mac)
        if its is None:
            raise ModelError(f"{what} holds {held.ip} with MAC {held.mac}; it needs a NIC with that MAC")
        if held.vrf != net.vrf_of(its):
            raise ModelError(
                f"{what} holds {held.ip} in VRF {held.vrf}; its NIC {held.mac} cannot leave that"
            )
        _in_its_vnet(net, what, its, held.leads)


def _check_nic(net: NetworkView, vm: VM, nic: NIC) -> None:
    what = f"VM {vm.id}"
    _a_nics_mac(net, what, nic.mac)
    holder = net.vm_of_mac(nic.mac)
    if holder is not None and holder.id != vm.id:
        raise ModelError(f"{what}: MAC {nic.mac} already belongs to VM {holder.id}")
    plugged = net.vm_of_port_id(nic.port_id)
    if plugged is not None and plugged.id != vm.id:
        raise ModelError(f"{what}: the port with iface-id {nic.port_id} already belongs to VM {plugged.id}")
    if nic.vnet and nic.vnet not in net.vnets:
        raise ModelError(f"{what}: there is no vnet {nic.vnet}")
    vrf = net.vrf_of(nic)
    for address in nic.addresses:
        _a_nics_address(net, what, address, vrf)
        _in_its_vnet(net, what, nic, address)
    for one in nic.allowed:
        can_be_a_hosts(what, one.ip)
        not_a_gateways(net, what, one.ip, vrf)
        not_a_servers(net, what, one.ip, vrf)
        _in_its_vnet(net, what, nic, one.ip)
        _check_allowed(net, what, one, vrf)
        if one.mac in {other.mac for other in vm.nics}:
            raise ModelError(f"{what}: MAC {one.mac} is a NIC's own")
    if len({one.ip for one in nic.allowed}) < len(nic.allowed):
        raise ModelError(f"{what}: an address is allowed twice")


def check_pair(net: NetworkView, mac: Mac, ip: IP) -> None:
    """Whether a VM that comes, with one NIC in the default VRF, could have these. Who has them now does not
    count: it may go.
    """
    what = f"the pair of {mac} and {ip}"
    if net.subnet_of(ip) is None:
        raise ModelError(f"{what}: {ip} is in no subnet: a VM could not have it")
    _a_nics_mac(net, what, mac)
    _a_nics_address(net, what, ip, DEFAULT_VRF)
    allowed = net.allowed_to(ip)
    if allowed:
        raise ModelError(f"{what}: {ip} is allowed VM {min(allowed)}")


def _a_nics_mac(net: NetworkView, what: str, mac: Mac) -> None:
    can_be_a_machines(net, what, mac)
    place = net.place_of_mac(mac)
    if place is not None:
        raise ModelError(f"{what}: MAC {mac} belongs to server {place[0]}")
    speaking = net.speaking_as(mac)
    if speaking:
        raise ModelError(f"{what}: VM {min(speaking)} may speak as MAC {mac}")


def _a_nics_address(net: NetworkView, what: str, ip: IP, vrf: str) -> None:
    can_be_a_hosts(what, ip)
    not_a_gateways(net, what, ip, vrf)
    not_a_servers(net, what, ip, vrf)
    check_not_routed(net, what, ip, vrf)


def check_newly_allowed(net: NetworkView, vm: str, old: NIC, new: NIC) -> None:
    """An address that a NIC may take is one of a subnet: nobody would ask for another."""
    for one in new.allowed:
        if old.may_take(one.ip) is None and net.subnet_of(one.ip, net.vrf_of(new)) is None:
            raise ModelError(
                f"VM {vm}: {one.ip} is in no subnet, and cannot be allowed; add the subnet first"
            )


def _check_allowed(net: NetworkView, what: str, one: Allowed, vrf: str) -> None:
    holder = net.holder(one.ip, vrf)
    if holder is not None and holder.kind is not BindingKind.ALLOWED:
        raise ModelError(f"{what}: {one.ip} is held by VM {holder.vm}, and cannot be allowed")
    if not one.mac:
        return
    can_be_a_machines(net, what, one.mac)
    place, vm = net.place_of_mac(one.mac), net.vm_of_mac(one.mac)
    if place is not None or vm is not None:
        whose = f"server {place[0]}" if place is not None else f"VM {vm.id}" if vm is not None else ""
        raise ModelError(f"{what}: MAC {one.mac} belongs to {whose}")


def _in_its_vnet(net: NetworkView, what: str, nic: NIC, ip: IP | Prefix) -> None:
    if isinstance(ip, IPv4Network | IPv6Network):
        return  # A prefix is outside all subnets.
    subnet = net.subnet_of(ip, net.vrf_of(nic))
    if ip in LINK_LOCAL:
        return  # It is of every link.
    if nic.vnet and (subnet is None or subnet.vnet != nic.vnet):
        raise ModelError(f"{what}: {ip} is in no subnet of vnet {nic.vnet}")


def check_assignment(net: NetworkView, assignment: Assignment) -> None:
    vm = net.vms.get(assignment.vm)
    if vm is None:
        raise ModelError(f"{assignment.ip}: there is no VM {assignment.vm}")
    nic = vm.nic_with(assignment.mac)
    if nic is None:
        has = ", ".join(nic.mac for nic in vm.nics)
        raise ModelError(f"{assignment.ip}: VM {vm.id} has MAC {has}, not {assignment.mac}")
    if assignment.vrf != net.vrf_of(nic):
        raise ModelError(f"{assignment.ip}: VM {vm.id}'s NIC {nic.mac} is not in VRF {assignment.vrf}")
    other = net.assignments.get(assignment.key)
    if other is not None and other.vm != assignment.vm:
        raise ModelError(f"{assignment.ip} is held by VM {other.vm}; VM {assignment.vm} cannot have it")
    if other is not None and other.mac != assignment.mac:
        raise ModelError(
            f"{assignment.ip} is held by VM {vm.id}'s NIC {other.mac}; its {assignment.mac} cannot have it"
        )
    if assignment.prefix is not None:
        check_delegated(net, assignment)
        return
    _in_its_vnet(net, f"VM {assignment.vm}", nic, assignment.ip)
    if assignment.kind is BindingKind.ALLOWED and not nic.may_take(assignment.ip):
        raise ModelError(f"VM {vm.id} is not allowed {assignment.ip}")
    allowed = net.allowed_to(assignment.ip, assignment.vrf)
    if assignment.kind is not BindingKind.ALLOWED and allowed:
        raise ModelError(f"{assignment.ip} is allowed VM {min(allowed)}; VM {vm.id} cannot be given it")
    not_a_gateways(net, f"VM {assignment.vm}", assignment.ip, assignment.vrf)
    not_a_servers(net, f"VM {assignment.vm}", assignment.ip, assignment.vrf)
    check_not_routed(net, f"VM {assignment.vm}", assignment.ip, assignment.vrf)


def check_taking(net: NetworkView, assignment: Assignment) -> None:
    """A NIC takes an address that it is allowed."""
    vm = net.vms.get(assignment.vm)
    nic = None if vm is None else vm.nic_with(assignment.mac)
    if nic is None or not nic.may_take(assignment.ip) or assignment.kind is not BindingKind.ALLOWED:
        raise ModelError(f"VM {assignment.vm} is not allowed {assignment.ip}")
    what = f"VM {assignment.vm}"
    _in_its_vnet(net, what, nic, assignment.ip)
    not_a_gateways(net, what, assignment.ip, assignment.vrf)
    not_a_servers(net, what, assignment.ip, assignment.vrf)
