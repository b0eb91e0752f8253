"""One of the two controllers dies at some word between them, and comes back, or does not.

Time is virtual. What holds at every word, whoever is dead: a packet to the VM comes to where it runs, or to
where it waits for it; the VM never runs twice (support.fabric.far_agents asserts it).
"""

import asyncio

import pytest

from retinue.controller.domains import hearing
from retinue.core.migration import MigrationState as S
from support.fabric.deaths import FORTH, IN_THE_END, Killer, arrivals, comes_somewhere, ended, settled
from support.fabric.domains import other, server_of
from support.fabric.two_controllers import VM_ID, TwoDomains, two_domains
from support.virtual_time import run

FOR_A_WHILE, LONG, FOR_EVER = 2.0, 100.0, 0.0
"""Seconds that a controller is dead."""


def run_in_the_end(to: str, dies: str, word: str, when: str, dead_for: float) -> TwoDomains:
    """The VM goes to domain `to`."""

    async def story() -> TwoDomains:
        async with two_domains() as domains:
            await settled(domains)
            if to == "a":
                await domains.move("a", "b", server_of("b", 1))

            async def comes_back() -> None:
                if dead_for:
                    await asyncio.sleep(dead_for)
                    await domains.start_again(dies)

            killer = Killer(domains, dies, word, when, comes_back)
            domains.begin(to, server_of(to, 1))
            await killer.until_back()
            if dead_for:
                await ended(domains)
            else:
                await asyncio.sleep(IN_THE_END)
            comes_somewhere(domains)
            check(domains, dies if not dead_for else "")
            return domains

    return run(story())


WAITS_FOR_THE_OTHER = (S.DIVERTED, S.CONFIRMED)
"""The source's domain for the word that the VM runs at the target; the target's, that the source is freed."""


def check(domains: TwoDomains, dead: str) -> None:
    """How it is in the end."""
    came = arrivals(domains)
    if dead:
        alive = domains.migration(other(dead))
        if dead == "b" or domains.runs_at == server_of("a", 1):
            assert domains.runs_at in came
        # Else home has diverted, and nobody can take that back but home: what comes waits there.
        assert not domains.paused
        assert alive.state.ended or alive.state in WAITS_FOR_THE_OTHER, alive
        return
    assert came == {domains.runs_at}
    a, b = (domains.controller(domain) for domain in "ab")
    if domains.runs_at == server_of("a", 1):
        assert a.net.vms[VM_ID].server == server_of("a", 1)
        assert not b.net.vms
    else:
        assert a.net.vms[VM_ID].server == "to-b"
        assert b.net.vms[VM_ID].server == domains.runs_at == server_of("b", 1)


@pytest.mark.parametrize(
    ("to", "when", "dead_for"),
    [
        ("b", "before", FOR_A_WHILE),
        ("b", "after", FOR_A_WHILE),
        ("b", "after", LONG),
        ("a", "after", FOR_A_WHILE),
    ],
)
@pytest.mark.parametrize("word", FORTH)
@pytest.mark.parametrize("dies", ["a", "b"])
def test_a_controller_dies_and_comes_back(to: str, dies: str, word: str, when: str, dead_for: float) -> None:
    """Both ends come to the same: the VM is at one place, in the tables of both, and nothing is left of the
    migration. It is not undone, but where nobody was there to book a place, or for a long time."""
    domains = run_in_the_end(to, dies, word, when, dead_for)
    if dead_for == FOR_A_WHILE and (dies, word) != (to, "prepare"):
        assert domains.runs_at == server_of(to, 1)


def test_marks_are_sent_anew_by_a_controller_that_died_over_them() -> None:
    """The source's domain has waited for them in vain, and waits on: the tunnel is not to blame."""
    domains = run_in_the_end("b", "b", "diverted", "after", hearing.MARK_LIMIT + 1.0)
    assert domains.runs_at == server_of("b", 1)


@pytest.mark.parametrize("to", ["a", "b"])
@pytest.mark.parametrize("word", FORTH)
@pytest.mark.parametrize("dies", ["the source's", "the target's"])
def test_a_controller_dies_and_does_not_come_back(to: str, dies: str, word: str) -> None:
    """Switches and agents of its domain go on without it: no packet is lost. What the other one can end, it
    ends."""
    run_in_the_end(to, to if dies == "the target's" else other(to), word, "after", FOR_EVER)
