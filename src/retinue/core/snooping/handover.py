"""DHCP messages as they are handed on: built anew from what was judged, never the frames that came in.

A receiver can read in a frame more than was judged here: another source or destination, IP options, bytes
behind the datagram. So nothing of it is handed on but the DHCP message as it was understood, in a frame whose
addresses follow from who sends and who is to get it.

    to a server    straight     from the VM's MAC, and the address it holds or 0.0.0.0
                   relayed      from the gateway, to the server
    to a VM                     from the gateway's MAC, to the VM's own MAC or to everybody

A message without a source is broadcast, also if the client sent it to one server: the servers' own IP would
not take it otherwise (RFC 1122, 3.2.1.3).
"""

from dataclasses import replace
from ipaddress import IPv4Address

from retinue.core.model import Mac
from retinue.core.model.families import is_leased
from retinue.core.packets import (
    BROADCAST,
    CLIENT_PORT,
    DHCP,
    FLAG_BROADCAST,
    SERVER_PORT,
    MessageType,
    Option,
    UDPDatagram,
    dhcp_frame,
)
from retinue.core.packets.dhcp_options import joined
from retinue.core.snooping import relay
from retinue.core.snooping.messages import EVERYBODY, NO_ADDRESS

ETHERNET_MTU = 1500
"""Bytes of an IP packet in an Ethernet frame, where nobody says otherwise (RFC 894)."""


def to_server(
    dhcp: DHCP,
    way: relay.Way,
    gateway_mac: Mac,
    source: IPv4Address,
    to: IPv4Address | None,
    circuit: str,
    vm: str,
) -> bytes | None:
    """A VM's message on its way to a DHCP server; None when it has passed too many relays.

    `source`: see `headers.source_of`. `to`: the server's address as the client named it, None for everybody.
    `circuit`: the port it came in by, for a relay's option 82.
    """
    server = way.server
    # What only servers fill in is not the client's to say (RFC 2131, table 5).
    dhcp = replace(dhcp, yiaddr=NO_ADDRESS, siaddr=NO_ADDRESS)
    if way.giaddr is not None:
        relayed = relay.toward_server(dhcp, way.giaddr, circuit, vm, way.vrf)
        if relayed is None or not is_leased(server.address):
            return None
        return dhcp_frame(
            relayed, gateway_mac, server.mac, way.giaddr, server.address, SERVER_PORT, SERVER_PORT
        )
    if to is None or source == NO_ADDRESS:
        return dhcp_frame(dhcp, dhcp.chaddr, BROADCAST, source, EVERYBODY, CLIENT_PORT, SERVER_PORT)
    return dhcp_frame(dhcp, dhcp.chaddr, server.mac, source, to, CLIENT_PORT, SERVER_PORT)


def to_vm(nic: Mac, gateway_mac: Mac, datagram: UDPDatagram, answer: DHCP, mtu: int) -> bytes:
    """A server's answer as the VM's NIC with this MAC gets it, be it from the server itself or for our relay.

    How large packets may be (option 26) is never more than the NIC's network takes, `mtu`: a server that
    serves several does not know, and a client that is told nothing sends as large ones as Ethernet has.

    RFC 2131, 4.1: to yiaddr at chaddr, or by broadcast if the client asked for that; a NAK is broadcast,
    and a client that has an address already is answered there. What the server itself has broadcast stays so.
    """
    dhcp, source = answer, datagram.src
    if datagram.dport == SERVER_PORT:
        dhcp, source = relay.toward_client(answer), answer.giaddr
    said = joined(dhcp.options, Option.INTERFACE_MTU)
    most = ETHERNET_MTU if said is None else int.from_bytes(said)
    if most > mtu and dhcp.message_type is not MessageType.NAK:
        dhcp = dhcp.with_option(Option.INTERFACE_MTU, mtu.to_bytes(2))
    address = dhcp.ciaddr if dhcp.ciaddr != NO_ADDRESS else dhcp.yiaddr
    broadcast = (
        dhcp.flags & FLAG_BROADCAST
        or address == NO_ADDRESS
        or datagram.dst == EVERYBODY
        or dhcp.message_type is MessageType.NAK
    )
    return dhcp_frame(
        dhcp,
        eth_src=gateway_mac,
        eth_dst=BROADCAST if broadcast else nic,
        ip_src=source,
        ip_dst=EVERYBODY if broadcast else address,
        sport=SERVER_PORT,
        dport=CLIENT_PORT,
    )
