"""Copies of files that another process has open.

Linux lets one who may trace a process have a copy of a file of its (pidfd_getfd(2)): what is set on a copy of
a socket is set on the socket.
"""

import ctypes
import os
import socket
from collections.abc import Callable
from pathlib import Path

from retinue.host.errors import HostError

CONNECTED = "03"
"""As /proc/net/unix has the state of a socket."""
PIDFD_GETFD = 438
"""The system call's number, on every architecture; Python has no name for it."""


def copy_of(process: int, number: int) -> int:
    """A copy of a process's file of that number; `process` is a pidfd. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    copy = int(libc.syscall(PIDFD_GETFD, process, number, 0))
    if copy < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return copy


def socket_towards(pid: int, path: Path) -> socket.socket:
    """A copy of the socket by which a process is connected to who listens, or has listened, at `path`.

    Raises HostError where it has none, or cannot be looked into.
    """
    return _socket(pid, lambda found: _peer(found) == str(path), f"is not connected to {path}")


def socket_of(pid: int, inode: int) -> socket.socket:
    """A copy of the socket with this inode, which a process has open. Raises HostError."""
    return _socket(pid, lambda found: os.fstat(found.fileno()).st_ino == inode, f"has no socket {inode} open")


def is_connected(path: Path) -> bool:
    """Somebody is connected to who listens, or has listened, at `path`, in this network: see proc(5)."""
    try:
        lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.endswith(f" {path}") and line.split()[5] == CONNECTED for line in lines[1:])


def _socket(pid: int, is_it: Callable[[socket.socket], bool], else_: str) -> socket.socket:
    try:
        process = os.pidfd_open(pid)
        try:
            for file in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    if not str(file.readlink()).startswith("socket:"):
                        continue
                    copy = copy_of(process, int(file.name))
                except PermissionError:
                    raise
                except OSError:  # It has been closed.
                    continue
                try:
                    found = socket.socket(fileno=copy)
                except OSError:  # And another file opened, with its number.
                    os.close(copy)
                    continue
                if is_it(found):
                    return found
                found.close()
        finally:
            os.close(process)
    except OSError as error:
        raise HostError(f"the sockets of process {pid} cannot be looked at: {error}") from error
    raise HostError(f"process {pid} {else_}")


def _peer(end: socket.socket) -> object:
    try:
        return end.getpeername() if end.family == socket.AF_UNIX else None
    except OSError:  # It is connected to nobody.
        return None
