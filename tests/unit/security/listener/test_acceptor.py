"""What accepts connections: a share of the descriptors each, and strangers that make room."""

import asyncio
import contextlib
import errno
import os
import resource
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from retinue.security.listener import acceptor as acceptor_module
from retinue.security.listener import descriptors
from retinue.security.listener.acceptor import Acceptor
from retinue.security.listener.pending import PendingConnections
from retinue.security.listener.tls_gate import peer_name

PATIENCE = 30.0


class Guest(asyncio.Protocol):
    """A stranger until it says anything."""

    def __init__(self, house: "House") -> None:
        self.house = house
        self.peer = "?"
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.peer = transport, peer_name(transport)
        self.house.pending.enter(self)

    def data_received(self, data: bytes) -> None:
        self.house.pending.leave(self)
        self.house.known.put_nowait(self)
        self.transport.write(b"welcome")

    def end(self, reason: str, kind: str = "") -> None:
        self.house.rejected.append(kind)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.house.pending.leave(self)
        self.closed.set_result(None)


class House:
    def __init__(self, most: int) -> None:
        self.rejected: list[str] = []
        self.known: asyncio.Queue[Guest] = asyncio.Queue()
        self.pending = PendingConnections(most, self.reject)
        self.acceptor = Acceptor(lambda: Guest(self), self.pending, self.reject, 0.5)
        self.port = 0

    def reject(self, peer: str, reason: str, kind: str) -> None:
        self.rejected.append(kind)

    async def come(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with asyncio.timeout(PATIENCE):
            return await asyncio.open_connection("127.0.0.1", self.port)

    async def welcome(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Somebody who says who it is gets in."""
        reader, writer = await self.come()
        writer.write(b"me")
        async with asyncio.timeout(PATIENCE):
            assert await reader.readexactly(7) == b"welcome"
        return reader, writer


@pytest.fixture
async def house(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    made = House(8)
    monkeypatch.setattr(descriptors, "share", lambda part: 10)
    made.port = await made.acceptor.open("127.0.0.1", 0)
    yield made
    made.acceptor.close()


async def gone(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE):
            assert not await reader.read()


async def test_silent_strangers_make_room_and_never_fill_the_share(house: House) -> None:
    """A share of 10 has room for 5 strangers."""
    silent = [await house.come() for _ in range(20)]
    for reader, _ in silent[:15]:
        await gone(reader)
    known = [await house.welcome() for _ in range(4)]
    assert house.rejected.count("crowded") >= 15
    for _, writer in (*silent, *known):
        writer.close()


async def test_who_is_known_is_never_pushed_out(house: House) -> None:
    known = [await house.welcome() for _ in range(10)]
    late, _ = await house.come()
    await gone(late)
    assert house.rejected == ["crowded"]
    known[0][1].write(b"still here")
    assert await known[0][0].readexactly(7) == b"welcome"
    for _, writer in known:
        writer.close()
    await gone(known[0][0])
    await house.welcome()


async def test_a_listener_without_descriptors_turns_away_and_goes_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it does not try, and log it, as fast as it can."""
    failures = 0
    accept = socket.socket.accept

    def refuses(listening: socket.socket) -> Any:
        nonlocal failures
        failures += 1
        if failures in (1, 3):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept(listening)

    with monkeypatch.context() as patch:
        patch.setattr(acceptor_module, "NONE_LEFT_SECONDS", 0.01)
        patch.setattr(socket.socket, "accept", refuses)
        reader, _ = await house.come()
        await gone(reader)
        assert house.rejected == ["crowded"]
        await house.come()
        assert failures < 10
    await house.welcome()


async def test_more_than_so_many_a_second_wait_in_the_systems_queue(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor_module, "BATCH", 2)
    monkeypatch.setattr(acceptor_module, "CONNECTIONS_A_SECOND", 0.001)
    waiting = await asyncio.gather(*(house.come() for _ in range(4)))
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(house.pending) <= 3, "one by itself, if it came alone, and a batch"
    for _, writer in waiting:
        writer.close()


def test_the_shares_leave_some_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in (64, 256, 1024, 65_536, resource.RLIM_INFINITY):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        most = descriptors.MOST if limit == resource.RLIM_INFINITY else limit
        assert sum(descriptors.share(part) for part in (0.25, 0.25, 0.5)) <= most - min(128, most // 4)


def test_as_many_descriptors_are_asked_for_as_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    for soft, hard in ((1024, 4096), (1024, 1 << 20), (4096, 4096)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=(soft, hard): limits)
        descriptors.raise_limit()
    assert asked == [(4096, 4096), (65_536, 1 << 20)]
