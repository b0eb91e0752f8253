"""Agents and controller over HTTP: reports, matches, a hypervisor's own wish, and who may say what."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retinue.agent.main import sizes, sizes_of_others
from retinue.agent.mobility import MobilityAgent
from retinue.controller.api.access import Access
from retinue.controller.api.server import Api
from retinue.core.placement import Entity, EntityKind, PressureRule, Profile
from retinue.host.load import Load
from retinue.protocol.client import ControllerClient
from retinue.protocol.errors import RejectedError
from retinue.protocol.events import ControllerEvent
from retinue.protocol.mobility import ServerReport, VMSize
from retinue.protocol.routes import Route
from retinue.security.credentials import Credentials
from retinue.security.tokens import Tokens
from support.agents.world import TABLE, VM, bench_up
from support.fabric.networks import add_vm, fabric
from support.fakes.session import FakeNetwork
from support.recent_events import recent

SERVERS = ("server1", "server2", "server3")


async def until(so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def token(who: str) -> str:
    return f"the token of {who} alone"


class Site:
    """A controller, and the agent of each server as far as it speaks of mobility."""

    def __init__(self, fake: FakeNetwork, url: str) -> None:
        self.fake, self.url, self.now = fake, url, 0.0
        self.loads = {server: Load(8, 8192, 8000, 9000, 0, 0, 1000, 0, 0, 0) for server in SERVERS}
        self.clients = {server: self.client(server) for server in SERVERS}
        rule = PressureRule(cpu=5000, seconds=60)
        self.agents = {
            server: MobilityAgent(
                server, self.clients[server], lambda server=server: self.loads[server],  # type: ignore[misc]
                lambda server=server: self.sizes(server), rule, lambda: self.now,  # type: ignore[misc]
            )
            for server in SERVERS
        }  # fmt: skip
        self.following: list[asyncio.Task[None]] = []

    def client(self, who: str) -> ControllerClient:
        return ControllerClient(self.url, Credentials(token=token(who)), agent_of=who)

    def sizes(self, server: str) -> list[VMSize]:
        return [
            VMSize(vm, 1024) for vm in sorted(self.fake.net.vms) if self.fake.net.vms[vm].server == server
        ]

    async def follow(self) -> None:
        """Returns when all agents listen."""
        self.following = [asyncio.create_task(self._follow(server)) for server in SERVERS]
        listens = self.fake.controller.context.agents.listens
        await until(lambda: all(map(listens, SERVERS)))

    async def _follow(self, server: str) -> None:
        async for event in self.clients[server].events(None):
            if event.type == "mobility.match":
                self.agents[server].on_match(event)

    def told(self, type: str) -> list[dict[str, Any]]:
        return [event.data for event in recent(self.fake.controller.events, type, 1000)]

    async def close(self) -> None:
        for task in self.following:
            task.cancel()
        await asyncio.gather(*self.following, return_exceptions=True)
        for server in SERVERS:
            await self.agents[server].close()
            await self.clients[server].close()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    fake = FakeNetwork(fabric(), clock=lambda: 1000.0)
    await fake.start()
    for vm, at in ((1, 1), (2, 1), (3, 3)):
        add_vm(fake.net, vm, at=at)
    await fake.controller.context.install(fake.net.everything())
    file = tmp_path / "tokens.toml"
    file.touch(0o600)
    entry = '[[token]]\nname = "{0}"\nrole = "agent"\nservers = ["{0}"]\ntoken = "{1}"\n'
    file.write_text("".join(entry.format(who, token(who)) for who in SERVERS))
    api = Api(fake.controller, dict, Access(fake.controller, Tokens(file), open=False))
    made = Site(fake, f"http://127.0.0.1:{await api.start('127.0.0.1', 0)}")
    await made.follow()
    yield made
    await made.close()
    await api.stop()
    await fake.stop()


async def test_a_server_under_pressure_asks_that_its_smallest_free_vm_goes(site: Site) -> None:
    pinned = Entity("vm1", EntityKind.VM, Profile(pinned=True))
    site.fake.controller.entities.register([pinned])
    site.loads["server1"] = Load(8, 8192, 8000, 9000, 0, 0, 9000, 6000, 0, 0)
    for now in (0.0, 59.0):
        site.now = now
        await site.agents["server1"].round()
        assert site.told("mobility.request") == []
    site.now = 60.0
    await site.agents["server1"].round()
    (asked,) = site.told("mobility.request")
    assert (asked["vm"], asked["by"], asked["wish"].measured) == ("vm2", "server1", 6000)
    assert {one["server"] for one in site.told("mobility.answer")} == set(SERVERS)
    assert [query["vm"] for query in site.told("mobility.profile_query")] == ["vm1", "vm2"]
    (migration,) = site.fake.controller.orchestrator.migrations.values()
    assert (migration.vm, migration.target) == ("vm2", "server2")
    kept = site.fake.controller.mobility.explain(migration.id)[0]
    assert kept.snapshot.wish.threshold == 5000


async def test_an_agent_asks_for_its_own_vms_and_answers_for_itself(site: Site) -> None:
    """403, and nothing is changed."""
    ask, query = Route.ASK_TO_MIGRATE, Route.QUERY_PROFILE
    report = {"server": "server1", "report": {"cpus": 1}}
    tried: list[tuple[str, str, dict[str, Any], int]] = [
        ("server2", ask.path("vm1"), {"reason": "computing"}, 403),
        ("server2", ask.path("vm1"), {"reason": "computing", "server": "server1"}, 403),
        ("server1", ask.path("vm1"), {"reason": "computing", "server": "server2"}, 403),
        ("server1", ask.path("vm1"), {"reason": "operator"}, 409),
        ("server1", ask.path("vm1"), {"reason": "utilisation"}, 409),
        ("server2", query.path("vm1"), {}, 403),
        ("server2", Route.REPORT_PROFILE.path("server1"), {}, 403),
        ("server2", Route.ANSWER_MATCH.path("match-1"), report, 403),
        ("server1", Route.ANSWER_MATCH.path("match-1"), report, 409),
        ("server1", Route.START_MIGRATION.path(), {"vm": "vm1"}, 403),
        ("server1", Route.REGISTER_ENTITIES.path(), {"name": "x", "kind": "image"}, 403),
        ("server1", Route.REPORT_PROFILE.path("server1"), {"vms": [{"vm": "vm1", "memory_mib": -1}]}, 400),
    ]
    for who, path, body, status in tried:
        with pytest.raises(RejectedError) as error:
            await site.clients[who].post(path, body)
        assert error.value.status == status, (who, path, body)
    assert site.told("mobility.") == []
    assert site.fake.controller.orchestrator.migrations == {}
    assert site.fake.controller.resources.reported("server1") is None
    of_a_newer_release = {"cpus": 1, "colour": "red"}
    await site.clients["server1"].post(Route.REPORT_PROFILE.path("server1"), of_a_newer_release)
    assert site.fake.controller.resources.reported("server1") is not None


async def test_nobody_answers_in_anothers_place_while_a_match_is_on(site: Site) -> None:
    agents, said = site.agents, []
    agents["server2"].on_match = lambda event: said.append(event.match)  # type: ignore[method-assign]
    looking = asyncio.create_task(
        site.clients["server1"].post(Route.ASK_TO_MIGRATE.path("vm1"), {"reason": "memory"})
    )
    await until(lambda: bool(said))
    body = {"server": "server2", "report": {"cpus": 64, "memory_mib": 1 << 20}}
    with pytest.raises(RejectedError, match="cannot speak for server2"):
        await site.clients["server3"].post(Route.ANSWER_MATCH.path(said[0]), body)
    await site.clients["server2"].post(Route.ANSWER_MATCH.path(said[0]), body)
    with pytest.raises(RejectedError, match="would be better"):
        await looking
    assert {one["server"] for one in site.told("mobility.answer")} == set(SERVERS)


async def test_a_controller_that_is_away_is_no_trouble(site: Site) -> None:
    async with ControllerClient("http://127.0.0.1:1") as nobody:
        agent = MobilityAgent("server1", nobody, lambda: site.loads["server1"], list)
        await agent.round()
        await agent.close()


async def test_an_agent_tells_the_sizes_of_vms_that_run_there_and_were_made_by_it() -> None:
    async with bench_up() as servers:
        await servers.registered()
        await servers.after(ControllerEvent("vm.ready", vm=VM))
        given = [VMSize(VM.id, TABLE.memory_mib)]
        assert sizes(servers.source.dispatcher) == given and sizes(servers.target.dispatcher) == []
        made = servers.source.machine
        made.spec = replace(made.spec, kernel=Path(), memory_mib=384)
        assert sizes(servers.source.dispatcher) == [], "somebody else made it"
        assert sizes_of_others(servers.source.dispatcher) == [VMSize(VM.id, 384, 0)]
        made.spec = replace(made.spec, memory_mib=0)
        assert sizes_of_others(servers.source.dispatcher) == [], "nobody knows"


async def test_what_others_made_is_told_and_nobody_asks_that_it_should_go(site: Site) -> None:
    """However hard its server is pressed."""
    add_vm(site.fake.net, 7, at=1)
    theirs = MobilityAgent(
        "server1", site.clients["server1"], lambda: site.loads["server1"], list,
        PressureRule(cpu=5000, seconds=60), lambda: site.now, others=lambda: [VMSize("vm7", 96, 0)],
    )  # fmt: skip
    site.loads["server1"] = replace(site.loads["server1"], cpu_pressure=9000)
    for _ in range(3):
        await theirs.round()
        site.now += 61
    resources = site.fake.controller.resources
    assert resources.size_of("vm7") == (96, 0) and resources.runs_with("vm7") == 96
    for said, kept in ((VMSize("vm7", 96, 2), (96, 2)), (VMSize("vm7", 128, 0), (128, 2))):
        resources.on_report("server1", ServerReport(vms=[said]))
        assert resources.size_of("vm7") == kept, "its processors are known from before its agent's restart"
    assert not site.fake.controller.orchestrator.migrations
    await theirs.close()
