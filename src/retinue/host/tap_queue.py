"""Whether frames wait in a VM's tap: asked of the tap, by a copy of the file its QEMU has open.

A tap is readable when a frame waits in it (tun.c: tun_chr_poll). In /proc/PID/fdinfo a tap's file says which
interface it is ("iff:").

A tap forgets its frames when the last file through which it is open is closed, its process having ended. By a
copy they are there still, and can be read (`HeldTaps`).
"""

import asyncio
import contextlib
import fcntl
import os
import select
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from retinue.host.errors import HostError
from retinue.host.open_files import copy_of

TUN = Path("/dev/net/tun")
OWN_NETWORK = Path("/proc/self/ns/net")

TUNGETIFF, TUNGETVNETHDRSZ = 0x800454D2, 0x800454D7
IFF_VNET_HDR = 0x4000
"""linux/if_tun.h: what a tap is, and how long the header before each frame is where it has that flag."""
LARGEST_READ = 1 << 17

LOOK = 0.0005
LIMIT = 1.0

Holders = Mapping[str, int]
"""By tap, the process that has it open."""


async def until_empty(pid: int, tap: str) -> bool:
    """Return when the process has read all that has come: True. False when it does not within a second.

    Raises HostError where that cannot be seen.
    """
    with queue_of(pid, tap) as queue:
        until = time.monotonic() + LIMIT
        while not queue.is_empty():
            if time.monotonic() > until:
                return False
            await asyncio.sleep(LOOK)
        return True


@contextlib.contextmanager
def queue_of(pid: int, tap: str) -> Iterator["TapQueue"]:
    """A tap that a process has open, until the context ends. Raises HostError."""
    with contextlib.ExitStack() as held:
        try:
            process = os.pidfd_open(pid)
            held.callback(os.close, process)
            copies = [copy_of(process, number) for number in _files_of(pid, tap)]
        except OSError as error:
            raise HostError(f"{tap} of process {pid} cannot be looked into: {error}") from error
        for copy in copies:
            held.callback(os.close, copy)
        if not copies:
            raise HostError(f"process {pid} does not have {tap} open")
        yield TapQueue(copies)


class TapQueue:
    """Copies of the files through which a process reads one tap."""

    def __init__(self, files: list[int]) -> None:
        self._files = files
        self._poll = select.poll()
        for file in files:
            self._poll.register(file, select.POLLIN)

    def is_empty(self) -> bool:
        """Every frame that was put into the tap has been read."""
        return not any(events & select.POLLIN for _, events in self._poll.poll(0))

    def take(self) -> Iterator[bytes]:
        """The frames that wait, each taken out as it is asked for. Nobody else must read. Raises OSError."""
        for file in self._files:
            os.set_blocking(file, False)
            header = _header_of(file)
            while True:
                try:
                    frame = os.read(file, LARGEST_READ)
                except BlockingIOError:
                    break
                yield frame[header:]


class HeldTaps:
    """Taps whose frames wait, for as long as they are held, whatever becomes of who has them open.

    They cannot be removed, nor opened by another, before they are let go. Raises HostError.
    """

    def __init__(self, pid: int, taps: Sequence[str]) -> None:
        with contextlib.ExitStack() as held:
            self._queues = [held.enter_context(queue_of(pid, tap)) for tap in taps]
            self._held = held.pop_all()

    def take(self, most: int, most_bytes: int) -> list[bytes]:
        """The frames that wait, in the order of each tap, up to so many of so many bytes; taken out. When the
        process has ended: it would read, too. Raises HostError."""
        taken: list[bytes] = []
        size = 0
        try:
            for queue in self._queues:
                for frame in queue.take():
                    taken.append(frame)
                    size += len(frame)
                    if len(taken) == most or size >= most_bytes:
                        return taken
        except OSError as error:
            raise HostError(f"what waits in a tap cannot be read: {error}") from error
        return taken

    def let_go(self) -> None:
        self._held.close()


def holders_of(taps: Sequence[str]) -> Holders:
    """Of those taps whose holder can be seen from here."""
    found = {}
    for tap in taps:
        with contextlib.suppress(HostError):
            found[tap] = holder_of(tap)
    return found


def holder_of(tap: str) -> int:
    """The process that has a tap open; HostError where there is none to be seen. Looks at them all, first at
    those of this network, for another one's may have a tap of that name, too; and of these at those that are
    QEMUs by their names: to look at each file of each process takes long."""
    network = OWN_NETWORK.readlink()
    for process in sorted(
        Path("/proc").glob("[0-9]*"), key=lambda one: (_is_elsewhere(one, network), _is_no_qemu(one))
    ):
        with contextlib.suppress(OSError):  # It has ended, or is none of ours to look into.
            if any(True for _ in _files_of(int(process.name), tap)):
                return int(process.name)
    raise HostError(f"no process has {tap} open")


def _is_elsewhere(process: Path, network: Path) -> bool:
    with contextlib.suppress(OSError):  # It has ended, or is none of ours to look into.
        return (process / "ns/net").readlink() != network
    return True


def _is_no_qemu(process: Path) -> bool:
    with contextlib.suppress(OSError):  # It has ended.
        return "qemu" not in (process / "comm").read_text()
    return True


def _files_of(pid: int, tap: str) -> Iterator[int]:
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # It has been closed.
            if file.readlink() == TUN:
                fields = Path(f"/proc/{pid}/fdinfo/{file.name}").read_text().split()
                if "iff:" in fields and fields[fields.index("iff:") + 1] == tap:
                    yield int(file.name)


def _header_of(file: int) -> int:
    """How many bytes come before each frame that is read."""
    (flags,) = struct.unpack_from("16xH", fcntl.ioctl(file, TUNGETIFF, bytes(40)))
    if not flags & IFF_VNET_HDR:
        return 0
    (size,) = struct.unpack("i", fcntl.ioctl(file, TUNGETVNETHDRSZ, bytes(4)))
    return int(size)
