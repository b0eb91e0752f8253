"""The agents of two servers as dialogues: the controller's events go in, what is done and told comes out."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent_world import COPIES_FROM, VM, Bench, bench_up
from retinue.agent.daemon import follow
from retinue.agent.records import Happening, MoveRecord, VMRecord
from retinue.agent.rest import ControllerAwayError
from retinue.hypervisor import Gone, HandedOverError, HypervisorError, MigrationResult, RunState


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with bench_up() as made:
        yield made


UNDONE = [
    "server1 tells move-1 rolled_back",
    "server2: unplug web",
    "server2 tells move-1 target_gone",
]


def by_server(told: list[str]) -> list[str]:
    """In order for each server: neither waits for the other."""
    return sorted(told, key=lambda line: line[: len("server1")])


READY, BOOKED = Happening("vm.ready", vm=VM), Happening("vm.booked", vm=VM)

# ---- a VM's life ----


async def test_a_booked_vm_is_plugged_in_and_a_ready_one_started(bench: Bench) -> None:
    assert await bench.after(BOOKED) == ["server1: plug web 52:54:00:00:00:01"]
    assert await bench.after(READY) == ["server1: start web", "server1 tells web started"]
    spec = bench.source.machine.spec
    assert (spec.port, spec.mac, str(spec.kernel)) == ("tap-web", VM.mac, "/g/vmlinuz")


async def test_a_repeated_word_changes_nothing_and_is_answered_again(bench: Bench) -> None:
    await bench.booked()
    assert await bench.after(BOOKED) == []
    assert await bench.after(READY) == ["server1 tells web started"]


async def test_a_removed_vm_ends_before_its_port_goes(bench: Bench) -> None:
    await bench.booked()
    removed = Happening("vm.removed", vm=VM)
    assert await bench.after(removed) == ["server1: quit", "server1: unplug web"]
    assert bench.source.keeper.vms == {}
    assert bench.source.keeper.consoles == {}
    assert await bench.after(removed) == []


async def test_a_vm_removed_and_booked_again_at_once_is_there(bench: Bench) -> None:
    await bench.booked()
    again = VMRecord("web", "52:54:00:00:00:02", "server1")
    assert await bench.after(
        Happening("vm.removed", vm=VM), Happening("vm.booked", vm=again), Happening("vm.ready", vm=again)
    ) == [
        "server1: quit",
        "server1: unplug web",
        "server1: plug web 52:54:00:00:00:02",
        "server1: start web",
        "server1 tells web started",
    ]
    bench.source.machine.die()
    assert await bench.settled() == ["server1 tells web stopped"]


async def test_a_vm_removed_and_booked_at_another_server_is_there(bench: Bench) -> None:
    await bench.booked()
    again = VMRecord("web", "52:54:00:00:00:02", "server2")
    told = await bench.after(Happening("vm.removed", vm=VM), Happening("vm.ready", vm=again))
    assert [line for line in told if line.startswith("server1")] == ["server1: quit", "server1: unplug web"]
    assert [line for line in told if line.startswith("server2")] == [
        "server2: plug web 52:54:00:00:00:02",
        "server2: start web",
        "server2 tells web started",
    ]


async def test_a_vm_that_ends_by_itself_is_reported_and_can_be_started_again(bench: Bench) -> None:
    await bench.booked()
    bench.source.machine.die()
    assert await bench.settled() == ["server1 tells web stopped"]
    assert await bench.after(READY) == ["server1: start web", "server1 tells web started"]


async def test_a_vm_that_does_not_start_is_reported_with_the_reason(bench: Bench) -> None:
    bench.source.hypervisor.broken = "no kernel"
    assert (await bench.after(READY))[-1] == "server1 tells web stopped no kernel"


async def test_one_vm_in_trouble_does_not_hold_up_another(bench: Bench) -> None:
    bench.source.ports.broken = "no bridge"
    assert await bench.after(BOOKED) == []
    bench.source.ports.broken = ""
    other = VMRecord("db", "52:54:00:00:00:03", "server1")
    assert await bench.after(Happening("vm.booked", vm=other), READY) == [
        "server1: plug db 52:54:00:00:00:03",
        "server1: plug web 52:54:00:00:00:01",
        "server1: start web",
        "server1 tells web started",
    ]


async def test_what_is_another_servers_affair_is_left_to_it(bench: Bench) -> None:
    elsewhere = VMRecord("far", "52:54:00:00:00:03", "server9")
    move = MoveRecord("move-9", "far", "server8", "server9")
    steps = (Happening(f"move.{s}", vm=elsewhere, move=move) for s in ("prepare", "copy", "cleanup"))
    back = (Happening(f"move.{s}", vm=elsewhere, move=move) for s in ("rollback", "return"))
    vms = (Happening(f"vm.{s}", vm=elsewhere) for s in ("booked", "ready", "removed"))
    assert await bench.after(*vms, *steps, *back, Happening("hello")) == []
    assert [agent.keeper.vms for agent in bench.agents.values()] == [{}, {}]


async def test_a_vm_that_its_server_made_by_itself_is_not_run_by_us(bench: Bench) -> None:
    foreign = VMRecord("other", "52:54:00:00:00:09", "server1", reported=True)
    assert await bench.after(Happening("vm.booked", vm=foreign), Happening("vm.ready", vm=foreign)) == []


# ---- a move ----


async def test_a_move_from_end_to_end(bench: Bench) -> None:
    await bench.booked()
    assert await bench.step("prepare") == [
        "server2: plug web 52:54:00:00:00:01",
        "server2: open web",
        "server2 tells move-1 target_open",
    ]
    assert bench.target.rest.memory_at == bench.target.transfer.address
    told = await bench.step("copy")
    # The word that stopped it and the word that it runs come from two servers: neither waits for the other.
    assert [line for line in told if line.startswith("server1")] == [
        "server1 tells move-1 copying",
        "server1: depart",
        "server1 tells move-1 converged",
        "server1 tells move-1 stopped 100.0",
    ]
    assert [line for line in told if line.startswith("server2")] == [
        "server2: runs",
        "server2 tells move-1 resumed 100.5",
    ]
    assert told.index("server1 tells move-1 converged") < told.index("server2: runs")
    assert await bench.step("cleanup") == [
        "server1: quit",
        "server1: unplug web",
        "server1 tells move-1 source_gone",
    ]
    assert bench.source.keeper.vms == {}
    assert bench.world.running("web") == ["server2"]
    # Its end at the new place is news again.
    bench.target.machine.die()
    assert await bench.settled() == ["server2 tells web stopped"]


async def test_a_vm_is_moved_on_and_back_again(bench: Bench) -> None:
    await bench.prepared()
    await bench.step("copy", "cleanup")
    here = VMRecord("web", VM.mac, "server2")
    back = MoveRecord("move-2", "web", "server2", "server1", "", bench.source.transfer.address)
    for name in ("prepare", "copy", "cleanup"):
        told = await bench.after(Happening(f"move.{name}", vm=here, move=back))
    assert told == ["server2: quit", "server2: unplug web", "server2 tells move-2 source_gone"]
    assert bench.world.running("web") == ["server1"]
    assert len(bench.source.keeper.consoles["web"]) == 2


async def test_a_vm_comes_back_to_a_server_that_has_not_been_freed_of_it(bench: Bench) -> None:
    """The controller has lost its memory of the first move."""
    await bench.prepared()
    await bench.step("copy")
    bench.world.take()
    here = VMRecord("web", VM.mac, "server2")
    back = MoveRecord("move-1b", "web", "server2", "server1", "", bench.source.transfer.address)
    assert await bench.after(Happening("move.prepare", vm=here, move=back)) == [
        "server1: quit",
        "server1: open web",
        "server1 tells move-1b target_open",
    ]
    await bench.after(Happening("move.copy", vm=here, move=back))
    assert bench.world.running("web") == ["server1"]
    assert await bench.after(Happening("vm.ready", vm=VM)) == ["server1 tells web started"]


async def test_every_step_asked_for_twice_is_answered_twice_and_done_once(bench: Bench) -> None:
    await bench.prepared()
    assert await bench.step("prepare") == ["server2 tells move-1 target_open"]
    await bench.step("copy")
    assert await bench.step("prepare") == ["server2 tells move-1 resumed 100.5"]
    assert await bench.step("copy") == []  # The target has said how it went.
    await bench.step("cleanup")
    assert await bench.step("cleanup") == ["server1 tells move-1 source_gone"]


async def test_a_copy_asked_for_again_while_it_is_under_way_is_one_copy(bench: Bench) -> None:
    await bench.copying_until("copy")
    assert await bench.step("copy") == []


async def test_what_had_come_for_a_vm_is_counted_when_its_move_is_off(bench: Bench) -> None:
    await bench.prepared()
    bench.world.frames_waiting, bench.world.frames_come = 7, 40
    bench.source.machine.now = RunState.PAUSED
    told = await bench.step("rollback")
    assert "server1 tells move-1 rolled_back 7" in told
    assert "server2 tells move-1 target_gone 40" in told


async def test_a_vm_that_ended_when_told_to_run_has_moved_and_does_not_go_back(bench: Bench) -> None:
    await bench.prepared()
    bench.target.hypervisor.script["run"] = "fails"
    told = await bench.step("copy")
    assert "server2 tells move-1 resumed" in " ".join(told)
    assert any(word.startswith("server2 tells web stopped") for word in told), told
    assert not any("failed" in word or "target_gone" in word for word in told)


async def test_a_rollback_asked_for_twice_is_answered_twice_and_done_once(bench: Bench) -> None:
    await bench.prepared()
    assert by_server(await bench.step("rollback")) == [UNDONE[0], "server2: quit", *UNDONE[1:]]
    assert by_server(await bench.step("rollback")) == [
        "server1 tells move-1 rolled_back",
        "server2 tells move-1 target_gone",
    ]


async def test_one_of_two_equal_events_alone_is_enough(bench: Bench) -> None:
    twice = [Happening("move.prepare", vm=VM, move=bench.move())] * 2
    await bench.booked()
    assert await bench.after(*twice) == [
        "server2: plug web 52:54:00:00:00:01",
        "server2: open web",
        *["server2 tells move-1 target_open"] * 2,
    ]


# ---- a move that fails ----


async def test_a_target_that_does_not_open_fails_the_move(bench: Bench) -> None:
    await bench.booked()
    bench.target.hypervisor.broken = "no memory"
    assert (await bench.step("prepare"))[-1] == "server2 tells move-1 failed no memory"
    assert by_server(await bench.step("rollback")) == UNDONE


async def test_a_target_without_a_port_fails_the_move(bench: Bench) -> None:
    await bench.booked()
    bench.target.ports.broken = "no bridge"
    assert await bench.step("prepare") == ["server2 tells move-1 failed no bridge"]


async def test_a_copy_that_fails_is_reported_and_rolled_back_and_may_be_tried_again(bench: Bench) -> None:
    await bench.prepared()
    bench.source.hypervisor.script["copy"] = "fails"
    told = await bench.step("copy")
    assert "server1 tells move-1 failed copy fails" in told
    assert any(line.startswith("server2 tells move-1 failed the other end") for line in told)
    assert by_server(await bench.step("rollback")) == UNDONE
    assert bench.world.running("web") == ["server1"]
    bench.source.hypervisor.script.clear()
    await bench.step("prepare", "copy", "cleanup")
    assert bench.world.running("web") == ["server2"]


async def test_a_vm_whose_traffic_is_not_diverted_does_not_move(bench: Bench) -> None:
    await bench.prepared()
    bench.source.rest.refuses = "converged"
    told = await bench.step("copy")
    assert "server1 tells move-1 failed its traffic is not diverted: does not fit" in told
    assert "server2: runs" not in told
    assert bench.world.running("web") == ["server1"]


async def test_a_vm_moves_when_its_switch_is_seen_to_have_nothing_more_for_it(bench: Bench) -> None:
    await bench.prepared()
    ports = bench.source.ports
    ports.still_fed = "the switch follows its tables too late"
    told = await bench.step("copy")
    assert "server1 tells move-1 failed the switch follows its tables too late" in told
    assert "server1 tells move-1 stopped 100.0" not in told
    assert ports.bypassed == [(bench.source.machine.spec.port, COPIES_FROM)]
    assert bench.world.running("web") == ["server1"]


async def test_a_target_that_nobody_listens_at_fails_the_move(bench: Bench) -> None:
    await bench.prepared()
    await bench.target.transfer.close()
    told = await bench.step("copy")
    assert told[-1].startswith("server1 tells move-1 failed the agent of server2 cannot be reached at 127.")
    assert "server1: depart" not in told
    assert bench.world.running("web") == ["server1"]


async def test_a_move_the_target_does_not_expect_fails(bench: Bench) -> None:
    await bench.booked()
    told = await bench.step("copy")
    assert told[-1].startswith("server1 tells move-1 failed the agent of server2 does not let the move in")
    assert "server1: depart" not in told


async def test_a_source_that_still_runs_the_vm_is_not_freed(bench: Bench) -> None:
    await bench.prepared()
    assert await bench.step("cleanup") == []
    assert bench.world.running("web") == ["server1"]


async def test_a_source_that_is_gone_after_a_rollback_is_told(bench: Bench) -> None:
    await bench.prepared()
    bench.source.machine.die()
    told = [line for line in await bench.step("rollback") if line.startswith("server1")]
    assert told[0] == "server1 tells web stopped"
    assert told[-1] == "server1 tells move-1 rolled_back"


async def test_an_agent_that_does_not_know_the_vm_says_so(bench: Bench) -> None:
    assert await bench.step("copy") == [
        "server1 tells move-1 failed the agent of server1 does not run VM web"
    ]
    assert await bench.step("cleanup") == ["server1 tells move-1 source_gone"]
    assert "server2 tells move-1 target_gone" in await bench.step("rollback")


async def test_a_source_whose_vm_has_ended_has_nothing_to_copy(bench: Bench) -> None:
    await bench.prepared()
    bench.source.machine.die()
    told = await bench.step("copy")
    assert told[-1] == "server1 tells move-1 failed VM web does not run on server1"


async def test_a_source_is_freed_after_it_has_heard_that_the_vm_runs(bench: Bench) -> None:
    """The target's word to the controller may be faster than that to the source."""
    await bench.copying_until("give")
    bench.source.keeper.take(Happening("move.cleanup", move=bench.move()))
    await asyncio.sleep(0)
    assert not bench.source.machine.ended
    bench.source.hypervisor.go_on.set()
    assert (await bench.settled())[-1] == "server1 tells move-1 source_gone"
    assert bench.world.running("web") == ["server2"]


