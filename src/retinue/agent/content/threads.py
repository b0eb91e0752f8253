"""Threads for what blocks: reading, checking and writing chunks.

They are few and their own. A migration that must look at something in a thread, too, never waits for a scrub,
and an agent that fetches takes no more than this of the server's processors.
"""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

MOST = 2

_threads = ThreadPoolExecutor(MOST, thread_name_prefix="content")
_slow = ThreadPoolExecutor(1, thread_name_prefix="content-slow")

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns, or raises: one chunk's worth of work."""
    call = functools.partial(work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_threads, call)


async def in_slow_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The same for what takes as long as an image is large: one at a time, and no chunk waits for it."""
    call = functools.partial(work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_slow, call)
