"""Another connection between the agents of a migration by post-copy, where the one before is broken.

The VM runs at its target, and lacks some of its memory. Whatever ended the first connection, its two ends try
for a while to go on by another: each gets one from `Channel.again`, and has its hypervisor use it.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from retinue.host.errors import HostError
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.memory_channel import Channel

AGAIN_LIMIT = 30.0
"""Seconds for another way: then the VM, which lacks some of its memory, is ended."""
AGAIN_SECONDS = 0.5
"""Between two attempts."""

log = structlog.get_logger()

T = TypeVar("T")


async def another_way(
    vm: str,
    broken: Channel,
    ready: Callable[[], Awaitable[object]],
    attempt: Callable[[Channel], Awaitable[T]],
) -> tuple[Channel, T]:
    """A connection in place of one that is broken, and what was made of it.

    `ready` returns when the hypervisor here can go on by another, `attempt` has it do so; what either fails
    with is tried again. Raises HypervisorError.
    """
    again, why = broken.again, "there is no other way to the other end"
    broken.abort()
    if again is None:
        raise HypervisorError(why)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(AGAIN_LIMIT):
            while True:
                try:
                    await ready()
                    channel = await again()
                    try:
                        made = await attempt(channel)
                    except BaseException:
                        channel.abort()  # The other end waits for a word, and would find no other meanwhile.
                        raise
                except HostError as error:
                    why = str(error)
                    await asyncio.sleep(AGAIN_SECONDS)
                else:
                    channel.again, channel.compress = again, broken.compress
                    log.warning("migration.goes_on", vm=vm)
                    return channel, made
    raise HypervisorError(f"no other way to the other end within {AGAIN_LIMIT:.0f} s: {why}")
