"""Ethernet II frames, with or without one 802.1Q tag."""

import struct
from dataclasses import dataclass

from retinue.core.model import Mac
from retinue.core.packets.errors import FrameError

BROADCAST: Mac = "ff:ff:ff:ff:ff:ff"
ZERO_MAC: Mac = "00:00:00:00:00:00"

MIN_FRAME = 60
"""Shortest frame on a wire, in bytes, without the check sequence (IEEE 802.3); shorter ones are padded."""


class EtherType:
    """Values of the type field (IANA "ethertypes")."""

    IPV4 = 0x0800
    ARP = 0x0806
    RARP = 0x8035
    VLAN = 0x8100
    IPV6 = 0x86DD
    EXPERIMENT = 0x88B5
    """IEEE Std 802, Local Experimental EtherType 1: between those who agree on it."""
    LLDP = 0x88CC
    FCOE = 0x8906
    FIP = 0x8914


_HEADER = struct.Struct("!6s6sH")
_TAG = struct.Struct("!HH")
_VID = 0x0FFF


@dataclass(frozen=True, slots=True)
class Ethernet:
    """One frame. `payload` is all that follows the type field, padding included.

    `vlan` is the VLAN id of an 802.1Q tag, None without a tag; the tag's priority bits are not kept.
    `ethertype` is that behind the tag. Under 0x600 it is a length (IEEE 802.3 with LLC), and kept as it is.
    """

    dst: Mac
    src: Mac
    ethertype: int
    payload: bytes
    vlan: int | None = None

    def build(self) -> bytes:
        """The frame's bytes, zero-padded to 60. Raises FrameError for a VLAN id or type out of range."""
        if not 0 <= self.ethertype <= 0xFFFF:
            raise FrameError(f"Ethernet type {self.ethertype:#x} does not fit 16 bits")
        if self.vlan is None:
            head = _HEADER.pack(mac_bytes(self.dst), mac_bytes(self.src), self.ethertype)
        elif 0 <= self.vlan <= _VID:
            head = _HEADER.pack(mac_bytes(self.dst), mac_bytes(self.src), EtherType.VLAN)
            head += _TAG.pack(self.vlan, self.ethertype)
        else:
            raise FrameError(f"VLAN id {self.vlan} is not between 0 and 4095")
        return (head + self.payload).ljust(MIN_FRAME, b"\0")


def parse(frame: bytes) -> Ethernet:
    """Read a frame. Raises FrameError if it ends within its header or tag."""
    if len(frame) < _HEADER.size:
        raise FrameError(f"Ethernet frame of {len(frame)} bytes: shorter than its header of {_HEADER.size}")
    dst, src, ethertype = _HEADER.unpack_from(frame)
    if ethertype != EtherType.VLAN:
        return Ethernet(mac_text(dst), mac_text(src), ethertype, bytes(frame[_HEADER.size :]))
    start = _HEADER.size + _TAG.size
    if len(frame) < start:
        raise FrameError(f"Ethernet frame of {len(frame)} bytes: ends within its VLAN tag")
    tci, ethertype = _TAG.unpack_from(frame, _HEADER.size)
    return Ethernet(mac_text(dst), mac_text(src), ethertype, bytes(frame[start:]), tci & _VID)


def tagged(frame: bytes, vlan: int) -> bytes:
    """An untagged frame with an 802.1Q tag; with VLAN 0 as it is."""
    if not vlan:
        return frame
    return frame[:12] + struct.pack("!HH", EtherType.VLAN, vlan) + frame[12:]


def mac_bytes(address: Mac) -> bytes:
    """The six bytes of a MAC address. Raises FrameError if it is none."""
    try:
        number = bytes.fromhex(address.replace(":", ""))
    except ValueError as error:
        raise FrameError(f"not a MAC address: {address!r}") from error
    if len(number) != 6:
        raise FrameError(f"not a MAC address: {address!r}")
    return number


def mac_text(six: bytes) -> Mac:
    return six.hex(":")
