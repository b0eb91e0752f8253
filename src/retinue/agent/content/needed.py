"""An image that something on this server cannot do without: fetched if need be, and waited for."""

import asyncio
from typing import Protocol

from retinue.agent.vms.disks import ImageAwayError
from retinue.host.errors import HostError


class Fetches(Protocol):
    """See ContentService."""

    def is_here(self, name: str, pin: str) -> bool: ...

    def fetch_base(self, name: str, pin: str) -> "asyncio.Task[None]": ...

    def why_not(self, name: str) -> str: ...


async def need(content: Fetches, name: str, pin: str, seconds: float) -> None:
    """See agent.vms.disks.Images.need.

    A fetch that was under way may have been for something else, without a file: then another follows, which
    finds all chunks here.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    for _ in range(2):
        if content.is_here(name, pin):
            return
        fetch = content.fetch_base(name, pin)
        await asyncio.wait({fetch}, timeout=max(0.0, until - loop.time()))
        if not fetch.done():
            raise ImageAwayError(
                f"image {name} is being fetched, `retinue image show {name}` tells how far: try again then"
            )
    if not content.is_here(name, pin):
        raise HostError(f"image {name} is not here: {content.why_not(name)}")
