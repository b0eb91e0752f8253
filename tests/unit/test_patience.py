"""Peers are not measured by time in which this process did not read."""

import asyncio
import socket
import time

import pytest

from retinue.patience import after, late, patience, pause, served

STANDSTILL = 1.0
"""Seconds for which the loop stands still; a busy machine makes it more, never less."""


def stand_still(seconds: float = STANDSTILL) -> None:
    time.sleep(seconds)


async def test_what_takes_too_long_ends() -> None:
    with pytest.raises(TimeoutError):
        async with patience(0.05):
            await asyncio.Event().wait()
    async with patience(None):
        await asyncio.sleep(0)


async def test_time_in_which_the_loop_stood_still_does_not_count() -> None:
    async with patience(STANDSTILL / 2):
        asyncio.get_running_loop().call_soon(stand_still)
        await asyncio.sleep(STANDSTILL * 0.9)


async def test_what_came_meanwhile_is_read_before_a_peer_counts_as_silent() -> None:
    """The answer was there in time, and lay unread."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    cut_off: list[str] = []
    timer = after(STANDSTILL / 2, lambda: cut_off.append("silent"))
    theirs.send(b"here I am")
    stand_still()
    assert await reader.read(100) == b"here I am"
    assert not cut_off
    timer.cancel()
    writer.close()
    theirs.close()


async def test_many_short_standstills_count_as_one() -> None:
    """As with a core that others have, too: each turn of the loop takes longer than it should."""
    began, real = served(), time.monotonic()
    for _ in range(5):
        stand_still(STANDSTILL / 2)
        await asyncio.sleep(0)
    assert served() - began < (time.monotonic() - real) / 2


async def test_by_how_much_the_loop_was_late_is_known() -> None:
    before = late()
    stand_still()
    assert STANDSTILL * 0.7 < late() - before < 100


def test_without_a_loop_nothing_is_late() -> None:
    assert late() == 0.0


async def test_who_stays_silent_is_found_out() -> None:
    over = asyncio.Event()
    after(0.05, over.set)
    stand_still()
    async with asyncio.timeout(60):
        await over.wait()


async def test_what_was_cancelled_is_not_called() -> None:
    called: list[int] = []
    after(0.01, lambda: called.append(1)).cancel()
    await pause(0.1)
    assert not called
