"""Room for what is on its way to the switches: who comes when there is none waits, and is not computed yet.

What is under way takes memory: the keys of all entries that are not confirmed, what was there before, the
messages. An owner is something that has entries, such as a VM.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from retinue.core.model.network import Owner
from retinue.patience import after

LONGEST_STAY = 1.0
"""Seconds after which who is still under way gives the room back: a switch that answers nothing is cut off
after some seconds (`openflow.session`), and what waits for it till then is to hold up no others."""
MOST_OVERDUE = 4
"""Times what there is room for, of those who are under way for longer: who is as many seconds behind is slow
for good, such as a switch that answers late, and may not let in everybody."""


class Room:
    """For so many owners; who waits comes in the order in which they came."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.taken = 0
        self.overdue = 0
        """Who is still under way, and has given the room back."""
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def enter(self, owners: int) -> None:
        """Return when there is room for so many, which is taken by then; more than there ever is enter an
        empty one."""
        if not self._waiting and self._fits(owners):
            self.taken += owners
            return
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((owners, told))
        try:
            await told
        except asyncio.CancelledError:
            if told.done() and not told.cancelled():
                self.leave(owners)
            raise

    def leave(self, owners: int) -> None:
        self.taken -= owners
        while self._waiting and (self._waiting[0][1].done() or self._fits(self._waiting[0][0])):
            waiting, told = self._waiting.popleft()
            if not told.done():
                self.taken += waiting
                told.set_result(None)

    @contextmanager
    def held(self, owners: int) -> Iterator[None]:
        """What is inside holds the room that so many have entered, LONGEST_STAY at the most; longer while
        too many are overdue."""
        is_late = False

        def give_back() -> None:
            nonlocal is_late
            if self.overdue + owners <= MOST_OVERDUE * self._most:
                is_late = True
                self.overdue += owners
                self.leave(owners)

        timer = after(LONGEST_STAY, give_back)
        try:
            yield
        finally:
            timer.cancel()
            if is_late:
                self.overdue -= owners
            else:
                self.leave(owners)

    def _fits(self, owners: int) -> bool:
        return not self.taken or self.taken + owners <= self._most


Spawn = Callable[[Coroutine[Any, Any, Any], str], object]


class Turns:
    """What is in no hurry, such as ports of VMs that switches tell of: at once while there is room, and what
    has come while there was none together, each owner once."""

    def __init__(
        self,
        room: Room,
        batch: int,
        install: Callable[[Collection[Owner]], Coroutine[Any, Any, object]],
        spawn: Spawn,
    ) -> None:
        """`batch`: owners that are computed at once, at most."""
        self._room, self._batch, self._install, self._spawn = room, batch, install, spawn
        self._waiting: dict[Owner | _Mark, None] = {}
        self._under_way: set[_Mark] = set()
        self._takes_turns = False

    def add(self, owners: Iterable[Owner], what: str) -> None:
        """Have these installed in their turn; `what` is the name of the work in the log."""
        self._waiting.update(dict.fromkeys(owners))
        if self._waiting and not self._takes_turns:
            self._takes_turns = True
            self._spawn(self._take_turns(what), what)

    async def passed(self, owners: Iterable[Owner], what: str) -> None:
        """As `add`; return when these have been installed."""
        mark = asyncio.get_running_loop().create_future()
        self._waiting.update(dict.fromkeys(owners))
        self._waiting[mark] = None  # Who waited before has kept the place, and is in front of it.
        self.add((), what)
        await mark

    async def _take_turns(self, what: str) -> None:
        try:
            while self._waiting:
                await self._room.enter(self._batch)
                batch = list(islice(self._waiting, self._batch))
                for one in batch:
                    del self._waiting[one]
                owners = [one for one in batch if isinstance(one, Owner)]
                self._room.leave(self._batch - len(owners))
                if owners:
                    done: _Mark = asyncio.get_running_loop().create_future()
                    self._under_way.add(done)
                    self._spawn(self._installed(owners, done), what)
                for mark in (one for one in batch if not isinstance(one, Owner)):
                    self._spawn(self._tell(mark, list(self._under_way)), what)
        finally:
            self._takes_turns = False

    async def _installed(self, batch: Collection[Owner], done: "_Mark") -> None:
        try:
            with self._room.held(len(batch)):
                await self._install(sorted(batch))
        finally:
            self._under_way.discard(done)
            done.set_result(None)

    async def _tell(self, mark: "_Mark", under_way: Collection["_Mark"]) -> None:
        if under_way:
            await asyncio.wait(under_way)  # `gather`, cancelled, would cancel what others wait for.
        if not mark.done():
            mark.set_result(None)


_Mark = asyncio.Future[None]
