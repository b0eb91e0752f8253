"""FIP, the FCoE Initialization Protocol (FC-BB-5, 7.8): how a node finds a forwarder and logs in there.

FIP is what a controller must read of FCoE. The frames of storage itself (EtherType 0x8906) have the address
of Fibre Channel in the low half of their MAC (FPMA: FC-MAP and FC_ID), and are forwarded by that alone.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from retinue.core.model import Mac
from retinue.core.packets.errors import FrameError
from retinue.core.packets.ethernet import mac_bytes, mac_text

ALL_ENODES: Mac = "01:10:18:01:00:01"
ALL_FORWARDERS: Mac = "01:10:18:01:00:02"
"""Groups (FC-BB-5, table 48): what a forwarder says to all nodes, and a node to all forwarders."""
MOST_DESCRIPTORS = 128
"""In one message: as many ports as one "clear virtual links" of the largest frame names."""
_VERSION = 1
_HEADER = struct.Struct("!BxHxBHH")
_FC_HEADER = struct.Struct("!B3sB3sB3sBBHHHI")


class Operation(IntEnum):
    """FC-BB-5, table 36."""

    DISCOVERY = 1
    LINK_SERVICE = 2
    CONTROL = 3
    VLAN = 4


SOLICITATION, ADVERTISEMENT = 1, 2
REQUEST, REPLY = 1, 2
"""Subcodes of LINK_SERVICE, and of VLAN."""
KEEP_ALIVE, CLEAR_LINKS = 1, 2
"""Subcodes of CONTROL."""
FLAG_FORWARDER = 0x0001
FLAG_FPMA = 0x8000


class Descriptor(IntEnum):
    """FC-BB-5, table 38."""

    MAC = 2
    FC_MAP = 3
    NAME = 4
    FLOGI = 7
    FDISC = 8
    LOGO = 9
    VN_PORT = 11
    KEEP_ALIVE_PERIOD = 12


LINK_SERVICES = (Descriptor.FLOGI, Descriptor.FDISC, Descriptor.LOGO)


class Command(IntEnum):
    """Extended link services (FC-LS): the first byte of their payload."""

    REJECT = 0x01
    ACCEPT = 0x02
    FLOGI = 0x04
    LOGO = 0x05
    FDISC = 0x51


@dataclass(frozen=True, slots=True)
class LinkService:
    """A link service inside a FIP message, as far as snooping reads it."""

    kind: Descriptor
    """FLOGI, FDISC or LOGO: also of the answer to one."""
    command: int
    d_id: int
    s_id: int
    exchange: int
    """OX_ID, by which a question and its answer belong together."""

    def build(self) -> bytes:
        """The descriptor's body, the service's parameters left out."""
        r_ctl = 0x23 if self.command in (Command.ACCEPT, Command.REJECT) else 0x22
        to, by = self.d_id.to_bytes(3, "big"), self.s_id.to_bytes(3, "big")
        header = _FC_HEADER.pack(r_ctl, to, 0, by, 1, b"\x29\0\0", 0, 0, 0, self.exchange, 0xFFFF, 0)
        return b"\0\0" + header + bytes([self.command, 0, 0, 0])


@dataclass(frozen=True, slots=True)
class Fip:
    """One message. `descriptors`: type and body of each, in order."""

    operation: int
    subcode: int
    flags: int = FLAG_FPMA
    descriptors: tuple[tuple[int, bytes], ...] = ()

    @property
    def mac(self) -> Mac | None:
        """The address in its MAC descriptor, the last where there are several."""
        found = [body for kind, body in self.descriptors if kind == Descriptor.MAC]
        return mac_text(found[-1]) if found else None

    @property
    def service(self) -> LinkService | None:
        """Its link service. Raises FrameError for one that is cut off."""
        for kind, body in self.descriptors:
            if kind in LINK_SERVICES:
                return _service(Descriptor(kind), body)
        return None

    @property
    def ports(self) -> tuple[Mac, ...]:
        """The VN_Ports that it names. Raises FrameError."""
        found = [body for kind, body in self.descriptors if kind == Descriptor.VN_PORT]
        if any(len(body) < 6 for body in found):
            raise FrameError("FIP: a VN_Port identification that is cut off")
        return tuple(mac_text(body[:6]) for body in found)

    def build(self) -> bytes:
        """What follows the EtherType. A body is padded to words. Raises FrameError for one too long."""
        parts = []
        for kind, body in self.descriptors:
            padded = body + bytes(-(len(body) + 2) % 4)
            words = (len(padded) + 2) // 4
            if words > 0xFF:
                raise FrameError(f"FIP: a descriptor of {len(body)} bytes is too long")
            parts.append(bytes([kind, words]) + padded)
        listed = b"".join(parts)
        head = _HEADER.pack(_VERSION << 4, self.operation, self.subcode, len(listed) // 4, self.flags)
        return head + listed


def mac_descriptor(address: Mac) -> tuple[int, bytes]:
    return Descriptor.MAC, mac_bytes(address)


def vn_port_descriptor(address: Mac) -> tuple[int, bytes]:
    """A VN_Port by its MAC and the FC_ID in that; its name is left out."""
    six = mac_bytes(address)
    return Descriptor.VN_PORT, six + b"\0" + six[3:] + bytes(8)


def parse_fip(payload: bytes) -> Fip:
    """What follows the EtherType, padding included. Raises FrameError."""
    if len(payload) < _HEADER.size:
        raise FrameError(f"FIP of {len(payload)} bytes: shorter than its header of {_HEADER.size}")
    version, operation, subcode, words, flags = _HEADER.unpack_from(payload)
    if version >> 4 != _VERSION:
        raise FrameError(f"FIP of version {version >> 4}: only {_VERSION} is known")
    listed = payload[_HEADER.size : _HEADER.size + words * 4]
    if len(listed) < words * 4:
        raise FrameError(f"FIP: {words * 4} bytes of descriptors are told, {len(listed)} are there")
    return Fip(operation, subcode, flags, tuple(_descriptors(bytes(listed))))


def _descriptors(listed: bytes) -> Iterator[tuple[int, bytes]]:
    at, count = 0, 0
    while at < len(listed):
        kind, length = listed[at], listed[at + 1] * 4
        count += 1
        if not length or at + length > len(listed) or count > MOST_DESCRIPTORS:
            raise FrameError("FIP: a descriptor that does not fit its list, or too many of them")
        body = listed[at + 2 : at + length]
        if kind == Descriptor.MAC and len(body) != 6:
            raise FrameError("FIP: a MAC descriptor without a MAC")
        yield kind, body
        at += length


def _service(kind: Descriptor, body: bytes) -> LinkService:
    start = 2 + _FC_HEADER.size
    if len(body) <= start:
        raise FrameError(f"FIP: a link service of {len(body)} bytes is cut off")
    _, to, _, by, _, _, _, _, _, exchange, _, _ = _FC_HEADER.unpack_from(body, 2)
    return LinkService(kind, body[start], int.from_bytes(to, "big"), int.from_bytes(by, "big"), exchange)
