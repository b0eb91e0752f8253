"""Values of the model to rows of the database and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import msgspec

from retinue.model import VM, BindingKind, Holding, Origin, PortRef, Server, Service, mac
from retinue.moves import Move
from retinue.ovsdb import ProtocolError
from retinue.ovsdb.values import Value, row_to_wire
from retinue.store.schema import TYPES


@dataclass(frozen=True, slots=True)
class Place:
    """A server was detected at this leaf port (`Network.detected`)."""

    server: str
    at: PortRef


@dataclass(frozen=True, slots=True)
class EndedLease:
    """The lease that ran out last of a VM that has had none since."""

    lease: Holding


@dataclass(frozen=True, slots=True)
class Owed:
    """This VM has moved, and no DHCP server has renewed its lease since."""

    vm: str


Storable = Server | VM | Holding | EndedLease | Owed | Place | Move
Key = tuple[str, str]
"""Table, and the value of its key column."""


@dataclass(slots=True)
class Stored:
    """Everything the database holds, each list in order of its key."""

    servers: list[Server] = field(default_factory=list)
    vms: list[VM] = field(default_factory=list)
    holdings: list[Holding] = field(default_factory=list)
    ended_leases: list[EndedLease] = field(default_factory=list)
    owed: list[Owed] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """Rows that cannot be read, and why; they are left where they are."""


def key_of(value: Storable) -> Key:
    """Where the value is kept. Raises TypeError for what is not kept."""
    match value:
        case Server():
            return "Server", value.id
        case VM():
            return "VM", value.id
        case Holding():
            return "Holding", str(value.ip)
        case EndedLease():
            return "EndedLease", value.lease.vm
        case Owed():
            return "Owed", value.vm
        case Place():
            return "Place", value.server
        case Move():
            return "Move", value.id
        case _:
            raise TypeError(f"{type(value).__name__} is not kept in the database")


def sort_in(stored: Stored, value: Storable) -> None:
    """Add a value to those of its kind."""
    match value:
        case Server():
            stored.servers.append(value)
        case VM():
            stored.vms.append(value)
        case Holding():
            stored.holdings.append(value)
        case EndedLease():
            stored.ended_leases.append(value)
        case Owed():
            stored.owed.append(value)
        case Place():
            stored.places.append(value)
        case Move():
            stored.moves.append(value)


def to_row(value: Storable) -> dict[str, Any]:
    """Its row, every column of it, as it stands on the wire. Raises ValueError for what cannot be kept."""
    return row_to_wire(_columns(value))


def _columns(value: Storable) -> dict[str, Value]:
    match value:
        case Server():
            return {
                "id": value.id,
                "mac": value.mac,
                "address": None if value.address is None else str(value.address),
                "edge": value.edge,
                "services": tuple(sorted(value.services)),
                "routes": _listed(value.routes),
                "given_at": {} if value.given_at is None else {value.given_at.switch: value.given_at.port},
            }
        case VM():
            return {
                "id": value.id,
                "mac": value.mac,
                "server": value.server,
                "also": tuple(sorted(value.also)),
                "addresses": _listed(value.addresses),
                "reported": value.reported,
            }
        case Holding():
            return {
                "ip": str(value.ip),
                "mac": value.mac,
                "vm": value.vm,
                "kind": value.kind,
                "origin": value.origin,
                "lease_end": None if value.lease_end is None else float(value.lease_end),
                "server": None if value.server is None else str(value.server),
                "client_id": value.client_id.hex(),
            }
        case EndedLease():
            return _columns(value.lease)
        case Owed():
            return {"vm": value.vm}
        case Place():
            return {"server": value.server, "switch": value.at.switch, "port": value.at.port}
        case Move():
            document = msgspec.json.encode(value).decode()
            return {"id": value.id, "vm": value.vm, "state": value.state, "document": document}


def _listed(values: tuple[object, ...]) -> Value:
    return {index: str(value) for index, value in enumerate(values)}


def read_row(table: str, wire: Mapping[str, Any]) -> Storable:
    """The value kept in a row. Raises ValueError that says what is wrong with it."""
    try:
        row: dict[str, Any] = {name: kind.read(wire[name]) for name, kind in TYPES[table].items()}
        return _value(table, row)
    except (ValueError, KeyError, TypeError, ProtocolError, msgspec.MsgspecError) as e:
        raise ValueError(f"a row of {table} cannot be read: {e!r} in {dict(wire)!r:.300}") from e


def _value(table: str, row: dict[str, Any]) -> Storable:
    match table:
        case "Server":
            return Server(
                id=row["id"],
                mac=mac(row["mac"]),
                address=None if row["address"] is None else ip_address(row["address"]),
                edge=row["edge"],
                services=frozenset(Service(s) for s in row["services"]),
                routes=tuple(ip_network(prefix) for prefix in _in_order(row["routes"])),
                given_at=next((PortRef(*at) for at in row["given_at"].items()), None),
            )
        case "VM":
            return VM(
                id=row["id"],
                mac=mac(row["mac"]),
                server=row["server"],
                also=frozenset(row["also"]),
                addresses=tuple(ip_address(a) for a in _in_order(row["addresses"])),
                reported=row["reported"],
            )
        case "Holding":
            return _holding(row)
        case "EndedLease":
            return EndedLease(_holding(row))
        case "Owed":
            return Owed(row["vm"])
        case "Place":
            return Place(row["server"], PortRef(row["switch"], row["port"]))
        case "Move":
            return msgspec.json.decode(row["document"], type=Move)
        case _:
            raise KeyError(table)


def _holding(row: dict[str, Any]) -> Holding:
    return Holding(
        ip=ip_address(row["ip"]),
        mac=mac(row["mac"]),
        vm=row["vm"],
        kind=BindingKind(row["kind"]),
        origin=Origin(row["origin"]),
        lease_end=row["lease_end"],
        server=None if row["server"] is None else IPv4Address(row["server"]),
        client_id=bytes.fromhex(row["client_id"]),
    )


def _in_order(values: dict[int, str]) -> list[str]:
    return [values[index] for index in sorted(values)]
