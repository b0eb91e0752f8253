"""Mobility and resource managers that are processes of their own: what is said, and what while they are
away."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from retinue.controller.api import views
from retinue.controller.api.metrics import exposition
from retinue.controller.migrations.requests import MigrationError
from retinue.controller.mobility import manager
from retinue.controller.mobility import managers as managers_module
from retinue.controller.mobility.managers import LOOK_SECONDS, Asked, Managers
from retinue.core.limits import MOST_FAR, MOST_SERVERS_ASKED, MOST_SERVERS_FILLED
from retinue.core.migration import MigrationState as S
from retinue.core.migration.record import Far
from retinue.core.model import VM
from retinue.core.placement import (
    Entity,
    EntityKind,
    Need,
    Outcome,
    Policy,
    Presence,
    Profile,
    Reason,
    ServerState,
    Snapshot,
    Wish,
    decide,
)
from retinue.core.placement.facts import HELD, Holding, Hosted, ServerFacts
from retinue.managers import resources as resources_module
from retinue.managers.door import RefusedError
from retinue.protocol.errors import ControllerAwayError
from retinue.protocol.managers import Decided, Filled, Filling, MatchAsked, facts_said, policy_said
from retinue.protocol.mobility import ServerReport
from support.fabric.domains import gateway_of, nic, server_of
from support.fabric.managers import Beside, managers_beside
from support.fabric.two_controllers import VM_ID, TwoDomains
from support.recent_events import recent

FULL = 100
"""MiB, of which the VM has more."""


@pytest.fixture
async def beside(domains: TwoDomains) -> Beside:
    for domain in "ab":
        peers = domains.controller(domain).net.peers
        for id, peer in peers.items():
            peers[id] = replace(peer, match=True)
    return await managers_beside(domains)


async def rooms(domains: TwoDomains, **mib: int) -> None:
    """How much memory servers have, as their agents say, and the resource manager is told."""
    domains.room = {name.replace("_", "-"): size for name, size in mib.items()}
    for domain in "ab":
        for number in (1, 2):
            name = server_of(domain, number)
            room = domains.room.get(name, 8000)
            report = ServerReport(cpus=8, memory_mib=room, memory_free_mib=room, cpu_used=1000)
            domains.controller(domain).mobility.on_report(name, report)
        await managers_of(domains, domain).look()


def managers_of(domains: TwoDomains, domain: str = "a") -> Managers:
    found = domains.controller(domain).mobility.deciding.managers
    assert found is not None
    return found


def told(domains: TwoDomains, type: str) -> list[dict[str, Any]]:
    return [event.data for event in recent(domains.controller("a").events, type, 1000)]


async def test_the_mobility_manager_decides_by_what_the_resource_manager_was_told(
    domains: TwoDomains, beside: Beside
) -> None:
    """The messages of a match are the same, in the same order; and the decision is kept and explained as
    any."""
    a = domains.controller("a")
    await rooms(domains, b_server1=FULL, b_server2=FULL)
    beside.said.clear()
    migration = await a.mobility.migrate(VM_ID, Wish(), server_of("a", 1))
    assert migration.target == server_of("a", 2)
    events = [event.type for event in recent(a.events, "mobility.", 1000)]
    assert [one for one in events if one != "mobility.manager"][:7] == [
        "mobility.message", "mobility.request", "mobility.match", "mobility.answer", "mobility.answer",
        "mobility.decision", "mobility.initiation",
    ]  # fmt: skip
    assert told(domains, "mobility.decision")[-1]["by"] == "mobility"
    assert beside.said == ["fill", "decide", "match"]
    kept, again = a.mobility.explain(migration.id)
    assert kept.decision == again == decide(kept.snapshot)
    assert not domains.doors["b"].said, "no other controller was asked: the resource manager knows it"


async def test_one_resource_manager_serves_both_domains_and_the_other_confirms_its_offer(
    domains: TwoDomains, beside: Beside
) -> None:
    await rooms(domains, a_server2=FULL, b_server2=16_000)
    a, b = domains.controller("a"), domains.controller("b")
    migration = await a.mobility.migrate(VM_ID, Wish())
    assert (migration.target, migration.far) == (gateway_of("a"), Far("b", server_of("b", 2)))
    assert domains.doors["b"].said[0] == "match"
    assert told(domains, "mobility.decision")[-1]["by"] == "mobility"
    await domains.until("a", S.DONE)
    await domains.until("b", S.DONE)
    assert VM_ID in b.net.vms


async def test_a_server_that_is_called_as_another_domain_is_a_server(
    domains: TwoDomains, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mobility manager's decision for it counts, and nobody else is asked to confirm it."""
    await rooms(domains, b_server1=FULL, b_server2=FULL)
    a, deciding = domains.controller("a"), domains.controller("a").mobility.deciding
    name = server_of("a", 2)
    monkeypatch.setattr(deciding, "_of_resource_manager", lambda vm, wanted: {"b", name})
    await a.mobility.migrate(VM_ID, Wish())
    assert told(domains, "mobility.decision")[-1]["by"] == "mobility"
    assert not domains.doors["b"].said


