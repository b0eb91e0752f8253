"""What an event costs does not grow with what it does not concern: work is counted here, not time."""

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from sys import getsizeof

import pytest

from retinue.controller import context
from retinue.controller.context import MOST_UNDER_WAY, Context
from retinue.core.migration import MigrationState
from retinue.core.model import Network, PortStatus, Role, fabric_checks
from retinue.core.model.network import Owner
from retinue.core.pipeline import compiler
from retinue.core.pipeline.contributions import RECENT, Contribution
from retinue.core.pipeline.entry import Program
from retinue.core.pipeline.shapes import Packed
from retinue.southbound.ovsdb.vm_ports import BridgePort
from support.fabric.networks import add_vm, fabric, vm_mac
from support.fakes.session import FakeNetwork

VMS = 6


@pytest.fixture
async def fake() -> AsyncIterator[FakeNetwork]:
    """Two VMs on each of three servers."""
    fake = FakeNetwork(fabric(), clock=lambda: 1000.0)
    await fake.start()
    for number in range(1, VMS + 1):
        add_vm(fake.net, number, at=1 + number % 3)
    await fake.controller.context.install(fake.net.everything())
    await fake.settle()
    yield fake
    await fake.stop()


@pytest.fixture
def looked_at(fake: FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often it was asked of each VM whether it is programmed."""
    asked: Counter[str] = Counter()
    whether = Context.is_programmed

    def counted(self: Context, owner: Owner) -> bool:
        asked[owner.id] += 1
        return whether(self, owner)

    monkeypatch.setattr(Context, "is_programmed", counted)
    fake.controller.context.state.vm_states.clear()
    return asked


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Counter[Owner]:
    """How often the entries of each owner were computed."""
    done: Counter[Owner] = Counter()
    compute = compiler.contribution

    def counted(net: Network, owner: Owner) -> Contribution:
        done[owner] += 1
        return compute(net, owner)

    monkeypatch.setattr(compiler, "contribution", counted)
    return done


async def back(fake: FakeNetwork, switch: str) -> None:
    fake.sessions[switch].close("away")
    fake.connect(switch)
    await fake.settle()


async def test_a_switch_that_comes_back_concerns_the_vms_on_it(
    fake: FakeNetwork, looked_at: Counter[str]
) -> None:
    await back(fake, "edge1")
    here = fake.net.vms_on("server1")
    assert set(looked_at) == here
    assert 0 < len(here) < VMS


async def test_a_spine_that_comes_back_concerns_all(fake: FakeNetwork, looked_at: Counter[str]) -> None:
    await back(fake, "spine1")
    assert set(looked_at) == set(fake.net.vms)


async def test_a_switch_that_comes_back_as_it_was_has_nothing_computed_anew(
    fake: FakeNetwork, compiled: Counter[Owner]
) -> None:
    for switch in fake.net.switches:
        await back(fake, switch)
    assert not compiled


def tell_ports(fake: FakeNetwork, first: int) -> None:
    """Each edge tells the ports of its VMs, numbered from `first` on, one by one."""
    for vm in range(1, VMS + 1):
        at = BridgePort(0x31 + vm % 3, "br0", "tap", first + vm, PortStatus.UP, f"vm{vm}", vm_mac(vm))
        fake.controller.inventory.ports.changed([], [at])


async def test_ports_told_while_much_is_under_way_are_computed_when_there_is_room_and_once(
    fake: FakeNetwork, compiled: Counter[Owner]
) -> None:
    """But for those of a VM that migrates, which is paused until its target has its entries."""
    room = fake.controller.context._room
    await room.enter(MOST_UNDER_WAY)
    for first in (300, 400, 500):
        tell_ports(fake, first)
        await fake.settle()
    assert not compiled
    room.leave(MOST_UNDER_WAY)
    await fake.settle()
    assert compiled == Counter(Owner("vm", vm) for vm in fake.net.vms)
    assert not room.taken
    fake.controller.orchestrator.start("vm1", target_server="server1")
    await fake.settle()
    await room.enter(MOST_UNDER_WAY)
    compiled.clear()
    tell_ports(fake, 600)
    await fake.settle()
    assert compiled == {Owner("vm", "vm1"): 1}
    room.leave(MOST_UNDER_WAY)


@pytest.mark.parametrize("first", ["a large change", "its turn"])
async def test_who_is_to_be_computed_twice_is_computed_by_the_first(
    fake: FakeNetwork, compiled: Counter[Owner], monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """As VMs that are registered in hundreds, and have their ports before it is their registration's turn."""
    monkeypatch.setattr("retinue.controller.context.LARGE", 0)
    monkeypatch.setattr("retinue.controller.context.BATCH", VMS)
    context = fake.controller.context
    owners = [Owner("vm", vm) for vm in fake.net.vms]
    await context._room.enter(MOST_UNDER_WAY)
    for step in ("a large change", "its turn")[:: 1 if first == "a large change" else -1]:
        if step == "its turn":
            tell_ports(fake, 300)
        else:
            context.spawn(context.install(owners), "registered VMs")
        await fake.settle()
    assert not compiled
    context._room.leave(MOST_UNDER_WAY)
    await fake.settle()
    assert compiled == Counter(owners)
    assert not context.not_installed
    assert all(context.is_programmed(owner) for owner in owners)
    await context.install(owners)
    assert compiled == Counter(owners) + Counter(owners), "what is asked for again is due again"


async def test_when_many_switches_come_at_once_nobody_is_computed_for_each_of_them(
    fake: FakeNetwork, compiled: Counter[Owner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart of the controller: each tells ports by which every VM is reached."""
    monkeypatch.setattr("retinue.controller.context.LARGE", 0)
    context, came = fake.controller.context, ("spine1", "spine2", "leaf1", "leaf2")
    for switch in came:
        fake.sessions[switch].close("away")
    await context._room.enter(MOST_UNDER_WAY)
    for switch in came:
        fake.connect(switch, {port: number + 500 for port, number in fake.net._numbers[switch].items()})
    await fake.settle()
    assert not compiled
    assert not any(context.installer.switches[switch].is_read for switch in came), (
        "nobody knows what they lack"
    )
    context._room.leave(MOST_UNDER_WAY)
    await fake.settle()
    assert {compiled[Owner("vm", vm)] for vm in fake.net.vms} == {1}
    assert not context.installer.pending()
    assert all(context.is_programmed(Owner("vm", vm)) for vm in fake.net.vms)


async def test_switches_that_are_in_step_take_no_room(fake: FakeNetwork) -> None:
    """However many entries were on their way before: an empty set keeps what it once needed."""
    for switch in fake.controller.context.installer.switches.values():
        for some in (switch.pending, switch.held, switch.mirror._differs):
            assert getsizeof(some) == getsizeof(type(some)())


async def test_whether_a_vm_is_ready_is_asked_without_computing(
    fake: FakeNetwork, compiled: Counter[Owner]
) -> None:
    vms = [Owner("vm", vm) for vm in fake.net.vms]
    assert all(fake.controller.context.is_programmed(vm) for vm in vms)
    assert not compiled


async def test_whether_a_vm_is_ready_is_asked_without_unpacking(
    fake: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of switches that are in step."""
    unpacked: list[str] = []
    unpack = Packed.on

    def counted(self: Packed, switch: str, mark: int) -> Program:
        unpacked.append(switch)
        return unpack(self, switch, mark)

    monkeypatch.setattr(Packed, "on", counted)
    context = fake.controller.context
    context.compiler._contributions.recent = 0
    context.compiler.update([Owner("vm", vm) for vm in fake.net.vms])
    unpacked.clear()
    assert all(context.is_programmed(Owner("vm", vm)) for vm in fake.net.vms)
    assert not unpacked
    context.installer.switches["spine1"].pending.add(("meter", 99))
    assert all(context.is_programmed(Owner("vm", vm)) for vm in fake.net.vms)
    assert set(unpacked) == {"spine1"}
    context.installer.switches["spine1"].pending.clear()


async def test_a_vm_without_any_entry_waits_for_its_edge_alone(fake: FakeNetwork) -> None:
    """Its NIC is disabled and holds nothing; it is ready all the same."""
    net = fake.net
    vm = add_vm(net, VMS + 1, at=1)
    fake.sessions["edge1"].close("away")
    nic = vm.nics[0]
    for held in net.held_by(vm.id):
        net.unassign(held.key)
    net.change_nic(vm.id, nic, replace(nic, enabled=False))
    await fake.controller.context.install({Owner("vm", vm.id)})
    assert str(fake.controller.inventory.state_of(vm.id)) == "registered"
    fake.connect("edge1")
    await fake.settle()
    assert str(fake.controller.inventory.state_of(vm.id)) == "ready"


def test_what_is_under_way_is_kept_as_it_was_computed() -> None:
    """What is sent, confirmed and compared is asked for a dozen times on its way."""
    assert MOST_UNDER_WAY < RECENT


def test_switches_are_found_by_their_role() -> None:
    net = fabric()
    for role in Role:
        assert [s.id for s in net.with_role(role)] == [s.id for s in net.switches.values() if s.role is role]
    net.add_switch(replace(net.switches["leaf1"], role=Role.SPINE))
    assert [s.id for s in net.with_role(Role.SPINE)] == ["spine1", "spine2", "leaf1"]
    assert [s.id for s in net.with_role(Role.LEAF)] == ["leaf2"]


async def test_whom_a_migration_waits_for_is_asked_of_the_switches_concerned_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each time that a switch confirms it is asked which others have yet to, and may be out of use."""
    asked: Counter[str] = Counter()
    whether = fabric_checks.is_unused

    def counted(net: Network, switch: str) -> bool:
        asked[switch] += 1
        return whether(net, switch)

    monkeypatch.setattr(context, "is_unused", counted)
    fake = FakeNetwork(fabric(leaves=6), clock=lambda: 1000.0)
    await fake.start()
    add_vm(fake.net, 1, at=1)
    orchestrator = fake.controller.orchestrator
    id = orchestrator.start("vm1", target_server="server2", after_the_fact=True).id
    for away in ("spine2", "leaf6"):
        fake.sessions[away].close("away")
    here = BridgePort(0x32, "br0", "tap1", 3, PortStatus.UP, iface_id="vm1", attached_mac=vm_mac(1))
    fake.controller.inventory.ports.changed([], [here])
    await fake.settle()
    assert not orchestrator.migrations[id].state.ended
    fake.connect("spine2")
    await fake.settle()
    assert (
        orchestrator.migrations[id].state is MigrationState.CONFIRMED
        or orchestrator.migrations[id].state.ended
    )
    assert "spine2" in asked
    assert asked.keys() <= {"edge1", "edge2", "leaf1", "leaf2", "spine1", "spine2"}
    await fake.stop()
