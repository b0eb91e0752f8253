"""What a VM's disks ask of the rest of the network: images that exist, and a server that is alive."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from retinue.controller.errors import RequestError, no_image
from retinue.controller.state import Image
from retinue.core.model import VM, ModelError
from retinue.core.model.disks import stays_behind


def check_images(vm: VM, images: Mapping[str, Image]) -> None:
    """Raises RequestError for an image that is not published, ModelError for one that has no room."""
    for number, disk in enumerate(vm.disks, 1):
        if not disk.image:
            continue
        if disk.image not in images:
            raise no_image(disk.image)
        size = images[disk.image].signed.size
        if disk.size_mib and size > disk.size_mib << 20:
            raise ModelError(
                f"disk {number} of VM {vm.id} has {disk.size_mib} MiB, and image {disk.image} is larger: "
                f"give it {-(-size >> 20)} MiB or more"
            )


def as_it_outlives_its_server(vm: VM, known: VM) -> VM:
    """The VM to register in place of one whose server is dead. Raises RequestError.

    What it had written on a private disk is on the dead server, and nowhere else: to start it elsewhere with
    an empty one would be to lose that without a word, and to have two of it once the server is back.
    """
    if vm.server == known.server:
        return replace(vm, disks=vm.disks or known.disks)
    if stays_behind(known.disks):
        raise RequestError(
            f"VM {vm.id} has a private disk, which is on {known.server} alone: it cannot start elsewhere, "
            f"as one with shared disks could. Wait for {known.server}, then `retinue server unfence "
            f"{known.server}`; or give up what is on the disk: `retinue vm remove {vm.id}`, and add it again"
        )
    return replace(vm, disks=vm.disks or known.disks)


def based_on(image: str, vms: Iterable[VM]) -> list[str]:
    """The VMs whose disks are based on an image."""
    return sorted(vm.id for vm in vms if any(disk.image == image for disk in vm.disks))
