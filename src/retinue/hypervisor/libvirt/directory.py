"""The folder that libvirt's QEMUs on one server share with us: VMs' consoles, sockets for memory and disks.

Beside a migration's source we listen on a socket, to which libvirtd connects for its QEMU; at the target its
QEMU listens on a socket of the same path, to which we connect. So the folder must have the same path on all
servers, and QEMU's user must be able to write to it. Where libvirtd runs in a container, or in a mount
namespace, it sees the folder by another path than we do.
"""

import asyncio
import contextlib
import os
import pwd
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.libvirt.domain_xml import Consoles
from retinue.hypervisor.paths import MachineFiles, check_socket_path

FOLDER_MODE, SOCKET_MODE = 0o750, 0o600


@dataclass(frozen=True)
class Memory:
    """The socket through which a VM's memory, or the content of its disks, passes on this server."""

    inside: Path
    """As libvirt sees it."""
    outside: Path
    """As we see it."""
    user: int | None

    def listen(self, waiting: int = 1) -> socket.socket:
        """For the source's libvirtd, or its QEMU, to connect to, so many at once. Raises HypervisorError."""
        self.clear()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Never by what the name stands for: the folder is a user's, who could put a link in its place.
            before = os.umask(0o777 & ~SOCKET_MODE)
            try:
                listener.bind(str(self.outside))
            finally:
                os.umask(before)
            if self.user is not None:
                os.chown(self.outside, self.user, -1, follow_symlinks=False)
            listener.listen(waiting)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise HypervisorError(f"{self.outside}: nothing can be taken from libvirt: {error}") from error
        return listener

    async def connect(self) -> socket.socket:
        """To the target's QEMU. Raises HypervisorError."""
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(stream, str(self.outside))
        except OSError as error:
            stream.close()
            raise HypervisorError(f"{self.outside}: libvirt's QEMU takes in nothing: {error}") from error
        return stream

    def clear(self) -> None:
        """Remove a socket that is left over."""
        with contextlib.suppress(OSError):
            self.outside.unlink()


@dataclass(frozen=True)
class Folder:
    """`user`: whose QEMUs are, by name; "" when they are our own user's."""

    inside: Path
    outside: Path
    user: str = ""

    def make(self) -> None:
        """Make it, for the user whose QEMUs are. Raises HypervisorError."""
        try:
            self.outside.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            self.outside.chmod(FOLDER_MODE)  # Whatever our umask: QEMU's user must get in.
            if (number := self._number()) is not None:
                os.chown(self.outside, number, -1)
        except OSError as error:
            raise HypervisorError(f"{self.outside}: no folder for libvirt's VMs: {error}") from error

    def give(self, paths: Sequence[Path]) -> None:
        """Make files the user's whose QEMUs are. Raises HypervisorError."""
        if (number := self._number()) is None:
            return
        for path in paths:
            try:
                os.chown(path, number, -1, follow_symlinks=False)
            except OSError as error:
                raise HypervisorError(f"{path} cannot be given to {self.user}: {error.strerror}") from error

    def memory(self, vm: str) -> Memory:
        return self._meeting(f"{vm}.memory")

    def disks(self, vm: str) -> Memory:
        return self._meeting(f"{vm}.disks")

    def _meeting(self, name: str) -> Memory:
        for path in (self.inside / name, self.outside / name):
            check_socket_path(path)
        return Memory(self.inside / name, self.outside / name, self._number())

    def consoles(self, vm: str) -> Consoles:
        """As libvirt sees them."""
        return Consoles(*(self.inside / f"{vm}{kind}" for kind in (".console", ".shell", ".qmp")))

    def files(self, vm: str) -> MachineFiles:
        """As we see them."""
        return MachineFiles.named(self.outside, vm)

    def _number(self) -> int | None:
        if not self.user:
            return None
        try:
            return pwd.getpwnam(self.user).pw_uid
        except KeyError as error:
            raise HypervisorError(
                f"there is no user {self.user!r} on this server, whose libvirt's QEMUs should be"
            ) from error


__all__ = ["Folder", "Memory"]
