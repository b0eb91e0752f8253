"""Connections that have yet to show who they are: bounded, and those at fault are told, with the reason."""

import asyncio

import pytest

from retinue.security.listener.pending import PendingConnections


class Stranger:
    """Leaves as a connection does: later, when it has been cut off."""

    def __init__(self, peer: str, pending: PendingConnections) -> None:
        self.peer = peer
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pending = pending
        pending.enter(self)

    def end(self, reason: str, kind: str = "") -> None:
        asyncio.get_running_loop().call_soon(self.gone, reason, kind)

    def gone(self, reason: str, kind: str) -> None:
        self.pending.leave(self, reason, kind)
        self.closed.set_result(None)


@pytest.fixture
def rejected() -> list[tuple[str, str, str]]:
    return []


@pytest.fixture
def pending(rejected: list[tuple[str, str, str]]) -> PendingConnections:
    return PendingConnections(2, lambda *told: rejected.append(told))


async def test_of_more_than_may_be_the_oldest_goes(
    pending: PendingConnections, rejected: list[tuple[str, str, str]]
) -> None:
    first, *others = [Stranger(f"stranger {n}", pending) for n in range(3)]
    assert len(pending) == 2
    await first.closed
    assert rejected == [("stranger 0", "2 newer connections without a handshake", "crowded")]
    assert len(pending) == 2
    assert not any(other.closed.done() for other in others)


async def test_who_has_shown_who_it_is_makes_room(
    pending: PendingConnections, rejected: list[tuple[str, str, str]]
) -> None:
    known = Stranger("known", pending)
    Stranger("other", pending)
    pending.leave(known)
    last = Stranger("last", pending)
    pending.leave(known)  # again, at its end
    assert len(pending) == 2
    pending.leave(last, "it says nothing", "timeout")
    assert len(pending) == 1
    assert rejected == [("last", "it says nothing", "timeout")]


async def test_the_end_cuts_all_off_blames_nobody_and_waits_for_it(
    pending: PendingConnections, rejected: list[tuple[str, str, str]]
) -> None:
    strangers = [Stranger(f"stranger {n}", pending) for n in range(2)]
    await pending.end("the controller stops")
    assert all(stranger.closed.done() for stranger in strangers)
    assert len(pending) == 0
    assert rejected == []
    await pending.end("again, of nobody")


async def test_a_host_that_floods_pushes_out_its_own(rejected: list[tuple[str, str, str]]) -> None:
    pending = PendingConnections(3, lambda *told: rejected.append(told))
    honest = Stranger("192.0.2.7:40000", pending)
    flood = [Stranger(f"192.0.2.99:{port}", pending) for port in range(50)]
    await asyncio.gather(*(one.closed for one in flood[:48]))
    assert not honest.closed.done()
    assert {peer.rpartition(":")[0] for peer, _, _ in rejected} == {"192.0.2.99"}


async def test_where_there_are_no_strangers_none_makes_room(pending: PendingConnections) -> None:
    assert not pending.crowd_out()
    known = Stranger("a:1", pending)
    pending.leave(known)
    assert not pending.crowd_out()
