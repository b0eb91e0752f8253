"""Frames to and from bytes: Ethernet, ARP, UDP over IPv4, DHCPv4.

Parsing checks and raises `FrameError`, never anything else; building fills in lengths, checksums and padding.
"""

from retinue.packets.arp import ARP, ArpOp, arp_reply, arp_request, parse_arp
from retinue.packets.dhcp import (
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
from retinue.packets.dhcp import build as build_dhcp
from retinue.packets.dhcp_messages import ack, decline, discover, nak, offer, release, renewal, request
from retinue.packets.dhcp_options import Option, Options, build_options, parse_options
from retinue.packets.errors import FrameError
from retinue.packets.ethernet import (
    BROADCAST,
    MIN_FRAME,
    ZERO_MAC,
    Ethernet,
    EtherType,
    mac_bytes,
    mac_text,
    parse,
)
from retinue.packets.ipv4 import UDPDatagram, build_udp4, checksum, parse_udp4
from retinue.packets.summary import summarize

__all__ = [
    "ARP",
    "BROADCAST",
    "CLIENT_PORT",
    "DHCP",
    "FLAG_BROADCAST",
    "INFINITE_LEASE",
    "MIN_FRAME",
    "SERVER_PORT",
    "ZERO_MAC",
    "ArpOp",
    "BootOp",
    "EtherType",
    "Ethernet",
    "FrameError",
    "MessageType",
    "Option",
    "Options",
    "UDPDatagram",
    "ack",
    "arp_reply",
    "arp_request",
    "build_dhcp",
    "build_options",
    "build_udp4",
    "checksum",
    "decline",
    "dhcp_frame",
    "discover",
    "mac_bytes",
    "mac_text",
    "nak",
    "offer",
    "parse",
    "parse_arp",
    "parse_dhcp",
    "parse_dhcp_frame",
    "parse_options",
    "parse_udp4",
    "release",
    "renewal",
    "request",
    "summarize",
]
