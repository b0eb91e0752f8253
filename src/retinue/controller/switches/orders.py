"""What waits while a switch is being told something goes to it together next, as one change (group commit).

A change takes two round trips, and all changes meet at the spines: one by one, a spine would bear no more of
them a second than it can be asked in turn. Each is told what it has sent, and not before the switch has
confirmed it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence, Set
from dataclasses import dataclass

from retinue.core.pipeline.entry import EntryKey

MOST_AT_ONCE = 2_000
"""Entries of one change, but for an order that has more by itself."""


@dataclass(frozen=True, slots=True)
class Sent:
    """How many flow entries were sent, and whether the switch has confirmed all that was asked for."""

    flow_mods: int
    confirmed: bool


Order = Set[EntryKey]
"""The entries that somebody asks to be sent."""


class Orders:
    """Of one switch. `carry_out` is called with `lock` held, and answers each of the orders."""

    def __init__(
        self, lock: asyncio.Lock, carry_out: Callable[[Sequence[Order]], Awaitable[Sequence[Sent]]]
    ) -> None:
        self._lock = lock
        self._carry_out = carry_out
        self._waiting: dict[asyncio.Future[Sent], Order] = {}
        """In their order."""

    async def give(self, keys: Collection[EntryKey]) -> Sent:
        """Have the difference sent for these keys, together with what waits."""
        answer: asyncio.Future[Sent] = asyncio.get_running_loop().create_future()
        self._waiting[answer] = frozenset(keys)
        try:
            async with self._lock:
                while not answer.done():
                    taken = self._taken()
                    found = await self._carry_out([self._waiting[one] for one in taken])
                    for one, sent in zip(taken, found, strict=True):
                        self._waiting.pop(one, None)
                        if not one.done():
                            one.set_result(sent)
        finally:
            self._waiting.pop(answer, None)
        return answer.result()

    def _taken(self) -> list[asyncio.Future[Sent]]:
        """The first ones, as many as are one change."""
        taken: list[asyncio.Future[Sent]] = []
        entries = 0
        for answer, keys in self._waiting.items():
            entries += len(keys)
            if taken and entries > MOST_AT_ONCE:
                break
            taken.append(answer)
        return taken
