"""A guest stays as its home knows it: changed where it is, it could not go home."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from retinue.controller.app import Controller
from retinue.controller.errors import RequestError
from retinue.controller.inventory.settings import VMChanges
from retinue.controller.marks import ServerFenced
from retinue.core.model import VM, Allowed, Disk, Restart
from support.fabric.domains import nic, server_of
from support.fabric.two_controllers import VM_ID, TwoDomains

ANOTHER = nic("a", 2).addresses


async def added_nic(b: Controller) -> None:
    b.inventory.nics.add(VM_ID, replace(nic("a", 2), slot=4))


async def removed_nic(b: Controller) -> None:
    b.inventory.nics.remove(VM_ID, nic("a", 4).port_id)


ASKED: list[Callable[[Controller], Awaitable[object]]] = [
    added_nic,
    removed_nic,
    lambda b: b.inventory.settings.change(VM_ID, VMChanges(addresses=ANOTHER)),
    lambda b: b.inventory.settings.change(VM_ID, VMChanges(addresses=())),
    lambda b: b.nics.change(VM_ID, addresses=ANOTHER),
    lambda b: b.nics.change(VM_ID, mac="52:54:00:00:99:99"),
    lambda b: b.nics.change(VM_ID, allowed=(Allowed(ANOTHER[0]),)),
    lambda b: b.nics.change(VM_ID, trusted=True),
    lambda b: b.nics.change(VM_ID, mac_changes=True),
]


@pytest.mark.parametrize("asked", ASKED)
async def test_what_home_knows_it_by_is_not_changed_and_it_goes_home(
    domains: TwoDomains, asked: Callable[[Controller], Awaitable[object]]
) -> None:
    await with_two_nics(domains)
    b = domains.controller("b")
    before = b.net.vms[VM_ID], b.net.held_by(VM_ID)
    with pytest.raises(RequestError, match="VM vm-a1 is a guest of domain a, which knows it by its NICs"):
        await asked(b)
    await domains.fakes["b"].settle()
    assert (b.net.vms[VM_ID], b.net.held_by(VM_ID)) == before
    await domains.move("b", "a", server_of("a", 1))


async def test_what_is_the_other_domains_own_affair_is_changed_and_ends_there(domains: TwoDomains) -> None:
    await with_two_nics(domains)
    b = domains.controller("b")
    await b.nics.change(VM_ID, rate=1000, mirror="mirror0")
    await b.inventory.settings.change(VM_ID, VMChanges(restart=Restart.ON_CRASH))
    assert b.net.vms[VM_ID].nic.rate == 1000
    await domains.move("b", "a", server_of("a", 1))
    nics = domains.controller("a").net.vms[VM_ID].nics
    assert not any(one.rate or one.mirror for one in nics)


async def test_who_outlives_its_server_is_a_guest_still(domains: TwoDomains) -> None:
    """And with other NICs, or with a disk, it is not registered anew."""
    await with_two_nics(domains)
    b = domains.controller("b")
    guest = b.net.vms[VM_ID]
    b.context.apply(ServerFenced(server_of("b", 2)))
    anew = VM(VM_ID, guest.nics, server_of("b", 1), memory_mib=guest.memory_mib)
    for other in (replace(anew, nics=guest.nics[:1]), replace(anew, disks=(Disk(shared="/srv/disk"),))):
        with pytest.raises(RequestError, match="is a guest of domain a"):
            b.inventory.register_vms([other])
    b.inventory.register_vms([anew])
    assert b.net.vms[VM_ID] == replace(guest, server=server_of("b", 1))


async def with_two_nics(domains: TwoDomains) -> None:
    """A guest of domain b."""
    domains.nics = (1, 4)
    a = domains.controller("a")
    a.inventory.nics.add(VM_ID, replace(nic("a", 4), slot=3))
    domains.plug("a", server_of("a", 1))
    await domains.fakes["a"].settle()
    await domains.move("a", "b", server_of("b", 2))
