"""Room booked on a server by REST: counted by placement, ended in time, kept over a restart."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from retinue.controller.api.access import Access
from retinue.controller.api.server import Api
from retinue.controller.mobility import bookings
from retinue.core.migration import MigrationState
from retinue.core.model import VM
from retinue.core.placement import Entity, EntityKind, Presence, Wish
from retinue.core.placement.bookings import Booking
from retinue.protocol.migrations import Report
from retinue.protocol.mobility import ServerReport, VMSize
from retinue.security.tokens import Tokens
from support.fabric.networks import add_vm, fabric, vm_mac
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork
from support.recent_events import recent


class Domain:
    def __init__(self, store: MemoryStore | None = None) -> None:
        self.now = 1000.0
        self.store = store or MemoryStore()
        self.fake = FakeNetwork(fabric(), clock=lambda: self.now, store=self.store)
        self.controller, self.net = self.fake.controller, self.fake.net
        self.api = Api(self.controller, dict)
        self.url = ""

    async def start(self) -> None:
        await self.fake.start()
        self.url = f"http://127.0.0.1:{await self.api.start('127.0.0.1', 0)}/v1"

    async def stop(self) -> None:
        await self.api.stop()
        await self.fake.stop()

    async def post(self, path: str, body: object, agent: int = 0) -> tuple[int, dict[str, Any]]:
        shown = {"Authorization": f"Bearer {str(agent) * 43}"} if agent else {}
        async with (
            aiohttp.ClientSession(headers=shown) as http,
            http.post(f"{self.url}/{path}", json=body) as answer,
        ):
            return answer.status, await answer.json()

    async def booked(self) -> list[tuple[str, str]]:
        async with aiohttp.ClientSession() as http, http.get(f"{self.url}/bookings") as answer:
            return [(row["vm"], row["server"]) for row in (await answer.json())["bookings"]]

    def told(self) -> list[tuple[str, str, str]]:
        found = [e for e in recent(self.controller.events, "", 1000) if e.type.startswith("mobility.book")]
        return [(e.type.split(".")[1], e.data["vm"], e.data.get("reason", "")) for e in found]

    def promised(self, server: str, vm: str = "vm1") -> tuple[int, int]:
        add = "vm1" not in self.net.vms
        if add:
            add_vm(self.net, 1, at=1)
        state = self.controller.resources.snapshot(vm, Wish(), {server: Presence.ANSWERED}).servers
        (found,) = (one for one in state if one.server == server)
        return found.promised_mib, found.promised_cpus


@pytest.fixture
async def domain() -> AsyncIterator[Domain]:
    made = Domain()
    await made.start()
    yield made
    await made.stop()


WEB = {"vm": "web", "memory_mib": 512, "cpus": 2, "seconds": 60}


async def test_room_is_booked_counted_and_released(domain: Domain) -> None:
    before = domain.promised("server2")
    status, answer = await domain.post("servers/server2/bookings", WEB)
    assert (status, answer) == (
        201, {"vm": "web", "server": "server2", "memory_mib": 512, "cpus": 2, "until": 1060.0},
    )  # fmt: skip
    assert domain.promised("server2") == (before[0] + 512, before[1] + 2)
    assert domain.promised("server3") == (0, 0)
    assert await domain.booked() == [("web", "server2")]
    status, answer = await domain.post("servers/server3/releases", {"vm": "web"})
    assert (status, answer["code"]) == (409, "unknown_booking")
    status, _ = await domain.post("servers/server2/releases", {"vm": "web"})
    assert status == 200 and domain.promised("server2") == before
    assert domain.told() == [("booked", "web", ""), ("booking_ended", "web", "released")]


async def test_one_without_a_vm_ends_after_its_time(domain: Domain) -> None:
    await domain.post("servers/server2/bookings", WEB)
    domain.now += 59.9
    domain.controller.bookings.look()
    assert await domain.booked() == [("web", "server2")]
    domain.now += 0.1
    domain.controller.bookings.look()
    assert await domain.booked() == []
    assert domain.told()[-1] == ("booking_ended", "web", "timed out")


async def test_it_ends_when_its_vm_is_there(domain: Domain) -> None:
    await domain.post("servers/server2/bookings", WEB)
    domain.controller.inventory.register_vms([VM.with_one_nic("web", vm_mac(9), "server1")])
    domain.controller.bookings.look()
    assert await domain.booked() == [("web", "server2")], "it is elsewhere"
    await domain.controller.inventory.remove_vm("web")
    domain.controller.inventory.register_vms([VM.with_one_nic("web", vm_mac(9), "server2")])
    domain.controller.bookings.look()
    assert domain.told()[-1] == ("booking_ended", "web", "arrived")
    status, answer = await domain.post("servers/server2/bookings", WEB)
    assert status == 409 and "VM web is at server2 already" in answer["error"]


async def test_a_vm_has_one_booking(domain: Domain) -> None:
    await domain.post("servers/server2/bookings", WEB)
    await domain.post("servers/server3/bookings", WEB)
    assert await domain.booked() == [("web", "server3")]
    assert [why for _, _, why in domain.told()] == ["", "replaced", ""]


@pytest.fixture
async def agents(tmp_path: Path) -> AsyncIterator[Domain]:
    """Agents show tokens: "1" * 43 is that of server1's, and so on. Who shows none is a manager."""
    file = tmp_path / "tokens.toml"
    file.touch(0o600)
    entry = '[[token]]\nname = "agent{0}"\nrole = "agent"\nservers = ["server{0}"]\ntoken = "{1}"\n'
    file.write_text("".join(entry.format(n, str(n) * 43) for n in (1, 2, 3)))
    made = Domain()
    made.api = Api(made.controller, dict, Access(made.controller, Tokens(file)))
    await made.start()
    yield made
    await made.stop()


