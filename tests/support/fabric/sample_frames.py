"""Frames of every kind that a switch must read: whole, odd, and damaged; made from a seed."""

import random
from ipaddress import IPv4Address, IPv6Address

from retinue.core.packets import ARP, Ethernet, arp_request, checksum, dhcp_frame, discover, mac_bytes

ICMP4, TCP4, UDP4 = 1, 6, 17
MACS = ("52:54:00:00:00:01", "52:54:00:00:00:02", "00:00:de:ad:be:ef", "ff:ff:ff:ff:ff:ff")
IPS = tuple(IPv4Address(text) for text in ("10.0.0.5", "10.0.0.6", "192.168.1.1", "0.0.0.0"))
_VLAN_TYPES = (b"\x81\x00", b"\x88\xa8")

Body = tuple[int, bytes]
"""Protocol number, and what the IP packet carries."""


def ipv4(
    src: IPv4Address, dst: IPv4Address, body: Body, ttl: int = 64, fragment: int = 0, options: bytes = b""
) -> bytes:
    """An IPv4 packet with a right header checksum; a TCP or UDP checksum at its place is filled in."""
    protocol, data = body
    at = {TCP4: 16, UDP4: 6}.get(protocol)
    if at is not None and len(data) >= at + 2:
        filled = bytearray(data)
        filled[at : at + 2] = b"\0\0"
        pseudo = src.packed + dst.packed + bytes((0, protocol)) + len(data).to_bytes(2, "big")
        filled[at : at + 2] = checksum(pseudo + filled).to_bytes(2, "big")
        data = bytes(filled)
    head = bytearray(20) + options
    head[0] = 0x40 | len(head) // 4
    head[2:4] = (len(head) + len(data)).to_bytes(2, "big")
    head[6:8] = fragment.to_bytes(2, "big")
    head[8], head[9] = ttl, protocol
    head[12:20] = src.packed + dst.packed
    head[10:12] = checksum(bytes(head)).to_bytes(2, "big")
    return bytes(head) + data


def udp(payload: bytes, sport: int = 7, dport: int = 9) -> Body:
    length = 8 + len(payload)
    return UDP4, b"".join(n.to_bytes(2, "big") for n in (sport, dport, length, 0)) + payload


def tcp(payload: bytes, sport: int = 7, dport: int = 80, header: int = 20) -> Body:
    head = bytearray(20)
    head[0:2], head[2:4] = sport.to_bytes(2, "big"), dport.to_bytes(2, "big")
    head[12], head[13] = header // 4 << 4, 0x18
    return TCP4, bytes(head) + payload


def icmp(kind: int, payload: bytes) -> Body:
    head = bytes((kind, 0, 0, 0, 0, 1, 0, 1))
    total = checksum(head + payload).to_bytes(2, "big")
    return ICMP4, head[:2] + total + head[4:] + payload


def ipv6_udp(hops: int = 64, extension: bytes = b"", first: int = 17) -> bytes:
    """A UDP packet of IPv6, with extension headers before it, the first of them of type `first`."""
    data = extension + udp(b"six")[1]
    head = bytes((0x60, 0, 0, 0)) + len(data).to_bytes(2, "big") + bytes((first, hops))
    src, dst = IPv6Address("fd00::5"), IPv6Address("fd00::6")
    return Ethernet(MACS[2], MACS[0], 0x86DD, head + src.packed + dst.packed + data).build()


def ipv6_solicitation(options: int = 1) -> bytes:
    """A neighbour solicitation with its source link-layer address option, so many times."""
    target = IPv6Address("fe80::1").packed
    data = bytes((135, 0, 0, 0, 0, 0, 0, 0)) + target + (bytes((1, 1)) + mac_bytes(MACS[0])) * options
    head = bytes((0x60, 0, 0, 0)) + len(data).to_bytes(2, "big") + bytes((58, 255))
    return Ethernet(MACS[2], MACS[0], 0x86DD, head + target + target + data).build()


