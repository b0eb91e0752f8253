"""What a network rejects, so that no two of its things can ever want the same flow entry.

One address has one owner in its VRF: a gateway, a server or a VM; so has a prefix, and in all of them a MAC
address. Each function looks at one thing to be added, changes nothing, and raises ModelError when it must not
be added.
"""

from collections.abc import Collection
from ipaddress import IPv4Network, IPv6Network

from retinue.core.limits import MOST_SUBNETS, MOST_VRFS
from retinue.core.model.addresses import IP, Mac, ModelError, is_multicast
from retinue.core.model.binding import Assignment, BindingKind
from retinue.core.model.entities import DEFAULT_VNET, VM, Role, Server, Service, Subnet, Vnet
from retinue.core.model.link_local import LINK_LOCAL
from retinue.core.model.nic import NIC, Allowed
from retinue.core.model.routed_prefixes import (
    NO_HOSTS,
    UNROUTABLE4,
    check_not_routed,
    check_prefixes,
    check_server_beside,
    check_subnet_beside,
    is_part,
)
from retinue.core.model.view import NetworkView
from retinue.core.model.vrfs import DEFAULT_VRF, Vrf, in_vrf


def check_vrf(net: NetworkView, vrf: Vrf) -> None:
    known = net.vrfs.get(vrf.id)
    if known is not None and known.tag != vrf.tag:
        raise ModelError(f"VRF {vrf.id} has tag {known.tag}; to give it another, remove it and add it")
    for other in net.vrfs.values():
        if other.tag == vrf.tag and other.id != vrf.id:
            raise ModelError(f"VRF {vrf.id}: tag {vrf.tag} is VRF {other.id}'s")
    if known is None and len(net.vrfs) >= MOST_VRFS:
        raise ModelError(f"VRF {vrf.id}: there are {MOST_VRFS} VRFs already")


def check_vrf_removal(net: NetworkView, vrf: str) -> None:
    if vrf == DEFAULT_VRF:
        raise ModelError(f"VRF {vrf} stays: it has the vnets for which no other is named, and the outside")
    _not_configured(net, f"vrf {vrf}")
    vnets = sorted(f"vnet {vnet.id}" for vnet in net.vnets.values() if vnet.vrf == vrf)
    if vnets:
        raise ModelError(f"VRF {vrf} is in use by {_some(vnets)}")


def check_vnet(net: NetworkView, vnet: Vnet) -> None:
    if vnet.vrf not in net.vrfs:
        raise ModelError(f"vnet {vnet.id}: there is no VRF {vnet.vrf}")
    if vnet.id == DEFAULT_VNET.id and vnet.vrf != DEFAULT_VRF:
        raise ModelError(f"vnet {vnet.id} is in VRF {DEFAULT_VRF}, as servers are; add another vnet")
    known = net.vnets.get(vnet.id)
    if known is not None and known.vrf != vnet.vrf:
        users = _in_vnet(net, vnet.id)
        if users:
            raise ModelError(f"vnet {vnet.id} cannot leave VRF {known.vrf}: it is in use by {_some(users)}")
    for other in net.vnets.values():
        if vnet.vlan and other.vlan == vnet.vlan and other.id != vnet.id:
            raise ModelError(f"vnet {vnet.id}: VLAN {vnet.vlan} is vnet {other.id}'s")
    if vnet.id not in net.vnets and len(net.vnets) >= MOST_SUBNETS:
        raise ModelError(f"vnet {vnet.id}: there are {MOST_SUBNETS} vnets already")


def check_vnet_removal(net: NetworkView, vnet: str) -> None:
    if vnet == DEFAULT_VNET.id:
        raise ModelError(f"vnet {vnet} stays: it has the subnets for which no other is named")
    _not_configured(net, f"vnet {vnet}")
    users = _in_vnet(net, vnet)
    if users:
        raise ModelError(f"vnet {vnet} is in use by {_some(users)}")


def _in_vnet(net: NetworkView, vnet: str) -> list[str]:
    """Its subnets, and the VMs with a NIC in it, in words."""
    subnets = sorted(f"subnet {s.id}" for s in net.subnets.values() if s.vnet == vnet)
    vms = sorted(f"VM {vm.id}" for vm in net.vms.values() if any(nic.vnet == vnet for nic in vm.nics))
    return [*subnets, *vms]


def check_subnet_removal(net: NetworkView, id: str) -> None:
    _not_configured(net, f"subnet {id}")
    subnet = net.subnets.get(id)
    users = [] if subnet is None else _users(net, subnet.prefix, net.vrf_of_vnet(subnet.vnet))
    if users:
        raise ModelError(f"subnet {id} is in use: {_some(users)}")


