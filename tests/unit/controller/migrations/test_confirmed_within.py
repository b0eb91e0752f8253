"""What a switch has confirmed in time counts, though this process read it late."""

import asyncio
import time

from retinue.controller.migrations.reports import confirmed_within

LIMIT = 0.5


def told_in(event: asyncio.Event, turns: int) -> None:
    """Set it as a message does that lies in a socket: some turns of the loop after it was read."""
    loop = asyncio.get_running_loop()
    if turns:
        loop.call_soon(told_in, event, turns - 1)
    else:
        event.set()


async def test_what_lay_unread_while_the_loop_stood_still_is_in_time() -> None:
    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(time.sleep, 2 * LIMIT)
    asyncio.get_running_loop().call_soon(told_in, event, 5)
    assert await confirmed_within(event, LIMIT)


async def test_what_does_not_come_is_late() -> None:
    assert not await confirmed_within(asyncio.Event(), 0.01)
