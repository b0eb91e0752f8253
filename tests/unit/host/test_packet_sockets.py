"""Whether frames wait for the switch at a port: as the kernel tells it."""

import asyncio
import os
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
    monkeypatch.setattr(packet_sockets, "PROCESSES", tmp_path)  # On this machine a switch may run.
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


async def test_what_a_sniffer_has_not_read_is_not_the_switchs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, index = tmp_path / "packet", socket.if_nametoindex("lo")
    for number, (name, socket_of) in enumerate({"ovs-vswitchd": 15051, "tcpdump": 15052}.items(), start=1):
        (tmp_path / str(number) / "fd").mkdir(parents=True)
        (tmp_path / str(number) / "comm").write_text(f"{name}\n")
        (tmp_path / str(number) / "fd/3").symlink_to(f"socket:[{socket_of}]")
        (tmp_path / str(number) / "fd/4").symlink_to("/dev/null")
    monkeypatch.setattr(packet_sockets, "OPEN", table)
    monkeypatch.setattr(packet_sockets, "PROCESSES", tmp_path)
    sniffed = TABLE.format(index, 768)
    table.write_text(sniffed)
    async with asyncio.timeout(60):
        await until_taken(["lo"])
    its = f"0 3 3 0003 {index} 1 64 0 15051\n"
    table.write_text(sniffed + its)
    waiting = asyncio.create_task(until_taken(["lo"]))
    await asyncio.wait({waiting}, timeout=0.02)
    assert not waiting.done(), "what its own socket has"
    table.write_text(sniffed)
    await waiting
    (tmp_path / "1/comm").write_text("a switch of another name\n")
    waiting = asyncio.create_task(until_taken(["lo"]))
    await asyncio.wait({waiting}, timeout=0.02)
    assert not waiting.done(), "whose it is nobody can tell"
    waiting.cancel()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a packet socket")
async def test_a_real_socket_is_seen_and_whose_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sniffer:
        sniffer.bind(("lo", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", ("127.0.0.1", 9))
        inode = str(os.fstat(sniffer.fileno()).st_ino)
        assert inode in packet_sockets._waiting(
            packet_sockets.OPEN.read_text(), {str(socket.if_nametoindex("lo"))}
        )
        monkeypatch.setattr(packet_sockets, "SWITCH", Path("/proc/self/comm").read_text().strip())
        assert inode in packet_sockets._of_the_switch()
