"""Post-copy at the two agents: who has the VM while some of its memory is at the source yet."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from retinue.agent.vms.vm_spec import spec
from retinue.core.migration.copying import Postcopy
from retinue.core.migration.presence import HandedOver, IncomingFailed, Plugged, Running
from retinue.core.model import Ending
from retinue.hypervisor import Channel, HandedOverError, Left, RunState
from retinue.protocol.events import ControllerEvent
from retinue.protocol.vms import VMRecord, VMState
from support.agents.world import TABLE, VM, FakeMachine, FakeServer, TwoServers, bench_up


@pytest.fixture
async def bench() -> AsyncIterator[TwoServers]:
    async with bench_up() as made:
        yield made


async def step(bench: TwoServers, *steps: str, how: Postcopy = Postcopy.REQUIRED) -> list[str]:
    migration = replace(bench.migration(), postcopy=how)
    events = (ControllerEvent(f"migration.{name}", vm=VM, migration=migration) for name in steps)
    return [line for event in events for line in await bench.after(event)]


def presence(server: Any) -> Any:
    return server.dispatcher.vms["web"].presence


async def rest_hangs(bench: TwoServers) -> None:
    await bench.registered()
    bench.source.hypervisor.script["rest"] = "hangs"
    await step(bench, "open_target", "start_copy")
    await bench.source.hypervisor.reached["rest"].wait()
    await bench.settled()


async def test_the_source_has_given_the_vm_away_while_some_of_its_memory_is_there(bench: TwoServers) -> None:
    await rest_hangs(bench)
    assert presence(bench.source) == HandedOver("migration-1")
    assert isinstance(presence(bench.target), Running)
    told = await bench.catch_up("server1")
    assert "server1 tells web started" not in told, "it runs at the target"


async def test_nothing_is_freed_before_all_of_it_has_gone_over(bench: TwoServers) -> None:
    await rest_hangs(bench)
    bench.source.dispatcher.on_event(
        ControllerEvent("migration.free_source", vm=VM, migration=replace(bench.migration()))
    )
    vm = bench.source.dispatcher.vms["web"]
    assert vm.machine is not None
    bench.source.hypervisor.go_on.set()
    told = await bench.settled()
    assert "server1: quit" in told
    assert "server1 tells migration-1 source_freed" in told
    assert bench.world.running("web") == ["server2"]


async def test_a_vm_whose_rest_does_not_come_has_crashed_at_the_target(bench: TwoServers) -> None:
    await bench.registered()
    bench.target.hypervisor.script["rest comes"] = "fails"
    told = await step(bench, "open_target", "start_copy")
    assert any(line.startswith("server2 tells web stopped") for line in told), told
    assert presence(bench.target) == Plugged()
    assert presence(bench.source) == HandedOver("migration-1")
    assert bench.world.running("web") == []


async def test_a_vm_started_anew_keeps_its_machine_when_the_end_of_its_arrival_is_noticed_late(
    bench: TwoServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection to a dead server may take half a minute to end, long after the VM's end was told."""
    died, noticed = asyncio.Event(), asyncio.Event()

    async def dies(target: FakeMachine, channel: Channel) -> None:
        target.die()
        died.set()
        await noticed.wait()
        raise HandedOverError("its rest does not come")

    monkeypatch.setattr(bench.target.hypervisor, "_rest", dies)
    bench.source.hypervisor.script["rest"] = "hangs"
    await bench.registered()
    migration = replace(bench.migration(), postcopy=Postcopy.REQUIRED)
    await step(bench, "open_target")
    bench.source.dispatcher.on_event(ControllerEvent("migration.start_copy", migration=migration))
    await died.wait()
    vm = bench.target.dispatcher.vms["web"]
    there = replace(VM, server="server2")
    bench.target.dispatcher.on_event(ControllerEvent("vm.ready", vm=there))
    await vm.steps.join()
    anew = bench.target.machine
    assert vm.machine is anew
    noticed.set()
    assert vm.transfer is not None
    await asyncio.wait({vm.transfer})
    assert vm.machine is anew
    bench.source.hypervisor.go_on.set()
    bench.target.dispatcher.on_event(ControllerEvent("vm.removed", vm=there))
    await bench.settled()
    assert bench.world.running("web") == [], "what was removed does not run"


