"""A server on which the operator wants no VM."""

import pytest

from retinue.controller.errors import RequestError
from retinue.controller.migrations.orchestrator import MigrationError
from retinue.core.model import VM
from support.fabric.networks import fabric, vm_mac
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork
from support.recent_events import recent


def vm(number: int, at: int) -> VM:
    return VM.with_one_nic(f"vm{number}", vm_mac(number), f"server{at}")


async def test_a_drained_server_takes_no_vm_until_it_is_undrained() -> None:
    """Those that are there stay, and may go; what others migrate there is not refused."""
    store = MemoryStore()
    fake = FakeNetwork(fabric(), lambda: 1000.0, store)
    await fake.start()
    inventory = fake.controller.inventory
    inventory.register_vms([vm(1, 1), vm(2, 2)])
    await fake.settle()
    inventory.drain("server1", drained=True)
    inventory.drain("server1", drained=True)
    assert len(recent(fake.controller.events, "server.drained", 10)) == 1
    await fake.stop()
    fake = FakeNetwork(fabric(), lambda: 1000.0, store)
    fake.controller.restore(store.load())
    await fake.start()
    inventory, orchestrator = fake.controller.inventory, fake.controller.orchestrator
    with pytest.raises(RequestError, match="server server1 is drained"):
        inventory.register_vms([vm(3, 1)])
    with pytest.raises(MigrationError, match="server server1 is drained"):
        orchestrator.start("vm2", target_server="server1")
    assert orchestrator.start("vm2", target_server="server1", under_way=True).target == "server1"
    assert orchestrator.start("vm1", target_server="server3").target == "server3"
    inventory.drain("server1", drained=False)
    inventory.register_vms([vm(3, 1)])
    assert recent(fake.controller.events, "server.undrained", 10)
    with pytest.raises(RequestError, match="there is no server server9"):
        inventory.drain("server9", drained=True)
    await fake.stop()
