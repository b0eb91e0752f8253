"""What a frame is, in one line for people: events, logs and test failures."""

from ipaddress import IPv4Address, IPv6Address

from retinue.core.packets.arp import ArpOp, parse_arp
from retinue.core.packets.dhcp import CLIENT_PORT, DHCP, SERVER_PORT, parse_dhcp
from retinue.core.packets.errors import FrameError
from retinue.core.packets.ethernet import EtherType, parse
from retinue.core.packets.ipv4 import UDP, parse_udp4
from retinue.core.packets.ipv6 import ICMPV6
from retinue.core.packets.nd import (
    NDType,
    NeighbourAdvertisement,
    NeighbourSolicitation,
    Redirect,
    RouterAdvertisement,
    RouterSolicitation,
    parse_nd,
)

_PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6"}
_TYPES = {EtherType.RARP: "RARP", EtherType.LLDP: "LLDP"}


def summarize(frame: bytes) -> str:
    """One line, such as "52:54:00:00:00:01 > ff:ff:ff:ff:ff:ff RARP, 46 bytes". Never raises."""
    try:
        ethernet = parse(frame)
    except FrameError as error:
        return str(error)
    tag = "" if ethernet.vlan is None else f" VLAN {ethernet.vlan}"
    try:
        what = _payload(ethernet.ethertype, ethernet.payload)
    except FrameError as error:
        what = f"malformed: {error}"
    return f"{ethernet.src} > {ethernet.dst}{tag} {what}"


def _payload(ethertype: int, payload: bytes) -> str:
    match ethertype:
        case EtherType.ARP:
            return _arp(payload)
        case EtherType.IPV4:
            return _ipv4(payload)
        case EtherType.IPV6:
            return _ipv6(payload)
        case _ if ethertype < 0x600:
            return f"802.3, {len(payload)} bytes"
    return _TYPES.get(ethertype, f"type {ethertype:#06x}") + f", {len(payload)} bytes"


def _arp(payload: bytes) -> str:
    arp = parse_arp(payload)
    if arp.is_probe:
        return f"ARP probe for {arp.tpa} by {arp.sha}"
    if arp.is_announcement:
        return f"ARP announcement: {arp.spa} is at {arp.sha}"
    if arp.op == ArpOp.REQUEST:
        return f"ARP who has {arp.tpa}, says {arp.spa} at {arp.sha}"
    if arp.op == ArpOp.REPLY:
        return f"ARP {arp.spa} is at {arp.sha}, to {arp.tpa}"
    return f"ARP operation {arp.op} from {arp.spa} at {arp.sha}"


def _ipv4(payload: bytes) -> str:
    if len(payload) < 20 or payload[0] >> 4 != 4:
        raise FrameError(f"IPv4 of {len(payload)} bytes, starting with {payload[:1].hex()}")
    protocol, src, dst = payload[9], IPv4Address(payload[12:16]), IPv4Address(payload[16:20])
    where = f"IPv4 {src} > {dst}"
    if protocol != UDP:
        return f"{where} {_PROTOCOLS.get(protocol, f'protocol {protocol}')}"
    datagram = parse_udp4(payload)
    if datagram.dport in (SERVER_PORT, CLIENT_PORT):
        return f"{where} {_dhcp(parse_dhcp(datagram.payload))}"
    return f"{where} UDP {datagram.sport} > {datagram.dport}, {len(datagram.payload)} bytes"


def _dhcp(message: DHCP) -> str:
    kind = message.message_type
    parts = [f"DHCP {kind.name}" if kind is not None else "BOOTP", f"of {message.chaddr}"]
    for name, address in (
        ("ciaddr", message.ciaddr),
        ("yiaddr", message.yiaddr),
        ("giaddr", message.giaddr),
        ("requested", message.requested_address),
        ("server", message.server_id),
    ):
        if address is not None and int(address) != 0:
            parts.append(f"{name} {address}")
    return " ".join(parts)


def _ipv6(payload: bytes) -> str:
    if len(payload) < 40 or payload[0] >> 4 != 6:
        raise FrameError(f"IPv6 of {len(payload)} bytes, starting with {payload[:1].hex()}")
    src, dst = IPv6Address(payload[8:24]), IPv6Address(payload[24:40])
    if payload[6] == ICMPV6 and payload[40:41] and payload[40] in NDType._value2member_map_:
        return f"IPv6 {src} > {dst} {_nd(payload)}"
    return f"IPv6 {src} > {dst} {_PROTOCOLS.get(payload[6], f'next header {payload[6]}')}"


def _nd(payload: bytes) -> str:
    message = parse_nd(payload).message
    options = message.options
    link_layer = options.source_mac or options.target_mac
    named = f" at {link_layer}" if link_layer else ""
    match message:
        case NeighbourSolicitation(target):
            return f"ND who has {target}{named.replace(' at', ', says')}"
        case NeighbourAdvertisement(target):
            return f"ND {target} is{named or ' here'}"
        case Redirect(target, destination):
            return f"ND redirect: {destination} by {target}{named}"
        case RouterSolicitation():
            return f"ND where is a router{named.replace(' at', ', says')}"
        case RouterAdvertisement(lifetime):
            return f"ND router{named}, for {lifetime} s"
