"""The agents of two servers as dialogues: the controller's events go in, what is done and told comes out."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

from retinue.agent.controller_link.vm_reports import DIVERT_LIMIT
from retinue.agent.main import follow
from retinue.core.migration import MigrationState
from retinue.host.errors import HostError
from retinue.hypervisor import Exited, HandedOverError, MigrationResult, RunState
from retinue.protocol.errors import ControllerAwayError
from retinue.protocol.events import ControllerEvent
from retinue.protocol.migrations import MigrationRecord
from retinue.protocol.vms import VMRecord, VMState
from support.agents.world import COPIES_FROM, VM, TwoServers, bench_up
from support.fabric.networks import GATEWAY_MAC, vm_ip
from support.fabric.world import OUTSIDE, udp_frame


@pytest.fixture
async def bench() -> AsyncIterator[TwoServers]:
    async with bench_up() as made:
        yield made


UNDONE = [
    "server1 tells migration-1 rolled_back",
    "server1 tells web started",
    "server2: unplug web",
    "server2 tells migration-1 target_closed",
]


def by_server(told: list[str]) -> list[str]:
    """In order for each server: neither waits for the other."""
    return sorted(told, key=lambda line: line[: len("server1")])


READY, REGISTERED = ControllerEvent("vm.ready", vm=VM), ControllerEvent("vm.registered", vm=VM)

# ---- a VM's life ----


async def test_a_registered_vm_is_plugged_in_and_a_ready_one_started(bench: TwoServers) -> None:
    assert await bench.after(REGISTERED) == ["server1: plug web 52:54:00:00:00:01"]
    assert await bench.after(READY) == ["server1: start web", "server1 tells web started"]
    spec = bench.source.machine.spec
    assert (spec.port, spec.mac, str(spec.kernel)) == ("tap-web", VM.mac, "/g/vmlinuz")


async def test_a_repeated_word_changes_nothing_and_is_answered_again(bench: TwoServers) -> None:
    await bench.registered()
    assert await bench.after(REGISTERED) == []
    assert await bench.after(READY) == ["server1 tells web started"]


async def test_a_removed_vm_ends_before_its_port_goes(bench: TwoServers) -> None:
    await bench.registered()
    removed = ControllerEvent("vm.removed", vm=VM)
    assert await bench.after(removed) == ["server1: quit", "server1: unplug web"]
    assert bench.source.dispatcher.vms == {}
    assert bench.source.dispatcher.consoles == {}
    assert await bench.after(removed) == []


async def test_a_vm_removed_and_registered_again_at_once_is_there(bench: TwoServers) -> None:
    await bench.registered()
    again = VMRecord("web", "52:54:00:00:00:02", "server1")
    assert await bench.after(
        ControllerEvent("vm.removed", vm=VM),
        ControllerEvent("vm.registered", vm=again),
        ControllerEvent("vm.ready", vm=again),
    ) == [
        "server1: quit",
        "server1: unplug web",
        "server1: plug web 52:54:00:00:00:02",
        "server1: start web",
        "server1 tells web started",
    ]
    bench.source.machine.die()
    assert await bench.settled() == ["server1 tells web stopped crashed"]


async def test_a_vm_removed_and_registered_at_another_server_is_there(bench: TwoServers) -> None:
    await bench.registered()
    again = VMRecord("web", "52:54:00:00:00:02", "server2")
    told = await bench.after(ControllerEvent("vm.removed", vm=VM), ControllerEvent("vm.ready", vm=again))
    assert [line for line in told if line.startswith("server1")] == ["server1: quit", "server1: unplug web"]
    assert [line for line in told if line.startswith("server2")] == [
        "server2: plug web 52:54:00:00:00:02",
        "server2: start web",
        "server2 tells web started",
    ]


async def test_a_vm_that_ends_by_itself_is_reported_and_can_be_started_again(bench: TwoServers) -> None:
    await bench.registered()
    bench.source.machine.die()
    assert await bench.settled() == ["server1 tells web stopped crashed"]
    assert await bench.after(READY) == ["server1: start web", "server1 tells web started"]


async def test_a_vm_that_does_not_start_is_reported_with_the_reason(bench: TwoServers) -> None:
    bench.source.hypervisor.broken = "no kernel"
    assert (await bench.after(READY))[-1] == "server1 tells web stopped no kernel crashed"


async def test_one_vm_in_trouble_does_not_hold_up_another(bench: TwoServers) -> None:
    bench.source.ports.broken = "no bridge"
    assert await bench.after(REGISTERED) == []
    bench.source.ports.broken = ""
    other = VMRecord("db", "52:54:00:00:00:03", "server1")
    assert await bench.after(ControllerEvent("vm.registered", vm=other), READY) == [
        "server1: plug db 52:54:00:00:00:03",
        "server1: plug web 52:54:00:00:00:01",
        "server1: start web",
        "server1 tells web started",
    ]


async def test_what_is_another_servers_affair_is_left_to_it(bench: TwoServers) -> None:
    elsewhere = VMRecord("far", "52:54:00:00:00:03", "server9")
    migration = MigrationRecord("migration-9", "far", "server8", "server9")
    steps = (
        ControllerEvent(f"migration.{s}", vm=elsewhere, migration=migration)
        for s in ("open_target", "start_copy", "free_source")
    )
    back = (
        ControllerEvent(f"migration.{s}", vm=elsewhere, migration=migration)
        for s in ("roll_back", "return_to_source")
    )
    vms = (ControllerEvent(f"vm.{s}", vm=elsewhere) for s in ("registered", "ready", "removed"))
    assert await bench.after(*vms, *steps, *back, ControllerEvent("hello")) == []
    assert [agent.dispatcher.vms for agent in bench.agents.values()] == [{}, {}]


async def test_a_vm_that_its_server_made_by_itself_is_not_run_by_us(bench: TwoServers) -> None:
    foreign = VMRecord("other", "52:54:00:00:00:09", "server1", reported=True)
    assert (
        await bench.after(
            ControllerEvent("vm.registered", vm=foreign), ControllerEvent("vm.ready", vm=foreign)
        )
        == []
    )


# ---- a migration ----


async def test_a_move_from_end_to_end(bench: TwoServers) -> None:
    await bench.registered()
    assert await bench.step("open_target") == [
        "server2: plug web 52:54:00:00:00:01",
        "server2: open web",
        "server2 tells migration-1 target_opened",
    ]
    assert bench.target.rest.memory_at == bench.target.transfer.address
    told = await bench.step("start_copy")
    # The word that stopped it and the word that it runs come from two servers: neither waits for the other.
    assert [line for line in told if line.startswith("server1")] == [
        "server1 tells migration-1 copy_started",
        "server1: outgoing",
        "server1 tells migration-1 converged",
        "server1 tells migration-1 stopped 100.0",
    ]
    assert [line for line in told if line.startswith("server2")] == [
        "server2: runs",
        "server2 tells migration-1 resumed 100.5",
        "server2 tells web started",
    ]
    assert told.index("server1 tells migration-1 converged") < told.index("server2: runs")
    assert await bench.step("free_source") == [
        "server1: quit",
        "server1: unplug web",
        "server1 tells migration-1 source_freed",
    ]
    assert bench.source.dispatcher.vms == {}
    assert bench.world.running("web") == ["server2"]
    # Its end at the new place is news again.
    bench.target.machine.die()
    assert await bench.settled() == ["server2 tells web stopped crashed"]


async def test_a_vm_is_moved_on_and_back_again(bench: TwoServers) -> None:
    await bench.prepared()
    await bench.step("start_copy", "free_source")
    here = VMRecord("web", VM.mac, "server2")
    back = MigrationRecord(
        "migration-2", "web", "server2", "server1", MigrationState.PLANNED, bench.source.transfer.address
    )
    for name in ("open_target", "start_copy", "free_source"):
        told = await bench.after(ControllerEvent(f"migration.{name}", vm=here, migration=back))
    assert told == ["server2: quit", "server2: unplug web", "server2 tells migration-2 source_freed"]
    assert bench.world.running("web") == ["server1"]
    assert len(bench.source.dispatcher.consoles["web"]) == 2


async def test_a_vm_comes_back_to_a_server_that_has_not_been_freed_of_it(bench: TwoServers) -> None:
    """The controller has lost its memory of the first migration."""
    await bench.prepared()
    await bench.step("start_copy")
    bench.world.take()
    here = VMRecord("web", VM.mac, "server2")
    back = MigrationRecord(
        "migration-1b", "web", "server2", "server1", MigrationState.PLANNED, bench.source.transfer.address
    )
    assert await bench.after(ControllerEvent("migration.open_target", vm=here, migration=back)) == [
        "server1: quit",
        "server1: open web",
        "server1 tells migration-1b target_opened",
    ]
    await bench.after(ControllerEvent("migration.start_copy", vm=here, migration=back))
    assert bench.world.running("web") == ["server1"]
    assert await bench.after(ControllerEvent("vm.ready", vm=VM)) == ["server1 tells web started"]


async def test_every_step_asked_for_twice_is_answered_twice_and_done_once(bench: TwoServers) -> None:
    await bench.prepared()
    assert await bench.step("open_target") == ["server2 tells migration-1 target_opened"]
    await bench.step("start_copy")
    assert await bench.step("open_target") == ["server2 tells migration-1 resumed 100.5"]
    assert await bench.step("start_copy") == []  # The target has said how it went.
    await bench.step("free_source")
    assert await bench.step("free_source") == ["server1 tells migration-1 source_freed"]


async def test_a_copy_asked_for_again_while_it_is_under_way_is_one_copy(bench: TwoServers) -> None:
    await bench.copying_until("copy")
    assert await bench.step("start_copy") == []


async def test_what_had_come_for_a_vm_is_counted_when_its_move_is_off(bench: TwoServers) -> None:
    await bench.prepared()
    bench.world.frames_waiting, bench.world.frames_come = 7, 40
    bench.source.machine.now = RunState.PAUSED
    told = await bench.step("roll_back")
    assert "server1 tells migration-1 rolled_back 7" in told
    assert "server2 tells migration-1 target_closed 40" in told


async def test_what_waits_at_a_target_that_is_given_up_is_handed_back(bench: TwoServers) -> None:
    """When nothing more comes there, and the machine has ended; without what the source has copies of."""
    waits = udp_frame(GATEWAY_MAC, "52:54:00:00:00:01", OUTSIDE, vm_ip(1))
    copied = udp_frame(COPIES_FROM, "52:54:00:00:00:01", OUTSIDE, vm_ip(1))
    bench.world.held = [waits, waits, copied]
    await bench.prepared()
    said = [line for line in by_server(await bench.step("roll_back")) if line.startswith("server2")]
    frames = [base64.b64encode(waits).decode()] * 2
    assert said == [
        "server2: quit",
        "server2 tells migration-1 waited server2",
        "server2: takes what waits",
        f"server2 tells migration-1 waited server2 {frames}",
        "server2: lets go what waits",
        "server2: unplug web",
        "server2 tells migration-1 target_closed",
    ]
    assert bench.target.ports.bypassed == [(bench.target.machine.spec.port, "")]


@pytest.mark.parametrize("rejects", [False, True])
async def test_a_target_is_given_up_whatever_becomes_of_what_waits_there(
    bench: TwoServers, rejects: bool
) -> None:
    bench.world.held = [udp_frame(GATEWAY_MAC, "52:54:00:00:00:01", OUTSIDE, vm_ip(1))]
    await bench.prepared()
    if rejects:
        bench.target.rest.rejects = "waited"
    else:
        bench.target.ports.still_fed = "the switch follows its tables too late"
    said = await bench.step("roll_back")
    assert said[-1] == "server2 tells migration-1 target_closed"
    assert "server2: unplug web" in said
    assert any(line.startswith("server2 tells migration-1 waited server2 [") for line in said) is not rejects


async def test_what_waits_for_a_vm_is_its_own_once_it_runs_here(bench: TwoServers) -> None:
    bench.world.held = []
    await bench.prepared()
    told = await bench.step("start_copy")
    assert told.index("server2: runs") < told.index("server2: lets go what waits")
    assert "server2: takes what waits" not in told


async def test_a_vm_that_ended_when_told_to_run_has_moved_and_does_not_go_back(bench: TwoServers) -> None:
    await bench.prepared()
    bench.target.hypervisor.script["run"] = "fails"
    told = await bench.step("start_copy")
    assert "server2 tells migration-1 resumed" in " ".join(told)
    assert any(word.startswith("server2 tells web stopped") for word in told), told
    assert not any("failed" in word or "target_closed" in word for word in told)


async def test_a_rollback_asked_for_twice_is_answered_twice_and_done_once(bench: TwoServers) -> None:
    await bench.prepared()
    assert by_server(await bench.step("roll_back")) == [*UNDONE[:2], "server2: quit", *UNDONE[2:]]
    assert by_server(await bench.step("roll_back")) == [
        "server1 tells migration-1 rolled_back",
        "server1 tells web started",
        "server2 tells migration-1 target_closed",
    ]


async def test_one_of_two_equal_events_alone_is_enough(bench: TwoServers) -> None:
    twice = [ControllerEvent("migration.open_target", vm=VM, migration=bench.migration())] * 2
    await bench.registered()
    assert await bench.after(*twice) == [
        "server2: plug web 52:54:00:00:00:01",
        "server2: open web",
        *["server2 tells migration-1 target_opened"] * 2,
    ]


# ---- a migration that fails ----


async def test_a_target_that_does_not_open_fails_the_move(bench: TwoServers) -> None:
    await bench.registered()
    bench.target.hypervisor.broken = "no memory"
    assert (await bench.step("open_target"))[-1] == "server2 tells migration-1 failed no memory"
    assert by_server(await bench.step("roll_back")) == UNDONE


async def test_a_target_without_a_port_fails_the_move(bench: TwoServers) -> None:
    await bench.registered()
    bench.target.ports.broken = "no bridge"
    assert await bench.step("open_target") == ["server2 tells migration-1 failed no bridge"]


async def test_a_copy_that_fails_is_reported_and_rolled_back_and_may_be_tried_again(
    bench: TwoServers,
) -> None:
    await bench.prepared()
    bench.source.hypervisor.script["copy"] = "fails"
    told = await bench.step("start_copy")
    assert "server1 tells migration-1 failed copy fails" in told
    assert any(line.startswith("server2 tells migration-1 failed the other end") for line in told)
    assert by_server(await bench.step("roll_back")) == UNDONE
    assert bench.world.running("web") == ["server1"]
    bench.source.hypervisor.script.clear()
    await bench.step("open_target", "start_copy", "free_source")
    assert bench.world.running("web") == ["server2"]


async def test_a_vm_whose_traffic_is_not_diverted_does_not_move(bench: TwoServers) -> None:
    await bench.prepared()
    bench.source.rest.rejects = "converged"
    told = await bench.step("start_copy")
    assert "server1 tells migration-1 failed its traffic is not diverted: does not fit" in told
    assert "server2: runs" not in told
    assert bench.world.running("web") == ["server1"]


async def test_a_vm_moves_when_its_switch_is_seen_to_have_nothing_more_for_it(bench: TwoServers) -> None:
    await bench.prepared()
    ports = bench.source.ports
    ports.still_fed = "the switch follows its tables too late"
    told = await bench.step("start_copy")
    assert "server1 tells migration-1 failed the switch follows its tables too late" in told
    assert "server1 tells migration-1 stopped 100.0" not in told
    assert ports.bypassed == [(bench.source.machine.spec.port, COPIES_FROM)]
    assert bench.world.running("web") == ["server1"]


async def test_a_vm_comes_when_the_targets_switch_is_seen_to_let_its_frames_through(
    bench: TwoServers,
) -> None:
    """What the target's switch has dropped until now it may go on to drop, by its cache."""
    await bench.prepared()
    ports = bench.target.ports
    assert ports.followed == 0, "no entries of the VM are there yet"
    ports.stale = "the switch follows its tables too late"
    told = await bench.step("start_copy")
    assert ports.followed == 1
    assert "server2 tells migration-1 failed the switch follows its tables too late" in told
    assert bench.world.running("web") == ["server1"]


