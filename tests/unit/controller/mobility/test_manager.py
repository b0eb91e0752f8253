"""From a wish to a migration: the messages in order, silent agents, and what is kept of a decision."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retinue.config_file import ConfigError
from retinue.controller.config import load
from retinue.controller.errors import RequestError
from retinue.controller.kinds import restore
from retinue.controller.migrations.requests import MigrationError
from retinue.controller.mobility.manager import MATCH_LIMIT, PLACEMENTS_KEPT, MobilityManager
from retinue.controller.state import State
from retinue.core.model import Power
from retinue.core.placement import (
    Entity,
    EntityKind,
    Metric,
    Outcome,
    Placement,
    Policy,
    Profile,
    Reason,
    Weights,
    Wish,
    decide,
)
from retinue.protocol.errors import ErrorCode
from retinue.protocol.mobility import ServerReport, VMSize
from support.fabric.networks import add_vm, fabric, vm_ip
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork
from support.recent_events import recent
from support.virtual_time import be_busy, run

PRESSED = Wish(Reason.COMPUTING, 6000, 5000, 60)


class Domain:
    """Three servers of 8 GiB; vm1 and vm2 of 1 GiB at server1, vm3 at server3; agents answer when asked."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.now = 1000.0
        self.store = store or MemoryStore()
        self.fake = FakeNetwork(fabric(), clock=lambda: self.now, store=self.store)
        self.controller = self.fake.controller
        self.net = self.fake.net
        self.reports = {f"server{n}": self.report(n) for n in (1, 2, 3)}
        self.mute: set[str] = set()
        self.backwards = False

    def report(self, number: int, **more: Any) -> ServerReport:
        here = {1: [1, 2], 2: [], 3: [3]}[number]
        vms = [VMSize(f"vm{vm}", 1024) for vm in here]
        known = {"cpus": 8, "memory_mib": 8192, "memory_free_mib": 8000, "cpu_used": 1000, "vms": vms}
        return ServerReport(**{**known, **more})

    @property
    def mobility(self) -> MobilityManager:
        return self.controller.mobility

    def told(self) -> list[str]:
        """What was said, in short: the type after its dot, and the server it is about."""
        found = recent(self.controller.events, "", 1000)
        wanted = [e for e in found if e.type.startswith("mobility.") or e.type == "migration.step"]
        return [f"{e.type.split('.')[1]} {e.data.get('server', '')}".strip() for e in wanted]

    def last(self, type: str) -> dict[str, Any]:
        return recent(self.controller.events, type, 1000)[-1].data

    async def agents(self, *servers: str) -> None:
        """Their agents follow the event stream, and answer, until cancelled."""
        async with contextlib.AsyncExitStack() as stack:
            for server in servers:
                stack.enter_context(self.controller.context.agents.listening(server))
            async for event in self.controller.events.listen(None, {"mobility.match"}):
                for server in sorted(event.data["servers"], reverse=self.backwards):
                    if server not in self.mute:
                        self.mobility.on_answer(event.data["match"], server, self.reports[server])


@contextlib.asynccontextmanager
async def domain(*servers: str, store: MemoryStore | None = None) -> AsyncIterator[Domain]:
    made = Domain(store)
    await made.fake.start()
    for vm, at in ((1, 1), (2, 1), (3, 3)):
        if f"vm{vm}" not in made.net.vms:
            add_vm(made.net, vm, at=at)
    await made.controller.context.install(made.net.everything())
    for name, report in made.reports.items():
        made.mobility.on_report(name, report)
    task = asyncio.create_task(made.agents(*servers))
    await asyncio.sleep(0)
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await made.controller.stop()


ALL = ("server1", "server2", "server3")


def test_the_messages_come_in_this_order_and_the_best_server_is_chosen() -> None:
    async def story() -> None:
        async with domain(*ALL) as d:
            profile = Profile(os="debian", version="12", clients=(str(vm_ip(3)),))
            shop = Entity("shop", EntityKind.SERVICE, Profile(served_by=("vm1",)))
            d.controller.entities.register([Entity("vm1", EntityKind.VM, profile), shop])
            assert d.mobility.profile_query("vm1", "server1")["memory_mib"] == 1024
            migration = await d.mobility.migrate("vm1", PRESSED, "server1")
            assert (migration.vm, migration.source, migration.target) == ("vm1", "server1", "server3")
            assert d.told()[:9] == [
                "profile_query", "message", "request", "match", "answer server1", "answer server2",
                "answer server3", "decision server3", "initiation server3",
            ]  # fmt: skip
            assert set(d.told()[9:]) == {"step", "booked server3"}
            asked = d.last("mobility.request")
            assert (asked["by"], asked["wish"], asked["services"]) == ("server1", PRESSED, ["shop"])
            assert (asked["profile"]["os"], asked["profile"]["memory_mib"]) == ("debian", 1024)
            assert d.last("mobility.initiation")["profile"] == asked["profile"]
            said = d.last("mobility.decision")
            assert (said["runner_up"], said["decided_by"]) == ("server2", "distance")

    run(story())


