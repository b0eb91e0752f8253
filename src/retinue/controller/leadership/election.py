"""Who is the active controller: a lock and one row in the database that the controllers share.

The lock (RFC 7047, section 4.1.8) says at once that its owner has gone; it is the server's own, and forgotten
with the connection. What counts is the row, in the table Active: its epoch rises with each taking over, in a
transaction that fails if somebody else was faster. So does every write of the active one's, which begins with
`guard`; a controller that has been overtaken writes nothing, whatever it believes.

    standby   looks at the row every fifth of a mandate, and asks for the lock
    lock had  writes the next epoch: active
    active    counts the row's beat up every fifth of a mandate; that renews the mandate
              the row has another epoch, or the lock was stolen: standby
    standby   that has seen no beat for one and a half mandates steals the lock: its owner is stopped, or away

A standby asks for the lock only once it has heard the active one since it connected, or heard nothing for so
long: when the server has been restarted, or another member leads, the active one is to have it first.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import structlog

from retinue.controller.errors import StoreError
from retinue.controller.leadership.mandate import Mandate
from retinue.controller.store.members import Members, standing
from retinue.controller.store.schema import ACTIVE, NAME
from retinue.controller.store.writer import Operation
from retinue.southbound.ovsdb import Connection, ConnectionLostError, OvsdbError, ProtocolError

log = structlog.get_logger()

LOCK = "retinue_active"
ROW = "active"
"""There is one row, of this name."""
PARTS = 5
"""Of a mandate: how often the active one beats, and a standby looks."""
PATIENCE = 1.5
"""Mandates without a beat after which the active one is taken for gone."""
NEXT_TRY = 0.2
"""Seconds until a database that could not be reached is tried again."""
_IS_IT = [["name", "==", ROW]]


@dataclass(frozen=True, slots=True)
class Active:
    """The row: who is the active controller."""

    epoch: int
    holder: str
    url: str
    since: float
    """Seconds since the epoch of clocks, by the holder's."""
    beat: int


def guard(epoch: int) -> Operation:
    """Fails a transaction, without waiting, unless this is the epoch that stands there."""
    row = {"epoch": epoch}
    return {
        "op": "wait",
        "timeout": 0,
        "table": ACTIVE,
        "where": _IS_IT,
        "columns": ["epoch"],
        "until": "==",
        "rows": [row],
    }