async def test_a_mistake_of_ours_at_the_target_fails_the_move(
    bench: TwoServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def mistaken(*_: object) -> float:
        raise KeyError("status")

    await bench.prepared()
    monkeypatch.setattr(bench.target.hypervisor, "run_incoming", mistaken)
    told = await bench.step("start_copy")
    assert "server2 tells migration-1 failed KeyError: 'status'" in told
    assert bench.world.running("web") == ["server1"]


async def test_a_target_that_nobody_listens_at_fails_the_move(bench: TwoServers) -> None:
    await bench.prepared()
    await bench.target.transfer.close()
    told = await bench.step("start_copy")
    assert told[-1].startswith(
        "server1 tells migration-1 failed the agent of server2 cannot be reached at 127."
    )
    assert "server1: outgoing" not in told
    assert bench.world.running("web") == ["server1"]


async def test_a_move_the_target_does_not_expect_fails(bench: TwoServers) -> None:
    await bench.registered()
    told = await bench.step("start_copy")
    assert told[-1].startswith(
        "server1 tells migration-1 failed the agent of server2 does not let the migration in"
    )
    assert "server1: outgoing" not in told


async def test_a_source_that_still_runs_the_vm_is_not_freed(bench: TwoServers) -> None:
    await bench.prepared()
    assert await bench.step("free_source") == []
    assert bench.world.running("web") == ["server1"]


async def test_a_source_that_is_gone_after_a_rollback_is_told(bench: TwoServers) -> None:
    await bench.prepared()
    bench.source.machine.die()
    told = [line for line in await bench.step("roll_back") if line.startswith("server1")]
    assert told[0] == "server1 tells web stopped crashed"
    assert told[-1] == "server1 tells migration-1 rolled_back"


async def test_an_agent_that_does_not_know_the_vm_says_so(bench: TwoServers) -> None:
    assert await bench.step("start_copy") == [
        "server1 tells migration-1 failed VM web does not run on server1"
    ]
    assert await bench.step("free_source") == ["server1 tells migration-1 source_freed"]
    assert "server2 tells migration-1 target_closed" in await bench.step("roll_back")


async def test_a_source_whose_vm_has_ended_has_nothing_to_copy(bench: TwoServers) -> None:
    await bench.prepared()
    bench.source.machine.die()
    told = await bench.step("start_copy")
    assert told[-1] == "server1 tells migration-1 failed VM web does not run on server1"


async def test_a_source_is_freed_after_it_has_heard_that_the_vm_runs(bench: TwoServers) -> None:
    """The target's word to the controller may be faster than that to the source."""
    await bench.copying_until("give")
    bench.source.dispatcher.on_event(ControllerEvent("migration.free_source", migration=bench.migration()))
    await asyncio.sleep(0)
    assert not bench.source.machine.ended
    bench.source.hypervisor.go_on.set()
    assert (await bench.settled())[-1] == "server1 tells migration-1 source_freed"
    assert bench.world.running("web") == ["server2"]


async def test_a_target_that_has_failed_opens_anew_when_it_is_asked_again(bench: TwoServers) -> None:
    await bench.prepared()
    bench.target.hypervisor.script["load"] = "fails"
    assert not any("web stopped" in line for line in await bench.step("start_copy"))
    bench.target.hypervisor.script.clear()
    assert await bench.step("open_target") == ["server2: open web", "server2 tells migration-1 target_opened"]
    await bench.step("start_copy")
    assert bench.world.running("web") == ["server2"]


# ---- a rollback, wherever the migration is ----


async def test_a_rollback_before_the_copy(bench: TwoServers) -> None:
    await bench.prepared()
    await bench.step("roll_back")
    assert bench.world.running("web") == ["server1"]
    assert bench.target.dispatcher.vms == {}


@pytest.mark.parametrize("point", ["copy", "stop"])
async def test_a_rollback_calls_off_a_copy_under_way(bench: TwoServers, point: str) -> None:
    await bench.copying_until(point)
    told = await bench.step("roll_back")
    assert ("server1: cont" in told) == (point == "stop")
    assert sorted(line for line in told if "tells" in line and "failed" not in line) == [
        "server1 tells migration-1 rolled_back",
        "server1 tells web started",
        "server2 tells migration-1 target_closed",
    ]
    assert bench.target.machine.ended
    assert bench.world.running("web") == ["server1"]


async def test_a_rollback_while_the_traffic_is_being_diverted_leaves_the_vm_where_it_is(
    bench: TwoServers,
) -> None:
    await bench.prepared()
    bench.source.rest.silent = "converged"
    bench.source.dispatcher.on_event(ControllerEvent("migration.start_copy", migration=bench.migration()))
    await bench.source.hypervisor.reached["divert"].wait()
    told = await bench.step("roll_back")
    assert "server2: runs" not in told
    assert {"server1 tells migration-1 rolled_back", "server2 tells migration-1 target_closed"} <= set(told)
    assert bench.target.machine.ended
    assert bench.world.running("web") == ["server1"]


async def test_a_rollback_after_the_hand_over_waits_for_the_targets_word(bench: TwoServers) -> None:
    """The source cannot know whether the VM runs: it does not run it before the target has said no."""
    await bench.copying_until("load", "server2")
    told = await bench.after(
        ControllerEvent(
            "migration.roll_back", migration=MigrationRecord("migration-1", "web", "server1", "x")
        )
    )
    assert told == []
    assert bench.world.running("web") == []
    told = await bench.step("roll_back")
    assert told == ["server2: unplug web", "server2 tells migration-1 target_closed"]
    assert await bench.step("return_to_source") == [
        "server1: cont",
        "server1 tells migration-1 rolled_back",
        "server1 tells web started",
    ]
    assert bench.world.running("web") == ["server1"]


async def test_a_rollback_after_the_hand_over_does_not_touch_a_target_that_runs(bench: TwoServers) -> None:
    await bench.copying_until("give")
    await bench.target.hypervisor.reached["tell"].wait()
    assert await bench.step("roll_back") == ["server2 tells migration-1 resumed 100.5"]
    assert bench.world.running("web") == ["server2"]
    assert await bench.step("free_source") == [
        "server1: quit",
        "server1: unplug web",
        "server1 tells migration-1 source_freed",
    ]
    assert bench.world.running("web") == ["server2"]


async def test_a_vm_that_has_moved_is_not_sent_back_to_its_past(bench: TwoServers) -> None:
    await bench.prepared()
    await bench.step("start_copy")
    assert await bench.step("roll_back") == ["server2 tells migration-1 resumed 100.5"]
    assert bench.world.running("web") == ["server2"]
    assert await bench.target.machine.state() is RunState.RUNNING


async def test_a_target_that_fails_after_the_hand_over_gives_the_vm_back(bench: TwoServers) -> None:
    await bench.prepared()
    bench.target.hypervisor.script["load"] = "fails"
    told = await bench.step("start_copy")
    assert "server1 tells migration-1 failed the target could not take the VM in: load fails" in told
    assert "server2 tells migration-1 failed load fails" in told
    assert "server1: cont" in told
    assert bench.world.running("web") == ["server1"]


# ---- a VM handed over, and no word from the target ----


@pytest.fixture
async def lost(bench: TwoServers) -> TwoServers:
    """The target ended between hand-over and its word."""
    await bench.prepared()
    bench.target.hypervisor.script["load"], bench.target.hypervisor.mute = "fails", True
    assert "server1: cont" not in await bench.step("start_copy")
    assert bench.world.running("web") == []
    return bench


async def test_a_vm_given_away_stays_stopped_until_it_is_given_back(lost: TwoServers) -> None:
    assert await lost.step("roll_back") == ["server2: unplug web", "server2 tells migration-1 target_closed"]
    assert lost.world.running("web") == []
    assert await lost.step("start_copy") == []
    assert await lost.step("return_to_source") == [
        "server1: cont",
        "server1 tells migration-1 rolled_back",
        "server1 tells web started",
    ]
    assert await lost.step("return_to_source") == [
        "server1 tells migration-1 rolled_back",
        "server1 tells web started",
    ]
    assert lost.world.running("web") == ["server1"]
    # It is as it was before.
    lost.target.hypervisor.script.clear()
    await lost.step("open_target", "start_copy", "free_source")
    assert lost.world.running("web") == ["server2"]


@pytest.mark.parametrize("state", ["diverted", "rolling back"])
async def test_a_vm_given_away_is_said_to_have_stopped_again(lost: TwoServers, state: str) -> None:
    """The target's report waits for it, and the agent before this one may have ended before it said so."""
    told = await lost.catch_up("server1", lost.migration(state), vms=(RUNS,))
    assert any(said.startswith("server1 tells migration-1 stopped") for said in told)
    assert lost.world.running("web") == []


async def test_a_vm_given_away_is_not_said_to_run(lost: TwoServers) -> None:
    assert await lost.after(READY) == []


async def test_a_vm_given_away_whose_machine_has_ended_is_no_news_but_cannot_be_given_back(
    lost: TwoServers,
) -> None:
    """Whether it runs, the target tells."""
    lost.source.machine.die()
    assert await lost.settled() == []
    assert await lost.step("roll_back") == ["server2: unplug web", "server2 tells migration-1 target_closed"]
    told = await lost.step("return_to_source")
    assert told[0].startswith("server1 tells web stopped")
    assert told[1] == "server1 tells migration-1 rolled_back"
    assert await lost.after(READY) == ["server1: start web", "server1 tells web started"]


async def test_a_vm_given_back_that_does_not_run_on_is_reported(lost: TwoServers) -> None:
    lost.source.machine.stuck = True
    await lost.step("roll_back")
    assert await lost.step("return_to_source") == [
        "server1 tells web stopped it does not run on crashed",
        "server1 tells migration-1 rolled_back",
    ]
    # Its end is news again.
    lost.source.machine.die()
    assert await lost.settled() == ["server1 tells web stopped crashed"]
    assert await lost.after(READY) == ["server1: start web", "server1 tells web started"]


async def test_a_vm_given_away_whose_target_runs_is_freed(bench: TwoServers) -> None:
    await bench.prepared()
    bench.target.hypervisor.script["tell"] = "fails"
    await bench.step("start_copy")
    assert await bench.step("roll_back") == ["server2 tells migration-1 resumed 100.5"]
    assert (await bench.step("free_source"))[-1] == "server1 tells migration-1 source_freed"
    assert bench.world.running("web") == ["server2"]


# ---- what ends after a migration ----


async def test_a_vm_that_has_moved_and_ended_can_be_started_again(bench: TwoServers) -> None:
    await bench.prepared()
    await bench.step("start_copy", "free_source")
    bench.target.machine.die()
    await bench.settled()
    here = VMRecord("web", VM.mac, "server2", state=VMState.READY)
    assert await bench.after(ControllerEvent("vm.ready", vm=here)) == [
        "server2: start web",
        "server2 tells web started",
    ]


async def test_a_vm_whose_move_failed_and_that_ended_can_be_started_again(bench: TwoServers) -> None:
    await bench.prepared()
    bench.source.hypervisor.script["copy"] = "fails"
    await bench.step("start_copy", "roll_back")
    bench.source.machine.die()
    await bench.settled()
    assert await bench.after(READY) == ["server1: start web", "server1 tells web started"]


async def test_a_vm_on_its_way_in_is_not_started_beside(bench: TwoServers) -> None:
    """Its traffic comes here already, so it is registered here: that is no order to run it."""
    here = ControllerEvent("vm.ready", vm=VMRecord("web", VM.mac, "server2", state=VMState.RUNNING))
    await bench.copying_until("load", "server2")
    assert await bench.after(here) == []
    bench.target.hypervisor.go_on.set()
    await bench.settled()
    assert bench.world.running("web") == ["server2"]


async def test_a_vm_that_did_not_arrive_is_not_started_beside(lost: TwoServers) -> None:
    here = ControllerEvent("vm.ready", vm=VMRecord("web", VM.mac, "server2", state=VMState.RUNNING))
    assert await lost.after(here) == []


async def test_a_removed_vm_ends_on_its_way(bench: TwoServers) -> None:
    await bench.copying_until("copy")
    await bench.after(ControllerEvent("vm.removed", vm=VM))
    assert [agent.dispatcher.vms for agent in bench.agents.values()] == [{}, {}]
    assert bench.source.machine.ended
    assert bench.target.machine.ended


async def test_the_end_of_a_machine_that_was_replaced_is_no_news(bench: TwoServers) -> None:
    await bench.registered()
    old = bench.source.machine
    old.die()
    await bench.after(READY)
    old.on_event(Exited("web", 1.0))
    assert await bench.settled() == []
    assert bench.source.dispatcher.vms["web"].runs


# ---- the controller comes and goes ----


def reports(told: list[str]) -> list[str]:
    """What server1 has told of the migration."""
    return [line.split()[3] for line in told if line.startswith("server1 tells migration-1")]


async def test_reports_wait_for_the_controller_and_keep_their_order(
    bench: TwoServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinue.agent.controller_link.reports.RETRY_SECONDS", 0)
    await bench.prepared()
    bench.source.rest.away = 3
    assert reports(await bench.step("start_copy")) == ["copy_started", "converged", "stopped"]


async def test_a_rejected_report_does_not_hold_up_the_next(bench: TwoServers) -> None:
    await bench.prepared()
    bench.source.rest.rejects = "copy_started"
    assert reports(await bench.step("start_copy")) == ["converged", "stopped"]


async def test_a_source_goes_on_when_nothing_has_come_between_two_looks(bench: TwoServers) -> None:
    """What was on its way has come between them. Then it has the rest forwarded, and stops the VM."""
    await bench.prepared()
    bench.source.ports.given_so_far = ["7", "9", "12", "12"]
    told = await bench.step("start_copy")
    asked = [line for line in told if line.startswith("server1") and ("converged" in line or "look" in line)]
    watched = ["server1 tells migration-1 converged True", "server1: look"]
    assert asked == ["server1: look", *watched * 3, "server1 tells migration-1 converged"]
    assert reports(told)[-1] == "stopped"


async def test_a_source_does_not_wait_for_ever_for_what_still_comes(
    bench: TwoServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinue.agent.migration.source.OLD_WAY_LIMIT", 0.02)
    await bench.prepared()
    bench.source.ports.given_so_far = [str(count) for count in range(10_000)]
    assert reports(await bench.step("start_copy"))[-2:] == ["converged", "stopped"]


async def test_a_vm_is_handed_over_when_what_it_has_sent_is_on_its_way(bench: TwoServers) -> None:
    """This server's switch has nothing of it any more, and then the controller says so of the fabric."""
    await bench.prepared()
    bench.source.hypervisor.waits_for_sent = True
    taken = bench.source.ports.taken = asyncio.Event()
    gone = bench.source.rest.gone = asyncio.Event()
    going = asyncio.create_task(bench.step("start_copy"))
    for waits, then in (("server1: waits for tap-web", taken), ("server1 asks what has become of it", gone)):
        while waits not in bench.world.log:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert not [line for line in bench.world.log if "asks" in line and line != waits]
        assert bench.world.running("web") == []
        told = list(bench.world.log)
        then.set()
    assert reports(told)[-1] == "stopped"
    assert "server2 tells migration-1 resumed" in str(await going)
    assert bench.world.running("web") == ["server2"]


async def test_what_a_vm_has_sent_is_looked_for_at_the_taps_that_it_has(bench: TwoServers) -> None:
    """Whoever made it named them; we would have named them otherwise."""
    await bench.prepared()
    bench.source.hypervisor.waits_for_sent = True
    bench.source.hypervisor.taps = ("vnet0", "vnet1")
    taken = bench.source.ports.taken = asyncio.Event()
    taken.set()
    assert "server1: waits for vnet0, vnet1" in await bench.step("start_copy")


@pytest.mark.parametrize("late", ["its switch", "the controller"])
async def test_a_vm_does_not_stand_still_for_long_for_what_it_has_sent(
    bench: TwoServers, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    monkeypatch.setattr("retinue.agent.migration.source.GONE_LIMIT", 0.02)
    await bench.prepared()
    bench.source.hypervisor.waits_for_sent = True
    if late == "its switch":
        bench.source.ports.taken = asyncio.Event()
    else:
        bench.source.rest.gone = asyncio.Event()
    assert "server2 tells migration-1 resumed" in str(await bench.step("start_copy"))
    assert bench.world.running("web") == ["server2"]


async def test_a_vm_that_stands_still_already_waits_for_no_look(bench: TwoServers) -> None:
    """Copies come for as long as it does, so none would find the same as the one before."""
    await bench.prepared()
    bench.source.hypervisor.stops_early = True
    bench.source.ports.given_so_far = [str(count) for count in range(10_000)]
    told = await bench.step("start_copy")
    assert reports(told) == ["copy_started", "stopped", "converged"]
    assert "server1: look" not in told


async def test_the_answer_is_waited_for_so_many_times_as_long_as_the_migration_says(
    bench: TwoServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    ask = bench.source.dispatcher.reports.ask

    async def measured(vm: str, path: str, body: dict[str, Any], limit: float) -> dict[str, Any]:
        asked.append(limit)
        return await ask(vm, path, body, limit)

    monkeypatch.setattr(bench.source.dispatcher.reports, "ask", measured)
    bench.step_factor = 3.0
    await bench.prepared()
    await bench.step("start_copy")
    assert 3 * DIVERT_LIMIT in asked
    assert DIVERT_LIMIT not in asked


async def test_a_vm_does_not_move_while_nobody_answers_that_its_traffic_is_diverted(
    bench: TwoServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinue.agent.controller_link.vm_reports.DIVERT_LIMIT", 0.01)
    await bench.prepared()
    bench.source.rest.silent = "converged"
    told = await bench.step("start_copy")
    assert (
        "server1 tells migration-1 failed its traffic is not diverted: the controller has not answered"
        in str(told)
    )
    assert bench.world.running("web") == ["server1"]


async def test_catching_up_does_what_was_missed(bench: TwoServers) -> None:
    waiting = VMRecord("db", "52:54:00:00:00:02", "server1")
    foreign = VMRecord("other", "52:54:00:00:00:09", "server1", reported=True)
    ready = VMRecord("web", VM.mac, "server1", state=VMState.READY)
    far = VMRecord("far", "52:54:00:00:00:03", "server2", state=VMState.RUNNING)
    told = await bench.catch_up(
        "server1", bench.migration("done", "migration-0"), vms=(ready, waiting, foreign, far)
    )
    assert sorted(told) == [
        "server1 tells web started",
        "server1: plug db 52:54:00:00:00:02",
        "server1: plug web 52:54:00:00:00:01",
        "server1: start web",
    ]


async def test_a_vm_the_controller_has_forgotten_runs_on(bench: TwoServers) -> None:
    await bench.registered()
    assert await bench.catch_up("server1", vms=()) == []
    assert bench.world.running("web") == ["server1"]


RUNS = VMRecord("web", VM.mac, "server1", state=VMState.RUNNING)
RUNS_THERE = VMRecord("web", VM.mac, "server2", state=VMState.RUNNING)

STEPS_BEFORE: dict[str, tuple[str, ...]] = {
    "planned": (),
    "matched": (),
    "admitting": ("open_target",),
    "prepared": ("open_target",),
    "switching": ("open_target", "start_copy"),
    "switched": ("open_target", "start_copy"),
    "confirmed": ("open_target", "start_copy"),
    "done": ("open_target", "start_copy", "free_source"),
    "rolling back": ("open_target",),
    "undone": ("open_target", "roll_back"),
}
"""What had been asked when the controller went away, by the state of the migration in which it comes back."""


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("planned", ["server1 tells web started"]),
        ("matched", ["server1 tells web started"]),
        ("admitting", ["server1 tells web started"]),
        ("switching", []),
        ("switched", []),
        ("confirmed", ["server1: quit", "server1: unplug web", "server1 tells migration-1 source_freed"]),
        ("done", []),
        (
            "rolling back",
            [
                "server1 tells web started",
                "server1 tells migration-1 rolled_back",
                "server1 tells web started",
            ],
        ),
        ("undone", ["server1 tells web started"]),
    ],
)
async def test_a_source_that_hears_of_the_controller_again(
    bench: TwoServers, state: str, told: list[str]
) -> None:
    await bench.registered()
    await bench.step(*STEPS_BEFORE[state])
    here = RUNS_THERE if "start_copy" in STEPS_BEFORE[state] else RUNS
    assert await bench.catch_up("server1", bench.migration(state), vms=(here,)) == told
    assert bench.world.running("web") == [here.server]


async def test_a_source_that_had_missed_that_the_copy_may_start_starts_it(bench: TwoServers) -> None:
    await bench.prepared()
    told = await bench.catch_up("server1", bench.migration("prepared"), vms=(RUNS,))
    assert reports(told) == ["copy_started", "converged", "stopped"]
    assert bench.world.running("web") == ["server2"]


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("planned", []),
        (
            "matched",
            [
                "server2: plug web 52:54:00:00:00:01",
                "server2: open web",
                "server2 tells migration-1 target_opened",
            ],
        ),
        ("admitting", []),
        ("prepared", []),
        ("switching", ["server2 tells web started"]),
        ("switched", ["server2 tells web started"]),
        ("confirmed", ["server2 tells web started"]),
        ("done", ["server2 tells web started"]),
        ("rolling back", ["server2: quit", "server2: unplug web", "server2 tells migration-1 target_closed"]),
        ("undone", []),
    ],
)
async def test_a_target_that_hears_of_the_controller_again(
    bench: TwoServers, state: str, told: list[str]
) -> None:
    await bench.registered()
    await bench.step(*STEPS_BEFORE[state])
    here = RUNS_THERE if "start_copy" in STEPS_BEFORE[state] else RUNS
    assert await bench.catch_up("server2", bench.migration(state), vms=(here,)) == told


async def test_a_target_that_had_missed_that_the_move_is_off_withdraws(bench: TwoServers) -> None:
    await bench.prepared()
    assert await bench.catch_up("server2", bench.migration("undone"), vms=(RUNS,)) == [
        "server2: quit",
        "server2: unplug web",
        "server2 tells migration-1 target_closed",
    ]


async def test_a_move_that_is_off_is_no_reason_to_leave_the_next_one(bench: TwoServers) -> None:
    await bench.prepared()
    await bench.step("roll_back")
    await bench.after(
        ControllerEvent("migration.open_target", vm=VM, migration=bench.migration(id="migration-2"))
    )
    migrations = (bench.migration("undone"), bench.migration("admitting", "migration-2"))
    assert await bench.catch_up("server2", *migrations, vms=(RUNS,)) == []


async def test_a_source_whose_move_is_off_hears_of_it_without_a_word(bench: TwoServers) -> None:
    await bench.prepared()
    bench.source.hypervisor.script["copy"] = "fails"
    await bench.step("start_copy", "roll_back")
    assert await bench.catch_up("server1", bench.migration("undone"), vms=(RUNS,)) == [
        "server1 tells web started"
    ]


async def test_a_target_does_not_wait_for_two_moves(bench: TwoServers) -> None:
    """The first is off; that this agent has missed."""
    await bench.prepared()
    second = ControllerEvent("migration.open_target", vm=VM, migration=bench.migration(id="migration-2"))
    assert await bench.after(second) == [
        "server2: quit",
        "server2: open web",
        "server2 tells migration-2 target_opened",
    ]
    await bench.after(ControllerEvent("migration.start_copy", migration=bench.migration(id="migration-2")))
    assert bench.world.running("web") == ["server2"]


@pytest.mark.parametrize("state", ["copying", "diverted"])
async def test_a_copy_under_way_survives_the_controllers_return(bench: TwoServers, state: str) -> None:
    await bench.copying_until("copy")
    here = RUNS_THERE if state == "diverted" else RUNS
    for server in ("server1", "server2"):
        told = await bench.catch_up(server, bench.migration(state), vms=(here,))
        assert set(told) <= {"server1 tells web started"}
    bench.source.hypervisor.go_on.set()
    await bench.settled()
    assert bench.world.running("web") == ["server2"]


# ---- a server fails, and comes back ----


AGAIN = "failed the agent of {0} has started again"


@pytest.mark.parametrize("state", ["planned", "matched", "admitting", "prepared", "copying"])
async def test_a_source_that_lost_its_vm_before_it_was_given_away_starts_it_anew(
    bench: TwoServers, state: str
) -> None:
    """Nothing is given away before its traffic is diverted."""
    await bench.registered()
    await bench.step("open_target")
    await bench.start_again("server1")
    told = await bench.catch_up("server1", bench.migration(state), vms=(RUNS,))
    assert told[:3] == [
        "server1: plug web 52:54:00:00:00:01",
        "server1: start web",
        "server1 tells web started",
    ] or (state == "copying" and "server1: start web" in told)
    assert ("server1 tells migration-1 " + AGAIN.format("server1") in told) == (state == "copying")
    assert bench.world.running("web") == ["server2" if state == "prepared" else "server1"]


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("diverted", ["server1 tells migration-1 " + AGAIN.format("server1")]),
        ("switching", []),
        ("switched", []),
        ("confirmed", ["server1 tells migration-1 source_freed"]),
        ("done", []),
        ("rolling back", []),
    ],
)
async def test_a_source_that_lost_its_vm_after_that_does_not_start_it(
    bench: TwoServers, state: str, told: list[str]
) -> None:
    await bench.copying_until("load", "server2")
    await bench.start_again("server1")
    here = RUNS if state == "rolling back" else RUNS_THERE
    assert await bench.catch_up("server1", bench.migration(state), vms=(here,)) == told
    bench.target.hypervisor.go_on.set()
    await bench.settled()
    assert bench.world.running("web") == ["server2"]


