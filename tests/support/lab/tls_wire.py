"""What a watcher of a wire can read: the bytes of TCP connections, and the records of TLS in them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from enum import IntEnum

from support.lab.watch import Frame

TCP = 6
LARGEST_RECORD = (1 << 14) + 256
"""RFC 8446 5.2: "The length MUST NOT exceed 2^14 + 256 bytes"."""
LEGACY_VERSION = 3
"""Its high byte, which all versions of TLS have there."""


class TlsRecord(IntEnum):
    """RFC 8446 5.1, ContentType."""

    CHANGE_CIPHER_SPEC = 20
    ALERT = 21
    HANDSHAKE = 22
    APPLICATION_DATA = 23


def tcp_streams(frames: Iterable[Frame], port: int) -> list[bytes]:
    """What was sent to this port, a connection each: in order, and each byte once, however often it was sent.

    Connections must have been seen from their SYN on.
    """
    begun: dict[bytes, int] = {}
    pieces: dict[bytes, dict[int, bytes]] = defaultdict(dict)
    for frame in frames:
        if frame.ethertype != 0x0800 or frame.data[23] != TCP:
            continue
        ip = frame.data[14 : 14 + int.from_bytes(frame.data[16:18], "big")]
        segment = ip[(ip[0] & 15) * 4 :]
        if int.from_bytes(segment[2:4], "big") != port:
            continue
        who, number = ip[12:20] + segment[:4], int.from_bytes(segment[4:8], "big")
        if segment[13] & 2:  # SYN, which takes a number itself.
            begun[who] = number + 1
        elif (data := segment[(segment[12] >> 4) * 4 :]) and who in begun:
            at = (number - begun[who]) % (1 << 32)
            pieces[who][at] = max(pieces[who].get(at, b""), data, key=len)
    return [_joined(found) for found in pieces.values()]


def _joined(pieces: dict[int, bytes]) -> bytes:
    whole = bytearray()
    for at, data in sorted(pieces.items()):
        assert at <= len(whole), f"{at - len(whole)} bytes were not seen"
        whole += data[len(whole) - at :]
    return bytes(whole)


def tls_records(stream: bytes) -> Iterator[tuple[TlsRecord, int]]:
    """The kind and the length of each record; the last may be cut off. Fails where something else is."""
    at = 0
    while at + 5 <= len(stream):
        kind, version, length = stream[at], stream[at + 1], int.from_bytes(stream[at + 3 : at + 5], "big")
        assert kind in list(TlsRecord), f"byte {at} is no record of TLS: {stream[at : at + 16].hex()}"
        assert version == LEGACY_VERSION and length <= LARGEST_RECORD, stream[at : at + 5].hex()
        yield TlsRecord(kind), length
        at += 5 + length
