"""A look at a database file before ovsdb-server opens it.

The file is a log of transactions. ovsdb-server serves what precedes a damaged one and cuts off the rest with
its next write. That is right for a last record cut short when the power went, and a disaster for damage in
the middle, so the two are distinguished here.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from retinue.controller.errors import StoreError
from retinue.controller.store.schema import NAME

_HEADER = re.compile(rb"OVSDB JSON (\d{1,12}) ([0-9a-f]{40})\n")


@dataclass(frozen=True, slots=True)
class FileState:
    version: str
    """Of the schema the file was made with."""
    torn_at: int | None
    """Where the last record begins if it was cut short, else None."""


def inspect(path: Path) -> FileState:
    """Read the whole file and check each record's sum. Raises StoreError if it is not whole, or not ours."""
    try:
        data = path.read_bytes()
    except OSError as e:
        raise StoreError(f"the database {path} cannot be read: {e.strerror}") from e
    if data.startswith(b"OVSDB CLUSTER"):
        raise StoreError(f"{path} belongs to a cluster of database servers; a plain file is needed here")
    first = _record(data, 0)
    if first is None:
        raise StoreError(f"{path} is no OVSDB database, or its beginning is damaged; give another path")
    at: int | None = first
    good = 0
    while at is not None and at < len(data):
        good, at = at, _record(data, at)
    torn_at = good if at is None else None
    if torn_at is not None:
        later = _next_record(data, torn_at + 1)
        if later is not None:
            raise StoreError(
                f"{path} is damaged from byte {torn_at} on, and has whole transactions from byte {later} on "
                "that would be lost; restore it from a copy, or cut it there "
                f"(truncate -s {torn_at} {path}) to go on with what precedes the damage"
            )
    return FileState(_version(path, data[:first]), torn_at)


def _record(data: bytes, at: int) -> int | None:
    """The end of the record that begins here; None if there is no whole one."""
    header = _HEADER.match(data, at)
    if header is None:
        return None
    end = header.end() + int(header[1])
    whole = end <= len(data) and hashlib.sha1(data[header.end() : end]).hexdigest().encode() == header[2]
    return end if whole else None


def _next_record(data: bytes, at: int) -> int | None:
    for header in _HEADER.finditer(data, at):
        if _record(data, header.start()) is not None:
            return header.start()
    return None


def _version(path: Path, record: bytes) -> str:
    try:
        schema = json.loads(record[record.index(b"\n") :])
        name, version = schema["name"], schema["version"]
    except (ValueError, KeyError, TypeError) as e:
        raise StoreError(f"{path} does not begin with a database schema: {e!r}") from e
    if name != NAME:
        raise StoreError(f"{path} holds the database {name}, not {NAME}; give another path")
    return str(version)