async def test_a_source_that_lost_its_vm_is_given_it_back_in_vain(bench: TwoServers) -> None:
    await bench.prepared()
    await bench.start_again("server1")
    assert await bench.catch_up("server1", bench.migration("rolling back"), vms=(RUNS,)) == []
    assert await bench.step("roll_back") == [
        "server2: quit",
        "server2: unplug web",
        "server2 tells migration-1 target_closed",
    ]
    assert await bench.step("return_to_source") == [
        "server1 tells web stopped the agent of server1 has started again crashed",
        "server1 tells migration-1 rolled_back",
    ]


@pytest.mark.parametrize("state", ["admitting", "prepared", "copying", "diverted"])
async def test_a_target_that_lost_the_vm_says_so(bench: TwoServers, state: str) -> None:
    """Whether it had been given the VM or not: nobody else can know."""
    await bench.copying_until("load", "server2")
    await bench.start_again("server2")
    here = RUNS_THERE if state == "diverted" else RUNS
    assert await bench.catch_up("server2", bench.migration(state), vms=(here,)) == [
        "server2 tells migration-1 " + AGAIN.format("server2")
    ]
    assert await bench.step("roll_back") == ["server2 tells migration-1 target_closed"]
    assert (await bench.step("return_to_source"))[-2:] == [
        "server1 tells migration-1 rolled_back",
        "server1 tells web started",
    ]
    assert bench.world.running("web") == ["server1"]


