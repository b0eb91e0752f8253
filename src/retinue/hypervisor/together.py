"""A move whose two ends are in one process."""

import asyncio
from typing import Any

from retinue.hypervisor.channel import channel_pair
from retinue.hypervisor.interface import Divert, Hypervisor, MigrationResult, OnEvent, ignore


async def move(
    from_: Hypervisor[Any],
    source: Any,
    to: Hypervisor[Any],
    target: Any,
    on_event: OnEvent = ignore,
    divert: Divert | None = None,
) -> MigrationResult:
    """Move a running VM. Raises HypervisorError; the target has ended then, and the source runs on."""
    here, there = await channel_pair()
    arrival = asyncio.create_task(to.arrive(target, there, on_event), name=f"arrival of {source.spec.id}")
    try:
        return await from_.depart(source, here, on_event, divert)
    finally:
        await asyncio.shield(asyncio.gather(arrival, return_exceptions=True))
