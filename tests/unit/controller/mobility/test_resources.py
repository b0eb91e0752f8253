"""What is known of VMs and servers when a target is chosen."""

from dataclasses import replace

import pytest

from retinue.controller.app import Controller
from retinue.controller.mobility.resources import MIB
from retinue.controller.state import Image
from retinue.core.migration import Migration, MigrationState
from retinue.core.model.disks import Disk
from retinue.core.placement import Entity, EntityKind, Profile
from retinue.protocol.images import SignedManifest
from support.fabric.networks import add_vm, fabric

S = MigrationState


@pytest.fixture
def controller() -> Controller:
    made = Controller(fabric(), clock=lambda: 1000.0)
    for number in (1, 2):
        add_vm(made.net, number, at=number)
    return made


def test_a_vm_rests_since_the_end_of_its_last_migration_that_came_to_its_end(controller: Controller) -> None:
    past = (
        ("migration-1", "vm1", S.DONE, 900.0),
        ("migration-2", "vm1", S.DONE, 950.0),
        ("migration-3", "vm1", S.DONE, 940.0),
        ("migration-4", "vm1", S.UNDONE, 990.0),
        ("migration-5", "vm2", S.UNDONE, 990.0),
    )
    for id, vm, state, at in past:
        steps = ((S.PLANNED, at - 10.0), (state, at))
        controller.context.state.migrations[id] = Migration(id, vm, "server1", "server2", state, steps)
    assert controller.resources.need("vm1").moved_ago == 50
    assert controller.resources.need("vm2").moved_ago is None
    assert controller.resources.need("vm1", {"vm1": 1001.0}).moved_ago == 0, "a clock that was set back"


def test_a_vm_needs_room_for_all_that_its_private_disks_may_come_to_hold(controller: Controller) -> None:
    """And the image of the first; unless the manager has said how much room, and which image."""
    shared, file = Disk(shared="/srv/shared.raw"), Disk(base="/srv/base.raw")
    disks = (Disk(size_mib=500), Disk(image="debian"), shared, file)
    controller.net.put_vm(replace(controller.net.vms["vm1"], disks=disks))

    def needed(vm: str) -> tuple[int, str]:
        need = controller.resources.need(vm)
        return need.disk_mib, need.image

    assert needed("vm1") == (500, "debian")
    manifest = SignedManifest("debian", 3 * MIB + 1, "0" * 64, 0)
    controller.context.state.images["debian"] = Image(manifest, "server1", "")
    assert needed("vm1") == (504, "debian")
    controller.entities.register([Entity("vm1", EntityKind.VM, Profile(disk_mib=20, image="mine"))])
    assert needed("vm1") == (20, "mine")
    assert needed("vm2") == (0, "")
