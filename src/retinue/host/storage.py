"""Files on storage that may not answer, such as that of an NFS server which is dead.

A call to such a file does not return, and cannot be called off. It is made in a thread of its own: neither
the event loop waits for it, nor other work, as it would for one of the loop's few threads; nor the end of the
program.
"""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

from retinue.host.errors import HostError

STORAGE_LIMIT = 10.0
"""Seconds for a file's storage to answer."""

T = TypeVar("T")

_unanswered: set[Path] = set()
"""Files with a call that nobody waits for any more, and that has not returned."""


class StorageError(HostError):
    """The storage of a file does not answer."""


async def look(path: Path, work: Callable[[], T]) -> T:
    """The result of `work`, which is on this file alone. Raises what it does, and StorageError.

    While a call that was given up has not returned there is no other one to the same file: so what it may do
    late, it does to nothing that was made since; and it has one thread at most.
    """
    if path in _unanswered:
        raise _no_answer(path)
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()
    returned = False

    def settle(result: T | None, error: Exception | None) -> None:
        nonlocal returned
        returned = True
        _unanswered.discard(path)
        if outcome.done():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(cast(T, result))

    def call() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        try:
            loop.call_soon_threadsafe(settle, result, failure)
        except RuntimeError:  # The loop has ended.
            _unanswered.discard(path)

    threading.Thread(target=call, name=f"storage of {path}", daemon=True).start()
    try:
        async with asyncio.timeout(STORAGE_LIMIT):
            return await outcome
    except TimeoutError as error:
        raise _no_answer(path) from error
    finally:
        if not returned:
            _unanswered.add(path)


def _no_answer(path: Path) -> StorageError:
    return StorageError(f"the storage of {path} does not answer")
