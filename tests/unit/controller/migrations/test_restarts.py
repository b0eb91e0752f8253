"""The controller is killed in a migration, and its switches come back in an unfortunate order."""

import asyncio
from dataclasses import replace

import pytest

from retinue.controller.migrations.orchestrator import MigrationError
from retinue.controller.migrations.reports import DIVERTING_LIMIT
from retinue.core.migration import MigrationState
from retinue.core.model.network import Owner
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import Change, Flow
from retinue.core.pipeline.matches import ip_match
from retinue.core.pipeline.priorities import Route
from retinue.core.pipeline.tables import Table
from support import virtual_time
from support.fabric.networks import vm_ip
from support.fabric.restart_world import MIGRATION, WHOLE, RestartWorld

SWITCHES = ("edge1", "edge2", "edge3", "leaf1", "leaf2", "spine1", "spine2")
DATABASES = tuple(f"database of edge{n}" for n in (1, 2, 3))


@pytest.mark.parametrize("target", [1, 2], ids=["from the router's leaf", "to the router's leaf"])
@pytest.mark.parametrize("last", ["leaf1", "leaf2", "spine2", "edge1", "edge2"])
def test_a_move_ends_when_nothing_of_its_old_place_is_left(target: int, last: str) -> None:
    """Killed while the memory is copied; one switch is back only after the VM has stopped.

    The new controller never knew what that switch holds: entries that must go count all the same.
    """

    async def story() -> None:
        source = 3 - target
        world = RestartWorld((1, 2, 1), source, target)
        await world.begin_copying()
        assert world.now() == MigrationState.COPYING
        await world.kill()
        for what in (*DATABASES, *(switch for switch in SWITCHES if switch != last)):
            world.comes(what)
            await asyncio.sleep(0.1)
            world.reachable({source})
        world.say("stopped")
        await asyncio.sleep(0.1)
        world.reachable({source, target})
        world.comes(last)
        await asyncio.sleep(0.1)
        world.nothing_known_is_left_beside_the_program()
        for report in ("resumed", "source_freed"):
            world.say(report)
            await asyncio.sleep(0.1)
        world.may_copy = False
        world.reachable({target})
        await asyncio.sleep(2.0)
        assert world.now() == MigrationState.DONE
        world.reachable({target})
        assert not world.fake.controller.context.installer.pending()
        await world.fake.stop()

    virtual_time.run(story())


def test_a_move_does_not_end_while_a_switch_keeps_what_must_go() -> None:
    """The switch that was away rejects the removal: nothing the migration has changed waits for it."""

    async def story() -> None:
        world = RestartWorld((1, 2, 1), 2, 1)
        await world.begin()
        for report in WHOLE[:5]:
            world.say(report)
            await asyncio.sleep(0.1)
        assert world.now() == MigrationState.CONFIRMED
        confirmed = world.fake.controller.orchestrator.migrations[MIGRATION]
        world.kept.put(replace(confirmed, state=MigrationState.SWITCHED))
        mark = cookie(Reason.FORWARD, Owner("vm", "vm1"))
        stale = Flow(Table.ROUTE, Route.HOST, ip_match(dst=vm_ip(1)), cookie=mark)
        world.fake.fabric["leaf2"].apply(Change(add=(stale,)))
        await world.kill()
        for what in (*DATABASES, *SWITCHES):
            world.comes(what)
            if what == "leaf2":
                world.fake.sessions[what].reject = 10**9
        await asyncio.sleep(5.0)
        assert world.now() == MigrationState.SWITCHED
        world.fake.sessions["leaf2"].reject = 0
        await asyncio.sleep(40.0)
        assert world.now() == MigrationState.CONFIRMED
        assert stale.key not in world.fake.fabric["leaf2"].flows
        await world.fake.stop()

    virtual_time.run(story())


@pytest.mark.parametrize("said", [3, 4])
def test_switches_that_come_back_one_by_one_are_told_in_order(said: int) -> None:
    """The step was stored, and no switch told: each by itself would make a hole with those not told yet."""

    async def story() -> None:
        world = RestartWorld((1, 2, 1), 1, 2)
        await world.begin()
        for report in WHOLE[:said]:
            await asyncio.sleep(0.1)
            world.say(report)
        if said == 4:
            world.say("failed")
        await world.kill()
        for what in ("spine1", "spine2", "leaf1", "leaf2", "edge1", "edge2", "edge3", *DATABASES):
            world.comes(what)
            await asyncio.sleep(0.1)
            world.reachable({1, 2})
        await world.fake.stop()

    virtual_time.run(story())


def test_a_vm_is_not_given_to_a_target_whose_port_is_not_known_yet() -> None:
    """The old controller had asked for its admission; the new one has nothing to send before it knows."""

    async def story() -> None:
        world = RestartWorld((1, 2, 1), 1, 2)
        await world.begin()
        world.say("target_opened")
        await world.kill()
        for what in SWITCHES:
            world.comes(what)
        await asyncio.sleep(1.0)
        assert world.now() == MigrationState.ADMITTING
        for what in DATABASES:
            world.comes(what)
        await asyncio.sleep(1.0)
        assert world.now() == MigrationState.PREPARED
        await world.fake.stop()

    virtual_time.run(story())


