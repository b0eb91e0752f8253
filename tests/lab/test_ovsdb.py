"""The OVSDB client on real ovsdb-server processes, with Open vSwitch's own schema."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from retinue.core.model import PortStatus
from retinue.southbound.ovsdb import (
    BridgePort,
    Connection,
    ConnectionLostError,
    OvsdbError,
    OvsdbListener,
    Replica,
    RowChange,
    connect,
    diff,
    interfaces,
    ovs_version,
)
from retinue.southbound.ovsdb.vm_ports import COLUMNS, DATABASE

pytestmark = [pytest.mark.lab, pytest.mark.no_vms]

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
PATIENCE = 60.0


async def run(*command: str | Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


class Switch:
    """A database server of a switch, without the switch."""

    def __init__(self, at: Path) -> None:
        self.at = at
        self.endpoint = f"unix:{at / 'db.sock'}"
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        if not (self.at / "conf.db").exists():
            await run("ovsdb-tool", "create", self.at / "conf.db", SCHEMA)
        self.process = await asyncio.create_subprocess_exec(
            "ovsdb-server", self.at / "conf.db", f"--remote=punix:{self.at / 'db.sock'}",
            "--remote=db:Open_vSwitch,Open_vSwitch,manager_options", f"--unixctl={self.at / 'ctl'}",
            "-vconsole:off", "-vsyslog:off",
        )  # fmt: skip
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    (await connect(self.endpoint)).close()
                    return
                except (FileNotFoundError, ConnectionRefusedError):
                    await asyncio.sleep(0.01)

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(how)
            await self.process.wait()

    async def vsctl(self, *words: str) -> str:
        return await run("ovs-vsctl", f"--db={self.endpoint}", "--no-wait", "--timeout=10", *words)


@pytest.fixture
async def switch(tmp_path: Path) -> AsyncIterator[Switch]:
    switch = Switch(tmp_path)
    await switch.start()
    yield switch
    await switch.stop()


class Ports:
    """A switch's ports as its replica shows them, and each change told."""

    def __init__(self) -> None:
        self.replica = Replica(DATABASE, COLUMNS, self.changed)
        self.ports: list[BridgePort] = []
        self.wake = asyncio.Condition()
        self.told: list[RowChange] = []
        self._ring = asyncio.Event()

    def changed(self, changes: list[RowChange]) -> None:
        self.told += changes
        self.ports = interfaces(self.replica.tables)
        self._ring.set()

    async def until(self, check: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not check():
                self._ring.clear()
                await self._ring.wait()

    def names(self) -> set[str]:
        return {p.name for p in self.ports}


async def test_a_switch_dials_in_and_its_ports_are_followed(switch: Switch) -> None:
    ports = Ports()
    connections: list[Connection] = []

    async def handle(connection: Connection) -> None:
        connections.append(connection)
        await ports.replica.start(connection)
        await connection.closed()

    listener = OvsdbListener(handle)
    port = await listener.start("127.0.0.1", 0)
    await switch.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_id=00000000000000a1",
                       "--", "set", "Open_vSwitch", ".", "ovs_version=9.9.9")  # fmt: skip
    await switch.vsctl("set-manager", f"tcp:127.0.0.1:{port}")
    await ports.until(lambda: ports.names() == {"br0"})
    assert ports.replica.method == "monitor_cond_since"
    assert ovs_version(ports.replica.tables) == "9.9.9"

    before = ports.ports
    await switch.vsctl(
        "add-port", "br0", "vnet0", "--", "set", "interface", "vnet0", "ofport=7", "link_state=up",
        "admin_state=up", "external_ids:iface-id=if-1", "external_ids:attached-mac=52:54:00:00:00:01",
        "external_ids:vm-id=vm-1",
    )  # fmt: skip
    await ports.until(lambda: "vnet0" in ports.names())
    vnet0 = BridgePort(0xA1, "br0", "vnet0", 7, PortStatus.UP, "if-1", "52:54:00:00:00:01", "vm-1")
    assert diff(before, ports.ports).added == (vnet0,)

    before = ports.ports
    await switch.vsctl("set", "interface", "vnet0", "link_state=down", "external_ids:vm-id=vm-2")
    await ports.until(lambda: any(p.status is PortStatus.DOWN for p in ports.ports))
    changed = BridgePort(0xA1, "br0", "vnet0", 7, PortStatus.DOWN, "if-1", "52:54:00:00:00:01", "vm-2")
    assert diff(before, ports.ports).changed == ((vnet0, changed),)
    assert not diff(before, ports.ports).added

    before = ports.ports
    await switch.vsctl("set", "interface", "vnet0", "ofport=-1", "admin_state=down")
    await ports.until(lambda: any(p.status is PortStatus.DISABLED for p in ports.ports))
    assert diff(before, ports.ports).changed[0][1].number is None

    await switch.vsctl("add-bond", "br0", "bond0", "eth0", "eth1", "--", "del-port", "vnet0")
    await ports.until(lambda: ports.names() == {"br0", "eth0", "eth1"})
    assert {p.name: p.bond for p in ports.ports} == {"br0": None, "eth0": "bond0", "eth1": "bond0"}

    # The switch's database is restarted while a port is added: it dials in again, only that is told.
    await switch.stop(signal.SIGKILL)
    await connections[0].closed()
    await switch.start()
    ports.told.clear()
    await switch.vsctl("add-port", "br0", "vnet1")
    await ports.until(
        lambda: len(connections) == 2 and "vnet1" in {r.new and r.new["name"] for r in ports.told}
    )
    # Ephemeral columns do not survive the restart, so the bridge has no datapath id until the switch sets it.
    await switch.vsctl("set", "bridge", "br0", "datapath_id=00000000000000a1")
    await ports.until(lambda: ports.names() == {"br0", "eth0", "eth1", "vnet1"})
    came = {(c.table, c.new["name"]) for c in ports.told if c.old is None and c.new is not None}
    assert came == {("Port", "vnet1"), ("Interface", "vnet1")}
    await listener.stop()


