"""The controller of one of two domains, killed at any word of a move between them, costs nothing.

Its switches, their databases, its agents and the other domain come back to it one by one, in any order. At
every moment, also between any two changes of switches, what is sent to the VM comes to it, or to where it
waits for it; and wherever it runs, it is heard, and its switch tells it a gateway.
"""

import asyncio

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from support.examples import examples
from support.fabric.deaths import FORTH, Killer, arrivals, ended, is_served, settled
from support.fabric.domains import other, server_of
from support.fabric.two_controllers import two_domains
from support.virtual_time import run


@settings(
    deadline=None,
    max_examples=examples(20),
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(data=st.data())
def test_a_controller_killed_at_any_word_between_domains_costs_nothing(data: st.DataObject) -> None:
    to = data.draw(st.sampled_from("ab"), label="the VM goes to domain")
    dies = data.draw(st.sampled_from("ab"), label="whose controller dies")
    word = data.draw(st.sampled_from(FORTH), label="at")
    when = data.draw(st.sampled_from(["before", "after"]), label="when")
    pauses = data.draw(st.sampled_from([0.0, 0.05, 0.3]), label="seconds between what comes back")

    async def story() -> None:
        async with two_domains() as domains:
            await settled(domains)
            began_at = server_of(other(to), 1)
            if to == "a":
                await domains.move("a", "b", server_of("b", 1))

            async def comes_back() -> None:
                await asyncio.sleep(1.0)
                things = await domains.start_anew(dies)
                for what in data.draw(st.permutations(things), label="order"):
                    is_served(domains, began_at)
                    domains.comes(dies, what)
                    await asyncio.sleep(pauses)

            def look() -> None:
                """What is raised in a switch's session is its programmer's to bear."""
                try:
                    is_served(domains, began_at)
                except AssertionError as error:
                    wrong.append(error)

            wrong: list[AssertionError] = []
            for fake in domains.fakes.values():
                fake.confirms = look
            killer = Killer(domains, dies, word, when, comes_back)
            domains.begin(to, server_of(to, 1))
            await killer.until_back()
            await ended(domains)
            is_served(domains, began_at)
            assert not wrong, wrong[0]
            assert arrivals(domains) == {domains.runs_at}
            if (dies, word) != (to, "prepare"):
                assert domains.runs_at == server_of(to, 1), "undone"
            for fake in domains.fakes.values():
                assert not fake.controller.context.installer.pending()
            if domains.runs_at == server_of("a", 1):
                assert not domains.controller("b").net.vms

    run(story())
