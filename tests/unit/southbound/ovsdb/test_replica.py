"""A replica against a peer that plays each of the three ways of monitoring, and against one that lies."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from retinue.southbound.ovsdb import UUID, Connection, OvsdbError, ProtocolError, Replica, RowChange
from support.fakes.ovsdb_peer import PATIENCE, OvsdbPeer, pair

A, B = (UUID(f"{n * 8}-0000-0000-0000-000000000000") for n in "ab")
T1, T2 = (f"{n * 8}-0000-0000-0000-000000000000" for n in "12")
SCHEMA = {
    "name": "db",
    "version": "1.2.3",
    "tables": {
        "T": {
            "columns": {
                "name": {"type": "string"},
                "n": {"type": {"key": "integer", "min": 0, "max": 1}},
                "tags": {"type": {"key": "string", "min": 0, "max": "unlimited"}},
                "ids": {"type": {"key": "string", "value": "string", "min": 0, "max": "unlimited"}},
                "other": {"type": "real"},
            }
        }
    },
}
COLUMNS = {"T": ["name", "n", "tags", "ids"]}
ROW: dict[str, Any] = {"name": "a", "n": None, "tags": (), "ids": {}}


class Watched(Replica):
    """Keeps each list of changes it was told."""

    def __init__(self, columns: dict[str, list[str]] = COLUMNS) -> None:
        super().__init__("db", columns, self.changed)
        self.told: asyncio.Queue[list[RowChange]] = asyncio.Queue()

    def changed(self, changes: list[RowChange]) -> None:
        self.told.put_nowait(changes)

    async def next(self) -> list[RowChange]:
        async with asyncio.timeout(PATIENCE):
            return await self.told.get()


async def started(
    replica: Replica, methods: dict[str, Any], *then: dict[str, Any]
) -> tuple[Connection, OvsdbPeer, dict[str, Any]]:
    """Start the replica on a peer that offers `methods` with these results, and then sends `then`."""
    connection, peer = await pair()
    task = asyncio.create_task(replica.start(connection))
    await peer.answer("get_schema", SCHEMA)
    while (request := await peer.read())["method"] not in methods:
        peer.send({"id": request["id"], "result": None, "error": "unknown method"})
    peer.send({"id": request["id"], "result": methods[request["method"]], "error": None}, *then)
    async with asyncio.timeout(PATIENCE):
        await task
    return connection, peer, request


def notice(method: str, *params: Any) -> dict[str, Any]:
    return {"method": method, "params": ["db", *params], "id": None}


async def test_since_is_preferred_and_defaults_fill_what_is_left_out() -> None:
    replica = Watched()
    connection, _, request = await started(
        replica, {"monitor_cond_since": [False, T1, {"T": {A: {"initial": {"name": "a"}}}}]}
    )
    assert request["params"][0] == "db"
    assert request["params"][2:] == [
        {"T": [{"columns": ["name", "n", "tags", "ids"]}]},
        "00000000-0000-0000-0000-000000000000",
    ]
    assert replica.tables == {"T": {A: ROW}}
    assert await replica.next() == [RowChange("T", A, None, ROW)]
    assert (replica.last_transaction, replica.version) == (T1, "1.2.3")
    connection.close()


async def test_differences_are_applied_and_told_once_a_message() -> None:
    replica = Watched()
    first = {"T": {A: {"initial": {"name": "a", "tags": ["set", ["x", "y"]], "ids": ["map", [["k", "v"]]]}}}}
    connection, peer, _ = await started(replica, {"monitor_cond_since": [False, T1, first]})
    old = (await replica.next())[0].new
    assert old is not None
    difference = {"n": 5, "tags": ["set", ["y", "z"]], "ids": ["map", [["k", "w"], ["l", "m"]]]}
    peer.send(
        notice("update3", T2, {"T": {A: {"modify": difference}, B: {"insert": {"name": "b"}}}}),
        notice("update3", T1, {"T": {A: {"delete": None}}}),
    )
    new: dict[str, Any] = {"name": "a", "n": 5, "tags": ("x", "z"), "ids": {"k": "w", "l": "m"}}
    assert await replica.next() == [
        RowChange("T", A, old, new),
        RowChange("T", B, None, ROW | {"name": "b"}),
    ]
    assert await replica.next() == [RowChange("T", A, new, None)]
    assert old["tags"] == ("x", "y")
    assert replica.tables == {"T": {B: ROW | {"name": "b"}}}
    assert replica.last_transaction == T1
    connection.close()


async def test_updates_right_behind_the_reply_are_not_missed() -> None:
    replica = Watched()
    connection, _, _ = await started(
        replica,
        {"monitor_cond_since": [False, T1, {}]},
        notice("update3", T2, {"T": {A: {"insert": {"name": "a"}}}}),
        notice("update3", T2, {"T": {A: {"modify": {"n": 1}}}}),
    )
    assert await replica.next() == [RowChange("T", A, None, ROW)]
    assert await replica.next() == [RowChange("T", A, ROW, ROW | {"n": 1})]
    connection.close()


async def test_monitor_cond_where_since_is_not_known() -> None:
    replica = Watched()
    connection, peer, _ = await started(replica, {"monitor_cond": {"T": {A: {"initial": {"name": "a"}}}}})
    assert replica.method == "monitor_cond"
    await replica.next()
    peer.send(notice("update2", {"T": {A: {"modify": {"n": ["set", [3]]}}}}))
    assert await replica.next() == [RowChange("T", A, ROW, ROW | {"n": 3})]
    connection.close()


async def test_plain_monitor_where_nothing_else_is_known() -> None:
    replica = Watched()
    whole = {"name": "a", "n": ["set", []], "tags": ["set", []], "ids": ["map", []]}
    connection, peer, _ = await started(replica, {"monitor": {"T": {A: {"new": whole}}}})
    assert replica.method == "monitor"
    await replica.next()
    peer.send(notice("update", {"T": {A: {"old": {"n": ["set", []]}, "new": whole | {"n": 3}}}}))
    peer.send(notice("update", {"T": {A: {"old": whole | {"n": 3}}}}))
    assert await replica.next() == [RowChange("T", A, ROW, ROW | {"n": 3})]
    assert await replica.next() == [RowChange("T", A, ROW | {"n": 3}, None)]
    connection.close()


@pytest.mark.parametrize("found", [True, False])
async def test_a_new_connection_tells_only_what_differs(found: bool) -> None:
    replica = Watched()
    first = {"T": {u: {"initial": {"name": "a"}} for u in (A, B)}}
    connection, peer, _ = await started(replica, {"monitor_cond_since": [False, T1, first]})
    await replica.next()
    peer.close()
    await connection.closed()
    answer = (
        {A: {"modify": {"n": 1}}, B: {"delete": None}} if found else {A: {"initial": {"name": "a", "n": 1}}}
    )
    connection, _, request = await started(replica, {"monitor_cond_since": [found, T2, {"T": answer}]})
    assert request["params"][3] == T1
    changes = {change.uuid: change for change in await replica.next()}
    assert changes == {A: RowChange("T", A, ROW, ROW | {"n": 1}), B: RowChange("T", B, ROW, None)}
    assert replica.told.empty()
    connection.close()


async def test_nothing_is_told_when_nothing_differs() -> None:
    replica = Watched()
    contents = {"monitor_cond_since": [False, T1, {"T": {A: {"initial": {"name": "a"}}}}]}
    (await started(replica, contents))[0].close()
    await replica.next()
    (await started(replica, contents))[0].close()
    assert replica.told.empty()


BAD_UPDATES: list[Any] = [
    notice("update3", T2, {"U": {}}),
    notice("update3", T2, {"T": []}),
    notice("update3", T2, {"T": {A: None}}),
    notice("update3", T2, {"T": {A: {}}}),
    notice("update3", T2, {"T": {B: {"modify": {"n": 1}}}}),
    notice("update3", T2, {"T": {B: {"insert": {}}, A: {"modify": {"n": "text"}}}}),
    notice("update3", T2, {"T": {A: {"modify": {"unknown": 1}}}}),
    notice("update3", {}),
    {"method": "update3", "params": ["other", T2, {}], "id": None},
]


@pytest.mark.parametrize("update", BAD_UPDATES, ids=lambda u: str(u["params"])[:40])
async def test_an_update_that_makes_no_sense_closes_the_connection_and_changes_nothing(update: Any) -> None:
    replica = Watched()
    connection, peer, _ = await started(
        replica, {"monitor_cond_since": [False, T1, {"T": {A: {"initial": {"name": "a"}}}}]}
    )
    peer.send(update)
    async with asyncio.timeout(PATIENCE):
        assert isinstance(await connection.closed(), ProtocolError)
    assert replica.tables == {"T": {A: ROW}}
    assert replica.last_transaction == T1


@pytest.mark.parametrize(
    "reply",
    [None, [], [False, T1], [False, T1, {"T": {A: {"modify": {}}}}], [True, T1, {"T": {A: {"modify": {}}}}]],
)
async def test_first_contents_that_make_no_sense_fail_the_start(reply: Any) -> None:
    with pytest.raises(ProtocolError):
        await started(Watched(), {"monitor_cond_since": reply})


@pytest.mark.parametrize(
    "schema", [None, [], {}, {"tables": {"T": 1}}, {"tables": {"T": {"columns": {"name": {}}}}}]
)
async def test_a_schema_that_makes_no_sense_fails_the_start(schema: Any) -> None:
    connection, peer = await pair()
    task = asyncio.create_task(Watched({"T": ["name"]}).start(connection))
    await peer.answer("get_schema", schema)
    with pytest.raises(ProtocolError):
        await task
    assert not connection.is_open


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"U": ["x"]}, "db has no table U"), ({"T": ["name", "x", "y"]}, "table T has no column x, y")],
)
async def test_what_the_schema_lacks_is_named(columns: dict[str, list[str]], message: str) -> None:
    connection, peer = await pair()
    task = asyncio.create_task(Watched(columns).start(connection))
    await peer.answer("get_schema", SCHEMA)
    with pytest.raises(OvsdbError, match=message):
        await task
    connection.close()


async def test_a_rejection_other_than_unknown_method_is_not_papered_over() -> None:
    connection, peer = await pair()
    task = asyncio.create_task(Watched().start(connection))
    await peer.answer("get_schema", SCHEMA)
    request = await peer.expect("monitor_cond_since")
    peer.send({"id": request["id"], "result": None, "error": {"error": "permission error", "details": "no"}})
    with pytest.raises(OvsdbError, match="permission error: no"):
        await task
    connection.close()


async def test_a_listener_that_raises_does_not_harm_the_replica() -> None:
    def fail(changes: list[RowChange]) -> None:
        raise RuntimeError("listener's fault")

    on_change: Callable[[list[RowChange]], None] = fail
    replica = Replica("db", COLUMNS, on_change)
    connection, _, _ = await started(
        replica, {"monitor_cond_since": [False, T1, {"T": {A: {"initial": {"name": "a"}}}}]}
    )
    assert replica.tables == {"T": {A: ROW}}
    assert connection.is_open
    connection.close()


async def test_a_database_that_goes_away_ends_the_connection() -> None:
    connection, peer, _ = await started(Watched(), {"monitor_cond_since": [False, T1, {}]})
    peer.send({"method": "monitor_canceled", "params": ["db"], "id": None})
    async with asyncio.timeout(PATIENCE):
        assert "no longer has the database db" in str(await connection.closed())