@pytest.mark.parametrize("without", [[], ["monitor_cond_since"], ["monitor_cond_since", "monitor_cond"]])
async def test_each_way_of_monitoring_gives_the_same_replica(
    switch: Switch, without: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Connection.call

    async def call(self: Connection, method: str, *args: object, **named: object) -> object:
        return await whole(self, method + "_unheard_of" * (method in without), *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Connection, "call", call)
    await switch.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_id=00000000000000a1",
                       "--", "add-port", "br0", "old", "--", "set", "interface", "old",
                       "external_ids:vm-id=v", "external_ids:iface-id=i")  # fmt: skip
    ports = Ports()
    connection = await connect(switch.endpoint)
    await ports.replica.start(connection)
    await switch.vsctl(
        "add-port", "br0", "new", "--", "set", "interface", "new", "ofport=3", "external_ids:vm-id=w"
    )
    await switch.vsctl("set", "interface", "old", "ofport=9", "external_ids:vm-id=x",
                       "--", "remove", "interface", "old", "external_ids", "iface-id")  # fmt: skip
    await switch.vsctl("add-port", "br0", "shortly", "--", "del-port", "br0", "new")
    await switch.vsctl("del-port", "br0", "shortly")
    await ports.until(lambda: ports.names() == {"br0", "old"})
    assert ports.replica.method == ["monitor_cond_since", "monitor_cond", "monitor"][len(without)]
    assert [p for p in ports.ports if p.name == "old"] == [
        BridgePort(0xA1, "br0", "old", 9, PortStatus.UP, vm_id="x")
    ]
    fresh = Replica(DATABASE, COLUMNS)
    await fresh.start(connection_two := await connect(switch.endpoint))
    assert fresh.tables == ports.replica.tables
    connection.close()
    connection_two.close()


