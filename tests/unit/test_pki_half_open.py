"""Connections that have yet to show who they are: bounded, and those at fault are told, with the reason."""

import asyncio

import pytest

from retinue.pki.half_open import HalfOpen


class Stranger:
    """Leaves as a connection does: later, when it has been cut off."""

    def __init__(self, peer: str, half_open: HalfOpen) -> None:
        self.peer = peer
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.half_open = half_open
        half_open.enter(self)

    def end(self, reason: str, kind: str = "") -> None:
        asyncio.get_running_loop().call_soon(self.gone, reason, kind)

    def gone(self, reason: str, kind: str) -> None:
        self.half_open.leave(self, reason, kind)
        self.closed.set_result(None)


@pytest.fixture
def refused() -> list[tuple[str, str, str]]:
    return []


@pytest.fixture
def half_open(refused: list[tuple[str, str, str]]) -> HalfOpen:
    return HalfOpen(2, lambda *told: refused.append(told))


async def test_of_more_than_may_be_the_oldest_goes(
    half_open: HalfOpen, refused: list[tuple[str, str, str]]
) -> None:
    first, *others = [Stranger(f"stranger {n}", half_open) for n in range(3)]
    assert len(half_open) == 2
    await first.closed
    assert refused == [("stranger 0", "2 newer connections without a handshake", "crowded")]
    assert len(half_open) == 2
    assert not any(other.closed.done() for other in others)


async def test_who_has_shown_who_it_is_makes_room(
    half_open: HalfOpen, refused: list[tuple[str, str, str]]
) -> None:
    known = Stranger("known", half_open)
    Stranger("other", half_open)
    half_open.leave(known)
    last = Stranger("last", half_open)
    half_open.leave(known)  # again, at its end
    assert len(half_open) == 2
    half_open.leave(last, "it says nothing", "timeout")
    assert len(half_open) == 1
    assert refused == [("last", "it says nothing", "timeout")]


async def test_the_end_cuts_all_off_blames_nobody_and_waits_for_it(
    half_open: HalfOpen, refused: list[tuple[str, str, str]]
) -> None:
    strangers = [Stranger(f"stranger {n}", half_open) for n in range(2)]
    await half_open.end("the controller stops")
    assert all(stranger.closed.done() for stranger in strangers)
    assert len(half_open) == 0
    assert refused == []
    await half_open.end("again, of nobody")
