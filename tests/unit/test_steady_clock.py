"""The wall clock is set, forward or back: nothing ends sooner or later for it."""

from collections.abc import Callable

import pytest

from retinue.core.model import VM, PortStatus
from retinue.southbound.ovsdb import BridgePort
from retinue.steady_clock import SteadyClock
from support.fabric.networks import assignment, fabric, vm_mac, vm_port
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork


class Machine:
    """Its two clocks, and how often it was started."""

    def __init__(self) -> None:
        self.wall, self.passed, self.boot = 1_000_000.0, 50.0, "first"

    def goes_on(self, seconds: float) -> None:
        self.wall += seconds
        self.passed += seconds

    def clock(self) -> SteadyClock:
        return SteadyClock(lambda: self.wall, lambda: self.passed, lambda: self.boot)


def test_the_clock_shows_the_wall_clocks_time_until_that_is_set() -> None:
    machine = Machine()
    clock = machine.clock()
    assert clock() == 1_000_000.0
    machine.goes_on(5.0)
    assert clock() == 1_000_005.0
    for step in (3600.0, -7200.0):
        machine.wall += step
        assert clock() == 1_000_005.0


def test_a_clock_is_taken_up_on_the_same_machine_until_that_starts_anew() -> None:
    machine = Machine()
    first = machine.clock()
    machine.wall += 3600.0
    machine.goes_on(10.0)
    second = machine.clock()
    assert second() == 1_003_610.0
    assert second.take_up(first.anchor)
    assert second() == first() == 1_000_010.0
    machine.boot, machine.passed = "second", 1.0
    third = machine.clock()
    assert not third.take_up(first.anchor)
    assert third() == machine.wall
    machine.boot = ""
    assert not machine.clock().take_up(machine.clock().anchor), "nobody knows which machine that was"


@pytest.mark.parametrize("step", [3600.0, -3600.0])
@pytest.mark.parametrize("restarted", [True, False])
async def test_leases_and_timeouts_do_not_follow_the_wall_clock(
    step: float, restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, store = Machine(), MemoryStore()
    monkeypatch.setattr("retinue.controller.app.SteadyClock", machine.clock)

    def network() -> FakeNetwork:
        return FakeNetwork(fabric(), None, store)

    fake = network()
    fake.controller.restore(store.load())
    await fake.start()
    fake.controller.inventory.register_vms([VM.with_one_nic("vm1", vm_mac(1), "server1")])
    port = BridgePort(0x31, "br0", "tap1", vm_port(1), PortStatus.UP, "vm1", vm_mac(1))
    fake.controller.inventory.ports.changed([], [port])
    end = 1_000_600.0
    await fake.controller.dhcp.bind(assignment(1, lease_end=end), renewed=False)
    await fake.settle()
    migration = fake.controller.orchestrator.start("vm1", target_server="server2")
    machine.goes_on(1.0)
    machine.wall += step
    if restarted:
        flows, again = fake.fabric, network()
        await fake.stop()
        again.fabric, fake = flows, again
        fake.controller.restore(store.load())
        await fake.start()
        fake.controller.inventory.ports.changed([], [port])
    await fake.controller.dhcp.expire()
    fake.controller.orchestrator.tick()
    await fake.settle()
    assert [held.lease_end for held in fake.net.held_by("vm1")] == [end]
    ends = {flow.expires_at for flow in fake.fabric["edge1"].flows.values()} - {None}
    assert ends == {end}
    now: Callable[[], float] = fake.controller.context.clock
    assert now() == 1_000_001.0
    assert not fake.controller.orchestrator.migrations[migration.id].state.ended
    assert fake.controller.orchestrator.migrations[migration.id].state == "matched"
    machine.goes_on(700.0)
    await fake.controller.dhcp.expire()
    assert not fake.net.held_by("vm1")
    await fake.stop()