async def test_a_target_that_has_failed_opens_anew_when_it_is_asked_again(bench: Bench) -> None:
    await bench.prepared()
    bench.target.hypervisor.script["load"] = "fails"
    assert not any("web stopped" in line for line in await bench.step("copy"))
    bench.target.hypervisor.script.clear()
    assert await bench.step("prepare") == ["server2: open web", "server2 tells move-1 target_open"]
    await bench.step("copy")
    assert bench.world.running("web") == ["server2"]


# ---- a rollback, wherever the move is ----


async def test_a_rollback_before_the_copy(bench: Bench) -> None:
    await bench.prepared()
    await bench.step("rollback")
    assert bench.world.running("web") == ["server1"]
    assert bench.target.keeper.vms == {}


@pytest.mark.parametrize("point", ["copy", "stop"])
async def test_a_rollback_calls_off_a_copy_under_way(bench: Bench, point: str) -> None:
    await bench.copying_until(point)
    told = await bench.step("rollback")
    assert ("server1: cont" in told) == (point == "stop")
    assert [line for line in told if "tells" in line and "failed" not in line] == [
        "server1 tells move-1 rolled_back",
        "server2 tells move-1 target_gone",
    ]
    assert bench.target.machine.ended
    assert bench.world.running("web") == ["server1"]


