"""What was sent by the old way has come before the source forwards: marks, and a source that looks itself."""

import asyncio

import pytest

from retinue.controller.counters import Count, packet_ins
from retinue.controller.link_changes import LinkLost
from retinue.controller.migrations import old_ways
from retinue.core.forwarding.fabric import End
from retinue.core.migration import MigrationState
from retinue.core.pipeline.cookies import Reason
from retinue.protocol.migrations import Report, ReportAnswer
from support import virtual_time
from support.fabric.restart_world import MIGRATION, RestartWorld

WATCHED = 2.0
"""Seconds for which the source finds that something still comes: less than the controller waits."""


async def converging() -> RestartWorld:
    world = RestartWorld((1, 2, 1), 1, 2)
    await world.begin_copying()
    return world


def watching(world: RestartWorld) -> asyncio.Task[ReportAnswer]:
    reports = world.fake.controller.orchestrator.reports
    return asyncio.create_task(reports.answer(MIGRATION, Report.CONVERGED, watching=True))


def forwards(world: RestartWorld) -> bool:
    return world.fake.net.vms["vm1"].forwarded_from == "server1"


def test_nothing_is_forwarded_before_the_source_says_that_nothing_comes() -> None:
    async def story() -> None:
        world = await converging()
        world.say("converged")
        for _ in range(2):
            assert (await watching(world)).state is MigrationState.DIVERTED
            await asyncio.sleep(WATCHED / 2)
            world.reachable({2})
            assert not forwards(world)
        world.say("converged")
        assert (await world.answer("converged")).copies_from
        assert forwards(world)
        await world.fake.stop()

    virtual_time.run(story())


def test_one_that_does_not_look_is_forwarded_from_at_once() -> None:
    async def story() -> None:
        world = await converging()
        world.say("converged")
        await asyncio.wait_for(world.answer("converged"), 0.1)
        assert forwards(world)
        await world.fake.stop()

    virtual_time.run(story())


@pytest.mark.parametrize("says", ["converged", "stopped"])
def test_a_controller_that_takes_over_forwards_nothing_while_the_source_may_look(says: str) -> None:
    """The one before knew that it does; this one is told so when the source asks again, or never."""

    async def story() -> None:
        world = await converging()
        world.say("converged")
        await watching(world)
        await world.kill()
        for what in world.things_to_come():
            world.comes(what)
        await asyncio.sleep(1.0)
        world.reachable({2})
        assert not forwards(world)
        world.say(says)
        if says == "converged":
            assert (await world.answer("converged")).copies_from
        await asyncio.sleep(0.1)
        assert forwards(world)
        await world.fake.stop()

    virtual_time.run(story())


def test_a_source_that_is_silent_is_not_waited_for_for_ever() -> None:
    async def story() -> None:
        world = await converging()
        world.say("converged")
        await watching(world)
        await asyncio.sleep(4.0)
        assert forwards(world)
        await world.fake.stop()

    virtual_time.run(story())


