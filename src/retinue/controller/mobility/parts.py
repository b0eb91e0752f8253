"""Names of what is part of a named thing, and has no life of its own: a VM's disks, and segments of an image.

    web:disk1           the first disk of VM web; it goes where the VM goes, and is called so wherever it is
    debian-12:0-63      the first 64 chunks of image debian-12
    debian-12:7         one chunk

A ":" stands in no id, so that such a name is nobody else's; it follows from its owner's, which never changes
its meaning. Nothing is kept of them: rows are made when they are asked for. Segments are not listed, since
any first and last chunk make one.
"""

import re
from collections.abc import Iterator
from typing import Any

from retinue.controller.context import Context
from retinue.controller.migrations.attachment import locator_of
from retinue.controller.mobility.resources import ResourceManager
from retinue.core.content.manifest import CHUNK_BYTES
from retinue.core.limits import ID, PART
from retinue.core.model import VM
from retinue.core.model.disks import Disk
from retinue.core.placement import EntityKind

Part = tuple[EntityKind, dict[str, Any], dict[str, Any]]
"""Its kind, what is measured of it, and its locator."""

_NAME = re.compile(rf"({ID.pattern}):({PART})")


class Parts:
    """Finds them by name."""

    def __init__(self, context: Context, resources: ResourceManager) -> None:
        self._context = context
        self._resources = resources

    def disks(self) -> Iterator[str]:
        """The names of all disks of VMs."""
        for vm in self._context.net.vms.values():
            yield from (f"{vm.id}:disk{number}" for number in range(1, len(vm.disks) + 1))

    def found(self, name: str) -> Part | None:
        """None: there is none of this name."""
        split = _NAME.fullmatch(name)
        if split is None:
            return None
        owner, part = split[1], split[2]
        if part.startswith("disk"):
            vm, number = self._context.net.vms.get(owner), int(part.removeprefix("disk"))
            return self._disk(vm, vm.disks[number - 1]) if vm and 1 <= number <= len(vm.disks) else None
        first, _, last = part.partition("-")
        return self._segment(owner, int(first), int(last or first))

    def _disk(self, vm: VM, disk: Disk) -> Part:
        """A private one is where its VM is. Of a shared one the path is the place, everywhere the same."""
        at = locator_of(self._context.net, vm, self._context.state.migrations.of_vm(vm.id))["server"]
        measured = {"size_mib": disk.size_mib, "made_of": disk.image or disk.base}
        locator = {"vm": vm.id, "server": "" if disk.shared else at, "path": disk.shared}
        return EntityKind.DISK, measured, locator

    def _segment(self, image: str, first: int, last: int) -> Part | None:
        """It is at the servers that hold all of its image; others may have it, too: a fetch finds them."""
        known = self._context.state.images.get(image)
        chunks = 0 if known is None else -(-known.signed.size // CHUNK_BYTES)
        if known is None or not first <= last < chunks:
            return None
        size = min((last + 1) * CHUNK_BYTES, known.signed.size) - first * CHUNK_BYTES
        measured = {"bytes": size, "chunks": last - first + 1}
        return EntityKind.SEGMENT, measured, {"image": image, "servers": self._resources.holders(image)}
