"""QEMU behind the hypervisor interface. Its monitor is spoken to over a socket pair made before it starts.

QEMU inherits one end of the pair: there is no path to wait for, and its end closes when it dies. It outlives
this program; what the next one must know of it is written beside its logs (`notes`).
"""

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import structlog
from msgspec.structs import replace
from qemu.qmp import QMPClient, QMPError

from retinue.core.migration.copying import PLAIN, CopyOptions
from retinue.core.migration.precopy import WANTED_DOWNTIME
from retinue.core.model import Ending
from retinue.host.commands import run
from retinue.host.errors import HostError
from retinue.host.open_files import socket_of
from retinue.hypervisor import left_monitor, rest_at_source
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.interface import (
    Divert,
    Left,
    MigrationResult,
    OnEvent,
    OpenDisk,
    RunState,
    Started,
    VMSpec,
    ignore,
)
from retinue.hypervisor.memory_channel import Again, Channel
from retinue.hypervisor.monitor import connect
from retinue.hypervisor.paths import MachineFiles
from retinue.hypervisor.qemu import mirrors, nbd_export, notes, overlays
from retinue.hypervisor.qemu.argv import qemu_argv
from retinue.hypervisor.qemu.incoming import receive_the_rest, run_incoming
from retinue.hypervisor.qemu.machine import QemuMachine, last_words
from retinue.hypervisor.qemu.notes import Note
from retinue.hypervisor.qemu.outgoing import run_outgoing
from retinue.hypervisor.qemu.process import Process, spawn

START_LIMIT = 30.0
ANSWER_LIMIT = 30.0
"""Seconds that a QEMU which an earlier agent has left may take to answer."""

HANGS_LIMIT = 1.0
"""Seconds after which a QEMU that may lack memory is taken to wait for some: it answers nothing then."""

BY_POSTCOPY = ("postcopy-active", "postcopy-paused", "postcopy-recover")
"""States of a migration in which a VM may run at its target with memory still to come."""

