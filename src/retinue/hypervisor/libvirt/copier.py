"""libvirt's QEMU as what copies a VM's memory in passes (`hypervisor.passes`), asked by libvirt's calls."""

import asyncio
import contextlib
import socket
import time
from typing import Any

import structlog

from retinue.core.migration.precopy import may_look_again
from retinue.host.errors import HostError
from retinue.host.open_files import socket_towards
from retinue.host.tap_queue import Holders
from retinue.hypervisor.libvirt.connection import STATE_RUNNING, LibvirtHost
from retinue.hypervisor.libvirt.directory import Memory
from retinue.hypervisor.libvirt.domain_xml import hardware
from retinue.hypervisor.passes import UNBOUNDED_DOWNTIME, Progress

MEGABIT = 125_000
"""Bytes."""
LOOK_SECONDS = 0.5
"""Between two looks whether the VM is paused, should libvirt's event have been missed."""
ANY_VERSION = (0,)
"""libvirt tells which QEMU is installed, and not which one runs the VM since when it was started."""

log = structlog.get_logger()


class LibvirtCopier:
    """See Copier. Methods raise HypervisorError."""

    def __init__(self, host: LibvirtHost, domain: Any, vm: str) -> None:
        self._host = host
        self._domain = domain
        self.vm = vm
        self._asked_at = float("-inf")

    async def memory(self) -> tuple[int, bool]:
        """Bytes of memory of the VM, and whether there can be several passes over it."""
        xml = await self._host.call(self._domain.XMLDesc, 0)
        accelerator, memory = hardware(xml)
        return memory, may_look_again(accelerator, ANY_VERSION, memory)

    async def progress(self) -> Progress:
        job = await self._host.call(self._domain.jobStats)
        return Progress(
            began=job.get("memory_processed", 0) > 0,
            ended=await self._is_paused(),
            number=int(job.get("memory_iteration", 1)) or 1,
            remaining=int(job.get("memory_remaining", 0)),
            mbps=job.get("memory_bps", 0) / MEGABIT,
        )

    async def disks_remaining(self) -> int:
        """Bytes of the VM's disks that have yet to be copied, before its memory."""
        return int((await self._host.call(self._domain.jobStats)).get("disk_remaining", 0))

    async def _is_paused(self) -> bool:
        """libvirt tells of it by an event, too (`LibvirtOutgoing.hear`), and each question takes a while."""
        if time.monotonic() - self._asked_at < LOOK_SECONDS:
            return False
        self._asked_at = time.monotonic()
        state, _ = await self._host.call(self._domain.state)
        return bool(state != STATE_RUNNING)

    async def set_downtime_limit(self, milliseconds: int) -> None:
        await self._host.call(self._domain.migrateSetMaxDowntime, milliseconds)

    async def let_converge(self) -> None:
        with contextlib.suppress(HostError):  # It may have converged by itself.
            await self.set_downtime_limit(UNBOUNDED_DOWNTIME)


async def qemu_end(holders: Holders, memory: Memory) -> socket.socket | None:
    """A copy of the socket into which the QEMU that has the VM's taps open writes its memory; None where it
    cannot be had."""
    for pid in sorted(set(holders.values())):
        try:
            return await asyncio.to_thread(socket_towards, pid, memory.outside)
        except HostError as error:
            log.warning("migration.stream_not_seen", memory=str(memory.outside), error=str(error))
    return None
