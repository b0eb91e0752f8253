"""QEMU behind H1. Its monitor is spoken to over a socket pair made before it starts.

QEMU inherits one end of the pair: there is no path to wait for, and its end closes when it dies. It outlives
this program; what the next one must know of it is written beside its logs.
"""

import asyncio
import itertools
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog
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
    RunState,
    Started,
    VMSpec,
    ignore,
)
from retinue.hypervisor.machine import QemuMachine, last_words
from retinue.hypervisor.process import Process, spawn

START_LIMIT = 30.0

log = structlog.get_logger()


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
        self._serial = itertools.count(1 + _last_number(folder))

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
        at = await arrive(target, channel, on_event)
        self._write_down(target, incoming=False)
        return at

    async def adopt(self, hear: Callable[[str], OnEvent]) -> list[QemuMachine]:
        """Take up the machines of this folder that an earlier hypervisor object let go of, or lost.

        `hear` gives each VM's listener. One that has never run here is ended: whoever brought it has gone.
        """
        adopted: list[QemuMachine] = []
        for note in sorted(self.folder.glob("*.json")):
            written = msgspec.json.decode(note.read_bytes(), type=Note, dec_hook=_path)
            try:
                process = Process(written.pid)
            except ProcessLookupError:
                process = None
            if process is None or process.born != written.born:
                note.unlink()
                continue
            files = Files.named(self.folder, note.stem)
            qmp = QMPClient(written.spec.id)
            try:
                async with asyncio.timeout(START_LIMIT):
                    await qmp.connect(str(files.observer))
            except (QMPError, OSError, EOFError, TimeoutError) as error:
                log.error("a QEMU does not answer, ending it", vm=written.spec.id, error=str(error))
                process.kill()
                continue
            machine = QemuMachine(written.spec, files, process, qmp, hear(written.spec.id))
            if written.incoming and await machine.state() is not RunState.RUNNING:
                await machine.quit()
                note.unlink()
                continue
            adopted.append(machine)
        return adopted

    def _write_down(self, machine: QemuMachine, *, incoming: bool) -> None:
        process = machine.process
        note = Note(machine.spec, process.pid, process.born, incoming)
        machine.files.shell.with_suffix(".json").write_bytes(msgspec.json.encode(note, enc_hook=str))

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
                process = spawn((*self._prefix, *argv), theirs.fileno(), output.fileno())
        except OSError as error:
            ours.close()
            raise HypervisorError(f"VM {spec.id}: QEMU cannot be started: {error}") from error
        qmp = QMPClient(spec.id)
        try:
            async with asyncio.timeout(START_LIMIT):
                await qmp.connect(ours)
        except BaseException as error:
            process.kill()
            await process.wait()
            if isinstance(error, (QMPError, OSError, EOFError, TimeoutError)):
                raise HypervisorError(f"VM {spec.id}: QEMU did not come up{last_words(files.log)}") from error
            raise
        machine = QemuMachine(spec, files, process, qmp, on_event)
        try:
            self._write_down(machine, incoming=incoming)
        except OSError as error:
            await machine.quit()
            raise HypervisorError(
                f"VM {spec.id}: what the next agent must know cannot be kept: {error}"
            ) from error
        return machine


class Note(msgspec.Struct, frozen=True):
    """What is written down of each machine, for the next of us."""

    spec: VMSpec
    pid: int
    born: str
    incoming: bool
    """It was opened to take a VM in, and has not run it yet."""


def _path(kind: type, text: str) -> Any:
    return kind(text)


def _last_number(folder: Path) -> int:
    """The highest number of a machine whose files are in the folder."""
    numbers = (path.stem.rpartition("-")[2] for path in folder.glob("*.log"))
    return max((int(number) for number in numbers if number.isdecimal()), default=0)
