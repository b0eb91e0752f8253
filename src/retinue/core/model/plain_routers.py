"""Leaves that are routers which are not ours: what they can be asked for, and what not.

Such a router forwards IP that is sent to the MAC of its port, by the longest prefix. An adapter beside it
puts host routes into its table, each to the server where a VM is, and reads them back. That is all: it has
no entries of ours, so what else a leaf of ours does is not there, and a network that wants it is rejected.
"""

from retinue.core.model.addresses import ModelError
from retinue.core.model.entities import GatewayGroup, Peer, Server, Service, Subnet, Vnet
from retinue.core.model.view import NetworkView
from retinue.core.model.vrfs import DEFAULT_VRF, Vrf

OTHERS = "(others)"
"""The name of a router's port to the other routers, whichever they are in truth: a server that is not here is
reached there."""

_SERVICES = {
    Service.DHCP: "let a VM be the DHCP server (`retinue vm nic set VM --trust`), or give static addresses",
    Service.FORWARDER: "storage needs leaves that are ours",
}


def check_beside_routers(net: NetworkView, thing: Vrf | Vnet | GatewayGroup | Peer | Subnet | Server) -> None:
    """Raises ModelError for what a router that is not ours cannot do."""
    if not net.over_routers:
        return
    wrong = ""
    match thing:
        case Vrf() if thing.id != DEFAULT_VRF:
            wrong = "a router that is not ours has one table of routes; VRFs need leaves that are"
        case Vnet() if thing.floods:
            wrong = "a router that is not ours floods nothing; leave its `flood` out"
        case Vnet() if thing.mtu and thing.mtu < net.mtu:
            wrong = "a router that is not ours tells no sender its size; give all the network this `mtu`"
        case GatewayGroup():
            wrong = "the MAC of a router's port is the gateway's; groups need leaves that are ours"
        case Peer():
            wrong = "a way to another domain needs leaves that are ours"
        case Subnet() if thing.prefix.version != 4:
            wrong = "routers that are not ours are told host routes of IPv4 only"
        case Subnet() if thing.dhcp:
            wrong = f"no message is relayed through a router that is not ours; {_SERVICES[Service.DHCP]}"
        case Server():
            wrong = _wrong_of_server(net, thing)
    if wrong:
        raise ModelError(f"{type(thing).__name__.lower()} {thing.id}: {wrong}")


def _wrong_of_server(net: NetworkView, server: Server) -> str:
    for service, remedy in _SERVICES.items():
        if service in server.services:
            return f"at a router that is not ours there is no {service} server; {remedy}"
    if server.address is None or server.address.version != 4:
        return "the router needs its `address` (of IPv4): it is the next hop of its VMs' routes"
    if server.given_at is None:
        return "nothing is detected at a router that is not ours; say at which port it is (`at`)"
    return ""
