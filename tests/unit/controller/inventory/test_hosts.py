"""Several hosts at one switch: a VM that goes from one to another changes its port, and nothing else."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from retinue.controller import restoring
from retinue.controller.api.server import Api
from retinue.controller.context import BACK_WITHIN
from retinue.controller.migrations.requests import MigrationError
from retinue.core.model import VM, Host, ModelError, PortStatus
from retinue.protocol.migrations import Report
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import fabric, vm_ip, vm_mac
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork

IP = vm_ip(1)
FIRST, SECOND = Host("host1", "02:00:00:00:77:01"), Host("host2", "02:00:00:00:77:02")


class World:
    """host1 and host2 have ports at edge1, of server1; vm1, with a static address, is on host1."""

    def __init__(self) -> None:
        self.store, self.now = MemoryStore(), 1e6
        self.fake = FakeNetwork(fabric(), lambda: self.now, self.store)
        self.controller, self.net = self.fake.controller, self.fake.net
        self.api = Api(self.controller, dict)

    async def start(self) -> str:
        await self.fake.start()
        self.now += BACK_WITHIN
        return f"http://127.0.0.1:{await self.api.start('127.0.0.1', 0)}"

    def port(self, number: int, host: str, dpid: int = 0x31) -> None:
        """A port of vm1, at edge1 unless told, that says which host's it is."""
        port = BridgePort(
            dpid=dpid, bridge="br0", name=f"p{number}", number=number, status=PortStatus.UP,
            iface_id="vm1", attached_mac=vm_mac(1), host=host,
        )  # fmt: skip
        self.controller.inventory.ports.changed([], [port])

    async def binding(self) -> tuple[str, int]:
        await self.fake.settle()
        (row,) = self.net.bindings(["vm1"])
        return row.switch, row.port

    @property
    def applied(self) -> dict[str, int]:
        return {name: len(session.applied) for name, session in self.fake.sessions.items()}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    url = await made.start()
    hosts = [{"id": host.id, "mac": host.mac} for host in (FIRST, SECOND)]
    server1 = made.net.servers["server1"]
    body = {"id": "server1", "mac": server1.mac, "edge": "edge1", "hosts": hosts}
    body |= {"at": str(server1.given_at or ""), "address": str(server1.address or "")}
    assert await asked("POST", f"{url}/v1/servers", body) == (201, {"servers": ["server1"]})
    vm1 = {"id": "vm1", "mac": vm_mac(1), "addresses": [str(IP)], "server_mac": FIRST.mac}
    status, said = await asked("POST", f"{url}/v1/vms", vm1)
    assert (status, said["vms"][0]["server"], said["vms"][0]["host"]) == (201, "server1", "host1")
    made.url = url  # type: ignore[attr-defined]
    yield made
    await made.api.stop()
    await made.fake.stop()


async def asked(method: str, url: str, body: object) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as http, http.request(method, url, json=body) as answer:
        return answer.status, await answer.json()


async def goes(world: World, **to: str) -> tuple[int, dict[str, Any]]:
    return await asked("PATCH", f"{world.url}/v1/vms/vm1", to)  # type: ignore[attr-defined]


@pytest.mark.parametrize("to", [{"server_mac": SECOND.mac}, {"server": SECOND.id}])
async def test_a_move_between_two_ports_of_a_switch_changes_the_port_and_no_other_switch(
    world: World, to: dict[str, str]
) -> None:
    """US 9,323,554, table 1: the forwarding switch of both hosts is the same."""
    world.port(7, "host2")
    world.port(5, "host1")
    assert await world.binding() == ("edge1", 5), "of the two the one of its host"
    entries, before = len(world.fake.fabric["edge1"].flows), world.applied
    assert not world.controller.inventory.ports.rejected, "the other is no mistake"
    status, said = await goes(world, **to)
    assert (status, said["server"], said["host"], said["port"]) == (200, "server1", "host2", 7)
    assert await world.binding() == ("edge1", 7)
    changed = {switch for switch, count in world.applied.items() if count != before[switch]}
    assert changed == {"edge1"}
    assert len(world.fake.fabric["edge1"].flows) == entries
    assert [vm.host for vm in world.store.load().vms] == ["host2"]


