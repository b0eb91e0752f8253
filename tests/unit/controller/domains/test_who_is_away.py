"""At home a VM that is away stays as it is."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from retinue.controller.app import Controller
from retinue.controller.changes import VMReported
from retinue.controller.errors import RequestError
from retinue.controller.inventory.settings import VMChanges
from retinue.core.migration import MigrationState as S
from retinue.core.model import Restart
from support.fabric.domains import gateway_of, nic, server_of
from support.fabric.two_controllers import VM_ID, TwoDomains


async def removed_nic(a: Controller) -> None:
    a.inventory.nics.remove(VM_ID, VM_ID)


async def added_nic(a: Controller) -> None:
    a.inventory.nics.add(VM_ID, nic("a", 2))


async def stopped(a: Controller) -> None:
    a.inventory.power.stop(VM_ID, False, 1.0)


async def started(a: Controller) -> None:
    a.inventory.power.start(VM_ID)


ASKED: list[Callable[[Controller], Awaitable[object]]] = [
    added_nic,
    removed_nic,
    stopped,
    started,
    lambda a: a.inventory.remove_vm(VM_ID),
    lambda a: a.inventory.settings.change(VM_ID, VMChanges(restart=Restart.ON_CRASH)),
    lambda a: a.inventory.settings.change(VM_ID, VMChanges(server=server_of("a", 2))),
    lambda a: a.nics.change(VM_ID, rate=1000),
    lambda a: a.nics.change(VM_ID, enabled=False),
]


@pytest.mark.parametrize("asked", ASKED)
async def test_nothing_of_it_is_changed(
    domains: TwoDomains, asked: Callable[[Controller], Awaitable[object]]
) -> None:
    await domains.move("a", "b", server_of("b", 1))
    a = domains.controller("a")
    before = a.net.vms[VM_ID]
    with pytest.raises(RequestError, match="VM vm-a1 is in domain b; ask there"):
        await asked(a)
    assert a.net.vms[VM_ID] == before


async def test_who_is_on_its_way_is_not_stopped_at_home(domains: TwoDomains) -> None:
    """It would be off by its home's word, and run in the other domain."""
    domains.begin(server=server_of("b", 1))
    await domains.until("a", S.PREPARED, S.COPYING, S.DIVERTED)
    a = domains.controller("a")
    with pytest.raises(RequestError, match="is on its way between here and domain b"):
        a.inventory.power.stop(VM_ID, hard=False, seconds=1.0)
    with pytest.raises(RequestError, match="is on its way"):
        await a.nics.change(VM_ID, rate=1000)


async def test_one_that_nobody_registered_is_known_at_home_while_it_is_away(domains: TwoDomains) -> None:
    """As libvirt made it. No port of it is there: that says nothing, also to a controller that has started
    anew; and it cannot be registered as one that is here."""
    a = domains.controller("a")
    own = a.net.vms[VM_ID]
    a.context.apply(VMReported(replace(own, reported=True)))
    await domains.move("a", "b", server_of("b", 1))
    await domains.fakes["a"].settle()
    assert a.net.vms[VM_ID].server == gateway_of("a")
    with pytest.raises(RequestError, match="VM vm-a1 is in domain b; ask there"):
        a.inventory.register_vms([own])
    await domains.kill("a")
    await domains.start_again("a")
    a = domains.controller("a")
    assert a.net.vms[VM_ID].server == gateway_of("a")
    await domains.move("b", "a", server_of("a", 2))
    domains.unplug("a", server_of("a", 2))
    await domains.fakes["a"].settle()
    assert VM_ID not in a.net.vms
