"""A monitor of our own at a QEMU that libvirt runs, beside libvirt's: for a post-copy whose way has broken.

A target's QEMU that waits for a page answers nothing in band, and libvirt (9.0) asks in band. So a VM that
may move by post-copy is made with a second monitor (`domain_xml`), on which QEMU takes out of band where the
rest of its memory comes; and the source's is told by it to send that. libvirt looks on: it takes note of what
its QEMUs tell (`postcopy-recover`, `completed`), and ends the migration as if it had gone on by itself.

As without libvirt QEMU keeps our end of it while it lacks memory, for an agent that comes after us
(`left_monitor`). It takes one connection at a time: what is kept is let go as soon as all has come.
"""

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

import structlog
from qemu.qmp import QMPClient, QMPError, Runstate

from retinue.host.errors import HostError
from retinue.host.open_files import is_connected, socket_towards
from retinue.host.tap_queue import Holders
from retinue.hypervisor import left_monitor
from retinue.hypervisor.aio import cancelled
from retinue.hypervisor.libvirt.directory import Folder
from retinue.hypervisor.monitor import EXITED, Monitor, connect, disconnect

OPEN_LIMIT = 5.0
"""Seconds for it to answer; one that somebody has connected to already never does."""
LET_GO_LIMIT = 2.0

log = structlog.get_logger()


class OwnMonitor(Monitor):
    """`ours` is our end of it."""

    def __init__(self, folder: Folder, vm: str, qmp: Any, ours: socket.socket) -> None:
        memory = folder.memory(vm)
        super().__init__(vm, qmp, memory.outside, memory.inside)
        self._ours = ours
        self._keeps = False
        self._pump = asyncio.create_task(self._hand_on_events(), name=f"QMP events of {vm}")
        self._watch = asyncio.create_task(self._wait_for_end(), name=f"monitor of {vm}")

    @property
    def alive(self) -> bool:
        return bool(self._qmp.runstate is Runstate.RUNNING)

    async def keep(self) -> None:
        """Have QEMU keep our end of it, until `close`, or until an agent after us lets it go."""
        await self.give(self._ours, left_monitor.NAME)
        self._keeps = True

    def is_kept(self) -> None:
        """QEMU has kept it since before we came."""
        self._keeps = True

    async def close(self, *, is_left: bool = False) -> None:
        """Let it go, at both ends where QEMU answers; at ours alone where it is left to an agent after us."""
        if self._keeps and not is_left:
            with contextlib.suppress(HostError, TimeoutError):
                async with asyncio.timeout(LET_GO_LIMIT):
                    await self.execute("closefd", fdname=left_monitor.NAME)
        await cancelled(self._pump, self._watch)
        await disconnect(self._qmp)

    async def _hand_on_events(self) -> None:
        with self._qmp.listener() as events:
            async for event in events:
                self.publish(event)

    async def _wait_for_end(self) -> None:
        while self.alive:
            await self._qmp.runstate_changed()
        self.publish({"event": EXITED})


async def no_monitor() -> OwnMonitor | None:
    """For a VM that has none."""
    return None


def has_one(folder: Folder, vm: str) -> bool:
    """The VM was made with one, or there is one left."""
    return folder.files(vm).observer.exists()


async def opened(folder: Folder, vm: str) -> OwnMonitor | None:
    """None where the VM's QEMU has none, or it cannot be had."""
    if not has_one(folder, vm):
        return None
    qmp = QMPClient(vm)
    try:
        async with asyncio.timeout(OPEN_LIMIT):
            ours = await connect(qmp, str(folder.files(vm).observer))
    except (QMPError, OSError, EOFError, TimeoutError) as error:
        log.warning("libvirt.no_monitor_of_ours", vm=vm, error=str(error) or "it does not answer")
        await disconnect(qmp)
        return None
    return OwnMonitor(folder, vm, qmp, ours)


async def left(folder: Folder, vm: str, holders: Holders) -> OwnMonitor | None:
    """The one that an agent before us has had, and that the VM's QEMU, one of those that have its taps open,
    has kept."""
    path = seen_at(folder, vm)
    for pid in sorted(set(holders.values())):
        try:
            end = await asyncio.to_thread(socket_towards, pid, path)
            qmp = await left_monitor.taken_over(vm, end)
        except (HostError, QMPError, OSError, EOFError) as error:
            log.warning("libvirt.monitor_not_kept", vm=vm, error=str(error))
            continue
        monitor = OwnMonitor(folder, vm, qmp, end)
        monitor.is_kept()
        return monitor
    return None


def may_be_left(folder: Folder, vm: str) -> bool:
    """Somebody is connected to it, who is none of us when we have just started."""
    return has_one(folder, vm) and is_connected(seen_at(folder, vm))


def seen_at(folder: Folder, vm: str) -> Path:
    """As libvirt, and its QEMUs, see it."""
    return folder.consoles(vm).monitor
