"""Overlays: the files of VMs' private disks, made by QEMU's own storage daemon.

An overlay is made under another name first: it is whole, or not there. One that is there is used as it is,
once its header (QEMU's docs/interop/qcow2.txt) says that it is over the base that is wanted.
"""

import asyncio
import contextlib
import functools
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError

from retinue.host import storage
from retinue.host.errors import HostError
from retinue.host.file_locks import is_open_in_qemu
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.interface import DiskSpec, VMSpec
from retinue.hypervisor.qemu.block_devices import base_node
from retinue.hypervisor.qemu.process import spawn

DAEMON = "qemu-storage-daemon"
MAKE_LIMIT = 30.0
"""Seconds to make one."""
JOB_PAUSE = 0.005
FILE_MODE = 0o600
DRAFT = ".new"
_HEADER = struct.Struct(">4sIQIIQ")
"""magic, version, backing_file_offset, backing_file_size, cluster_bits, size."""
_MORE = struct.Struct(">40xQ")
"""And behind that, from version 3 on: incompatible_features, at byte 72."""
_MAGIC = b"QFI\xfb"
_EXTERNAL_DATA = 1 << 2
"""Incompatible feature: "an external data file is used"."""


async def prepare(spec: VMSpec, *, anew: bool) -> None:
    """See that the VM's private disks are here: `anew`, empty over their bases, else as the VM has left them.

    Shared ones, and bases, are only looked for; `anew`, for a VM that runs elsewhere, shared ones must be the
    very files that it has open there. Raises HypervisorError.
    """
    for disk in spec.disks:
        try:
            if (given := disk.base if disk.private else disk.path) is not None:
                await storage.look(given, functools.partial(_check_what_is_given, disk, given))
            if not disk.private and anew:
                await storage.look(disk.path, functools.partial(_check_that_it_is_the_same, disk.path))
            if disk.private and not await storage.look(disk.path, functools.partial(_is_there, disk, anew)):
                await _make(disk)
        except (OSError, QMPError, EOFError, TimeoutError, HostError) as error:
            reason = str(error) or "it took too long"
            raise HypervisorError(f"VM {spec.id}, disk {disk.number}: {reason}") from error


def _is_there(disk: DiskSpec, anew: bool) -> bool:
    """Whether the overlay is there, and is the one that is wanted."""
    if anew:
        disk.path.unlink(missing_ok=True)
    if not disk.path.exists():
        return False
    _check(disk)
    return True


def _check_that_it_is_the_same(path: Path) -> None:
    """A VM that came here to another file of that name would find another disk in the middle of its work."""
    try:
        same = is_open_in_qemu(path)
    except OSError as error:
        raise HypervisorError(f"whether {path} is locked cannot be told here: {error.strerror}") from error
    if not same:
        raise HypervisorError(
            f"{path} on this server is not the file that the VM has open where it runs, or its storage "
            "passes no locks on: have the same storage there on both (NFS from version 4, or a cluster file "
            "system)"
        )


def _check_what_is_given(disk: DiskSpec, path: Path) -> None:
    """A file that we have not made must not lead to others: a guest may have written its start."""
    if not path.is_file():
        raise HypervisorError(f"there is no file {path} on this server")
    if (disk.base_format if disk.private else disk.format) != "qcow2":
        return
    with path.open("rb") as file:
        header = file.read(_HEADER.size + _MORE.size)
    if len(header) < _HEADER.size + _MORE.size or header[:4] != _MAGIC:
        raise HypervisorError(f"{path} is no qcow2 file")
    _, version, backing, *_ = _HEADER.unpack_from(header)
    [features] = _MORE.unpack_from(header, _HEADER.size)
    if backing or (version >= 3 and features & _EXTERNAL_DATA):
        raise HypervisorError(f"{path} is over another file: it must stand alone (`qemu-img convert`)")


def _check(disk: DiskSpec) -> None:
    with disk.path.open("rb") as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or header[:4] != _MAGIC:
            raise HypervisorError(f"{disk.path} is no overlay: move it out of the way")
        _, _, offset, length, _, size = _HEADER.unpack(header)
        file.seek(offset)
        base = os.fsdecode(file.read(length)) if offset else ""
    if base != str(disk.base or "") or disk.size not in (0, size):
        what = f"{size >> 20} MiB over {base or 'nothing'}"
        raise HypervisorError(f"{disk.path} is of other settings: {what}; move it out of the way")


async def _make(disk: DiskSpec) -> None:
    draft = disk.path.with_name(disk.path.name + DRAFT)
    disk.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE))
    try:
        async with asyncio.timeout(MAKE_LIMIT), _storage_daemon() as daemon:
            options: dict[str, Any] = {"driver": "qcow2", "file": "draft", "size": disk.size}
            if disk.base is not None:
                base = base_node(disk.base, disk.base_format) | {"node-name": "base"}
                await _execute(daemon, "blockdev-add", base)
                size = await _size(daemon, "base")
                if disk.size and size > disk.size:
                    raise HypervisorError(f"it has {disk.size >> 20} MiB, and its base more: {size} bytes")
                options["size"] = disk.size or size
                options |= {"backing-file": str(disk.base), "backing-fmt": disk.base_format}
            await _execute(
                daemon, "blockdev-add", {"driver": "file", "filename": str(draft), "node-name": "draft"}
            )
            await _execute(daemon, "blockdev-create", {"job-id": "make", "options": options})
            await _concluded(daemon)
        draft.rename(disk.path)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def _storage_daemon() -> AsyncIterator[QMPClient]:
    if shutil.which(DAEMON) is None:
        raise HypervisorError(f"there is no {DAEMON}: it comes with QEMU (Debian: qemu-system-common)")
    daemon = QMPClient(DAEMON)
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryFile() as output:
        with theirs:
            monitor = ("--chardev", f"socket,id=control,fd={theirs.fileno()}", "--monitor", "chardev=control")
            process = spawn((DAEMON, *monitor), theirs.fileno(), output.fileno())
        try:
            await daemon.connect(ours)
            yield daemon
        finally:
            process.kill()
            await process.wait()
            with contextlib.suppress(QMPError, OSError, EOFError):
                await daemon.disconnect()


async def _execute(daemon: QMPClient, command: str, arguments: dict[str, Any] | None = None) -> Any:
    try:
        return await daemon.execute(command, arguments)
    except ExecuteError as error:
        raise HypervisorError(str(error)) from error


async def _size(daemon: QMPClient, node: str) -> int:
    for found in await _execute(daemon, "query-named-block-nodes"):
        if found.get("node-name") == node:
            return int(found["image"]["virtual-size"])
    raise HypervisorError(f"the size of {node} is not known")


async def _concluded(daemon: QMPClient) -> None:
    while True:
        [job] = await _execute(daemon, "query-jobs")
        if job["status"] == "concluded":
            break
        await asyncio.sleep(JOB_PAUSE)
    if "error" in job:
        raise HypervisorError(str(job["error"]))
