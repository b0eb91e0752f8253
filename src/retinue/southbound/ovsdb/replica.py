"""A copy of some columns of a remote database, kept equal to it by its own notifications.

The newest way the server offers is taken: monitor_cond_since, monitor_cond (both ovsdb-server(7)), or monitor
(RFC 7047, section 4.1.5). A replica outlives its connection: started again on a new one, it tells only what
differs from what it held, whether the server sent that difference or everything anew.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from retinue.southbound.ovsdb.client import CALL_TIMEOUT, Connection, OvsdbError
from retinue.southbound.ovsdb.values import UUID, ZERO_UUID, ColumnType, Row, Value
from retinue.southbound.ovsdb.wire import ProtocolError

log = structlog.get_logger()

Tables = dict[str, dict[UUID, Row]]


@dataclass(frozen=True, slots=True)
class RowChange:
    """`old` is None for a row that came, `new` for one that went."""

    table: str
    uuid: UUID
    old: Row | None
    new: Row | None


OnChange = Callable[[list[RowChange]], None]


class Replica:
    """The given columns of the given tables of `database`.

    `on_change` is called once for each message that changes something, with all of it; it must not block.
    What it raises is logged and changes nothing here. Rows are never changed once handed out.
    """

    def __init__(
        self, database: str, columns: Mapping[str, Iterable[str]], on_change: OnChange | None = None
    ) -> None:
        self.database = database
        self.columns = {table: tuple(names) for table, names in columns.items()}
        self.tables: Tables = {table: {} for table in self.columns}
        self.method = ""
        """The way of monitoring in use."""
        self.last_transaction = str(ZERO_UUID)
        """Id of the newest transaction applied, where the server tells it; else all zeros."""
        self.version = ""
        """Version of the server's schema."""
        self._on_change = on_change
        self._types: dict[str, dict[str, ColumnType]] = {}
        self._connection: Connection | None = None
        self._met: dict[UUID, UUID] = {}
        """UUIDs of the message that is being read: a row's own, and where others name it, are one object."""

    async def start(self, connection: Connection, timeout: float | None = CALL_TIMEOUT) -> None:
        """Fetch what is there, or what differs from what is held, and follow from there on.

        Returns when the first contents are applied and `on_change` has seen them. Raises OvsdbError (no such
        database, table or column), ProtocolError, ConnectionLostError, TimeoutError.
        """
        self._connection = connection
        schema = await connection.call("get_schema", [self.database], timeout, on_reply=self._read_schema)
        assert schema is None
        wanted = {table: [{"columns": names}] for table, names in self.columns.items()}
        monitor = [self.database, self.database, wanted]
        since = [*monitor, self.last_transaction]
        for method, update, params, first in (
            ("monitor_cond_since", "update3", since, self._take_since),
            ("monitor_cond", "update2", monitor, lambda result: self._replace(self._contents(result, True))),
            ("monitor", "update", monitor, lambda result: self._replace(self._contents(result, False))),
        ):
            connection.on_notification(update, self._take_update)
            connection.on_notification("monitor_canceled", self._take_canceled)
            try:
                self.method = method
                await connection.call(method, params, timeout, on_reply=first)
                return
            except OvsdbError as e:
                connection.on_notification(update, None)
                if e.error != "unknown method" or method == "monitor":
                    raise

    # ---- messages ----

    def _read_schema(self, schema: Any) -> None:
        try:
            tables = schema["tables"]
            for table, names in self.columns.items():
                if table not in tables:
                    raise OvsdbError("unknown table", f"database {self.database} has no table {table}")
                declared = tables[table]["columns"]
                missing = [name for name in names if name not in declared]
                if missing:
                    raise OvsdbError("unknown column", f"table {table} has no column {', '.join(missing)}")
                self._types[table] = {name: ColumnType.parse(declared[name]["type"]) for name in names}
            self.version = str(schema.get("version", ""))
        except (KeyError, TypeError, AttributeError) as e:
            raise ProtocolError(f"the schema of {self.database} makes no sense: {e!r}") from e

    def _take_since(self, result: Any) -> None:
        match result:
            case [bool(found), str(transaction), dict(updates)]:
                pass
            case _:
                raise ProtocolError(f"monitor_cond_since was answered with {result!r:.60}")
        if found:
            self._apply(self._changes2(updates))
        else:
            self._replace(self._contents(updates, True))
        self.last_transaction = transaction

    def _take_update(self, params: list[Any]) -> None:
        match self.method, params:
            case "monitor_cond_since", [self.database, str(transaction), dict(updates)]:
                self._apply(self._changes2(updates))
                self.last_transaction = transaction
            case "monitor_cond", [self.database, dict(updates)]:
                self._apply(self._changes2(updates))
            case "monitor", [self.database, dict(updates)]:
                self._apply(self._changes1(updates))
            case _:
                raise ProtocolError(f"an update that does not fit {self.method}: {params!r:.100}")

    def _take_canceled(self, params: list[Any]) -> None:
        if params == [self.database] and self._connection is not None:
            self._connection.close(f"the server no longer has the database {self.database}")

    # ---- their contents ----

    def _contents(self, updates: Any, is_second_form: bool) -> Tables:
        """Everything, from the reply that starts a monitor without history."""
        if not isinstance(updates, dict):
            raise ProtocolError(f"a monitor's contents are an object, not {updates!r:.60}")
        tables: Tables = {table: {} for table in self.columns}
        for table, uuid, update in self._rows(updates):
            row = update.get("initial" if is_second_form else "new")
            if not isinstance(row, dict):
                raise ProtocolError(f"{table} {uuid}: first contents are {update!r:.60}")
            tables[table][uuid] = self._whole_row(table, row)
        return tables

    def _changes1(self, updates: dict[str, Any]) -> list[RowChange]:
        """Of an update (RFC 7047, section 4.1.6): `new` has every column."""
        changes = []
        for table, uuid, update in self._rows(updates):
            old, row = self.tables[table].get(uuid), update.get("new")
            if row is not None and not isinstance(row, dict):
                raise ProtocolError(f"{table} {uuid}: a row is {row!r:.60}")
            changes.append(RowChange(table, uuid, old, None if row is None else self._whole_row(table, row)))
        return changes

    def _changes2(self, updates: dict[str, Any]) -> list[RowChange]:
        """Of an update2 or update3 (ovsdb-server(7), section 4.1.14): differences."""
        changes = []
        for table, uuid, update in self._rows(updates):
            old = self.tables[table].get(uuid)
            new: Row | None
            match update:
                case {"delete": _}:
                    new = None
                case {"insert": dict(row)} | {"initial": dict(row)}:
                    new = self._whole_row(table, row)
                case {"modify": dict(row)} if old is not None:
                    new = {
                        **old,
                        **{c: self._one(t.change(old[c], w)) for c, w, t in self._typed(table, row)},
                    }
                case _:
                    raise ProtocolError(f"{table} {uuid}: an update that cannot be: {update!r:.100}")
            changes.append(RowChange(table, uuid, old, new))
        return changes

    def _rows(self, updates: dict[str, Any]) -> Iterable[tuple[str, UUID, dict[str, Any]]]:
        self._met = {}
        for table, rows in updates.items():
            if table not in self.tables or not isinstance(rows, dict):
                raise ProtocolError(f"an update of {table!r:.60}, which was not asked for")
            for uuid, update in rows.items():
                if not isinstance(update, dict):
                    raise ProtocolError(f"{table} {uuid}: an update that is no object: {update!r:.60}")
                yield table, self._met.setdefault(UUID(uuid), UUID(uuid)), update

    def _whole_row(self, table: str, row: dict[str, Any]) -> Row:
        whole = {name: kind.default for name, kind in self._types[table].items()}
        whole.update({column: self._one(kind.read(wire)) for column, wire, kind in self._typed(table, row)})
        return whole

    def _one(self, value: Value) -> Value:
        """The value, of UUIDs that were met."""
        if isinstance(value, tuple):
            return tuple([self._met.setdefault(one, one) if type(one) is UUID else one for one in value])
        return self._met.setdefault(value, value) if type(value) is UUID else value

    def _typed(self, table: str, row: dict[str, Any]) -> Iterable[tuple[str, Any, ColumnType]]:
        types = self._types[table]
        for column, wire in row.items():
            kind = types.get(column)
            if kind is None:
                raise ProtocolError(f"column {column!r:.60} of {table}, which was not asked for")
            yield column, wire, kind

    # ---- what is held ----

    def _replace(self, contents: Tables) -> None:
        changes = []
        for table, rows in contents.items():
            held = self.tables[table]
            changes += [RowChange(table, uuid, row, None) for uuid, row in held.items() if uuid not in rows]
            changes += [RowChange(table, uuid, held.get(uuid), row) for uuid, row in rows.items()]
        self._apply(changes)

    def _apply(self, changes: list[RowChange]) -> None:
        real = [change for change in changes if change.old != change.new]
        for change in real:
            if change.new is None:
                del self.tables[change.table][change.uuid]
            else:
                self.tables[change.table][change.uuid] = change.new
        if real and self._on_change is not None:
            try:
                self._on_change(real)
            except Exception:
                log.exception("ovsdb.change_handler_failed", database=self.database)