async def test_a_rollback_while_the_traffic_is_being_diverted_leaves_the_vm_where_it_is(bench: Bench) -> None:
    await bench.prepared()
    bench.source.rest.silent = "converged"
    bench.source.keeper.take(Happening("move.copy", move=bench.move()))
    await bench.source.hypervisor.reached["divert"].wait()
    told = await bench.step("rollback")
    assert "server2: runs" not in told
    assert {"server1 tells move-1 rolled_back", "server2 tells move-1 target_gone"} <= set(told)
    assert bench.target.machine.ended
    assert bench.world.running("web") == ["server1"]


async def test_a_rollback_after_the_hand_over_waits_for_the_targets_word(bench: Bench) -> None:
    """The source cannot know whether the VM runs: it does not run it before the target has said no."""
    await bench.copying_until("load", "server2")
    told = await bench.after(Happening("move.rollback", move=MoveRecord("move-1", "web", "server1", "x")))
    assert told == []
    assert bench.world.running("web") == []
    told = await bench.step("rollback")
    assert told == ["server2: unplug web", "server2 tells move-1 target_gone"]
    assert await bench.step("return") == ["server1: cont", "server1 tells move-1 rolled_back"]
    assert bench.world.running("web") == ["server1"]


async def test_a_rollback_after_the_hand_over_does_not_touch_a_target_that_runs(bench: Bench) -> None:
    await bench.copying_until("give")
    await bench.target.hypervisor.reached["tell"].wait()
    assert await bench.step("rollback") == ["server2 tells move-1 resumed 100.5"]
    assert bench.world.running("web") == ["server2"]
    assert await bench.step("cleanup") == [
        "server1: quit",
        "server1: unplug web",
        "server1 tells move-1 source_gone",
    ]
    assert bench.world.running("web") == ["server2"]


