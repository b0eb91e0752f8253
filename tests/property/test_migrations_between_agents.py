"""One live migration between two agents, and troubles at any moment of it.

Whatever happens: the VM never runs at two servers; it never runs on from a past it has left behind; when the
troubles are over the migration ends, and the VM is at one end of it alone. Only a VM whose machine was
killed does not run any more.
"""

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from retinue.core.migration import MigrationState
from retinue.hypervisor import RunState
from support.agents.migration_world import ENDS, SOURCE, TARGET, MigrationRun, Pace
from support.agents.world import VM
from support.virtual_time import run

SECONDS = st.sampled_from((0.01, 0.01, 0.01, 0.03, 0.03, 0.1, 0.1, 0.5, 2.0, 12.0))
POINTS = ("copy", "stop", "give", "arrive", "load", "run", "rest", "rest comes")
STATES = tuple(
    str(state) for state in MigrationState if not state.ended and state is not MigrationState.PLANNED
)
AT_SERVERS = ("kill", "deaf", "restart", "crash", "lose")


@dataclass(frozen=True)
class Trouble:
    """`what` happens `after` seconds from when this moment is reached, or when it is not to be waited for."""

    what: str
    moment: str = ""
    after: float = 0.0


@dataclass(frozen=True)
class History:
    pace: Pace
    troubles: tuple[Trouble, ...]
    postcopy: bool = False


def paces() -> st.SearchStrategy[Pace]:
    seconds = st.lists(SECONDS, min_size=1, max_size=4).map(tuple)
    return st.builds(
        Pace,
        report=seconds,
        stream=seconds,
        channel=seconds,
        switches=seconds,
        machine=seconds,
        repeated=st.lists(st.booleans(), min_size=1, max_size=3).map(lambda drawn: (*drawn, False)),
    )


def troubles() -> st.SearchStrategy[Trouble]:
    whats = ["cancel", "timeout", "controller", "cut", "switches"]
    whats += [f"{what} {server}" for what in AT_SERVERS for server in ENDS]
    moments = st.sampled_from(POINTS) | st.sampled_from(("", *STATES))
    return st.builds(Trouble, st.sampled_from(whats), moments, st.just(0.0) | SECONDS)


def histories() -> st.SearchStrategy[History]:
    return st.builds(History, paces(), st.lists(troubles(), max_size=4).map(tuple), st.booleans())


@settings(deadline=None, max_examples=400, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(histories())
@example(History(Pace(), ()))
@example(History(Pace(), (), postcopy=True))
# The VM runs at the target, and the rest of its memory does not come, or by another way: it never runs at the
# source.
@example(History(Pace(), (Trouble("cut", "rest"),), postcopy=True))
@example(History(Pace(), (Trouble("kill server1", "rest"),), postcopy=True))
@example(History(Pace(), (Trouble("crash server2", "rest comes"),), postcopy=True))
@example(History(Pace(), (Trouble("crash server1", "rest"),), postcopy=True))
# Its agent dies when the VM runs at the target, and before that is told.
@example(History(Pace(report=(2.0,)), (Trouble("crash server2", "rest comes"),), postcopy=True))
@example(History(Pace(report=(0.5,)), (Trouble("crash server2", "run", 0.03),), postcopy=True))
# The machine that waited was ended by the agent that came after: once, that one then started the VM anew.
@example(History(Pace(), (Trouble("crash server2", "diverted"),)))
def test_a_vm_is_at_one_end_of_its_move_whatever_happens(history: History) -> None:
    with capture_logs() as logs:
        run(play(history))
    assert [entry for entry in logs if entry.get("exc_info")] == []


AT_REST = [("server1", "rest"), ("server2", "rest comes")]


@pytest.mark.parametrize("killed", [AT_REST[:1], AT_REST[1:], AT_REST, [*AT_REST, *AT_REST]])
@pytest.mark.parametrize("after", [0.0, 0.005, 0.011, 0.05])
def test_agents_that_are_killed_with_memory_to_come_lose_no_vm(
    killed: list[tuple[str, str]], after: float
) -> None:
    """Once or twice, one after the other or both."""
    crashes = tuple(Trouble(f"crash {server}", moment, after) for server, moment in killed)

    async def check_that_it_runs() -> None:
        migration = await play(History(Pace(), crashes, postcopy=True))
        assert migration.state is MigrationState.DONE
        assert migration.world.running(VM.id) == [TARGET]

    run(check_that_it_runs())


async def play(history: History) -> MigrationRun:
    migration = MigrationRun(history.pace, history.postcopy)
    try:
        await migration.begin()
        await asyncio.gather(*(come(migration, trouble) for trouble in history.troubles))
        await migration.ended()
        check(migration)
        return migration
    except AssertionError as error:
        error.add_note("\n".join(migration.world.log))
        raise
    finally:
        await migration.close()


async def come(migration: MigrationRun, trouble: Trouble) -> None:
    if trouble.moment:
        waiting = asyncio.ensure_future(migration.clocked.moments[trouble.moment].wait())
        await asyncio.wait({waiting}, timeout=30)
        waiting.cancel()
    await asyncio.sleep(trouble.after)
    await migration.trouble(trouble.what)


def check(migration: MigrationRun) -> None:
    world, source, target = migration.world, migration.servers[SOURCE], migration.servers[TARGET]
    assert world.ran_twice == []
    assert world.went_back == []
    here, left = (target, source) if migration.state is MigrationState.DONE else (source, target)
    assert world.running(VM.id) == [here.name] or (not world.running(VM.id) and world.ever_killed(here.name))
    assert not any(machine.lacks for machine in world.machines if machine.now is RunState.RUNNING)
    assert world.alive(left.name) == []
    assert left.ports.plugged == set()
    assert left.dispatcher.vms == {}
