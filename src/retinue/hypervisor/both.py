"""Two works at the same time, neither of which outlives the other's failure."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def both(*works: Coroutine[Any, Any, object]) -> None:
    """All of them, or the first failure."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
