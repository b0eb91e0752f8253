"""A fake OVSDB server of an edge switch: it dials the controller, and tells its bridge and the VMs' ports."""

import asyncio
import json
import random
from collections.abc import Collection
from typing import Any

from bench.scale.fakes.switch import REDIAL, FakeBulkSwitch, Switches
from bench.scale.plan import VMPlan
from retinue.core.model.network import Owner
from retinue.core.pipeline.cookies import owner_hash
from retinue.southbound.ovsdb.vm_ports import DATABASE

Rows = dict[str, dict[str, dict[str, Any] | None]]
"""By table and uuid: what became of a row, as in the updates of `monitor_cond_since`."""
NONE = "00000000-0000-0000-0000-"


def _optional(kind: Any) -> dict[str, Any]:
    return {"type": {"key": kind, "min": 0, "max": 1}}


def _many(kind: Any, least: int = 0, **more: Any) -> dict[str, Any]:
    return {"type": {"key": kind, "min": least, "max": "unlimited", **more}}


def _rows_of(table: str) -> dict[str, str]:
    return {"type": "uuid", "refTable": table}


_LINK = {"type": "string", "enum": ["set", ["up", "down"]]}
_TEXT = {"type": "string"}
SCHEMA = {
    "name": DATABASE,
    "version": "8.3.1",
    "tables": {
        "Open_vSwitch": {
            "columns": {"bridges": _many(_rows_of("Bridge")), "ovs_version": _optional("string")}
        },
        "Bridge": {
            "columns": {"name": _TEXT, "datapath_id": _optional("string"), "ports": _many(_rows_of("Port"))}
        },
        "Port": {
            "columns": {
                "name": _TEXT,
                "interfaces": _many(_rows_of("Interface"), 1),
                "tag": _optional("integer"),
                "trunks": _many("integer"),
            }
        },
        "Interface": {
            "columns": {
                "name": _TEXT,
                "ofport": _optional("integer"),
                "link_state": _optional(_LINK),
                "admin_state": _optional(_LINK),
                "external_ids": _many("string", value="string"),
            }
        },
    },
}


def hash_of(vm: str) -> int:
    """What the cookies of a VM's entries say of whose they are."""
    return owner_hash(Owner("vm", vm))


class FakeDatabase:
    """One edge's, with the ports of the VMs there."""

    def __init__(self, shared: Switches, switch: FakeBulkSwitch, port: int) -> None:
        self.switch = switch
        self.port = port
        self.monitored = False
        self.connection: _Connection | None = None
        self.shared = shared
        self._vms: dict[str, tuple[int, str]] = {}
        self._next_port = 2
        self._transaction = 0
        self._dialing: asyncio.Task[None] | None = None

    def dial(self, delay: float) -> None:
        self._dialing = asyncio.get_running_loop().create_task(self._dial(delay))

    async def _dial(self, delay: float) -> None:
        await asyncio.sleep(delay)
        while self.shared.up and self.connection is None:
            try:
                await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(self), "127.0.0.1", self.port
                )
            except OSError:
                await asyncio.sleep(random.uniform(REDIAL / 2, REDIAL))

    def port_of(self, vm: str) -> int:
        return self._vms[vm][0]

    def add(self, vms: Collection[VMPlan]) -> None:
        """These VMs get their ports, told in one update."""
        update: Rows = {"Port": {}, "Interface": {}}
        for vm in vms:
            number = self._next_port
            self._next_port += 1
            self._vms[vm.id] = number, vm.mac
            self.switch.add_port(f"t{number}", number, hash_of(vm.id))
            self._put(update, "insert", vm.id, number, vm.mac)
        self._tell(update)

    def remove(self, vm: str) -> None:
        number, _ = self._vms.pop(vm)
        self.switch.remove_port(f"t{number}")
        self._tell(
            {
                "Port": {self._id(2, number): {"delete": None}},
                "Interface": {self._id(3, number): {"delete": None}},
            }
        )

    def contents(self) -> Rows:
        found: Rows = {"Port": {}, "Interface": {}}
        found["Port"][self._id(2, 1)] = {"initial": {"name": "up0", "interfaces": ["uuid", self._id(3, 1)]}}
        found["Interface"][self._id(3, 1)] = {
            "initial": {"name": "up0", "ofport": 1, "link_state": "up", "admin_state": "up"}
        }
        for vm, (number, mac) in self._vms.items():
            self._put(found, "initial", vm, number, mac)
        ports = ["set", [["uuid", port] for port in found["Port"]]]
        bridge = {"name": "br0", "datapath_id": f"{self.switch.dpid:016x}", "ports": ports}
        root = {"bridges": ["uuid", self._id(1, 1)], "ovs_version": "3.1.0"}
        found["Bridge"] = {self._id(1, 1): {"initial": bridge}}
        found["Open_vSwitch"] = {self._id(0, 1): {"initial": root}}
        return found

    def _put(self, into: Rows, how: str, vm: str, number: int, mac: str) -> None:
        port, interface = self._id(2, number), self._id(3, number)
        ids = ["map", [["iface-id", vm], ["attached-mac", mac], ["vm-id", vm], ["iface-status", "active"]]]
        row = {"name": f"t{number}", "ofport": number, "link_state": "up", "admin_state": "up"}
        into["Port"][port] = {how: {"name": f"t{number}", "interfaces": ["uuid", interface]}}
        into["Interface"][interface] = {how: {**row, "external_ids": ids}}

    def _tell(self, update: Rows) -> None:
        self._transaction += 1
        if self.connection is None or not self.monitored:
            return
        changed = ["set", [["uuid", port] for port in update["Port"]]]
        update["Bridge"] = {self._id(1, 1): {"modify": {"ports": changed}}}
        last = f"{NONE}{self._transaction:012x}"
        self.connection.say({"method": "update3", "params": [DATABASE, last, update], "id": None})

    def _id(self, kind: int, number: int) -> str:
        return f"{self.switch.dpid:08x}-{kind:04x}-4000-8000-{number:012x}"


class _Connection(asyncio.Protocol):
    def __init__(self, database: FakeDatabase) -> None:
        self._database = database
        self._text = ""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._database.connection = self

    def connection_lost(self, exc: Exception | None) -> None:
        database = self._database
        database.connection, database.monitored = None, False
        database.shared.losses += 1
        if database.shared.up:
            database.dial(random.uniform(REDIAL / 2, REDIAL))

    def say(self, what: dict[str, Any]) -> None:
        assert self._transport is not None
        self._transport.write(json.dumps(what).encode())

    def data_received(self, data: bytes) -> None:
        self._text += data.decode()
        while self._text:
            try:
                what, end = json.JSONDecoder().raw_decode(self._text)
            except ValueError:
                return
            self._text = self._text[end:].lstrip()
            self._take(what)

    def _take(self, what: dict[str, Any]) -> None:
        answers = {"list_dbs": [DATABASE], "get_schema": SCHEMA, "echo": what.get("params")}
        method = what.get("method")
        if method == "monitor_cond_since":
            answers[method] = [False, f"{NONE}{0:012x}", self._database.contents()]
            self._database.monitored = True
        if method in answers:
            self.say({"id": what["id"], "result": answers[method], "error": None})
        elif method is not None:
            self.say({"id": what["id"], "result": None, "error": "unknown method"})