async def test_an_offer_that_the_other_domain_does_not_confirm_is_none(
    domains: TwoDomains, beside: Beside
) -> None:
    net = domains.controller("b").net
    net.peers["a"] = replace(net.peers["a"], prefixes=())
    await rooms(domains, a_server2=4000, b_server1=16_000, b_server2=16_000)
    migration = await domains.controller("a").mobility.migrate(VM_ID, Wish())
    assert (migration.target, migration.far) == (server_of("a", 2), None)
    assert "b" in [one["domain"] for one in told(domains, "mobility.offer")], "it was asked to confirm"


async def test_servers_are_offered_only_to_domains_that_may_have_them(
    domains: TwoDomains, beside: Beside
) -> None:
    beside.resources._offers_to = {"a": [], "b": []}
    await rooms(domains, a_server2=FULL)
    with pytest.raises(MigrationError, match="no server"):
        await domains.controller("a").mobility.migrate(VM_ID, Wish())
    assert not domains.doors["b"].said


@pytest.mark.parametrize("manager", ["mobility", "resources"])
async def test_a_silent_manager_costs_its_limit_once_and_the_controller_decides(
    domains: TwoDomains, beside: Beside, manager: str
) -> None:
    beside.away = {manager}
    a = domains.controller("a")
    migration = await a.mobility.migrate(VM_ID, Wish())
    assert migration.target == server_of("a", 2)
    assert told(domains, "mobility.decision")[-1]["by"] == "controller"
    last = told(domains, "mobility.manager")[-1]
    assert (last["manager"], last["state"]) == (manager, "away")
    assert last["reason"] == f"the {manager} manager is away; the controller decides by itself"
    assert domains.doors["b"].said == ["match"], "the other domain was asked as without managers"
    shown = views.status(a, {})["managers"][manager]
    assert (shown["state"], shown["reason"]) == ("away", last["reason"])
    assert "retinue_managers_away 1.0" in exposition(a, {}).decode()
    await domains.until("a", S.DONE)
    beside.said.clear()
    await a.mobility.migrate(VM_ID, Wish())
    assert not beside.said, "nobody waits for it again"


async def test_one_that_comes_back_is_told_everything_anew(domains: TwoDomains, beside: Beside) -> None:
    """What it knew is not gone by: it has forgotten, and what it had not heard has changed."""
    managers = managers_of(domains)
    beside.start_resources_again()
    assert not beside.resources.holdings["a"].whole
    await managers.look()
    held = beside.resources.holdings["a"]
    assert set(held.servers) == {server_of("a", 1), server_of("a", 2)}
    need = held.need_of(VM_ID)
    assert need is not None and need.memory_mib == 128
    assert [one["state"] for one in told(domains, "mobility.manager")] == ["there", "there"]


async def test_what_has_not_changed_is_not_held_anew(domains: TwoDomains, beside: Beside) -> None:
    """Of thousands of VMs that would be as many objects every two seconds, to be compared in one go."""
    a, managers, other = domains.controller("a"), managers_of(domains), server_of("a", 2)
    told = dict(managers._told)
    a.mobility.on_report(other, ServerReport(cpus=5))
    await managers.look()
    assert managers._told[server_of("a", 1)] is told[server_of("a", 1)]
    assert managers._told[other].cpus == 5 == beside.resources.holdings["a"].servers[other].cpus