def test_who_migrates_it_himself_is_told_where_it_would_be_best() -> None:
    """The agents are asked, and the decision is told; nothing is begun, booked or kept."""

    async def story() -> None:
        async with domain(*ALL) as d:
            found = await d.mobility.choose("vm1")
            assert (found.decision.outcome, found.decision.target) == (Outcome.CHOSEN, "server2")
            assert decide(found.snapshot) == found.decision
            answers = ["answer server1", "answer server2", "answer server3"]
            assert d.told() == ["match", *answers, "decision server2"]
            assert (await d.mobility.choose("vm1", named="server3")).decision.target == "server3"
            assert (await d.mobility.choose("vm1", named="server1")).decision.target == ""
            state = d.controller.context.state
            assert not (state.placements or state.bookings or d.controller.orchestrator.migrations)
            looking = asyncio.create_task(d.mobility.choose("vm1"))
            await asyncio.sleep(0)
            with pytest.raises(MigrationError, match="a server is being looked for already for VM vm1"):
                await d.mobility.migrate("vm1", Wish())
            await looking
            assert (await d.mobility.migrate("vm1", Wish())).target == "server2"
            with pytest.raises(MigrationError, match="VM vm1 is being migrated already"):
                await d.mobility.choose("vm1")
            with pytest.raises(MigrationError, match="there is no VM vm9"):
                await d.mobility.choose("vm9")

    run(story())


def test_the_order_in_which_agents_answer_does_not_matter() -> None:
    async def story(backwards: bool) -> Placement:
        async with domain(*ALL) as d:
            d.backwards = backwards
            id = (await d.mobility.migrate("vm1", Wish())).id
            return d.mobility.explain(id)[0]

    assert run(story(False)) == run(story(True))


def test_a_decision_is_explained_by_making_it_again_also_after_a_restart() -> None:
    async def story() -> None:
        async with domain(*ALL) as d:
            id = (await d.mobility.migrate("vm1", Wish())).id
            d.reports = {name: replace_report(report) for name, report in d.reports.items()}
            for name, report in d.reports.items():
                d.mobility.on_report(name, report)
            kept, again = d.mobility.explain(id)
            assert kept.decision == again == decide(kept.snapshot)
            assert (kept.migration, kept.match, kept.by, again.target) == (
                id,
                "match-1",
                "manager",
                "server2",
            )
            state = State(fabric())
            restore(state, d.store.load())
            assert state.placements == {id: kept}

    run(story())


def replace_report(report: ServerReport) -> ServerReport:
    """Everything is otherwise now."""
    return ServerReport(cpus=1, memory_mib=1, cpu_used=10_000)


def test_a_silent_agent_costs_the_limit_once_and_gets_no_vm() -> None:
    async def story() -> None:
        async with domain(*ALL) as d:
            d.mute = {"server2"}
            loop = asyncio.get_running_loop()
            began = loop.time()
            assert (await d.mobility.migrate("vm1", Wish())).target == "server3"
            assert loop.time() - began == MATCH_LIMIT
            assert d.last("mobility.silent") == {"match": "match-1", "server": "server2", "waited_ms": 2000}
            began = loop.time()
            assert (await d.mobility.migrate("vm2", Wish())).target == "server3"
            assert loop.time() == began
            d.mobility.on_report("server2", d.reports["server2"])  # That is no answer.
            with pytest.raises(RequestError, match="there is no match-2"):
                d.mobility.on_answer("match-2", "server2", d.reports["server2"])  # Late, but there.
            began = loop.time()
            assert (await d.mobility.migrate("vm3", Wish())).target == "server1"
            assert loop.time() - began == MATCH_LIMIT

    run(story())


def test_who_answers_in_time_is_not_silent_where_the_controller_is_late_to_read() -> None:
    """Thousands answer at once: all that time it has something else to do than to read the last of them."""

    async def story() -> None:
        async with domain(*ALL) as d:
            d.mute = set(ALL)
            matching = asyncio.create_task(d.mobility.migrate("vm1", Wish()))
            await asyncio.sleep(0)
            be_busy(5 * MATCH_LIMIT)
            for server in ALL:
                d.mobility.on_answer("match-1", server, d.reports[server])
                await asyncio.sleep(0.1)
            assert (await matching).target == "server2"
            assert "silent" not in " ".join(d.told())

    run(story())


