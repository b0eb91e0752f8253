"""A migration that hypervisors of others have made, and of which a manager says one word afterwards."""

import asyncio

import pytest

from retinue.controller.migrations.orchestrator import MigrationError
from retinue.core.migration import MigrationState
from support import virtual_time
from support.fabric.restart_world import MIGRATION, RestartWorld, port_of
from support.recent_events import recent

DATABASES = tuple(f"database of edge{n}" for n in (1, 2, 3))
TAKEN = ["matched", "admitting", "prepared", "switching", "switched", "confirmed", "freed", "done"]


def moved() -> RestartWorld:
    return RestartWorld((1, 2, 1), 1, 2, after_the_fact=True)


def port_comes(world: RestartWorld) -> None:
    world.fake.controller.inventory.ports.changed([], [port_of(1, world.target)])


def test_the_bindings_follow_once_the_port_is_there_and_nobody_is_asked_for_anything() -> None:
    """The source's port is still there, as one that a hypervisor of others has left may be."""

    async def story() -> None:
        world = moved()
        await world.begin()
        world.reachable({1})
        assert world.now() == MigrationState.MATCHED, "a word alone moves nothing: the port is not there"
        port_comes(world)
        await asyncio.sleep(3.0)
        migration = world.fake.controller.orchestrator.migrations[MIGRATION]
        assert [state for state, _ in migration.steps[1:]] == TAKEN
        world.reachable({2})
        assert [(row.switch, row.active) for row in world.fake.net.bindings(["vm1"])] == [("edge2", True)]
        told = {event.type for event in recent(world.fake.controller.events, "migration.", 1000)}
        assert told == {"migration.step"}, "no order"
        await world.fake.stop()

    virtual_time.run(story())


@pytest.mark.parametrize("after", [0.0, 0.001, 0.01, 0.1, 0.5, 1.0])
def test_a_controller_that_is_killed_in_the_middle_of_it_goes_on(after: float) -> None:
    """The word is said once: it is kept."""

    async def story() -> None:
        world = moved()
        await world.begin()
        port_comes(world)
        await asyncio.sleep(after)
        await world.kill()
        world.target_has_port = True
        for what in world.things_to_come():
            world.comes(what)
        await asyncio.sleep(3.0)
        assert world.now() == MigrationState.DONE
        world.reachable({2})
        await world.fake.stop()

    virtual_time.run(story())


def test_where_no_port_comes_nothing_has_changed() -> None:
    async def story() -> None:
        world = moved()
        await world.begin()
        await asyncio.sleep(31.0)
        world.fake.controller.orchestrator.tick()
        await asyncio.sleep(3.0)
        migration = world.fake.controller.orchestrator.migrations[MIGRATION]
        assert (migration.state, migration.reason) == (MigrationState.UNDONE, "not admitting within 30 s")
        world.reachable({1})
        await world.fake.stop()

    virtual_time.run(story())


@pytest.mark.parametrize("server", ["server1", "server2"])
def test_where_an_agent_says_what_runs_there_it_is_not_a_managers_to_say(server: str) -> None:
    async def story() -> None:
        world = RestartWorld((1, 2, 1), 1, 2)
        await world.begin()
        orchestrator = world.fake.controller.orchestrator
        orchestrator.cancel(MIGRATION)
        orchestrator.reports.on_report(MIGRATION, "rolled_back", 0.0)  # type: ignore[arg-type]
        await asyncio.sleep(3.0)
        with world.fake.controller.context.agents.listening(server):
            pass  # It is away now, and may have migrated the VM itself.
        with pytest.raises(MigrationError, match=f"server {server} has an agent of ours.*forget-agent"):
            orchestrator.start("vm1", target_server="server2", after_the_fact=True)
        await world.fake.stop()

    virtual_time.run(story())
