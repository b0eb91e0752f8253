"""The store on a real ovsdb-server: what is flushed is there, whatever ends in between."""

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import fields, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from retinue.controller.state import EndedLease, PendingRenewal, ServerLocation, Storable
from retinue.controller.store import Database, StoreError, reading
from retinue.controller.store import ovsdb_process as server_module
from retinue.controller.store.schema import FIRST_READ, schema
from retinue.core.migration import Migration, MigrationState
from retinue.core.model import VM, Assignment, BindingKind, Origin, PortRef, Server, Service, mac_from_int

pytestmark = [pytest.mark.lab, pytest.mark.no_vms]

PATIENCE = 60.0


def vm(n: int, server: str = "s1") -> VM:
    return VM.with_one_nic(f"vm{n:05}", mac_from_int(0x02_00_00_00_00_00 + n), server)


def assignment(n: int) -> Assignment:
    address = ip_address(0x0A_00_00_00 + n)
    return Assignment(
        address, vm(n).nic.mac, vm(n).id, BindingKind.DYNAMIC, Origin.CONTROLLER, 1.75e9 + n / 4
    )


EVERYTHING: list[Storable] = [
    Server(
        "router", "52:54:00:00:00:01", ip_address("2001:db8::1"), "", frozenset({Service.ROUTER}),
        (ip_network("192.0.2.0/24"), ip_network("10.0.0.0/8")), PortRef("leaf1", "p\u00e9 \"1\""),
    ),
    Server("s1", "52:54:00:00:00:02", edge="edge1"),
    VM.with_one_nic("v1", "52:54:00:00:01:01", "s1", frozenset(),
       (ip_address("10.0.0.9"), ip_address("10.0.0.1")), True),
    vm(2),
    assignment(2),
    Assignment(ip_address("10.0.0.9"), "52:54:00:00:01:01", "v1", BindingKind.STATIC, Origin.MANAGER),
    EndedLease(assignment(3)),
    PendingRenewal("v1"),
    ServerLocation("s1", PortRef("leaf1", "p2")),
    Migration("m1", "v1", "s1", "s2", MigrationState.COPYING,
         ((MigrationState.PLANNED, 1.5), (MigrationState.COPYING, 2.25)), "slow", 2.0),
]  # fmt: skip


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database()
    await database.start(tmp_path / "retinue.db")
    yield database
    await database.stop()


async def reopen(database: Database, path: Path) -> None:
    await database.stop()
    await database.start(path)


async def contents(database: Database) -> list[Storable]:
    stored = await database.load()
    assert stored.faults == []
    return [value for kind in fields(stored) for value in getattr(stored, kind.name)]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while not gone(pid):  # noqa: ASYNC110 - nobody tells of a process that is not ours
            await asyncio.sleep(0.01)


async def test_everything_comes_back_as_it_was(database: Database, tmp_path: Path) -> None:
    for value in EVERYTHING:
        database.put(value)
    await database.flush()
    await reopen(database, tmp_path / "retinue.db")
    found = await contents(database)
    assert sorted(found, key=repr) == sorted(EVERYTHING, key=repr)


async def test_puts_replace_and_removes_forget(database: Database, tmp_path: Path) -> None:
    for n in range(5):
        database.put(vm(n))
    await database.flush()
    database.put(replace(vm(1), server="s9"))
    database.put(replace(vm(1), server="s9"))
    database.remove(vm(2))
    database.remove(vm(3))
    database.put(vm(3, "s3"))
    database.put(vm(7))
    database.remove(vm(7))
    database.remove(vm(99))
    expected = [vm(0), vm(1, "s9"), vm(3, "s3"), vm(4)]
    assert await contents(database) == expected
    await reopen(database, tmp_path / "retinue.db")
    assert await contents(database) == expected
    database.put(vm(0, "s8"))
    assert (await contents(database))[0] == vm(0, "s8")


async def test_a_killed_server_is_brought_back_and_nothing_is_lost(database: Database) -> None:
    database.put(vm(0))
    await database.flush()
    for round in range(1, 4):
        assert database.pid is not None
        pid = database.pid
        for n in range(1000):
            database.put(vm(n, f"s{round}"))
        await asyncio.sleep(0.001 * round)  # somewhere within the transaction
        os.kill(pid, signal.SIGKILL)
        for n in range(500):
            database.put(vm(n, f"t{round}"))
        database.remove(vm(999))
        await database.flush()
        assert database.pid not in (None, pid)
        expected = [vm(n, f"t{round}" if n < 500 else f"s{round}") for n in range(999)]
        assert await contents(database) == expected
    assert database.restarts == 3


