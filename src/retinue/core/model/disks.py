"""A VM's disks: what each is made of, and what of it goes along when the VM moves.

base        a file that nobody writes: an image by its name, which each server fetches, or a path that every
            server has; none at all: the disk begins empty
private     what the VM writes: an overlay over the base, on the server where the VM is. It is copied to the
            target by a migration, and removed with the VM.
shared      the whole disk is one file on storage that all servers reach by the same path. Nothing of it is
            copied, or made, or removed.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from retinue.core.limits import ID, ID_IN_WORDS, LONGEST_PATH, MOST_DISK_MIB
from retinue.core.model.addresses import ModelError
from retinue.core.text import quoted

_PATH = re.compile(rf"/[!-~]{{1,{LONGEST_PATH - 1}}}")
"""An absolute path of visible ASCII. It goes to a hypervisor, and to no shell."""


class DiskFormat(StrEnum):
    """How a file that we did not make is to be read. It is never guessed: a guest that can write the start of
    a raw disk could make it look like another format, which names files of the server."""

    RAW = "raw"
    QCOW2 = "qcow2"


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk, private or shared. Raises ModelError for what no disk can be."""

    size_mib: int = 0
    """Of a private one, as the guest sees it; 0: as large as its base."""
    image: str = ""
    """The name of the image it is based on."""
    base: str = ""
    """The path of the file it is based on, in place of an image."""
    shared: str = ""
    """The path of the disk itself, on shared storage."""
    format: DiskFormat = DiskFormat.RAW
    """Of `base`, or of `shared`. An image is raw."""

    def __post_init__(self) -> None:
        given = [name for name in ("image", "base", "shared") if getattr(self, name)]
        if len(given) > 1:
            raise ModelError(f"a disk has one of image, base and shared, not {' and '.join(given)}")
        if not given and not self.size_mib:
            raise ModelError("a disk needs a size in MiB, or an image, base or shared file that has one")
        if self.shared and self.size_mib:
            raise ModelError("a shared disk is as large as its file: leave its size out")
        if self.format is not DiskFormat.RAW and not (self.base or self.shared):
            raise ModelError("format is that of a base or shared file: leave it out")
        if not 0 <= self.size_mib <= MOST_DISK_MIB:
            raise ModelError(f"a disk has 1 to {MOST_DISK_MIB} MiB, not {self.size_mib}")
        if self.image and not ID.fullmatch(self.image):
            raise ModelError(f"{quoted(self.image)} is no name of an image: {ID_IN_WORDS}")
        for path in (self.base, self.shared):
            if path and (not _PATH.fullmatch(path) or ".." in path.split("/")):
                raise ModelError(
                    f"{quoted(path)} is no path of a disk: an absolute one, up to {LONGEST_PATH} characters "
                    "of visible ASCII, without .."
                )

    @property
    def private(self) -> bool:
        """What the VM writes is on its server alone, and goes along when it moves."""
        return not self.shared


def stays_behind(disks: tuple[Disk, ...]) -> bool:
    """Whether something the VM has written is only on the server where it is."""
    return any(disk.private for disk in disks)