@pytest.mark.parametrize("state", ["diverted", "rolling back"])
async def test_a_vm_that_ran_here_before_its_agent_was_killed_is_not_run_from_its_past_at_the_source(
    bench: TwoServers, state: str
) -> None:
    """The agent that comes after ends what lacks memory. That the VM had run was not told yet."""
    await bench.prepared()
    await bench.start_again("server2")
    await bench.target.dispatcher.adopt_all(Left(ended={"web": Ending.CRASHED}))
    here = replace(VM, server="server2" if state == "diverted" else "server1")
    told = await bench.catch_up("server2", bench.migration(state), vms=(here,))
    reports = [line for line in told if " tells " in line]
    assert reports[0].startswith("server2 tells migration-1 resumed "), told
    why = "its QEMU had ended when the agent of server2 started"
    assert reports[1:] == [f"server2 tells web stopped {why} crashed"]
    assert "server2: plug web 52:54:00:00:00:01" in told
    assert bench.target.hypervisor.reported == ["web"], "the next agent need not tell it again"
    assert await bench.catch_up("server2", bench.migration("switching"), vms=(crashed(here),)) == []


def crashed(vm: VMRecord) -> VMRecord:
    return replace(vm, server="server2", state=VMState.CRASHED)


@pytest.mark.parametrize("how", [Postcopy.REQUIRED, Postcopy.IF_NEEDED])
async def test_a_target_that_cannot_is_opened_only_where_it_need_not(
    bench: TwoServers, how: Postcopy
) -> None:
    await bench.registered()
    bench.world.no_postcopy = "no userfaultfd here"
    told = await step(bench, "open_target", how=how)
    if how is Postcopy.IF_NEEDED:
        assert told[-1] == "server2 tells migration-1 target_opened"
        return
    assert told[-1] == "server2 tells migration-1 failed no userfaultfd here"
    assert isinstance(presence(bench.target), IncomingFailed)
    await step(bench, "roll_back")
    assert "web" not in bench.target.dispatcher.vms or bench.target.dispatcher.vms["web"].machine is None
    assert bench.world.running("web") == ["server1"]


# ---- agents that come after one that was killed ----


def left_at(server: FakeServer, now: RunState) -> FakeMachine:
    """A machine of VM, left by an earlier agent in the middle of post-copy."""
    machine = server.hypervisor._make("left", spec(VM, TABLE), server.dispatcher.listener("web"))
    machine.now, machine.owes, machine.lacks = now, now is RunState.MOVED, now is RunState.RUNNING
    return machine


async def both_left(bench: TwoServers) -> tuple[FakeMachine, FakeMachine]:
    """At both servers."""
    source, target = left_at(bench.source, RunState.MOVED), left_at(bench.target, RunState.RUNNING)
    await bench.source.dispatcher.adopt_all(Left([source]))
    await bench.target.dispatcher.adopt_all(Left([target], lacking={"web"}))
    bench.world.take()
    return source, target


async def at_target(bench: TwoServers, state: str, *, known: bool = True) -> None:
    """The target's agent hears of the controller."""
    rest = bench.target.rest
    rest.known = [replace(VM, server="server2")]
    rest.under_way = [replace(bench.migration(state), postcopy=Postcopy.REQUIRED)] if known else []
    await bench.target.dispatcher.catch_up()


async def test_agents_that_come_after_go_on_and_nothing_is_freed_before(bench: TwoServers) -> None:
    source, target = await both_left(bench)
    assert presence(bench.source) == HandedOver()
    assert isinstance(presence(bench.target), Running)
    await at_target(bench, "confirmed")
    there = replace(VM, server="server2")
    told = await bench.catch_up("server1", bench.migration("confirmed"), vms=(there,))
    order = ["server1: sends the rest", "server1: quit", "server1 tells migration-1 source_freed"]
    assert [line for line in told if line in order] == order
    assert "server2: has the rest" in told
    assert any(line.startswith("server1 tells migration-1 copying 3 4096") for line in told), told
    assert (target.lacks, source.ended, target.ended) == (False, True, False)
    assert bench.world.running("web") == ["server2"]
    await at_target(bench, "freed")
    await bench.settled()
    assert not bench.target.dispatcher.vms["web"].transferring, "it lacks nothing any more"


