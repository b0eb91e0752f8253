"""The queue of writes against a server the test plays: order, coalescing, rejections, a lost connection."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from retinue.controller.store import writer as writer_module
from retinue.controller.store.rows import Key
from retinue.controller.store.schema import KEYS
from retinue.controller.store.writer import DeposedError, Writer
from retinue.southbound.ovsdb import Connection, ConnectionLostError
from support.fakes.ovsdb_peer import PATIENCE, OvsdbPeer, pair


def uid(n: int) -> list[str]:
    return ["uuid", f"{n:08x}-0000-0000-0000-000000000000"]


def vm(name: str) -> Key:
    return "VM", name


class Stage:
    """A writer at work on a connection whose other end the test plays."""

    def __init__(self) -> None:
        self.rejected: list[tuple[Key, str]] = []
        self.writer = Writer(lambda key, error: self.rejected.append((key, str(error))), durable=False)
        self.connection: Connection | None = None
        self.peer: OvsdbPeer | None = None
        self.run: asyncio.Task[None] | None = None

    async def connect(self, rows: dict[Key, list[str]] | None = None) -> None:
        """A new connection, to a server that has these rows."""
        self.connection, self.peer = await pair()
        self.run = asyncio.create_task(self.writer.run(self.connection))
        found = [
            {"rows": [{"_uuid": u, column: name} for (of, name), u in (rows or {}).items() if of == table]}
            for table, column in KEYS.items()
        ]
        await self.peer.answer("transact", found)

    async def transaction(self, *results: dict[str, Any]) -> list[dict[str, Any]]:
        """Take the next transaction, answer it, return its operations."""
        request = await self.take()
        self.answer(request, list(results))
        operations: list[dict[str, Any]] = request["params"][1:]
        return operations

    async def take(self) -> dict[str, Any]:
        assert self.peer is not None
        return await self.peer.expect("transact")

    def answer(self, request: dict[str, Any], result: list[dict[str, Any]]) -> None:
        assert self.peer is not None
        self.peer.send({"id": request["id"], "result": result, "error": None})

    async def flush(self) -> list[Exception]:
        async with asyncio.timeout(PATIENCE):
            return await self.writer.flush()

    async def lose(self) -> None:
        assert self.peer is not None
        assert self.run is not None
        self.peer.writer.close()
        with pytest.raises(ConnectionLostError):
            await self.run

    def close(self) -> None:
        if self.run is not None:
            self.run.cancel()
        if self.connection is not None:
            self.connection.close()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


def insert(name: str, n: int) -> dict[str, Any]:
    return {"op": "insert", "table": "VM", "row": {"id": name, "n": n}}


def update(uuid: list[str], name: str, n: int) -> dict[str, Any]:
    return {"op": "update", "table": "VM", "where": [["_uuid", "==", uuid]], "row": {"id": name, "n": n}}


def put(stage: Stage, name: str, n: int) -> None:
    stage.writer.write(vm(name), {"id": name, "n": n})


async def test_a_row_is_inserted_then_updated_then_deleted_by_its_uuid(stage: Stage) -> None:
    await stage.connect({vm("old"): uid(7)})
    put(stage, "new", 1)
    put(stage, "old", 2)
    assert await stage.transaction({"uuid": uid(1)}, {"count": 1}) == [
        insert("new", 1),
        update(uid(7), "old", 2),
    ]
    assert await stage.flush() == []
    put(stage, "new", 3)
    assert await stage.transaction({"count": 1}) == [update(uid(1), "new", 3)]
    await stage.flush()
    stage.writer.write(vm("new"), None)
    stage.writer.write(vm("never there"), None)
    assert await stage.transaction({"count": 1}) == [
        {"op": "delete", "table": "VM", "where": [["_uuid", "==", uid(1)]]}
    ]
    await stage.flush()
    put(stage, "new", 4)
    assert await stage.transaction({"uuid": uid(2)}) == [insert("new", 4)]
    await stage.flush()
    assert stage.writer.transactions == 4
    assert stage.writer.backlog == 0


async def test_what_queues_up_during_a_transaction_is_the_next_one_and_the_last_word_counts(
    stage: Stage,
) -> None:
    await stage.connect()
    put(stage, "a", 1)
    request = await stage.take()
    for n in (2, 3, 4):
        put(stage, "a", n)
        put(stage, "b", n)
    assert stage.writer.backlog == 2
    stage.answer(request, [{"uuid": uid(1)}])
    assert await stage.transaction({"count": 1}, {"uuid": uid(2)}) == [update(uid(1), "a", 4), insert("b", 4)]
    assert await stage.flush() == []


async def test_a_flush_waits_for_what_was_queued_before_it_not_after(stage: Stage) -> None:
    await stage.connect()
    put(stage, "a", 1)
    request = await stage.take()
    put(stage, "b", 1)
    flush = asyncio.create_task(stage.flush())
    await asyncio.sleep(0)
    stage.answer(request, [{"uuid": uid(1)}])
    second = await stage.take()
    assert not flush.done()
    put(stage, "c", 1)
    stage.answer(second, [{"uuid": uid(2)}])
    await stage.take()
    assert await flush == []
    assert stage.writer.backlog == 1


async def test_a_flush_of_nothing_returns(stage: Stage) -> None:
    await stage.connect()
    assert await stage.flush() == []
    stage.writer.write(vm("not there"), None)
    assert await stage.flush() == []
    assert stage.writer.transactions == 0


REJECTION = {"error": "constraint violation", "details": "bad"}


async def test_a_rejected_value_is_found_reported_and_dropped_the_others_are_written(stage: Stage) -> None:
    await stage.connect()
    for n, name in enumerate("abcd"):
        put(stage, name, n)
    assert len(await stage.transaction({}, {}, REJECTION)) == 4
    assert await stage.transaction({"uuid": uid(1)}, {"uuid": uid(2)}) == [insert("a", 0), insert("b", 1)]
    assert await stage.transaction(REJECTION) == [insert("c", 2), insert("d", 3)]
    assert await stage.transaction(REJECTION) == [insert("c", 2)]
    assert await stage.transaction({"uuid": uid(4)}) == [insert("d", 3)]
    assert [str(e) for e in await stage.flush()] == ["constraint violation: bad (operation 0)"]
    assert stage.rejected == [(vm("c"), "constraint violation: bad (operation 0)")]
    assert await stage.flush() == []
    put(stage, "d", 9)
    assert await stage.transaction({"count": 1}) == [update(uid(4), "d", 9)]


async def test_a_full_disk_drops_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "RETRY_AFTER", 0.0)
    await stage.connect()
    put(stage, "a", 1)
    put(stage, "b", 1)
    flush = asyncio.create_task(stage.flush())
    await stage.transaction({}, {}, {"error": "I/O error", "details": "no space left"})
    request = await stage.take()
    assert stage.writer.trouble == "I/O error: no space left"
    assert not flush.done()
    put(stage, "a", 2)
    stage.answer(request, [{"uuid": uid(1)}, {"uuid": uid(2)}])
    assert await stage.transaction({"count": 1}) == [update(uid(1), "a", 2)]
    assert await flush == []
    assert stage.writer.trouble == ""
    assert stage.rejected == []


async def test_what_a_full_disk_did_not_take_may_need_no_writing_any_more(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a VM that is removed again meanwhile: operators are told of a trouble that is over as of one."""
    monkeypatch.setattr(writer_module, "RETRY_AFTER", 0.0)
    await stage.connect()
    put(stage, "a", 1)
    request = await stage.take()
    stage.writer.write(vm("a"), None)
    stage.answer(request, [{}, {"error": "I/O error", "details": "no space left"}])
    assert await stage.flush() == []
    assert (stage.writer.backlog, stage.writer.trouble) == (0, "")