async def test_a_vm_that_has_moved_is_not_sent_back_to_its_past(bench: Bench) -> None:
    await bench.prepared()
    await bench.step("copy")
    assert await bench.step("rollback") == ["server2 tells move-1 resumed 100.5"]
    assert bench.world.running("web") == ["server2"]
    assert await bench.target.machine.state() is RunState.RUNNING


async def test_a_target_that_fails_after_the_hand_over_gives_the_vm_back(bench: Bench) -> None:
    await bench.prepared()
    bench.target.hypervisor.script["load"] = "fails"
    told = await bench.step("copy")
    assert "server1 tells move-1 failed the target could not take the VM in: load fails" in told
    assert "server2 tells move-1 failed load fails" in told
    assert "server1: cont" in told
    assert bench.world.running("web") == ["server1"]


# ---- a VM handed over, and no word from the target ----


@pytest.fixture
async def lost(bench: Bench) -> Bench:
    """The target ended between hand-over and its word."""
    await bench.prepared()
    bench.target.hypervisor.script["load"], bench.target.hypervisor.mute = "fails", True
    assert "server1: cont" not in await bench.step("copy")
    assert bench.world.running("web") == []
    return bench


async def test_a_vm_given_away_stays_stopped_until_it_is_given_back(lost: Bench) -> None:
    assert await lost.step("rollback") == ["server2: unplug web", "server2 tells move-1 target_gone"]
    assert lost.world.running("web") == []
    assert await lost.step("copy") == []
    assert await lost.step("return") == ["server1: cont", "server1 tells move-1 rolled_back"]
    assert await lost.step("return") == ["server1 tells move-1 rolled_back"]
    assert lost.world.running("web") == ["server1"]
    # It is as it was before.
    lost.target.hypervisor.script.clear()
    await lost.step("prepare", "copy", "cleanup")
    assert lost.world.running("web") == ["server2"]


async def test_a_vm_given_away_is_not_said_to_run(lost: Bench) -> None:
    assert await lost.after(READY) == []


async def test_a_vm_given_away_whose_machine_has_ended_is_no_news_but_cannot_be_given_back(
    lost: Bench,
) -> None:
    """Whether it runs, the target tells."""
    lost.source.machine.die()
    assert await lost.settled() == []
    assert await lost.step("rollback") == ["server2: unplug web", "server2 tells move-1 target_gone"]
    told = await lost.step("return")
    assert told[0].startswith("server1 tells web stopped")
    assert told[1] == "server1 tells move-1 rolled_back"
    assert await lost.after(READY) == ["server1: start web", "server1 tells web started"]