TAPS_MTU = 1500
"""Of a tap as it is made."""

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
        target = await self._launch(spec, incoming=True, on_event=on_event)
        try:
            await nbd_export.open_disks(target)
        except BaseException:
            target.kill()
            await target.quit()
            raise
        return target

    async def run_outgoing(
        self,
        source: QemuMachine,
        channel: Channel,
        on_event: OnEvent = ignore,
        divert: Divert | None = None,
        wanted_downtime: float = WANTED_DOWNTIME,
        options: CopyOptions = PLAIN,
        open_disk: OpenDisk | None = None,
    ) -> MigrationResult:
        return await run_outgoing(source, channel, on_event, divert, wanted_downtime, options, open_disk)

    async def run_incoming(self, target: QemuMachine, channel: Channel, on_event: OnEvent = ignore) -> float:
        return await run_incoming(target, channel, on_event)

    async def send_the_rest(self, source: QemuMachine, again: Again, on_event: OnEvent = ignore) -> None:
        await rest_at_source.send(source, again, on_event)

    async def receive_the_rest(self, target: QemuMachine, again: Again) -> None:
        await receive_the_rest(target, again)

    async def adopt(self, listener: Callable[[str], OnEvent]) -> Left[QemuMachine]:
        """Take up the machines of this folder that an earlier hypervisor object let go of, or lost.

        `listener` makes each machine's listener. A machine is ended, and its files go, when its VM has never
        run here; when somebody had begun to end it; when it does not answer; and when there is no note of it.
        One that lacks memory does not answer where it waits for a page; it has kept a monitor for that.
        """
        left: Left[QemuMachine] = Left()
        found = notes.find_processes(self.folder)
        for name in sorted(notes.names_in(self.folder) | found.keys()):
            files = MachineFiles.named(self.folder, name)
            note = notes.read(files.note) if files.note.exists() else None
            processes = found.get(name, [])
            if note is not None and notes.is_running(note):
                processes = [note.pid, *(pid for pid in processes if pid != note.pid)]
            if processes:
                await self._take_up(left, files, note, processes, listener)
            elif note is not None and _is_news(note):
                left.ended[note.spec.id] = Ending.OFF if note.off else Ending.CRASHED
            else:
                notes.remove_what_has_ended(files)
        return left

    async def _take_up(
        self,
        left: Left[QemuMachine],
        files: MachineFiles,
        note: Note | None,
        pids: Sequence[int],
        listener: Callable[[str], OnEvent],
    ) -> None:
        """Take the machine up that runs as the first of these processes, or end them."""
        if note is None or note.ending:
            await self._end_left(files, pids)
            return
        try:
            process = Process(pids[0])
            process.as_ever()
            qmp, ours = await _monitor_of(note, files, process)
        except (HostError, QMPError, OSError, EOFError, TimeoutError) as error:
            log.error("qemu.unresponsive_killed", vm=note.spec.id, error=str(error))
            await self._end_left(files, pids)
            return
        note = replace(note, pid=process.pid, born=process.born)
        machine = QemuMachine(note, files, process, qmp, listener(note.spec.id), ours)
        machine.write_down()
        try:
            state, status = await _look_at(machine, patiently=ours is None or note.incoming)
        except (HypervisorError, TimeoutError) as error:
            if ours is not None and not note.incoming and machine.alive:
                log.warning("qemu.waits_for_memory", vm=note.spec.id)
                state, status = RunState.RUNNING, BY_POSTCOPY[0]
            else:
                log.error("qemu.unresponsive_killed", vm=note.spec.id, error=str(error))
                machine.kill()
                await machine.quit()
                return
        # One that has kept its monitor is a target, and no source that was stopped, whatever it says.
        lacks_memory = status in BY_POSTCOPY and (ours is not None or state is RunState.RUNNING)
        if note.off or state is RunState.OFF:
            await machine.cut_power()
            left.ended[note.spec.id] = Ending.OFF
        elif (note.incoming or lacks_memory) and state is not RunState.RUNNING:
            await machine.quit()
        elif lacks_memory and ours is not None:
            left.machines.append(machine)
            left.lacking.add(note.spec.id)
        elif lacks_memory:
            # An agent from before has opened it: nothing reaches it while it waits for a page.
            log.error("qemu.memory_lost", vm=note.spec.id)
            machine.kill()
            await machine.quit()
            left.ended[note.spec.id] = Ending.CRASHED
        else:
            await machine.lacks_nothing()
            await mirrors.clear_left_over(machine)
            left.machines.append(machine)

    async def _end_left(self, files: MachineFiles, pids: Sequence[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                process = Process(pid)
                log.warning("qemu.left_over_ended", name=files.name, pid=pid)
                process.kill()
                await process.wait()
        notes.remove_what_has_ended(files)

    def end_is_reported(self, spec: VMSpec) -> None:
        for note in self.folder.glob(f"{spec.port}-*.json"):
            if (known := notes.read(note)) is None or not notes.is_running(known):
                notes.remove_what_has_ended(MachineFiles.named(self.folder, note.stem))

    def forget(self, spec: VMSpec) -> None:
        notes.remove_old_words(self.folder, spec.port, self._running(), kept=0)

    def forget_all_but(self, specs: Collection[VMSpec]) -> None:
        ports = {spec.port for spec in specs}
        for name in notes.names_in(self.folder) - self._running():
            if notes.port_of(name) not in ports:
                notes.remove_what_has_ended(MachineFiles.named(self.folder, name), words_too=True)

    def _running(self) -> set[str]:
        """Names of the machines whose processes run, as their notes say."""
        read = ((path.stem, notes.read(path)) for path in self.folder.glob("*.json"))
        return {name for name, note in read if note is not None and notes.is_running(note)}

    async def _launch(self, spec: VMSpec, *, incoming: bool, on_event: OnEvent) -> QemuMachine:
        files = MachineFiles.named(self.folder, f"{spec.port}-{next(self._serial)}")
        try:
            notes.make_folder(self.folder)
            await overlays.prepare(spec, anew=incoming)
            self.end_is_reported(spec)  # What was before has no meaning any more.
            notes.remove_old_words(self.folder, spec.port, self._running())
            await self._fit_taps(spec)
            process, note, ours = self._spawn(spec, files, incoming)
        except OSError as error:
            notes.remove_what_has_ended(files)
            raise HypervisorError(f"VM {spec.id}: QEMU cannot be started: {error}") from error
        qmp = QMPClient(spec.id)
        try:
            async with asyncio.timeout(START_LIMIT):
                await qmp.connect(ours)
        except BaseException as error:
            process.kill()
            await process.wait()
            words = last_words(files.log)
            notes.remove_what_has_ended(files)
            if isinstance(error, (QMPError, OSError, EOFError, TimeoutError)):
                raise HypervisorError(f"VM {spec.id}: QEMU did not come up{words}") from error
            raise
        return QemuMachine(note, files, process, qmp, on_event, ours)

    async def _fit_taps(self, spec: VMSpec) -> None:
        """Taps take what the VM may send, as libvirt sees to it by itself."""
        for nic in spec.nics:
            if nic.mtu > TAPS_MTU:  # One that is larger than need be is in nobody's way.
                try:
                    await run([*self._prefix, "ip", "link", "set", "dev", nic.port, "mtu", str(nic.mtu)])
                except HostError as error:
                    raise HypervisorError(f"VM {spec.id}: {error}") from error

    def _spawn(
        self, spec: VMSpec, files: MachineFiles, incoming: bool
    ) -> tuple[Process, Note, socket.socket]:
        """Start a QEMU, written down at once; with our end of its monitor. Raises OSError."""
        note = Note(spec, incoming=incoming, boot=notes.boot_id())
        notes.write(files, note)
        for path in (files.log, files.serial_log):
            notes.make_readable_by_us_alone(path)
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
        except OSError:
            ours.close()
            raise
        note = replace(note, pid=process.pid, born=process.born)
        try:
            notes.write(files, note)
        except OSError:
            process.kill()
            ours.close()
            raise
        return process, note, ours


def _is_news(note: Note) -> bool:
    """A machine that has ended while nobody looked: its VM had run here, and the server has not booted since.

    After a boot no VM runs, and each is started again that is to run.
    """
    return (
        not note.ending
        and not note.incoming
        and (note.off or (note.pid > 0 and note.boot == notes.boot_id()))
    )


def _last_number(folder: Path) -> int:
    """The highest number of a machine whose files are in the folder."""
    return max(map(notes.number_of, notes.names_in(folder)), default=0)


async def _monitor_of(
    note: Note, files: MachineFiles, process: Process
) -> tuple[QMPClient, socket.socket | None]:
    """A monitor of a QEMU that an earlier agent has left; with our end of it where QEMU has kept that.

    Raises HostError, QMPError, OSError, EOFError, TimeoutError.
    """
    if note.monitor:
        try:
            end = socket_of(process.pid, note.monitor)
            return await left_monitor.taken_over(note.spec.id, end), end
        except (HostError, QMPError, OSError, EOFError) as error:
            log.warning("qemu.monitor_not_kept", vm=note.spec.id, error=str(error))
    qmp = QMPClient(note.spec.id)
    async with asyncio.timeout(ANSWER_LIMIT):
        await connect(qmp, str(files.observer))
    return qmp, None


async def _look_at(machine: QemuMachine, *, patiently: bool) -> tuple[RunState, str]:
    """What it does, and the state of its last migration. Raises HypervisorError, TimeoutError."""
    async with asyncio.timeout(ANSWER_LIMIT if patiently else HANGS_LIMIT):
        return await machine.state(), await machine.migration_status()