async def test_what_was_under_way_when_the_connection_ended_is_written_again(stage: Stage) -> None:
    await stage.connect()
    put(stage, "a", 1)
    put(stage, "b", 1)
    flush = asyncio.create_task(stage.flush())
    await stage.take()
    put(stage, "b", 2)
    put(stage, "c", 2)
    await stage.lose()
    assert stage.writer.backlog == 3
    # The server had committed it: a and b are there.
    await stage.connect({vm("a"): uid(1), vm("b"): uid(2)})
    assert await stage.transaction({"count": 1}, {"count": 1}, {"uuid": uid(3)}) == [
        update(uid(1), "a", 1),
        update(uid(2), "b", 2),
        insert("c", 2),
    ]
    assert await flush == []


async def test_an_idle_writer_notices_that_the_connection_ended(stage: Stage) -> None:
    await stage.connect()
    await stage.flush()
    async with asyncio.timeout(PATIENCE):
        await stage.lose()


async def test_a_row_deleted_by_someone_else_is_inserted_anew(stage: Stage) -> None:
    await stage.connect({vm("a"): uid(1), vm("b"): uid(2)})
    put(stage, "a", 1)
    put(stage, "b", 1)
    flush = asyncio.create_task(stage.flush())
    await stage.transaction({"count": 0}, {"count": 1})
    assert await stage.transaction({"uuid": uid(3)}) == [insert("a", 1)]
    assert await flush == []


