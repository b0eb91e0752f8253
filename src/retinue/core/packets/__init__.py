"""Frames to and from bytes: Ethernet, ARP, UDP over IPv4, DHCPv4, neighbour discovery over IPv6.

Parsing checks and raises `FrameError`, never anything else; building fills in lengths, checksums and padding.
"""

from retinue.core.packets.arp import ARP, ArpOp, arp_reply, arp_request, parse_arp
from retinue.core.packets.dhcp import (
    CLIENT_PORT,
    DHCP,
    FLAG_BROADCAST,
    INFINITE_LEASE,
    SERVER_PORT,
    BootOp,
    MessageType,
    dhcp_frame,
    parse_dhcp,
    parse_dhcp_frame,
)
from retinue.core.packets.dhcp import build as build_dhcp
from retinue.core.packets.dhcp_messages import (
    OPTIONS_BYTES,
    OWN_OPTIONS,
    ack,
    decline,
    discover,
    kept_options,
    nak,
    offer,
    release,
    renewal,
    request,
)
from retinue.core.packets.dhcp_options import Option, Options, build_options, parse_options
from retinue.core.packets.errors import FrameError
from retinue.core.packets.ethernet import (
    BROADCAST,
    MIN_FRAME,
    ZERO_MAC,
    Ethernet,
    EtherType,
    mac_bytes,
    mac_text,
    parse,
)
from retinue.core.packets.ipv4 import UDPDatagram, build_udp4, checksum, parse_udp4
from retinue.core.packets.ipv6 import (
    ICMPV6,
    IPv6Packet,
    build_icmpv6,
    build_ipv6,
    parse_ipv6,
    upper_checksum,
)
from retinue.core.packets.nd import (
    HOP_LIMIT,
    ND,
    NDType,
    NeighbourAdvertisement,
    NeighbourSolicitation,
    Redirect,
    RouterAdvertisement,
    RouterSolicitation,
    nd_frame,
    parse_nd,
)
from retinue.core.packets.nd_options import Options as NDOptions
from retinue.core.packets.nd_options import PrefixInformation
from retinue.core.packets.summary import summarize

__all__ = [
    "ARP",
    "BROADCAST",
    "CLIENT_PORT",
    "DHCP",
    "FLAG_BROADCAST",
    "HOP_LIMIT",
    "ICMPV6",
    "INFINITE_LEASE",
    "MIN_FRAME",
    "ND",
    "OPTIONS_BYTES",
    "OWN_OPTIONS",
    "SERVER_PORT",
    "ZERO_MAC",
    "ArpOp",
    "BootOp",
    "EtherType",
    "Ethernet",
    "FrameError",
    "IPv6Packet",
    "MessageType",
    "NDOptions",
    "NDType",
    "NeighbourAdvertisement",
    "NeighbourSolicitation",
    "Option",
    "Options",
    "PrefixInformation",
    "Redirect",
    "RouterAdvertisement",
    "RouterSolicitation",
    "UDPDatagram",
    "ack",
    "arp_reply",
    "arp_request",
    "build_dhcp",
    "build_icmpv6",
    "build_ipv6",
    "build_options",
    "build_udp4",
    "checksum",
    "decline",
    "dhcp_frame",
    "discover",
    "kept_options",
    "mac_bytes",
    "mac_text",
    "nak",
    "nd_frame",
    "offer",
    "parse",
    "parse_arp",
    "parse_dhcp",
    "parse_dhcp_frame",
    "parse_ipv6",
    "parse_nd",
    "parse_options",
    "parse_udp4",
    "release",
    "renewal",
    "request",
    "summarize",
    "upper_checksum",
]