async def test_transactions_and_their_rejections(switch: Switch) -> None:
    connection = await connect(switch.endpoint)
    assert DATABASE in await connection.call("list_dbs", [])
    done = await connection.transact(DATABASE, [{"op": "insert", "table": "Open_vSwitch", "row": {}}])
    assert done[0]["uuid"][0] == "uuid"
    with pytest.raises(OvsdbError, match="constraint violation"):
        await connection.transact(DATABASE, [{"op": "insert", "table": "Open_vSwitch", "row": {}}])
    with pytest.raises(OvsdbError, match="operation 1"):
        await connection.transact(DATABASE, [{"op": "comment", "comment": ""}, {"op": "odd"}])
    with pytest.raises(OvsdbError, match="unknown database"):
        await connection.transact("nowhere", [])
    with pytest.raises(OvsdbError, match="unknown method"):
        await connection.call("nonsense", [])
    assert await connection.call("echo", ["still", "here"]) == ["still", "here"]
    connection.close()


async def test_a_server_that_dies_ends_its_calls(switch: Switch) -> None:
    connection = await connect(switch.endpoint)
    assert switch.process is not None
    switch.process.send_signal(signal.SIGSTOP)
    call = asyncio.create_task(connection.call("list_dbs", []))
    await asyncio.sleep(0)
    await switch.stop(signal.SIGKILL)
    with pytest.raises(ConnectionLostError):
        await call


async def test_nothing_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await connect(f"unix:{tmp_path / 'none'}")


async def test_garbage_beside_a_real_switch_is_counted_and_harms_nobody(switch: Switch) -> None:
    served: Callable[[], Awaitable[object]] | None = None
    seen = asyncio.Event()

    async def handle(connection: Connection) -> None:
        nonlocal served
        served = lambda: connection.call("list_dbs", [])  # noqa: E731
        seen.set()
        await connection.closed()

    listener = OvsdbListener(handle)
    port = await listener.start("127.0.0.1", 0)
    await switch.vsctl("set-manager", f"tcp:127.0.0.1:{port}")
    async with asyncio.timeout(PATIENCE):
        await seen.wait()
        for rubbish in (b"\x04\x00\x00\x08\x00\x00\x00\x01", b'{"id":1,"result":{}}', b"{" * 2_000_000):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(rubbish)
            try:
                while await reader.read(1000):
                    pass
            except ConnectionError:
                pass
            writer.close()
    assert served is not None
    assert DATABASE in await served()  # type: ignore[operator]
    assert listener.rejected == {"malformed": 3}
    await listener.stop()


async def test_forty_thousand_rows_are_replicated(switch: Switch, capsys: pytest.CaptureFixture[str]) -> None:
    # Without probes: a server that is busy with all this for long may say nothing meanwhile.
    writer = await connect(switch.endpoint, timeout=60, probe=None)
    rows = [
        {"op": "insert", "table": "Interface", "uuid-name": f"i{n}",
         "row": {"name": f"vnet{n}", "ofport": n + 1, "external_ids": ["map", [["vm-id", f"vm{n}"]]]}}
        for n in range(40_000)
    ]  # fmt: skip
    rows += [
        {"op": "insert", "table": "Port", "uuid-name": f"p{n}",
         "row": {"name": f"vnet{n}", "interfaces": ["named-uuid", f"i{n}"]}}
        for n in range(40_000)
    ]  # fmt: skip
    ports = ["set", [["named-uuid", f"p{n}"] for n in range(40_000)]]
    rows += [
        {
            "op": "insert",
            "table": "Bridge",
            "uuid-name": "b",
            "row": {"name": "br0", "ports": ports, "datapath_id": "a1"},
        },
        {"op": "insert", "table": "Open_vSwitch", "row": {"bridges": ["named-uuid", "b"]}},
    ]
    await writer.transact(DATABASE, rows, 600.0)
    reader = await connect(switch.endpoint, timeout=60, probe=None)
    replica = Replica(DATABASE, COLUMNS)
    begun = time.perf_counter()
    await replica.start(reader, 600.0)
    synced = time.perf_counter()
    found = interfaces(replica.tables)
    read = time.perf_counter()
    assert len(found) == 40_000
    assert len({p.vm_id for p in found}) == 40_000
    with capsys.disabled():
        print(f"\n40,000 ports: replicated in {synced - begun:.2f} s, read as ports in {read - synced:.2f} s")
    writer.close()
    reader.close()
