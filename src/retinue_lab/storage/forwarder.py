"""The laboratory's FCoE forwarder (FCF), at one interface.

    python -m retinue_lab.storage.forwarder INTERFACE

It says what happens on standard output, and "ready" first. What it is: `fabric`.
"""

import contextlib
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Sequence

from retinue.core.packets import FrameError, mac_bytes, mac_text
from retinue.core.packets.fip import ALL_FORWARDERS
from retinue_lab.storage.fabric import ADVERTISED_MS, Fabric

READY = "ready"
_ETH_P_ALL, _SOL_PACKET, _ADD_MEMBERSHIP, _MULTICAST = 3, 263, 1, 0
_BUFFER_BYTES = 4 << 20
"""For what comes while others have the processor; net.core.rmem_max is what it may be."""
_AT_ONCE = 256
"""Frames that are taken before it is looked whether an advertisement is due."""


def listen(interface: str) -> socket.socket:
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    group = struct.pack("@iHH8s", socket.if_nametoindex(interface), _MULTICAST, 6, mac_bytes(ALL_FORWARDERS))
    wire.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, group)
    wire.bind((interface, _ETH_P_ALL))
    return wire


def serve(wire: socket.socket, fabric: Fabric) -> None:
    due = time.monotonic()
    while True:
        now = time.monotonic()
        if now >= due:
            send(wire, fabric.advertisement())
            due = now + ADVERTISED_MS / 1000
        select.select([wire], [], [], due - now)
        with contextlib.suppress(BlockingIOError):
            for _ in range(_AT_ONCE):
                frame, origin = wire.recvfrom(1 << 16, socket.MSG_DONTWAIT)
                if origin[2] != socket.PACKET_OUTGOING:
                    take(wire, fabric, frame)


def take(wire: socket.socket, fabric: Fabric, frame: bytes) -> None:
    try:
        for answer in fabric.received(frame):
            send(wire, answer)
    except FrameError as error:
        say(f"dropped: {error}")


def send(wire: socket.socket, frame: bytes) -> None:
    try:
        wire.send(frame)
    except OSError as error:
        # Lost, as on any wire: Fibre Channel asks for it again.
        say(f"dropped: the cable takes nothing: {error}")


def say(line: str) -> None:
    print(line, flush=True)


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m retinue_lab.storage.forwarder INTERFACE", file=sys.stderr)
        return os.EX_USAGE
    with listen(arguments[0]) as wire:
        say(READY)
        serve(wire, Fabric(mac_text(wire.getsockname()[4]), say))
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
