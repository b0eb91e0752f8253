"""What a VM's disks ask of images, and of a server that is dead."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from retinue.controller.errors import RequestError
from retinue.controller.migrations.orchestrator import MigrationError
from retinue.core.migration.copying import AskedCopy, CopyOptions, Postcopy
from retinue.core.model import VM, Disk, ModelError
from retinue.protocol.errors import ErrorCode
from retinue.protocol.hypervisor_events import EventKind
from retinue.protocol.images import ImagesBody, SignedManifest, StoreUse
from support.fabric.networks import fabric, vm_mac
from support.fakes.session import FakeNetwork

IMAGE = SignedManifest("debian-12", 5 << 20, "ab" * 32, 1_000)
VM1 = VM.with_one_nic("vm1", vm_mac(1), "server1")


@pytest.fixture
async def fake() -> AsyncIterator[FakeNetwork]:
    made = FakeNetwork(fabric(), lambda: 1e6)
    await made.controller.start()
    for switch in made.net.switches:
        made.connect(switch)
    made.controller.images.holders.on_report("server1", ImagesBody("192.0.2.1:7800", [], StoreUse(0)))
    made.controller.images.publish(IMAGE, "")
    yield made
    await made.stop()


def register(fake: FakeNetwork, *disks: Disk, server: str = "server1") -> VM:
    [made] = fake.controller.inventory.register_vms([replace(VM1, disks=disks, server=server)])
    return made


async def test_an_image_must_be_published_and_fit(fake: FakeNetwork) -> None:
    with pytest.raises(RequestError, match="there is no image other") as raised:
        register(fake, Disk(image="other"))
    assert raised.value.code is ErrorCode.UNKNOWN_IMAGE
    with pytest.raises(ModelError, match="image debian-12 is larger: give it 5 MiB or more"):
        register(fake, Disk(9, image="debian-12"), Disk(4, image="debian-12"))
    assert "vm1" not in fake.net.vms
    assert register(fake, Disk(5, image="debian-12")).disks == (Disk(5, image="debian-12"),)


async def test_an_image_under_a_disk_is_not_removed(fake: FakeNetwork) -> None:
    register(fake, Disk(image="debian-12"))
    with pytest.raises(RequestError, match="disks of vm1 are based on debian-12") as raised:
        fake.controller.images.remove("debian-12")
    assert raised.value.code is ErrorCode.NEEDED
    await fake.controller.inventory.remove_vm("vm1")
    fake.controller.images.remove("debian-12")


async def test_a_private_disk_of_a_dead_server_keeps_its_vm_from_starting_elsewhere(
    fake: FakeNetwork,
) -> None:
    register(fake, Disk(image="debian-12"), Disk(shared="/mnt/a"))
    await fake.controller.fencing.fence("server1")
    for disks in ((), (Disk(1),), (Disk(shared="/mnt/b"),)):
        with pytest.raises(RequestError, match="private disk, which is on server1 alone"):
            register(fake, *disks, server="server2")
    assert fake.net.vms["vm1"].server == "server1"
    await fake.controller.inventory.remove_vm("vm1")
    assert register(fake, Disk(1), server="server2").server == "server2", "what was on the disk is given up"


async def test_shared_disks_of_a_dead_server_go_where_the_vm_goes(fake: FakeNetwork) -> None:
    register(fake, Disk(shared="/mnt/a"))
    await fake.controller.fencing.fence("server1")
    assert register(fake, server="server2").disks == (Disk(shared="/mnt/a"),)


def runs_under_libvirt(fake: FakeNetwork) -> None:
    fake.controller.external_migrations.on_report("server1", "vm1", EventKind.STARTED, 1.0)


async def test_a_vm_with_private_disks_is_not_handed_over_by_postcopy_through_libvirt(
    fake: FakeNetwork,
) -> None:
    """It ends the copies of disks itself, when QEMU does not answer any more."""
    register(fake, Disk(size_mib=64))
    runs_under_libvirt(fake)
    required = AskedCopy(Postcopy.REQUIRED)
    with pytest.raises(MigrationError, match="by pre-copy, with --no-postcopy") as raised:
        fake.controller.orchestrator.start("vm1", target_server="server2", asked=required)
    assert raised.value.code is ErrorCode.CONFLICT
    assert not fake.controller.orchestrator.migrations


@pytest.mark.parametrize("configured", [Postcopy.REQUIRED, Postcopy.IF_NEEDED])
@pytest.mark.parametrize("libvirt", [True, False])
async def test_postcopy_that_is_configured_is_for_vms_that_can(
    fake: FakeNetwork, configured: Postcopy, libvirt: bool
) -> None:
    """No server could be drained any more, for what nobody has asked of this VM."""
    orchestrator = fake.controller.orchestrator
    orchestrator.copy_options = CopyOptions(configured, compress=True)
    register(fake, Disk(size_mib=64))
    if libvirt:
        runs_under_libvirt(fake)
    migration = orchestrator.start("vm1", target_server="server2")
    assert migration.postcopy is (Postcopy.NEVER if libvirt else configured)
    assert migration.compress
    orchestrator.cancel(migration.id)


async def test_a_vm_on_shared_disks_goes_as_configured(fake: FakeNetwork) -> None:
    fake.controller.orchestrator.copy_options = CopyOptions(Postcopy.REQUIRED)
    register(fake, Disk(shared="/mnt/a"))
    migration = fake.controller.orchestrator.start("vm1", target_server="server2")
    assert migration.postcopy is Postcopy.REQUIRED
