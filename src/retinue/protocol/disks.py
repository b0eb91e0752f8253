"""A VM's disks as managers give them, and as the controller shows them."""

from typing import Annotated

import msgspec

from retinue.core.limits import LONGEST_ID, LONGEST_PATH, MOST_DISK_MIB, MOST_DISKS
from retinue.core.model import Disk, DiskFormat

SizeMib = Annotated[int, msgspec.Meta(ge=0, le=MOST_DISK_MIB)]
Name = Annotated[str, msgspec.Meta(max_length=LONGEST_ID)]
FilePath = Annotated[str, msgspec.Meta(max_length=LONGEST_PATH)]


class DiskBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One disk of a VM in POST /v1/vms: with `shared` it is on shared storage, else it is private, over an
    image, over a file that every server has, or empty at first."""

    size_mib: SizeMib = 0
    """What the guest sees; 0: as large as what it is made of."""
    image: Name = ""
    """The name of a published image."""
    base: FilePath = ""
    """An absolute path that is the same on all servers, as is the file's content."""
    shared: FilePath = ""
    """An absolute path by which all servers reach the same file."""
    format: DiskFormat = DiskFormat.RAW
    """Of the file `base` or `shared`."""

    def disk(self) -> Disk:
        """Raises ModelError."""
        return Disk(self.size_mib, self.image, self.base, self.shared, self.format)


DiskBodies = Annotated[list[DiskBody], msgspec.Meta(max_length=MOST_DISKS)]


class DiskRecord(msgspec.Struct, frozen=True):
    """A disk as GET /v1/vms and the events show it."""

    size_mib: SizeMib = 0
    image: Name = ""
    base: FilePath = ""
    shared: FilePath = ""
    format: DiskFormat = DiskFormat.RAW
