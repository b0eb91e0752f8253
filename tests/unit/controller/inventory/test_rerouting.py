"""A VM's server told anew by its physical MAC, ahead of its migration; and a server's own MAC changed."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address

import aiohttp
import pytest

from retinue.controller.api.server import Api
from retinue.controller.context import BACK_WITHIN
from retinue.controller.errors import RequestError
from retinue.controller.inventory.settings import VMChanges
from retinue.core.model import VM, ModelError, Peer, PortStatus
from retinue.core.packets import ARP, arp_request, parse, parse_arp
from retinue.core.pipeline.text import actions_text, match_text
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import GATEWAY, GATEWAY_MAC, fabric, vm_ip, vm_mac, vm_port
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork

IP = vm_ip(1)


class World:
    """vm1, with a static address, runs at server1, which has no agent of ours; nor has server2."""

    def __init__(self) -> None:
        self.store, self.now = MemoryStore(), 1e6
        self.fake = FakeNetwork(fabric(), lambda: self.now, self.store)
        self.controller, self.net = self.fake.controller, self.fake.net
        self.api = Api(self.controller, dict)

    async def start(self) -> None:
        await self.fake.start()
        self.controller.inventory.register_vms(
            [VM.with_one_nic("vm1", vm_mac(1), "server1", addresses=(IP,))]
        )
        self.port_at(1)
        await self.fake.settle()

    def port_at(self, edge: int) -> None:
        port = BridgePort(
            dpid=0x30 + edge, bridge="br0", name="tap1", number=vm_port(1), status=PortStatus.UP,
            iface_id="vm1", attached_mac=vm_mac(1),
        )  # fmt: skip
        self.controller.inventory.ports.changed([], [port])

    def entries(self, switch: str, of: str) -> list[str]:
        """Entries of a switch in which this address, or MAC, stands."""
        flows = self.fake.fabric[switch].flows.values()
        lines = [f"{match_text(flow.match)} -> {actions_text(flow)}" for flow in flows]
        return [line for line in lines if of in line]

    def mac_of(self, server: str) -> str:
        return self.net.servers[server].mac

    @property
    def applied(self) -> dict[str, int]:
        return {name: len(session.applied) for name, session in self.fake.sessions.items()}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    await made.start()
    made.now += BACK_WITHIN
    yield made
    await made.fake.stop()


@pytest.fixture
async def url(world: World) -> AsyncIterator[str]:
    port = await world.api.start("127.0.0.1", 0)
    yield f"http://127.0.0.1:{port}"
    await world.api.stop()


async def asked(method: str, url: str, body: object) -> tuple[int, dict[str, object]]:
    async with aiohttp.ClientSession() as http, http.request(method, url, json=body) as answer:
        return answer.status, await answer.json()


def at(world: World, server: str, leaf: str, edge: str) -> None:
    """The VM's routes lead to this server, by its MAC, and nothing of it is anywhere else."""
    mac = world.mac_of(server)
    for spine in ("spine1", "spine2"):
        (route,) = [line for line in world.entries(spine, str(IP)) if "->" in line]
        assert mac in route, (spine, route)
    for switch in world.net.switches:
        if switch.startswith("leaf"):
            lines = world.entries(switch, str(IP))
            assert bool(lines) is (switch == leaf), (switch, lines)
            assert all(mac in line for line in lines)
        elif switch.startswith("edge"):
            assert bool(world.entries(switch, str(IP))) is (switch == edge), switch


