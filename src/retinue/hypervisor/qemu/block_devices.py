"""A VM's disks as QEMU is told of them: pure functions of what is wanted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retinue.hypervisor.interface import DiskSpec

FIRST_SLOT = 0x17
"""Place of the first disk among the machine's devices, less one: a target has each where its source does."""


def disk_argv(disk: DiskSpec) -> Sequence[str]:
    """The disk's content, and the device by which the guest finds it.

    A guest is told of a full disk as of any other fault: nobody would resume a VM that was stopped for it.
    """
    place = f"id=vdisk{disk.number},addr={FIRST_SLOT + disk.number:#x}"
    device = f"virtio-blk-pci,drive={disk.node},werror=report,rerror=report,serial={disk.node},{place}"
    return ["-blockdev", json.dumps(node(disk)), "-device", device]


def node(disk: DiskSpec) -> dict[str, Any]:
    """As `-blockdev` and `blockdev-add` take it."""
    found: dict[str, Any] = {
        "node-name": disk.node,
        "driver": disk.format,
        "discard": "unmap",
        "file": file_node(disk.path),
    }
    if disk.format == "qcow2":
        # Said in any case: what a file's header says is not asked.
        found["backing"] = None if disk.base is None else base_node(disk.base, disk.base_format)
    return found


def base_node(path: Path, format: str) -> dict[str, Any]:
    """What nobody writes."""
    found: dict[str, Any] = {"driver": format, "read-only": True, "file": file_node(path, read_only=True)}
    return found | ({"backing": None} if format == "qcow2" else {})


def file_node(path: Path, *, read_only: bool = False) -> dict[str, Any]:
    """A file, locked: no two QEMUs write it, wherever they are, if the storage knows locks."""
    found: dict[str, Any] = {"driver": "file", "filename": str(path), "locking": "on"}
    return found | ({"read-only": True} if read_only else {"discard": "unmap"})
