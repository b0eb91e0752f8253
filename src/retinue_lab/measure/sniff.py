"""Write the frames at an interface to standard output, as a capture file. Nothing of ours is loaded.

Usage: sniff.py [--marks] INTERFACE in|out|inout SNAPLEN [MAC...]. Frames for one of the MACs are left out,
in the kernel. It says "listening on INTERFACE" on standard error when it does; SIGINT or SIGTERM ends it once
all that has arrived is written. With --marks each byte of standard input has an empty record written
behind what has arrived by then. The exit code is 1 when frames got lost on the way.

tcpdump does not run in a sandbox: as root it changes its groups, which a namespace with one user forbids.
"""

import contextlib
import ctypes
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence

BUFFER_BYTES = 16 << 20
SO_ATTACH_FILTER, SO_RCVBUFFORCE = 26, 33
SO_TIMESTAMPNS = 35
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_STATISTICS, PACKET_AUXDATA, PACKET_MR_PROMISC = 263, 1, 6, 8, 1
TP_STATUS_VLAN_VALID = 0x10
ETH_P_ALL, PACKET_OUTGOING = 3, 4
STDIN = 0
LOAD_WORD, LOAD_HALF, LOAD_BYTE, JUMP_EQUAL, RETURN = 0x20, 0x28, 0x30, 0x15, 0x06
KIND_OF_PACKET = 0xFFFFF004
"""Where a filter finds the frame's direction (Linux, SKF_AD_OFF + SKF_AD_PKTTYPE)."""
FILE_HEADER = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
"""pcap-savefile(5): this machine's order of bytes, version 2.4, Ethernet."""

Instruction = tuple[int, int, int, int]
"""Of the kernel's packet filter: code, how many to skip if true, if false, and the operand."""


def filter_for(direction: str, left_out: Sequence[str]) -> list[Instruction]:
    """Lets frames of this direction pass whose destination is none of the MACs."""
    program: list[Instruction] = []
    if direction != "inout":
        wrong = (0, 1) if direction == "in" else (1, 0)
        program += [
            (LOAD_BYTE, 0, 0, KIND_OF_PACKET),
            (JUMP_EQUAL, *wrong, PACKET_OUTGOING),
            (RETURN, 0, 0, 0),
        ]
    for mac in left_out:
        nbytes = bytes.fromhex(mac.replace(":", ""))
        program += [
            (LOAD_WORD, 0, 0, 2),
            (JUMP_EQUAL, 0, 3, int.from_bytes(nbytes[2:], "big")),
            (LOAD_HALF, 0, 0, 0),
            (JUMP_EQUAL, 0, 1, int.from_bytes(nbytes[:2], "big")),
            (RETURN, 0, 0, 0),
        ]
    return [*program, (RETURN, 0, 0, 0xFFFF)]


def listen(interface: str, program: Sequence[Instruction]) -> socket.socket:
    """A socket that gets the interface's frames that pass the filter."""
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # nothing yet: first the filter
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in program))
    wire.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code))
    )
    try:
        wire.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    except PermissionError:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    wire.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    wire.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    promiscuous = struct.pack("@iHH8s", socket.if_nametoindex(interface), PACKET_MR_PROMISC, 0, b"")
    wire.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, promiscuous)
    wire.bind((interface, ETH_P_ALL))
    return wire


def main(arguments: Sequence[str]) -> int:
    marks = arguments[:1] == ["--marks"]
    interface, direction, snap, *left_out = arguments[marks:]
    ended, end = os.pipe()
    os.set_blocking(end, False)
    signal.set_wakeup_fd(end)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    try:
        wire = listen(interface, filter_for(direction, left_out))
    except OSError as error:
        print(f"{interface}: {error}", file=sys.stderr)
        return 1
    with wire, contextlib.suppress(BrokenPipeError):
        sys.stdout.buffer.write(FILE_HEADER)
        sys.stdout.buffer.flush()
        print(f"listening on {interface}", file=sys.stderr, flush=True)
        wire.setblocking(False)
        watched = [wire.fileno(), ended, *([STDIN] if marks else [])]
        while ended not in (ready := select.select(watched, [], [])[0]):
            asked = os.read(STDIN, 64) if STDIN in ready else b""
            copy(wire, int(snap))
            mark(len(asked))
            if STDIN in ready and not asked:
                watched.remove(STDIN)
        copy(wire, int(snap))
        lost = struct.unpack("@II", wire.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        if lost:
            print(f"{lost} frames came faster than they were read", file=sys.stderr)
        return int(lost > 0)
    return 1  # the reader has closed the pipe


def copy(wire: socket.socket, snap: int) -> None:
    """Write all frames that have arrived."""
    with contextlib.suppress(BlockingIOError):
        while True:
            at, frame = take(wire)
            header = struct.pack("=IIII", at // 1_000_000, at % 1_000_000, min(len(frame), snap), len(frame))
            sys.stdout.buffer.write(header + frame[:snap])
    sys.stdout.buffer.flush()


def mark(times: int) -> None:
    """Empty records: whatever had arrived by now stands before them."""
    sys.stdout.buffer.write(struct.pack("=IIII", 0, 0, 0, 0) * times)
    sys.stdout.buffer.flush()


def take(wire: socket.socket) -> tuple[int, bytes]:
    """The next frame as it was on the wire, and when the kernel saw it, in microseconds since the epoch."""
    frame, ancillary, _, _ = wire.recvmsg(1 << 16, 256)
    at = time.time_ns()
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
            seconds, nanoseconds = struct.unpack("@qq", value)
            at = seconds * 1_000_000_000 + nanoseconds
        elif (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
            status, _, _, _, _, tag, protocol = struct.unpack("@IIIHHHH", value)
            if status & TP_STATUS_VLAN_VALID:  # The kernel takes the VLAN tag out of the frame.
                frame = frame[:12] + struct.pack("!HH", protocol, tag) + frame[12:]
    return at // 1000, frame


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