@pytest.mark.parametrize("whole", [False, True])
async def test_the_new_route_is_set_and_the_old_one_deleted_before_the_vm_migrates(
    world: World, url: str, whole: bool
) -> None:
    """US 9,313,088, steps S201 to S205: told by that field alone, or all anew."""
    at(world, "server1", "leaf1", "edge1")
    new = {"server_mac": world.mac_of("server2")}
    if whole:
        body = {"id": "vm1", "mac": vm_mac(1), "addresses": [str(IP)], **new}
        status, _ = await asked("POST", f"{url}/v1/vms", body)
    else:
        status, _ = await asked("PATCH", f"{url}/v1/vms/vm1", new)
    assert status == 200
    await world.fake.settle()
    assert world.net.vms["vm1"].server == "server2"
    at(world, "server2", "leaf2", "")
    assert [vm.server for vm in world.store.load().vms] == ["server2"]

    world.port_at(2)
    await world.fake.settle()
    at(world, "server2", "leaf2", "edge2")
    world.fake.heard.clear()
    gateway = IPv4Address(GATEWAY)
    question = arp_request(vm_mac(1), IP, gateway)
    world.fake.send("edge2", vm_port(1), question)
    await world.fake.settle()
    answers: list[ARP] = [
        parse_arp(parse(frame).payload) for switch, _, frame in world.fake.heard if switch == "edge2"
    ]
    assert [(one.spa, one.sha) for one in answers] == [(gateway, GATEWAY_MAC)]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"server_mac": "02:00:00:00:77:77"}, "no server has MAC 02:00:00:00:77:77"),
        ({"server_mac": "nonsense"}, "nonsense"),
        ({"server": "server1", "server_mac": "SERVER2"}, "is the MAC of server server2, not of server1"),
    ],
)
async def test_what_is_no_servers_mac_changes_nothing(
    world: World, url: str, body: dict[str, str], said: str
) -> None:
    body = {key: world.mac_of("server2") if value == "SERVER2" else value for key, value in body.items()}
    before = world.applied
    status, answer = await asked("PATCH", f"{url}/v1/vms/vm1", body)
    assert status in (400, 409) and said in str(answer)
    status, answer = await asked("POST", f"{url}/v1/vms", {"id": "vm9", "mac": vm_mac(9), **body})
    assert status in (400, 409) and said in str(answer)
    assert (world.net.vms["vm1"].server, world.applied) == ("server1", before)


async def test_a_vm_is_registered_by_its_servers_mac(world: World, url: str) -> None:
    body = {"id": "vm9", "mac": vm_mac(9), "server_mac": world.mac_of("server2").upper()}
    status, _ = await asked("POST", f"{url}/v1/vms", body)
    assert (status, world.net.vms["vm9"].server) == (201, "server2")
    status, answer = await asked("POST", f"{url}/v1/vms", {"id": "vm8", "mac": vm_mac(8)})
    assert status in (400, 409) and "say its server" in str(answer)


@pytest.mark.parametrize("server", ["server1", "server2"])
async def test_where_an_agent_of_ours_runs_vms_they_migrate(world: World, url: str, server: str) -> None:
    with world.controller.context.agents.listening(server):
        status, answer = await asked("PATCH", f"{url}/v1/vms/vm1", {"server_mac": world.mac_of("server2")})
        assert status == 409
        assert f"server {server} has an agent of ours; `retinue move start vm1 --to server2`" in str(answer)
    status, _ = await asked("PATCH", f"{url}/v1/vms/vm1", {"server_mac": world.mac_of("server2")})
    assert status == 409, "an agent that is away will be back"
    assert world.net.vms["vm1"].server == "server1"


@pytest.mark.parametrize("whole", [False, True])
async def test_until_agents_have_had_the_time_to_come_back_nobody_is_believed(
    world: World, url: str, whole: bool
) -> None:
    """A manager says again what it said before a restart; the VM's agent is on its way back."""
    new = {"server_mac": world.mac_of("server2")}
    given = {"id": "vm1", "mac": vm_mac(1), "addresses": [str(IP)], **new}
    method, path, body = ("POST", "vms", given) if whole else ("PATCH", "vms/vm1", new)
    world.controller.context.began = world.now
    world.now += BACK_WITHIN - 0.1
    status, answer = await asked(method, f"{url}/v1/{path}", body)
    assert (status, answer["code"]) == (409, "party_away")
    assert "whether server1 or server2 has an agent of ours is not known yet" in str(answer["error"])
    with world.controller.context.agents.listening("server1"):
        world.now += 0.1
        status, answer = await asked(method, f"{url}/v1/{path}", body)
        assert (status, answer["code"]) == (409, "conflict")
    assert world.net.vms["vm1"].server == "server1"


