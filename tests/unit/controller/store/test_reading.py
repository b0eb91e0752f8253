"""A table is read in messages of a bearable size, and completely."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from retinue.controller.store import reading
from retinue.controller.store.reading import rows_of


class Server:
    """One table, and the most rows that one answer had."""

    def __init__(self, rows: int) -> None:
        self._rows = [{"_uuid": ["uuid", f"{n:08x}"], "id": f"vm{n}", "other": n} for n in range(rows)]
        self.most = self.asked = 0

    async def transact(
        self, database: str, operations: Sequence[Mapping[str, Any]], timeout: float | None = None
    ) -> list[dict[str, Any]]:
        self.asked += 1
        answers = [{"rows": self._select(each["columns"], each["where"])} for each in operations]
        if operations[0]["columns"] != ["_uuid"]:
            self.most = max(self.most, sum(len(answer["rows"]) for answer in answers))
        return answers

    def _select(self, columns: Sequence[str], where: Sequence[Any]) -> list[dict[str, Any]]:
        wanted = [row for row in self._rows if all(row[name] == value for name, _, value in where)]
        return [{name: row[name] for name in columns} for row in wanted]


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 10, 12])
async def test_all_rows_are_read_and_few_at_once(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "ROWS_AT_ONCE", 3)
    server = Server(rows)
    found = await rows_of(server, "VM", ["id", "other"])
    assert found == [{"id": f"vm{n}", "other": n} for n in range(rows)]
    assert server.most <= 3


async def test_a_small_table_is_read_at_once() -> None:
    server = Server(100)
    await rows_of(server, "VM", ["id"])
    assert server.asked == 2
