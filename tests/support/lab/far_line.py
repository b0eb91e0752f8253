"""A long and lossy line between nodes and their controller: a program in the sandbox, and what starts it.

    python far_line.py DELAY LOSS CONTROLLER BRIDGE PORT...

Each PORT of the management BRIDGE, the end of a node's cable, is joined to the bridge by this program
instead. What goes to or comes from the address CONTROLLER is passed on after DELAY seconds each way, in its
order, and a part LOSS of it never; all else at once. It says "far" when it passes on. The ports are put back
at its end.

The kernel's own netem is not in every kernel.
"""

import contextlib
import heapq
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # As a program in the sandbox it has the standard library alone.
    from support.lab.tools import LabBench

ETH_P_ALL, OUTGOING = 3, 4
OFFLOADS = "rx off tx off sg off tso off gso off gro off"
LONGEST = 65_535
Cable = tuple[socket.socket, socket.socket]
"""Where a frame comes in, and where it goes out."""


def main(delay: float, loss: float, controller: str, bridge: str, ports: Sequence[str]) -> None:
    across: dict[int, Cable] = {}
    for number, port in enumerate(ports):
        _ip(f"link add far{number} type veth peer name near{number}")
        _ip(f"link set {port} nomaster")
        _ip(f"link set near{number} master {bridge} up")
        _ip(f"link set far{number} up")
        for nic in (port, f"far{number}", f"near{number}"):
            _run(f"ethtool -K {nic} {OFFLOADS}")
        node, rest = _wire(port), _wire(f"far{number}")
        across |= {node.fileno(): (node, rest), rest.fileno(): (rest, node)}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("far", flush=True)
    try:
        _pass_on(delay, loss, socket.inet_aton(controller), across)
    finally:
        for number, port in enumerate(ports):
            _ip(f"link set {port} master {bridge}")
            _ip(f"link delete far{number}")


def _pass_on(delay: float, loss: float, address: bytes, across: dict[int, Cable]) -> None:
    chance = random.Random(1)
    waiting: list[tuple[float, int, socket.socket, bytes]] = []
    count = 0
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        ready, _, _ = select.select(across, [], [], timeout)
        for number in ready:
            wire, other = across[number]
            frame, (_, _, kind, *_) = wire.recvfrom(LONGEST)
            if kind == OUTGOING:
                continue
            is_far = frame[12:14] == b"\x08\0" and address in (frame[26:30], frame[30:34])
            if not is_far:
                _send(other, frame)
            elif chance.random() >= loss:
                count += 1
                heapq.heappush(waiting, (time.monotonic() + delay, count, other, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, other, frame = heapq.heappop(waiting)
            _send(other, frame)


def _wire(nic: str) -> socket.socket:
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    wire.bind((nic, ETH_P_ALL))
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
    return wire


def _send(wire: socket.socket, frame: bytes) -> None:
    with contextlib.suppress(OSError):  # As a line does that is down, or full.
        wire.send(frame)


def _ip(words: str) -> None:
    _run(f"ip {words}")


def _run(words: str) -> None:
    subprocess.run(words.split(), check=True, stdout=subprocess.DEVNULL)


@contextlib.asynccontextmanager
async def far_line(
    bench: "LabBench", nodes: Sequence[str], *, round_trip: float, loss: float
) -> AsyncIterator[None]:
    """These nodes are so far from the controller; seconds, and the part of packets that is lost each way."""
    from retinue_lab.network.nodes import MANAGEMENT_NIC
    from retinue_lab.topology.topology import CONTROLLER, SANDBOX

    for node in nodes:
        await bench.run(node, "ethtool", "-K", MANAGEMENT_NIC, *OFFLOADS.split())
    controller = str(bench.topology.management_addresses[CONTROLLER].ip)
    argv = [sys.executable, "-I", "-S", __file__, str(round_trip / 2), str(loss), controller]
    argv += [bench.topology.management_bridge, *(f"m-{node}" for node in nodes)]
    async with bench.lines(SANDBOX, *argv) as lines:
        await lines.until("far")
        yield


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:])
