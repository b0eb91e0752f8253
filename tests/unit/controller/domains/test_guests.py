"""Guests: where they may be, and what is left of them when they are gone."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from retinue.controller.domains import removals
from retinue.controller.migrations.requests import MigrationError
from retinue.core.migration import MigrationState as S
from retinue.protocol.domains import Removed
from retinue.protocol.mobility import ServerReport, VMSize
from support.fabric.domains import server_of
from support.fabric.two_controllers import VM_ID, TwoDomains


async def test_a_server_that_the_peer_names_is_judged_as_any_other(domains: TwoDomains) -> None:
    domains.room[server_of("b", 1)] = 64
    domains.begin(server=server_of("b", 1))
    assert "no server can take vm-a1" in (await domains.until("a", S.UNDONE)).reason
    assert not domains.controller("b").net.vms


async def test_a_guest_that_is_gone_is_forgotten(domains: TwoDomains) -> None:
    b = domains.controller("b")
    forgotten: list[str] = []
    before = b.inventory.forgotten
    b.inventory.forgotten = lambda vm: (forgotten.append(vm), before(vm))[1]  # type: ignore[func-returns-value]
    await domains.move("a", "b", server_of("b", 2))
    b.mobility.on_report(server_of("b", 2), ServerReport(vms=[VMSize(VM_ID, 128)]))
    await domains.move("b", "a", server_of("a", 1))
    await domains.fakes["b"].settle()
    assert not b.net.vms
    assert forgotten == [VM_ID]
    assert b.resources.size_of(VM_ID) == (0, 0)
    assert not b.orchestrator._history._last, "why should its last migration be remembered?"


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_guest_that_is_removed_is_no_more_at_home(domains: TwoDomains) -> None:
    """Its name and address are free there."""
    a, b = (domains.controller(domain) for domain in "ab")
    await domains.move("a", "b", server_of("b", 2))
    await b.inventory.remove_vm(VM_ID)
    await until(lambda: VM_ID not in a.net.vms and not b.context.state.removed_guests)
    assert domains.doors["a"].said.count("removed") == 1
    assert not a.net.assignments
    assert not b.net.vms


async def test_that_a_guest_was_removed_is_said_until_home_hears_it(
    domains: TwoDomains, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Home is away, and meanwhile the host's controller is started again."""
    monkeypatch.setattr(removals, "FIRST_PAUSE", 0.01)
    a, b = (domains.controller(domain) for domain in "ab")
    await domains.move("a", "b", server_of("b", 2))
    domains.doors["a"].away = True
    await b.inventory.remove_vm(VM_ID)
    await domains.fakes["b"].settle()
    assert list(b.context.state.removed_guests) == [f"a/{VM_ID}"]
    assert VM_ID in a.net.vms
    for task in b.domains.removals._telling.values():
        task.cancel()  # As the end of the controller does; what it stores: test_state.
    await asyncio.sleep(0)
    domains.doors["a"].away = False
    b.domains.removals.tell()
    await until(lambda: VM_ID not in a.net.vms and not b.context.state.removed_guests)


async def test_a_domain_removes_nothing_that_is_not_there(domains: TwoDomains) -> None:
    """Neither a VM at home, nor one on its way, nor one that is no guest of whoever says it."""
    a, b = (domains.controller(domain) for domain in "ab")
    gone = Removed(VM_ID)
    a.domains.hearing.removed("b", gone)
    a.domains.hearing.removed("b", Removed("nobody"))
    domains.fails = "before it converges"
    domains.begin(server=server_of("b", 1))
    await domains.until("a", S.COPYING)
    with pytest.raises(MigrationError, match="VM vm-a1 is being migrated: migration-1 is copying"):
        a.domains.hearing.removed("b", gone)
    b.domains.hearing.removed("a", gone)  # It is a guest there, and a is its home.
    assert VM_ID in a.net.vms
    assert VM_ID in b.net.vms


async def test_a_guest_that_comes_again_was_heard_of(domains: TwoDomains) -> None:
    """The answer was lost: a late word does not take away the VM that has come since."""
    a, b = (domains.controller(domain) for domain in "ab")
    await domains.move("a", "b", server_of("b", 2))
    domains.doors["a"].away = True
    vm = a.net.vms[VM_ID]
    await b.inventory.remove_vm(VM_ID)
    domains.unplug("b", server_of("b", 2))
    a.domains.hearing.removed("b", Removed(VM_ID))
    await domains.fakes["a"].settle()
    domains.runs_at = server_of("a", 1)
    a.inventory.register_vms([replace(vm, server=server_of("a", 1))])
    domains.plug("a", server_of("a", 1))
    await domains.fakes["a"].settle()
    domains.doors["a"].away = False
    await domains.move("a", "b", server_of("b", 2))
    assert not b.context.state.removed_guests
    assert a.net.vms[VM_ID].server == "to-b"
