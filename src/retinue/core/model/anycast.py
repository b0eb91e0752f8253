"""Anycast: an address of a service that several NICs and servers have at once, and each of them answers.

It is in no subnet, so everybody reaches it by the gateway, and nobody asks for it by ARP. "Selection of a
destination server that will receive an Anycast addressed packet is based on a variety of criteria and may
include factors such as network topology (e.g., the fewest number of router hops or lowest cost ...) or
application metrics (e.g., available capacity, measured response times, number of active connections)" (US
9,515,930): here the topology decides, and among those that are equally near the load that was told of them.
"""

from collections.abc import Iterator
from ipaddress import ip_network

from retinue.core.model.addresses import IP, ModelError, Prefix
from retinue.core.model.entities import VM, Server
from retinue.core.model.nic import NIC
from retinue.core.model.ownership import can_be_a_hosts
from retinue.core.model.view import NetworkView
from retinue.core.model.vrfs import DEFAULT_VRF


def host_prefix(ip: IP) -> Prefix:
    """The prefix that has this address alone."""
    return ip_network(ip)


def members_of(net: NetworkView, ip: IP) -> list[tuple[VM, NIC]]:
    """The NICs that have an anycast address, each with its VM: the least loaded first."""
    found = ((net.vms[vm], port) for port, vm in net.anycast_at(ip))
    nics = ((vm, nic) for vm, port in found for nic in vm.nics if nic.port_id == port)
    return sorted(nics, key=lambda one: (one[1].load, one[0].id, one[1].port_id))


def serves(net: NetworkView, vm: VM, nic: NIC) -> bool:
    """True where what is sent to such an address may go to this NIC: plugged in, and shut by nobody.

    One whose edge has told of no port yet is taken to be as it was: after a restart they are told one by one,
    and flows are not to go to whoever is told first.
    """
    edge = net.servers[vm.server].edge
    plugged_in = net.port_of(nic, edge) is not None or edge in net.untold
    return nic.enabled and plugged_in and vm.server not in net.fenced


def check_anycast(net: NetworkView, vm: VM) -> None:
    """Raises ModelError for an address that cannot be an anycast one."""
    for nic in vm.nics:
        for ip in nic.anycast:
            what = f"VM {vm.id}: {ip} cannot be an anycast address"
            _can_be(net, what, ip)
            if net.vrf_of(nic) != DEFAULT_VRF:
                raise ModelError(f"{what} of a NIC of VRF {net.vrf_of(nic)}, only of those of {DEFAULT_VRF}")
            if nic.anycast.count(ip) > 1 or any(ip in other.anycast for other in vm.nics if other != nic):
                raise ModelError(f"{what}: it is given twice")
            own = [prefix for other in vm.nics for prefix in other.prefixes]
            held = [one for one in net.held_by(vm.id) if one.vrf == DEFAULT_VRF]
            own += [one.prefix for one in held if one.prefix is not None]
            if any(ip in prefix for prefix in own):
                raise ModelError(f"{what}: it is of a prefix that is routed to it already")
            for reason in _taken(net, ip, vm.id):
                raise ModelError(f"{what}: {reason}")


def check_anycast_of_server(net: NetworkView, server: Server) -> None:
    """Raises ModelError for an address that cannot be an anycast one of a server itself."""
    for ip in server.anycast:
        what = f"server {server.id}: {ip} cannot be an anycast address"
        _can_be(net, what, ip)
        if server.edge:
            raise ModelError(f"{what}: it has an edge switch; give it to a VM there")
        if server.services:
            what_it_is = ", ".join(sorted(server.services))
            raise ModelError(f"{what}: it is {what_it_is}, and sends as itself alone; take another machine")
        if server.anycast.count(ip) > 1:
            raise ModelError(f"{what}: it is given twice")
        if (DEFAULT_VRF, ip) in server.addresses:
            raise ModelError(f"{what}: it is its own address")
        for reason in _taken(net, ip, ""):
            raise ModelError(f"{what}: {reason}")


def _can_be(net: NetworkView, what: str, ip: IP) -> None:
    can_be_a_hosts(what, ip)
    if net.over_routers:
        raise ModelError(f"{what}: routers that are not ours are told one place of each address")


def _taken(net: NetworkView, ip: IP, vm: str) -> Iterator[str]:
    """Why it is another's; `vm`: who is to have it, "" for a server."""
    subnet = net.subnet_of(ip)
    if subnet is not None:
        yield f"it is of subnet {subnet.id}, {subnet.prefix}, where neighbours ask for it by ARP"
    server = net.server_of_address(ip)
    if server is not None:
        yield f"it is the address of server {server.id}"
    routed = net.routed_to(ip)
    if routed is not None and not net.is_anycast(ip) and routed[1] != vm:
        yield f"{routed[0]} is routed to VM {routed[1]}"
    held = net.holder(ip)
    if held is not None:
        yield f"{ip} is held by VM {held.vm}"
    way = next((s.id for s in net.servers.values() if host_prefix(ip) in s.routes), None)
    if way is not None:
        yield f"it is reached through server {way}"