async def test_a_first_filling_that_comes_late_is_not_taken_for_the_one_after_it(
    domains: TwoDomains, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waited for it any more, and all was told anew; then it came after all, with what was before."""
    a, managers, lost = domains.controller("a"), managers_of(domains), list[Filling]()
    fill = managers._door.fill

    async def on_its_way(filling: Filling) -> Filled:
        lost.append(filling)
        raise ControllerAwayError("it does not answer")

    beside.start_resources_again()
    managers._forget()
    monkeypatch.setattr(managers._door, "fill", on_its_way)
    await managers.look()
    a.entities.register([Entity(VM_ID, EntityKind.VM, Profile(cpus=3))])
    monkeypatch.setattr(managers._door, "fill", fill)
    await managers.look()
    assert [one.number for one in lost] == [0]
    await fill(lost[0])
    await managers.look()
    need = beside.resources.holdings["a"].need_of(VM_ID)
    assert need is not None and need.cpus == 3


async def test_only_what_has_changed_is_told_again(domains: TwoDomains, beside: Beside) -> None:
    a, held = domains.controller("a"), beside.resources.holdings["a"]
    sent: list[list[str]] = []
    fill = beside.resources.fill

    def watched(domain: str, filling: Filling) -> Filled:
        sent.append([one.server for one in filling.servers])
        return fill(domain, filling)

    beside.resources.fill = watched  # type: ignore[method-assign]
    await managers_of(domains).look()
    assert sent == [[]], "it says that we are there"
    a.entities.register([Entity(VM_ID, EntityKind.VM, Profile(cpus=3))])
    await managers_of(domains).look()
    assert sent == [[], [server_of("a", 1)]]
    need = held.need_of(VM_ID)
    assert need is not None and need.cpus == 3


async def test_a_domain_that_is_asked_for_twice_is_looked_at_once(
    domains: TwoDomains, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of thousands of servers that takes a while, in which nobody else is answered."""
    looked: list[str] = []
    offer = Holding.offer

    def watched(holding: Holding, domain: str, need: Need) -> ServerState | None:
        looked.append(domain)
        return offer(holding, domain, need)

    await rooms(domains)
    monkeypatch.setattr(Holding, "offer", watched)
    matched = beside.resources.match("a", MatchAsked(VM_ID, domains=["b"] * MOST_FAR))
    assert (looked, len(matched.offers)) == (["b"], 1)


async def test_a_domain_that_has_not_been_heard_of_lately_is_not_offered(
    domains: TwoDomains, beside: Beside
) -> None:
    await rooms(domains, a_server2=FULL)
    beside.resources.holdings["b"].heard_at -= HELD + 1
    with pytest.raises(MigrationError, match="no server"):
        await domains.controller("a").mobility.migrate(VM_ID, Wish())


def another_profile(decided: Decided) -> Decided:
    return msgspec.structs.replace(decided, need=msgspec.structs.replace(decided.need, cpus=64))


def another_server(decided: Decided) -> Decided:
    return msgspec.structs.replace(decided, target=server_of("a", 1))


def no_server_of_ours(decided: Decided) -> Decided:
    states = [msgspec.structs.replace(one, server="elsewhere") for one in decided.servers[1:2]]
    return msgspec.structs.replace(decided, servers=states, target="elsewhere")


def a_strangers_server(decided: Decided) -> Decided:
    states = [msgspec.structs.replace(one, server="c/server1") for one in decided.servers[1:2]]
    return msgspec.structs.replace(decided, servers=states, target="c/server1", offered=["c/server1"])


def a_full_one(decided: Decided) -> Decided:
    """It says that there is room where there is none."""
    states = [msgspec.structs.replace(one, memory_mib=64_000, free_mib=64_000) for one in decided.servers]
    states = [one for one in states if not one.server.startswith("b/")]
    return msgspec.structs.replace(decided, servers=states, target=server_of("a", 2), outcome=Outcome.CHOSEN)


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (another_profile, "goes by another profile of vm-a1"),
        (another_server, "does not follow from what it goes by"),
        (no_server_of_ours, "elsewhere, which is no server of ours"),
        (a_strangers_server, "c/server1, where vm-a1 may not go"),
        (a_full_one, "a-server2, which cannot take vm-a1"),
    ],
)
async def test_an_answer_that_does_not_hold_is_not_gone_by(
    domains: TwoDomains, beside: Beside, lie: Callable[[Decided], Decided], reason: str
) -> None:
    beside.answer = lie
    await rooms(domains, **({"a_server2": FULL} if lie is a_full_one else {}))
    a = domains.controller("a")
    migration = await a.mobility.migrate(VM_ID, Wish())
    assert migration.target == (gateway_of("a") if lie is a_full_one else server_of("a", 2))
    last = told(domains, "mobility.manager")[-1]
    assert (last["manager"], last["state"]) == ("mobility", "not believed")
    assert reason in last["reason"]
    shown = views.status(a, {})["managers"]["mobility"]
    assert shown["state"] == "there"
    assert shown["trouble"].startswith("not believed: ") and reason in shown["trouble"]
    assert told(domains, "mobility.decision")[-1]["by"] == "controller"