def _not_configured(net: NetworkView, what: str) -> None:
    if what in net.configured:
        raise ModelError(
            f"{what} stands in the configuration file; remove it there, and restart the controller"
        )


def _users(net: NetworkView, prefix: IPv4Network | IPv6Network, vrf: str) -> list[str]:
    """Who has an address inside, in words."""
    nics = [(vm, nic) for vm in net.vms.values() for nic in vm.nics if net.vrf_of(nic) == vrf]
    given = {ip: f"VM {vm.id}" for vm, nic in nics for ip in nic.addresses}
    given |= {one.ip: f"VM {vm.id}" for vm, nic in nics for one in nic.allowed}
    held = {a.ip: f"VM {a.vm}" for a in net.assignments.values() if a.vrf == vrf}
    servers = net.servers.values() if vrf == DEFAULT_VRF else ()
    own = {s.address: f"server {s.id}" for s in servers if s.address is not None}
    return [f"{who} has {ip}" for ip, who in {**given, **held, **own}.items() if ip in prefix]


def _bound_to(net: NetworkView, subnet: Subnet) -> list[str]:
    """VMs with a NIC of the subnet's vnet and an address of the subnet, in words."""
    users = [(a.vm, a.ip, a.mac) for a in net.assignments.values() if a.ip in subnet.prefix]
    found = []
    for id, ip, mac in users:
        nic = net.vms[id].nic_with(mac)
        if nic is not None and nic.vnet == subnet.vnet:
            found.append(f"VM {id} has {ip} in it")
    return found


def _some(things: list[str]) -> str:
    """The first few."""
    more = len(things) - 3
    return ", ".join(things[:3]) + (f" and {more} more" if more > 0 else "")


def check_subnet(net: NetworkView, subnet: Subnet) -> None:
    if subnet.vnet not in net.vnets:
        raise ModelError(f"subnet {subnet.id}: there is no vnet {subnet.vnet}")
    if subnet.id not in net.subnets and len(net.subnets) >= MOST_SUBNETS:
        raise ModelError(f"subnet {subnet.id}: there are {MOST_SUBNETS} subnets already")
    known, vrf = net.subnets.get(subnet.id), net.vrf_of_vnet(subnet.vnet)
    if known is not None and known.vnet != subnet.vnet:
        was_in = net.vrf_of_vnet(known.vnet)
        bound = _bound_to(net, known) if was_in == vrf else _users(net, known.prefix, was_in)
        if bound:
            raise ModelError(f"subnet {subnet.id} cannot leave vnet {known.vnet}: {_some(bound)}")
    if known is not None and known.prefix != subnet.prefix:
        left_out = sorted(set(_users(net, known.prefix, vrf)) - set(_users(net, subnet.prefix, vrf)))
        if left_out:
            raise ModelError(f"subnet {subnet.id} cannot become {subnet.prefix}: {_some(left_out)}")
    for other in net.subnets_in(vrf):
        if other.id != subnet.id and other.prefix.overlaps(subnet.prefix):
            raise ModelError(f"subnets {other.id} and {subnet.id} overlap: {other.prefix}, {subnet.prefix}")
    what = f"subnet {subnet.id}"
    if any(subnet.prefix.overlaps(prefix) for prefix in NO_HOSTS if prefix.version == subnet.prefix.version):
        raise ModelError(f"{what}: {subnet.prefix} has addresses that no host can have")
    if any(is_part(subnet.prefix, beyond) for beyond in UNROUTABLE4):
        raise ModelError(f"{what}: no router forwards to {subnet.prefix}")
    if subnet.slaac and (subnet.prefix.version, subnet.prefix.prefixlen) != (6, 64):
        raise ModelError(f"{what}: VMs make their own addresses of an IPv6 /64 only, not of {subnet.prefix}")
    if subnet.dhcp6 and subnet.prefix.version != 6:
        raise ModelError(f"{what}: DHCPv6 is for addresses of IPv6, not of {subnet.prefix}")
    if subnet.dhcp6 and vrf != DEFAULT_VRF:
        raise ModelError(f"{what}: DHCPv6 serves the VRF {DEFAULT_VRF} only, not {vrf}")
    check_subnet_beside(net, subnet)
    _not_held(net, what, subnet.gateway, vrf)
    _not_a_servers(net, what, subnet.gateway, vrf)
    for server in net.servers.values() if vrf == DEFAULT_VRF else ():
        if subnet.prefix in server.routes:
            raise ModelError(f"{what}: {subnet.prefix} is reached through server {server.id}")


