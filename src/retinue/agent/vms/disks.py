"""The disks of VMs on this server: where their files are, what they are made over, and when they go.

    FOLDER/TAP.diskN.qcow2      the overlay of a VM's private disk; TAP is the name of its first NIC's tap

An overlay is made by the hypervisor when the VM is first started here, or is about to come in; it stays as
long as the VM is this server's, and goes with it. Images that disks are made over are fetched by name when
they are needed, and pinned by the VM's id, so that nothing removes them meanwhile.
"""

import asyncio
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import structlog

from retinue.host import storage
from retinue.host.errors import HostError
from retinue.host.taps import tap_name
from retinue.hypervisor import DiskSpec
from retinue.protocol.disks import DiskRecord
from retinue.protocol.vms import VMRecord

log = structlog.get_logger()


class ImageAwayError(HostError):
    """An image is not here yet; it is being fetched."""


class Images(Protocol):
    """Images by name, as files (agent.content.service)."""

    def base_file(self, name: str) -> Path:
        """Where the file is, or will be."""

    async def need(self, name: str, pin: str, seconds: float) -> None:
        """See that the file is there, and stays. ImageAwayError: it is not within so many seconds, and the
        fetch goes on; HostError: it cannot be fetched."""

    async def need_no_more(self, pin: str) -> None: ...


class Disks(Protocol):
    """What an agent asks about the disks of its server's VMs."""

    async def ready(self, vm: VMRecord, seconds: float) -> None:
        """Return when all is here that its overlays are made over. ImageAwayError: it is not within so many
        seconds; HostError: it never will be."""

    def has(self, vm: str) -> bool:
        """Whether there is anything here that the VM has written."""

    async def remove(self, vm: str) -> None:
        """The VM is this server's no longer: what it has written here goes. HostError."""


class NoDisks:
    """For a server whose VMs have none."""

    async def ready(self, vm: VMRecord, seconds: float) -> None:
        pass

    def has(self, vm: str) -> bool:
        return False

    async def remove(self, vm: str) -> None:
        pass


class LocalDisks:
    """Overlays in one folder."""

    def __init__(self, folder: Path, images: Images, paths: Sequence[Path] = ()) -> None:
        """`paths`: folders in which files may be that disks are given by a path."""
        self._folder, self._images, self._paths = folder, images, paths

    def specs(self, vm: VMRecord) -> tuple[DiskSpec, ...]:
        """Its disks as they are, or will be, on this server."""
        return tuple(self._spec(vm.id, number, disk) for number, disk in enumerate(vm.disks, 1))

    def _spec(self, vm: str, number: int, disk: DiskRecord) -> DiskSpec:
        if disk.shared:
            return DiskSpec(number, Path(disk.shared), private=False, format=disk.format)
        base, format = (Path(disk.base), str(disk.format)) if disk.base else (None, "raw")
        if disk.image:
            base = self._images.base_file(disk.image)
        path = self._folder / f"{tap_name(vm)}.disk{number}.qcow2"
        return DiskSpec(number, path, base=base, base_format=format, size=disk.size_mib << 20)

    async def ready(self, vm: VMRecord, seconds: float) -> None:
        for path in [path for disk in vm.disks for path in (disk.base, disk.shared) if path]:
            if not await storage.look(Path(path), functools.partial(self._may_be_used, Path(path))):
                raise HostError(
                    f"{path} is in none of the folders of disk_paths, in the agent's configuration"
                )
        for name in sorted({disk.image for disk in vm.disks} - {""}):
            await self._images.need(name, vm.id, seconds)

    def _may_be_used(self, path: Path) -> bool:
        """Wherever links lead."""
        real = path.resolve()
        return any(real.is_relative_to(folder.resolve()) for folder in self._paths)

    def has(self, vm: str) -> bool:
        return bool(self._of(vm))

    async def remove(self, vm: str) -> None:
        for path in self._of(vm):
            try:
                await asyncio.to_thread(path.unlink, missing_ok=True)
            except OSError as error:
                raise HostError(f"{path} cannot be removed: {error.strerror}") from error
            log.info("disk.removed", vm=vm, path=str(path))
        await self._images.need_no_more(vm)

    def _of(self, vm: str) -> list[Path]:
        # An id may have dots, and look like another one with a disk's name behind it.
        its = re.compile(rf"{re.escape(tap_name(vm))}\.disk[0-9]+\.qcow2(\.new)?")
        if not self._folder.is_dir():
            return []
        return [path for path in self._folder.iterdir() if its.fullmatch(path.name)]