@pytest.mark.parametrize("source", ["server1", "host1", ""])
async def test_the_live_migration_message_says_so_when_it_has_happened(world: World, source: str) -> None:
    """US 9,323,554, S125 to S140, where both hosts have one forwarding switch (table 1): after one message
    the row is at the port of the new host, and no other switch has been told anything."""
    world.port(7, "host2")
    world.port(5, "host1")
    assert await world.binding() == ("edge1", 5)
    entries, before = len(world.fake.fabric["edge1"].flows), world.applied
    migration = await told(world, target_server="host2", source_server=source, mac=vm_mac(1), ip=str(IP))
    assert (migration["source"], migration["target"]) == ("server1", "server1")
    assert (migration["source_host"], migration["target_host"]) == ("host1", "host2")
    assert await world.binding() == ("edge1", 7)
    ended = world.controller.orchestrator.migrations[migration["id"]]
    assert [state for state, _ in ended.steps] == ["planned", "freed", "done"]
    assert world.net.vms["vm1"].host == "host2"
    changed = {switch for switch, count in world.applied.items() if count != before[switch]}
    assert changed == {"edge1"}
    assert len(world.fake.fabric["edge1"].flows) == entries
    world.port(5, "host1")  # What its old host still says of it changes nothing.
    assert await world.binding() == ("edge1", 7)


async def test_told_before_its_port_is_there_it_has_it_as_soon_as_it_comes(world: World) -> None:
    world.port(5, "host1")
    await told(world, target_server="host2")
    assert await world.binding() == ("edge1", 5)
    world.port(7, "host2")
    assert await world.binding() == ("edge1", 7)


async def test_a_host_at_another_switch_is_told_of_by_the_message_too(world: World) -> None:
    await with_host3(world)
    world.port(5, "host1")
    world.port(4, "", dpid=0x32)
    world.port(9, "host3", dpid=0x32)
    migration = await told(world, target_server="host3", source_server="host1")
    assert await world.binding() == ("edge2", 9), "of the two the one of its host"
    assert world.controller.orchestrator.migrations[migration["id"]].target_host == "host3"
    vm1 = world.net.vms["vm1"]
    assert (vm1.server, vm1.host) == ("server2", "host3")


async def with_host3(world: World, *, gone: bool = False) -> None:
    """host3, at edge2 of server2; or no more."""
    server2 = world.net.servers["server2"]
    body: dict[str, Any] = {"id": "server2", "mac": server2.mac, "edge": "edge2"}
    body |= {"at": str(server2.given_at or ""), "address": str(server2.address or "")}
    body |= {"hosts": [] if gone else [{"id": "host3", "mac": "02:00:00:00:77:03"}]}
    status, said = await asked("POST", f"{world.url}/v1/servers", body)  # type: ignore[attr-defined]
    assert status in (200, 201), said


async def test_a_host_that_goes_while_its_vm_comes_takes_no_vm_with_it(world: World) -> None:
    """The VM is at its switch all the same, on no host that is known."""
    await with_host3(world)
    world.port(5, "host1")
    migration = await told(world, target_server="host3")
    await with_host3(world, gone=True)
    world.port(9, "host3", dpid=0x32)
    assert await world.binding() == ("edge2", 9)
    assert world.controller.orchestrator.migrations[migration["id"]].state.ended
    vm1 = world.net.vms["vm1"]
    assert (vm1.server, vm1.host) == ("server2", "")


async def test_it_is_done_when_its_switch_has_confirmed_that_and_not_before(world: World) -> None:
    """The only one that has to: while it is away the VM is sent what it gets by the old port."""
    world.port(7, "host2")
    world.port(5, "host1")
    assert await world.binding() == ("edge1", 5)
    world.fake.sessions["edge1"].close("away")
    await world.fake.settle()
    id = (await told(world, target_server="host2"))["id"]
    migrations = world.controller.orchestrator.migrations
    assert migrations[id].state == "freed"
    world.now += 11
    world.controller.orchestrator.tick()
    await world.fake.settle()
    assert migrations[id].state == "freed"
    assert "edge1" in migrations[id].reason
    world.fake.connect("edge1")
    await world.fake.settle()
    assert migrations[id].state == "done"
    assert await world.binding() == ("edge1", 7)


