"""Of the migrations that are known, those under way are found without looking at the others."""

from dataclasses import replace

from retinue.controller.known_migrations import Migrations
from retinue.core.migration import Migration, MigrationState


def migration(number: int, vm: str, state: MigrationState = MigrationState.COPYING) -> Migration:
    return Migration(f"migration-{number}", vm, "server1", "server2", state, ((state, 1.0),))


def test_those_that_have_not_ended_are_under_way() -> None:
    known = Migrations()
    first, second = migration(1, "vm1"), migration(2, "vm2")
    known["migration-1"], known["migration-2"] = first, second
    assert list(known.under_way()) == [first, second]
    assert known.of_vm("vm2") == second
    known["migration-1"] = replace(first, state=MigrationState.DONE)
    assert known.of_vm("vm1") is None
    assert list(known.under_way()) == [second]
    del known["migration-2"]
    assert known.of_vm("vm2") is None


def test_an_old_one_that_is_told_again_is_not_taken_for_the_one_under_way() -> None:
    known = Migrations()
    known["migration-1"] = old = migration(1, "vm1", MigrationState.UNDONE)
    known["migration-2"] = now = migration(2, "vm1")
    known["migration-1"] = old
    assert known.of_vm("vm1") == now
    del known["migration-1"]
    assert known.of_vm("vm1") == now


def test_no_number_is_given_twice_also_when_the_last_is_forgotten() -> None:
    known = Migrations()
    assert known.next_id == "migration-1"
    known["migration-7"] = migration(7, "vm1", MigrationState.DONE)
    del known["migration-7"]
    assert known.next_id == "migration-8"


def test_while_they_are_looked_at_they_may_end() -> None:
    known = Migrations()
    for number in range(1, 4):
        known[f"migration-{number}"] = migration(number, f"vm{number}")
    for each in known.under_way():
        known[each.id] = replace(each, state=MigrationState.DONE)
    assert not list(known.under_way())
