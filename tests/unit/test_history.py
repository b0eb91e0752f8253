"""Moves that have ended: the last ones are remembered, and the last one of each VM; no number comes twice."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fake_session import FakeNetwork
from networks import add_vm, fabric
from retinue.controller.controller import Controller
from retinue.controller.foreign import Kind
from retinue.controller.history import History
from retinue.controller.moving import Mover
from retinue.controller.restore import restore
from retinue.moves import Move, MoveState
from retinue.store import Stored


def ended(number: int, vm: str) -> Move:
    return Move(f"move-{number}", vm, "server1", "server2", MoveState.DONE, ((MoveState.DONE, 1.0),))


@given(st.integers(1, 5), st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3)), max_size=40))
def test_what_is_remembered(keep: int, story: list[tuple[str, int]]) -> None:
    """After any story of moves that end, in order, and now and then of VMs that go."""
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
            del kept[int(id.removeprefix("move-"))]
        assert set(kept) == set(range(max(1, number - keep + 1), number + 1)) | set(last.values())


def test_a_move_that_ends_late_is_its_vms_last_and_is_told_once() -> None:
    history = History(1)
    assert history.ended(ended(8, "b")) == []
    assert history.ended(ended(7, "a")) == []
    assert history.ended(ended(7, "a")) == history.ended(ended(8, "b")) == []
    assert history.vm_gone("b") == [], "the highest number is kept, so that it is not given again"
    assert history.ended(ended(8, "b")) == []
    assert history.vm_gone("a") == ["move-7"]
    assert history.ended(ended(9, "a")) == ["move-8"]


@dataclass
class Kept:
    """A store that shows what is in it."""

    moves: dict[str, Move] = field(default_factory=dict)

    def put(self, value: Any) -> None:
        if isinstance(value, Move):
            self.moves[value.id] = value

    def remove(self, value: Any) -> None:
        if isinstance(value, Move):
            del self.moves[value.id]


def undo(mover: Mover, vm: str) -> None:
    """A move that is called off at once."""
    id = mover.start(vm, target_server="server2").id
    mover.cancel(id)
    mover.hypervisor_says(id, "rolled_back", 0.0, "")


async def test_older_moves_go_from_memory_and_database() -> None:
    store = Kept()
    fake = FakeNetwork(fabric(), lambda: 1000.0, store, moves_kept=3)
    for vm in (1, 2):
        add_vm(fake.net, vm, at=1)
    await fake.start()
    mover = fake.controller.mover
    undo(mover, "vm2")
    for _ in range(5):
        await fake.settle()
        undo(mover, "vm1")
    await fake.settle()
    remembered = ["move-1", "move-4", "move-5", "move-6"]
    assert list(mover.moves) == list(store.moves) == list(mover.figures) == remembered
    await fake.controller.remove_vm("vm2")
    assert list(mover.moves) == list(store.moves) == remembered[1:]
    assert mover.start("vm1", target_server="server2").id == "move-7"
    await fake.stop()


async def test_a_move_of_others_may_be_forgotten_as_soon_as_it_has_ended() -> None:
    fake = FakeNetwork(fabric(), lambda: 1000.0, moves_kept=1)
    for vm in (1, 2):
        add_vm(fake.net, vm, at=1)
    await fake.start()
    controller, mover = fake.controller, fake.controller.mover
    controller.foreign.says("server1", "vm1", Kind.STARTED, 1.0)
    controller.foreign.says("server2", "vm1", Kind.INCOMING, 2.0)
    undo(mover, "vm2")
    await fake.settle()
    mover.cancel("move-1")
    await fake.settle()
    mover.hypervisor_says("move-1", "rolled_back", 0.0, "")
    await controller.remove_vm("vm1")
    await fake.settle()
    assert list(mover.moves) == ["move-2"]
    assert not controller.context.counters["internal errors"]
    await fake.stop()


def test_at_the_start_the_older_ones_are_forgotten() -> None:
    """Moves come from the database in the order of their ids as text."""
    store, net = Kept(), fabric()
    vm = add_vm(net, 1, at=1)
    vms = {2: "gone", 3: "vm1", 5: "long gone", 11: "gone"}
    moves = [ended(n, vms.get(n, "vm9")) for n in range(1, 13)]
    for move in moves:
        store.put(move)
    controller = Controller(fabric(), store, lambda: 1000.0, moves_kept=2)
    restore(controller, Stored(vms=[vm], moves=sorted(moves, key=lambda move: move.id)))
    assert set(controller.mover.moves) == set(store.moves) == {"move-3", "move-11", "move-12"}
