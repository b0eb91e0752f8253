"""What is in use, and so can neither be removed nor moved elsewhere.

A VRF is in use while it has vnets, a vnet while it has subnets or NICs, a subnet while somebody has an
address of it; and VRFs, vnets, subnets and gateway groups of the configuration file are removed there. Each
check looks at one thing to be removed, changes nothing, and raises ModelError when it must stay.
"""

from ipaddress import IPv4Network, IPv6Network

from retinue.core.model.addresses import ModelError
from retinue.core.model.entities import DEFAULT_VNET, Subnet
from retinue.core.model.view import NetworkView
from retinue.core.model.vrfs import DEFAULT_VRF


def check_vrf_removal(net: NetworkView, vrf: str) -> None:
    if vrf == DEFAULT_VRF:
        raise ModelError(f"VRF {vrf} stays: it has the vnets for which no other is named, and the outside")
    not_configured(net, f"vrf {vrf}")
    users = sorted(f"vnet {vnet.id}" for vnet in net.vnets.values() if vnet.vrf == vrf)
    users += sorted(f"router {one.id}" for one in net.servers.values() if one.interface_in(vrf))
    if users:
        raise ModelError(f"VRF {vrf} is in use by {first_few(users)}")


def check_vnet_removal(net: NetworkView, vnet: str) -> None:
    if vnet == DEFAULT_VNET.id:
        raise ModelError(f"vnet {vnet} stays: it has the subnets for which no other is named")
    not_configured(net, f"vnet {vnet}")
    users = users_of_vnet(net, vnet)
    if users:
        raise ModelError(f"vnet {vnet} is in use by {first_few(users)}")


def check_subnet_removal(net: NetworkView, id: str) -> None:
    not_configured(net, f"subnet {id}")
    subnet = net.subnets.get(id)
    users = [] if subnet is None else users_of_prefix(net, subnet.prefix, net.vrf_of_vnet(subnet.vnet))
    if users:
        raise ModelError(f"subnet {id} is in use: {first_few(users)}")


def check_gateway_group_removal(net: NetworkView, group: str) -> None:
    not_configured(net, f"gateway group {group}")
    inside = sorted(f"server {one.id}" for one in net.servers.values() if one.gateway_group == group)
    inside += sorted(f"switch {one.id}" for one in net.switches.values() if one.gateway_group == group)
    if net.default_group == group:
        inside.append("all servers that are in no other")
    if inside:
        raise ModelError(f"gateway group {group} is in use by {first_few(inside)}")


def check_server_removal(net: NetworkView, server: str) -> None:
    """Nothing runs there, and nobody is reached by it; a router's prefixes are reached by others, or not."""
    users = sorted(f"VM {vm}" for vm in net.vms_on(server))
    users += sorted(f"domain {one.id}" for one in net.peers.values() if one.gateway == server)
    known = net.servers.get(server)
    users += [f"who asks at {ip}, its anycast address" for ip in (known.anycast if known else ())]
    users += sorted(f"VM {one.vm}" for one in net.fc_logins.values() if one.forwarder == server)
    if users:
        raise ModelError(f"server {server} is in use by {first_few(users)}")
    edge = net.switches.get(net.servers[server].edge) if server in net.servers else None
    if edge is not None and edge.standby:
        raise ModelError(
            f"server {server} stays: its edge has several uplinks; register it without its edge first"
        )


def not_configured(net: NetworkView, what: str) -> None:
    if what in net.configured:
        raise ModelError(
            f"{what} stands in the configuration file; remove it there, and restart the controller"
        )


def users_of_vnet(net: NetworkView, vnet: str) -> list[str]:
    """Its subnets, and the VMs with a NIC in it, in words."""
    subnets = sorted(f"subnet {s.id}" for s in net.subnets.values() if s.vnet == vnet)
    vms = sorted(f"VM {vm.id}" for vm in net.vms.values() if any(nic.vnet == vnet for nic in vm.nics))
    return [*subnets, *vms]


def users_of_prefix(net: NetworkView, prefix: IPv4Network | IPv6Network, vrf: str) -> list[str]:
    """Who has an address inside, in words."""
    nics = [(vm, nic) for vm in net.vms.values() for nic in vm.nics if net.vrf_of(nic) == vrf]
    given = {ip: f"VM {vm.id}" for vm, nic in nics for ip in nic.addresses}
    given |= {one.ip: f"VM {vm.id}" for vm, nic in nics for one in nic.allowed}
    held = {a.ip: f"VM {a.vm}" for a in net.assignments.values() if a.vrf == vrf}
    own = {ip: f"server {s.id}" for s in net.servers.values() for of, ip in s.addresses if of == vrf}
    return [f"{who} has {ip}" for ip, who in {**given, **held, **own}.items() if ip in prefix]


def bound_to(net: NetworkView, subnet: Subnet) -> list[str]:
    """VMs with a NIC of the subnet's vnet and an address of the subnet, in words."""
    users = [(a.vm, a.ip, a.mac) for a in net.assignments.values() if a.ip in subnet.prefix]
    found = []
    for id, ip, mac in users:
        nic = net.vms[id].nic_with(mac)
        if nic is not None and nic.vnet == subnet.vnet:
            found.append(f"VM {id} has {ip} in it")
    return found


def first_few(things: list[str]) -> str:
    """The first few."""
    more = len(things) - 3
    return ", ".join(things[:3]) + (f" and {more} more" if more > 0 else "")
