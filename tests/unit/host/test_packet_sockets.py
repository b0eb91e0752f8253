"""Whether frames wait for the switch at a port: as the kernel tells it."""

import asyncio
import socket
from pathlib import Path

import pytest

from retinue.host import packet_sockets
from retinue.host.errors import HostError
from retinue.host.packet_sockets import until_taken

TABLE = """sk               RefCnt Type Proto  Iface R Rmem   User   Inode
0000000045354266 3      3    0003   {}    1 {}      0      15052
00000000801ea711 3      3    0003   4711  1 4096   0      15053
000000008acaa104 2      2    0000   0     0 0      0      29215
"""


async def test_it_waits_until_nothing_waits_at_the_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits at another is another's."""
    table, index = tmp_path / "packet", socket.if_nametoindex("lo")
    monkeypatch.setattr(packet_sockets, "OPEN", table)
    table.write_text(TABLE.format(index, 768))
    waiting = asyncio.create_task(until_taken(["lo"]))
    await asyncio.wait({waiting}, timeout=0.02)
    assert not waiting.done()
    table.write_text(TABLE.format(index, 0))
    await waiting
    table.write_text(TABLE.splitlines()[0])
    await until_taken(["lo"])


async def test_a_port_that_is_not_here_is_an_error() -> None:
    with pytest.raises(HostError, match="what waits at no-such-port cannot be seen"):
        await until_taken(["no-such-port"])


async def test_the_kernels_own_table_is_read() -> None:
    await asyncio.wait_for(until_taken(["lo"]), 10)
