"""Disks on QEMU's command line, and overlays as its storage daemon makes them."""

import asyncio
import errno
import fcntl
import json
import os
import shutil
import stat
import struct
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retinue.host.storage import STORAGE_LIMIT
from retinue.hypervisor import DiskSpec, HypervisorError, VMSpec
from retinue.hypervisor.paths import MachineFiles
from retinue.hypervisor.qemu import notes, overlays
from retinue.hypervisor.qemu.argv import qemu_argv
from retinue.hypervisor.qemu.block_devices import node
from retinue.hypervisor.qemu.notes import Note
from support.oracles.qcow2 import content
from support.virtual_time import pass_over

SPEC = VMSpec("vm1", "52:54:00:00:00:01", "tap-vm1", Path("/g/vmlinuz"), Path("/g/initrd"))
PRIVATE = DiskSpec(1, Path("/d/tap-vm1.disk1.qcow2"), base=Path("/b,x/base"))
SHARED = DiskSpec(2, Path("/mnt/shared"), private=False, format="raw")
MIB = 1 << 20

real = pytest.mark.skipif(shutil.which(overlays.DAEMON) is None, reason="needs QEMU's storage daemon")


def test_a_target_has_each_disk_where_its_source_has_it() -> None:
    files = MachineFiles.named(Path("/run/lab"), "vm1-1")
    spec = replace(SPEC, disks=(PRIVATE, SHARED))
    here, there = (qemu_argv(spec, files, qmp_fd=7, incoming=incoming) for incoming in (False, True))
    assert there[: len(here)] == here
    devices = [word for word in here if word.startswith("virtio-blk-pci")]
    assert [word.split(",")[1] for word in devices] == ["drive=disk1", "drive=disk2"]
    assert ["addr=0x18" in devices[0], "addr=0x19" in devices[1]] == [True, True]
    described: list[dict[str, Any]] = [json.loads(word) for word in here if word.startswith("{")]
    assert described == [node(PRIVATE), node(SHARED)]


def test_nobody_writes_a_base_and_no_format_is_guessed() -> None:
    private, shared = node(PRIVATE), node(SHARED)
    assert private["backing"]["read-only"] is private["backing"]["file"]["read-only"] is True
    assert (private["driver"], private["backing"]["driver"]) == ("qcow2", "raw")
    assert private["backing"]["file"]["filename"] == "/b,x/base"
    assert (shared["driver"], "backing" in shared) == ("raw", False)
    assert node(replace(PRIVATE, base=None))["backing"] is None, "not what the file's own header says"


def test_the_next_agent_knows_of_disks(tmp_path: Path) -> None:
    files = MachineFiles.named(tmp_path, "tap-vm1-1")
    spec = replace(SPEC, disks=(PRIVATE, replace(SHARED, base=None)))
    notes.write(files, Note(spec))
    known = notes.read(files.note)
    assert known is not None
    assert known.spec == spec


@real
async def test_an_overlay_is_made_once_and_anew_for_what_comes_in(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.write_bytes(b"base" * MIB)
    disk = DiskSpec(1, tmp_path / "disks" / "one.qcow2", base=base, size=6 * MIB)
    spec = replace(SPEC, disks=(disk,))
    await overlays.prepare(spec, anew=False)
    made = disk.path.stat()
    assert (stat.S_IMODE(made.st_mode), made.st_size < MIB) == (0o600, True)
    assert content(disk.path, base.read_bytes()) == base.read_bytes() + bytes(2 * MIB)
    await overlays.prepare(spec, anew=False)
    assert disk.path.stat().st_ino == made.st_ino, "kept"
    with disk.path.open("ab") as file:
        file.write(b"old")
    await overlays.prepare(spec, anew=True)
    assert disk.path.stat().st_size == made.st_size, "empty"
    assert [path.name for path in disk.path.parent.iterdir()] == ["one.qcow2"]


@pytest.mark.parametrize(
    ("disk", "call"),
    [
        (PRIVATE, "is_file"),
        (SHARED, "is_file"),
        (replace(SHARED, format="qcow2"), "open"),
        (replace(PRIVATE, base=None), "unlink"),
    ],
)
async def test_a_vm_whose_storage_is_dead_does_not_start_and_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, disk: DiskSpec, call: str
) -> None:
    (tmp_path / "disk").touch()
    disk = replace(disk, path=tmp_path / "disk", base=disk.base and tmp_path / "disk")
    well, asked = threading.Event(), threading.Event()

    def hangs(path: Path, *arguments: Any, **more: Any) -> Any:
        assert threading.current_thread() is not threading.main_thread(), "all of the agent would wait"
        asked.set()
        well.wait()
        raise OSError("too late")

    monkeypatch.setattr(Path, call, hangs)
    starting = asyncio.create_task(overlays.prepare(replace(SPEC, disks=(disk,)), anew=True))
    await asyncio.to_thread(asked.wait, 60)
    pass_over(STORAGE_LIMIT)
    why = f"VM vm1, disk {disk.number}: the storage of {tmp_path / 'disk'} does not answer"
    with pytest.raises(HypervisorError, match=why):
        await starting
    well.set()


