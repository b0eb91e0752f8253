"""The last events, for those who come back, in little room.

An event as an object, with a dictionary of what it says, takes three times what it takes as a row whose names
are kept once for all events of its kind.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    id: int
    at: float
    type: str
    data: dict[str, Any]


_Row = tuple[Any, ...]
"""When it was, its type, the names of its data, and these."""


class EventRing:
    """Ids are consecutive: that of the first is known, and so are all."""

    def __init__(self, most: int) -> None:
        self._rows: deque[_Row] = deque(maxlen=most)
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}
        """Names of data: each combination once."""
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.since(0))

    def append(self, event: Event) -> None:
        """Its id is one more than that of the one before."""
        names = tuple(event.data)
        names = self._names.setdefault(names, names)
        self._rows.append((event.at, event.type, names, *event.data.values()))
        self._last_id = event.id

    def clear(self) -> None:
        self._rows.clear()

    @property
    def first_id(self) -> int | None:
        """That of the oldest; None: there is none."""
        return self._last_id + 1 - len(self._rows) if self._rows else None

    def since(self, id: int, wanted: Callable[[str], bool] = lambda type: True) -> "Past":
        """Those that came after this one and whose type is wanted, the oldest first; also those that leave
        the ring before they are looked at."""
        first = self.first_id or 0
        left_out = max(0, id + 1 - first)
        rows = enumerate(islice(self._rows, left_out, None), first + left_out)
        return Past([(number, row) for number, row in rows if wanted(row[1])])


class Past:
    """Events that have been; each is made when its turn comes. Who listens and reads nothing holds no more
    than a number for each."""

    def __init__(self, rows: list[tuple[int, _Row]]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Event]:
        for number, (at, type, names, *said) in self._rows:
            yield Event(number, at, type, dict(zip(names, said, strict=True)))

    def only(self, wanted: Callable[[Event], bool]) -> "Past":
        """Those of them that are wanted."""
        return Past([row for row, event in zip(self._rows, self, strict=True) if wanted(event)])