async def test_an_agent_replaces_only_what_is_booked_at_its_own_server(agents: Domain) -> None:
    assert (await agents.post("servers/server2/bookings", WEB, agent=2))[0] == 201
    status, answer = await agents.post("servers/server3/bookings", WEB, agent=3)
    assert (status, answer["code"]) == (409, "conflict")
    assert "room for VM web is booked on server2, which is not for agent server3 to end" in answer["error"]
    assert await agents.booked() == [("web", "server2")]
    assert agents.told() == [("booked", "web", "")]
    more = {**WEB, "memory_mib": 1024}
    assert (await agents.post("servers/server2/bookings", more, agent=2))[0] == 201
    assert (await agents.post("servers/server3/bookings", WEB))[0] == 201, "a manager may"
    assert await agents.booked() == [("web", "server3")]


async def test_one_server_cannot_have_all_bookings(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bookings, "MOST_BOOKINGS_OF_A_SERVER", 2)
    for vm in ("a", "b"):
        assert (await domain.post("servers/server2/bookings", {**WEB, "vm": vm}))[0] == 201
    status, answer = await domain.post("servers/server2/bookings", WEB)
    assert status == 409 and "more than 2 bookings of server2 cannot be kept" in answer["error"]
    assert (await domain.post("servers/server3/bookings", WEB))[0] == 201
    status, answer = await domain.post("servers/server2/bookings", WEB)
    assert status == 409, "nor by one that was elsewhere"
    assert (await domain.post("servers/server2/bookings", {**WEB, "vm": "b"}))[0] == 201, "in its own place"
    assert await domain.booked() == [("a", "server2"), ("b", "server2"), ("web", "server3")]


async def test_it_outlives_the_controller(domain: Domain) -> None:
    await domain.post("servers/server2/bookings", WEB)
    again = Domain(domain.store)
    again.controller.restore(domain.store.load())
    assert [one.vm for one in again.controller.context.state.bookings.values()] == ["web"]
    again.now += 61
    again.controller.bookings.look()
    assert again.store.load().bookings == []


@pytest.mark.parametrize(
    ("server", "body", "status", "said"),
    [
        ("server9", WEB, 409, "there is no server server9"),
        ("dhcp", WEB, 409, "server dhcp takes no VM"),
        ("server2", {**WEB, "vm": "a/b"}, 409, "cannot be a VM's id"),
        ("server2", {**WEB, "seconds": 0}, 400, "seconds"),
        ("server2", {**WEB, "memory_mib": -1}, 400, "memory_mib"),
        ("server2", {**WEB, "colour": 1}, 400, "colour"),
    ],
)
async def test_what_cannot_be_books_nothing(
    domain: Domain, server: str, body: dict[str, object], status: int, said: str
) -> None:
    got, answer = await domain.post(f"servers/{server}/bookings", body)
    assert (got, said in str(answer["error"])) == (status, True), answer
    assert await domain.booked() == [] and domain.told() == []