class Election:
    """One controller's part in it. `run` does the work; it begins again whenever the database was away."""

    def __init__(self, members: Members, name: str, url: str, mandate: Mandate) -> None:
        self.name = name
        self.mandate = mandate
        self.active: Active | None = None
        """The row as it was last seen."""
        self.is_active = False
        self.known = asyncio.Event()
        """Set once the row has been looked at: from then on there is an epoch to show to switches."""
        self.moved: Callable[[str], None] = lambda reason: None
        """Called when another server of the database is asked from now on."""
        self._url = url
        self._members = members
        self._heard_at = float("-inf")
        """When the beat was last seen to have changed, by the mandate's clock."""
        self._wake = asyncio.Event()
        self._at = ""
        """The server of the database that is asked, or was last."""
        self._deposed = ""
        """Why this controller must give up being the active one."""
        self._connected = False
        self._changed: list[asyncio.Future[None]] = []

    # ---- for those who wait ----

    async def until(self, active: bool) -> None:
        """Return when this controller is, or is not, the active one."""
        while self.is_active is not active:
            news = asyncio.get_running_loop().create_future()
            self._changed.append(news)
            await news

    def look(self) -> None:
        """Something speaks for another controller being active: find out now."""
        self._wake.set()

    def depose(self, reason: str) -> None:
        """This controller has been overtaken, as somebody else has found out."""
        if self.is_active:
            self._deposed = reason
            self.mandate.end()
            self._wake.set()

    def report(self) -> dict[str, Any]:
        """For the status: who this one is, who is active, and how near this one follows."""
        active = self.active
        return {
            "name": self.name,
            "role": "active" if self.is_active else "standby",
            "active": None
            if active is None
            else {"name": active.holder, "url": active.url, "epoch": active.epoch, "since": active.since},
            "mandate_seconds": round(self.mandate.left, 3) if self.is_active else None,
            "heard_seconds": self._silence() if active is not None else None,
            "database": self._at if self._connected else "",
            "database_cluster": self._members.clustered,
        }

    # ---- the work ----

    async def run(self) -> None:
        said = ""
        while True:
            try:
                connection = await self._members.start()
                said = ""
            except StoreError as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("leadership.no_database", reason=said)
                await asyncio.sleep(NEXT_TRY)
                continue
            try:
                await self._follow(connection)
            except (OvsdbError, ProtocolError, OSError) as error:
                log.warning("leadership.database_lost", reason=str(error))
                self._members.leave()
                await asyncio.sleep(NEXT_TRY)
            finally:
                self._connected = False
                connection.close()  # And with it goes the lock.

    async def _follow(self, connection: Connection) -> None:
        """By this connection, until it ends, or this controller is no longer the active one."""
        turn = _Turn(connection, self._wake, self._limit)
        await self._look(connection)
        self._connected = True
        self.known.set()
        if self._members.at != self._at:
            self._at = self._members.at
            self.moved(f"the database is asked at {self._at}")
        connected_at = self.mandate.clock()
        while connection.is_open:
            self._wake.clear()
            if turn.stolen and self.is_active:
                self._deposed = "a standby has stolen the lock: it had not heard of us"
            if self._deposed:
                self._lose(self._deposed)
                return
            if self.is_active:
                if not turn.asked:
                    await turn.ask()
                await self._beat(connection)
            else:
                await self._look(connection)
                await self._try(turn, self._heard_at > connected_at, self.mandate.clock() - connected_at)
            if not (await standing(connection, self._limit)).usable:
                raise ConnectionLostError("this member no longer leads the cluster, or is cut off from it")
            try:
                async with asyncio.timeout(self.mandate.seconds / PARTS):
                    await self._wake.wait()
            except TimeoutError:
                pass
        raise await connection.closed()

    @property
    def _limit(self) -> float:
        """Seconds for one answer of the database."""
        return self.mandate.seconds / 3

    def _silence(self) -> float:
        return round(max(0.0, self.mandate.clock() - self._heard_at), 3)

    async def _look(self, connection: Connection) -> None:
        """Read the row; whoever believes to be active and finds another epoch is so no longer."""
        columns = ["epoch", "holder", "url", "since", "beat"]
        read = {"op": "select", "table": ACTIVE, "where": _IS_IT, "columns": columns}
        rows = (await connection.transact(NAME, [read], self._limit))[0].get("rows", [])
        found = None
        if rows:
            try:
                found = Active(**{column: rows[0][column] for column in columns})
            except KeyError as error:
                raise ProtocolError(f"the table {ACTIVE} has no {error}") from error
        if found is not None and (self.active is None or found != self.active):
            if self.active is not None:  # What is read first may be of long ago.
                self._heard_at = self.mandate.clock()
            self.mandate.saw(found.epoch)
        if self.is_active and self.active is not None and (found is None or found.epoch != self.active.epoch):
            self._deposed = f"{'nobody' if found is None else found.holder} has epoch {self.mandate.epoch}"
            self.mandate.end()
        self.active = found

    async def _try(self, turn: "_Turn", heard: bool, connected_for: float) -> None:
        """A standby's: ask for the lock, or steal it, and take over once it is had."""
        active = self.active
        patience = PATIENCE * self.mandate.seconds
        silent = connected_for > patience and self._silence() > patience
        if not turn.asked and (active is None or active.holder == self.name or heard or silent):
            await turn.ask()
        elif turn.asked and not turn.owned and silent:
            log.warning("leadership.silent", active=active.holder if active else "", seconds=self._silence())
            await turn.steal()
        if turn.owned:
            await self._take(turn.connection)

    async def _take(self, connection: Connection) -> None:
        seen, asked_at = self.active, self.mandate.clock()
        epoch = max(self.mandate.epoch, 0 if seen is None else seen.epoch) + 1
        taken = Active(epoch, self.name, self._url, round(time.time(), 3), 0)
        row = asdict(taken)
        change: list[Operation] = (
            [{"op": "insert", "table": ACTIVE, "row": {"name": ROW, **row}}]
            if seen is None
            else [guard(seen.epoch), {"op": "update", "table": ACTIVE, "where": _IS_IT, "row": row}]
        )
        try:
            await connection.transact(NAME, [*change, {"op": "commit", "durable": True}], self._limit)
        except OvsdbError as error:
            log.info("leadership.not_taken", epoch=epoch, reason=str(error))
            return  # Somebody was faster; the next look shows who.
        self.active = taken
        self._heard_at = asked_at
        self.mandate.renew(epoch, asked_at)
        self.is_active = True
        log.warning("leadership.taken", epoch=epoch, after=seen.holder if seen else "")
        self._tell()

    async def _beat(self, connection: Connection) -> None:
        assert self.active is not None
        epoch, asked_at = self.active.epoch, self.mandate.clock()
        count = {"op": "mutate", "table": ACTIVE, "where": _IS_IT, "mutations": [["beat", "+=", 1]]}
        try:
            await connection.transact(NAME, [guard(epoch), count], self._limit)
        except OvsdbError as error:
            if error.operation != 0:
                raise
            self.mandate.end()
            await self._look(connection)
            self._wake.set()
            return
        if not self._deposed:
            self.mandate.renew(epoch, asked_at)
            self._heard_at = asked_at

    def _lose(self, reason: str) -> None:
        self._deposed = ""
        self.mandate.end()
        self.is_active = False
        log.warning("leadership.lost", reason=reason)
        self._tell()

    def _tell(self) -> None:
        for news in self._changed:
            if not news.done():
                news.set_result(None)
        self._changed.clear()


class _Turn:
    """The lock, over one connection."""

    def __init__(self, connection: Connection, wake: asyncio.Event, limit: float) -> None:
        """`limit`: seconds for an answer."""
        self.connection = connection
        self.asked = False
        self.owned = False
        self.stolen = False
        self._wake = wake
        self._limit = limit
        connection.on_notification("locked", lambda _: self._told(True))
        connection.on_notification("stolen", lambda _: self._told(False))

    async def ask(self) -> None:
        """Have it, or be told when it is free."""
        self.asked = True
        self._answered(await self.connection.call("lock", [LOCK], self._limit))

    async def steal(self) -> None:
        """Take it from its owner. Who waits for it must give that up first."""
        await self.connection.call("unlock", [LOCK], self._limit)
        self._answered(await self.connection.call("steal", [LOCK], self._limit))

    def _answered(self, result: Any) -> None:
        match result:
            case {"locked": bool(owned)}:
                self.owned = self.owned or owned
            case _:
                raise ProtocolError(f"a lock was answered with {result!r:.60}")

    def _told(self, owned: bool) -> None:
        self.owned, self.stolen = owned, not owned
        self._wake.set()