def test_an_agent_that_has_answered_again_is_waited_for_again() -> None:
    async def story() -> None:
        async with domain(*ALL) as d:
            loop, took = asyncio.get_running_loop(), []
            for vm, mute in (("vm1", {"server2"}), ("vm2", set[str]()), ("vm3", {"server2"})):
                d.mute, began = mute, loop.time()
                await d.mobility.migrate(vm, Wish())
                took.append(loop.time() - began)
            assert took == [MATCH_LIMIT, 0, MATCH_LIMIT]

    run(story())


def test_servers_without_an_agent_are_judged_by_what_is_known_and_those_that_went_away_get_none() -> None:
    async def story() -> None:
        async with domain("server1") as d:
            with d.controller.context.agents.listening("server2"):
                pass
            assert (await d.mobility.migrate("vm1", Wish())).target == "server3"
            refused = d.mobility.explain("migration-1")[0].decision.refused
            assert {one.server: str(one.refused[0].filter) for one in refused} == {
                "server1": "already there", "server2": "away",
            }  # fmt: skip

    run(story())


def test_two_vms_are_not_given_the_same_room() -> None:
    async def story() -> None:
        async with domain(*ALL) as d:
            for name in ("server2", "server3"):
                d.reports[name] = d.report(int(name[-1]), memory_mib=2047, memory_free_mib=2047)
            both = await asyncio.gather(
                *(d.mobility.migrate(vm, Wish()) for vm in ("vm1", "vm2")), return_exceptions=True
            )
            targets = [one.target for one in both if not isinstance(one, BaseException)]
            assert targets == ["server2"]
            (refused,) = (one for one in both if isinstance(one, MigrationError))
            assert refused.code is ErrorCode.NO_MATCH
            assert "server2: 1023 MiB of memory that are not promised, and 1024 are needed" in str(refused)
            assert d.told()[-1] == "unmatched"

    run(story())


def test_a_vm_that_is_not_worth_a_move_stays_but_the_manager_has_its_way() -> None:
    async def story() -> None:
        async with domain(*ALL) as d:
            d.reports["server1"] = d.report(1, cpu_used=0)
            with pytest.raises(MigrationError, match="would be better than server1 by") as error:
                await d.mobility.migrate("vm1", PRESSED, "server1")
            assert error.value.code is ErrorCode.NO_MATCH
            assert d.told()[-2:] == ["decision", "unmatched"]
            assert d.controller.orchestrator.migrations == {}
            assert (await d.mobility.migrate("vm1", Wish())).target == "server2"

    run(story())


BAD: dict[str, tuple[dict[str, Any], Callable[[Domain], None], str, ErrorCode]] = {
    "no VM": ({"vm": "vm9"}, lambda d: None, "there is no VM vm9", ErrorCode.UNKNOWN_VM),
    "elsewhere": (
        {"source_server": "server2"},
        lambda d: None,
        "is at server1, not",
        ErrorCode.CONTRADICTION,
    ),
    "another": ({"mac": "52:54:00:00:00:02"}, lambda d: None, "has MAC", ErrorCode.CONTRADICTION),
    "not its": ({"ip": vm_ip(2)}, lambda d: None, "does not hold", ErrorCode.CONTRADICTION),
    "off": ({}, lambda d: off(d), "only one that runs", ErrorCode.NOT_RUNNING),
    "dead": ({}, lambda d: d.net.fenced.add("server1"), "server1 is fenced", ErrorCode.PARTY_AWAY),
}


def off(d: Domain) -> None:
    d.net.put_vm(replace(d.net.vms["vm1"], power=Power.OFF))


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_with_a_request_is_told_before_anybody_is_asked(what: str) -> None:
    async def story() -> None:
        more, prepare, said, code = BAD[what]
        async with domain(*ALL) as d:
            prepare(d)
            with pytest.raises(MigrationError, match=said) as error:
                await d.mobility.migrate(more.pop("vm", "vm1"), Wish(), **more)
            assert (error.value.code, d.told()) == (code, [])

    run(story())


def test_a_vm_is_looked_for_once_at_a_time() -> None:
    async def story() -> None:
        async with domain(*ALL) as d:
            d.mute = {"server2"}
            first = asyncio.create_task(d.mobility.migrate("vm1", Wish()))
            await asyncio.sleep(0)
            with pytest.raises(MigrationError, match="looked for already for VM vm1: match-1"):
                await d.mobility.migrate("vm1", Wish())
            await first
            with pytest.raises(MigrationError, match="being migrated already"):
                await d.mobility.migrate("vm1", Wish())

    run(story())


