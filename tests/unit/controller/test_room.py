"""Room for what is under way: who waits, in which order, and what goes together."""

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any

import pytest

from retinue.controller.room import Room, Turns
from retinue.core.model.network import Owner


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_waits_comes_in_order_and_all_that_fit_at_once() -> None:
    room, came = Room(10), []

    async def enter(name: str, owners: int) -> None:
        await room.enter(owners)
        came.append(name)

    tasks = [asyncio.create_task(enter(*one)) for one in (("a", 6), ("b", 5), ("c", 4), ("d", 1))]
    await settle()
    assert (came, room.taken) == (["a"], 6), "c would fit, and b came first"
    room.leave(6)
    await settle()
    assert (came, room.taken) == (["a", "b", "c", "d"], 10)
    await asyncio.gather(*tasks)


async def test_more_than_there_is_enter_an_empty_room() -> None:
    room = Room(10)
    async with asyncio.timeout(5):
        await room.enter(11)
    late = asyncio.create_task(room.enter(1))
    await settle()
    assert not late.done()
    room.leave(11)
    await late


@pytest.mark.parametrize("told", [False, True])
async def test_who_gives_up_takes_no_room(told: bool) -> None:
    room = Room(10)
    await room.enter(10)
    waiting = asyncio.create_task(room.enter(5))
    behind = asyncio.create_task(room.enter(10))
    await settle()
    if told:
        room.leave(10)
    waiting.cancel()
    await settle()
    if not told:
        room.leave(10)
    await behind
    assert room.taken == 10


async def test_who_is_under_way_for_long_keeps_nobody_else_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As what waits for a switch that answers nothing; and what it held is given back once."""
    monkeypatch.setattr("retinue.controller.room.LONGEST_STAY", 0.02)
    room = Room(10)
    await room.enter(10)
    with room.held(10):
        async with asyncio.timeout(5):
            await room.enter(4)
        assert room.taken == 4
    assert room.taken == 4
    with pytest.raises(ValueError, match="it failed"), room.held(4):
        raise ValueError("it failed")
    assert room.taken == 0


class Work:
    """Installations that last until `finish`, and what the `Turns` were told of them."""

    def __init__(self, most: int, batch: int) -> None:
        self.begun: list[list[str]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._ended: list[asyncio.Event] = []
        self.turns = Turns(Room(most), batch, self._install, self._spawn)

    def add(self, *numbers: int) -> None:
        self.turns.add([Owner("vm", str(number)) for number in numbers], "ports")

    async def _install(self, owners: Collection[Owner]) -> None:
        self.begun.append([owner.id for owner in owners])
        ended = asyncio.Event()
        self._ended.append(ended)
        await ended.wait()

    def _spawn(self, work: Coroutine[Any, Any, Any], what: str) -> None:
        assert what == "ports"
        self.tasks.append(asyncio.create_task(work))

    async def finish(self, which: int) -> None:
        self._ended[which].set()
        await settle()


async def test_what_comes_while_there_is_room_goes_at_once() -> None:
    work = Work(most=6, batch=3)
    for number in range(3):
        work.add(number)
        await settle()
    assert work.begun == [["0"], ["1"], ["2"]]
    for number in range(3):
        await work.finish(number)


async def test_what_comes_while_there_is_none_goes_together_each_once() -> None:
    work = Work(most=3, batch=3)
    work.add(0, 1)
    await settle()
    for number in (2, 3, 2, 4, 2, 5):
        work.add(number)
        await settle()
    assert work.begun == [["0", "1"]]
    await work.finish(0)
    assert work.begun[1:] == [["2", "3", "4"]]
    await work.finish(1)
    assert work.begun[2:] == [["5"]]
    await work.finish(2)
    work.add(2)
    await settle()
    assert work.begun[3:] == [["2"]], "and once more"
    await work.finish(3)
    assert all(task.done() for task in work.tasks)


async def test_who_waits_is_told_when_all_that_it_asked_for_is_installed() -> None:
    """Also what others have asked for before; what comes later is not waited for."""
    work = Work(most=4, batch=2)
    work.add(0, 1, 2, 3, 4)
    owners = [Owner("vm", str(number)) for number in (4, 1)]
    passed = asyncio.create_task(work.turns.passed(owners, "ports"))
    await settle()
    work.add(5)
    assert work.begun == [["0", "1"], ["2", "3"]]
    await work.finish(1)
    await work.finish(0)
    assert work.begun[2:] == [["1", "4"], ["5"]], "each once that was waiting"
    await work.finish(3)
    assert not passed.done()
    await work.finish(2)
    await passed
    await work.turns.passed([], "ports")
    assert all(task.done() for task in work.tasks)


async def test_one_that_fails_makes_room_all_the_same() -> None:
    work = Work(most=1, batch=1)
    failing = Turns(Room(1), 1, lambda owners: _fail(), work._spawn)
    failing.add([Owner("vm", "1"), Owner("vm", "2")], "ports")
    await failing.passed([Owner("vm", "3")], "ports")
    await settle()
    failed = [task for task in work.tasks if task.done() and task.exception() is not None]
    assert len(failed) == 3


async def _fail() -> None:
    raise ValueError("two clash")


async def test_who_is_slow_does_not_let_in_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a switch that answers slowly, or a controller that has too little of its processor: what is
    under way takes memory all the same."""
    monkeypatch.setattr("retinue.controller.room.LONGEST_STAY", 0.02)
    room, inside, ended = Room(10), [], asyncio.Event()

    async def stay(number: int) -> None:
        await room.enter(5)
        with room.held(5):
            inside.append(number)
            await ended.wait()

    tasks = [asyncio.create_task(stay(number)) for number in range(40)]
    await asyncio.sleep(1.0)
    assert len(inside) == 2 + 4 * 2
    ended.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)
    assert (room.taken, room.overdue) == (0, 0)


async def test_stopped_in_the_middle_nothing_is_said_to_be_wrong() -> None:
    """Who waits, what it waits for and who is to tell it are cancelled together, in any order."""
    for order in (1, -1):
        work = Work(most=4, batch=2)
        work.add(0, 1)
        waiting = [asyncio.create_task(work.turns.passed([Owner("vm", "2")], "ports")) for _ in range(2)]
        await settle()
        for task in [*waiting, *work.tasks][::order]:
            task.cancel()
        await settle()
        await settle()
        assert all(task.done() for task in work.tasks)
        assert [task for task in work.tasks if not task.cancelled() and task.exception()] == []
