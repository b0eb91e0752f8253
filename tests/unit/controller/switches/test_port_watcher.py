"""The watch over switches' databases: what it tells of ports, and when a switch has been read."""

import asyncio
from typing import Any

import pytest

from retinue.controller.switches import port_watcher
from retinue.controller.switches.port_watcher import PortWatch
from retinue.southbound.ovsdb import UUID, BridgePort, vm_ports
from retinue.southbound.ovsdb.replica import RowChange, Tables
from retinue.southbound.ovsdb.values import Row


def uid(n: int) -> UUID:
    return UUID(f"{n:08x}-0000-0000-0000-000000000000")


def tables(*names: str) -> Tables:
    rows: Tables = {"Open_vSwitch": {uid(1): {"ovs_version": "3.1.0", "bridges": (uid(2),)}}}
    rows |= {"Bridge": {}, "Port": {}, "Interface": {}}
    for n, name in enumerate(names):
        ids: Any = {"iface-id": name.removeprefix("tap-")} if name.startswith("tap-") else {}
        rows["Interface"][uid(100 + n)] = {
            "name": name, "ofport": 10 + n, "link_state": "up", "admin_state": "up", "external_ids": ids,
        }  # fmt: skip
        rows["Port"][uid(200 + n)] = {"name": name, "interfaces": (uid(100 + n),)}
    rows["Bridge"][uid(2)] = {"name": "br", "datapath_id": "0000000000000031", "ports": tuple(rows["Port"])}
    return rows


class FakeReplica:
    """Stands in for the copy of a switch's database."""

    last: "FakeReplica"
    first: Tables

    def __init__(self, database: str, columns: Any, changed: Any) -> None:
        self.tables: Tables = {}
        self.changed = changed
        FakeReplica.last = self

    async def start(self, connection: Any) -> None:
        self.tables = FakeReplica.first

    def becomes(self, rows: Tables) -> None:
        was, self.tables = self.tables, rows
        both = [(table, was.get(table, {}), now) for table, now in rows.items()]
        self.changed(
            [
                RowChange(table, uuid, old.get(uuid), new.get(uuid))
                for table, old, new in both
                for uuid in {**old, **new}
                if old.get(uuid) != new.get(uuid)
            ]
        )


class FakeConnection:
    name, certificate, is_open = "peer", None, True

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def closed(self) -> None:
        await self.ended.wait()

    def close(self, reason: str) -> None:
        self.ended.set()


async def test_a_switch_is_read_once_in_each_connection_after_its_ports_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(port_watcher, "Replica", FakeReplica)
    told: list[object] = []

    def changed(went: list[BridgePort], came: list[BridgePort]) -> None:
        told.append(([p.iface_id for p in went], [p.iface_id for p in came]))

    def read(dpids: list[int], vms: list[str]) -> None:
        told.append((dpids, vms))

    watch = PortWatch(changed, read)
    for expected in ([([], ["vm1"]), ([0x31], ["vm1"])], [([0x31], ["vm1"])]):
        FakeReplica.first = tables("up0", "tap-vm1")
        connection = FakeConnection()
        following = asyncio.create_task(watch.follow(connection))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert told == expected
        told.clear()
        FakeReplica.last.becomes(tables("up0", "tap-vm1", "tap-vm2"))
        assert told == [([], ["vm2"])]
        FakeReplica.last.becomes(tables("up0", "tap-vm1"))
        connection.ended.set()
        await following
        told.clear()


async def test_what_another_switch_of_that_id_had_is_told_to_be_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have lost a port by the time that it is read anew."""
    monkeypatch.setattr(port_watcher, "Replica", FakeReplica)
    told: list[object] = []

    def changed(went: list[BridgePort], came: list[BridgePort]) -> None:
        told.append(([p.iface_id for p in went], [p.iface_id for p in came]))

    watch = PortWatch(changed, lambda dpids, vms: None)
    FakeReplica.first = tables("up0", "tap-vm1", "tap-vm2")
    connection = FakeConnection()
    following = asyncio.create_task(watch.follow(connection))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    watch.read_again(0x31)
    watch.read_again(0x32)
    assert connection.ended.is_set()
    await following
    FakeReplica.first = tables("up0", "tap-vm2")
    again = FakeConnection()
    following = asyncio.create_task(watch.follow(again))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert told == [([], ["vm1", "vm2"]), (["vm1", "vm2"], []), ([], ["vm2"])]
    again.close("")
    await following


async def test_of_many_ports_the_one_that_is_told_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_watcher, "Replica", FakeReplica)
    read: list[object] = []
    one = vm_ports._bridge_port

    def counted(dpid: int, bridge: Row, port: Row, row: Row, *, bonded: bool) -> BridgePort:
        read.append(row["name"])
        return one(dpid, bridge, port, row, bonded=bonded)

    monkeypatch.setattr(vm_ports, "_bridge_port", counted)
    watch = PortWatch(lambda went, came: None, lambda dpids, vms: None)
    names = [f"tap-vm{n}" for n in range(50)]
    FakeReplica.first = tables(*names)
    connection = FakeConnection()
    following = asyncio.create_task(watch.follow(connection))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert read == names
    read.clear()
    FakeReplica.last.becomes(tables(*names, "tap-new"))
    assert read == ["tap-new"]
    FakeReplica.last.becomes(tables(*names))
    assert read == ["tap-new"]
    connection.close("")
    await following