async def test_an_idle_server_that_is_killed_comes_back_too(database: Database) -> None:
    assert database.pid is not None
    os.kill(database.pid, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE):
        while database.restarts == 0:  # noqa: ASYNC110 - nothing is queued that could be awaited
            await asyncio.sleep(0.01)
    assert await contents(database) == []


async def test_a_value_the_database_cannot_hold_is_reported_and_harms_no_other(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    database = Database(failed=lambda table, key, error: told.append((table, key)))
    await database.start(tmp_path / "x.db")
    database.put(vm(1))
    database.put(replace(vm(2), id="bad\0id"))
    database.put(vm(3))
    with pytest.raises(StoreError, match=r"1 writes were rejected: VM 'bad.*NUL character"):
        await database.flush()
    assert told == [("VM", "bad\0id")]
    assert await contents(database) == [vm(1), vm(3)]
    await database.stop()


async def test_a_stopped_server_makes_flush_fail_in_time_and_keeps_the_writes(database: Database) -> None:
    assert database.pid is not None
    os.kill(database.pid, signal.SIGSTOP)
    database.put(vm(1))
    with pytest.raises(StoreError, match=r"1 writes are not committed after 0\.2 s"):
        await database.flush(timeout=0.2)
    os.kill(database.pid, signal.SIGCONT)
    assert await contents(database) == [vm(1)]


async def test_a_row_that_cannot_be_read_is_passed_over(database: Database) -> None:
    database.put(vm(1))
    database.put(VM.with_one_nic(vm(2).id, "no MAC address", "s1"))
    stored = await database.load()
    assert stored.vms == [vm(1)]
    assert len(stored.faults) == 1
    assert "no MAC address" in stored.faults[0]


async def test_two_controllers_cannot_share_a_file(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "LOCK_PATIENCE", 0.1)
    with pytest.raises(StoreError, match=r"another controller.*already locked by pid"):
        await Database().start(tmp_path / "retinue.db")
    database.put(vm(1))
    assert await contents(database) == [vm(1)]


async def test_a_lock_file_left_behind_is_no_obstacle(database: Database, tmp_path: Path) -> None:
    await database.stop()
    assert (tmp_path / ".retinue.db.~lock~").exists()
    await database.start(tmp_path / "retinue.db")


async def test_a_last_write_cut_short_costs_only_itself(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "retinue.db"
    for n in (1, 2):
        database.put(vm(n))
        await database.flush()
    await database.stop()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5)
    await database.start(path)
    assert await contents(database) == [vm(1)]
    database.put(vm(3))
    await database.flush()
    await reopen(database, path)
    assert await contents(database) == [vm(1), vm(3)]


@pytest.mark.parametrize("damage", ["middle", "all", "empty"])
async def test_a_damaged_file_is_rejected_and_left_as_it_is(
    database: Database, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "retinue.db"
    for n in (1, 2, 3):
        database.put(vm(n))
        await database.flush()
    await database.stop()
    data = path.read_bytes()
    at = data.index(b"vm00002")
    bad = {"middle": data[:at] + b"XX" + data[at + 2 :], "all": b"\0" * 4096, "empty": b""}[damage]
    path.write_bytes(bad)
    with pytest.raises(StoreError, match="damaged"):
        await database.start(path)
    assert path.read_bytes() == bad
    assert database.pid is None


async def test_places_where_no_file_can_be_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no directory"):
        await Database().start(tmp_path / "none" / "x.db")
    with pytest.raises(StoreError, match="cannot be read"):
        await Database().start(tmp_path)


async def test_without_ovsdb_server_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_search_path", lambda: str(tmp_path))
    with pytest.raises(StoreError, match="ovsdb-tool is not installed"):
        await Database().start(tmp_path / "x.db")


async def older_file(path: Path, version: str) -> None:
    """A file of another schema version, with a column we do not have and without one that we have."""
    old = schema() | {"version": version}
    columns = old["tables"]["VM"]["columns"]
    del columns["reported"]
    columns["former"] = {"type": "string"}
    declared = path.with_suffix(".ovsschema")
    declared.write_text(json.dumps(old))
    insert = {"op": "insert", "table": "VM", "row": {"id": vm(1).id, "mac": vm(1).nic.mac, "server": "s1"}}
    for command in (
        ["ovsdb-tool", "create", str(path), str(declared)],
        ["ovsdb-tool", "transact", str(path), json.dumps(["Retinue", insert])],
    ):
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        assert await process.wait() == 0


async def test_a_file_of_an_older_schema_is_converted_and_a_copy_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    await older_file(path, FIRST_READ)
    before = path.read_bytes()
    database = Database()
    await database.start(path)
    assert await contents(database) == [vm(1)]
    database.put(replace(vm(1), reported=True))
    assert await contents(database) == [replace(vm(1), reported=True)]
    await database.stop()
    assert (tmp_path / f"x.db.{FIRST_READ}").read_bytes() == before


async def test_a_file_of_a_later_schema_is_rejected_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    await older_file(path, "99.0.0")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"made by a later retinue \(schema 99\.0\.0"):
        await Database().start(path)
    assert path.read_bytes() == before


KILLED_CONTROLLER = """
import asyncio, sys
from pathlib import Path
from retinue.controller.store import Database
from retinue.core.model import VM

async def main():
    database = Database()
    await database.start(Path(sys.argv[1]))
    database.put(VM.with_one_nic("vm00001", "02:00:00:00:00:01", "s1"))
    await database.flush()
    print(database.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_killed_controller_leaves_no_server_and_the_next_one_starts(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    controller = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KILLED_CONTROLLER, str(path)), stdout=asyncio.subprocess.PIPE
    )
    assert controller.stdout is not None
    async with asyncio.timeout(PATIENCE):
        while not (line := (await controller.stdout.readline()).strip()).isdigit():
            assert line, "the controller ended"
    pid = int(line)
    assert not gone(pid)
    controller.kill()
    database = Database()
    await database.start(path)
    assert await contents(database) == [vm(1)]
    await controller.wait()
    await until_gone(pid)
    assert len(list((tmp_path / "x.db.run").glob("*.sock"))) == 1
    await database.stop()
    assert {p.name for p in tmp_path.iterdir()} == {"x.db", ".x.db.~lock~"}


async def test_stop_leaves_no_server_and_only_the_file(tmp_path: Path) -> None:
    database = Database()
    await database.start(tmp_path / "x.db")
    pid = database.pid
    assert pid is not None
    assert {p.suffix for p in (tmp_path / "x.db.run").iterdir()} == {".sock", ".ctl"}
    await database.stop()
    assert gone(pid)
    assert {p.name for p in tmp_path.iterdir()} == {"x.db", ".x.db.~lock~"}
    await database.stop()


async def test_a_path_too_long_for_a_socket_is_served_from_a_temporary_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with tempfile.TemporaryDirectory() as short:  # `tmp_path` may be too long itself.
        monkeypatch.setattr("tempfile.tempdir", short)
        database = Database()
        await database.start(deep / "x.db")
        database.put(vm(1))
        assert await contents(database) == [vm(1)]
        await database.stop()
        assert list(Path(short).iterdir()) == []


async def test_a_flush_that_waits_when_the_database_is_closed_says_so(tmp_path: Path) -> None:
    database = Database()
    await database.start(tmp_path / "x.db")
    assert database.pid is not None
    os.kill(database.pid, signal.SIGKILL)
    database.put(vm(1))
    flush = asyncio.create_task(database.flush())
    await asyncio.sleep(0)
    await database.stop()
    with pytest.raises(StoreError, match="closed"):
        await flush


async def test_ten_thousand_vms(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    took: dict[str, float] = {}

    def since(name: str, begun: float) -> None:
        took[name] = time.perf_counter() - begun

    begun = time.perf_counter()
    for n in range(10_000):
        database.put(vm(n))
        database.put(assignment(n))
    since("queue", begun)
    await database.flush()
    since("commit", begun)
    begun = time.perf_counter()
    for n in range(10_000):
        database.put(vm(n, "s2"))
    await database.flush()
    since("update of 10,000", begun)
    begun = time.perf_counter()
    for n in range(100):
        database.put(vm(n, "s3"))
        await database.flush()
    since("100 single durable writes", begun)
    begun = time.perf_counter()
    await reopen(database, tmp_path / "retinue.db")
    since("reopen", begun)
    begun = time.perf_counter()
    stored = await database.load()
    since("load", begun)
    assert len(stored.vms) == len(stored.assignments) == 10_000
    assert stored.vms[50] == vm(50, "s3")
    assert stored.vms[9999] == vm(9999, "s2")
    with capsys.disabled():
        print("\n10,000 VMs with an address each, seconds:", {k: round(v, 3) for k, v in took.items()})


async def test_a_large_table_is_read_in_parts(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit into one message is read all the same."""
    for value in EVERYTHING:
        database.put(value)
    whole = await contents(database)
    assert len(whole) == len(EVERYTHING)
    monkeypatch.setattr(reading, "ROWS_AT_ONCE", 1)
    assert await contents(database) == whole