def test_answers_that_do_not_belong_are_rejected_and_change_nothing() -> None:
    async def story() -> None:
        async with domain(*ALL) as d:
            d.mute = set(ALL)
            report = d.report(2)
            looking = asyncio.create_task(d.mobility.migrate("vm1", Wish()))
            await asyncio.sleep(0)
            d.mobility.on_answer("match-1", "server2", report)
            for match, server, said in (
                ("match-1", "server2", "has answered match-1 already"),
                ("match-1", "dhcp", "was not asked"),
                ("match-9", "server3", "there is no match-9 under way"),
            ):
                with pytest.raises(RequestError, match=said):
                    d.mobility.on_answer(match, server, replace_report(report))
            assert (await looking).target == "server2"
            with pytest.raises(RequestError, match="there is no match-1 under way"):
                d.mobility.on_answer("match-1", "server3", report)

    run(story())


def test_an_agent_says_nothing_of_vms_elsewhere() -> None:
    async def story() -> None:
        async with domain(*ALL) as d:
            d.mobility.on_report("server2", ServerReport(vms=[VMSize("vm1", 1), VMSize("vm3", 1)]))
            assert d.controller.resources.size_of("vm1") == (1024, 1)
            d.controller.entities.register([Entity("vm1", EntityKind.VM, Profile(memory_mib=512))])
            assert d.controller.resources.size_of("vm1") == (512, 1)

    run(story())


def test_so_many_decisions_are_kept_and_none_of_a_migration_that_is_forgotten() -> None:
    async def story() -> None:
        async with domain(*ALL) as d:
            placement = d.mobility.explain((await d.mobility.migrate("vm1", Wish())).id)[0]
            for number in range(2, PLACEMENTS_KEPT + 5):
                migration = replace(
                    d.controller.orchestrator.migrations["migration-1"], id=f"migration-{number}"
                )
                d.controller.context.state.migrations[migration.id] = migration
                d.mobility._keep(replace(placement, match=f"match-{number}"), migration.id)
            kept = d.controller.context.state.placements
            assert next(iter(kept)) == "migration-5"
            assert len(kept) == PLACEMENTS_KEPT
            del d.controller.context.state.migrations["migration-7"]
            d.mobility._keep(placement, "migration-104")
            assert "migration-7" not in kept

    run(story())


async def test_a_plan_is_made_of_what_there_is_and_moves_nothing() -> None:
    async with domain() as d:
        found = await d.mobility.plan(Metric.MEMORY, 0)
        assert [(step.vm, step.target) for step in found.steps] == [("vm1", "server2")]
        assert found.before == {"server1": 2500, "server2": 0, "server3": 1250}
        assert d.controller.orchestrator.migrations == {}
        assert (await d.mobility.plan(Metric.MEMORY, 2500)).steps == ()


def test_a_named_target_is_judged_too_where_it_is_not_the_managers_own_wish() -> None:
    async def story() -> None:
        async with domain(*ALL) as d:
            d.reports["server2"] = d.report(2, memory_mib=512)
            wish = Wish(Reason.UTILISATION)
            with pytest.raises(MigrationError, match="512 MiB of memory"):
                await d.mobility.migrate("vm1", wish, named="server2")
            assert (await d.mobility.migrate("vm1", wish, named="server3")).target == "server3"
            decision = d.mobility.explain("migration-1")[0].decision
            assert (decision.outcome, decision.decided_by) == (Outcome.CHOSEN, "named")

    run(story())


def test_the_policy_is_the_operators(tmp_path: Path) -> None:
    file = tmp_path / "controller.toml"
    plain = 'gateway_mac = "00:00:de:ad:be:ef"\nlisten.plaintext = ["openflow", "ovsdb", "rest"]\n'
    file.write_text(plain)
    assert load(file).placement.policy() == Policy() == Domain().controller.resources.policy
    table = "memory_percent = 150\ncpu_percent = 400\nmargin = 7\nrest_seconds = 8\nweight_image = 9\n"
    file.write_text(f"{plain}[placement]\n{table}")
    assert load(file).placement.policy() == Policy(150, 400, Weights(image=9), 700, 8)
    for wrong in ("memory_percent = 0", "margin = 101", "weight_cpu = -1", "luck = 1"):
        file.write_text(f"{plain}[placement]\n{wrong}\n")
        with pytest.raises(ConfigError, match="placement"):
            load(file)
