"""A VM's private disks on their way to another server, mirrored by libvirt's own migration.

    source's QEMU           source's agent         target's agent         target's QEMU
    connects, for each      accepts           >    take_disk        >     serves its disks by NBD, from when
    disk once                                                             libvirt has opened the target

The socket has the same path on both servers, as the memory's has. libvirt mirrors what the overlays have,
then has the memory copied, and ends the mirrors as they stand when the VM has stopped, before it hands
anything over. The agents see bytes alone; which disk a connection is for only NBD says.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import structlog

from retinue.core.limits import MOST_DISKS
from retinue.core.migration.copying import limit_for_disks
from retinue.host.errors import HostError
from retinue.hypervisor.aio import value
from retinue.hypervisor.disk_channel import STALL_LIMIT, relay
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.interface import Copying, OnEvent, OpenDisk
from retinue.hypervisor.libvirt.copier import LibvirtCopier
from retinue.hypervisor.libvirt.directory import Memory
from retinue.hypervisor.libvirt.disks_xml import DiskFiles, private_disks, with_files
from retinue.hypervisor.memory_channel import Channel

NON_SHARED_INC = 1 << 7
"""virDomainMigrateFlags: only what is in the overlays is copied."""
DISKS_URI, DISKS, DEST_XML = "disks_uri", "migrate_disks", "destination_xml"
"""VIR_MIGRATE_PARAM_DISKS_URI, VIR_MIGRATE_PARAM_MIGRATE_DISKS, VIR_MIGRATE_PARAM_DEST_XML."""
MIGRATABLE = 1 << 3
"""VIR_DOMAIN_XML_MIGRATABLE."""

TELL_SECONDS = 2.0
"""Between two reports how much of the disks remains."""

log = structlog.get_logger()

T = TypeVar("T")


class DiskCopies:
    """Of one outgoing migration, as a context: within it libvirt's connections are accepted and passed on."""

    def __init__(self, xml: str, meeting: Memory, open_disk: OpenDisk | None) -> None:
        """`xml`: the domain's. Raises HypervisorError."""
        found = private_disks(xml)
        self.devices = [device for device, _ in found.values()]
        self._files = [Path(file) for _, file in found.values()]
        self._numbers = sorted(found)
        self.meeting = meeting
        self._open_disk = open_disk
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        """libvirt has opened the target, and copies."""
        self.failed: asyncio.Future[str] = loop.create_future()
        self._listener: socket.socket | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def __bool__(self) -> bool:
        return bool(self.devices)

    def size(self) -> int:
        """Bytes that the overlays have, about."""
        with contextlib.suppress(OSError):  # They may be elsewhere for us.
            return sum(path.stat().st_blocks * 512 for path in self._files)
        return 0

    def parameters(self, xml: str, files: Mapping[int, DiskFiles]) -> dict[str, Any]:
        """What libvirt is told of them besides its flag; `xml`: the domain's, as it migrates; `files`: where
        they are at the target. Raises HypervisorError."""
        uri = f"unix://{self.meeting.inside}"
        return {DISKS_URI: uri, DISKS: self.devices, DEST_XML: with_files(xml, files)}

    async def copied(
        self, copier: LibvirtCopier, sent: "asyncio.Future[T]", on_event: OnEvent, step_factor: float = 1.0
    ) -> T:
        """What `sent` brings: libvirt sends the memory when the disks are the same, and they stay so. Raises
        HypervisorError."""
        limit = limit_for_disks(self.size(), step_factor)
        until = time.monotonic() + limit
        while time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TELL_SECONDS):
                    return await value(sent)
            if self:
                remaining = await copier.disks_remaining()
                on_event(Copying(copier.vm, time.time(), 0, remaining, 0))
        raise HypervisorError(f"its disks are not copied within {limit:.0f} s")

    def __enter__(self) -> None:
        if not self:
            return
        if self._open_disk is None:
            raise HypervisorError("its disks cannot be copied by this way of migrating")
        self._listener = self.meeting.listen(MOST_DISKS)
        self._tasks.append(asyncio.create_task(self._accept(self._listener), name="disks for libvirt"))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hang_up()

    def hang_up(self) -> None:
        """QEMU finds that nobody is there."""
        for task in self._tasks:
            task.cancel()
        if self._listener is not None:
            self._listener.close()
            self.meeting.clear()

    async def _accept(self, listener: socket.socket) -> None:
        for number in self._numbers:
            end, _ = await asyncio.get_running_loop().sock_accept(listener)
            passing = self._pass_on(number, end)
            self._tasks.append(asyncio.create_task(passing, name=f"disk connection {number}"))
            await asyncio.sleep(0)  # It has begun, and so it closes what it was given, whenever it is ended.
            if not self.opened.done():
                self.opened.set_result(None)

    async def _pass_on(self, number: int, end: socket.socket) -> None:
        assert self._open_disk is not None
        try:
            try:
                channel = await self._open_disk(number)
            except BaseException:
                end.close()
                raise
            await relay(channel, end, STALL_LIMIT)
        except HostError as error:
            log.warning("migration.disk_not_copied", disk=number, error=str(error))
            if not self.failed.done():
                self.failed.set_result(f"its disks cannot be copied: {error}")


async def take_disk(meeting: Memory, channel: Channel) -> None:
    """At the target, pass a connection on to its QEMU, to its end. Raises HypervisorError."""
    end = await meeting.connect()
    with contextlib.suppress(HypervisorError):  # The source knows by its end of the connection.
        await relay(channel, end)
