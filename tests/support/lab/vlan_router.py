"""A router's VLAN, for labs on a kernel without 802.1Q: it answers each ping that comes with the tag,
whoever is pinged, and says how many there were when its standard input ends.

Run on the router's node: python vlan_router.py INTERFACE VLAN
"""

import select
import socket
import struct
import sys

_SOL_PACKET, _AUXDATA, _IGNORE_OUTGOING, _ALL = 263, 8, 23, 3
_AUX = struct.Struct("=IIIHHHH")
_VLAN_VALID = 0x10
_IPV4, _VLAN, _ICMP, _ECHO = 0x0800, 0x8100, 1, 8


def answer(frame: bytes, vlan: int) -> bytes | None:
    """The reply to an echo request over IPv4; `frame` is without its tag."""
    header = 14 + (frame[14] & 15) * 4 if len(frame) > 34 else 0
    if frame[12:14] != _IPV4.to_bytes(2, "big") or frame[23] != _ICMP or frame[header] != _ECHO:
        return None
    said = bytearray(frame[header:])
    said[0] = 0
    # The sum of one's complement grows by what its first word has lost (RFC 1624).
    total = int.from_bytes(said[2:4], "big") + (_ECHO << 8)
    said[2:4] = ((total & 0xFFFF) + (total >> 16)).to_bytes(2, "big")
    back = frame[14:26] + frame[30:34] + frame[26:30] + frame[34:header]
    return frame[6:12] + frame[:6] + struct.pack("!HHH", _VLAN, vlan, _IPV4) + back + bytes(said)


def tag_of(beside: list[tuple[int, int, bytes]]) -> int:
    """The kernel keeps it beside the frame; 0: it had none."""
    for level, kind, data in beside:
        if (level, kind) == (_SOL_PACKET, _AUXDATA):
            status, *_, tci, _ = _AUX.unpack(data[: _AUX.size])
            return tci & 0xFFF if status & _VLAN_VALID else 0
    return 0


def main(interface: str, vlan: int) -> None:
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
    wire.setsockopt(_SOL_PACKET, _AUXDATA, 1)
    wire.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    wire.bind((interface, 0))
    print("listens", flush=True)
    answered = 0
    while True:
        ready, _, _ = select.select([wire, sys.stdin], [], [])
        if sys.stdin in ready:
            print(answered, flush=True)
            return
        frame, beside, _, _ = wire.recvmsg(65536, socket.CMSG_SPACE(_AUX.size))
        if tag_of(beside) == vlan and (reply := answer(frame, vlan)) is not None:
            wire.send(reply)
            answered += 1


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
