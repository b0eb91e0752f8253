"""What a network refuses, so that no two of its things can ever want the same flow entry.

One address has one owner: a gateway, a server or a VM; so has a MAC address, and a prefix. Each function
looks at one thing that is to come into the network, changes nothing, and raises ModelError when it cannot.
"""

from typing import TYPE_CHECKING

from retinue.model.addresses import IP, Mac, ModelError, is_multicast
from retinue.model.binding import Holding
from retinue.model.things import VM, Role, Server, Service, Subnet

if TYPE_CHECKING:
    from retinue.model.network import Network


def check_subnet(net: "Network", subnet: Subnet) -> None:
    for other in net.subnets.values():
        if other.id != subnet.id and other.prefix.overlaps(subnet.prefix):
            raise ModelError(f"subnets {other.id} and {subnet.id} overlap: {other.prefix}, {subnet.prefix}")
    what = f"subnet {subnet.id}"
    _not_held(net, what, subnet.gateway)
    _not_a_servers(net, what, subnet.gateway)
    for server in net.servers.values():
        if subnet.prefix in server.routes:
            raise ModelError(f"{what}: {subnet.prefix} is reached through server {server.id}")


def check_server(net: "Network", server: Server) -> None:
    what = f"server {server.id}"
    _usable_mac(net, what, server.mac)
    holder = net.server_of_mac(server.mac)
    if holder is not None and holder.id != server.id:
        raise ModelError(f"{what}: MAC {server.mac} already belongs to server {holder.id}")
    vm = net.vm_of_mac(server.mac)
    if vm is not None:
        raise ModelError(f"{what}: MAC {server.mac} belongs to VM {vm.id}")
    if server.address is not None:
        _not_held(net, what, server.address)
        _not_a_gateways(net, what, server.address)
        _not_a_servers(net, what, server.address, but=server.id)
    _check_edge(net, server)
    _check_routes(net, server)
    _check_place(net, server)


def _check_place(net: "Network", server: Server) -> None:
    """A leaf port is one machine's: what comes in there is judged by who it is."""
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
            raise ModelError(f"{what}: {server.given_at} is given as the place of server {other.id} already")


def _check_edge(net: "Network", server: Server) -> None:
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


def _check_routes(net: "Network", server: Server) -> None:
    for prefix in server.routes:
        for subnet in net.subnets.values():
            if subnet.prefix == prefix:
                raise ModelError(f"server {server.id}: the route {prefix} is subnet {subnet.id}")
        for other in net.servers.values():
            if other.id != server.id and prefix in other.routes:
                raise ModelError(f"server {server.id}: {prefix} is reached through server {other.id} already")


def check_vm(net: "Network", vm: VM) -> None:
    what = f"VM {vm.id}"
    _usable_mac(net, what, vm.mac)
    server = net.server_of_mac(vm.mac)
    if server is not None:
        raise ModelError(f"{what}: MAC {vm.mac} belongs to server {server.id}")
    holder = net.vm_of_mac(vm.mac)
    if holder is not None and holder.id != vm.id:
        raise ModelError(f"{what}: MAC {vm.mac} already belongs to VM {holder.id}")
    for address in vm.addresses:
        _not_a_gateways(net, what, address)
        _not_a_servers(net, what, address)
    for place in vm.places:
        if place not in net.servers:
            raise ModelError(f"{what}: there is no server {place}")
        if not net.servers[place].edge:
            raise ModelError(f"{what}: server {place} has no edge switch, it cannot run VMs")
    if vm.copied_to and vm.copied_to not in vm.also:
        raise ModelError(f"{what}: it is not open at {vm.copied_to}, and nothing can be copied there")
    if vm.forwarded_from == vm.server:
        raise ModelError(f"{what}: {vm.server} cannot forward to itself")
    for held in net.held_by(vm.id):
        if held.mac != vm.mac:
            raise ModelError(f"{what} holds {held.ip} with MAC {held.mac}; its MAC cannot become {vm.mac}")


def check_holding(net: "Network", holding: Holding) -> None:
    vm = net.vms.get(holding.vm)
    if vm is None:
        raise ModelError(f"{holding.ip}: there is no VM {holding.vm}")
    if vm.mac != holding.mac:
        raise ModelError(f"{holding.ip}: VM {vm.id} has MAC {vm.mac}, not {holding.mac}")
    other = net.holdings.get(holding.ip)
    if other is not None and other.vm != holding.vm:
        raise ModelError(f"{holding.ip} is held by VM {other.vm}; VM {holding.vm} cannot have it")
    _not_a_gateways(net, f"VM {holding.vm}", holding.ip)
    _not_a_servers(net, f"VM {holding.vm}", holding.ip)


def _usable_mac(net: "Network", what: str, mac: Mac) -> None:
    if is_multicast(mac):
        raise ModelError(f"{what}: MAC {mac} is a group address, it cannot be a VM's or a server's")
    if mac == net.gateway_mac:
        raise ModelError(f"{what}: MAC {mac} is the gateway's, it cannot be a VM's or a server's")


def _not_held(net: "Network", what: str, ip: IP) -> None:
    holding = net.holdings.get(ip)
    if holding is not None:
        raise ModelError(f"{what}: {ip} is held by VM {holding.vm}")


def _not_a_gateways(net: "Network", what: str, ip: IP) -> None:
    subnet = net.subnet_of(ip)
    if subnet is not None and subnet.gateway == ip:
        raise ModelError(f"{what}: {ip} is the gateway of subnet {subnet.id}")


def _not_a_servers(net: "Network", what: str, ip: IP, but: str = "") -> None:
    server = net.server_of_address(ip)
    if server is not None and server.id != but:
        raise ModelError(f"{what}: {ip} is the address of server {server.id}")