def check_gateway_group(net: NetworkView, id: str, mac: Mac) -> None:
    what = f"gateway group {id}"
    _usable_mac(net, what, mac)
    server, vm = net.server_of_mac(mac), net.vm_of_mac(mac)
    if server is not None or vm is not None:
        raise ModelError(f"{what}: MAC {mac} belongs to somebody already")


def check_server(net: NetworkView, server: Server) -> None:
    what = f"server {server.id}"
    if server.gateway_group and server.gateway_group not in net.gateway_groups:
        raise ModelError(f"{what}: there is no gateway group {server.gateway_group}")
    _usable_mac(net, what, server.mac)
    other = net.server_of_mac(server.mac)
    if other is not None and other.id != server.id:
        raise ModelError(f"{what}: MAC {server.mac} already belongs to server {other.id}")
    vm = net.vm_of_mac(server.mac)
    if vm is not None:
        raise ModelError(f"{what}: MAC {server.mac} belongs to VM {vm.id}")
    if server.address is not None:
        _not_held(net, what, server.address)
        _not_a_gateways(net, what, server.address)
        _not_a_servers(net, what, server.address, but=server.id)
    check_server_beside(net, server)
    _check_edge(net, server)
    _check_routes(net, server)
    _check_location(net, server)


def _check_location(net: NetworkView, server: Server) -> None:
    """A leaf port belongs to one server: frames that come in there are judged by which server that is."""
    what = f"server {server.id}"
    if Service.DHCP in server.services:
        at = server.given_at or net.detected.get(server.id)
        known = None if at is None else net.dhcp_server_at(at)
        if known is not None and known.id != server.id:
            raise ModelError(
                f"{what}: {at} is the port of DHCP server {known.id}; give each a port of its own"
            )
    for other in net.servers.values():
        if server.given_at is not None and other.given_at == server.given_at and other.id != server.id:
            raise ModelError(
                f"{what}: {server.given_at} is given as the location of server {other.id} already"
            )


def _check_edge(net: NetworkView, server: Server) -> None:
    what = f"server {server.id}"
    if not server.edge:
        vms = net.vms_on(server.id)
        if vms:
            raise ModelError(f"{what} runs VMs and needs its edge switch: {', '.join(sorted(vms))}")
        return
    edge = net.switches.get(server.edge)
    if edge is None or edge.role is not Role.EDGE:
        raise ModelError(f"{what}: {server.edge} is not a known edge switch")
    runs = net.server_of_edge(server.edge)
    if runs is not None and runs.id != server.id:
        raise ModelError(f"{what}: edge switch {server.edge} already runs on {runs.id}")


def _check_routes(net: NetworkView, server: Server) -> None:
    for prefix in server.routes:
        for subnet in net.subnets_in():
            if subnet.prefix == prefix:
                raise ModelError(f"server {server.id}: the route {prefix} is subnet {subnet.id}")
        for other in net.servers.values():
            if other.id != server.id and prefix in other.routes:
                raise ModelError(f"server {server.id}: {prefix} is reached through server {other.id} already")


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
    for location in vm.locations:
        if location not in net.servers:
            raise ModelError(f"{what}: there is no server {location}")
        if not net.servers[location].edge:
            raise ModelError(f"{what}: server {location} has no edge switch, it cannot run VMs")
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
        _in_its_vnet(net, what, its, held.ip)


