"""What is said of a database file before a server opens it."""

import hashlib
import json
from pathlib import Path

import pytest

from retinue.controller.store import Database, StoreError
from retinue.controller.store.file_check import FileState, inspect
from retinue.controller.store.schema import VERSION, schema


def record(value: object) -> bytes:
    data = json.dumps(value).encode() + b"\n"
    return b"OVSDB JSON %d %s\n" % (len(data), hashlib.sha1(data).hexdigest().encode()) + data


FIRST = record(schema())
SECOND = record({"VM": {"u": {"id": "OVSDB JSON 4 " + "a" * 40}}})
THIRD = record({"_date": 1})


def look(tmp_path: Path, data: bytes) -> FileState:
    path = tmp_path / "x.db"
    path.write_bytes(data)
    return inspect(path)


def test_a_whole_file(tmp_path: Path) -> None:
    assert look(tmp_path, FIRST + SECOND + THIRD) == FileState(VERSION, None)
    assert look(tmp_path, FIRST) == FileState(VERSION, None)


@pytest.mark.parametrize("cut", [1, 30, len(THIRD) - 1])
def test_a_last_record_cut_short_is_told_from_damage(tmp_path: Path, cut: int) -> None:
    state = look(tmp_path, FIRST + SECOND + THIRD[:-cut])
    assert state == FileState(VERSION, len(FIRST + SECOND))


@pytest.mark.parametrize("at", [0, 20, 100])
def test_damage_in_the_middle_is_rejected_and_located(tmp_path: Path, at: int) -> None:
    damaged = SECOND[:at] + b"\xff" + SECOND[at + 1 :]
    with pytest.raises(
        StoreError, match=rf"damaged from byte {len(FIRST)} on.*from byte {len(FIRST + SECOND)} on"
    ):
        look(tmp_path, FIRST + damaged + THIRD)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no OVSDB database"),
        (b"#!/bin/sh\n", "no OVSDB database"),
        (FIRST[:-3], "no OVSDB database, or its beginning is damaged"),
        (b"OVSDB CLUSTER 5 " + b"a" * 40, "belongs to a cluster"),
        (
            record({"name": "Open_vSwitch", "version": "8.3.1"}),
            "holds the database Open_vSwitch, not Retinue",
        ),
        (record(["no schema"]), "does not begin with a database schema"),
    ],
)
def test_what_is_not_ours_is_rejected(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        look(tmp_path, data)


def test_what_cannot_be_read_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read: Is a directory"):
        inspect(tmp_path)


async def test_a_file_from_before_the_first_release_is_rejected_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(record({**schema(), "version": "1.1.0"}))
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"nothing of it can be carried over\. Move it away"):
        await Database().start(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