@pytest.mark.parametrize(
    ("held", "after"), [(("leaf2", "spine1"), 1), (("spine2", "leaf1"), 3), (("spine1", "leaf1"), 3)]
)
def test_the_answer_comes_when_a_mark_has_come_over_each_link_of_the_old_way(
    held: tuple[str, str], after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up from the target's leaf first, and then down to the source's: as what it follows."""
    monkeypatch.setattr(old_ways, "PATIENCE", 60.0)

    async def story() -> None:
        world = await converging()
        peer_of = world.fake.fabric.peer_of
        waiting: list[tuple[str, bytes]] = []
        sent: list[tuple[str, str]] = []

        def held_back(switch: str, port: int, frame: bytes) -> End | None:
            end = peer_of(switch, port, frame)
            to = "" if end is None else end[0]
            if frame[12:14] == b"\x88\xcc":
                sent.append((switch, to))
                if (switch, to) == held and not waiting:
                    waiting.append((to, frame))
                    return "nowhere", 0
            return end

        world.fake.fabric.add("nowhere")
        world.fake.fabric.peer_of = held_back  # type: ignore[method-assign]
        world.say("converged")
        answer = watching(world)
        await asyncio.sleep(5.0)
        assert not answer.done()
        assert held in sent
        assert (("spine2", "leaf1") in sent) == (after == 3), "the second wave follows the first"
        heard = world.fake.controller.orchestrator.old_ways.heard
        ((to, frame),) = waiting
        assert heard("another", frame)
        await asyncio.sleep(1.0)
        assert not answer.done(), "it must come in where it was to"
        assert heard(to, frame)
        assert not heard(to, frame[:-1] + b"\1")
        assert (await answer).state is MigrationState.DIVERTED
        await world.fake.stop()

    virtual_time.run(story())


@pytest.mark.parametrize(
    ("held", "after"), [(("edge1", "leaf1"), 1), (("leaf1", "spine1"), 3), (("leaf1", "spine2"), 3)]
)
def test_the_target_runs_the_vm_when_a_mark_has_followed_what_the_vm_has_sent(
    held: tuple[str, str], after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the uplink of the source first, and then up from its leaf: beyond, both ways are the same."""
    monkeypatch.setattr(old_ways, "PATIENCE", 60.0)

    async def story() -> None:
        world = await converging()
        for report in ("converged", "stopped"):
            world.say(report)
            await asyncio.sleep(0.1)
        peer_of = world.fake.fabric.peer_of
        waiting: list[tuple[str, int, bytes]] = []
        sent: list[tuple[str, str]] = []

        def held_back(switch: str, port: int, frame: bytes) -> End | None:
            end = peer_of(switch, port, frame)
            if end is None or switch.startswith("spine"):
                return end  # A spine sends marks back, too.
            sent.append((switch, end[0]))
            if sent[-1] == held and not waiting:
                waiting.append((*end, frame))
                return "nowhere", 0
            return end

        world.fake.fabric.add("nowhere")
        world.fake.fabric.peer_of = held_back  # type: ignore[method-assign]
        reports = world.fake.controller.orchestrator.reports
        answer = asyncio.create_task(reports.answer(MIGRATION, Report.STOPPED, sent=True))
        await asyncio.sleep(5.0)
        assert not answer.done()
        assert len(sent) == after
        (came,) = waiting
        world.fake.send(*came)
        assert (await answer).state is MigrationState.DIVERTED
        assert sent[:3] == [("edge1", "leaf1"), ("leaf1", "spine1"), ("leaf1", "spine2")]
        counters = world.fake.controller.context.counters
        assert not counters[Count.EXPIRED_ANSWERED] + counters[Count.EXPIRED_UNANSWERED]
        assert not counters[packet_ins(Reason.EXPIRED)], "it is a probe of the controller's own"
        await world.fake.stop()

    virtual_time.run(story())


def test_between_leaves_that_tunnels_join_a_mark_goes_over_the_uplink_alone() -> None:
    async def story() -> None:
        world = RestartWorld((1, 2, 1), 1, 2, over_ip=True)
        await world.begin_copying()
        for report in ("converged", "stopped"):
            world.say(report)
            await asyncio.sleep(0.1)
        context = world.fake.controller.context
        sent, peer_of = list[tuple[str, str]](), world.fake.fabric.peer_of

        def seen(switch: str, port: int, frame: bytes) -> End | None:
            end = peer_of(switch, port, frame)
            sent.append((switch, "" if end is None else end[0]))
            return end

        world.fake.fabric.peer_of = seen  # type: ignore[method-assign]
        reports = world.fake.controller.orchestrator.reports
        answer = reports.answer(MIGRATION, Report.STOPPED, sent=True)
        await asyncio.wait_for(answer, old_ways.PATIENCE / 2)
        assert sent == [("edge1", "leaf1")]
        assert not context.counters[Count.EXPIRED_ANSWERED] + context.counters[Count.EXPIRED_UNANSWERED]
        await world.fake.stop()

    virtual_time.run(story())


def test_a_mark_that_never_comes_holds_nothing_up_for_long() -> None:
    async def story() -> None:
        world = await converging()
        peer_of = world.fake.fabric.peer_of
        world.fake.fabric.add("nowhere")
        lost = "nowhere", 0
        world.fake.fabric.peer_of = (  # type: ignore[method-assign]
            lambda *sent: lost if sent[2][12:14] == b"\x88\xcc" else peer_of(*sent)
        )
        world.say("converged")
        await asyncio.wait_for(watching(world), 1.0)
        await world.fake.stop()

    virtual_time.run(story())


def test_no_mark_is_waited_for_over_a_link_that_is_known_to_be_lost() -> None:
    """Nothing goes by it; what waits at the target would wait for as long as a lost mark takes, each time."""

    async def story() -> None:
        world = await converging()
        context = world.fake.controller.context
        lost = next(
            one for one in world.fake.net.links if (one.lower.switch, one.upper.switch) == ("leaf1", "spine1")
        )
        await context.install(context.apply(LinkLost(lost.lower, lost.upper, "nothing comes in")))
        peer_of = world.fake.fabric.peer_of
        world.fake.fabric.add("nowhere")

        def cut(switch: str, port: int, frame: bytes) -> End | None:
            end = peer_of(switch, port, frame)
            ends = {switch, "" if end is None else end[0]}
            return ("nowhere", 0) if ends == {"leaf1", "spine1"} else end

        world.fake.fabric.peer_of = cut  # type: ignore[method-assign]
        world.say("converged")
        answer = await asyncio.wait_for(watching(world), old_ways.PATIENCE / 2)
        assert answer.state is MigrationState.DIVERTED
        await world.fake.stop()

    virtual_time.run(story())


def test_a_source_that_asks_again_and_again_has_no_more_marks_sent_than_switches_let_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Probes of links go by the same meter: with theirs lost the links would be taken for broken."""
    monkeypatch.setattr(old_ways, "MOST_A_SECOND", 8)

    async def story() -> None:
        world = await converging()
        context = world.fake.controller.context
        sent, send_frame = list[str](), context.send_frame

        def counted(switch: str, port: int, frame: bytes) -> bool:
            if frame[12:14] == b"\x88\xcc":
                sent.append(switch)
            return send_frame(switch, port, frame)

        monkeypatch.setattr(context, "send_frame", counted)
        world.say("converged")
        for seconds, marks in ((0.0, 8), (0.0, 0), (1.0, 8)):
            await asyncio.sleep(seconds)
            sent.clear()
            for _ in range(20):
                answers = await asyncio.wait_for(asyncio.gather(watching(world), watching(world)), 0.1)
                assert {answer.state for answer in answers} == {MigrationState.DIVERTED}
            assert len(sent) == marks
        await world.fake.stop()

    virtual_time.run(story())