async def test_of_a_migration_that_is_undone_the_vm_is_on_the_host_where_it_was(world: World) -> None:
    world.port(5, "host1")
    world.port(4, "host2")
    orchestrator = world.controller.orchestrator
    migration = orchestrator.start("vm1", target_server="server2")
    port = BridgePort(
        dpid=0x32, bridge="br0", name="p9", number=9, status=PortStatus.UP,
        iface_id="vm1", attached_mac=vm_mac(1),
    )  # fmt: skip
    world.controller.inventory.ports.changed([], [port])
    orchestrator.reports.on_report(migration.id, Report.TARGET_OPENED, world.now, memory_at="h:1")
    await world.fake.settle()
    assert world.net.vms["vm1"].also == {"server2"}
    assert world.net.vms["vm1"].host == "host1", "it runs there still"
    orchestrator.cancel(migration.id)
    orchestrator.reports.on_report(migration.id, Report.ROLLED_BACK, world.now)
    await world.fake.settle()
    assert orchestrator.migrations[migration.id].state.ended
    assert world.net.vms["vm1"].host == "host1"


async def test_a_controller_that_starts_in_its_middle_finds_the_vm_where_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.port(5, "host1")
    world.port(7, "host2")
    world.controller.orchestrator.start("vm1", target_server="host2", after_the_fact=True)
    stored = world.store.load()
    assert [str(one.state) for one in stored.migrations] == ["freed"]
    warned: list[str] = []
    monkeypatch.setattr(restoring.log, "warning", lambda event, **said: warned.append(str(said)))
    again = FakeNetwork(fabric(), lambda: world.now, world.store)
    again.controller.restore(stored)
    vm1 = again.net.vms["vm1"]
    assert (vm1.server, vm1.host, vm1.forwarded_from, warned) == ("server1", "host2", "", [])


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"target_server": "host1"}, "VM vm1 is at host1 already"),
        ({"target_switch": "edge1"}, "which host of it has the VM is said by that host's id"),
        ({"target_server": "host2", "source_server": "host2"}, "VM vm1 is at host1, not at host2"),
        ({"target_server": "host2", "mac": vm_mac(2)}, f"VM vm1 has MAC {vm_mac(1)}, not {vm_mac(2)}"),
        (
            {"target_server": "host2", "nics": [{"addresses": []}]},
            "VM vm1 stays at its switch: `retinue vm nic set` gives it other addresses there",
        ),
        ({"target_server": "host2", "after_the_fact": False}, "no agent of ours is there"),
    ],
)
async def test_a_message_that_does_not_fit_changes_nothing(
    world: World, message: dict[str, Any], says: str
) -> None:
    world.port(5, "host1")
    world.port(7, "host2")
    body = {"vm": "vm1", "after_the_fact": True, **message}
    status, said = await asked("POST", f"{world.url}/v1/migrations", body)  # type: ignore[attr-defined]
    assert (status, says in said["error"]) == (409, True), said
    assert await world.binding() == ("edge1", 5)
    assert not world.controller.orchestrator.migrations


async def told(world: World, **message: str) -> dict[str, Any]:
    """What is answered to a message after the fact."""
    body = {"vm": "vm1", "after_the_fact": True, **{key: value for key, value in message.items() if value}}
    status, said = await asked("POST", f"{world.url}/v1/migrations", body)  # type: ignore[attr-defined]
    assert status == 201, said
    await world.fake.settle()
    return said


