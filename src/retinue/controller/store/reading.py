"""Reads a table whole, however large it is: no message has to hold more than some thousand rows."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

from retinue.controller.store.schema import NAME

ROWS_AT_ONCE = 5000
"""Rows of one message: the longest that there are, of 10 KiB, fit into one (southbound.ovsdb.wire)."""
LOAD_TIMEOUT = 60.0


class Server(Protocol):
    """What is asked of the database's server (southbound.ovsdb.Connection)."""

    async def transact(
        self, database: str, operations: Sequence[Mapping[str, Any]], timeout: float | None = ...
    ) -> list[dict[str, Any]]: ...


async def rows_of(server: Server, table: str, columns: Collection[str]) -> list[dict[str, Any]]:
    """All rows of a table that nobody changes meanwhile. Raises what the connection raises."""
    (known,) = await server.transact(NAME, [_select(table, ["_uuid"])], LOAD_TIMEOUT)
    ids = [row["_uuid"] for row in known["rows"]]
    if len(ids) <= ROWS_AT_ONCE:
        (found,) = await server.transact(NAME, [_select(table, columns)], LOAD_TIMEOUT)
        return list(found["rows"])
    rows: list[dict[str, Any]] = []
    for part in _parts(ids):
        one_by_one = [_select(table, columns, [["_uuid", "==", id]]) for id in part]
        for answer in await server.transact(NAME, one_by_one, LOAD_TIMEOUT):
            rows += answer["rows"]
    return rows


def _select(table: str, columns: Collection[str], where: Sequence[Any] = ()) -> dict[str, Any]:
    return {"op": "select", "table": table, "where": list(where), "columns": list(columns)}


def _parts(ids: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (ids[start : start + ROWS_AT_ONCE] for start in range(0, len(ids), ROWS_AT_ONCE))
