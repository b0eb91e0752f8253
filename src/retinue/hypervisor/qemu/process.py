"""A QEMU process, whoever started it: it outlives the program that did."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path


def spawn(argv: Sequence[str], inherited: int, output: int) -> "Process":
    """Start a program in a session of its own, with this descriptor and no other of ours. Raises OSError."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    try:
        ours = {int(fd.name) for fd in Path("/proc/self/fd").iterdir()} - {0, 1, 2, inherited}
        actions = [
            (os.POSIX_SPAWN_DUP2, nothing, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
            *((os.POSIX_SPAWN_CLOSE, fd) for fd in ours if _would_be_inherited(fd)),
        ]
        return Process(os.posix_spawnp(argv[0], list(argv), os.environ, file_actions=actions, setsid=True))
    finally:
        os.close(nothing)


class Process:
    """Watched by the kernel's own handle, which tells of the end also of those that are not our children."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError when there is none of that number."""
        self.pid = pid
        self.born = birth(pid)
        self._fd = os.pidfd_open(pid)
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._end)

    @property
    def alive(self) -> bool:
        return not self._ended.is_set()

    def let_go(self) -> None:
        """Watch it no longer."""
        if self.alive:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    async def wait(self) -> None:
        await self._ended.wait()

    def kill(self) -> None:
        if self.alive and self._fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    @contextlib.contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Inside the context its first thread runs on for as long as it has something to do, whatever becomes
        ready meanwhile; where we may not order that (CAP_SYS_NICE), as ever."""
        least = os.sched_get_priority_min(os.SCHED_FIFO)
        self._schedule(os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, least)
        try:
            yield
        finally:
            self._schedule(os.SCHED_OTHER, 0)

    def as_ever(self) -> None:
        """What an agent that has ended inside that context has left is put back."""
        with contextlib.suppress(OSError):
            if self.alive and os.sched_getscheduler(self.pid) == os.SCHED_FIFO | os.SCHED_RESET_ON_FORK:
                self._schedule(os.SCHED_OTHER, 0)

    def _schedule(self, policy: int, priority: int) -> None:
        if self.alive:
            with contextlib.suppress(OSError):
                os.sched_setscheduler(self.pid, policy, os.sched_param(priority))

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        self._ended.set()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)


def _would_be_inherited(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # it was the listing's own
        return False


def birth(pid: int) -> str:
    """When a process was started, in the kernel's ticks: with its number, what names it for good.

    Raises ProcessLookupError.
    """
    return _stat(pid)[19]


def is_running(pid: int, born: str) -> bool:
    """That very process runs: it has not ended, though nobody may have asked yet how."""
    try:
        stat = _stat(pid)
    except ProcessLookupError:
        return False
    return stat[19] == born and stat[0] not in "ZX"


def _stat(pid: int) -> list[str]:
    """proc(5): the fields from 3, the state, on; 22 is the start."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        raise ProcessLookupError(pid) from None
    return stat.rpartition(")")[2].split()