async def test_it_keeps_its_port_until_there_is_one_at_its_new_host(world: World) -> None:
    world.port(5, "host1")
    assert (await goes(world, server="host2"))[0] == 200
    assert await world.binding() == ("edge1", 5)
    world.port(7, "host2")
    assert await world.binding() == ("edge1", 7)
    world.port(3, "host1")
    world.port(2, "")
    assert await world.binding() == ("edge1", 7)


async def test_it_leaves_the_switch_and_comes_back_to_a_host(world: World) -> None:
    world.port(5, "host1")
    world.port(7, "host2")
    status, said = await goes(world, server="server2")
    assert (status, said["server"], said["host"]) == (200, "server2", "")
    status, said = await goes(world, server_mac=SECOND.mac)
    assert (status, said["server"], said["host"], said["port"]) == (200, "server1", "host2", 7)


async def test_after_a_restart_it_is_where_it_was(world: World) -> None:
    assert (await goes(world, server="host2"))[0] == 200
    again = FakeNetwork(fabric(), lambda: world.now, world.store)
    again.controller.restore(world.store.load())
    assert (again.net.vms["vm1"].server, again.net.vms["vm1"].host) == ("server1", "host2")
    assert again.net.servers["server1"].hosts == (FIRST, SECOND)


async def test_where_the_files_server_counts_again_no_vm_of_its_hosts_is_lost(world: World) -> None:
    """As of one that is taken from its server while the VM migrates: it is on none that is known."""
    stored = world.store.load()
    stored.servers.clear()  # What was said of server1 by request fits no longer: the file's has no hosts.
    again = FakeNetwork(fabric(), lambda: world.now, world.store)
    again.controller.restore(stored)
    assert (again.net.vms["vm1"].server, again.net.vms["vm1"].host) == ("server1", "")


async def test_no_agent_of_ours_brings_a_vm_to_a_host(world: World) -> None:
    with pytest.raises(MigrationError, match="host2 is a host at the switch of server server1"):
        world.controller.orchestrator.start("vm1", target_server="host2")


MANY = tuple(Host(f"h{n}", f"02:00:00:01:00:{n:02x}") for n in range(129))


@pytest.mark.parametrize(
    ("server", "hosts", "said"),
    [
        ("server1", (SECOND,), "VM vm1 is on its host host1"),
        ("server1", (FIRST, replace(SECOND, mac=FIRST.mac)), f"MAC {FIRST.mac} is given twice"),
        ("server1", (FIRST, replace(FIRST, mac=SECOND.mac)), "a server or host has that id already"),
        ("server1", (FIRST, Host("server2", SECOND.mac)), "a server or host has that id already"),
        ("server2", (Host("host9", FIRST.mac),), "already belongs to server server1"),
        ("server2", (Host("host1", "02:00:00:00:77:09"),), "a server or host has that id already"),
        ("server2", (Host("host9", vm_mac(1)),), "belongs to VM vm1"),
        ("server2", MANY, "give it 128 at the most"),
        ("dhcp", (Host("host9", "02:00:00:00:77:09"),), "hosts have their ports at an edge switch"),
    ],
)
def test_what_cannot_be_a_host_is_rejected(
    world: World, server: str, hosts: tuple[Host, ...], said: str
) -> None:
    known = world.net.servers[server]
    with pytest.raises(ModelError, match=said):
        world.net.put_server(replace(known, hosts=hosts))
    assert world.net.servers[server] == known


def test_a_hosts_mac_and_id_are_nobody_elses(world: World) -> None:
    net = world.net
    with pytest.raises(ModelError, match="belongs to server server1"):
        net.put_vm(VM.with_one_nic("vm9", FIRST.mac, "server2"))
    with pytest.raises(ModelError, match="server server2 has no host host1"):
        net.put_vm(replace(VM.with_one_nic("vm9", vm_mac(9), "server2"), host="host1"))
    with pytest.raises(ModelError, match="already belongs to server server1"):
        net.put_server(replace(net.servers["server2"], mac=SECOND.mac))
    with pytest.raises(ModelError, match="a host of server server1 has that id"):
        net.put_server(
            replace(net.servers["server2"], id="host2", mac="02:00:00:00:77:09", edge="", address=None)
        )
