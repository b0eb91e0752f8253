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
_IPV4, _IPV6, _VLAN = 0x0800, 0x86DD, 0x8100
_ICMP, _ECHO, _ICMPV6, _ECHO6 = 1, 8, 58, 128


def answer(frame: bytes, vlan: int) -> bytes | None:
    """The reply to an echo request; `frame` is without its tag."""
    kind = int.from_bytes(frame[12:14], "big")
    if kind == _IPV4 and len(frame) > 34 and frame[23] == _ICMP:
        header = 14 + (frame[14] & 15) * 4
        if frame[header] != _ECHO:
            return None
        # The sum of one's complement grows by what its first word has lost (RFC 1624).
        said = _as(frame[header:], 0, _ECHO << 8)
        back = frame[14:26] + frame[30:34] + frame[26:30] + frame[34:header]
    elif kind == _IPV6 and len(frame) > 54 and frame[20] == _ICMPV6 and frame[54] == _ECHO6:
        said = _as(frame[54:], _ECHO6 + 1, 0xFFFF - (1 << 8))
        back = frame[14:22] + frame[38:54] + frame[22:38]
    else:
        return None
    return frame[6:12] + frame[:6] + struct.pack("!HHH", _VLAN, vlan, kind) + back + said


def _as(message: bytes, type: int, more: int) -> bytes:
    """The ICMP message with another type, by which its sum grows by `more`."""
    said = bytearray(message)
    said[0] = type
    total = int.from_bytes(said[2:4], "big") + more
    said[2:4] = ((total & 0xFFFF) + (total >> 16)).to_bytes(2, "big")
    return bytes(said)


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
