"""Storage that does not answer: who waits for it, for how long, and what is done late."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from retinue.host import storage
from retinue.host.storage import STORAGE_LIMIT, StorageError
from support.virtual_time import pass_over


class Dead:
    """Storage that answers nothing until it is well again; `asked` has each call that has come to it."""

    def __init__(self) -> None:
        self.well, self.calls, self.asked = threading.Event(), threading.Semaphore(0), 0

    def call(self) -> str:
        self.asked += 1
        self.calls.release()
        self.well.wait()
        return "here"


@pytest.fixture
def dead() -> Iterator[Dead]:
    made = Dead()
    yield made
    made.well.set()


def threads_of(path: Path) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == f"storage of {path}"]


async def given_up(path: Path, dead: Dead) -> None:
    waiting = asyncio.create_task(storage.look(path, dead.call))
    await asyncio.to_thread(dead.calls.acquire)
    pass_over(STORAGE_LIMIT)
    with pytest.raises(StorageError, match=f"the storage of {path} does not answer"):
        await waiting


async def test_nobody_waits_for_storage_that_is_dead_and_no_thread_of_the_loop(
    dead: Dead, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    await given_up(path, dead)
    assert await storage.look(tmp_path / "b", lambda: "well") == "well"
    for _ in range(50):
        with pytest.raises(StorageError):
            await storage.look(path, dead.call)
    assert dead.asked == len(threads_of(path)) == 1, "it has been asked already"


async def test_storage_that_is_well_again_is_asked_again(dead: Dead, tmp_path: Path) -> None:
    path = tmp_path / "c"
    await given_up(path, dead)
    dead.well.set()
    [thread] = threads_of(path)
    await asyncio.to_thread(thread.join)
    assert await storage.look(path, dead.call) == "here"


async def test_two_may_look_at_one_file(dead: Dead, tmp_path: Path) -> None:
    path = tmp_path / "d"
    both = [asyncio.create_task(storage.look(path, dead.call)) for _ in range(2)]
    for _ in both:
        await asyncio.to_thread(dead.calls.acquire)
    dead.well.set()
    assert await asyncio.gather(*both) == ["here", "here"]


async def test_what_the_call_raises_is_raised(tmp_path: Path) -> None:
    def fails() -> None:
        raise PermissionError("not yours")

    with pytest.raises(PermissionError, match="not yours"):
        await storage.look(tmp_path / "e", fails)


async def test_what_was_given_up_is_not_asked_before_it_has_returned(dead: Dead, tmp_path: Path) -> None:
    """Else it could remove late what was made since."""
    path = tmp_path / "f"
    waiting = asyncio.create_task(storage.look(path, dead.call))
    await asyncio.to_thread(dead.calls.acquire)
    waiting.cancel()
    await asyncio.wait({waiting})
    with pytest.raises(StorageError):
        await storage.look(path, dead.call)
