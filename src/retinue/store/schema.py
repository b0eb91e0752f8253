"""The tables of our database, as ovsdb-server wants them declared (RFC 7047, section 3.2).

A list whose order counts is a map from its index, since OVSDB sorts sets. To look into a running database:
`ovsdb-client dump unix:FILE.run/NAME.sock Retinue`.
"""

from typing import Any

from retinue.ovsdb.values import ColumnType

NAME = "Retinue"
VERSION = "1.2.0"
"""Raise it with every change: files of an older version are then converted when they are opened."""


def _optional(kind: str) -> dict[str, Any]:
    return {"key": kind, "min": 0, "max": 1}


def _set(kind: str) -> dict[str, Any]:
    return {"key": kind, "min": 0, "max": "unlimited"}


_LIST = {"key": "integer", "value": "string", "min": 0, "max": "unlimited"}
_PORT_REF = {"key": "string", "value": "string", "min": 0, "max": 1}
"""Switch and port, or nothing."""

_HOLDING = {
    "ip": "string",
    "mac": "string",
    "vm": "string",
    "kind": "string",
    "origin": "string",
    "lease_end": _optional("real"),
    "server": _optional("string"),
    "client_id": "string",
}
TABLES: dict[str, dict[str, Any]] = {
    "Server": {
        "id": "string",
        "mac": "string",
        "address": _optional("string"),
        "edge": "string",
        "services": _set("string"),
        "routes": _LIST,
        "given_at": _PORT_REF,
    },
    "VM": {
        "id": "string",
        "mac": "string",
        "server": "string",
        "also": _set("string"),
        "addresses": _LIST,
        "reported": "boolean",
    },
    "Holding": _HOLDING,
    "EndedLease": _HOLDING,
    "Owed": {"vm": "string"},
    "Place": {"server": "string", "switch": "string", "port": "string"},
    "Move": {"id": "string", "vm": "string", "state": "string", "document": "string"},
}
KEYS = {
    "Server": "id",
    "VM": "id",
    "Holding": "ip",
    "EndedLease": "vm",
    "Owed": "vm",
    "Place": "server",
    "Move": "id",
}
"""The column of each table that names a row; no two rows have the same there."""

TYPES = {
    table: {name: ColumnType.parse(kind) for name, kind in columns.items()}
    for table, columns in TABLES.items()
}


def schema() -> dict[str, Any]:
    """The whole declaration, for `ovsdb-tool create`."""
    return {
        "name": NAME,
        "version": VERSION,
        "tables": {
            table: {
                "columns": {name: {"type": kind} for name, kind in columns.items()},
                "indexes": [[KEYS[table]]],
                "isRoot": True,
            }
            for table, columns in TABLES.items()
        },
    }
