"""What is written down of each QEMU, for the agent after this one; and QEMUs found without it.

A note stands before its QEMU is spawned, and has the process the moment there is one. An agent may be killed
in between, so notes are not trusted to be complete: what really runs is looked for among the processes, by
the path of its monitor's socket, which no two machines share.
"""

import contextlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec
import structlog

from retinue.hypervisor.interface import VMSpec
from retinue.hypervisor.paths import COPY, MachineFiles, is_a_machines
from retinue.hypervisor.qemu import process

FILE_MODE, FOLDER_MODE = 0o600, 0o700
"""Consoles, logs and sockets are the agent's user's alone, whatever its umask."""
ENDED_KEPT = 2
"""Machines of a VM, beside the present one, whose console and log are kept until the VM is removed."""
OBSERVER_OPTIONS = ",server=on,wait=off"
"""Of the monitor's socket, on the command line."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

log = structlog.get_logger()


class Note(msgspec.Struct, frozen=True):
    """What is written down of one machine."""

    spec: VMSpec
    pid: int = 0
    """0: it is about to be spawned."""
    born: str = ""
    """When the process was started (process.birth); with `pid` what names it for good."""
    incoming: bool = False
    """It was opened to take a VM in, and has not run it yet."""
    boot: str = ""
    """The server's boot that it was started in."""
    ending: bool = False
    """We have begun to end it: nobody is to take it up."""
    monitor: int = 0
    """The inode of our end of its monitor, where it keeps that for us: it may lack memory (left_monitor)."""
    off: bool = False
    """Its VM has been switched off, and this may not have been reported."""


def boot_id() -> str:
    return BOOT_ID.read_text().strip()


def write(files: MachineFiles, note: Note) -> None:
    """Write a note down, whole or not at all. Raises OSError."""
    descriptor = os.open(files.new_note, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(note, enc_hook=str))
    files.new_note.replace(files.note)


def read(path: Path) -> Note | None:
    """None for one that cannot be read: a machine of which nothing is known cannot be taken up."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Note, dec_hook=_path)
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        log.error("qemu.note_unreadable", path=str(path), error=str(error))
        return None


def is_running(note: Note) -> bool:
    """The process that the note names still runs."""
    return note.pid > 0 and process.is_running(note.pid, note.born)


def find_processes(folder: Path) -> dict[str, list[int]]:
    """By name of a machine in this folder: the processes that were started as it."""
    found: dict[str, list[int]] = {}
    start, end = os.fsencode(f"unix:{folder}/"), os.fsencode(f".qmp{OBSERVER_OPTIONS}")
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # It has ended, or is none of ours to look into.
            for word in (directory / "cmdline").read_bytes().split(b"\0"):
                if word.startswith(start) and word.endswith(end):
                    name = os.fsdecode(word[len(start) : -len(end)])
                    found.setdefault(name, []).append(int(directory.name))
    return found


def make_folder(folder: Path) -> None:
    """Raises OSError."""
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    folder.chmod(FOLDER_MODE)


def make_readable_by_us_alone(path: Path) -> None:
    """Make an empty file before the program that will write it makes it otherwise. Raises OSError."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE))


def names_in(folder: Path) -> set[str]:
    """Names of all machines that have files in the folder."""
    return {path.stem for path in folder.glob("*") if is_a_machines(path)}


def remove_sockets(files: MachineFiles) -> None:
    """QEMU removes its sockets itself, unless it was killed; an agent that was killed has left its own."""
    copies = [path for path in files.note.parent.glob(f"*{COPY}*") if path.stem == files.name]
    for path in (files.shell, files.observer, files.nbd, files.rest, *copies):
        path.unlink(missing_ok=True)


def remove_what_has_ended(files: MachineFiles, *, words_too: bool = False) -> None:
    """Remove the note and the sockets of a machine whose process has ended.

    Its console and its log stay, unless there is nothing in them or `words_too` says that they go as well.
    """
    remove_sockets(files)
    for path in (files.note, files.new_note):
        path.unlink(missing_ok=True)
    for path in (files.serial_log, files.log):
        with contextlib.suppress(FileNotFoundError):
            if words_too or path.stat().st_size == 0:
                path.unlink()


def remove_old_words(folder: Path, port: str, running: Collection[str], *, kept: int = ENDED_KEPT) -> None:
    """Remove all files of machines of this port that have ended, except those of the `kept` latest."""
    ended = [(number_of(name, port), name) for name in names_in(folder) - set(running)]
    of_port = sorted((number, name) for number, name in ended if number)
    for _, name in of_port[: max(0, len(of_port) - kept)]:
        remove_what_has_ended(MachineFiles.named(folder, name), words_too=True)


def number_of(name: str, port: str = "") -> int:
    """A machine's number, from its name PORT-NUMBER; 0 where it is none, or another port's."""
    number = name.rpartition("-")[2]
    return int(number) if number.isdecimal() and port in ("", port_of(name)) else 0


def port_of(name: str) -> str:
    return name.rpartition("-")[0]


def _path(kind: type, text: str) -> Any:
    return kind(text)