@real
async def test_an_overlay_is_as_large_as_its_base_or_larger(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.write_bytes(bytes(4 * MIB))
    disk = DiskSpec(1, tmp_path / "one.qcow2", base=base)
    await overlays.prepare(replace(SPEC, disks=(disk,)), anew=False)
    assert len(content(disk.path)) == 4 * MIB
    small = replace(disk, path=tmp_path / "two.qcow2", size=3 * MIB)
    with pytest.raises(
        HypervisorError, match="VM vm1, disk 1: it has 3 MiB, and its base more: 4194304 bytes"
    ):
        await overlays.prepare(replace(SPEC, disks=(small,)), anew=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "one.qcow2"]


@real
async def test_a_file_that_leads_to_another_one_is_no_base_and_no_disk(tmp_path: Path) -> None:
    """What a guest has written to a raw disk could be read as such a file's start."""
    (tmp_path / "secret").write_bytes(bytes(MIB))
    over = DiskSpec(1, tmp_path / "over.qcow2", base=tmp_path / "secret")
    alone = DiskSpec(1, tmp_path / "alone.qcow2", size=MIB)
    for made in (over, alone):
        await overlays.prepare(replace(SPEC, disks=(made,)), anew=False)
    outside = tmp_path / "outside.qcow2"
    data = bytearray(alone.path.read_bytes())
    data[79] |= 4
    outside.write_bytes(data)
    (tmp_path / "short").write_bytes(b"QFI\xfb")
    for path, why in (
        (over.path, "must stand alone"),
        (outside, "must stand alone"),
        (tmp_path / "short", "is no qcow2 file"),
        (tmp_path / "secret", "is no qcow2 file"),
    ):
        shared = DiskSpec(1, path, private=False)
        below = DiskSpec(1, tmp_path / "new.qcow2", base=path, base_format="qcow2")
        for disk in (shared, below):
            with pytest.raises(HypervisorError, match=why):
                await overlays.prepare(replace(SPEC, disks=(disk,)), anew=False)
    below = DiskSpec(1, tmp_path / "new.qcow2", base=alone.path, base_format="qcow2")
    await overlays.prepare(replace(SPEC, disks=(below,)), anew=False)
    assert len(content(below.path)) == MIB
    assert node(below)["backing"]["backing"] is node(replace(SHARED, format="qcow2"))["backing"] is None


async def test_a_shared_file_that_nobody_has_open_is_not_that_of_a_vm_that_runs_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = replace(SHARED, path=tmp_path / "common")
    disk.path.write_bytes(bytes(MIB))
    spec = replace(SPEC, disks=(disk,))
    await overlays.prepare(spec, anew=False)  # It is started here: nobody else is to have it.
    with pytest.raises(HypervisorError, match=r"disk 2: .*/common on this server is not the file"):
        await overlays.prepare(spec, anew=True)
    with disk.path.open("rb+") as other:  # As QEMU does, on byte 101.
        fcntl.fcntl(other, fcntl.F_OFD_SETLK, struct.pack("@hhqqi4x", fcntl.F_RDLCK, 0, 101, 1, 0))
        await overlays.prepare(spec, anew=True)

    def no_locks(path: Path) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(overlays, "is_open_in_qemu", no_locks)
    with pytest.raises(HypervisorError, match="cannot be told here: No locks available"):
        await overlays.prepare(spec, anew=True)


@real
async def test_what_is_in_the_way_is_not_taken_for_the_vms_disk(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.write_bytes(bytes(MIB))
    disk = DiskSpec(1, tmp_path / "one.qcow2", base=base, size=2 * MIB)
    await overlays.prepare(replace(SPEC, disks=(disk,)), anew=False)
    for other in (replace(disk, base=None), replace(disk, size=3 * MIB)):
        with pytest.raises(HypervisorError, match=r"of other settings: 2 MiB over .*/base"):
            await overlays.prepare(replace(SPEC, disks=(other,)), anew=False)
    disk.path.write_bytes(b"something else, long enough to have a header in it")
    with pytest.raises(HypervisorError, match="is no overlay: move it out of the way"):
        await overlays.prepare(replace(SPEC, disks=(disk,)), anew=False)
    for missing in (replace(disk, base=tmp_path / "gone"), replace(SHARED, path=tmp_path / "gone")):
        with pytest.raises(HypervisorError, match=r"there is no file .*/gone on this server"):
            await overlays.prepare(replace(SPEC, disks=(missing,)), anew=False)
