"""Guests: where they may be, and what is left of them when they are gone."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from retinue.controller.domains import removals
from retinue.controller.domains.guests import held_by
from retinue.controller.migrations.requests import MigrationError
from retinue.core.migration import MigrationState as S
from retinue.core.model import ModelError
from retinue.protocol.domains import Guest, GuestAddress, GuestNIC, Prepare, Removed
from retinue.protocol.mobility import ServerReport, VMSize
from support.fabric.domains import server_of
from support.fabric.two_controllers import VM_ID, TwoDomains


async def test_a_server_that_the_peer_names_is_judged_as_any_other(domains: TwoDomains) -> None:
    domains.room[server_of("b", 1)] = 64
    domains.begin(server=server_of("b", 1))
    assert "no server can take vm-a1" in (await domains.until("a", S.UNDONE)).reason
    assert not domains.controller("b").net.vms


def test_no_vm_makes_an_address_of_ipv4() -> None:
    """It would be bound for ever, of no lease."""
    made = [GuestAddress("10.1.0.150")]
    guest = Guest(VM_ID, [GuestNIC("52:54:00:00:00:01", VM_ID, [], held=made)], is_home=False)
    with pytest.raises(ModelError, match=r"VM vm-a1: 10\.1\.0\.150 is no address that a VM makes itself"):
        list(held_by(guest, 0.0))


async def test_what_a_guest_that_was_left_over_had_is_anothers_now(domains: TwoDomains) -> None:
    """As where the controller died before it forgot it: it comes again with another lease."""
    b = domains.controller("b")
    for ip in ("10.1.0.150", "10.1.0.151"):
        held = [GuestAddress(ip, leased=True, seconds=600.0)]
        guest = Guest(VM_ID, [GuestNIC("52:54:00:00:00:01", VM_ID, [], held=held)], is_home=False)
        b.domains.hearing._take_in(b.domains.hearing.may_come("a", guest), guest)
    assert [str(held.ip) for held in b.net.held_by(VM_ID)] == ["10.1.0.151"]


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


async def test_a_guest_that_is_gone_is_forgotten_by_a_controller_that_died_before_it_was(
    domains: TwoDomains, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the VM may come again."""
    await domains.move("a", "b", server_of("b", 2))
    b = domains.controller("b")
    monkeypatch.setattr(b.domains.hearing, "forget_if_gone", lambda id: None)
    await domains.move("b", "a", server_of("a", 1))
    await domains.kill("b")
    await domains.start_again("b")
    b = domains.controller("b")
    assert not b.net.vms and not b.net.assignments
    left = domains.stores["b"].load()
    assert not left.vms and not left.assignments
    await domains.move("a", "b", server_of("b", 1))


async def test_a_guest_whose_place_was_being_booked_is_forgotten_and_another_is_not(
    domains: TwoDomains,
) -> None:
    await domains.move("a", "b", server_of("b", 2))
    b = domains.controller("b")
    guest = Guest("vm-a9", [GuestNIC("52:54:00:00:00:99", "vm-a9", ["10.1.0.199"])], is_home=False)
    b.domains.hearing._take_in(b.domains.hearing.may_come("a", guest), guest)
    await domains.kill("b")
    await domains.start_again("b")
    b = domains.controller("b")
    assert list(b.net.vms) == [VM_ID]
    assert b.net.vms[VM_ID].server == server_of("b", 2)


async def test_a_guest_whose_booking_is_broken_off_is_forgotten(
    domains: TwoDomains, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asked hung up."""
    b = domains.controller("b")

    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(b.mobility, "migrate", never)
    guest = Guest(VM_ID, [GuestNIC("52:54:00:00:00:99", VM_ID, ["10.1.0.199"])], is_home=False)
    asked = asyncio.create_task(b.domains.hearing.prepare("a", Prepare("migration-1", guest, "a-server1")))
    await until(lambda: VM_ID in b.net.vms)
    asked.cancel()
    await asyncio.wait({asked})
    await domains.fakes["b"].settle()
    assert not b.net.vms


async def test_who_asks_again_while_a_place_is_being_booked_gets_the_same(domains: TwoDomains) -> None:
    """As a home's controller does that was started anew."""
    hearing = domains.controller("b").domains.hearing
    nic = GuestNIC("52:54:00:00:00:01", VM_ID, ["10.1.0.101"])
    guest = Guest(VM_ID, [nic], is_home=False, memory_mib=128)
    asked = [hearing.prepare("a", Prepare("migration-9", guest, server_of("a", 1))) for _ in range(2)]
    first, again = await asyncio.gather(*asked)
    assert first == again


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