async def test_an_agent_that_stays_away_after_a_restart_is_known_to_be_one(world: World) -> None:
    """However long after: what is known is in the database. It ends by the operator's word."""
    with world.controller.context.agents.listening("server1"):
        pass
    again = FakeNetwork(fabric(), lambda: world.now, world.store)
    again.controller.restore(world.store.load())
    await again.controller.start()
    api = Api(again.controller, dict)
    url = f"http://127.0.0.1:{await api.start('127.0.0.1', 0)}"
    inventory, agents = again.controller.inventory, again.controller.context.agents
    for seconds in (0.0, BACK_WITHIN, 1000.0):
        world.now += seconds
        assert agents.is_away("server1") is bool(seconds), "at first it is on its way"
        with pytest.raises(RequestError, match="server server1 has an agent of ours"):
            await inventory.settings.change("vm1", VMChanges(server="server2"))
    with agents.listening("server1"), pytest.raises(RequestError, match="stop it there first"):
        inventory.forget_agent("server1")
    said = await asked("DELETE", f"{url}/v1/servers/server1/agent", None)
    assert said == (200, {"server": "server1", "agent": "none"})
    assert not agents.is_away("server1")
    assert world.store.load().with_agent == []
    await inventory.settings.change("vm1", VMChanges(server="server2"))
    assert again.net.vms["vm1"].server == "server2"
    with pytest.raises(RequestError, match="server9"):
        inventory.forget_agent("server9")
    await api.stop()
    await again.stop()


async def test_between_domains_a_vm_goes_by_no_managers_word(world: World, url: str) -> None:
    peer = Peer("west", "server3", "br0-west", ())
    world.net.put_peer(peer)
    said = "server server3 is the gateway to domain west"
    status, answer = await asked("PATCH", f"{url}/v1/vms/vm1", {"server": "server3"})
    assert (status, answer["code"]) == (409, "not_a_target") and said in str(answer["error"])

    world.net.put_vm(replace(world.net.vms["vm1"], server="server3"))
    status, answer = await asked("PATCH", f"{url}/v1/vms/vm1", {"server": "server2"})
    assert status == 409 and "VM vm1 is in domain west" in str(answer["error"])

    world.net.put_vm(replace(world.net.vms["vm1"], server="server1", home="west"))
    status, answer = await asked("PATCH", f"{url}/v1/vms/vm1", {"server": "server2"})
    assert (status, answer["code"]) == (409, "not_a_target")
    assert "VM vm1 is a guest of domain west" in str(answer["error"])
    assert world.net.vms["vm1"].server == "server1"


@pytest.mark.parametrize("word", ["fenced", "drained"])
async def test_a_server_that_takes_no_vm_gets_none(world: World, url: str, word: str) -> None:
    getattr(world.net, word).add("server2")
    status, answer = await asked("PATCH", f"{url}/v1/vms/vm1", {"server_mac": world.mac_of("server2")})
    assert status == 409 and f"server server2 is {word}" in str(answer)


async def test_a_servers_changed_mac_reroutes_its_vms(world: World) -> None:
    """Another network card at the same leaf port: entries to the old MAC are gone."""
    old, new = world.mac_of("server1"), "02:00:00:00:77:01"
    assert any(world.entries(switch, old) for switch in world.net.switches)
    await world.controller.inventory.put_servers([replace(world.net.servers["server1"], mac=new)])
    await world.fake.settle()
    for switch in world.net.switches:
        assert world.entries(switch, old) == [], switch
    at(world, "server1", "leaf1", "edge1")
    taken = replace(world.net.servers["server1"], mac=world.mac_of("server2"))
    with pytest.raises(ModelError):
        await world.controller.inventory.put_servers([taken])
    at(world, "server1", "leaf1", "edge1")
