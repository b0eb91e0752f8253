"""A target's private disks, written by its source while the machine waits for its memory.

QEMU serves them by NBD at a socket beside its other ones, where only this agent gets at it. Before the VM
runs here that is over: a disk has one writer at a time.
"""

import asyncio
import contextlib
import socket
from typing import Any, Protocol

from retinue.hypervisor.disk_channel import relay
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.interface import VMSpec
from retinue.hypervisor.memory_channel import Channel
from retinue.hypervisor.paths import MachineFiles, check_socket_path


class Monitored(Protocol):
    """What is needed of a machine here."""

    @property
    def spec(self) -> VMSpec: ...

    @property
    def files(self) -> MachineFiles: ...

    async def command(self, command: str, arguments: dict[str, Any]) -> Any: ...


async def open_disks(machine: Monitored) -> None:
    """Serve the disks. Raises HypervisorError."""
    disks = machine.spec.private_disks
    if not disks:
        return
    check_socket_path(machine.files.nbd)
    address = {"type": "unix", "data": {"path": str(machine.files.nbd)}}
    await machine.command("nbd-server-start", {"addr": address})
    for disk in disks:
        export = {"type": "nbd", "id": disk.node, "node-name": disk.node, "name": disk.node, "writable": True}
        await machine.command("block-export-add", export)


async def close_disks(machine: Monitored) -> None:
    """Serve them no longer: what the source has flushed is in their files. Raises HypervisorError."""
    if machine.spec.private_disks:
        await machine.command("nbd-server-stop", {})


async def take_disk(machine: Monitored, number: int, channel: Channel) -> None:
    """See Machine.take_disk."""
    if number not in (disk.number for disk in machine.spec.private_disks):
        raise HypervisorError(f"VM {machine.spec.id} has no private disk {number}")
    end = socket.socket(socket.AF_UNIX)
    end.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(end, str(machine.files.nbd))
    except OSError as error:
        end.close()
        raise HypervisorError(f"VM {machine.spec.id}: its disks are not open: {error.strerror}") from error
    with contextlib.suppress(HypervisorError):  # The source knows by its end of the connection.
        await relay(channel, end)