@pytest.mark.parametrize("state", ["switching", "switched", "confirmed", "done"])
async def test_a_target_that_lost_the_vm_after_it_ran_starts_it_anew(bench: TwoServers, state: str) -> None:
    await bench.prepared()
    await bench.step("start_copy")
    await bench.start_again("server2")
    assert await bench.catch_up("server2", bench.migration(state), vms=(RUNS_THERE,)) == [
        "server2: plug web 52:54:00:00:00:01",
        "server2: start web",
        "server2 tells web started",
    ]


async def test_a_machine_left_waiting_that_is_ended_is_no_reason_to_start_its_vm(bench: TwoServers) -> None:
    """What an agent finds, of a migration whose target it is, has never run; the source still has the VM."""
    await bench.prepared()
    waited = bench.target.machine
    await bench.start_again("server2")
    waited.ended, waited.on_event = False, bench.target.dispatcher.listener("web")
    await waited.quit()
    assert await bench.settled() == ["server2: quit"]
    assert await bench.catch_up("server2", bench.migration("diverted"), vms=(RUNS_THERE,)) == [
        "server2 tells migration-1 " + AGAIN.format("server2")
    ]
    assert bench.world.running("web") == ["server1"]


async def test_a_target_that_lost_the_vm_opens_again_what_is_not_admitted_yet(bench: TwoServers) -> None:
    await bench.prepared()
    await bench.start_again("server2")
    told = await bench.catch_up("server2", bench.migration("matched"), vms=(RUNS,))
    assert told[-1] == "server2 tells migration-1 target_opened"
    await bench.step("start_copy")
    assert bench.world.running("web") == ["server2"]


