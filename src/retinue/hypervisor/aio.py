"""Coroutines run together, so that none outlives the failure of another, and shielded from cancellation; and
the end of what they wait at."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from retinue.host.errors import HostError
from retinue.hypervisor.errors import HypervisorError

T = TypeVar("T")


def close_socket(end: socket.socket) -> None:
    """Close a socket at which somebody may still wait: the loop forgets it first, for what is called off
    later would find that its number is another one's, or nobody's."""
    number = end.fileno()
    if number >= 0:
        with contextlib.suppress(RuntimeError):  # Nobody waits outside of a loop.
            loop = asyncio.get_running_loop()
            loop.remove_reader(number)
            loop.remove_writer(number)
    with contextlib.suppress(OSError):
        end.close()


async def both(*works: Coroutine[Any, Any, object]) -> None:
    """Run all of them; raises the first failure, and then the others are cancelled."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unless(failed: "asyncio.Future[str]", work: Awaitable[T]) -> T:
    """The result of the work. Raises HypervisorError when `failed` is done first, with its text."""
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


async def value(future: Awaitable[T]) -> T:
    """Its result. A future is not cancelled where whoever waits here is."""
    if isinstance(future, asyncio.Future):
        return await asyncio.shield(future)
    return await future


async def first_of(*awaited: "asyncio.Future[Any]") -> None:
    """Return when one of them is done. Raises what that one failed with."""
    done, _ = await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
    for future in done:
        future.result()


async def cancelled(*tasks: "asyncio.Task[Any]") -> None:
    """Call them off, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def run_to_completion(work: Coroutine[Any, Any, T]) -> T:
    """The result of work that a cancellation must not interrupt half way.

    A caller that is cancelled meanwhile waits for the work all the same, and is not cancelled.
    """
    task = asyncio.create_task(work)
    while True:
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise


class Beside:
    """Work that goes on beside other work; `fail` is told why it has failed."""

    def __init__(self, fail: Callable[[str], None]) -> None:
        self._fail = fail
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        async def do() -> None:
            try:
                await work
            except HostError as error:
                self._fail(str(error))

        self._tasks.append(asyncio.create_task(do(), name=name))

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
