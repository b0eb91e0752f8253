"""Frames for guests to send, as hexadecimal for `sendraw`: honest ones and spoofed ones. Built by scapy."""

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


def packet(src: str, dst: str, from_ip: str, to_ip: str, text: str = "spoofed", dport: int = 9999) -> str:
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
    **options: str | bytes,
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


def damaged_dhcp(src: str, sport: int = 68, dport: int = 67, dst: str = BROADCAST) -> dict[str, str]:
    """Frames that are DHCP by their ports and no sound message, by what is wrong with them."""
    good = bytes(
        BOOTP(op=1, xid=0x5EED, chaddr=bytes.fromhex(src.replace(":", "")))
        / DHCP(options=[("message-type", "discover"), "end"])
    )
    fixed, options = good[:240], good[240:]
    payloads = {
        "empty": b"",
        "cut off": good[:100],
        "cut off before the cookie": good[:236],
        "wrong cookie": good[:236] + b"\1\2\3\4" + options,
        "hlen 255": good[:2] + b"\xff" + good[3:],
        "hlen 0": good[:2] + b"\0" + good[3:],
        "htype 99": good[:1] + b"\x63" + good[2:],
        "op 9": b"\x09" + good[1:],
        "option overruns": fixed + b"\x35\x01\x01\x37\xc8abc",
        "option without length": fixed + b"\x35\x01\x01\x37",
        "message type of two bytes": fixed + b"\x35\x02\x01\x01\xff",
        "message type 99": fixed + b"\x35\x01\x63\xff",
        "address of three bytes": fixed + b"\x35\x01\x03\x32\x03\x0a\x01\x00\xff",
    }

    def frame(payload: bytes, **udp: int) -> str:
        head = Ether(src=src, dst=dst) / IP(src=NOBODY, dst=EVERYBODY)
        return hexed(head / UDP(sport=sport, dport=dport, **udp) / payload)

    found = {what: frame(payload) for what, payload in payloads.items()}
    found["UDP longer than IP"] = frame(good, len=9999)
    found["UDP shorter than IP"] = frame(good, len=20)
    return found


def damaged_arp(src: str) -> dict[str, str]:
    """Frames of type ARP that are no sound ARP, by what is wrong with them."""
    good = bytes.fromhex(arp("who-has", src, NOBODY, "10.0.0.254"))
    head, body = good[:14], good[14:]
    return {
        what: (head + damaged).hex()
        for what, damaged in {
            "cut off": body[:20],
            "nearly nothing": body[:2],
            "hlen 8": body[:4] + b"\x08" + body[5:],
            "plen 16": body[:5] + b"\x10" + body[6:],
            "for another network": body[:2] + b"\x86\xdd" + body[4:],
        }.items()
    }


def dhcp_type(ether: Any) -> str:
    """The kind of a DHCP message, such as "discover"; "" for what is none."""
    if not ether.haslayer(DHCP):
        return ""
    names = {1: "discover", 2: "offer", 3: "request", 4: "decline", 5: "ack", 6: "nak", 7: "release"}
    return next((names[o[1]] for o in ether[DHCP].options if o[0] == "message-type"), "")


def carries(ether: Any, text: str) -> bool:
    return bool(ether.haslayer(Raw)) and text.encode() in bytes(ether[Raw])


__all__ = ["ARP", "BROADCAST", "DHCP", "ICMP", "IP", "TCP", "UDP", "Ether", "Raw", "BOOTP"]
