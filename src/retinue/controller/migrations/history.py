"""Which migrations that have ended are remembered: the last ones, and of each VM the last.

The last ones are those of the highest numbers. So the highest number is never forgotten, and no number is
given twice, also after a restart.
"""

from heapq import heappop, heappush

from retinue.controller.known_migrations import number_of
from retinue.core.migration import Migration

MIGRATIONS_KEPT = 1000


class History:
    """Decides, at the end of each migration, which older ones are forgotten. `keep`: at least 1."""

    def __init__(self, keep: int = MIGRATIONS_KEPT) -> None:
        self._keep = max(1, keep)
        self._recent: list[tuple[int, str]] = []
        """Numbers and VMs of the last ones; a heap, the oldest first."""
        self._last: dict[str, int] = {}
        """By VM: the number of its last migration."""

    def ended(self, migration: Migration) -> list[str]:
        """Ids of the migrations to be forgotten, now that this one has ended; never its own."""
        number, before = number_of(migration.id), self._last.get(migration.vm, 0)
        if number <= before or (number, migration.vm) in self._recent:
            return []
        self._last[migration.vm] = number
        old = [before] if before and (before, migration.vm) not in self._recent else []
        heappush(self._recent, (number, migration.vm))
        if len(self._recent) > self._keep:
            oldest, vm = heappop(self._recent)
            if self._last.get(vm) != oldest:
                old.append(oldest)
        return [f"migration-{each}" for each in old]

    def vm_gone(self, vm: str) -> list[str]:
        """Ids to be forgotten because this VM is no more."""
        last = self._last.pop(vm, 0)
        return [f"migration-{last}"] if last and (last, vm) not in self._recent else []
