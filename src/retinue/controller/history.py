"""Which moves that have ended are remembered: the last ones, and of each VM the last.

The last ones are those of the highest numbers. So the highest number is never forgotten, and no number is
given twice, also after a restart.
"""

from heapq import heappop, heappush

from retinue.moves import Move

MOVES_KEPT = 1000


def number_of(id: str) -> int:
    """12 of "move-12"."""
    return int(id.removeprefix("move-"))


class History:
    """Told of every move that ends, it says which are to be forgotten for it. `keep`: at least 1."""

    def __init__(self, keep: int = MOVES_KEPT) -> None:
        self._keep = max(1, keep)
        self._recent: list[tuple[int, str]] = []
        """Numbers and VMs of the last ones; a heap, the oldest first."""
        self._last: dict[str, int] = {}
        """By VM: the number of its last move."""

    def ended(self, move: Move) -> list[str]:
        """Ids of the moves to be forgotten, now that this one has ended; never its own."""
        number, before = number_of(move.id), self._last.get(move.vm, 0)
        if number <= before or (number, move.vm) in self._recent:
            return []
        self._last[move.vm] = number
        old = [before] if before and (before, move.vm) not in self._recent else []
        heappush(self._recent, (number, move.vm))
        if len(self._recent) > self._keep:
            oldest, vm = heappop(self._recent)
            if self._last.get(vm) != oldest:
                old.append(oldest)
        return [f"move-{each}" for each in old]

    def vm_gone(self, vm: str) -> list[str]:
        """Ids to be forgotten because this VM is no more."""
        last = self._last.pop(vm, 0)
        return [f"move-{last}"] if last and (last, vm) not in self._recent else []
