"""An initial RAM disk for Linux, written from Python: the "newc" archive the kernel unpacks into its root.

Only what the laboratory's guest needs: directories, files and the console's device node. The same input gives
the same bytes: every time stamp is zero. It is not compressed, because unpacking is slow on an emulated
processor. Format: cpio(5), "New ASCII Format"; kernel documentation, "initramfs buffer format".
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    path: str
    """Relative to the root, without a leading slash."""
    mode: int
    """File type and permissions, as in stat(2)."""
    data: bytes = b""
    device: tuple[int, int] = (0, 0)
    """Major and minor number of a device node."""


def directory(path: str) -> Entry:
    return Entry(path, stat.S_IFDIR | 0o755)


def program(path: str, data: bytes) -> Entry:
    return Entry(path, stat.S_IFREG | 0o755, data)


def file(path: str, data: bytes) -> Entry:
    return Entry(path, stat.S_IFREG | 0o644, data)


def character_device(path: str, major: int, minor: int) -> Entry:
    return Entry(path, stat.S_IFCHR | 0o600, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The entries as one archive. A directory must come before what lies in it."""
    parts = [_record(number, entry) for number, entry in enumerate(entries, start=1)]
    return b"".join([*parts, _record(0, Entry("TRAILER!!!", 0))])


def _record(number: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = [
        number,
        entry.mode,
        0,  # owner: root
        0,  # group: root
        links,
        0,  # time of last change
        len(entry.data),
        0,  # device the file is on
        0,
        *entry.device,
        len(name),
        0,  # check sum: unused in this format
    ]
    head = b"070701" + b"".join(b"%08X" % value for value in fields) + name
    return _padded(head) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
