"""OVSDB values and column types (RFC 7047, sections 3.2 and 5.1), to and from Python.

A set is a tuple, a map a dict, a UUID a `UUID`. A column that holds at most one value is that value or None.
On the wire a set of one is written like its only element, so what a value means is known from the column's
type alone: `ColumnType.read` gives it the one form, `from_wire` is for values whose column is unknown.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from sys import intern
from typing import Any

from retinue.southbound.ovsdb.wire import ProtocolError

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_INTEGERS = range(-(1 << 63), 1 << 63)


class UUID(str):
    """The name of a row; a string that is written as ["uuid", ...]."""

    __slots__ = ()


class NamedUUID(str):
    """A row made in the same transaction, by the `uuid-name` given there."""

    __slots__ = ()


Atom = bool | int | float | str
Value = Atom | None | tuple[Atom, ...] | dict[Atom, Atom]
Row = Mapping[str, Value]
ZERO_UUID = UUID("00000000-0000-0000-0000-000000000000")
"""The default of a column that holds a UUID."""


def from_wire(value: Any) -> Value:
    """A value as it stands on the wire, with nothing known of its column. Raises ProtocolError."""
    if not isinstance(value, list):
        return _atom(value)
    match value:
        case ["set", list(elements)]:
            return tuple(_atom(e) for e in elements)
        case ["map", list(pairs)]:
            return _map(pairs)
        case _:
            return _atom(value)


def to_wire(value: Any) -> Any:
    """The opposite. Raises ValueError for what OVSDB cannot hold; None is the empty set."""
    match value:
        case None:
            return ["set", []]
        case Mapping():
            return ["map", [[_atom_to_wire(k), _atom_to_wire(v)] for k, v in value.items()]]
        case tuple() | list() | set() | frozenset():
            return ["set", [_atom_to_wire(e) for e in value]]
        case _:
            return _atom_to_wire(value)


def row_to_wire(row: Row) -> dict[str, Any]:
    """A row for an insert or update. Raises ValueError that names the column."""
    wire = {}
    for column, value in row.items():
        try:
            wire[column] = to_wire(value)
        except ValueError as e:
            raise ValueError(f"column {column}: {e}") from e
    return wire


def _map(pairs: list[Any]) -> dict[Atom, Atom]:
    found: dict[Atom, Atom] = {}
    for pair in pairs:
        match pair:
            case [key, held]:
                found[_atom(key)] = _atom(held)
            case _:
                raise ProtocolError(f"a map holds {pair!r:.60}, not a pair")
    return found


def _atom(value: Any) -> Atom:
    match value:
        case str() | bool() | int() | float():
            return value
        case ["uuid", str(text)]:
            if not _UUID.fullmatch(text):
                raise ProtocolError(f"not a UUID: {text!r:.60}")
            return UUID(text)
        case ["named-uuid", str(text)]:
            return NamedUUID(text)
        case _:
            raise ProtocolError(f"not an OVSDB value: {value!r:.60}")


def _atom_to_wire(value: Any) -> Any:
    match value:
        case UUID():
            return ["uuid", str(value)]
        case NamedUUID():
            return ["named-uuid", str(value)]
        case str():
            if "\0" in value:
                raise ValueError(f"{value!r:.60} has a NUL character, which the database cannot hold")
            try:
                value.encode()
            except UnicodeEncodeError as e:
                raise ValueError(f"{value!r:.60} is not valid Unicode text") from e
            return str(value)
        case bool():
            return value
        case int():
            if value not in _INTEGERS:
                raise ValueError(f"{value} does not fit into 64 bits")
            return value
        case float():
            if not math.isfinite(value):
                raise ValueError(f"{value} is no number the database can hold")
            return value
        case _:
            raise ValueError(f"{value!r:.60} ({type(value).__name__}) is no value the database can hold")


_PYTHON = {"integer": int, "real": float, "boolean": bool, "string": str, "uuid": UUID}
_DEFAULT: dict[str, Atom] = {"integer": 0, "real": 0.0, "boolean": False, "string": "", "uuid": ZERO_UUID}


@dataclass(frozen=True, slots=True)
class ColumnType:
    """What a column holds: `key` and `value` name atomic types; `value` is "" unless it is a map."""

    key: str
    value: str = ""
    least: int = 1
    most: float = 1
    """`math.inf` for "unlimited"."""

    @classmethod
    def parse(cls, declared: Any) -> "ColumnType":
        """From the `type` member of a column in a schema. Raises ProtocolError."""
        if isinstance(declared, str):
            return cls(_base(declared))
        if not isinstance(declared, dict) or "key" not in declared:
            raise ProtocolError(f"not a column type: {declared!r:.60}")
        least, most = declared.get("min", 1), declared.get("max", 1)
        if most == "unlimited":
            most = math.inf
        if not isinstance(least, int) or not isinstance(most, int | float):
            raise ProtocolError(f"not a column type: {declared!r:.60}")
        return cls(
            _base(declared["key"]), _base(declared["value"]) if "value" in declared else "", least, most
        )

    @property
    def is_many(self) -> bool:
        """True for what is sent as a difference when it changes (ovsdb-server(7), 4.1.14)."""
        return self.most > 1

    @property
    def default(self) -> Value:
        """What a column holds that is left out of a row (RFC 7047, section 5.2.1)."""
        if self.value:
            return {}
        if self.is_many:
            return ()
        return _DEFAULT[self.key] if self.least else None

    def read(self, wire: Any) -> Value:
        """A value of this column as it stands on the wire. Raises ProtocolError."""
        if type(wire) is _PYTHON[self.key] and not self.value:
            plain: Any = intern(wire) if type(wire) is str else wire  # most by far: nothing to convert
            return (plain,) if self.is_many else plain
        value = from_wire(wire)
        if self.value:
            if not isinstance(value, dict):
                raise ProtocolError(f"expected a map, not {wire!r:.60}")
            return {self._typed(k, self.key): self._typed(v, self.value) for k, v in value.items()}
        if isinstance(value, dict):
            raise ProtocolError(f"expected no map: {wire!r:.60}")
        elements = value if isinstance(value, tuple) else (value,)
        typed = tuple(self._typed(e, self.key) for e in elements)
        if self.is_many:
            return typed
        if len(typed) == 1:
            return typed[0]
        if typed or self.least:
            raise ProtocolError(f"expected one value, not {wire!r:.60}")
        return None

    def change(self, old: Value, wire: Any) -> Value:
        """`old` after a change sent as a difference in an update2 or update3. Raises ProtocolError.

        Of a set, the difference has what only one of old and new has; of a map, each key that came, went
        (with its old value) or changed (with its new one); of anything else it is the new value.
        """
        difference = self.read(wire)
        if isinstance(difference, dict) and self.is_many:
            merged = dict(old) if isinstance(old, dict) else {}
            for key, held in difference.items():
                if key in merged and merged[key] == held:
                    del merged[key]
                else:
                    merged[key] = held
            return merged
        if isinstance(difference, tuple):
            return _sorted({*(old if isinstance(old, tuple) else ())} ^ {*difference})
        return difference

    def _typed(self, atom: Atom | None, base: str) -> Atom:
        kind = _PYTHON[base]
        if type(atom) is str and kind is str:
            return intern(atom)  # Ids, names of keys and of states: the same in many rows, and elsewhere.
        if atom is not None and type(atom) is kind:
            return atom
        if base == "real" and type(atom) is int:
            return float(atom)  # 1.0 may be written as 1
        raise ProtocolError(f"expected {base}, not {atom!r:.60}")


def _base(declared: Any) -> str:
    name = declared.get("type") if isinstance(declared, dict) else declared
    if not isinstance(name, str) or name not in _PYTHON:
        raise ProtocolError(f"not an atomic type: {declared!r:.60}")
    return name


def _sorted(atoms: Iterable[Any]) -> tuple[Atom, ...]:
    return tuple(sorted(atoms))
