"""Whether frames that have come in at a port wait for this server's switch: asked of the kernel.

In user space Open vSwitch takes them from packet sockets (packet(7)), one for each port. /proc/net/packet has
all that are open, each with its interface and the bytes that wait in it ("Rmem"). Whose they are is asked
where something waits: somebody may look at a port with a sniffer, and have stopped it. A switch in the kernel
has none: it takes a frame as it comes.
"""

import asyncio
import contextlib
import socket
from collections.abc import Collection
from pathlib import Path

from retinue.host.errors import HostError

PROCESSES = Path("/proc")
OPEN = PROCESSES / "self/net/packet"
INTERFACE, WAITING, INODE = 4, 6, 8
"""Columns of it (net/packet/af_packet.c: packet_seq_show)."""
SWITCH = "ovs-vswitchd"
LOOK = 0.0005


async def until_taken(ports: Collection[str]) -> None:
    """Return when nothing that has come in at these ports waits there for the switch. Raises HostError: they
    are not here, or nobody can tell."""
    try:
        indices = {str(socket.if_nametoindex(port)) for port in ports}
        if not _waiting(OPEN.read_text(), indices):
            return
        # Where there are many processes that takes its time, in which the switch takes what waits.
        asking = asyncio.create_task(asyncio.to_thread(_of_the_switch))
        try:
            while waiting := _waiting(OPEN.read_text(), indices):
                if asking.done() and (its := asking.result()) and waiting.isdisjoint(its):
                    return
                await asyncio.sleep(LOOK)
        finally:
            asking.cancel()
    except OSError as error:
        raise HostError(f"what waits at {', '.join(ports)} cannot be seen: {error}") from error


def _waiting(table: str, indices: Collection[str]) -> set[str]:
    """The sockets of these interfaces in which something waits."""
    rows = (line.split() for line in table.splitlines()[1:])
    return {row[INODE] for row in rows if row[INTERFACE] in indices and row[WAITING] != "0"}


def _of_the_switch() -> set[str]:
    """All sockets of the switches on this machine; none where they are not to be seen from here."""
    found: set[str] = set()
    for process in PROCESSES.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # It has ended, or is none of ours to look into.
            if (process / "comm").read_text().strip() == SWITCH:
                for file in (process / "fd").iterdir():
                    with contextlib.suppress(OSError):  # It has been closed.
                        kind, _, inode = str(file.readlink()).partition(":")
                        found |= {inode.strip("[]")} if kind == "socket" else set()
    return found
