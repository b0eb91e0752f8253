"""Paths of a machine's files, whichever program runs it."""

from dataclasses import dataclass
from pathlib import Path

from retinue.hypervisor.errors import HypervisorError
from retinue.socket_addresses import LONGEST_PATH, fits

SUFFIXES = (".console", ".shell", ".qmp", ".log", ".json", ".new", ".nbd", ".rest")
COPY = ".copy"
"""And this one, with the number of a disk."""


@dataclass(frozen=True, slots=True)
class MachineFiles:
    """A machine's log, consoles, sockets and note: all in one folder, under one name."""

    serial_log: Path
    """What the guest writes to its console."""
    shell: Path
    """Socket of the guest's second serial port."""
    observer: Path
    """A QMP socket for others, such as an agent that watches VMs it did not start."""
    log: Path
    """QEMU's own output."""
    note: Path
    """What the next agent must know of it."""

    @property
    def new_note(self) -> Path:
        """A note that is being written."""
        return self.note.with_suffix(".new")

    @property
    def nbd(self) -> Path:
        """Socket by which a target's disks are written, while it waits for its memory."""
        return self.note.with_suffix(".nbd")

    @property
    def rest(self) -> Path:
        """Socket by which the rest of its memory comes, when the way of its first part is broken."""
        return self.note.with_suffix(".rest")

    def copy_of(self, disk: int) -> Path:
        """Socket by which a source copies this disk to its migration's target."""
        return self.note.with_suffix(f"{COPY}{disk}")

    @property
    def name(self) -> str:
        return self.note.stem

    @classmethod
    def named(cls, folder: Path, name: str) -> "MachineFiles":
        files = cls(
            serial_log=folder / f"{name}.console",
            shell=folder / f"{name}.shell",
            observer=folder / f"{name}.qmp",
            log=folder / f"{name}.log",
            note=folder / f"{name}.json",
        )
        for path in (files.shell, files.observer):
            check_socket_path(path)
        return files


def is_a_machines(path: Path) -> bool:
    """Whether it is called as one of a machine's files."""
    return path.suffix in SUFFIXES or path.suffix.startswith(COPY)


def check_socket_path(path: Path) -> None:
    """Raises HypervisorError if no socket can have this path."""
    if not fits(path):
        raise HypervisorError(f"{path}: too long for a socket (limit {LONGEST_PATH}): use a shorter folder")