async def test_a_mobility_manager_that_does_not_reach_the_other_says_so_at_once(
    domains: TwoDomains, beside: Beside
) -> None:
    door: Any = managers_of(domains)._door
    original = door._match

    async def cut(asked: Any) -> Any:
        beside.away = {"resources"}
        try:
            return await original(asked)
        finally:
            beside.away = set()

    door._mobility._ask = cut
    a = domains.controller("a")
    await a.mobility.migrate(VM_ID, Wish())
    await domains.until("a", S.DONE)
    last = told(domains, "mobility.manager")[-1]
    assert last["state"] == "refuses" and last["reason"].startswith("the resource manager is away")
    beside.said.clear()
    await a.mobility.migrate(VM_ID, Wish())
    assert beside.said == ["fill", "decide"], "it was silent just now, and is not waited for again"


async def test_one_that_only_says_that_it_is_there_is_asked_ever_less_often(
    domains: TwoDomains, beside: Beside
) -> None:
    managers, found = managers_of(domains), managers_of(domains)._found["mobility"]
    for _ in range(3):
        managers._lost("mobility", "silent")
        found.there = True
    managers._lost("mobility", "silent")
    assert found.not_before - domains.controller("a").context.clock() >= 4 * LOOK_SECONDS
    beside.said.clear()
    await managers.look()
    assert beside.said == ["fill"]


async def test_a_named_server_and_a_guest_on_its_way_home_are_as_without(
    domains: TwoDomains, beside: Beside
) -> None:
    await domains.move("a", "b", server_of("b", 1))
    domains.room = {server_of("b", 2): FULL, server_of("a", 2): 16_000}
    b = domains.controller("b")
    migration = await b.mobility.migrate(VM_ID, Wish())
    assert migration.far == Far("a", server_of("a", 2))
    assert "match" in domains.doors["a"].said, "only its home knows how near its clients are"


async def test_an_agent_that_was_silent_in_the_match_gets_no_vm_there_either(
    domains: TwoDomains, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "MATCH_LIMIT", 0.05)
    await rooms(domains, b_server1=FULL, b_server2=FULL)
    domains.agents["a"].servers = frozenset({server_of("a", 1)})
    with pytest.raises(MigrationError, match="a-server2: its agent has not answered"):
        await domains.controller("a").mobility.migrate(VM_ID, Wish())
    assert told(domains, "mobility.decision")[-1]["by"] == "mobility"


