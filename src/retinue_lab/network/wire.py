"""A wire with delay and loss: frames of one interface come out of another, later, both ways and in order.

Run as a program in a node, where the kernel has no queueing discipline that would do it:
`python -I -S wire.py NIC NIC DELAY_MS LOSS_PERCENT COUNTS`. COUNTS is a file with how many frames have
passed and were dropped each way, {"passed": [n, n], "dropped": [n, n]}, written at each drop and at the end.
"""

import json
import random
import select
import signal
import socket
import sys
import time
from collections import deque
from pathlib import Path

ALL, OUTGOING, LARGEST = 0x0003, 4, 65_536
"""ETH_P_ALL, PACKET_OUTGOING (linux/if_packet.h)."""
AT_ONCE = 64
"""Frames taken from one side before the other has its turn."""
BUFFER = 8 << 20


def main(argv: list[str]) -> None:
    delay, loss, counts = float(argv[2]) / 1000, float(argv[3]) / 100, Path(argv[4])
    ends = [_open(nic) for nic in argv[:2]]
    waiting: tuple[deque[tuple[float, bytes]], ...] = (deque(), deque())
    passed, dropped, dice = [0, 0], [0, 0], random.Random(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

    def write() -> None:
        counts.write_text(json.dumps({"passed": passed, "dropped": dropped}))

    write()
    try:
        while True:
            now = time.monotonic()
            due = min((queue[0][0] for queue in waiting if queue), default=None)
            readable, _, _ = select.select(ends, [], [], None if due is None else max(0.0, due - now))
            now = time.monotonic()
            for side in (0, 1):
                if ends[side] in readable:
                    for frame in _taken(ends[side]):
                        if loss and dice.random() < loss:
                            dropped[side] += 1
                            write()
                        else:
                            passed[side] += 1
                            waiting[side].append((now + delay, frame))
                while waiting[side] and waiting[side][0][0] <= now:
                    ends[1 - side].send(waiting[side].popleft()[1])
    finally:
        write()


def _open(nic: str) -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL))
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    end.bind((nic, ALL))
    return end


def _taken(end: socket.socket) -> list[bytes]:
    found = []
    for _ in range(AT_ONCE):
        try:
            frame, where = end.recvfrom(LARGEST, socket.MSG_DONTWAIT)
        except BlockingIOError:
            break
        if where[2] != OUTGOING:
            found.append(frame)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
