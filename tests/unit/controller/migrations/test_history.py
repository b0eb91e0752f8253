"""Moves that have ended: the last ones are remembered, and the last one of each VM; no number comes twice."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from retinue.controller.app import Controller
from retinue.controller.migrations.history import History
from retinue.controller.migrations.orchestrator import MigrationOrchestrator
from retinue.controller.state import Stored
from retinue.core.migration import Migration, MigrationState
from retinue.protocol.hypervisor_events import EventKind
from retinue.protocol.migrations import Report
from support.fabric.networks import add_vm, fabric
from support.fakes.session import FakeNetwork


def ended(number: int, vm: str) -> Migration:
    return Migration(
        f"migration-{number}", vm, "server1", "server2", MigrationState.DONE, ((MigrationState.DONE, 1.0),)
    )


@given(st.integers(1, 5), st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3)), max_size=40))
def test_what_is_remembered(keep: int, story: list[tuple[str, int]]) -> None:
    """After any story of migrations that end, in order, and now and then of VMs that go."""
    history, kept, last, number = History(keep), dict[int, str](), dict[str, int](), 0
    for vm, what in story:
        if what == 0:
            last.pop(vm, None)
            forgotten = history.vm_gone(vm)
        else:
            number += 1
            kept[number] = vm
            last[vm] = number
            forgotten = history.ended(ended(number, vm))
        for id in forgotten:
            del kept[int(id.removeprefix("migration-"))]
        assert set(kept) == set(range(max(1, number - keep + 1), number + 1)) | set(last.values())


def test_a_move_that_ends_late_is_its_vms_last_and_is_told_once() -> None:
    history = History(1)
    assert history.ended(ended(8, "b")) == []
    assert history.ended(ended(7, "a")) == []
    assert history.ended(ended(7, "a")) == history.ended(ended(8, "b")) == []
    assert history.vm_gone("b") == [], "the highest number is kept, so that it is not given again"
    assert history.ended(ended(8, "b")) == []
    assert history.vm_gone("a") == ["migration-7"]
    assert history.ended(ended(9, "a")) == ["migration-8"]


@dataclass
class Kept:
    """A store that shows what is in it."""

    migrations: dict[str, Migration] = field(default_factory=dict)
    trouble: str = ""

    def put(self, value: Any) -> None:
        if isinstance(value, Migration):
            self.migrations[value.id] = value

    def remove(self, value: Any) -> None:
        if isinstance(value, Migration):
            del self.migrations[value.id]


def undo(orchestrator: MigrationOrchestrator, vm: str) -> None:
    """A migration that is called off at once."""
    id = orchestrator.start(vm, target_server="server2").id
    orchestrator.cancel(id)
    orchestrator.reports.on_report(id, Report.ROLLED_BACK, 0.0, "")


async def test_older_moves_go_from_memory_and_database() -> None:
    store = Kept()
    fake = FakeNetwork(fabric(), lambda: 1000.0, store, migrations_kept=3)
    for vm in (1, 2):
        add_vm(fake.net, vm, at=1)
    await fake.start()
    orchestrator = fake.controller.orchestrator
    undo(orchestrator, "vm2")
    for _ in range(5):
        await fake.settle()
        undo(orchestrator, "vm1")
    await fake.settle()
    remembered = ["migration-1", "migration-4", "migration-5", "migration-6"]
    assert list(orchestrator.migrations) == list(store.migrations) == remembered
    assert all(orchestrator.figures_of(id) for id in remembered)
    assert not orchestrator.figures_of("migration-2")
    await fake.controller.inventory.remove_vm("vm2")
    assert list(orchestrator.migrations) == list(store.migrations) == remembered[1:]
    assert orchestrator.start("vm1", target_server="server2").id == "migration-7"
    await fake.stop()


async def test_a_move_of_others_may_be_forgotten_as_soon_as_it_has_ended() -> None:
    fake = FakeNetwork(fabric(), lambda: 1000.0, migrations_kept=1)
    for vm in (1, 2):
        add_vm(fake.net, vm, at=1)
    await fake.start()
    controller, orchestrator = fake.controller, fake.controller.orchestrator
    controller.external_migrations.on_report("server1", "vm1", EventKind.STARTED, 1.0)
    controller.external_migrations.on_report("server2", "vm1", EventKind.INCOMING, 2.0)
    undo(orchestrator, "vm2")
    await fake.settle()
    orchestrator.cancel("migration-1")
    await fake.settle()
    orchestrator.reports.on_report("migration-1", Report.ROLLED_BACK, 0.0, "")
    await controller.inventory.remove_vm("vm1")
    await fake.settle()
    assert list(orchestrator.migrations) == ["migration-2"]
    assert not controller.context.counters["internal errors"]
    await fake.stop()


def test_at_the_start_the_older_ones_are_forgotten() -> None:
    """Moves come from the database in the order of their ids as text."""
    store, net = Kept(), fabric()
    vm = add_vm(net, 1, at=1)
    vms = {2: "gone", 3: "vm1", 5: "long gone", 11: "gone"}
    migrations = [ended(n, vms.get(n, "vm9")) for n in range(1, 13)]
    for migration in migrations:
        store.put(migration)
    controller = Controller(fabric(), store, lambda: 1000.0, migrations_kept=2)
    controller.restore(Stored(vms=[vm], migrations=sorted(migrations, key=lambda migration: migration.id)))
    assert (
        set(controller.orchestrator.migrations)
        == set(store.migrations)
        == {"migration-3", "migration-11", "migration-12"}
    )