async def test_one_that_hangs_is_waited_for_once_however_many_wait(
    domains: TwoDomains, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A match waits for its turn while the resource manager is told of changes, and that is its turn then."""
    monkeypatch.setattr(managers_module, "FILL_LIMIT", 0.2)
    managers, asked = managers_of(domains), 0

    async def hangs(filling: Filling) -> Filled:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.1)
        raise ControllerAwayError("it does not answer")

    monkeypatch.setattr(managers._door, "fill", hangs)
    looking = asyncio.create_task(managers.look())
    await asyncio.sleep(0)
    migration = await domains.controller("a").mobility.migrate(VM_ID, Wish())
    await looking
    assert (migration.target, asked) == (server_of("a", 2), 1)
    assert told(domains, "mobility.decision")[-1]["by"] == "controller"


async def test_matches_that_wait_for_their_turn_are_told_of_together(
    domains: TwoDomains, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of thousands of VMs one look takes a while: were there one for each, the last would wait too long.
    But each is told of by a look that began after it had asked, and with its own silent agents."""
    a, managers, other = domains.controller("a"), managers_of(domains), server_of("a", 2)
    need, looks, facts = a.resources.need(VM_ID), list[bool](), a.resources.facts

    def watched(presences: Mapping[str, Presence]) -> Iterator[ServerFacts]:
        looks.append(presences[other] is Presence.SILENT)
        return facts(presences)

    def match(presence: Presence) -> Coroutine[Any, Any, Snapshot | None]:
        presences = {server_of("a", 1): Presence.ANSWERED, other: presence}
        return managers.snapshot(Asked("match-1", need, Wish(), "", presences, 0, (), ()))

    async def takes_a_while(filling: Filling) -> Filled:
        await asyncio.sleep(0)
        return await fill(filling)

    fill = managers._door.fill
    monkeypatch.setattr(managers._door, "fill", takes_a_while)
    monkeypatch.setattr(a.resources, "facts", watched)
    assert all(await asyncio.gather(*(match(Presence.ANSWERED) for _ in range(5))))
    assert looks == [False, False], "the first one's, and one for those who asked while it was under way"
    looks.clear()
    await asyncio.gather(*map(match, (Presence.ANSWERED, Presence.ANSWERED, Presence.SILENT)))
    assert looks == [False, False, True]
    assert managers._told[other].presence is Presence.SILENT


async def test_one_that_takes_what_it_is_told_too_slowly_is_not_waited_for(
    domains: TwoDomains, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(managers_module, "FILL_LIMIT", 0.1)

    async def slow(filling: Filling) -> Filled:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(managers_of(domains)._door, "fill", slow)
    await domains.controller("a").mobility.migrate(VM_ID, Wish())
    last = told(domains, "mobility.manager")[-1]
    assert (last["manager"], last["state"]) == ("resources", "away")
    assert "does not take what it is told within 0.1 s" in last["reason"]


async def test_more_servers_than_a_domain_may_have_are_not_kept(beside: Beside) -> None:
    resources = beside.resources
    holding = resources.holdings["a"]
    holding.servers |= {f"s{number}": ServerFacts(f"s{number}") for number in range(MOST_SERVERS_ASKED)}
    more = [facts_said(ServerFacts(f"more{number}")) for number in range(MOST_SERVERS_FILLED)]
    filling = Filling(holding.instance, holding.number, policy_said(Policy()), more)
    with pytest.raises(RefusedError, match="more than 10000 servers of a domain are not kept"):
        resources.fill("a", filling)


async def test_more_vms_than_a_domain_may_have_are_not_kept(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On however few servers; what is told anew in the place of what was counts once."""
    monkeypatch.setattr(resources_module, "MOST_VMS_HELD", 4)
    resources, holding = beside.resources, beside.resources.holdings["a"]
    two = tuple(Hosted(Need(f"v{number}"), lives=True) for number in range(2))

    def told(number: int, *servers: ServerFacts) -> Filling:
        return Filling("run-x", number, policy_said(Policy()), [facts_said(one) for one in servers])

    resources.fill("a", told(0, ServerFacts("s1", hosted=two)))
    resources.fill("a", told(1, ServerFacts("s2", hosted=two[:1], booked=(("v9", 1, 1),))))
    resources.fill("a", told(2, ServerFacts("s2", hosted=two)))
    with pytest.raises(RefusedError, match="more than 4 VMs and bookings of a domain are not kept"):
        resources.fill("a", told(3, ServerFacts("s3", hosted=two[:1])))
    assert set(holding.servers) == {"s1", "s2"}
    resources.fill("a", told(0, ServerFacts("s3", hosted=two)))
    assert set(holding.servers) == {"s3"}


@pytest.mark.parametrize("asked", ["fill", "decide"])
async def test_a_vm_that_is_removed_while_a_manager_is_asked_goes_nowhere(
    domains: TwoDomains, beside: Beside, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    a, door = domains.controller("a"), managers_of(domains)._door
    asks = getattr(door, asked)

    async def and_it_goes(said: Any) -> Any:
        answer = await asks(said)
        await a.inventory.remove_vm(VM_ID)
        return answer

    monkeypatch.setattr(door, asked, and_it_goes)
    with pytest.raises(MigrationError, match="was removed meanwhile"):
        await a.mobility.migrate(VM_ID, Wish())


async def test_what_they_decide_by_is_what_the_controller_would_decide_by(
    domains: TwoDomains, beside: Beside
) -> None:
    """To the last field, with profiles, clients, bookings, a drained server and one that was silent."""
    a, own = domains.controller("a"), server_of("a", 2)
    await rooms(domains, a_server2=9000)
    client = nic("a", 2)
    profile = Profile(cpus=2, bandwidth_mbps=100, apart="db", clients=(str(client.addresses[0]),))
    a.entities.register([Entity(VM_ID, EntityKind.VM, profile)])
    a.inventory.register_vms([VM("vm-a2", (client,), own, memory_mib=256)])
    a.entities.register([Entity("vm-a2", EntityKind.VM, Profile(apart="db"))])
    a.bookings.book("vm9", own, 512, 1, 60)
    a.bookings.book(VM_ID, own, 64, 1, 60)
    a.net.drained.add(own)
    presences = {server_of("a", 1): Presence.ANSWERED, own: Presence.SILENT}
    need, wish = a.resources.need(VM_ID), Wish(Reason.COMPUTING, 6000, 5000, 60)
    here = a.resources.snapshot(VM_ID, wish, presences, "", 2000)
    asked = Asked("match-1", need, wish, "", presences, 2000, (), ())
    assert await managers_of(domains).snapshot(asked) == here
    assert [one.promised_mib for one in here.servers] == [128, 768]


async def test_what_goes_while_it_is_looked_at_is_left_out(domains: TwoDomains, beside: Beside) -> None:
    a = domains.controller("a")
    looked = a.resources.facts({})
    assert next(looked).server == server_of("a", 1)
    await a.fabric.remove_server(server_of("a", 2))
    assert not list(looked)