def test_a_switch_that_stays_away_is_not_waited_for_without_end() -> None:
    """The source's server has died with the controller: the undo ends all the same, and holds up nothing."""

    async def story() -> None:
        world = RestartWorld((1, 2, 1), 1, 2)
        await world.begin()
        for report in WHOLE[:3]:
            world.say(report)
            await asyncio.sleep(0.1)
        await world.kill()
        for what in (*SWITCHES[1:], *DATABASES):
            world.comes(what)
        world.say("failed")
        world.say("target_closed")
        world.say("rolled_back")
        await asyncio.sleep(5.0)
        assert world.now() == MigrationState.ROLLING_BACK, "the switch may be on its way"
        await asyncio.sleep(40.0)
        assert world.now() == MigrationState.UNDONE
        assert Owner("vm", "vm1") not in world.fake.controller.context.knowledge.kept
        assert set(world.fake.controller.context.installer.pending()) == {"edge1"}
        await world.fake.stop()

    virtual_time.run(story())


@pytest.mark.parametrize("late", ["database of edge1", "database of edge2", "spine2", "edge2"])
def test_nothing_is_diverted_before_everybody_is_back_who_has_to_confirm_it(late: str) -> None:
    """Killed while the memory is copied. The diversion could not be confirmed before, and its undo loses all
    that has come to the target: so the VM goes on at its source, and keeps its traffic, however long.
    """

    async def story() -> None:
        world = RestartWorld((1, 2, 1), 1, 2)
        await world.begin_copying()
        await world.kill()
        for what in (*SWITCHES, *DATABASES):
            if what != late:
                world.comes(what)
        world.say("converged")
        answer = asyncio.create_task(world.answer("converged"))
        for _ in range(12):
            await asyncio.sleep(1.0)
            world.reachable({1})
        assert world.now() == MigrationState.DIVERTED
        assert not answer.done(), "who is back in time is waited for, also past the answer's own limit"
        world.comes(late)
        await asyncio.sleep(0.1)
        world.reachable({2})
        assert (await answer).state == MigrationState.DIVERTED
        for report in WHOLE[3:]:
            world.say(report)
            await asyncio.sleep(0.1)
        await asyncio.sleep(2.0)
        assert world.now() == MigrationState.DONE
        await world.fake.stop()

    virtual_time.run(story())


@pytest.mark.parametrize("away", ["edge1", "edge2", "leaf1", "leaf2", "spine2"])
def test_a_switch_that_is_away_keeps_the_traffic_at_the_source(away: str) -> None:
    """It could not confirm: the migration is undone in the end, and nothing was ever diverted."""

    async def story() -> None:
        world = RestartWorld((1, 2, 1), 1, 2)
        await world.begin_copying()
        world.fake.sessions[away].close("its cable was pulled")
        await asyncio.sleep(0.1)
        world.say("converged")
        with pytest.raises(MigrationError, match="have not confirmed in time"):
            await world.answer("converged")
        world.reachable({1})
        for report in ("failed", "target_closed", "rolled_back"):
            world.say(report)
            await asyncio.sleep(0.1)
            world.reachable({1})
        await asyncio.sleep(60.0)
        assert world.now() == MigrationState.UNDONE
        await world.fake.stop()

    virtual_time.run(story())


def test_a_switch_that_goes_in_the_middle_of_the_diversion_holds_up_the_rest() -> None:
    """The spines would send what the target's leaf does not know."""

    async def story() -> None:
        world = RestartWorld((1, 2, 1), 1, 2)
        await world.begin_copying()
        world.fake.sessions["leaf2"].reject = 3
        world.say("converged")
        for _ in range(30):
            await asyncio.sleep(0.1)
            world.reachable({1, 2})
        await asyncio.sleep(60.0)
        world.reachable({1, 2})
        await world.fake.stop()

    virtual_time.run(story())


def test_for_a_vm_that_is_paused_nobody_is_waited_for() -> None:
    async def story() -> None:
        world = RestartWorld((1, 2, 1), 1, 2)
        await world.begin_copying()
        world.fake.sessions["edge1"].close("the server lost power")
        await asyncio.sleep(0.1)
        world.say("converged")
        await asyncio.sleep(0.1)
        world.reachable({1})
        world.say("stopped")
        await asyncio.sleep(0.1)
        world.reachable({1, 2})
        world.say("resumed")
        await asyncio.sleep(0.1)
        world.reachable({2})
        await world.fake.stop()

    virtual_time.run(story())


def test_switches_that_are_far_have_the_time_to_confirm_that_is_configured() -> None:
    """Also by a controller that has taken the migration up; and the answer is no longer waited for."""

    async def story() -> None:
        world = RestartWorld((1, 2, 1), 1, 2, step_factor=3.0)
        await world.begin_copying()
        await world.kill()
        for what in world.things_to_come():
            world.comes(what)
        await asyncio.sleep(20.0)
        hangs = world.fake.sessions["edge2"].hold = asyncio.Event()
        world.say("converged")
        answer = asyncio.create_task(world.answer("converged"))
        await asyncio.sleep(2 * DIVERTING_LIMIT)
        assert not answer.done()
        hangs.set()
        assert (await answer).state is MigrationState.DIVERTED
        await world.fake.stop()

    virtual_time.run(story())


def test_a_target_that_does_not_confirm_is_sent_nothing() -> None:
    """Its switch hangs, and stays connected: its leaf, and whoever sends from there, go on to the source."""

    async def story() -> None:
        world = RestartWorld((1, 2, 1), 1, 2)
        await world.begin_copying()
        hangs = world.fake.sessions["edge2"].hold = asyncio.Event()
        world.say("converged")
        with pytest.raises(MigrationError, match="have not confirmed in time"):
            await world.answer("converged")
        world.reachable({1})
        for report in ("failed", "target_closed", "rolled_back"):
            world.say(report)
            await asyncio.sleep(0.1)
            world.reachable({1})
        hangs.set()
        await asyncio.sleep(20.0)
        assert world.now() == MigrationState.UNDONE
        world.reachable({1})
        await world.fake.stop()

    virtual_time.run(story())
