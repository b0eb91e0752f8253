"""A migration whose two ends are in one process."""

import asyncio
from typing import Any

from retinue.core.migration.copying import PLAIN, CopyOptions
from retinue.core.migration.precopy import WANTED_DOWNTIME
from retinue.hypervisor.interface import Divert, Hypervisor, MigrationResult, OnEvent, ignore
from retinue.hypervisor.memory_channel import Channel, channel_pair


async def migrate(
    from_: Hypervisor[Any],
    source: Any,
    to: Hypervisor[Any],
    target: Any,
    on_event: OnEvent = ignore,
    divert: Divert | None = None,
    options: CopyOptions = PLAIN,
    wanted_downtime: float = WANTED_DOWNTIME,
) -> MigrationResult:
    """Migrate a running VM. Raises HypervisorError; the target has ended then, and the source runs on."""
    here, there = await channel_pair()
    taking: list[asyncio.Task[None]] = []

    async def open_disk(number: int) -> Channel:
        near, far = await channel_pair()
        taking.append(asyncio.create_task(target.take_disk(number, far)))
        return near

    arrival = asyncio.create_task(to.run_incoming(target, there, on_event), name="incoming")
    try:
        return await from_.run_outgoing(
            source, here, on_event, divert, wanted_downtime, options=options, open_disk=open_disk
        )
    finally:
        await asyncio.shield(asyncio.gather(arrival, *taking, return_exceptions=True))
