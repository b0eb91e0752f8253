"""Works at the same time, none of which outlives the other's failure."""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from retinue.hypervisor.interface import HypervisorError

T = TypeVar("T")


async def both(*works: Coroutine[Any, Any, object]) -> None:
    """All of them, or the first failure."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unless(failed: "asyncio.Future[str]", work: Awaitable[T]) -> T:
    """What the work gives. Raises HypervisorError when something has `failed` first, with what that says."""
    task = asyncio.ensure_future(work)
    try:
        awaited: set[asyncio.Future[Any]] = {task, failed}
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise HypervisorError(failed.result())
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