async def test_a_vm_given_back_that_does_not_run_on_is_reported(lost: Bench) -> None:
    lost.source.machine.stuck = True
    await lost.step("rollback")
    assert await lost.step("return") == [
        "server1 tells web stopped it does not run on",
        "server1 tells move-1 rolled_back",
    ]
    # Its end is news again.
    lost.source.machine.die()
    assert await lost.settled() == ["server1 tells web stopped"]
    assert await lost.after(READY) == ["server1: start web", "server1 tells web started"]


async def test_a_vm_given_away_whose_target_runs_is_freed(bench: Bench) -> None:
    await bench.prepared()
    bench.target.hypervisor.script["tell"] = "fails"
    await bench.step("copy")
    assert await bench.step("rollback") == ["server2 tells move-1 resumed 100.5"]
    assert (await bench.step("cleanup"))[-1] == "server1 tells move-1 source_gone"
    assert bench.world.running("web") == ["server2"]


# ---- what ends after a move ----


async def test_a_vm_that_has_moved_and_ended_can_be_started_again(bench: Bench) -> None:
    await bench.prepared()
    await bench.step("copy", "cleanup")
    bench.target.machine.die()
    await bench.settled()
    here = VMRecord("web", VM.mac, "server2", state="ready")
    assert await bench.after(Happening("vm.ready", vm=here)) == [
        "server2: start web",
        "server2 tells web started",
    ]


async def test_a_vm_whose_move_failed_and_that_ended_can_be_started_again(bench: Bench) -> None:
    await bench.prepared()
    bench.source.hypervisor.script["copy"] = "fails"
    await bench.step("copy", "rollback")
    bench.source.machine.die()
    await bench.settled()
    assert await bench.after(READY) == ["server1: start web", "server1 tells web started"]


async def test_a_vm_on_its_way_in_is_not_started_beside(bench: Bench) -> None:
    """Its traffic comes here already, so it is booked here: that is no order to run it."""
    here = Happening("vm.ready", vm=VMRecord("web", VM.mac, "server2", state="running"))
    await bench.copying_until("load", "server2")
    assert await bench.after(here) == []
    bench.target.hypervisor.go_on.set()
    await bench.settled()
    assert bench.world.running("web") == ["server2"]


async def test_a_vm_that_did_not_arrive_is_not_started_beside(lost: Bench) -> None:
    here = Happening("vm.ready", vm=VMRecord("web", VM.mac, "server2", state="running"))
    assert await lost.after(here) == []


async def test_a_removed_vm_ends_on_its_way(bench: Bench) -> None:
    await bench.copying_until("copy")
    await bench.after(Happening("vm.removed", vm=VM))
    assert [agent.keeper.vms for agent in bench.agents.values()] == [{}, {}]
    assert bench.source.machine.ended
    assert bench.target.machine.ended


async def test_the_end_of_a_machine_that_was_replaced_is_no_news(bench: Bench) -> None:
    await bench.booked()
    old = bench.source.machine
    old.die()
    await bench.after(READY)
    old.on_event(Gone("web", 1.0))
    assert await bench.settled() == []
    assert bench.source.keeper.vms["web"].runs


# ---- the controller comes and goes ----


def reports(told: list[str]) -> list[str]:
    """What server1 has told of the move."""
    return [line.split()[3] for line in told if line.startswith("server1 tells move-1")]