@pytest.mark.parametrize("state", ["diverted", "rolling back"])
async def test_that_it_runs_is_told_before_anybody_brings_the_rest(bench: TwoServers, state: str) -> None:
    """The agent before may not have come to it; and the source brings it when it is to be freed."""
    await both_left(bench)
    await at_target(bench, state)
    await bench.target.dispatcher.vms["web"].steps.join()
    await bench.target.dispatcher.reports.delivered()
    assert any(line.startswith("server2 tells migration-1 resumed ") for line in bench.world.take())
    await bench.source.dispatcher.catch_up()
    told = await bench.step("free_source")
    assert told.index("server1: sends the rest") < told.index("server1: quit")
    assert bench.world.running("web") == ["server2"]


async def test_a_vm_of_whose_migration_nobody_knows_lacks_its_memory_for_good(bench: TwoServers) -> None:
    _, target = await both_left(bench)
    await at_target(bench, "confirmed", known=False)
    told = await bench.settled()
    assert target.ended
    assert any(line.startswith("server2 tells web stopped") for line in told), told
    assert bench.world.running("web") == []


async def test_a_vm_that_was_started_anew_since_lacks_nothing(bench: TwoServers) -> None:
    """Else it is ended whenever the agent hears of the controller again."""
    await both_left(bench)
    await at_target(bench, "confirmed", known=False)
    await bench.settled()
    assert bench.world.running("web") == []
    vm = bench.target.dispatcher.vms["web"]
    bench.target.dispatcher.on_event(ControllerEvent("vm.ready", vm=replace(VM, server="server2")))
    await vm.steps.join()
    assert bench.world.running("web") == ["server2"]
    await at_target(bench, "done")
    await bench.settled()
    assert bench.world.running("web") == ["server2"]


async def test_a_migration_that_has_ended_brings_nothing(bench: TwoServers) -> None:
    _, target = await both_left(bench)
    await at_target(bench, "done")
    await bench.settled()
    assert target.ended


async def test_a_rest_that_could_not_be_sent_is_not_tried_for_once_more(bench: TwoServers) -> None:
    """The target has ended the VM by then."""
    await bench.registered()
    bench.source.hypervisor.script["rest"] = "fails"
    await step(bench, "open_target", "start_copy")
    told = await bench.step("free_source")
    assert "server1: quit" in told
    assert "server1: has memory to give" not in told
    assert bench.source.machine.owes


async def test_a_source_that_did_not_know_whether_the_vm_runs_sends_the_rest_when_it_does(
    bench: TwoServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection broke just between; the target waits for another."""

    async def breaks(target: FakeMachine, channel: Channel) -> None:
        channel.abort()
        assert channel.again is not None
        await bench.target.hypervisor.receive_the_rest(target, channel.again)

    monkeypatch.setattr(bench.target.hypervisor, "_rest", breaks)
    bench.target.hypervisor.script["tell"] = "fails"
    await bench.registered()
    migration = replace(bench.migration(), postcopy=Postcopy.REQUIRED)
    await step(bench, "open_target")
    start = ControllerEvent("migration.start_copy", vm=VM, migration=migration)
    bench.source.dispatcher.on_event(start)
    await bench.target.hypervisor.reached["tell"].wait()
    vm = bench.source.dispatcher.vms["web"]
    await vm.steps.join()
    assert vm.transfer is not None
    await asyncio.wait({vm.transfer})
    assert presence(bench.source) == HandedOver("migration-1")
    told = await bench.step("free_source")
    assert told.index("server1: sends the rest") < told.index("server1: quit")
    assert "server2: has the rest" in told
    assert bench.world.running("web") == ["server2"]
