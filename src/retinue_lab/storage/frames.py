"""Frames of Fibre Channel over Ethernet (FC-BB-5, 7.7), and what a forwarder reads and says in them.

A frame on the wire is: Ethernet, version and start of frame (14 bytes), header of Fibre Channel (24), data,
check sequence (4), end of frame (4).
"""

import struct
import zlib
from dataclasses import dataclass

from retinue.core.model import Mac
from retinue.core.packets import Ethernet, EtherType, FrameError

FC_MAP = bytes.fromhex("0efc00")
"""The fabric's: with an FC_ID it makes the MAC of a port (FPMA)."""
FABRIC, FABRIC_CONTROLLER, DIRECTORY = 0xFFFFFE, 0xFFFFFD, 0xFFFFFC
WELL_KNOWN = frozenset({FABRIC, FABRIC_CONTROLLER, DIRECTORY})
"""Well-known addresses (FC-FS): the login server, who tells of changes, and the name server."""
LARGEST_DATA = 2112
"""Bytes of data in a frame; with all headers it is one of 2172 bytes."""

HEADER_AT, DATA_AT = 28, 52
_HEADER = struct.Struct("!B3sB3sB3sBBHHHI")
_SOF_I3, _EOF_T = b"\x2e", b"\x42"
_TRAILER = 8
"""Bytes of check sequence and end of frame."""


class RCtl:
    """Kinds of frames (FC-FS, R_CTL)."""

    REQUEST_DATA, ANSWER_DATA = 0x02, 0x03
    """Unsolicited and solicited control of FC-4: a question to the name server, and its answer."""
    LINK_REQUEST, LINK_ANSWER = 0x22, 0x23
    ABORT = 0x81


class Type:
    BASIC, LINK_SERVICE, COMMON_TRANSPORT = 0x00, 0x01, 0x20


FIRST_OF_EXCHANGE, LAST_OF_EXCHANGE = 0x290000, 0x990000
"""F_CTL of a question of one frame, and of its answer."""
NO_EXCHANGE = 0xFFFF


@dataclass(frozen=True, slots=True)
class FcFrame:
    """One frame of Fibre Channel, with the exchange it belongs to as its originator counts (OX_ID)."""

    r_ctl: int
    d_id: int
    s_id: int
    kind: int
    exchange: int
    data: bytes
    f_ctl: int = LAST_OF_EXCHANGE

    def build(self) -> bytes:
        """Header and data, the latter in whole words."""
        if len(self.data) > LARGEST_DATA:
            raise FrameError(f"{len(self.data)} bytes of data: a frame takes {LARGEST_DATA}")
        to, by, control = (number.to_bytes(3, "big") for number in (self.d_id, self.s_id, self.f_ctl))
        head = _HEADER.pack(self.r_ctl, to, 0, by, self.kind, control, 0, 0, 0, self.exchange, NO_EXCHANGE, 0)
        return head + self.data + bytes(-len(self.data) % 4)

    def on_wire(self, src: Mac, dst: Mac) -> bytes:
        """The Ethernet frame. The check sequence is that of Ethernet, its lowest byte first."""
        body = self.build()
        check = zlib.crc32(body).to_bytes(4, "little")
        wrapped = bytes(13) + _SOF_I3 + body + check + _EOF_T + bytes(3)
        return Ethernet(dst, src, EtherType.FCOE, wrapped).build()


def parse_storage(frame: bytes) -> FcFrame:
    """An Ethernet frame without a tag whose type is FCoE. Raises FrameError."""
    if len(frame) < DATA_AT + _TRAILER:
        raise FrameError(f"FCoE frame of {len(frame)} bytes: shorter than its headers")
    r_ctl, to, _, by, kind, control, _, _, _, exchange, _, _ = _HEADER.unpack_from(frame, HEADER_AT)
    d_id, s_id, f_ctl = (int.from_bytes(three, "big") for three in (to, by, control))
    return FcFrame(r_ctl, d_id, s_id, kind, exchange, frame[DATA_AT:-_TRAILER], f_ctl)


def port_mac(fc_id: int) -> bytes:
    """The FPMA of a port."""
    return FC_MAP + fc_id.to_bytes(3, "big")


def service_parameters(wwpn: bytes, wwnn: bytes, *, of_fabric: bool) -> bytes:
    """An LS_ACC to a login: to FLOGI (`of_fabric`), or to a well-known address's PLOGI (FC-LS, 6.6.2).

    Class 3 only. Of the fabric the timeouts are R_A_TOV (10 s) and E_D_TOV (2 s), in ms.
    """
    common = struct.pack(
        "!BBHHHII",
        *(0x20, 0x20, 3, 0x9000 if of_fabric else 0x8800, LARGEST_DATA),
        *((10_000, 2_000) if of_fabric else (0x00FF0001, 2_000)),
    )
    class_3 = struct.pack("!HHHHHHHH", 0x8800, 0, 0, LARGEST_DATA, 255, 255, 1, 0)
    return b"\x02\0\0\0" + common[:16].ljust(16, b"\0") + wwpn + wwnn + bytes(32) + class_3 + bytes(32)


ACCEPT = b"\x02\0\0\0"
UNSUPPORTED, NOT_THERE = b"\x01\0\0\0\0\x0b\0\0", b"\x01\0\0\0\0\x09\x1f\0"
"""LS_RJT: that command is not known here; there is no such port."""


def registered_change(fc_id: int) -> bytes:
    """An RSCN about one port (FC-LS, 6.2.6)."""
    return b"\x61\x04\0\x08\0" + fc_id.to_bytes(3, "big")


# ---- the name server (FC-GS): a preamble of 16 bytes, then what is asked or told ----

_CT_PREAMBLE = 16
_CT_ACCEPT, _CT_REJECT = 0x8002, 0x8001
_CT_NOT_DONE = 9
DIRECTORY_TYPE = 0xFC


@dataclass(frozen=True, slots=True)
class NameRequest:
    service: int
    """Which of the services behind well-known addresses: DIRECTORY_TYPE for names."""
    command: int
    about: int
    """The port that it starts with, where it does."""
    preamble: bytes

    def answer(self, told: bytes | None) -> bytes:
        """None: it cannot be done."""
        code, why = (_CT_REJECT, _CT_NOT_DONE) if told is None else (_CT_ACCEPT, 0)
        return self.preamble[:8] + struct.pack("!HHBBBB", code, 0, 0, why, 0, 0) + (told or b"")


def parse_name_request(data: bytes) -> NameRequest:
    """Raises FrameError."""
    if len(data) < _CT_PREAMBLE:
        raise FrameError(f"a question to the name server of {len(data)} bytes is cut off")
    command = int.from_bytes(data[8:10], "big")
    about = int.from_bytes(data[_CT_PREAMBLE + 1 : _CT_PREAMBLE + 4], "big")
    return NameRequest(data[4], command, about, data[:_CT_PREAMBLE])


__all__ = [
    "ACCEPT",
    "DIRECTORY",
    "DIRECTORY_TYPE",
    "FABRIC",
    "FABRIC_CONTROLLER",
    "FC_MAP",
    "FIRST_OF_EXCHANGE",
    "NOT_THERE",
    "UNSUPPORTED",
    "WELL_KNOWN",
    "FcFrame",
    "NameRequest",
    "RCtl",
    "Type",
    "parse_name_request",
    "parse_storage",
    "port_mac",
    "registered_change",
    "service_parameters",
]