async def test_reports_wait_for_the_controller_and_keep_their_order(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinue.agent.rest.RETRY_SECONDS", 0)
    await bench.prepared()
    bench.source.rest.away = 3
    assert reports(await bench.step("copy")) == ["copying", "converged", "stopped"]


async def test_a_refused_report_does_not_hold_up_the_next(bench: Bench) -> None:
    await bench.prepared()
    bench.source.rest.refuses = "copying"
    assert reports(await bench.step("copy")) == ["converged", "stopped"]


async def test_a_vm_does_not_move_while_nobody_answers_that_its_traffic_is_diverted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinue.agent.ward.DIVERT_SECONDS", 0.01)
    await bench.prepared()
    bench.source.rest.silent = "converged"
    told = await bench.step("copy")
    assert "server1 tells move-1 failed its traffic is not diverted: the controller has not answered" in str(
        told
    )
    assert bench.world.running("web") == ["server1"]


async def test_catching_up_does_what_was_missed(bench: Bench) -> None:
    waiting = VMRecord("db", "52:54:00:00:00:02", "server1")
    foreign = VMRecord("other", "52:54:00:00:00:09", "server1", reported=True)
    ready = VMRecord("web", VM.mac, "server1", state="ready")
    far = VMRecord("far", "52:54:00:00:00:03", "server2", state="running")
    told = await bench.catch_up("server1", bench.move("done", "move-0"), vms=(ready, waiting, foreign, far))
    assert sorted(told) == [
        "server1 tells web started",
        "server1: plug db 52:54:00:00:00:02",
        "server1: plug web 52:54:00:00:00:01",
        "server1: start web",
    ]


async def test_a_vm_the_controller_has_forgotten_runs_on(bench: Bench) -> None:
    await bench.booked()
    assert await bench.catch_up("server1", vms=()) == []
    assert bench.world.running("web") == ["server1"]


RUNS = VMRecord("web", VM.mac, "server1", state="running")
RUNS_THERE = VMRecord("web", VM.mac, "server2", state="running")

STEPS_BEFORE: dict[str, tuple[str, ...]] = {
    "planned": (),
    "matched": (),
    "admitting": ("prepare",),
    "prepared": ("prepare",),
    "switching": ("prepare", "copy"),
    "switched": ("prepare", "copy"),
    "confirmed": ("prepare", "copy"),
    "done": ("prepare", "copy", "cleanup"),
    "rolling back": ("prepare",),
    "undone": ("prepare", "rollback"),
}
"""What had been asked when the controller went away, by the state of the move in which it comes back."""


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("planned", ["server1 tells web started"]),
        ("matched", ["server1 tells web started"]),
        ("admitting", ["server1 tells web started"]),
        ("switching", []),
        ("switched", []),
        ("confirmed", ["server1: quit", "server1: unplug web", "server1 tells move-1 source_gone"]),
        ("done", []),
        ("rolling back", ["server1 tells web started", "server1 tells move-1 rolled_back"]),
        ("undone", ["server1 tells web started"]),
    ],
)
async def test_a_source_that_hears_of_the_controller_again(bench: Bench, state: str, told: list[str]) -> None:
    await bench.booked()
    await bench.step(*STEPS_BEFORE[state])
    here = RUNS_THERE if "copy" in STEPS_BEFORE[state] else RUNS
    assert await bench.catch_up("server1", bench.move(state), vms=(here,)) == told
    assert bench.world.running("web") == [here.server]


async def test_a_source_that_had_missed_that_the_copy_may_start_starts_it(bench: Bench) -> None:
    await bench.prepared()
    told = await bench.catch_up("server1", bench.move("prepared"), vms=(RUNS,))
    assert reports(told) == ["copying", "converged", "stopped"]
    assert bench.world.running("web") == ["server2"]


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("planned", []),
        (
            "matched",
            ["server2: plug web 52:54:00:00:00:01", "server2: open web", "server2 tells move-1 target_open"],
        ),
        ("admitting", []),
        ("prepared", []),
        ("switching", ["server2 tells web started"]),
        ("switched", ["server2 tells web started"]),
        ("confirmed", ["server2 tells web started"]),
        ("done", ["server2 tells web started"]),
        ("rolling back", ["server2: quit", "server2: unplug web", "server2 tells move-1 target_gone"]),
        ("undone", []),
    ],
)
async def test_a_target_that_hears_of_the_controller_again(bench: Bench, state: str, told: list[str]) -> None:
    await bench.booked()
    await bench.step(*STEPS_BEFORE[state])
    here = RUNS_THERE if "copy" in STEPS_BEFORE[state] else RUNS
    assert await bench.catch_up("server2", bench.move(state), vms=(here,)) == told


async def test_a_target_that_had_missed_that_the_move_is_off_withdraws(bench: Bench) -> None:
    await bench.prepared()
    assert await bench.catch_up("server2", bench.move("undone"), vms=(RUNS,)) == [
        "server2: quit",
        "server2: unplug web",
        "server2 tells move-1 target_gone",
    ]


async def test_a_move_that_is_off_is_no_reason_to_leave_the_next_one(bench: Bench) -> None:
    await bench.prepared()
    await bench.step("rollback")
    await bench.after(Happening("move.prepare", vm=VM, move=bench.move(id="move-2")))
    moves = (bench.move("undone"), bench.move("admitting", "move-2"))
    assert await bench.catch_up("server2", *moves, vms=(RUNS,)) == []


async def test_a_source_whose_move_is_off_hears_of_it_without_a_word(bench: Bench) -> None:
    await bench.prepared()
    bench.source.hypervisor.script["copy"] = "fails"
    await bench.step("copy", "rollback")
    assert await bench.catch_up("server1", bench.move("undone"), vms=(RUNS,)) == ["server1 tells web started"]


async def test_a_target_does_not_wait_for_two_moves(bench: Bench) -> None:
    """The first is off; that this agent has missed."""
    await bench.prepared()
    second = Happening("move.prepare", vm=VM, move=bench.move(id="move-2"))
    assert await bench.after(second) == [
        "server2: quit",
        "server2: open web",
        "server2 tells move-2 target_open",
    ]
    await bench.after(Happening("move.copy", move=bench.move(id="move-2")))
    assert bench.world.running("web") == ["server2"]


@pytest.mark.parametrize("state", ["copying", "diverted"])
async def test_a_copy_under_way_survives_the_controllers_return(bench: Bench, state: str) -> None:
    await bench.copying_until("copy")
    here = RUNS_THERE if state == "diverted" else RUNS
    for server in ("server1", "server2"):
        told = await bench.catch_up(server, bench.move(state), vms=(here,))
        assert set(told) <= {"server1 tells web started"}
    bench.source.hypervisor.go_on.set()
    await bench.settled()
    assert bench.world.running("web") == ["server2"]


