"""Frames for guests to send, as hexadecimal for `sendraw`: honest ones and forged ones. Built by scapy."""

from typing import Any

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

BROADCAST = "ff:ff:ff:ff:ff:ff"
NOBODY = "0.0.0.0"
EVERYBODY = "255.255.255.255"


def hexed(packet: Any) -> str:
    return bytes(packet).hex()


def packet(src: str, dst: str, from_ip: str, to_ip: str, text: str = "forged", dport: int = 9999) -> str:
    """A UDP datagram from one MAC and IP to another; `text` is its payload, to know it by."""
    return hexed(Ether(src=src, dst=dst) / IP(src=from_ip, dst=to_ip) / UDP(sport=9999, dport=dport) / text)


def arp(op: str, sha: str, spa: str, tpa: str, *, tha: str = BROADCAST, src: str = "", dst: str = "") -> str:
    """An ARP message ("who-has", "is-at"); `src` and `dst` are the frame's, where they are not its own."""
    ether = Ether(src=src or sha, dst=dst or (BROADCAST if op == "who-has" else tha))
    asked = "00:00:00:00:00:00" if op == "who-has" else tha
    return hexed(ether / ARP(op=op, hwsrc=sha, psrc=spa, hwdst=asked, pdst=tpa))


def from_client(
    mac: str,
    kind: str,
    *,
    ciaddr: str = NOBODY,
    to: str = EVERYBODY,
    dst: str = BROADCAST,
    chaddr: str = "",
    xid: int = 0x5EED,
    **options: str,
) -> str:
    """A DHCP client's message, such as "release"; options by scapy's names, such as requested_addr."""
    return hexed(
        Ether(src=mac, dst=dst)
        / IP(src=ciaddr, dst=to)
        / UDP(sport=68, dport=67)
        / BOOTP(op=1, xid=xid, ciaddr=ciaddr, chaddr=bytes.fromhex((chaddr or mac).replace(":", "")))
        / DHCP(options=[("message-type", kind), *options.items(), "end"])
    )


def from_server(
    kind: str, *, src: str, from_ip: str, client: str, yiaddr: str, dst: str = BROADCAST, xid: int = 0x5EED
) -> str:
    """A DHCP server's message, "offer" or "ack", that gives `yiaddr` to the client."""
    options = [("message-type", kind), ("server_id", from_ip), ("lease_time", 600), "end"]
    return hexed(
        Ether(src=src, dst=dst)
        / IP(src=from_ip, dst=EVERYBODY)
        / UDP(sport=67, dport=68)
        / BOOTP(op=2, xid=xid, yiaddr=yiaddr, chaddr=bytes.fromhex(client.replace(":", "")))
        / DHCP(options=options)
    )


def dhcp_type(ether: Any) -> str:
    """The kind of a DHCP message, such as "discover"; "" for what is none."""
    if not ether.haslayer(DHCP):
        return ""
    names = {1: "discover", 2: "offer", 3: "request", 4: "decline", 5: "ack", 6: "nak", 7: "release"}
    return next((names[o[1]] for o in ether[DHCP].options if o[0] == "message-type"), "")


def carries(ether: Any, text: str) -> bool:
    return bool(ether.haslayer(Raw)) and text.encode() in bytes(ether[Raw])


__all__ = ["ARP", "BROADCAST", "DHCP", "ICMP", "IP", "TCP", "UDP", "Ether", "Raw", "BOOTP"]
