"""A row of the spoofing log as a frame: what it claimed is known, what else was in it is not kept.

"why was this dropped?" is asked of such a frame as of any other.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address
from zlib import crc32

from retinue.core.model import IP, Mac
from retinue.core.model.link_local import ALL_NODES
from retinue.core.model.network import Network
from retinue.core.packets import (
    BROADCAST,
    ND,
    ZERO_MAC,
    Ethernet,
    EtherType,
    NDOptions,
    NeighbourAdvertisement,
    arp_request,
    build_udp4,
    dhcp_frame,
    discover,
    nd_frame,
)
from retinue.core.packets.dhcp import CLIENT_PORT, SERVER_PORT
from retinue.core.packets.udp6 import build_udp6
from retinue.core.snooping.spoofing import SpoofAttempt, SpoofingKind
from retinue.core.tracing.places import Place, at_port, place
from retinue.core.tracing.question import SOURCE_PORT, TEXT

NOBODY, EVERYBODY = IPv4Address(0), IPv4Address(0xFFFFFFFF)
DISCARD = 9
"""The port to which what is made up goes (RFC 863)."""
UNKNOWN_TYPE = 0x88B5
"""IEEE 802: for local experiments; where nothing is kept but a MAC."""


def id_of(row: SpoofAttempt) -> str:
    """What a row is called by: the same for as long as the log has it, and afterwards if it comes again."""
    key = (row.kind, row.switch, row.port, row.claimed_mac, row.claimed_ip)
    return f"{crc32(' '.join(map(str, key)).encode()):08x}"


def frame_of_forgery(net: Network, row: SpoofAttempt) -> tuple[Place, bytes, tuple[str, ...]]:
    """Where it came in, a frame with its claims, and what is to be known about that frame."""
    at = place(net, row.switch, row.port)
    own = at_port(net, at).mac
    times = "once" if row.count == 1 else f"{row.count} times"
    notes = [f"seen {times}; the frame is made of what the log keeps of it: kind, port, MAC and address"]
    if row.kind is SpoofingKind.DHCP:
        notes.append(
            f"no switch dropped it: the controller has judged that it spoke for {row.claimed_mac} "
            f"{row.claimed_ip or 'without an address'}, which was not this NIC's to speak for"
        )
    return at, _built(net, row, own or row.claimed_mac or ZERO_MAC), tuple(notes)


def _built(net: Network, row: SpoofAttempt, own: Mac) -> bytes:
    mac, ip = row.claimed_mac or own, _address(row.claimed_ip)
    gateway = net.gateway_mac_of(net.server_of_edge(row.switch))
    match row.kind, ip:
        case SpoofingKind.ARP, IPv4Address():
            # The frame itself came from the NIC's own MAC, or it would be a spoofed MAC.
            asked = arp_request(mac, ip, ip)
            return asked[:6] + bytes.fromhex(own.replace(":", "")) + asked[12:]
        case SpoofingKind.ND, IPv6Address():
            said = NeighbourAdvertisement(ip, options=NDOptions(target_mac=mac))
            return nd_frame(ND(ip, ALL_NODES, said), own)
        case SpoofingKind.ROGUE_DHCP, IPv4Address():
            payload = build_udp4(ip, EVERYBODY, SERVER_PORT, CLIENT_PORT, TEXT)
            return Ethernet(BROADCAST, mac, EtherType.IPV4, payload).build()
        case SpoofingKind.DHCP, _:
            return dhcp_frame(discover(mac, 1), own, BROADCAST, NOBODY, EVERYBODY, CLIENT_PORT, SERVER_PORT)
        case _, IPv4Address():
            payload = build_udp4(ip, EVERYBODY, SOURCE_PORT, DISCARD, TEXT)
            return Ethernet(gateway, mac, EtherType.IPV4, payload).build()
        case _, IPv6Address():
            payload = build_udp6(ip, ALL_NODES, SOURCE_PORT, DISCARD, TEXT)
            return Ethernet(gateway, mac, EtherType.IPV6, payload).build()
        case _:
            return Ethernet(gateway, mac, UNKNOWN_TYPE, TEXT).build()


def _address(text: str) -> IP | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


__all__ = ["frame_of_forgery", "id_of"]