# ---- a server fails, and comes back ----


AGAIN = "failed the agent of {0} has started again"


@pytest.mark.parametrize("state", ["planned", "matched", "admitting", "prepared", "copying"])
async def test_a_source_that_lost_its_vm_before_it_was_given_away_starts_it_anew(
    bench: Bench, state: str
) -> None:
    """Nothing is given away before its traffic is diverted."""
    await bench.booked()
    await bench.step("prepare")
    await bench.start_again("server1")
    told = await bench.catch_up("server1", bench.move(state), vms=(RUNS,))
    assert told[:3] == [
        "server1: plug web 52:54:00:00:00:01",
        "server1: start web",
        "server1 tells web started",
    ] or (state == "copying" and "server1: start web" in told)
    assert ("server1 tells move-1 " + AGAIN.format("server1") in told) == (state == "copying")
    assert bench.world.running("web") == ["server2" if state == "prepared" else "server1"]


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("diverted", ["server1 tells move-1 " + AGAIN.format("server1")]),
        ("switching", []),
        ("switched", []),
        ("confirmed", ["server1 tells move-1 source_gone"]),
        ("done", []),
        ("rolling back", []),
    ],
)
async def test_a_source_that_lost_its_vm_after_that_does_not_start_it(
    bench: Bench, state: str, told: list[str]
) -> None:
    await bench.copying_until("load", "server2")
    await bench.start_again("server1")
    here = RUNS if state == "rolling back" else RUNS_THERE
    assert await bench.catch_up("server1", bench.move(state), vms=(here,)) == told
    bench.target.hypervisor.go_on.set()
    await bench.settled()
    assert bench.world.running("web") == ["server2"]


async def test_a_source_that_lost_its_vm_is_given_it_back_in_vain(bench: Bench) -> None:
    await bench.prepared()
    await bench.start_again("server1")
    assert await bench.catch_up("server1", bench.move("rolling back"), vms=(RUNS,)) == []
    assert await bench.step("rollback") == [
        "server2: quit",
        "server2: unplug web",
        "server2 tells move-1 target_gone",
    ]
    assert await bench.step("return") == [
        "server1 tells web stopped the agent of server1 has started again",
        "server1 tells move-1 rolled_back",
    ]


@pytest.mark.parametrize("state", ["admitting", "prepared", "copying", "diverted"])
async def test_a_target_that_lost_the_vm_says_so(bench: Bench, state: str) -> None:
    """Whether it had been given the VM or not: nobody else can know."""
    await bench.copying_until("load", "server2")
    await bench.start_again("server2")
    here = RUNS_THERE if state == "diverted" else RUNS
    assert await bench.catch_up("server2", bench.move(state), vms=(here,)) == [
        "server2 tells move-1 " + AGAIN.format("server2")
    ]
    assert await bench.step("rollback") == ["server2 tells move-1 target_gone"]
    assert (await bench.step("return"))[-1] == "server1 tells move-1 rolled_back"
    assert bench.world.running("web") == ["server1"]


@pytest.mark.parametrize("state", ["switching", "switched", "confirmed", "done"])
async def test_a_target_that_lost_the_vm_after_it_ran_starts_it_anew(bench: Bench, state: str) -> None:
    await bench.prepared()
    await bench.step("copy")
    await bench.start_again("server2")
    assert await bench.catch_up("server2", bench.move(state), vms=(RUNS_THERE,)) == [
        "server2: plug web 52:54:00:00:00:01",
        "server2: start web",
        "server2 tells web started",
    ]


async def test_a_machine_left_waiting_that_is_ended_is_no_reason_to_start_its_vm(bench: Bench) -> None:
    """What an agent finds, of a move whose target it is, has never run; the source still has the VM."""
    await bench.prepared()
    waited = bench.target.machine
    await bench.start_again("server2")
    waited.ended, waited.on_event = False, bench.target.keeper.listener("web")
    await waited.quit()
    assert await bench.settled() == ["server2: quit"]
    assert await bench.catch_up("server2", bench.move("diverted"), vms=(RUNS_THERE,)) == [
        "server2 tells move-1 " + AGAIN.format("server2")
    ]
    assert bench.world.running("web") == ["server1"]


async def test_a_target_that_lost_the_vm_opens_again_what_is_not_admitted_yet(bench: Bench) -> None:
    await bench.prepared()
    await bench.start_again("server2")
    told = await bench.catch_up("server2", bench.move("matched"), vms=(RUNS,))
    assert told[-1] == "server2 tells move-1 target_open"
    await bench.step("copy")
    assert bench.world.running("web") == ["server2"]


# ---- the stream ----