# ---- the stream ----


async def test_the_stream_is_followed_on_from_the_last_event(
    bench: TwoServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinue.agent.main.AGAIN_SECONDS", 0)
    ready, agent = asyncio.Event(), bench.source
    renewer = Renewals()
    following = asyncio.create_task(follow(agent.rest, agent.dispatcher, renewer, ready))
    for stream in (
        ControllerAwayError("not yet"),
        [ControllerEvent("hello", id=4), ControllerEvent("vm.registered", id=5, vm=VM)],
        [ControllerEvent("hello", id=9), ControllerEvent("vm.ready", id=9, vm=VM)],
        [ControllerEvent("hello", id=2), ControllerEvent("vm.renew", id=3, renewal={"id": "renew-1"})],
        [],
    ):
        agent.rest.streams.put_nowait(stream)
    async with asyncio.timeout(60):
        await ready.wait()
        asked = [await agent.rest.since.get() for _ in range(6)]
    following.cancel()
    # Not from a number that the controller, started again, has not reached.
    assert asked == [None, None, 5, 9, 3, 3]
    assert "server1: start web" in await bench.settled()
    assert renewer.taken == [{"id": "renew-1"}]


class Renewals:
    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []

    def take(self, renewal: dict[str, Any]) -> None:
        self.taken.append(renewal)


# ---- a migration in which the controller has no part ----


async def by_hand(bench: TwoServers) -> MigrationResult:
    memory_at = await bench.target.dispatcher.by_hand.take_in(VM, "by-hand-1", "server1")
    bench.world.departed.add("web")
    kept = bench.source.dispatcher.vms["web"]
    return await bench.source.dispatcher.by_hand.give(kept, "by-hand-1", memory_at, "server2")


async def test_a_move_without_the_controller_is_told_to_nobody(bench: TwoServers) -> None:
    await bench.registered()
    moved = await by_hand(bench)
    # At once: who gave it away knows that it runs there.
    assert bench.target.dispatcher.vms["web"].runs
    assert (moved.stopped_at, moved.resumed_at) == (100.0, 100.5)
    assert await bench.settled() == [
        "server2: plug web 52:54:00:00:00:01",
        "server2: open web",
        "server1: outgoing",
        "server2: runs",
        "server1: quit",
        "server1: unplug web",
    ]
    assert bench.source.dispatcher.vms == {}
    with pytest.raises(HostError, match="VM web is on server2 already"):
        await bench.target.dispatcher.by_hand.take_in(VM, "by-hand-2", "server1")
    # Its end at the new place is news.
    bench.target.machine.die()
    assert await bench.settled() == ["server2 tells web stopped crashed"]


async def test_a_move_without_the_controller_that_fails_leaves_the_vm_where_it_was(bench: TwoServers) -> None:
    await bench.registered()
    bench.source.hypervisor.script["copy"] = "fails"
    with pytest.raises(HostError, match="copy fails"):
        await by_hand(bench)
    assert "server2: unplug web" in await bench.settled()
    assert bench.target.dispatcher.vms == {}
    assert bench.world.running("web") == ["server1"]
    bench.source.hypervisor.script.clear()
    await by_hand(bench)
    assert bench.world.running("web") == ["server2"]


async def test_a_vm_given_away_by_hand_stands_still_until_it_is_known_where_it_runs(
    bench: TwoServers,
) -> None:
    await bench.registered()
    bench.target.hypervisor.script["tell"] = "fails"
    with pytest.raises(HandedOverError):
        await by_hand(bench)
    assert bench.world.running("web") == ["server2"]
    kept = bench.source.dispatcher.vms["web"]
    with pytest.raises(HostError, match="does not run on server1"):
        await bench.source.dispatcher.by_hand.give(
            kept, "by-hand-2", bench.target.transfer.address, "server2"
        )
    await bench.source.dispatcher.by_hand.drop(kept)
    assert bench.source.dispatcher.vms == {}


@pytest.mark.parametrize("part", ["ports", "hypervisor"])
async def test_a_server_that_cannot_take_a_vm_in_keeps_nothing_of_it(bench: TwoServers, part: str) -> None:
    getattr(bench.target, part).broken = "no room"
    with pytest.raises(HostError, match="no room"):
        await bench.target.dispatcher.by_hand.take_in(VM, "by-hand-1", "server1")
    assert bench.target.dispatcher.vms == {}
    getattr(bench.target, part).broken = ""
    await bench.registered()
    await by_hand(bench)


async def test_a_vm_that_is_being_moved_is_not_given_away_beside(bench: TwoServers) -> None:
    await bench.copying_until("copy")
    with pytest.raises(HostError, match="is being migrated already: migration-1"):
        await bench.source.dispatcher.by_hand.give(
            bench.source.dispatcher.vms["web"], "by-hand-1", "x:1", "server2"
        )


async def test_what_waits_for_a_vm_that_does_not_come_is_dropped(bench: TwoServers) -> None:
    await bench.target.dispatcher.by_hand.take_in(VM, "by-hand-1", "server1")
    bench.world.take()
    await bench.target.dispatcher.by_hand.drop(bench.target.dispatcher.vms["web"])
    assert bench.world.take() == ["server2: quit", "server2: unplug web"]
    assert bench.target.dispatcher.vms == {}
    # Nor is it let in any more.
    await bench.registered()
    with pytest.raises(HostError, match="does not let the migration in"):
        await bench.source.dispatcher.by_hand.give(
            bench.source.dispatcher.vms["web"], "by-hand-1", bench.target.transfer.address, "server2"
        )
    assert bench.world.running("web") == ["server1"]


async def test_a_vm_that_is_dropped_and_removed_at_once_is_gone_once(bench: TwoServers) -> None:
    await bench.registered()
    bench.source.dispatcher.on_event(ControllerEvent("vm.removed", vm=VM))
    await bench.source.dispatcher.by_hand.drop(bench.source.dispatcher.vms["web"])
    assert await bench.settled() == ["server1: quit", "server1: unplug web", "server1: unplug web"]
    assert bench.source.dispatcher.vms == {}


async def test_an_agent_that_ends_calls_off_what_is_under_way(bench: TwoServers) -> None:
    await bench.copying_until("stop")
    async with asyncio.timeout(60):
        await bench.source.dispatcher.close()
    assert "server1: cont" in bench.world.take()
    await bench.settled()
    assert bench.target.machine.ended
