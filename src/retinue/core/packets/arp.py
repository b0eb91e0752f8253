"""ARP for IPv4 over Ethernet (RFC 826), and what address conflict detection adds (RFC 5227)."""

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address

from retinue.core.model import Mac
from retinue.core.packets.errors import FrameError
from retinue.core.packets.ethernet import BROADCAST, ZERO_MAC, Ethernet, EtherType, mac_bytes, mac_text

_BODY = struct.Struct("!HHBBH6s4s6s4s")
_ETHERNET, _IPV4, _MAC_BYTES, _IP_BYTES = 1, EtherType.IPV4, 6, 4
_NOBODY = IPv4Address(0)


class ArpOp(IntEnum):
    """The operations in use here (RFC 826)."""

    REQUEST = 1
    REPLY = 2


@dataclass(frozen=True, slots=True)
class ARP:
    """Sender and target, hardware and protocol addresses, in RFC 826's letters.

    `op` is any 16-bit number; 1 is a request, 2 a reply.
    """

    op: int
    sha: Mac
    spa: IPv4Address
    tha: Mac
    tpa: IPv4Address

    @property
    def is_probe(self) -> bool:
        """A request from nobody yet, "is this address in use?" (RFC 5227 section 1.1: an all-zero sender)."""
        return self.op == ArpOp.REQUEST and self.spa == _NOBODY

    @property
    def is_announcement(self) -> bool:
        """Sender and target address are the same: "I am using this address now" (RFC 5227 section 2.3)."""
        return self.spa == self.tpa and self.spa != _NOBODY

    def build(self) -> bytes:
        """The 28 bytes that follow the Ethernet header."""
        if not 0 <= self.op <= 0xFFFF:
            raise FrameError(f"ARP operation {self.op} does not fit 16 bits")
        return _BODY.pack(
            _ETHERNET,
            _IPV4,
            _MAC_BYTES,
            _IP_BYTES,
            self.op,
            mac_bytes(self.sha),
            self.spa.packed,
            mac_bytes(self.tha),
            self.tpa.packed,
        )


def parse_arp(payload: bytes) -> ARP:
    """Read an Ethernet payload of type 0x0806; padding behind it is ignored.

    Raises FrameError if it is cut short or not about IPv4 over Ethernet.
    """
    if len(payload) < _BODY.size:
        raise FrameError(f"ARP of {len(payload)} bytes: shorter than {_BODY.size}")
    htype, ptype, hlen, plen, op, sha, spa, tha, tpa = _BODY.unpack_from(payload)
    if (htype, hlen) != (_ETHERNET, _MAC_BYTES):
        raise FrameError(f"ARP hardware type {htype}, address length {hlen}: not Ethernet (1, 6)")
    if (ptype, plen) != (_IPV4, _IP_BYTES):
        raise FrameError(f"ARP protocol {ptype:#06x}, address length {plen}: not IPv4 (0x0800, 4)")
    return ARP(op, mac_text(sha), IPv4Address(spa), mac_text(tha), IPv4Address(tpa))


def arp_request(sha: Mac, spa: IPv4Address, tpa: IPv4Address, dst: Mac = BROADCAST) -> bytes:
    """The frame that asks who has `tpa`; to everyone, or to `dst` alone (unicast poll, RFC 1122 2.3.2.1)."""
    body = ARP(ArpOp.REQUEST, sha, spa, ZERO_MAC, tpa).build()
    return Ethernet(dst, sha, EtherType.ARP, body).build()


def arp_reply(to: ARP, mac: Mac) -> bytes:
    """The frame that answers `to`: the address it asks for is at `mac`."""
    body = ARP(ArpOp.REPLY, mac, to.tpa, to.sha, to.spa).build()
    return Ethernet(to.sha, mac, EtherType.ARP, body).build()