@pytest.mark.parametrize("word", ["fenced", "drained"])
async def test_nothing_is_booked_on_a_server_that_takes_no_vm(domain: Domain, word: str) -> None:
    getattr(domain.net, word).add("server2")
    assert (await domain.post("servers/server2/bookings", WEB))[0] == 409


async def test_a_server_that_is_booked_up_is_no_target(domain: Domain) -> None:
    """The VM goes where there is room: the booking counts as if the other were there."""
    for n in (1, 2, 3):
        domain.controller.mobility.on_report(f"server{n}", ServerReport(cpus=8, memory_mib=1024))
    await domain.post("servers/server2/bookings", {**WEB, "memory_mib": 1024})
    assert domain.promised("server2")[0] == 1024
    domain.now += 61
    domain.controller.mobility.before_deciding()
    assert domain.promised("server2")[0] == 0


async def test_a_decision_looks_at_all_bookings_once(domain: Domain) -> None:
    """Not once for each server: of thousands of both nobody else would have a turn for long."""
    looks = 0

    class Watched(dict[str, Booking]):
        def values(self) -> Any:
            nonlocal looks
            looks += 1
            return super().values()

    booked = domain.controller.bookings.book("web", "server2", 512, 2, 60)
    domain.controller.context.state.bookings = Watched(web=booked)
    assert domain.promised("server2") == (512, 2)
    assert looks == 1


async def undone(domain: Domain, id: str) -> None:
    orchestrator = domain.controller.orchestrator
    orchestrator.cancel(id)
    for report in (Report.ROLLED_BACK, Report.TARGET_CLOSED):
        if not orchestrator.migrations[id].state.ended:
            orchestrator.reports.on_report(id, report, domain.now)
            await domain.fake.settle()
    assert orchestrator.migrations[id].state is MigrationState.UNDONE


async def test_a_migration_books_as_anybody_does_and_counts_once(domain: Domain) -> None:
    """Its booking is there until its VM is, and is not counted beside the VM that is on its way."""
    add_vm(domain.net, 1, at=1)
    size = ServerReport(cpus=8, memory_mib=8192, vms=[VMSize("vm1", 1024, 2)])
    domain.controller.mobility.on_report("server1", size)
    await domain.controller.context.install(domain.net.everything())
    migration = domain.controller.orchestrator.start("vm1", target_server="server2")
    assert await domain.booked() == [("vm1", "server2")]
    event = recent(domain.controller.events, "mobility.booked", 10)[-1].data
    assert (event["memory_mib"], event["cpus"]) == (1024, 2)
    assert domain.promised("server2", "vm1") == (0, 0), "to the VM itself nothing stands in the way"
    add_vm(domain.net, 2, at=1)
    assert domain.promised("server2", "vm2") == (1024, 2)
    await undone(domain, migration.id)
    assert domain.told() == [("booked", "vm1", ""), ("booking_ended", "vm1", "released")]
    assert domain.promised("server2", "vm2") == (0, 0)


@pytest.mark.parametrize("server", ["server2", "server3"])
async def test_what_was_booked_before_is_not_the_migrations_to_end(domain: Domain, server: str) -> None:
    """At its target or elsewhere: whoever booked it still has it when the migration is undone."""
    add_vm(domain.net, 1, at=1)
    await domain.controller.context.install(domain.net.everything())
    booked = domain.controller.bookings.book("vm1", server, 4096, 4, 600)
    migration = domain.controller.orchestrator.start("vm1", target_server="server2")
    await undone(domain, migration.id)
    assert domain.controller.context.state.bookings == {"vm1": booked}


async def test_for_a_client_that_roams_nothing_is_booked(domain: Domain) -> None:
    """It takes no room of the attachment point to which it comes."""
    domain.controller.entities.register([Entity("vm1", EntityKind.CLIENT)])
    add_vm(domain.net, 1, at=1)
    await domain.controller.context.install(domain.net.everything())
    domain.controller.orchestrator.start("vm1", target_server="server2", under_way=True)
    assert (await domain.booked(), domain.told()) == ([], [])


async def test_what_is_booked_anew_meanwhile_is_not_the_migrations_to_end(domain: Domain) -> None:
    add_vm(domain.net, 1, at=1)
    await domain.controller.context.install(domain.net.everything())
    migration = domain.controller.orchestrator.start("vm1", target_server="server2")
    domain.controller.bookings.book("vm1", "server3", 512, 1, 60)
    await undone(domain, migration.id)
    assert await domain.booked() == [("vm1", "server3")]
