"""What an operator reads of a migration that goes on: who is to do something next, and which switches."""

from typing import Any

import pytest

from retinue.core.migration.record import Migration, MigrationState
from retinue.core.migration.waiting import waits_for

S = MigrationState


def migration(state: MigrationState, **more: Any) -> Migration:
    return Migration("migration-1", "vm1", "server1", "server2", state, ((state, 1.0),), **more)


SWITCHES = "switches to confirm: edge1, leaf2"
SOURCE_RUNS = "server server1 to report that the VM runs there"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (migration(S.PLANNED), "server server2 to be found at a leaf"),
        (migration(S.MATCHED), "server server2 to open a port for the VM and to take its memory in"),
        (migration(S.ADMITTING), SWITCHES),
        (migration(S.PREPARED), "server server1 to begin the copy"),
        (migration(S.COPYING), "server server1 to have copied all but a little"),
        (migration(S.DIVERTED), "server server2 to report that the VM runs there"),
        (migration(S.SWITCHING), SWITCHES),
        (migration(S.SWITCHED), SWITCHES),
        (migration(S.CONFIRMED), "server server1 to report that nothing of the VM is left there"),
        (migration(S.FREED), SWITCHES),
        (migration(S.ROLLING_BACK), f"{SOURCE_RUNS} and {SWITCHES}"),
        (migration(S.ROLLING_BACK, closed=True), SOURCE_RUNS),
        (migration(S.ROLLING_BACK, restored=True), SWITCHES),
        (migration(S.ROLLING_BACK, restored=True, closed=True), ""),
        (
            migration(S.ROLLING_BACK, stopped_at=2.0, closed=True),
            "server server2 to report that the VM never ran there, "
            "and then server server1 that it runs there",
        ),
        (migration(S.ROLLING_BACK, stopped_at=2.0, closed=True, target_closed=True), SOURCE_RUNS),
        (migration(S.DONE), ""),
        (migration(S.UNDONE), ""),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.state),
)
def test_who_is_to_do_what_next(given: Migration, said: str) -> None:
    assert waits_for(given, ["leaf2", "edge1"]) == said


def test_every_state_is_asked_for() -> None:
    ended = {state for state in S if not waits_for(migration(state), [])}
    assert ended == {state for state in S if state.ended}
    assert waits_for(migration(S.FREED), []) == "switches to confirm"


def test_memory_that_follows_a_vm_which_runs_at_the_target_is_waited_for_first() -> None:
    left = "the rest of the VM's memory, 1.5 MiB, to go over from server server1 (post-copy)"
    assert waits_for(migration(S.CONFIRMED), [], 3 << 19) == left
    assert waits_for(migration(S.SWITCHED), ["edge1"], 3 << 19) == "switches to confirm: edge1"


def test_an_agent_that_is_away_is_named_where_it_is_waited_for() -> None:
    said = waits_for(migration(S.CONFIRMED), [], 3 << 19, ["server1", "server3"])
    assert said.endswith("to go over from server server1 (post-copy); the agent of server server1 is away")
    both = waits_for(migration(S.DIVERTED), [], 0, ["server2", "server1"])
    assert both.endswith("; the agent of server server1 is away; the agent of server server2 is away")
    assert waits_for(migration(S.DONE), [], 0, ["server1"]) == ""