async def test_a_very_long_queue_is_written_in_parts(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each part all that was changed together: none is on the disk without the others."""
    monkeypatch.setattr(writer_module, "BATCH", 2)
    await stage.connect()
    put(stage, "first", 0)
    first = await stage.take()
    for name in "abc":
        put(stage, name, 1)
    await asyncio.sleep(0)
    put(stage, "d", 2)
    put(stage, "a", 2)
    await asyncio.sleep(0)
    put(stage, "e", 3)
    put(stage, "d", 3)
    assert stage.writer.backlog == 6
    flush = asyncio.create_task(stage.flush())
    stage.answer(first, [{"uuid": uid(1)}])
    assert await stage.transaction(*({"uuid": uid(n)} for n in (2, 3, 4))) == [
        insert(name, 1) for name in "abc"
    ]
    assert await stage.transaction({"uuid": uid(5)}, {"count": 1}) == [
        insert("d", 2), update(uid(2), "a", 2),
    ]  # fmt: skip
    assert not flush.done()
    assert await stage.transaction({"uuid": uid(6)}, {"count": 1}) == [
        insert("e", 3), update(uid(5), "d", 3),
    ]  # fmt: skip
    assert await flush == []


async def test_every_transaction_begins_with_the_guard_and_its_failure_ends_the_writing(stage: Stage) -> None:
    """Another controller has taken over: nothing is tried again, nor in halves."""
    guard = {"op": "wait", "table": "Active"}
    stage.writer.guard = (guard,)
    await stage.connect()
    put(stage, "a", 1)
    assert await stage.transaction({}, {"uuid": uid(1)}) == [guard, insert("a", 1)]
    assert await stage.flush() == []
    put(stage, "a", 2)
    put(stage, "b", 1)
    request = await stage.take()
    assert request["params"][1] == guard
    stage.answer(request, [{"error": "timed out"}, {}, {}])
    assert stage.run is not None
    with pytest.raises(DeposedError):
        await stage.run
    assert stage.writer.backlog == 2


@pytest.mark.parametrize("error", [ValueError("not that"), TypeError("not that")])
async def test_rows_are_made_when_they_are_written_and_what_cannot_be_one_harms_no_other(
    stage: Stage, error: Exception
) -> None:
    """What waits takes no room of its own: a value that is replaced while it waits is never a row."""
    made: list[int] = []

    def row_of(number: int) -> dict[str, int]:
        if number == 13:
            raise error
        made.append(number)
        return {"n": number}

    stage.writer._row_of = row_of
    await stage.connect()
    for number in (1, 2, 3):
        stage.writer.write(vm("a"), number)
    stage.writer.write(vm("bad"), 13)
    stage.writer.write(vm("b"), 4)
    assert made == []
    flush = asyncio.create_task(stage.flush())
    sent = await stage.transaction({"uuid": uid(1)}, {"uuid": uid(2)})
    assert [operation["row"] for operation in sent] == [{"n": 3}, {"n": 4}]
    assert [str(one) for one in await flush] == ["VM 'bad': not that"]
    assert made == [3, 4] and stage.writer.backlog == 0


async def test_a_queue_does_not_become_one_transaction_while_the_disk_is_full(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be done is tried again as it was, and what comes meanwhile is cut as ever."""
    monkeypatch.setattr(writer_module, "BATCH", 2)
    monkeypatch.setattr(writer_module, "RETRY_AFTER", 0.0)
    await stage.connect()
    tried = []

    async def take() -> dict[str, Any]:
        request = await stage.take()
        tried.append("".join(one["row"]["id"] for one in request["params"][1:]))
        return request

    def done(request: dict[str, Any]) -> None:
        stage.answer(request, [{"uuid": uid(ord(one["row"]["id"]))} for one in request["params"][1:]])

    put(stage, "a", 0)
    request = await take()
    for name in "bcdef":
        put(stage, name, 1)
        await asyncio.sleep(0)
    for name in "ghi":
        stage.answer(request, [{"error": "I/O error", "details": "no space left"}])
        request = await take()
        put(stage, name, 1)
        await asyncio.sleep(0)
    assert tried == ["a", "a", "a", "a"]
    flush = asyncio.create_task(stage.flush())
    done(request)
    for _ in range(4):
        done(await take())
    assert await flush == []
    assert tried[4:] == ["bc", "de", "fg", "hi"]
