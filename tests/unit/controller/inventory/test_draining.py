"""A server on which the operator wants no VM."""

import aiohttp
import pytest

from retinue.controller.api.server import Api
from retinue.controller.errors import RequestError
from retinue.controller.migrations.orchestrator import MigrationError
from retinue.core.model import VM
from retinue.core.placement import Entity, EntityKind
from support.fabric.networks import add_vm, fabric, vm_mac
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


async def test_a_client_that_roams_is_not_among_those_that_are_to_go() -> None:
    """Nobody can migrate it: whoever tried would stop at it, and leave the VMs after it where they are."""
    fake = FakeNetwork(fabric(), lambda: 1000.0)
    await fake.start()
    fake.controller.entities.register([Entity("vm1", EntityKind.CLIENT)])
    add_vm(fake.net, 1, at=1)
    fake.controller.inventory.register_vms([vm(2, 1)])
    api = Api(fake.controller, dict)
    url = f"http://127.0.0.1:{await api.start('127.0.0.1', 0)}/v1/servers/server1/drain"
    async with aiohttp.ClientSession() as http, http.post(url) as answer:
        assert (await answer.json())["vms"] == ["vm2"]
    await api.stop()
    await fake.stop()