def some_frame(rng: random.Random) -> bytes:
    """A well-formed frame."""
    src, dst = rng.choice(MACS[:2]), rng.choice(MACS)
    ip_src, ip_dst = rng.choice(IPS), rng.choice(IPS)
    match rng.randrange(10):
        case 0:
            frame = arp_request(src, ip_src, ip_dst)
        case 1:
            body = ARP(
                rng.choice((0, 1, 2, 2, 3, 255, 256, 257)), src, ip_src, rng.choice(MACS), ip_dst
            ).build()
            frame = Ethernet(dst, src, rng.choice((0x0806, 0x0806, 0x8035)), body).build()
        case 2:
            frame = dhcp_frame(discover(src, rng.getrandbits(32)), src, dst, ip_src, ip_dst, 68, 67)
        case 3:
            frame = _other(rng, src, dst)
        case _:
            packet = ipv4(
                ip_src,
                ip_dst,
                _body(rng),
                ttl=rng.choice((0, 1, 2, 64, 64, 255)),
                fragment=rng.choice((0, 0, 0x4000, 0x4000, 0x2000, 0x0001, 0x2010)),
                options=rng.choice((b"", b"", b"", bytes((1, 1, 1, 0)))),
            )
            frame = Ethernet(dst, src, 0x0800, packet).build()
    if rng.random() < 0.2:
        tag = rng.choice((b"\x81\x00", b"\x81\x00", b"\x88\xa8")) + rng.choice((0, 5, 0xE005, 6)).to_bytes(
            2, "big"
        )
        frame = frame[:12] + tag + frame[12:]
    return frame


def damaged(rng: random.Random, frame: bytes) -> bytes:
    """The frame with some bytes changed, or cut off; still one that a link carries."""
    bad = bytearray(frame)
    for _ in range(rng.randrange(3)):
        bad[rng.randrange(12, min(len(bad), 60))] = rng.choice((0, 1, rng.randrange(256), 255))
    if rng.random() < 0.6:
        del bad[rng.randrange(14, len(bad)) :]
    if bytes(bad[12:14]) in _VLAN_TYPES:
        if len(bad) < 20:
            return frame  # The kernel throws away what ends so near its tag, before a switch sees it.
        bad[14] &= 0xEF  # It also loses the tag's drop-eligible bit.
    return bytes(bad)


def _body(rng: random.Random) -> Body:
    payload = rng.randbytes(rng.randrange(40))
    match rng.randrange(6):
        case 0:
            return icmp(rng.choice((0, 3, 8)), payload)
        case 1:
            return tcp(payload, dport=rng.choice((0, 80, 443)), header=rng.choice((20, 20, 20, 24, 16)))
        case 2:
            return rng.choice((0, 2, 58, 132)), payload
        case _:
            return udp(payload, dport=rng.choice((0, 9, 67, 68)))


def _other(rng: random.Random, src: str, dst: str) -> bytes:
    inner = ipv4(IPS[0], IPS[1], udp(b"in snap"))
    snap = bytes.fromhex("aaaa03000000")
    fragment = bytes((17, 0)) + rng.choice((0, 1, 8, 9)).to_bytes(2, "big") + bytes(4)
    return rng.choice(
        (
            ipv6_udp(),
            ipv6_udp(hops=1),
            ipv6_udp(first=0, extension=bytes((17, 0)) + bytes(6)),
            ipv6_udp(first=60, extension=bytes((44, 1)) + bytes(14) + fragment),
            ipv6_udp(first=44, extension=fragment),
            ipv6_udp(first=51, extension=bytes((17, 1)) + bytes(10)),
            ipv6_solicitation(rng.randrange(3)),
            Ethernet(dst, src, 0x88B5, rng.randbytes(50)).build(),
            Ethernet(dst, src, 8 + len(inner), snap + b"\x08\x00" + inner).build(),
            Ethernet(dst, src, 48, snap + b"\x00\x01" + bytes(40)).build(),
            Ethernet(dst, src, 40, b"\x42\x42\x03" + bytes(37)).build(),
            mac_bytes(dst) + mac_bytes(src) + b"\x08\x00\x45\x00",
        )
    )
