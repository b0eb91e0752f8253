"""The air between a roaming client and its attachment points: a program in the laboratory's sandbox.

    python -I -S air.py CLIENT-NODE TAP

The client is a network namespace with a tap, which the kernel there takes for its radio. An attachment point
has a tap for it in its server's bridge. What one of them sends the other gets, as long as the client is
attached there; while it is attached nowhere, all that is sent to it, and by it, waits in the taps. Lines of
commands are read, and each is answered by a line:

    open NODE TAP    an attachment point has made its tap
    attach NODE      the client is heard there, and nowhere else
    leave            it is heard nowhere
    take NODE        what waits in that tap, base64, a frame a word; it is taken out
    close NODE       the tap is let go

It runs apart from everything of ours, and imports nothing of it.
"""

import base64
import contextlib
import ctypes
import fcntl
import os
import selectors
import struct
import sys

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
CLONE_NEWNET = 0x40000000
LARGEST = 1 << 16


def opened(node: str, tap: str) -> int:
    """The tap's file; it stays this namespace's own, wherever we are."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{node}", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if libc.setns(there, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {node}")
        file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", tap.encode(), IFF_TAP | IFF_NO_PI))
        return file
    finally:
        libc.setns(home, CLONE_NEWNET)
        os.close(home)
        os.close(there)


class Air:
    def __init__(self, client: int) -> None:
        self.client = client
        self.taps: dict[str, int] = {}
        self.at = ""
        self.waits = selectors.DefaultSelector()
        self.waits.register(0, selectors.EVENT_READ)

    def run(self) -> None:
        while True:
            for key, _ in self.waits.select():
                if key.fd == 0:
                    line = sys.stdin.readline()
                    if not line:
                        return
                    print(self.obey(*line.split()), flush=True)
                elif self.at:
                    to = self.taps[self.at] if key.fd == self.client else self.client
                    for frame in self.frames(key.fd, 64):
                        self.send(to, frame)

    def obey(self, what: str, node: str = "", tap: str = "") -> str:
        if what == "open":
            self.taps[node] = opened(node, tap)
        elif what == "attach":
            self.leave()
            self.at = node
            for file in (self.client, self.taps[node]):
                self.waits.register(file, selectors.EVENT_READ)
        elif what == "leave":
            self.leave()
        elif what == "take":
            return " ".join(["frames", *(base64.b64encode(f).decode() for f in self.frames(self.taps[node]))])
        elif what == "close":
            os.close(self.taps.pop(node))
        return what

    def leave(self) -> None:
        if self.at:
            for file in (self.client, self.taps[self.at]):
                self.waits.unregister(file)
            self.at = ""

    def frames(self, file: int, most: int = 100_000) -> list[bytes]:
        found: list[bytes] = []
        try:
            while len(found) < most:
                found.append(os.read(file, LARGEST))
        except BlockingIOError:
            pass
        return found

    def send(self, file: int, frame: bytes) -> None:
        with contextlib.suppress(OSError):  # As the air does.
            os.write(file, frame)


if __name__ == "__main__":
    Air(opened(*sys.argv[1:3])).run()
