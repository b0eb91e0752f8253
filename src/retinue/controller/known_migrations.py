"""The migrations that a controller knows: by id, and those under way by their VM."""

from collections import UserDict
from collections.abc import Iterator

from retinue.core.migration import Migration


def number_of(id: str) -> int:
    """12 of "migration-12"."""
    return int(id.removeprefix("migration-"))


class Migrations(UserDict[str, Migration]):
    """By id: those under way and those that are remembered (see migrations.history).

    Of each VM one or more are remembered, and few are under way: these have an index of their own, so that
    no event looks through the others.
    """

    def __init__(self) -> None:
        super().__init__()
        self._under_way: dict[str, str] = {}
        """By VM: its migration that has not ended."""
        self._highest = 0

    def __setitem__(self, id: str, migration: Migration) -> None:
        super().__setitem__(id, migration)
        self._highest = max(self._highest, number_of(id))
        if not migration.state.ended:
            self._under_way[migration.vm] = id
        elif self._under_way.get(migration.vm) == id:
            del self._under_way[migration.vm]

    def __delitem__(self, id: str) -> None:
        vm = self[id].vm
        super().__delitem__(id)
        if self._under_way.get(vm) == id:
            del self._under_way[vm]

    def of_vm(self, vm: str) -> Migration | None:
        """The migration this VM is in, if any."""
        id = self._under_way.get(vm)
        return None if id is None else self[id]

    def under_way(self) -> Iterator[Migration]:
        """Those that have not ended, at this moment."""
        return iter([self[id] for id in self._under_way.values()])

    @property
    def next_id(self) -> str:
        """An id that none has had."""
        return f"migration-{self._highest + 1}"