async def test_the_stream_is_followed_on_from_the_last_event(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinue.agent.daemon.AGAIN_SECONDS", 0)
    ready, agent = asyncio.Event(), bench.source
    renewer = Renewals()
    following = asyncio.create_task(follow(agent.rest, agent.keeper, renewer, ready))  # type: ignore[arg-type]
    for stream in (
        ControllerAwayError("not yet"),
        [Happening("hello", id=4), Happening("vm.booked", id=5, vm=VM)],
        [Happening("hello", id=9), Happening("vm.ready", id=9, vm=VM)],
        [Happening("hello", id=2), Happening("vm.renew", id=3, renewal={"id": "renew-1"})],
        [],
    ):
        agent.rest.streams.put_nowait(stream)
    async with asyncio.timeout(5):
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


# ---- a move in which the controller has no part ----


async def by_hand(bench: Bench) -> MigrationResult:
    memory_at = await bench.target.keeper.take_in(VM, "by-hand-1", "server1")
    bench.world.departed.add("web")
    kept = bench.source.keeper.vms["web"]
    return await bench.source.keeper.give(kept, "by-hand-1", memory_at, "server2")


async def test_a_move_without_the_controller_is_told_to_nobody(bench: Bench) -> None:
    await bench.booked()
    moved = await by_hand(bench)
    # At once: who gave it away knows that it runs there.
    assert bench.target.keeper.vms["web"].runs
    assert (moved.stopped_at, moved.resumed_at) == (100.0, 100.5)
    assert await bench.settled() == [
        "server2: plug web 52:54:00:00:00:01",
        "server2: open web",
        "server1: depart",
        "server2: runs",
        "server1: quit",
        "server1: unplug web",
    ]
    assert bench.source.keeper.vms == {}
    with pytest.raises(HypervisorError, match="VM web is on server2 already"):
        await bench.target.keeper.take_in(VM, "by-hand-2", "server1")
    # Its end at the new place is news.
    bench.target.machine.die()
    assert await bench.settled() == ["server2 tells web stopped"]


async def test_a_move_without_the_controller_that_fails_leaves_the_vm_where_it_was(bench: Bench) -> None:
    await bench.booked()
    bench.source.hypervisor.script["copy"] = "fails"
    with pytest.raises(HypervisorError, match="copy fails"):
        await by_hand(bench)
    assert "server2: unplug web" in await bench.settled()
    assert bench.target.keeper.vms == {}
    assert bench.world.running("web") == ["server1"]
    bench.source.hypervisor.script.clear()
    await by_hand(bench)
    assert bench.world.running("web") == ["server2"]


async def test_a_vm_given_away_by_hand_stands_still_until_it_is_known_where_it_runs(bench: Bench) -> None:
    await bench.booked()
    bench.target.hypervisor.script["tell"] = "fails"
    with pytest.raises(HandedOverError):
        await by_hand(bench)
    assert bench.world.running("web") == ["server2"]
    kept = bench.source.keeper.vms["web"]
    with pytest.raises(HypervisorError, match="does not run on server1"):
        await bench.source.keeper.give(kept, "by-hand-2", bench.target.transfer.address, "server2")
    await bench.source.keeper.drop(kept)
    assert bench.source.keeper.vms == {}


@pytest.mark.parametrize("part", ["ports", "hypervisor"])
async def test_a_server_that_cannot_take_a_vm_in_keeps_nothing_of_it(bench: Bench, part: str) -> None:
    getattr(bench.target, part).broken = "no room"
    with pytest.raises(HypervisorError, match="no room"):
        await bench.target.keeper.take_in(VM, "by-hand-1", "server1")
    assert bench.target.keeper.vms == {}
    getattr(bench.target, part).broken = ""
    await bench.booked()
    await by_hand(bench)


async def test_a_vm_that_is_being_moved_is_not_given_away_beside(bench: Bench) -> None:
    await bench.copying_until("copy")
    with pytest.raises(HypervisorError, match="is being moved already: move-1"):
        await bench.source.keeper.give(bench.source.keeper.vms["web"], "by-hand-1", "x:1", "server2")


async def test_what_waits_for_a_vm_that_does_not_come_is_dropped(bench: Bench) -> None:
    await bench.target.keeper.take_in(VM, "by-hand-1", "server1")
    bench.world.take()
    await bench.target.keeper.drop(bench.target.keeper.vms["web"])
    assert bench.world.take() == ["server2: quit", "server2: unplug web"]
    assert bench.target.keeper.vms == {}
    # Nor is it let in any more.
    await bench.booked()
    with pytest.raises(HypervisorError, match="does not let the move in"):
        await bench.source.keeper.give(
            bench.source.keeper.vms["web"], "by-hand-1", bench.target.transfer.address, "server2"
        )
    assert bench.world.running("web") == ["server1"]


async def test_a_vm_that_is_dropped_and_removed_at_once_is_gone_once(bench: Bench) -> None:
    await bench.booked()
    bench.source.keeper.take(Happening("vm.removed", vm=VM))
    await bench.source.keeper.drop(bench.source.keeper.vms["web"])
    assert await bench.settled() == ["server1: quit", "server1: unplug web", "server1: unplug web"]
    assert bench.source.keeper.vms == {}


async def test_an_agent_that_ends_calls_off_what_is_under_way(bench: Bench) -> None:
    await bench.copying_until("stop")
    async with asyncio.timeout(5):
        await bench.source.keeper.close()
    assert "server1: cont" in bench.world.take()
    await bench.settled()
    assert bench.target.machine.ended
