"""The relay between VMs and DHCPv6 servers (RFC 8415, 19): the gateway, for servers wherever they are.

Every message of a VM is put in an envelope: the gateway's address of a subnet, by which the server picks the
subnet; the VM's link-local address; the port where it came in (interface-id, 21.18); its MAC (RFC 6939); and,
since in another VRF than the default one the gateway's address may be that of several, the VRF (RFC 6607).
A server on the VMs' own link gets it likewise: a frame comes to it by its place in the fabric, not by its
address, and it need not look for VMs that no neighbour discovery would find.
"""

from dataclasses import replace
from ipaddress import IPv6Address

from retinue.core.model import DEFAULT_VRF, NIC, Mac, Server, Subnet
from retinue.core.model.families import dhcp6_subnets
from retinue.core.model.link_local import group_mac, link_local
from retinue.core.model.network import Network
from retinue.core.packets.dhcp6 import (
    ALL_AGENTS_AND_SERVERS,
    CLIENT_PORT6,
    DHCP6,
    SERVER_PORT6,
    MessageType6,
    Relayed6,
    dhcp6_frame,
    kept_options6,
    link_layer_option,
    virtual_subnet_option,
)
from retinue.core.snooping.dhcp6_messages import ToServers6

UNSPECIFIED = IPv6Address(0)


def links(net: Network, nic: NIC, dhcp: DHCP6) -> tuple[Subnet, ...]:
    """The subnets a NIC's message is about: of the address in it, else all of which it may have one."""
    subnets = dhcp6_subnets(net, nic.vnet)
    named = tuple(s for s in subnets if any(ip in s.prefix for ip in dhcp.addresses))
    return named[:1] or subnets


def to_server(net: Network, asked: ToServers6, subnet: Subnet) -> bytes:
    """The frame by which a server gets a NIC's message. Raises FrameError where it has become too large."""
    assert isinstance(subnet.gateway, IPv6Address)
    inside = handed_on(asked.dhcp).build()
    vrf = net.vrf_of_vnet(subnet.vnet)
    options = (
        link_layer_option(asked.nic),
        *([virtual_subnet_option(vrf)] if vrf != DEFAULT_VRF else []),
    )
    envelope = Relayed6(
        MessageType6.RELAY_FORW, 0, subnet.gateway, asked.peer, inside, asked.circuit.encode(), options
    )
    relay, to = link_local(net.gateway_mac), ALL_AGENTS_AND_SERVERS
    return dhcp6_frame(
        envelope.build(), net.gateway_mac, group_mac(to), relay, to, SERVER_PORT6, SERVER_PORT6
    )


def to_vm(net: Network, nic: Mac, gateway_mac: Mac, peer: IPv6Address, answer: DHCP6) -> bytes:
    """The frame by which a NIC gets a server's answer. Raises FrameError where it has become too large."""
    payload, relay = handed_on(answer).build(), link_local(net.gateway_mac)
    return dhcp6_frame(payload, gateway_mac, nic, relay, peer, SERVER_PORT6, CLIENT_PORT6)


def from_guest(asked: ToServers6) -> bytes:
    """The frame by which a guest's home gets what it asks: as it has asked, by the tunnel. Raises
    FrameError."""
    payload, to = handed_on(asked.dhcp).build(), ALL_AGENTS_AND_SERVERS
    return dhcp6_frame(payload, asked.nic, group_mac(to), asked.peer, to, CLIENT_PORT6, SERVER_PORT6)


def of_home(peer: IPv6Address, answer: bytes) -> Relayed6:
    """What a guest's home answers, which comes by the tunnel as the guest gets it, in an envelope as our own
    servers' answers come: for this address of the guest's."""
    return Relayed6(MessageType6.RELAY_REPL, 0, UNSPECIFIED, peer, answer)


def handed_on(dhcp: DHCP6) -> DHCP6:
    """The message as it was understood, without what is nothing to whom it is for."""
    return replace(dhcp, options=kept_options6(dhcp))


def serves(server: Server, subnet: Subnet) -> bool:
    """True for a DHCP server that gives addresses of this subnet."""
    return not subnet.dhcp or server.address in subnet.dhcp


def link_of(net: Network, nic: NIC, server: str, link: IPv6Address) -> Subnet | None:
    """The subnet that an answer to this NIC is about; None where the NIC has none of it from this server."""
    subnet = net.subnet_of(link, net.vrf_of(nic))
    known = net.servers.get(server)
    fits = subnet is not None and subnet.gateway == link and subnet in dhcp6_subnets(net, nic.vnet)
    return subnet if subnet is not None and fits and known is not None and serves(known, subnet) else None


def fault_of_envelope(net: Network, src: IPv6Address, dst: IPv6Address, envelope: Relayed6) -> str:
    """Why what a server has sent is no answer to our relay; "" if nothing is wrong with it."""
    if dst != link_local(net.gateway_mac):
        return f"DHCPv6 from {src} to {dst}, which is not the relay"
    if envelope.type is not MessageType6.RELAY_REPL or envelope.hops:
        return f"a DHCPv6 {envelope.type.name} of {envelope.hops} hops, not an answer to the relay"
    if not any(subnet.dhcp6 and subnet.gateway == envelope.link for subnet in net.subnets.values()):
        return f"for a relay at {envelope.link}, which is none of ours"
    return ""
