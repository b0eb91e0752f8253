"""A file that a QEMU has open is told from one that none has, by QEMU's own storage daemon."""

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from retinue.host.file_locks import is_open_in_qemu

DAEMON = shutil.which("qemu-storage-daemon")


def test_what_nobody_has_open_is_not_open(tmp_path: Path) -> None:
    file = tmp_path / "disk"
    file.write_bytes(bytes(4096))
    with file.open("rb"):  # Who only looks at it locks nothing.
        assert not is_open_in_qemu(file)
    with file.open("rb+") as other:
        fcntl.lockf(other, fcntl.LOCK_EX, 50)  # Of the first bytes: no QEMU does so.
        assert not is_open_in_qemu(file)
    with pytest.raises(FileNotFoundError):
        is_open_in_qemu(tmp_path / "nowhere")


@pytest.mark.skipif(DAEMON is None, reason="it comes with QEMU")
def test_what_a_qemu_writes_is_open_and_no_other_file_of_that_name(tmp_path: Path) -> None:
    file = tmp_path / "disk"
    file.write_bytes(bytes(1 << 20))
    node = {"driver": "file", "node-name": "disk", "filename": str(file), "locking": "on"}
    export = "type=nbd,id=e,node-name=disk,name=disk,writable=on"
    pidfile = tmp_path / "pid"
    words = [
        *("--blockdev", json.dumps(node), "--nbd-server", f"addr.type=unix,addr.path={tmp_path}/nbd"),
        *("--export", export, "--pidfile", str(pidfile)),
    ]
    with subprocess.Popen([str(DAEMON), *words]) as daemon:
        try:
            while not pidfile.exists() and daemon.poll() is None:
                os.sched_yield()
            assert is_open_in_qemu(file)
            file.rename(tmp_path / "moved")
            file.write_bytes(bytes(1 << 20))
            assert not is_open_in_qemu(file)
            assert is_open_in_qemu(tmp_path / "moved")
        finally:
            daemon.terminate()
    assert not is_open_in_qemu(tmp_path / "moved")
