"""Words that are lost, and what has ended at one end alone: both ends come to the same."""

import asyncio
import time

import pytest

from retinue.controller.domains import saying
from retinue.controller.migrations.requests import MigrationError
from retinue.core.migration import MigrationState as S
from retinue.protocol.domains import Heard, Said, Word
from retinue.protocol.migrations import Report
from support.fabric.domains import server_of
from support.fabric.two_controllers import VM_ID, TwoDomains

UNDER_WAY = (S.PREPARED, S.COPYING, S.DIVERTED)


async def test_that_the_vm_has_stopped_is_said_again_after_a_restart(domains: TwoDomains) -> None:
    domains.fails = "ends when it has stopped"
    domains.doors["b"].answers[Said.STOPPED] = (
        S.DIVERTED
    )  # It is lost with the controller that was to say it.
    domains.begin(server=server_of("b", 1))
    await domains.until("a", S.DIVERTED)
    await domains.agents_done()
    assert domains.migration("a").stopped_at is not None
    assert domains.migration("b").stopped_at is None
    domains.fails = ""
    del domains.doors["b"].answers[Said.STOPPED]
    domains.controller("a").orchestrator.resume_all()
    await domains.until("a", S.DONE)
    await domains.until("b", S.DONE)


async def test_that_the_target_is_closed_is_heard_when_the_source_asks_again(domains: TwoDomains) -> None:
    domains.fails = "away when it closes"
    domains.begin(server=server_of("b", 1))
    await domains.until("a", *UNDER_WAY)
    a = domains.controller("a")
    a.orchestrator.cancel(domains.migration("a").id)
    await domains.until("b", S.UNDONE)
    assert domains.migration("a").state is S.ROLLING_BACK
    domains.doors["a"].away = False
    a.orchestrator.resume_all()
    await domains.until("a", S.UNDONE)


async def test_what_the_source_has_undone_is_not_waited_for(domains: TwoDomains) -> None:
    domains.doors["a"].answers[Said.OPENED] = S.UNDONE
    domains.begin(server=server_of("b", 1))
    undone = await domains.until("b", S.UNDONE)
    assert undone.reason == "domain a has undone it"


async def test_a_failure_counts_where_the_source_has_undone_it(domains: TwoDomains) -> None:
    domains.doors["a"].answers[Said.FAILED] = S.UNDONE
    domains.fails = "after diverting"
    domains.begin(server=server_of("b", 1))
    assert "its QEMU has ended" in (await domains.until("b", S.UNDONE)).reason


async def test_of_what_has_ended_its_end_is_said(domains: TwoDomains) -> None:
    domains.begin(server=server_of("b", 1))
    await domains.until("a", *UNDER_WAY)
    a = domains.controller("a")
    id = domains.migration("a").id
    a.orchestrator.cancel(id)
    await domains.until("a", S.UNDONE)
    for word in (Word(Said.TARGET_CLOSED), Word(Said.RESUMED, 1.0), Word(Said.FAILED)):
        assert (await a.domains.hearing.word("b", id, word, None)).state is S.UNDONE


async def test_a_target_that_is_closed_had_failed(domains: TwoDomains) -> None:
    """That it had was said to nobody: `failed` was lost."""
    domains.doors["a"].answers[Said.OPENED] = S.MATCHED
    domains.begin(server=server_of("b", 1))
    await domains.until("b", S.PREPARED)
    a = domains.controller("a")
    heard = await a.domains.hearing.word("b", domains.migration("a").id, Word(Said.TARGET_CLOSED), None)
    assert heard.state in (S.ROLLING_BACK, S.UNDONE)
    await domains.until("a", S.UNDONE)
    await domains.until("b", S.UNDONE)


@pytest.mark.parametrize("older", [False, True], ids=["as it is", "an older version there"])
async def test_for_one_that_has_ended_there_no_second_place_is_booked(
    domains: TwoDomains, older: bool
) -> None:
    """Its source has not heard that, and says once more what the VM holds: as its controller does when it
    was started anew."""
    domains.fails = "before it converges"
    copying = domains.begin(server=server_of("b", 1))
    await domains.until("a", S.COPYING)
    there = await domains.until("b", S.COPYING)
    domains.fails = "away when it closes"
    domains.doors["a"].away = True
    domains.agents["b"].tell(there.id, Report.FAILED, there.target, reason="its QEMU has ended")
    await domains.until("b", S.UNDONE)
    a, b = domains.controller("a"), domains.controller("b")
    if older:
        known = b.domains.hearing._known
        b.domains.hearing._known = (  # type: ignore[method-assign]
            lambda *asked: None if (found := known(*asked)) is None or found.state.ended else found
        )
    a.domains.saying._told.clear()
    domains.doors["a"].away, domains.fails = False, ""
    with pytest.raises(MigrationError, match=r"domain b does not divert: .*has ended"):
        await domains.agents["a"]._report(copying.id, Report.CONVERGED, copying.source)
    domains.agents["a"].tell(copying.id, Report.FAILED, copying.source, reason="not diverted")
    await domains.until("a", S.UNDONE)
    await domains.until("b", S.UNDONE)
    await domains.fakes["b"].settle()
    assert len(b.orchestrator.migrations) == (2 if older else 1)
    assert VM_ID not in b.net.vms and not a.domains.saying._told


async def test_while_our_loop_stands_still_the_other_domain_has_as_long_as_ever(
    domains: TwoDomains, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saying, "DIVERTING_LIMIT", 1.0)
    door, late = domains.doors["b"], 0
    say = door.say

    async def say_late(migration: str, word: Word) -> Heard:
        nonlocal late
        if word.said is Said.CONVERGED and not late:
            late += 1
            asyncio.get_running_loop().call_soon(time.sleep, 1.5)
        return await say(migration, word)

    monkeypatch.setattr(door, "say", say_late)
    domains.begin(server=server_of("b", 1))
    await domains.until("a", S.DONE, S.UNDONE)
    assert (domains.migration("a").state, late) == (S.DONE, 1), domains.migration("a").reason
