"""The tables of our database, as ovsdb-server wants them declared (RFC 7047, section 3.2).

A list whose order counts is a map from its index, since OVSDB sorts sets. To look into a running database:
`ovsdb-client dump unix:FILE.run/NAME.sock Retinue`.
"""

from typing import Any

from retinue.controller.kinds import KINDS
from retinue.southbound.ovsdb.values import ColumnType

NAME = "Retinue"
VERSION = "1.18.0"
"""Raise it with every change: files of an older version are then converted when they are opened."""
FIRST_READ = "1.2.0"
"""Files of an older version are not converted: their tables had other names, and would be dropped."""


def _optional(kind: str) -> dict[str, Any]:
    return {"key": kind, "min": 0, "max": 1}


def _set(kind: str) -> dict[str, Any]:
    return {"key": kind, "min": 0, "max": "unlimited"}


_LIST = {"key": "integer", "value": "string", "min": 0, "max": "unlimited"}
_PORT_REF = {"key": "string", "value": "string", "min": 0, "max": 1}
"""Switch and port, or nothing."""

_ASSIGNMENT = {
    "ip": "string",  # IP%VRF, of another VRF than the default one.
    "mac": "string",
    "vm": "string",
    "kind": "string",
    "origin": "string",
    "lease_end": _optional("real"),
    "server": _optional("string"),
    "client_id": "string",
    "options": "string",
    "told": "string",
    "told_since": "string",
    "lease6": "string",
    "prefix": "string",  # Of one that was delegated; else "".
}
TABLES: dict[str, dict[str, Any]] = {
    "GatewayGroup": {"id": "string", "mac": "string", "is_default": "boolean"},
    "Switch": {
        "id": "string",
        "role": "string",
        "dpid": "string",  # Hexadecimal: OVSDB's integers have a sign.
        "uplinks": _LIST,
        "given": "boolean",
        "tunnel": "string",
        "endpoint": _optional("string"),
        "vdp": "boolean",
        "gateway_group": "string",
    },
    "LaidLink": {"lower": "string", "upper": "string", "idle": "boolean"},
    "Vrf": {"id": "string", "tag": "integer"},
    "Vnet": {"id": "string", "vlan": "integer", "mtu": "integer", "vrf": "string", "flood": "string"},
    "Subnet": {
        "id": "string",
        "prefix": "string",
        "gateway": "string",
        "vlan": "integer",
        "dhcp": _LIST,
        "dhcp_pools": _LIST,
        "vnet": "string",
        "slaac": "boolean",
        "dhcp6": "boolean",
    },
    "Server": {
        "id": "string",
        "mac": "string",
        "address": _optional("string"),
        "edge": "string",
        "services": _set("string"),
        "routes": _LIST,
        "given_at": _PORT_REF,
        "gateway_group": "string",
        "hosts": {"key": "string", "value": "string", "min": 0, "max": "unlimited"},
        "metric": "integer",
        "chassis": "string",
        "anycast": _LIST,
        "load": "integer",
        "subinterfaces": _LIST,
    },
    "VM": {
        "id": "string",
        "mac": "string",
        "server": "string",
        "addresses": _LIST,
        "nics": _LIST,
        "reported": "boolean",
        "power": "string",
        "power_reason": "string",
        "restart": "string",
        "memory_mib": "integer",
        "disks": _LIST,
        "home": "string",
        "host": "string",
    },
    "Assignment": _ASSIGNMENT,
    "FcLogin": {
        "mac": "string",
        "vm": "string",
        "nic": "string",
        "forwarder": "string",
        "forwarder_mac": "string",
    },
    "EndedLease": _ASSIGNMENT,
    "PendingRenewal": {"vm": "string"},  # See PendingRenewal.
    "ServerLocation": {"server": "string", "switch": "string", "port": "string"},
    "ClockAnchor": {"name": "string", "boot": "string", "began": "real"},
    "TakenOut": {"what": "string"},
    "FencedServer": {"server": "string"},
    "DrainedServer": {"server": "string"},
    "LostRouter": {"server": "string", "reason": "string"},
    "UplinkPlace": {"uplink": "string", "switch": "string", "port": "string"},
    "UplinkInUse": {"edge": "string", "uplink": "string"},
    "LostLink": {"lower": "string", "reason": "string"},
    "AgentAt": {"server": "string"},
    "LeftPort": {"port_id": "string", "vm": "string", "switches": _set("string")},
    "RemovedGuest": {"key": "string", "vm": "string", "home": "string"},
    "Image": {"name": "string", "origin": "string", "publisher": "string", "document": "string"},
    "Migration": {"id": "string", "vm": "string", "state": "string", "document": "string"},
    "Entity": {"name": "string", "kind": "string", "document": "string"},
    "AddressPair": {"mac": "string", "ip": "string", "number": "integer"},
    "Booking": {
        "vm": "string",
        "server": "string",
        "memory_mib": "integer",
        "cpus": "integer",
        "until": "real",
    },
    "HomeAnchor": {
        "vm": "string",
        "since": "real",
        "ended": _optional("real"),
        "why": "string",
        "idle": "real",
        "until": _optional("real"),
    },
    "Word": {"about": "string", "by": "string", "at": "real"},
    "Placement": {"migration": "string", "document": "string"},
}
ACTIVE = "Active"
"""Its one row says which of several controllers is the active one, and in which epoch (see leadership)."""
_ACTIVE_COLUMNS: dict[str, Any] = {
    "name": "string",
    "epoch": "integer",
    "holder": "string",
    "url": "string",
    "since": "real",
    "beat": "integer",
}
KEYS = {kind.table: kind.key for kind in KINDS}
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
                "indexes": [[KEYS.get(table, "name")]],
                "isRoot": True,
            }
            for table, columns in {**TABLES, ACTIVE: _ACTIVE_COLUMNS}.items()
        },
    }
