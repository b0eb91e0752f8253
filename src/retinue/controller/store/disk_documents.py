"""A VM's disks as its row keeps them: each a JSON document, which may have more fields in a later version."""

import msgspec

from retinue.core.model import Disk, DiskFormat


class _Document(msgspec.Struct, omit_defaults=True):
    size_mib: int = 0
    image: str = ""
    base: str = ""
    shared: str = ""
    format: DiskFormat = DiskFormat.RAW


def to_document(disk: Disk) -> str:
    """Written down."""
    document = _Document(disk.size_mib, disk.image, disk.base, disk.shared, disk.format)
    return msgspec.json.encode(document).decode()


def from_document(text: str) -> Disk:
    """Read back. Raises ValueError, or msgspec's errors."""
    document = msgspec.json.decode(text, type=_Document)
    return Disk(document.size_mib, document.image, document.base, document.shared, document.format)
