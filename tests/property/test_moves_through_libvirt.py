"""Moves through libvirt, and everything that can come in between, in any order.

Two real agents, each with a libvirt in memory. Whatever the controller orders, and whoever else takes part,
the VM never runs at two servers, and when all is over it runs at one, with nothing of it left at the other.
"""

import asyncio
import contextlib
from unittest.mock import patch

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from libvirt_world import ID, LIMIT, PAUSED, RUNS, VM, Bench, bench_up
from retinue.agent.records import Happening
from retinue.hypervisor import libvirt_arrival, libvirt_departure

ORDERS = ("prepare", "begin", "copy", "rollback")
STEPS = (*ORDERS, "up server1", "up server2", "cut", "abort", "ready", "pause")


def histories() -> st.SearchStrategy[tuple[bool, list[str]]]:
    usual = st.sampled_from(
        (
            ["prepare", "begin"],
            ["prepare", "pause", "begin", "pause"],
            ["prepare", "pause", "begin", "copy"],
            [],
        )
    )
    more = st.lists(st.sampled_from(STEPS), max_size=7)
    return st.tuples(st.booleans(), st.builds(lambda first, rest: first + rest, usual, more))


@settings(deadline=None, max_examples=80, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(histories())
@example((False, ["prepare", "pause", "begin", "pause", "copy", "pause"]))
@example((False, ["prepare", "pause", "begin", "pause", "copy", "up server2"]))
@example((True, ["prepare", "pause", "begin", "pause", "copy", "rollback", "up server1"]))
# The source's agent was called off while it put in order what had failed, and took the VM for given away.
@example((False, ["prepare", "pause", "begin", "pause", "ready"]))
def test_a_vm_runs_at_one_server_whatever_happens(history: tuple[bool, list[str]]) -> None:
    with (
        patch.object(libvirt_departure, "HELD_BACK", 1 << 20),
        patch.object(libvirt_arrival, "SETTLE_LIMIT", 1.0),
        patch.object(libvirt_departure, "RECOVERY_LIMIT", 2.0),
        capture_logs() as logs,
    ):
        asyncio.run(play(*history))
    assert [entry for entry in logs if entry.get("exc_info")] == []


async def play(refuses: bool, steps: list[str]) -> None:
    async with bench_up() as bench:
        await bench.runs()
        bench.source.rest.refuses = "converged" if refuses else ""
        for step in steps:
            await come(bench, step, refuses)
            assert running(bench) <= 1
        await over(bench)
        left = {name: place.states() for name, place in bench.places.items()}
        assert sorted(left.values()) == [[], [RUNS]], left
        (here,) = (name for name, states in left.items() if states)
        for name, agent in bench.agents.items():
            runs = (
                ID in agent.keeper.vms and agent.keeper.vms[ID].runs and not agent.keeper.vms[ID].handed_over
            )
            assert runs == (name == here), f"{name} believes otherwise"


def running(bench: Bench) -> int:
    return sum(states.count(RUNS) for states in (place.states() for place in bench.places.values()))


async def come(bench: Bench, step: str, refuses: bool) -> None:
    match step.split():
        case ["up", server]:
            await bench.up(server)
            bench.agents[server].rest.refuses = "converged" if refuses else ""
        case ["cut"]:
            for agent in bench.agents.values():
                for kept in agent.keeper.vms.values():
                    if kept.copying is not None:
                        kept.copying.cancel()
        case ["abort"]:
            for domain in list(bench.places["server1"].connection.domains_):
                with contextlib.suppress(Exception):
                    domain.abortJob()
        case ["ready"]:
            bench.source.keeper.take(Happening("vm.ready", vm=VM))
        case ["pause"]:
            await asyncio.sleep(0.02)
        case [order]:
            bench.order(order)
    await asyncio.sleep(0)


async def over(bench: Bench) -> None:
    """The controller gives the move up, until nothing is under way any more."""
    async with asyncio.timeout(6 * LIMIT):
        while True:
            bench.order("rollback")
            await bench.idle()
            states = [place.states() for place in bench.places.values()]
            if PAUSED not in states[0] + states[1] and running(bench) == 1:
                break
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.02)
        await bench.idle()
