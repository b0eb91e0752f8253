"""The source's private disks, kept the same at the target from before the memory is copied to the VM's stop.

    1. Each disk is mirrored by QEMU to the overlay that the target has made over its own copy of the base:
       only what the overlay has is copied. Whatever the VM writes meanwhile is written at both ends before
       the guest is told that it is (`write-blocking`), so the copy ends however much the VM writes.
    2. When all disks are the same (job "ready") the memory is copied, and they stay the same.
    3. The migration waits, the VM stopped, before it hands anything over (`pause-before-switchover`): nothing
       writes any more, each job is ended as it stands, its target flushed, and the migration goes on.

A job that ends otherwise fails the migration; the source's disk has all that the VM wrote at any time, since
it is written there first.

QEMU is told a path to connect to, and never handed a socket: when a connection breaks, its NBD client tries
the same address again, for as long as the node is there. Of a socket it remembers only the number, and takes
whatever has that number by then for an NBD server: its monitor, the guest's console (seen with 7.2).
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import structlog

from retinue.host.errors import HostError
from retinue.hypervisor.aio import run_to_completion
from retinue.hypervisor.disk_channel import STALL_LIMIT, relay
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.interface import Copying, DiskSpec, OnEvent, OpenDisk, RunState
from retinue.hypervisor.memory_channel import Channel
from retinue.hypervisor.paths import check_socket_path
from retinue.hypervisor.qemu.machine import QemuMachine

LOOK_SECONDS, FINISH_LOOK_SECONDS = 0.05, 0.001
"""Between two looks at the jobs, while the VM runs and while it is stopped."""
TELL_SECONDS = 2.0
"""Between two reports how much remains."""
GREETING_LIMIT, OPEN_LIMIT = 10.0, 3.0
"""Seconds for the target to open a disk: while we wait for it, and while QEMU does."""
LONGEST_GREETING = 1 << 10
"""Bytes. NBD's has 18 (its "fixed newstyle negotiation")."""
UNDO_LIMIT = 10.0
ERRORS = {"ok": "", "failed": "Input/output error", "nospace": "No space left on device"}
"""What QEMU's `io-status` of a job that an error has stopped stands for."""

log = structlog.get_logger()


class Mirrors:
    """Of one outgoing migration. Methods raise HypervisorError."""

    def __init__(self, machine: QemuMachine, open_disk: OpenDisk | None, on_event: OnEvent) -> None:
        self._machine = machine
        self._open_disk = open_disk
        self._on_event = on_event
        self._disks: Sequence[DiskSpec] = machine.spec.private_disks
        self._relays: dict[str, asyncio.Task[None]] = {}
        self._ending = False

    def __bool__(self) -> bool:
        return bool(self._disks)

    def size(self) -> int:
        """Bytes that the overlays have, about."""
        return sum(disk.path.stat().st_blocks * 512 for disk in self._disks if disk.path.exists())

    async def start(self) -> None:
        """Begin; what an earlier attempt may have left is cleared first."""
        if not self._disks:
            return
        if self._open_disk is None:
            raise HypervisorError("its disks cannot be copied by this way of migrating")
        await clear(self._machine)
        for disk in self._disks:
            channel = await self._open_disk(disk.number)
            greeting = await _greeting(channel, disk)
            path = self._machine.files.copy_of(disk.number)
            passing = _pass_on(_listener(path), path, greeting, channel)
            self._relays[disk.node] = asyncio.create_task(passing, name=disk.node)
            await asyncio.sleep(0)  # It has begun, and so it closes what it was given, whenever it is ended.
            server = {"type": "unix", "path": str(path)}
            nbd = {"driver": "nbd", "server": server, "export": disk.node, "node-name": _target(disk)}
            try:
                # All of QEMU waits meanwhile, and with it the guest: not for a target that is lost.
                async with asyncio.timeout(OPEN_LIMIT):
                    await self._machine.command("blockdev-add", nbd | {"discard": "unmap"})
            except TimeoutError as error:
                raise _not_open(disk) from error
            job = {"job-id": _job(disk), "device": disk.node, "target": _target(disk), "sync": "top"}
            # An error stops the copy, and never ends it: see `clear`.
            how = {"copy-mode": "write-blocking", "on-target-error": "stop", "auto-dismiss": False}
            await self._machine.command("blockdev-mirror", job | how)

    async def until_ready(self) -> None:
        """Return when each disk is the same at both ends, from where on it stays so."""
        told = 0.0
        while self._disks:
            jobs = await self._jobs()
            if all(job["status"] == "ready" for job in jobs):
                return
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                remaining = sum(job["total-progress"] - job["current-progress"] for job in jobs)
                self._on_event(Copying(self._machine.spec.id, time.time(), 0, remaining, 0))
            await asyncio.sleep(LOOK_SECONDS)

    async def watch(self) -> None:
        """Raises HypervisorError when a disk is no longer the same, as long as the VM is not handed over."""
        while self._disks and not self._ending:
            await self._jobs()
            await asyncio.sleep(4 * LOOK_SECONDS)

    async def finish(self) -> None:
        """The VM is stopped: end the copies as they stand, flushed. They are told so once; whoever asks
        waits until they have ended."""
        if not self._ending:
            self._ending = True
            for disk in self._disks:
                await self._machine.command("block-job-cancel", {"device": _job(disk)})
        while True:
            if all(job["status"] == "concluded" for job in await self._jobs()):
                return
            await asyncio.sleep(FINISH_LOOK_SECONDS)

    async def undo(self) -> None:
        """Copy no more, whatever the state: the disks here are as if nobody had begun."""
        self._ending = True
        for task in self._relays.values():
            task.cancel()  # Whatever QEMU waits for at the other end, it finds that nobody is there.
        await asyncio.gather(*self._relays.values(), return_exceptions=True)
        await clear_left_over(self._machine)

    async def close(self) -> None:
        """The connections end."""
        for task in self._relays.values():
            task.cancel()
        await asyncio.gather(*self._relays.values(), return_exceptions=True)

    async def _jobs(self) -> list[dict[str, Any]]:
        """The jobs as they are. Raises HypervisorError for one that has failed."""
        found = {job["id"]: job for job in await self._machine.execute("query-jobs")}
        health = {job["device"]: job["io-status"] for job in await self._machine.execute("query-block-jobs")}
        jobs = []
        for disk in self._disks:
            job = found.get(_job(disk))
            if job is None:
                raise HypervisorError(f"disk {disk.number} is no longer copied")
            error = job.get("error", ERRORS[health.get(job["id"], "ok")])
            if error:
                raise HypervisorError(f"disk {disk.number} cannot be copied: {self._cause(disk, error)}")
            if job["status"] == "concluded" and not self._ending:
                raise HypervisorError(f"disk {disk.number} is no longer copied")
            jobs.append(job)
        return jobs

    def _cause(self, disk: DiskSpec, error: str) -> str:
        task = self._relays.get(disk.node)
        if task is not None and task.done() and not task.cancelled() and task.exception() is not None:
            return str(task.exception())
        return error


