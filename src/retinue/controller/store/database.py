"""The store as the controller uses it: put, remove, flush, load; it looks after its server by itself."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from retinue.controller.errors import StoreError
from retinue.controller.state import Storable, Stored
from retinue.controller.store.members import Members
from retinue.controller.store.ovsdb_process import DatabaseServer
from retinue.controller.store.reading import rows_of
from retinue.controller.store.rows import Key, key_of, read_row, sort_in, to_row
from retinue.controller.store.schema import KEYS, TYPES
from retinue.controller.store.writer import DeposedError, Operation, Writer
from retinue.southbound.ovsdb import Connection, OvsdbError, ProtocolError

log = structlog.get_logger()

LONGEST_PAUSE = 5.0
"""Seconds between two tries to bring back a server that ended."""
SHORT_LIFE = 1.0
"""A server that ends sooner than this is not brought back at once, but after as long."""
FAILURES_SHOWN = 5


class Database:
    """One database: a file and the server of it, or servers that several controllers share.

    `durable` has each transaction on the disk before it counts as committed. `failed` is called with the
    table and key of each write that was rejected, and with the reason. Once the guard
    fails nothing is written any more, and `deposed` is called with the reason.
    """

    def __init__(
        self,
        *,
        durable: bool = True,
        failed: Callable[[str, str, Exception], None] | None = None,
        deposed: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.restarts = 0
        """Times the server had to be brought back."""
        self._failed = failed
        self._deposed = deposed
        self._writer = Writer(self._rejected, durable, to_row)
        self._server: DatabaseServer | Members | None = None
        self._running: asyncio.Task[None] | None = None
        self._connection: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the file's server, None while there is none."""
        return self._server.pid if self._server else None

    @property
    def is_open(self) -> bool:
        return self._running is not None

    @property
    def backlog(self) -> int:
        """Writes not yet committed."""
        return self._writer.backlog

    def guard(self, operation: Operation) -> None:
        """Have this begin every write (see Writer)."""
        self._writer.guard = (operation,)

    async def start(self, where: Path | Members) -> None:
        """Open the file, or make it. Raises StoreError: in use, damaged, not ours, or not to be made."""
        if self._running is not None:
            raise StoreError("the database is open already")
        server = DatabaseServer(where) if isinstance(where, Path) else where
        self._connection = await server.start()
        self._server = server
        self._running = asyncio.create_task(self._keep(server, self._connection), name="database")

    async def stop(self) -> None:
        """Close the file and end the server. What was not flushed may be lost."""
        if self.backlog:
            log.warning("database.closed_with_uncommitted_writes", writes=self.backlog)
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self._running = None
        self._writer.abandon(StoreError("the database was closed before everything was committed"))
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._server is not None:
            await self._server.stop()
            self._server = None

    def leave(self, reason: str) -> None:
        """Ask another server: this one is not to be used any more. What is not committed is written again."""
        if self._connection is not None:
            self._connection.close(reason)

    @property
    def trouble(self) -> str:
        """What the server said last of writes that wait; "" when none had to be tried again."""
        return self._writer.trouble

    def put(self, value: Storable) -> None:
        """Keep the value, in place of the one of the same key. Returns at once; see `flush`."""
        self._writer.write(key_of(value), value)

    def remove(self, value: Storable) -> None:
        """Forget the value of this one's key; only the key counts. Removing what is not kept is no error."""
        self._writer.write(key_of(value), None)

    async def flush(self, timeout: float = 30.0) -> None:
        """Wait until everything put and removed so far is committed.

        Raises StoreError if any write since the last flush was rejected, or if it takes longer than `timeout`
        seconds; the writes stay queued then.
        """
        if self._running is None:
            raise StoreError("the database is not open")
        if self._running.done():
            raise StoreError(self._writer.trouble)
        try:
            rejected = await asyncio.wait_for(self._writer.flush(), timeout)
        except TimeoutError:
            why = self._writer.trouble or "the database server does not answer"
            raise StoreError(f"{self.backlog} writes are not committed after {timeout:g} s: {why}") from None
        if rejected:
            first = "; ".join(str(e) for e in rejected[:FAILURES_SHOWN])
            more = f"; and {len(rejected) - FAILURES_SHOWN} more" if len(rejected) > FAILURES_SHOWN else ""
            raise StoreError(f"{len(rejected)} writes were rejected: {first}{more}")

    async def load(self) -> Stored:
        """Everything kept, with what was put and removed so far. Raises StoreError."""
        await self.flush()
        if self._connection is None:
            raise StoreError("the database server is gone; it is being brought back, try again")
        try:
            results = [await rows_of(self._connection, table, columns) for table, columns in TYPES.items()]
        except (OvsdbError, ProtocolError, OSError) as e:
            raise StoreError(f"the database cannot be read: {e}") from e
        stored = Stored()
        for table, rows in zip(TYPES, results, strict=True):
            for row in sorted(rows, key=lambda row: str(row.get(KEYS[table]))):
                try:
                    sort_in(stored, read_row(table, row))
                except ValueError as e:
                    stored.faults.append(str(e))
                    log.error("database.unreadable_row", table=table, error=str(e))
        return stored

    # ---- the server, kept running ----

    async def _keep(self, server: DatabaseServer | Members, connection: Connection) -> None:
        """Write while the server lives; bring it back when it does not."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self._writer.run(connection)
            except DeposedError as e:
                self._writer.trouble = str(e)
                self._writer.abandon(StoreError(str(e)))
                self._deposed(str(e))
                return
            except Exception as e:
                expected = isinstance(e, OvsdbError | ProtocolError | OSError)
                log.warning("database.server_lost", reason=str(e), exc_info=not expected)
                self._writer.trouble = str(e)
            finally:
                self._connection = None
                connection.close()
            if loop.time() - began < SHORT_LIFE:
                await asyncio.sleep(SHORT_LIFE)
            connection = await self._bring_back(server)
            self._connection = connection
            self.restarts += 1
            log.info("database.server_back", pid=server.pid, writes_waiting=self.backlog)
            self._writer.trouble = ""

    async def _bring_back(self, server: DatabaseServer | Members) -> Connection:
        pause = 0.1
        while True:
            try:
                return await server.start()
            except (StoreError, OSError) as e:
                self._writer.trouble = str(e)
                log.error("database.server_not_started", error=str(e), next_try_in=pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _rejected(self, key: Key, error: Exception) -> None:
        log.error("database.write_rejected", table=key[0], key=key[1], error=str(error))
        if self._failed is not None:
            self._failed(*key, error)
