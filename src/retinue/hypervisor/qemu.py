"""QEMU behind H1. Its monitor is spoken to over a socket pair made before it starts.

QEMU inherits one end of the pair: there is no path to wait for, and its end closes when it dies.
"""

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from qemu.qmp import QMPClient, QMPError

from retinue.hypervisor.argv import Files, qemu_argv
from retinue.hypervisor.arrival import arrive
from retinue.hypervisor.channel import Channel
from retinue.hypervisor.departure import depart
from retinue.hypervisor.interface import (
    Divert,
    HypervisorError,
    MigrationResult,
    OnEvent,
    Started,
    VMSpec,
    ignore,
)
from retinue.hypervisor.machine import QemuMachine, last_words

START_LIMIT = 30.0


class QemuHypervisor:
    """Runs QEMUs on one server.

    `folder` takes their logs and sockets. `prefix` is put before each command line: "ip netns exec NAME" for
    a server that is a network namespace.
    """

    def __init__(
        self,
        folder: Path,
        prefix: Sequence[str] = (),
        *,
        binary: str = "qemu-system-x86_64",
        accelerator: str = "tcg",
    ) -> None:
        self.folder = folder
        self._prefix = tuple(prefix)
        self._binary = binary
        self._accelerator = accelerator
        self._serial = itertools.count(1)

    async def start(self, spec: VMSpec, on_event: OnEvent = ignore) -> QemuMachine:
        machine = await self._launch(spec, incoming=False, on_event=on_event)
        on_event(Started(spec.id, time.time()))
        return machine

    async def open_target(self, spec: VMSpec, on_event: OnEvent = ignore) -> QemuMachine:
        return await self._launch(spec, incoming=True, on_event=on_event)

    async def depart(
        self,
        source: QemuMachine,
        channel: Channel,
        on_event: OnEvent = ignore,
        divert: Divert | None = None,
    ) -> MigrationResult:
        return await depart(source, channel, on_event, divert)

    async def arrive(self, target: QemuMachine, channel: Channel, on_event: OnEvent = ignore) -> float:
        return await arrive(target, channel, on_event)

    async def _launch(self, spec: VMSpec, *, incoming: bool, on_event: OnEvent) -> QemuMachine:
        self.folder.mkdir(parents=True, exist_ok=True)
        files = Files.named(self.folder, f"{spec.port}-{next(self._serial)}")
        ours, theirs = socket.socketpair()
        argv = qemu_argv(
            spec,
            files,
            qmp_fd=theirs.fileno(),
            incoming=incoming,
            binary=self._binary,
            accelerator=self._accelerator,
        )
        try:
            with theirs, files.log.open("wb") as output:
                process = await asyncio.create_subprocess_exec(
                    *self._prefix,
                    *argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[theirs.fileno()],
                )
        except OSError as error:
            ours.close()
            raise HypervisorError(f"VM {spec.id}: QEMU cannot be started: {error}") from error
        qmp = QMPClient(spec.id)
        try:
            async with asyncio.timeout(START_LIMIT):
                await qmp.connect(ours)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            if isinstance(error, (QMPError, OSError, EOFError, TimeoutError)):
                raise HypervisorError(f"VM {spec.id}: QEMU did not come up{last_words(files.log)}") from error
            raise
        return QemuMachine(spec, files, process, qmp, on_event)
