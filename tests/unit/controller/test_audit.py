"""Switches that stay connected, read again: what somebody changed is mended, and nothing else is sent."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from retinue.controller import audit
from retinue.controller.audit import LONGEST_MIGRATION, AuditError
from retinue.controller.switches import programmer, readback
from retinue.controller.switches.programmer import LONGEST_TIMEOUT
from retinue.controller.switches.readback import Audit
from retinue.core.migration import MigrationState
from retinue.core.model.network import Owner
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import Change, Flow, FlowKey, Group, Meter, Output, Program, match
from retinue.core.pipeline.tables import Table
from retinue.protocol.migrations import Report
from retinue.southbound.openflow.codec.messages import FlowStats
from retinue.southbound.openflow.server import Rejected
from support import virtual_time
from support.fabric.networks import add_vm, assignment, fabric
from support.fakes.session import FakeNetwork, FakeSession
from support.recent_events import recent

VM1 = Owner("vm", "vm1")
STRANGE = Flow(Table.FORWARD, 999, match(eth_dst="52:54:00:00:00:77"), (Output(1),))


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeNetwork]:
    """vm1 runs at server1, and may run at server2."""
    monkeypatch.setattr(programmer, "SHORTEST_PAUSE", 0.0)
    monkeypatch.setattr(readback, "AT_ONCE", 3)
    fake = FakeNetwork(fabric(), clock=lambda: 1000.0)
    await fake.start()
    add_vm(fake.net, 1, at=1, ports_on=(2,))
    await fake.controller.context.install(fake.net.everything())
    yield fake
    await fake.stop()


def sent(fake: FakeNetwork) -> int:
    """Changes sent to any switch so far."""
    return sum(len(session.applied) for session in fake.sessions.values())


def holds(fake: FakeNetwork, switch: str) -> tuple[dict[FlowKey, Flow], dict[int, Group], dict[int, Meter]]:
    found = fake.fabric[switch]
    return dict(found.flows), dict(found.groups), dict(found.meters)


async def test_a_switch_in_order_is_sent_nothing(fake: FakeNetwork) -> None:
    before = sent(fake)
    for switch in fake.net.switches:
        found = await fake.controller.auditor.audit(switch)
        flows, groups, meters = holds(fake, switch)
        assert found == Audit(entries=len(flows) + len(groups) + len(meters))
        assert found.entries > 0
    assert sent(fake) == before
    assert recent(fake.controller.events, "switch.repaired") == []
    assert fake.controller.context.counters["audits"] == len(fake.net.switches)


async def test_what_was_deleted_changed_and_added_is_mended_and_told(fake: FakeNetwork) -> None:
    session, switch, before = fake.sessions["edge1"], fake.fabric["edge1"], holds(fake, "edge1")
    gone, other = (f for f in list(switch.flows.values()) if f.table == Table.DELIVER and f.priority)
    switch.apply(Change(add=(replace(other, actions=(Output(7),)), STRANGE), remove=(gone,)))
    switch.meters[4711] = Meter(4711, 1, 1)
    changes = len(session.applied)
    found = await fake.controller.auditor.audit("edge1")
    assert (found.missing, found.changed, found.foreign, found.mended) == (1, 1, 2, True)
    assert holds(fake, "edge1") == before
    (change,) = session.applied[changes:]
    assert {f.key for f in change.add} == {gone.key, other.key}
    assert [f.key for f in change.remove] == [STRANGE.key]
    told = [event.data for event in recent(fake.controller.events, "switch.repaired")]
    assert told == [{"switch": "edge1", "missing": 1, "changed": 1, "foreign": 2}]
    counters = fake.controller.context.counters
    assert [counters[f"entries found {what}"] for what in ("missing", "changed", "foreign")] == [1, 1, 2]
    assert fake.controller.context.is_programmed(VM1)
    assert (await fake.controller.auditor.audit("edge1")).differing == 0


async def test_a_group_is_mended(fake: FakeNetwork) -> None:
    before = dict(fake.fabric["leaf1"].groups)
    (number,) = before
    fake.fabric["leaf1"].groups[number] = replace(before[number], buckets=before[number].buckets[:1])
    assert (await fake.controller.auditor.audit("leaf1")).changed == 1
    assert fake.fabric["leaf1"].groups == before


async def test_what_waits_its_turn_is_left_to_who_sends_it(fake: FakeNetwork) -> None:
    """Spines are told after the edges (docs/architecture.md): an audit in between does not hurry ahead."""
    gate = fake.sessions["edge2"].hold = asyncio.Event()
    add_vm(fake.net, 2, at=2)
    installing = asyncio.create_task(
        fake.controller.context.install([Owner("vm", "vm2")], ["edge2", "leaf2"])
    )
    await fake.settle()
    before = holds(fake, "spine1")
    assert (await fake.controller.auditor.audit("spine1")).differing == 0
    assert holds(fake, "spine1") == before
    gate.set()
    await installing
    assert holds(fake, "spine1") != before


@pytest.fixture
def reading(fake: FakeNetwork) -> "Reading":
    return Reading(fake, "spine1")


class Reading:
    """The next readings of a switch's flows take until `go_on`."""

    def __init__(self, fake: FakeNetwork, switch: str) -> None:
        self.session: FakeSession = fake.sessions[switch]
        self.began, self.go_on, self.times = asyncio.Event(), asyncio.Event(), 0
        self._read = self.session.read_flows
        self.session.read_flows = self  # type: ignore[method-assign]

    async def __call__(self, cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        found = await self._read(cookie, cookie_mask)
        self.times += 1
        self.began.set()
        await self.go_on.wait()
        return found


async def test_reading_holds_up_nobody_and_what_is_out_of_date_is_read_again(
    fake: FakeNetwork, reading: Reading
) -> None:
    fake.fabric["spine1"].apply(Change(add=(STRANGE,)))
    audit = asyncio.create_task(fake.controller.auditor.audit("spine1"))
    await reading.began.wait()
    add_vm(fake.net, 2, at=2)
    report = await fake.controller.context.install([Owner("vm", "vm2")])
    assert not report.missing
    reading.go_on.set()
    found = await audit
    assert (reading.times, found.missing, found.changed, found.foreign) == (2, 0, 0, 1)
    wanted = fake.controller.context.compiler.program("spine1")
    assert fake.fabric["spine1"].flows.keys() == {key for key in wanted.keys() if key[0] != "meter"}  # noqa: SIM118


async def test_a_switch_that_changes_all_the_time_is_given_up(fake: FakeNetwork) -> None:
    session = fake.sessions["edge1"]
    read, vm = session.read_flows, iter(range(2, 20))

    async def changing(cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        number = next(vm)
        add_vm(fake.net, number, at=1)
        await fake.controller.context.install([Owner("vm", f"vm{number}")])
        return await read(cookie, cookie_mask)

    session.read_flows = changing  # type: ignore[method-assign]
    with pytest.raises(AuditError, match="was changed each of the 3 times"):
        await fake.controller.auditor.audit("edge1")


async def test_nothing_is_read_while_a_move_concerns_the_switch(fake: FakeNetwork) -> None:
    fake.fabric["spine1"].apply(Change(add=(STRANGE,)))
    migration = fake.controller.orchestrator.start("vm1", target_server="server2")
    for switch in ("edge1", "edge2", "leaf1", "leaf2", "spine1", "spine2"):
        with pytest.raises(AuditError, match="while migration-1 of VM vm1 is under way"):
            await fake.controller.auditor.audit(switch)
    assert (await fake.controller.auditor.audit("edge3")).differing == 0
    fake.controller.orchestrator.cancel(migration.id)
    await fake.settle()
    fake.controller.orchestrator.reports.on_report(migration.id, Report.ROLLED_BACK, 0.0, "")
    assert fake.controller.orchestrator.migrations[migration.id].state is MigrationState.UNDONE
    assert (await fake.controller.auditor.audit("spine1")).foreign == 1


async def test_a_move_that_cannot_end_does_not_keep_switches_from_being_read(fake: FakeNetwork) -> None:
    fake.fabric["spine1"].apply(Change(add=(STRANGE,)))
    orchestrator = fake.controller.orchestrator
    migration = orchestrator.start("vm1", target_server="server2")
    state, began = migration.steps[0]
    old = replace(migration, steps=((state, began - LONGEST_MIGRATION - 1),))
    fake.controller.context.state.migrations[migration.id] = old
    assert (await fake.controller.auditor.audit("spine1")).foreign == 1


async def test_a_move_that_begins_meanwhile_ends_the_audit(fake: FakeNetwork, reading: Reading) -> None:
    fake.fabric["spine1"].apply(Change(add=(STRANGE,)))
    audit = asyncio.create_task(fake.controller.auditor.audit("spine1"))
    await reading.began.wait()
    fake.controller.orchestrator.start("vm1", target_server="server2")
    before = sent(fake)
    reading.go_on.set()
    with pytest.raises(AuditError, match="while migration-1"):
        await audit
    assert reading.times == 1 and sent(fake) == before
    assert STRANGE.key in fake.fabric["spine1"].flows


async def test_what_the_switch_refuses_is_pending(fake: FakeNetwork) -> None:
    fake.fabric["edge1"].apply(Change(add=(STRANGE,)))
    fake.sessions["edge1"].reject = 10**9
    found = await fake.controller.auditor.audit("edge1")
    assert (found.foreign, found.mended) == (1, False)
    assert fake.controller.context.installer.pending() == {"edge1": 1}
    assert recent(fake.controller.events, "switch.repaired") == []
    fake.sessions["edge1"].reject = 0
    await fake.settle()
    assert STRANGE.key not in fake.fabric["edge1"].flows


async def test_what_nobody_can_judge_yet_is_left_where_it_is(fake: FakeNetwork) -> None:
    unheard_of = replace(STRANGE, cookie=cookie(Reason.FORWARD, Owner("vm", "vm77")))
    fake.fabric["edge1"].apply(Change(add=(unheard_of,)))
    found = await fake.controller.auditor.audit("edge1")
    assert (found.foreign, found.mended) == (1, False)
    assert STRANGE.key in fake.fabric["edge1"].flows
    fake.controller.inventory.ports.edge_read([0x31])
    await fake.settle()
    assert STRANGE.key not in fake.fabric["edge1"].flows


async def test_a_switch_that_cannot_be_read_stays_connected(fake: FakeNetwork) -> None:
    async def rejects(cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        raise Rejected(("busy",))

    fake.sessions["edge1"].read_flows = rejects  # type: ignore[method-assign]
    with pytest.raises(AuditError, match=r"edge1 cannot be audited: its entries cannot be read: .*busy"):
        await fake.controller.auditor.audit("edge1")
    assert fake.sessions["edge1"].alive
    fake.sessions["edge2"].close("gone")
    with pytest.raises(AuditError, match="edge2 cannot be audited: it is not connected"):
        await fake.controller.auditor.audit("edge2")


# ---- leases ----


def as_a_switch_tells(session: FakeSession, sent_at: float, now: float) -> None:
    """Have a fake switch tell leases as a real one: a timeout of 16 bits, and whole seconds since then."""
    read = session.read_flows

    async def told(cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        return [
            found
            if (end := found.flow.expires_at) is None
            else FlowStats(
                replace(found.flow, expires_at=None),
                0,
                0,
                int(now - sent_at),
                min(round(end - sent_at), LONGEST_TIMEOUT),
            )
            for found in await read(cookie, cookie_mask)
        ]

    session.read_flows = told  # type: ignore[method-assign]


@pytest.mark.parametrize("seconds", [600.0, 86_400.0])
async def test_leases_agree_though_switches_count_whole_seconds_and_not_far(seconds: float) -> None:
    now = 1000.0
    fake = FakeNetwork(fabric(), clock=lambda: now)
    await fake.start()
    add_vm(fake.net, 1, at=1, bound=False)
    fake.net.assign(assignment(1, 1000.4 + seconds))
    await fake.controller.context.install([VM1])
    as_a_switch_tells(fake.sessions["edge1"], 1000.0, 1100.6)
    now, before = 1100.6, sent(fake)
    assert (await fake.controller.auditor.audit("edge1")).differing == 0
    assert sent(fake) == before
    as_a_switch_tells(fake.sessions["edge1"], 0.0, 50.0)
    now = 1200.0
    assert (await fake.controller.auditor.audit("edge1")).changed > 0, "an end that is another's"
    await fake.stop()


@pytest.mark.parametrize("seconds", [600.0, 86_400.0])
@pytest.mark.parametrize(
    ("early", "changed"),
    [(0.0, False), (1.5, False), (3.0, True), (100.0, True), (-1.5, False), (-3.0, True)],
)
async def test_a_lease_that_ends_too_early_on_the_switch_or_too_late_is_mended(
    seconds: float, early: float, changed: bool
) -> None:
    """Too early the VM is cut off, too late another may have its address; a little is rounding."""
    now = 1000.0
    fake = FakeNetwork(fabric(), clock=lambda: now)
    await fake.start()
    add_vm(fake.net, 1, at=1, bound=False)
    fake.net.assign(assignment(1, 1000.0 + seconds))
    await fake.controller.context.install([VM1])
    now = 1100.0
    session = fake.sessions["edge1"]
    read, limit = session.read_flows, min(seconds, LONGEST_TIMEOUT)

    async def told(cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        return [
            FlowStats(replace(found.flow, expires_at=None), 0, 0, 100.0 + early, int(limit))
            if found.flow.expires_at
            else found
            for found in await read(cookie, cookie_mask)
        ]

    session.read_flows = told  # type: ignore[method-assign]
    before = sent(fake)
    found = await fake.controller.auditor.audit("edge1")
    assert (found.changed > 0, sent(fake) > before) == (changed, changed)
    assert (found.missing, found.foreign, found.mended) == (0, 0, True)
    await fake.stop()


async def test_entries_of_a_lease_that_is_just_ending_are_left_to_the_switch(fake: FakeNetwork) -> None:
    fake.net.assign(replace(fake.net.held_by("vm1")[0], lease_end=1001.0))
    await fake.controller.context.install([VM1])
    ended = [flow for flow in list(fake.fabric["edge1"].flows.values()) if flow.expires_at]
    fake.fabric["edge1"].apply(Change(remove=tuple(ended)))
    before = sent(fake)
    assert ended and (await fake.controller.auditor.audit("edge1")).differing == 0
    assert sent(fake) == before


# ---- from time to time ----


class Turns:
    """Notes whose entries are being read; a reading takes a second, and never two are under way."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self._one_at_a_time = asyncio.Lock()

    def watch(self, session: FakeSession) -> None:
        read = session.read_flows

        async def reading(cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
            if not cookie_mask:
                assert not self._one_at_a_time.locked()
                async with self._one_at_a_time:
                    self.read.append(session.name)
                    await asyncio.sleep(1.0)
            return await read(cookie, cookie_mask)

        session.read_flows = reading  # type: ignore[method-assign]


def test_switches_take_turns() -> None:
    """Each once in its time, and one more when asked for; with 0 never by itself."""

    async def read_in(seconds: float, interval: float) -> list[str]:
        fake = FakeNetwork(fabric(), clock=asyncio.get_running_loop().time, audit_seconds=interval)
        await fake.start()
        turns = Turns()
        for session in fake.sessions.values():
            turns.watch(session)
        await asyncio.sleep(seconds)
        by_itself = list(turns.read)
        await asyncio.gather(*(fake.controller.auditor.audit(switch) for switch in fake.net.switches))
        assert len(turns.read) >= len(by_itself) + len(fake.net.switches)
        assert not fake.controller.context.counters["internal errors"]
        await fake.stop()
        return by_itself

    names = set(fabric().switches)
    # The first begins when switches have come; each then takes a second of its own.
    read = virtual_time.run(read_in(60.0 + 3 * (60.0 + len(names)), 60.0))
    assert len(read) >= 3 * len(names) - 1
    for start in range(len(read) - len(names) + 1):
        assert set(read[start : start + len(names)]) == names, read
    assert virtual_time.run(read_in(300.0, 0.0)) == []


def test_many_entries_take_longer_than_the_time_of_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a large network is not busy reading itself."""

    async def entries_read(seconds: float) -> int:
        fake = FakeNetwork(fabric(), clock=asyncio.get_running_loop().time, audit_seconds=1.0)
        await fake.start()
        turns = Turns()
        for session in fake.sessions.values():
            turns.watch(session)
        await asyncio.sleep(seconds)
        await fake.stop()
        return sum(len(fake.controller.context.compiler.program(name)) for name in turns.read)

    monkeypatch.setattr(audit, "ENTRIES_A_SECOND", 1)
    least = min(len(program) for program in fabric_programs().values())
    found = virtual_time.run(entries_read(600.0))
    assert 600 - 2 * least < found <= 600 + 2 * max(len(p) for p in fabric_programs().values())


def fabric_programs() -> dict[str, Program]:
    compiler = Compiler(fabric())
    compiler.update(compiler.net.everything())
    return compiler.programs


def test_a_turn_that_comes_to_nothing_ends_no_audit() -> None:
    async def story() -> None:
        fake = FakeNetwork(fabric(), clock=asyncio.get_running_loop().time, audit_seconds=7.0)
        await fake.start()
        add_vm(fake.net, 1, at=1, ports_on=(2,))
        await fake.controller.context.install([VM1])

        async def rejects(cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
            raise Rejected(("busy",))

        fake.sessions["leaf2"].read_flows = rejects  # type: ignore[method-assign]
        fake.controller.orchestrator.start("vm1", target_server="server2")
        for switch in ("edge1", "edge3"):
            fake.fabric[switch].apply(Change(add=(STRANGE,)))
        await asyncio.sleep(25.0)
        assert STRANGE.key in fake.fabric["edge1"].flows, "its VM is being moved"
        assert STRANGE.key not in fake.fabric["edge3"].flows
        assert not fake.controller.context.counters["audits without a result"], "no turn was wasted"
        await asyncio.sleep(
            600.0
        )  # The migration has run out of time, and waits for a word that it is undone.
        fake.controller.orchestrator.reports.on_report("migration-1", Report.ROLLED_BACK, 0.0, "")
        await asyncio.sleep(25.0)
        assert STRANGE.key not in fake.fabric["edge1"].flows
        assert fake.controller.context.counters["audits without a result"] > 0
        await fake.stop()

    virtual_time.run(story())


def test_a_switch_that_answers_nothing_holds_up_no_other() -> None:
    """Neither what is counted each second, nor the audits, nor who asks for one."""

    async def story() -> None:
        fake = FakeNetwork(fabric(), clock=asyncio.get_running_loop().time, audit_seconds=14.0)
        await fake.start()
        read: Counter[tuple[str, bool]] = Counter()

        def watch(session: FakeSession) -> None:
            answer = session.read_flows

            async def reading(cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
                read[session.name, bool(cookie_mask)] += 1
                if session.name in ("edge1", "edge2"):
                    await asyncio.sleep(30.0)
                    raise TimeoutError("no answer")
                return await answer(cookie, cookie_mask)

            session.read_flows = reading  # type: ignore[method-assign]

        for session in fake.sessions.values():
            watch(session)
        await asyncio.sleep(140.0)
        assert read["edge3", True] >= 130, "counted each second"
        others = [name for name in fake.sessions if name not in ("edge1", "edge2")]
        assert all(read[name, False] >= 8 for name in others), read
        assert read["edge1", True] <= 6, "asked again when it has answered, or its time is over"
        await fake.controller.auditor.audit("edge3")
        await fake.stop()

    virtual_time.run(story())
