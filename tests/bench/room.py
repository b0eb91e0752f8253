"""Where the bytes of a VM go: the controller before a network of fakes, all in one process, without sockets.

    PYTHONPATH=tests .venv/bin/python tests/bench/room.py [SERVERS] [VMS]

VMs with one static address are registered as managers register them, from JSON; each edge's database tells
their ports as Open vSwitch does; switches confirm whatever they are sent, and keep nothing. What Python has
handed out for all this and holds at the end (`tracemalloc`) is told by the file that asked for it: a machine
that is busy changes nothing of it. Left out: what connections, the database's writer and a fragmented heap
take. Beside it, the bytes that the process had more at the most, and seconds of a processor.
"""

import asyncio
import gc
import os
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from bench.scale.fakes.ovsdb import SCHEMA, FakeDatabase
from bench.scale.fakes.switch import FakeBulkSwitch, Switches
from bench.scale.plan import Plan
from retinue.controller import config
from retinue.controller.api.routes.vms import _vm
from retinue.controller.app import Controller
from retinue.controller.switches.port_watcher import PortWatch
from retinue.core.pipeline.entry import Change, Group, Meter
from retinue.protocol.vms import VMBody
from retinue.southbound.openflow.codec.messages import FlowStats
from retinue.southbound.ovsdb import Replica
from retinue.southbound.ovsdb.vm_ports import COLUMNS, DATABASE, touched_by

AT_ONCE = 500
SOURCES = Path(__file__).parents[2] / "src"


class Session:
    """A switch that takes everything, and keeps nothing."""

    def __init__(self, name: str, dpid: int, ports: dict[str, int]) -> None:
        self.name, self.dpid, self.ports = name, dpid, ports
        self.down: frozenset[str] = frozenset()
        self.peer, self.openflow, self.closed, self.alive = "fake", "1.4", "", True
        self.flow_mods = 0

    def waited(self) -> float:
        return 0.0

    async def apply(self, change: Change, now: float) -> None:
        await asyncio.sleep(0)
        self.flow_mods += change.flow_count

    async def read_flows(self, cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        return []

    async def read_packets(self, cookie: int = 0, cookie_mask: int = 0) -> int:
        return 0

    async def read_groups(self) -> dict[int, Group]:
        return {}

    async def read_meters(self) -> dict[int, Meter]:
        return {}

    def packet_out(self, frame: bytes, port: int, in_port: int = 0) -> None:
        pass

    def close(self, reason: str) -> None:
        raise AssertionError(reason)


class _Connection:
    """Of a database whose messages are handed over by hand."""

    is_open, certificate, name = True, None, "fake"

    def close(self, reason: object) -> None:
        raise AssertionError(reason)


class Database:
    """An edge's, as the fake of `make bench` tells it, and the replica of it."""

    def __init__(self, fake: FakeDatabase, watch: PortWatch) -> None:
        self._fake = fake
        fake.monitored, fake.connection = True, self  # type: ignore[assignment]
        self._replica = Replica(
            DATABASE, COLUMNS, lambda changes: watch._update(self._replica, touched_by(changes))
        )
        self._replica.method = "monitor_cond_since"
        self._replica._read_schema(SCHEMA)
        self._replica._take_since(_over_the_wire([False, "0", fake.contents()]))

    def say(self, what: dict[str, Any]) -> None:
        """What the fake would send."""
        self._replica._take_update(_over_the_wire(what["params"]))


def _over_the_wire(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


async def _settled(controller: Controller) -> None:
    while controller.context._tasks:
        await asyncio.wait(controller.context._tasks)


async def measure(servers: int, vms: int) -> tuple[Controller, Counter[str], dict[str, float]]:
    """The controller at the end; by file, bytes of all VMs; other figures by what they are."""
    plan = Plan(servers, vms)
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(plan.config(1, 2, 3))
        file.flush()
        net = config.load(Path(file.name)).network()
    controller = Controller(net)
    watch = PortWatch(controller.inventory.ports.changed, controller.inventory.ports.edge_read)
    shared = Switches(0)
    databases, fakes = [], []
    for switch in plan.switches():
        controller.connected(Session(switch.id, switch.dpid, switch.ports))  # type: ignore[arg-type]
        if switch.role == "edge":
            fakes.append(
                FakeDatabase(shared, FakeBulkSwitch(shared, switch.id, switch.dpid, switch.ports), 0)
            )
            databases.append(Database(fakes[-1], watch))
    controller.inventory.ports.edge_read([fake.switch.dpid for fake in fakes])
    await _settled(controller)
    gc.collect()
    before, began = _rss(), time.process_time()
    tracemalloc.start()
    try:
        for first in range(0, vms, AT_ONCE):
            numbers = range(first, min(vms, first + AT_ONCE))
            bodies = [_body(plan, number) for number in numbers]
            taken: set[str] = set()
            given = msgspec.json.decode(msgspec.json.encode(bodies), type=list[VMBody])
            controller.inventory.register_vms([_vm(controller, one, taken) for one in given])
            for number in numbers:
                fakes[plan.server_of(number)].add([plan.vm(number)])
            await _settled(controller)
        del bodies, given
        took, grown = time.process_time() - began, _rss() - before
        gc.collect()
        found: Counter[str] = Counter()
        for one in tracemalloc.take_snapshot().statistics("filename"):
            path = one.traceback[0].filename
            of_ours = path.startswith(str(SOURCES))
            found[path.removeprefix(f"{SOURCES}/") if of_ours else _elsewhere(path)] += one.size
        live, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()  # All that runs after it in this process would take some times as long.
    own = sum(size for path, size in found.items() if path != FAKES)
    return controller, found, {
        "of the controller": own, "live, with the fakes": live, "live at the most": most,
        "RSS (tracemalloc's own is in it)": grown, "seconds": took,
    }  # fmt: skip


FAKES = "(fakes)"


def _elsewhere(path: str) -> str:
    return FAKES if f"{os.sep}tests{os.sep}" in path else Path(path).name


def _body(plan: Plan, number: int) -> dict[str, Any]:
    vm = plan.vm(number)
    server = f"server{plan.server_of(number)}"
    return {"id": vm.id, "mac": vm.mac, "server": server, "addresses": [str(vm.ip)]}


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    servers, vms = (int(word) for word in (sys.argv[1:] + ["50", "1000"][len(sys.argv) - 1 :]))
    _, found, others = asyncio.run(measure(servers, vms))
    print(f"{servers} servers, {vms} VMs; bytes a VM, load {os.getloadavg()[0]:.1f}")
    for path, size in found.most_common(25):
        print(f"{size / vms:10.0f}  {path}")
    for what, figure in others.items():
        print(
            f"{figure / vms:10.0f}  {what}"
            if what != "seconds"
            else f"{figure:10.1f}  seconds of a processor"
        )


if __name__ == "__main__":
    main()