async def clear_left_over(machine: QemuMachine) -> None:
    """End all copies of the machine's disks, whoever began with them; what cannot be ended is logged."""
    if machine.spec.private_disks and machine.alive:
        try:
            async with asyncio.timeout(UNDO_LIMIT):
                await clear(machine)
        except (HostError, TimeoutError) as error:
            log.error("migration.disks_not_cleared", vm=machine.spec.id, error=str(error))


async def clear(machine: QemuMachine) -> None:
    """End all copies of the machine's disks, and let go of their targets. Raises HypervisorError.

    The VM is paused meanwhile: a QEMU of 7.2 damages its heap where a copy ends in error while the guest
    writes to its target.
    """
    disks = machine.spec.private_disks
    jobs = {_job(disk) for disk in disks}
    pause = bool(await _left(machine, jobs)) and await machine.state() is RunState.RUNNING
    try:
        if pause:
            await machine.execute("stop")
        while left := await _left(machine, jobs):
            for job in left:
                with contextlib.suppress(HypervisorError):  # It is on its way to its end already.
                    if job["status"] == "concluded":
                        await machine.execute("job-dismiss", id=job["id"])
                    else:
                        await machine.execute("block-job-cancel", device=job["id"], force=True)
            await asyncio.sleep(FINISH_LOOK_SECONDS)
    finally:
        if pause:
            await run_to_completion(machine.resume())
    nodes = {node.get("node-name") for node in await machine.execute("query-named-block-nodes")}
    for disk in disks:
        if _target(disk) in nodes:
            await machine.command("blockdev-del", {"node-name": _target(disk)})


async def _left(machine: QemuMachine, jobs: Collection[str]) -> list[dict[str, Any]]:
    return [job for job in await machine.execute("query-jobs") if job["id"] in jobs]


def _listener(path: Path) -> socket.socket:
    """For QEMU to connect to, once. Raises HypervisorError."""
    check_socket_path(path)
    made = socket.socket(socket.AF_UNIX)
    made.setblocking(False)
    try:
        path.unlink(missing_ok=True)
        made.bind(str(path))
        made.listen(1)
    except OSError as error:
        made.close()
        raise HypervisorError(f"{path}: QEMU cannot be listened for: {error.strerror}") from error
    return made


async def _pass_on(listener: socket.socket, path: Path, greeting: bytes, channel: Channel) -> None:
    """Pass on what QEMU and the target say, from when QEMU connects until one of them ends."""
    loop = asyncio.get_running_loop()
    try:
        end, _ = await loop.sock_accept(listener)
    except BaseException:
        channel.abort()
        raise
    finally:
        listener.close()
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # It is gone: what follows finds that, too.
        await loop.sock_sendall(end, greeting)
    await relay(channel, end, STALL_LIMIT)


async def _greeting(channel: Channel, disk: DiskSpec) -> bytes:
    """What the target's QEMU says first: it is there, and our own need not wait for it."""
    try:
        async with asyncio.timeout(GREETING_LIMIT):
            greeting = await channel.receive()
    except (HypervisorError, TimeoutError) as error:
        channel.abort()
        raise _not_open(disk) from error
    if not isinstance(greeting, bytes) or not 0 < len(greeting) <= LONGEST_GREETING:
        channel.abort()
        raise _not_open(disk)
    return greeting


def _not_open(disk: DiskSpec) -> HypervisorError:
    return HypervisorError(f"disk {disk.number} cannot be copied: the target does not open it")


def _job(disk: DiskSpec) -> str:
    return f"{disk.node}-mirror"


def _target(disk: DiskSpec) -> str:
    return f"{disk.node}-target"
