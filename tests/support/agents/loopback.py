"""A migration whose two ends are in one process."""

import asyncio
from typing import Any

from retinue.hypervisor.interface import Divert, Hypervisor, MigrationResult, OnEvent, ignore
from retinue.hypervisor.memory_channel import channel_pair


async def migrate(
    from_: Hypervisor[Any],
    source: Any,
    to: Hypervisor[Any],
    target: Any,
    on_event: OnEvent = ignore,
    divert: Divert | None = None,
) -> MigrationResult:
    """Migrate a running VM. Raises HypervisorError; the target has ended then, and the source runs on."""
    here, there = await channel_pair()
    arrival = asyncio.create_task(to.run_incoming(target, there, on_event), name="incoming")
    try:
        return await from_.run_outgoing(source, here, on_event, divert)
    finally:
        await asyncio.shield(asyncio.gather(arrival, return_exceptions=True))
