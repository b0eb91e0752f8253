"""The agents of two servers as dialogues: the controller's events go in, what is done and told comes out."""

from collections.abc import AsyncIterator

import pytest

from agent_world import VM, Bench, bench_up
from retinue.agent.records import Happening, MoveRecord, VMRecord
from retinue.hypervisor import Gone, RunState


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
