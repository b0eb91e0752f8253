"""What two QEMUs say of a disk, on its way through two agents."""

import asyncio
import socket

import pytest

from retinue.hypervisor import HypervisorError, channel_pair
from retinue.hypervisor.disk_channel import relay

WRITE = 1
FLAGS = bytes(4)


def request(kind: int, cookie: bytes, length: int) -> bytes:
    """As NBD's protocol has it."""
    magic = (0x25609513).to_bytes(4, "big")
    return magic + bytes(2) + kind.to_bytes(2, "big") + cookie + bytes(8) + length.to_bytes(4, "big")


def simple(cookie: bytes, data: bytes = b"") -> bytes:
    return (0x67446698).to_bytes(4, "big") + bytes(4) + cookie + data


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    return ours, theirs


async def test_what_comes_goes_on_either_way_until_one_side_ends() -> None:
    loop = asyncio.get_running_loop()
    near, far = await channel_pair()
    (left, client), (right, server) = pair(), pair()
    both = [asyncio.create_task(relay(near, left, 60.0)), asyncio.create_task(relay(far, right))]
    question = bytes(range(256)) * 20_000
    asking = asyncio.create_task(loop.sock_sendall(client, question))
    heard = b""
    while len(heard) < len(question):
        heard += await loop.sock_recv(server, 1 << 20)
    await asking
    assert heard == question
    await loop.sock_sendall(server, b"answer")
    assert await loop.sock_recv(client, 100) == b"answer"
    client.close()
    await asyncio.gather(*both)
    assert await loop.sock_recv(server, 100) == b""
    server.close()


async def test_who_asks_and_is_not_answered_is_told_and_let_go() -> None:
    loop = asyncio.get_running_loop()
    near, far = await channel_pair()
    left, client = pair()
    asking = asyncio.create_task(relay(near, left, 0.2))
    await asyncio.sleep(0.5)
    assert not asking.done(), "nothing is asked, so nothing is late"
    await loop.sock_sendall(client, b"question")
    assert await far.receive() == b"question"
    await far.send_memory(b"answer")
    assert await loop.sock_recv(client, 100) == b"answer"
    await asyncio.sleep(0.5)
    assert not asking.done(), "what was asked is answered"
    await loop.sock_sendall(client, b"question")
    with pytest.raises(HypervisorError, match="has not answered for"):
        await asking
    assert await loop.sock_recv(client, 100) == b"", "its QEMU does not wait either"
    client.close()
    far.abort()


async def test_an_answer_that_stalls_in_the_middle_is_one_that_does_not_come() -> None:
    loop = asyncio.get_running_loop()
    near, far = await channel_pair()
    left, client = pair()
    asking = asyncio.create_task(relay(near, left, 0.3))
    await loop.sock_sendall(client, FLAGS + request(WRITE, b"cookie 1", 4) + b"data")
    assert await far.receive() == FLAGS + request(WRITE, b"cookie 1", 4) + b"data"
    whole = simple(b"cookie 1")
    await far.send_memory(whole)
    assert await loop.sock_recv(client, 100) == whole
    await asyncio.sleep(0.6)
    assert not asking.done(), "nothing is owed"
    await loop.sock_sendall(client, request(WRITE, b"cookie 2", 0))
    await far.send_memory(whole[:7])
    with pytest.raises(HypervisorError, match="has not answered for"):
        await asking
    client.close()
    far.abort()


async def test_an_end_that_breaks_off_ends_the_other() -> None:
    loop = asyncio.get_running_loop()
    near, far = await channel_pair()
    left, client = pair()
    asking = asyncio.create_task(relay(near, left, 60.0))
    far.abort()
    with pytest.raises(HypervisorError, match="hung up"):
        await asking
    assert await loop.sock_recv(client, 100) == b""
    client.close()


async def test_messages_are_no_content_of_a_disk() -> None:
    near, far = await channel_pair()
    left, client = pair()
    asking = asyncio.create_task(relay(near, left, 60.0))
    await far.send_message("running")
    with pytest.raises(HypervisorError, match="no content of a disk"):
        await asking
    client.close()
    far.abort()
