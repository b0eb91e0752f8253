"""Several hosts at one switch: a VM that goes from one to another changes its port, and nothing else."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from retinue.controller.api.server import Api
from retinue.controller.context import BACK_WITHIN
from retinue.controller.migrations.requests import MigrationError
from retinue.core.model import VM, Host, ModelError, PortStatus
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

    def port(self, number: int, host: str) -> None:
        """A port of vm1 at edge1 that says which host's it is."""
        port = BridgePort(
            dpid=0x31, bridge="br0", name=f"p{number}", number=number, status=PortStatus.UP,
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