def _check_nic(net: NetworkView, vm: VM, nic: NIC) -> None:
    what = f"VM {vm.id}"
    _usable_mac(net, what, nic.mac)
    server = net.server_of_mac(nic.mac)
    if server is not None:
        raise ModelError(f"{what}: MAC {nic.mac} belongs to server {server.id}")
    holder = net.vm_of_mac(nic.mac)
    if holder is not None and holder.id != vm.id:
        raise ModelError(f"{what}: MAC {nic.mac} already belongs to VM {holder.id}")
    plugged = net.vm_of_port_id(nic.port_id)
    if plugged is not None and plugged.id != vm.id:
        raise ModelError(f"{what}: the port with iface-id {nic.port_id} already belongs to VM {plugged.id}")
    speaking = net.speaking_as(nic.mac)
    if speaking:
        raise ModelError(f"{what}: VM {min(speaking)} may speak as MAC {nic.mac}")
    if nic.vnet and nic.vnet not in net.vnets:
        raise ModelError(f"{what}: there is no vnet {nic.vnet}")
    vrf = net.vrf_of(nic)
    for address in nic.addresses:
        _a_hosts(what, address)
        _not_a_gateways(net, what, address, vrf)
        _not_a_servers(net, what, address, vrf)
        _in_its_vnet(net, what, nic, address)
        check_not_routed(net, what, address, vrf)
    for one in nic.allowed:
        _a_hosts(what, one.ip)
        _not_a_gateways(net, what, one.ip, vrf)
        _not_a_servers(net, what, one.ip, vrf)
        _in_its_vnet(net, what, nic, one.ip)
        _check_allowed(net, what, one, vrf)
        if one.mac in {other.mac for other in vm.nics}:
            raise ModelError(f"{what}: MAC {one.mac} is a NIC's own")
    if len({one.ip for one in nic.allowed}) < len(nic.allowed):
        raise ModelError(f"{what}: an address is allowed twice")


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
    _usable_mac(net, what, one.mac)
    server, vm = net.server_of_mac(one.mac), net.vm_of_mac(one.mac)
    if server is not None or vm is not None:
        whose = f"server {server.id}" if server is not None else f"VM {vm.id}" if vm is not None else ""
        raise ModelError(f"{what}: MAC {one.mac} belongs to {whose}")


def _in_its_vnet(net: NetworkView, what: str, nic: NIC, ip: IP) -> None:
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
    _in_its_vnet(net, f"VM {assignment.vm}", nic, assignment.ip)
    if assignment.kind is BindingKind.ALLOWED and not nic.may_take(assignment.ip):
        raise ModelError(f"VM {vm.id} is not allowed {assignment.ip}")
    allowed = net.allowed_to(assignment.ip, assignment.vrf)
    if assignment.kind is not BindingKind.ALLOWED and allowed:
        raise ModelError(f"{assignment.ip} is allowed VM {min(allowed)}; VM {vm.id} cannot be given it")
    _not_a_gateways(net, f"VM {assignment.vm}", assignment.ip, assignment.vrf)
    _not_a_servers(net, f"VM {assignment.vm}", assignment.ip, assignment.vrf)
    check_not_routed(net, f"VM {assignment.vm}", assignment.ip, assignment.vrf)


def check_taking(net: NetworkView, assignment: Assignment) -> None:
    """A NIC takes an address that it is allowed."""
    vm = net.vms.get(assignment.vm)
    nic = None if vm is None else vm.nic_with(assignment.mac)
    if nic is None or not nic.may_take(assignment.ip) or assignment.kind is not BindingKind.ALLOWED:
        raise ModelError(f"VM {assignment.vm} is not allowed {assignment.ip}")
    what = f"VM {assignment.vm}"
    _in_its_vnet(net, what, nic, assignment.ip)
    _not_a_gateways(net, what, assignment.ip, assignment.vrf)
    _not_a_servers(net, what, assignment.ip, assignment.vrf)


def _usable_mac(net: NetworkView, what: str, mac: Mac) -> None:
    if is_multicast(mac):
        raise ModelError(f"{what}: MAC {mac} is a group address, it cannot be a VM's or a server's")
    if mac in net.gateway_macs:
        raise ModelError(f"{what}: MAC {mac} is the gateway's, it cannot be a VM's or a server's")


def _a_hosts(what: str, ip: IP) -> None:
    if any(ip in prefix for prefix in NO_HOSTS):
        raise ModelError(f"{what}: {ip} cannot be registered: it is no host's, or follows from the MAC")


def _not_held(net: NetworkView, what: str, ip: IP, vrf: str = DEFAULT_VRF) -> None:
    assignment = net.holder(ip, vrf)
    if assignment is not None:
        raise ModelError(f"{what}: {ip} is held by VM {assignment.vm}")
    allowed = net.allowed_to(ip, vrf)
    if allowed:
        raise ModelError(f"{what}: {ip} is allowed VM {min(allowed)}")


def _not_a_gateways(net: NetworkView, what: str, ip: IP, vrf: str = DEFAULT_VRF) -> None:
    subnet = net.subnet_of(ip, vrf)
    if subnet is not None and subnet.gateway == ip:
        raise ModelError(f"{what}: {ip} is the gateway of subnet {subnet.id}")


def _not_a_servers(net: NetworkView, what: str, ip: IP, vrf: str = DEFAULT_VRF, but: str = "") -> None:
    server = net.server_of_address(ip, vrf)
    if server is not None and server.id != but:
        raise ModelError(f"{what}: {ip} is the address of server {server.id}")
