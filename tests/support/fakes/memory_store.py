"""The controller's database, in memory."""

from retinue.controller.state import Storable, Stored
from retinue.controller.store.rows import key_of, sort_in


class MemoryStore:
    """What is in the database when the controller ends."""

    trouble = ""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Storable] = {}

    def put(self, value: Storable) -> None:
        self.rows[key_of(value)] = value

    def remove(self, value: Storable) -> None:
        self.rows.pop(key_of(value), None)

    def load(self) -> Stored:
        stored = Stored()
        for key in sorted(self.rows):
            sort_in(stored, self.rows[key])
        return stored

    def tables(self) -> set[str]:
        return {table for table, _ in self.rows}
