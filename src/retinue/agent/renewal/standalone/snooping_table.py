"""The snooping table of a switch of others, through an adapter: a program that speaks the switch's own
language and answers at a Unix socket of this server, a JSON object a line.

    {"do": "rows"}                                       {"rows": [{"mac", "ip", "port", "seconds_left"}]}
    {"do": "delete", "mac": MAC, "ip": IP, "port": P}    {"ok": true}; no error for a row that is not there
    {"do": "store", "mac": MAC, "ip": IP, "port": P,     {"ok": true}; in place of a row that the address had
     "seconds_left": S or null}
    what cannot be done                                  {"error": SENTENCE}

What an adapter says that it has done is believed when the table, read back, agrees.
"""

import asyncio
from collections.abc import Iterable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec

from retinue.core.limits import LARGEST_COUNT, LONGEST_ID
from retinue.core.model import Mac
from retinue.core.model import mac as checked_mac
from retinue.protocol import json_lines

ANSWER_SECONDS = 10.0
MOST_ROWS = 65536


class TableError(Exception):
    """The switch's table could not be read or changed; the message says why."""


class Row(msgspec.Struct, frozen=True):
    """A row of the table: this MAC may use this address at this port."""

    mac: Mac
    ip: IPv4Address
    port: str
    seconds_left: float | None = None
    """Until it ends by itself; None: never, or the switch does not tell."""


class SnoopingTable(Protocol):
    """What is asked of a switch that snoops by itself. Methods raise TableError."""

    async def rows(self) -> list[Row]: ...

    async def delete(self, row: Row) -> None:
        """Delete a row; done when the table no longer has it."""

    async def store(self, row: Row) -> None:
        """Store a row, whose port is the VM's tap here; done when the table has it."""


def binds(rows: Iterable[Row], mac: Mac, ip: IPv4Address) -> bool:
    """True where this MAC may use this address, at any port: the switch may name ports as we do not."""
    return any((one.mac, one.ip) == (mac, ip) for one in rows)


class _Row(msgspec.Struct):
    mac: Annotated[str, msgspec.Meta(max_length=17)]
    ip: Annotated[str, msgspec.Meta(max_length=15)]
    port: Annotated[str, msgspec.Meta(max_length=LONGEST_ID)]
    seconds_left: Annotated[float, msgspec.Meta(ge=0, le=LARGEST_COUNT)] | None = None


class _Rows(msgspec.Struct):
    rows: Annotated[list[_Row], msgspec.Meta(max_length=MOST_ROWS)]


class AdaptedTable:
    """A table behind the adapter at this socket."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def rows(self) -> list[Row]:
        try:
            said = msgspec.convert(await self._ask(do="rows"), _Rows)
            return [
                Row(checked_mac(row.mac), IPv4Address(row.ip), row.port, row.seconds_left)
                for row in said.rows
            ]
        except ValueError as error:  # msgspec.ValidationError and ModelError are such.
            raise TableError(f"the adapter at {self._path} says what is no table: {error}") from error

    async def delete(self, row: Row) -> None:
        await self._ask(do="delete", mac=row.mac, ip=str(row.ip), port=row.port)
        if any((left.mac, left.ip, left.port) == (row.mac, row.ip, row.port) for left in await self.rows()):
            raise TableError(f"the switch still has {row.mac} with {row.ip} at {row.port}")

    async def store(self, row: Row) -> None:
        said = {"mac": row.mac, "ip": str(row.ip), "port": row.port, "seconds_left": row.seconds_left}
        await self._ask(do="store", **said)
        if not binds(await self.rows(), row.mac, row.ip):
            raise TableError(f"the switch still lacks {row.mac} with {row.ip} at {row.port}")

    async def _ask(self, **request: Any) -> dict[str, Any]:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await json_lines.ask(self._path, f"the adapter at {self._path}", **request)
        except json_lines.RequestError as error:
            raise TableError(str(error)) from error
        except TimeoutError as error:
            raise TableError(f"the adapter at {self._path} does not answer") from error


__all__ = ["AdaptedTable", "Row", "SnoopingTable", "TableError", "binds"]
