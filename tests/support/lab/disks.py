"""VMs with disks in a laboratory: an image that is published, a guest that writes and compares."""

import hashlib
import os
from pathlib import Path

from retinue_lab.network import agents
from support.lab.tools import LabBench

MIB = 1 << 20
BASE, SIZE, WRITTEN, RATE = 12, 32, 4, 2
"""MiB of the image, of the disk, of it that the guest writes, and that it writes a second."""


def folder(bench: LabBench, server: str) -> Path:
    return agents.folder(Path(bench.lab.directory), server)


def overlays(bench: LabBench, server: str) -> list[Path]:
    found = folder(bench, server) / "disks"
    return sorted(found.iterdir()) if found.is_dir() else []


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def published(bench: LabBench, tmp_path: Path, name: str, server: str) -> bytes:
    base = os.urandom(BASE * MIB)
    (tmp_path / "base.raw").write_bytes(base)
    await bench.cli("image", "publish", f"{tmp_path}/base.raw", name, "--server", server)
    return base


async def scribble(bench: LabBench, vm: str) -> None:
    command = f"diskscribble /dev/vda {WRITTEN} {RATE} /tmp/disk >/tmp/said 2>&1 & echo $! >/tmp/pid"
    await bench.guest(vm, command)
    await bench.guest(vm, "until [ -f /tmp/disk ]; do usleep 20000; done")


async def written(bench: LabBench, vm: str) -> dict[str, int]:
    words = iter((await bench.guest(vm, "cat /tmp/disk")).split())
    return {word: int(next(words)) for word in words}


async def all_verified(bench: LabBench, vm: str) -> None:
    """Each block is read once more, and is what was written last."""
    enough = (await written(bench, vm))["blocks"] + 2 * WRITTEN * 16
    await bench.guest(
        vm, f"until [ $(cut -d' ' -f4 /tmp/disk) -ge {enough} ]; do usleep 50000; done", timeout=120
    )
    found = await written(bench, vm)
    assert found["wrong"] == 0, found
