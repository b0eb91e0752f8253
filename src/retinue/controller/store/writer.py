"""The queue of writes, and the one task that empties it.

One transaction is under way at a time, and everything that queues up meanwhile is the next one, so a slow
disk makes transactions larger, not the queue longer, and what is on disk is what the controller knew at one
moment. A later write of the same key takes the place of one that waits. A very long queue is several
transactions, cut where the loop turns: what is changed together is queued in one turn. From there on a later
write of a key waits behind the cut, with what it belongs to; and so it does behind a long transaction that is
tried again. Rows are found by the UUIDs kept here: a search by any other column goes through the whole table
in ovsdb-server.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog

from retinue.controller.store.rows import Key
from retinue.controller.store.schema import KEYS, NAME
from retinue.southbound.ovsdb import UUID, Connection, OvsdbError, ProtocolError
from retinue.southbound.ovsdb.values import from_wire

log = structlog.get_logger()

BATCH = 10_000
"""Rows, some 30 MB while they are written, after which what is queued is another transaction; only what one
change has, or one turn of the loop, makes it more."""
WRITE_TIMEOUT = 60.0
RETRY_AFTER = 1.0
"""Seconds until a transaction is tried again that the server could not do for lack of something."""
_PASSING = ("I/O error", "resources exhausted", "timed out", "aborted", "internal error")
"""Errors that are not about what was to be written (RFC 7047, section 3.1)."""

Row = dict[str, Any]
Operation = dict[str, Any]
Failed = Callable[[Key, Exception], None]


class DeposedError(Exception):
    """Another controller writes by now: nothing of ours is to get into the database any more."""


class Writer:
    """`failed` is called for each write that the server rejects for what is in it; that write is dropped."""

    def __init__(
        self, failed: Failed, durable: bool = True, row_of: Callable[[Any], Row] = lambda row: row
    ) -> None:
        """`row_of` makes the row of what was queued, which waits as it is: rows of thousands of VMs take more
        room than these themselves. It raises ValueError, or another error, for what cannot be one."""
        self.trouble = ""
        """Why nothing is being written at present; "" when all is well."""
        self.transactions = 0
        """Committed so far."""
        self.guard: tuple[Operation, ...] = ()
        """What begins every transaction, and fails it once another controller writes."""
        self._durable = durable
        self._report = failed
        self._row_of = row_of
        self._waiting: deque[dict[Key, Any]] = deque([{}])
        """Transactions, to the last of which is added what is queued. None: the row is to go."""
        self._under_way: dict[Key, Any] = {}
        self._uuids: dict[Key, UUID] = {}
        self._failures: list[Exception] = []
        self._flushes: list[asyncio.Future[list[Exception]]] = []
        self._wake = asyncio.Event()

    def write(self, key: Key, value: Any) -> None:
        """Queue what is to be inserted or to replace the row of that key; None: that is to be deleted."""
        self._waiting[-1][key] = value
        self._wake.set()
        if len(self._waiting[-1]) == BATCH:
            asyncio.get_running_loop().call_soon(self._cut)

    def _cut(self) -> None:
        if len(self._waiting[-1]) >= BATCH:
            self._waiting.append({})

    def fail(self, key: Key, error: Exception) -> None:
        """Count a write as rejected; the next flush raises for it."""
        self._failures.append(error)
        self._report(key, error)

    @property
    def backlog(self) -> int:
        """Writes not yet committed."""
        return len(set(self._under_way).union(*self._waiting))

    async def flush(self) -> list[Exception]:
        """Wait until everything queued so far is committed or rejected; return what was rejected since
        last."""
        done: asyncio.Future[list[Exception]] = asyncio.get_running_loop().create_future()
        self._flushes.append(done)
        self._wake.set()
        return await done

    def abandon(self, error: Exception) -> None:
        """Have every flush that waits raise `error`: nobody will write what it waits for."""
        flushes, self._flushes = self._flushes, []
        for flush in flushes:
            if not flush.done():
                flush.set_exception(error)

    # ---- the writing task ----

    async def run(self, connection: Connection) -> None:
        """Write what is queued, until the connection ends: then raise what ended it.

        What was under way is queued again, and written by the next run: whether the server had done it is
        unknown, and writing it twice makes no difference.
        """
        await self._learn_uuids(connection)
        watch = asyncio.create_task(connection.closed(), name="watch the database")
        watch.add_done_callback(lambda _: self._wake.set())
        try:
            while not watch.done():
                self._wake.clear()
                while any(self._waiting) or self._flushes:
                    await self._write_batch(connection)
                await self._wake.wait()
            raise watch.result()
        finally:
            watch.cancel()

    async def _learn_uuids(self, connection: Connection) -> None:
        reads = [
            {"op": "select", "table": table, "where": [], "columns": ["_uuid", key]}
            for table, key in KEYS.items()
        ]
        results = await connection.transact(NAME, reads, WRITE_TIMEOUT)
        self._uuids = {
            (table, row[key]): _uuid(row["_uuid"])
            for (table, key), result in zip(KEYS.items(), results, strict=True)
            for row in result["rows"]
        }

    async def _write_batch(self, connection: Connection) -> None:
        batch = self._waiting.popleft()
        flushes: list[asyncio.Future[list[Exception]]] = []
        if not self._waiting:
            self._waiting.append({})
            flushes, self._flushes = self._flushes, []
        self._under_way = dict(batch)
        try:
            await self._write(connection, batch)
        except OvsdbError as e:
            if not self.trouble:
                log.error("database.not_writing", error=str(e))
            self.trouble = str(e)
            await asyncio.sleep(RETRY_AFTER)
        else:
            # Also where nothing was left to write: no write waits any more for want of something.
            if self.trouble:
                log.info("database.writing_again")
                self.trouble = ""
        finally:
            if self._under_way:
                self._flushes = flushes + self._flushes
            else:
                self._flushed(flushes)
            if len(self._under_way) + len(self._waiting[0]) < BATCH:
                self._waiting[0] = {**self._under_way, **self._waiting[0]}
            elif self._under_way:
                self._waiting.appendleft(self._under_way)
            self._under_way = {}

    async def _write(self, connection: Connection, batch: dict[Key, Any]) -> None:
        """Write the batch as one transaction; if that is rejected, in halves, until what is at fault is
        alone.

        Takes out of `_under_way` what has been decided.
        """
        operations, keys = self._operations(batch)
        again: set[Key] = set()
        try:
            results = await self._transact(connection, operations) if operations else []
        except OvsdbError as e:
            if e.error in _PASSING:
                raise
            if len(batch) > 1:
                items = list(batch.items())
                await self._write(connection, dict(items[: len(items) // 2]))
                await self._write(connection, dict(items[len(items) // 2 :]))
                return
            for key in batch:
                self.fail(key, e)
        else:
            self.transactions += bool(operations)
            again = self._learn(batch, keys, results)
        for key in batch:
            if key not in again:
                self._under_way.pop(key, None)

    async def _transact(self, connection: Connection, operations: list[Operation]) -> list[dict[str, Any]]:
        """The operations' results. Raises what `Connection.transact` does, and DeposedError."""
        guard = self.guard
        try:
            results = await connection.transact(NAME, [*guard, *operations], WRITE_TIMEOUT)
        except OvsdbError as e:
            if guard and e.operation == 0:
                raise DeposedError("another controller has become the active one") from e
            raise
        return results[len(guard) :]

    def _operations(self, batch: dict[Key, Any]) -> tuple[list[dict[str, Any]], list[Key]]:
        """The transaction, and the key that each of its first operations is about. What cannot be a row is
        taken out of the batch."""
        operations: list[dict[str, Any]] = []
        keys: list[Key] = []
        for key, value in list(batch.items()):
            uuid = self._uuids.get(key)
            try:
                row = None if value is None else self._row_of(value)
            except Exception as e:  # Whatever is wrong with one, the others are written.
                del batch[key]
                self._under_way.pop(key, None)
                self.fail(key, ValueError(f"{key[0]} {key[1]!r}: {e}"))
                continue
            table = key[0]
            where = [["_uuid", "==", ["uuid", str(uuid)]]]
            if row is None and uuid is None:
                continue
            keys.append(key)
            if row is None:
                operations.append({"op": "delete", "table": table, "where": where})
            elif uuid is None:
                operations.append({"op": "insert", "table": table, "row": row})
            else:
                operations.append({"op": "update", "table": table, "where": where, "row": row})
        if self._durable and operations:
            operations.append({"op": "commit", "durable": True})
        return operations, keys

    def _learn(self, batch: dict[Key, Any], keys: list[Key], results: list[dict[str, Any]]) -> set[Key]:
        """Note the rows that came and went; return the keys whose row someone else deleted under us."""
        again = set()
        for key, result in zip(keys, results, strict=False):
            if "uuid" in result:
                self._uuids[key] = _uuid(result["uuid"])
            elif batch[key] is None:
                del self._uuids[key]
            elif result.get("count") != 1:
                del self._uuids[key]
                again.add(key)
        return again

    def _flushed(self, flushes: list[asyncio.Future[list[Exception]]]) -> None:
        waited_for = [flush for flush in flushes if not flush.done()]
        if waited_for:
            failures, self._failures = self._failures, []
            for flush in waited_for:
                flush.set_result(failures)


def _uuid(wire: Any) -> UUID:
    value = from_wire(wire)
    if not isinstance(value, UUID):
        raise ProtocolError(f"expected a UUID, not {wire!r:.60}")
    return value
