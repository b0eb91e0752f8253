"""What is held on a switch is looked at again when something was told that it is judged by, and only then."""

from collections.abc import AsyncIterator

import pytest

from retinue.controller.switches.held import Held
from retinue.core.model import VMPort
from retinue.core.model.network import Owner
from retinue.core.pipeline.cookies import owner_hash, owner_hash_of
from retinue.core.pipeline.entry import Flow
from retinue.core.pipeline.meters import VMMeter
from support.fabric.networks import add_vm, fabric, vm_port
from support.fakes.session import FakeNetwork

ELSEWHERE = 99
"""A port that no VM has had."""


@pytest.fixture
async def later() -> AsyncIterator[FakeNetwork]:
    """A controller that starts over switches with the entries of vm1 and vm2, and knows no VM's port."""
    before = FakeNetwork(fabric(), clock=lambda: 1000.0)
    await before.start()
    net = fabric()
    for number in (1, 2):
        vm = add_vm(before.net, number, at=1)
        net.put_vm(vm)
        for held in before.net.held_by(vm.id):
            net.assign(held)
    await before.controller.context.install(before.net.everything())
    later = FakeNetwork(net, clock=lambda: 1000.0)
    later.fabric = before.fabric
    later.controller.context.knowledge.all_vms_known = True
    await later.start()
    yield later
    await later.stop()


def flows_of(fake: FakeNetwork, vm: str) -> int:
    mark = owner_hash(Owner("vm", vm))
    return sum(owner_hash_of(flow.cookie) == mark for flow in fake.fabric["edge1"].flows.values())


def meters_at(fake: FakeNetwork, port: int) -> int:
    return sum(kind.id(port) in fake.fabric["edge1"].meters for kind in VMMeter)


async def test_a_vm_whose_port_is_told_is_judged_alone(later: FakeNetwork) -> None:
    """The port is another than before: what it had goes, its meters too, and another VM's stays."""
    programmer = later.controller.context.installer.switches["edge1"]
    assert programmer.held
    held, others = flows_of(later, "vm1"), flows_of(later, "vm2")
    touched = later.net.set_vm_port("vm1", "edge1", VMPort(ELSEWHERE, "t99"))
    await later.controller.context.install(touched)
    assert flows_of(later, "vm1") == held
    assert (meters_at(later, vm_port(1)), meters_at(later, ELSEWHERE)) == (0, 3)
    assert flows_of(later, "vm2") == others
    assert meters_at(later, vm_port(2)) == 3
    assert programmer.held


async def test_an_installation_looks_at_what_is_held_of_whom_it_touches(
    later: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And at all of it when the edge's database has been read."""
    programmer = later.controller.context.installer.switches["edge1"]
    looked_at: list[int] = []
    not_yet = Held.not_yet

    def counted(self: Held, keys: set[object]) -> set[object]:
        if self is programmer._left:
            looked_at.append(len(keys))
        return not_yet(self, keys)  # type: ignore[arg-type, return-value]

    monkeypatch.setattr(Held, "not_yet", counted)
    everything = len(programmer.held)
    await later.controller.context.install({Owner("server", "server3")})
    assert looked_at == []
    await later.controller.context.install({Owner("vm", "vm1")})
    assert 0 < looked_at[0] < everything
    later.controller.context.knowledge.edges_read.add("edge1")
    await later.controller.context.install(())
    assert looked_at[1:] == [everything]
    assert not programmer.held


async def test_a_meter_that_what_is_held_names_does_not_go_before_it(later: FakeNetwork) -> None:
    """The switch would delete with it what is held. Vm1 has vm2's port for a while, and then another."""
    context = later.controller.context
    for number in (vm_port(2), ELSEWHERE):
        await context.install(later.net.set_vm_port("vm1", "edge1", VMPort(number, "t")))
    await context.install(later.net.set_vm_port("vm2", "edge1", VMPort(vm_port(2), "tap2")))
    wanted = context.compiler.program("edge1").whole()
    assert {key for key, one in wanted.items() if isinstance(one, Flow)} == later.fabric["edge1"].flows.keys()
    assert (meters_at(later, vm_port(2)), meters_at(later, ELSEWHERE)) == (3, 3)
    assert not context.installer.switches["edge1"].held
