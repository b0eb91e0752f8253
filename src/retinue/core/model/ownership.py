"""Whose a MAC or an address is already: what each thing that wants one is asked, whatever it is.

Each raises ModelError, in which `what` says who wants it.
"""

from retinue.core.model.addresses import IP, Mac, ModelError, is_multicast
from retinue.core.model.routed_prefixes import NO_HOSTS, UNROUTABLE4
from retinue.core.model.view import NetworkView
from retinue.core.model.vrfs import DEFAULT_VRF

NOBODYS: Mac = "00:00:00:00:00:00"
"""Hosts take it for none, and to a switch it is an option of neighbour discovery that is not there."""


def can_be_a_machines(net: NetworkView, what: str, mac: Mac) -> None:
    if is_multicast(mac):
        raise ModelError(f"{what}: MAC {mac} is a group address, it cannot be a VM's or a server's")
    if mac == NOBODYS:
        raise ModelError(f"{what}: MAC {mac} is nobody's, it cannot be a VM's or a server's")
    if mac in net.gateway_macs:
        raise ModelError(f"{what}: MAC {mac} is the gateway's, it cannot be a VM's or a server's")
    if (login := net.fc_logins.get(mac)) is not None:
        raise ModelError(f"{what}: MAC {mac} is that of the port of storage of VM {login.vm}")
    if any(peer.storage for peer in net.peers.values()):
        of_guest = next((one for one in net.fc_logins.values() if one.forwarder_mac == mac), None)
        if of_guest is not None:
            raise ModelError(f"{what}: MAC {mac} is that of the forwarder of VM {of_guest.vm}")


def can_be_a_hosts(what: str, ip: IP) -> None:
    if any(ip in prefix for prefix in (UNROUTABLE4 if ip.version == 4 else NO_HOSTS)):
        raise ModelError(f"{what}: {ip} cannot be registered: it is no host's, or follows from the MAC")


def not_held(net: NetworkView, what: str, ip: IP, vrf: str = DEFAULT_VRF) -> None:
    assignment = net.holder(ip, vrf)
    if assignment is not None:
        raise ModelError(f"{what}: {ip} is held by VM {assignment.vm}")
    allowed = net.allowed_to(ip, vrf)
    if allowed:
        raise ModelError(f"{what}: {ip} is allowed VM {min(allowed)}")


def not_a_gateways(net: NetworkView, what: str, ip: IP, vrf: str = DEFAULT_VRF) -> None:
    subnet = net.subnet_of(ip, vrf)
    if subnet is not None and subnet.gateway == ip:
        raise ModelError(f"{what}: {ip} is the gateway of subnet {subnet.id}")


def not_a_servers(net: NetworkView, what: str, ip: IP, vrf: str = DEFAULT_VRF, but: str = "") -> None:
    server = net.server_of_address(ip, vrf)
    if server is not None and server.id != but:
        raise ModelError(f"{what}: {ip} is the address of server {server.id}")
