"""What is confirmed, what is pending, and what is sent again: the installer over fake switches."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from fake_session import FakeNetwork
from networks import add_vm, fabric, vm_port
from retinue.controller import installer as module
from retinue.flows.entry import Flow, FlowKey
from retinue.model import VMPort
from retinue.model.network import Owner

VM1 = Owner("vm", "vm1")
FOREVER = 10**9


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeNetwork]:
    monkeypatch.setattr(module, "SHORTEST_PAUSE", 0.0)
    fake = FakeNetwork(fabric(), clock=lambda: 1000.0)
    await fake.start()
    yield fake
    await fake.stop()


async def install_vm(fake: FakeNetwork) -> module.Report:
    add_vm(fake.net, 1, at=1)
    return await fake.controller.context.install([VM1])


def stands(fake: FakeNetwork) -> bool:
    return fake.controller.context.stands(VM1)


async def test_confirmed_by_every_switch(fake: FakeNetwork) -> None:
    report = await install_vm(fake)
    assert not report.missing
    assert stands(fake)


async def test_what_a_switch_refuses_is_pending_and_sent_again(fake: FakeNetwork) -> None:
    fake.sessions["spine1"].refuse = FOREVER
    report = await install_vm(fake)
    assert report.missing == {"spine1"}
    assert not stands(fake)
    assert "TABLE_FULL" in fake.controller.context.installer.rejected["spine1"]
    fake.sessions["spine1"].refuse = 0
    await fake.settle()
    assert stands(fake)
    assert fake.fabric["spine1"].flows.keys() == fake.controller.context.compiler.program("spine1").keys()


async def test_a_switch_that_comes_back_empty_and_refuses_has_confirmed_nothing(fake: FakeNetwork) -> None:
    await install_vm(fake)
    fake.sessions["edge1"].close("restarted")
    fake.fabric["edge1"].flows.clear()
    fake.fabric["edge1"]._index.clear()
    session = fake.connect("edge1")
    session.refuse = FOREVER
    await fake.settle()
    assert not stands(fake)
    session.refuse = 0
    await fake.settle()
    assert stands(fake)


async def restarted(fake: FakeNetwork, held: float) -> dict[FlowKey, Flow]:
    """edge1 comes back to a controller that does not know vm1's port yet; the entries it had."""
    await install_vm(fake)
    before = dict(fake.fabric["edge1"].flows)
    fake.sessions["edge1"].close("the controller has restarted")
    fake.controller.context.installer.hold_removals(held)
    fake.net.set_vm_port("vm1", "edge1", None)
    await fake.controller.context.install([VM1])
    fake.connect("edge1")
    await fake.settle()
    assert fake.fabric["edge1"].flows == before
    assert fake.controller.context.installer.pending().keys() == {"edge1"}
    return before


async def test_what_is_held_is_removed_afterwards(fake: FakeNetwork) -> None:
    before = await restarted(fake, 0.05)
    await fake.controller.context.installer.settled({"edge1": frozenset(before)})
    wanted = fake.controller.context.compiler.program("edge1")
    assert fake.fabric["edge1"].flows.keys() == wanted.keys() < before.keys()


async def test_what_is_held_and_turns_out_to_be_wanted_is_left_alone(fake: FakeNetwork) -> None:
    before = await restarted(fake, FOREVER)
    report = await fake.controller.context.install(fake.net.set_vm_port("vm1", "edge1", VMPort(vm_port(1))))
    assert report.flow_mods == 0
    assert stands(fake)
    assert fake.fabric["edge1"].flows == before


async def test_an_older_answer_does_not_confirm_a_newer_change(fake: FakeNetwork) -> None:
    await install_vm(fake)
    gate = fake.sessions["edge1"].hold = asyncio.Event()
    holding = fake.net.held_by("vm1")[0]
    first = asyncio.create_task(
        fake.controller.context.install(fake.net.hold(replace(holding, lease_end=5000.0)))
    )
    await fake.settle()
    fake.net.hold(replace(holding, lease_end=9000.0))
    second = asyncio.create_task(fake.controller.context.install([VM1]))
    await fake.settle()
    later = fake.sessions["edge1"].hold = asyncio.Event()
    gate.set()
    await first
    assert not stands(fake), "the second change is still to be sent"
    later.set()
    await second
    assert stands(fake)


async def test_a_switch_that_cannot_be_read_is_let_go_and_holds_up_nobody(fake: FakeNetwork) -> None:
    fake.sessions["spine1"].close("gone")
    session = fake.connect("spine1")

    async def refuse() -> dict[int, object]:
        raise RuntimeError("no groups here")

    session.read_groups = refuse  # type: ignore[assignment, method-assign]
    await fake.settle()
    assert "cannot be read" in session.closed
    report = await install_vm(fake)
    assert report.missing == {"spine1"}
    assert fake.controller.context.installer.pending().keys() == {"spine1"}
    fake.connect("spine1")
    await fake.settle()
    assert stands(fake)


async def test_an_entry_the_switch_ended_too_early_is_sent_again(fake: FakeNetwork) -> None:
    await install_vm(fake)
    flow = next(f for f in fake.fabric["edge1"].flows.values() if f.expires_at)
    fake.fabric["edge1"]._remove(flow.key)
    fake.controller.context.installer.flow_ended("edge1", flow.key)
    assert not stands(fake)
    await fake.settle()
    assert stands(fake)
    assert flow.key in fake.fabric["edge1"].flows


async def test_a_port_that_changes_moves_the_entries(fake: FakeNetwork) -> None:
    await install_vm(fake)
    touched = fake.net.set_vm_port("vm1", "edge1", VMPort(77))
    await fake.controller.context.install(touched)
    ports = {v for flow in fake.fabric["edge1"].flows.values() for f, v, _ in flow.match if f == 0}
    assert 77 in ports
    assert vm_port(1) not in ports
