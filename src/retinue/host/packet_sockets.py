"""Whether frames that have come in at a port wait for this server's switch: asked of the kernel.

In user space Open vSwitch takes them from packet sockets (packet(7)), one for each port. /proc/net/packet has
all that are open, each with its interface and the bytes that wait in it ("Rmem"). A switch in the kernel has
none: it takes a frame as it comes.
"""

import asyncio
import socket
from collections.abc import Collection
from pathlib import Path

from retinue.host.errors import HostError

OPEN = Path("/proc/self/net/packet")
INTERFACE, WAITING = 4, 6
"""Columns of it (net/packet/af_packet.c: packet_seq_show)."""
LOOK = 0.0005


async def until_taken(ports: Collection[str]) -> None:
    """Return when nothing that has come in at these ports waits there. Raises HostError: they are not here,
    or nobody can tell."""
    try:
        indices = {str(socket.if_nametoindex(port)) for port in ports}
        while True:
            if not _waits(OPEN.read_text(), indices):
                return
            await asyncio.sleep(LOOK)
    except OSError as error:
        raise HostError(f"what waits at {', '.join(ports)} cannot be seen: {error}") from error


def _waits(table: str, indices: Collection[str]) -> bool:
    rows = (line.split() for line in table.splitlines()[1:])
    return any(row[WAITING] != "0" for row in rows if row[INTERFACE] in indices)
