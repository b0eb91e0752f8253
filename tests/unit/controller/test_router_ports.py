"""The controller beside routers that are not ours: a server whose port there is not set up."""

from collections.abc import AsyncIterator

import pytest

from retinue.core.migration import MigrationState
from retinue.core.model import VM, PortStatus
from retinue.protocol.vms import VMState
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import fabric, vm_ip, vm_mac, vm_port
from support.fakes.session import FakeNetwork


def port(vm: int, at: int) -> BridgePort:
    return BridgePort(0x30 + at, "br0", f"tap{vm}", vm_port(vm), PortStatus.UP, f"vm{vm}", vm_mac(vm))


@pytest.fixture
async def fake() -> AsyncIterator[FakeNetwork]:
    """vm1 is at server1; server2's port at leaf2 is not set up."""
    fake = FakeNetwork(fabric(2, 0, (1, 2), over_routers=True), lambda: 1000.0)
    await fake.start()
    tell(fake, "p2")
    register(fake, 1, 1)
    await fake.settle()
    yield fake
    await fake.stop()


def tell(fake: FakeNetwork, *down: str) -> None:
    session = fake.sessions["leaf2"]
    session.down = frozenset(down)
    fake.controller.router_ports(session)


def register(fake: FakeNetwork, vm: int, at: int) -> None:
    made = VM.with_one_nic(f"vm{vm}", vm_mac(vm), f"server{at}", addresses=(vm_ip(vm),))
    fake.controller.inventory.register_vms([made])
    fake.controller.inventory.ports.changed([], [port(vm, at)])


async def test_a_vm_there_is_ready_when_the_port_is_set_up(fake: FakeNetwork) -> None:
    inventory = fake.controller.inventory
    register(fake, 2, 2)
    await fake.settle()
    assert inventory.state_of("vm1") is VMState.READY
    assert inventory.state_of("vm2") is VMState.REGISTERED
    why = "port p2 of leaf2, to server server2, has no link or is not set up"
    assert inventory.missing_for(fake.net.vms["vm2"]) == [why]
    tell(fake)
    await fake.settle()
    assert inventory.state_of("vm2") is VMState.READY


async def test_a_migration_to_there_begins_when_the_port_is_set_up(fake: FakeNetwork) -> None:
    orchestrator = fake.controller.orchestrator
    id = orchestrator.start("vm1", target_server="server2").id
    await fake.settle()
    assert orchestrator.migrations[id].state is MigrationState.PLANNED
    tell(fake)
    await fake.settle()
    assert orchestrator.migrations[id].state is MigrationState.MATCHED
