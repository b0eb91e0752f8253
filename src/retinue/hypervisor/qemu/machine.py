"""One running QEMU, spoken to by its monitor protocol (QMP)."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import structlog
from msgspec.structs import replace

from retinue.core.model import Ending
from retinue.host.commands import run
from retinue.host.drain import drain, frames_given
from retinue.host.errors import HostError
from retinue.host.tap_queue import HeldTaps
from retinue.host.taps import QUEUE_FRAMES, queue_for, rx_frames
from retinue.hypervisor import left_monitor
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.interface import (
    LINK_DOWN_SECONDS,
    Exited,
    NICSpec,
    OnEvent,
    RunState,
    StartedAnew,
    VMSpec,
)
from retinue.hypervisor.memory_channel import Channel
from retinue.hypervisor.monitor import EXITED, Monitor, disconnect, event_time
from retinue.hypervisor.paths import MachineFiles
from retinue.hypervisor.qemu import nbd_export, notes
from retinue.hypervisor.qemu.argv import NIC_ID
from retinue.hypervisor.qemu.nics import set_nics
from retinue.hypervisor.qemu.notes import Note
from retinue.hypervisor.qemu.process import Process
from retinue.hypervisor.throttle import Throttle

QUIT_LIMIT = 10.0
"""Seconds to take the order to quit, and as many to end."""
RESUME_LIMIT = 12.0

STOPPED_TO_LEAVE = "finish-migrate"
POSTCOPY, POSTCOPY_ACTIVE = "postcopy", "postcopy-active"
"""What QEMU calls a source's run state when its migration has stopped it, and how all states of a migration
begin in which the VM may run at the target."""
CANNOT_POSTCOPY = (
    "this server cannot run a VM before all of its memory has come (post-copy): QEMU needs the system call "
    "userfaultfd, for root, or for all with `sysctl vm.unprivileged_userfaultfd=1`"
)

SWITCHED_OFF = "guest-shutdown"
"""QMP's reason of SHUTDOWN when the guest has powered the machine off; a reset is an event of its own, RESET,
and leaves QEMU running."""

log = structlog.get_logger()

_STATES = {
    "running": RunState.RUNNING,
    "inmigrate": RunState.INCOMING,
    "postmigrate": RunState.MOVED,
    "internal-error": RunState.BROKEN,
    "guest-panicked": RunState.BROKEN,
    "io-error": RunState.BROKEN,
    "shutdown": RunState.OFF,
}


class QemuMachine(Monitor):
    """One QEMU process. Made by QemuHypervisor."""

    def __init__(
        self,
        note: Note,
        files: MachineFiles,
        process: Process,
        qmp: Any,
        on_event: OnEvent,
        ours: socket.socket | None = None,
    ) -> None:
        """`ours`: our end of the monitor, where it is a socket pair's."""
        super().__init__(note.spec.id, qmp, files.rest)
        self._note = note
        self.files = files
        self.process = process
        self._ours = ours
        self._on_event = on_event
        self.expects_postcopy = False
        """It may run before all of its memory has come; of a target that waits."""
        self._why_killed = ""
        self._comes_back = False
        """It was asked to shut down to be started anew."""
        self._after_power_off: asyncio.Task[None] | None = None
        self._pump = asyncio.create_task(self._hand_on_events(), name=f"QMP events of {note.spec.id}")
        self._watch = asyncio.create_task(self._wait_for_end(), name=f"QEMU of {note.spec.id}")

    @property
    def spec(self) -> VMSpec:
        return self._note.spec

    @property
    def alive(self) -> bool:
        return self.process.alive

    async def state(self) -> RunState:
        status = (await self.execute("query-status"))["status"]
        if status == STOPPED_TO_LEAVE and (await self.migration_status()).startswith(POSTCOPY):
            return RunState.MOVED
        return _STATES.get(status, RunState.PAUSED)

    async def expect_postcopy(self) -> None:
        try:
            await self.set_capability("postcopy-ram", True)
        except HostError as error:
            raise HypervisorError(f"{self.spec.id}: {CANNOT_POSTCOPY}: {error}") from error
        if self._ours is not None:
            inode = left_monitor.inode_of(self._ours)
            await self.give(self._ours, left_monitor.NAME)
            self.write_down(monitor=inode)
        self.expects_postcopy = True

    async def lacks_nothing(self) -> None:
        """All of its memory is here: its monitor is ours alone, and ends with us."""
        if not self._note.monitor:
            return
        self.write_down(monitor=0)
        if self._ours is not None:
            with contextlib.suppress(HostError):
                await self.execute("closefd", fdname=left_monitor.NAME)

    async def cancel_migration(self, *streams: Throttle) -> None:
        """End the one that is under way. `streams`: what it is sent by, if we have it.

        A QEMU that is told so breaks its stream off first, and then writes down that it is cancelled. In
        post-copy a thread of it that finds the stream broken before that waits for a better way, for ever
        ("postcopy-paused"), and the VM never runs again. So meanwhile no thread of its writes, and none takes
        the place of the one that cancels.
        """
        # One that has only begun with it holds its big lock for as long as nobody reads the VM's state.
        if await self.state() is RunState.MOVED and await self.migration_status() == POSTCOPY_ACTIVE:
            for stream in streams:
                stream.let_wait()
            await self.migration_status()  # Meanwhile the stream has filled.
            with self.process.uninterrupted():
                await self.execute("migrate_cancel")
        else:
            await self.execute("migrate_cancel")

    async def resume(self) -> None:
        if await self.migration_status() == POSTCOPY_ACTIVE:
            # It was given back before it ran at the target; QEMU, told so, has it here as it was.
            await self.cancel_migration(*self.kept)
        try:
            async with asyncio.timeout(RESUME_LIMIT):
                while await self.state() is not RunState.RUNNING:
                    try:
                        await self.execute("cont")
                    except HostError:  # the migration thread has not let go of the guest yet
                        with contextlib.suppress(HostError):
                            await self._end_switch_over()
                        await asyncio.sleep(0.01)
        except TimeoutError as error:
            status = "not known"
            with contextlib.suppress(HostError):
                status = await self.migration_status()
            late = f"it is not resumed within {RESUME_LIMIT:.0f} s; its migration is {status}"
            raise self.error(late) from error

    async def _end_switch_over(self) -> None:
        """End a migration that waits for an agent which is no more: see qemu.mirrors."""
        if (await self.execute("query-migrate")).get("status") == "pre-switchover":
            await self.execute("migrate_cancel")

    async def press_power(self) -> None:
        self._comes_back = False
        await self.execute("system_powerdown")

    async def reboot(self) -> None:
        self._comes_back = True
        await self.execute("system_powerdown")

    async def reset(self) -> None:
        self._comes_back = False
        await self.execute("system_reset")

    async def cut_power(self) -> None:
        self.write_down(off=True)
        await self.quit()

    def write_down(self, **changes: Any) -> None:
        """Change what the next agent will know of it; what cannot be kept is logged, and stops nothing."""
        self._note = replace(self._note, **changes)
        try:
            notes.write(self.files, self._note)
        except OSError as error:
            log.error("qemu.note_not_written", vm=self.spec.id, error=str(error))

    async def quit(self) -> None:
        if self.alive:
            if not self._note.off:
                self.write_down(ending=True)  # Whatever becomes of us, it is not taken up again.
            with contextlib.suppress(HostError, TimeoutError):
                async with asyncio.timeout(QUIT_LIMIT):
                    await self.execute("quit")
            try:
                async with asyncio.timeout(QUIT_LIMIT):
                    await self.process.wait()
            except TimeoutError:
                log.warning("qemu.not_quitting_killed", vm=self.spec.id, pid=self.process.pid)
                self.kill()
        await self._watch
        if not self._note.off:
            notes.remove_what_has_ended(self.files)

    async def let_go(self) -> None:
        """Leave it as it is; another of us may take it up (QemuHypervisor.adopt)."""
        tasks = [task for task in (self._watch, self._pump, self._after_power_off) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.process.let_go()
        await disconnect(self._qmp)

    def kill(self, why: str = "") -> None:
        """End the process at once. `why` is told as the reason of its end."""
        self._why_killed = why
        self.process.kill()

    async def set_nics(self, nics: Sequence[NICSpec], gone: Collection[str]) -> None:
        await set_nics(self, nics)

    async def flap_link(self) -> None:
        names = (NIC_ID, *(f"nic{nic.slot}" for nic in self.spec.more_nics))
        try:
            for name in names:
                await self.execute("set_link", name=name, up=False)
            await asyncio.sleep(LINK_DOWN_SECONDS)
        finally:
            for name in names:
                await self.execute("set_link", name=name, up=True)

    async def take_disk(self, number: int, channel: Channel) -> None:
        await nbd_export.take_disk(self, number, channel)

    def frames_given(self) -> int:
        """How many frames its taps have given it."""
        return sum(frames_given(self.process.pid, port) for port in self.spec.ports)

    async def waiting(self) -> int:
        waiting = 0
        for port in self.spec.ports:
            received = await rx_frames(self._on_its_server, port)
            if self.alive and received:
                waiting += max(0, received - frames_given(self.process.pid, port))
        return waiting

    def hold_frames(self) -> HeldTaps | None:
        try:
            return HeldTaps(self.process.pid, self.spec.ports)
        except HostError as error:
            log.warning("tap.not_held", vm=self.spec.id, error=str(error))
            return None

    async def make_room(self, frames_a_second: float) -> None:
        """Let each of the VM's taps hold what comes for the VM while it is paused."""
        frames = queue_for(frames_a_second)
        if frames > QUEUE_FRAMES:
            for port in self.spec.ports:
                await self._on_its_server(["ip", "link", "set", "dev", port, "txqueuelen", str(frames)])

    async def drain(self, nothing_comes: bool) -> None:
        """Return when the VM has been given all that comes for it. See Divert."""
        ports, pid = self.spec.ports, self.process.pid
        await drain(ports, dict.fromkeys(ports, pid) if nothing_comes else {}, network=pid)

    async def _on_its_server(self, argv: Sequence[str]) -> str:
        return await run(["nsenter", "--target", str(self.process.pid), "--net", *argv])

    async def _hand_on_events(self) -> None:
        with self._qmp.listener() as events:
            async for event in events:
                self.publish(event)
                if event["event"] == "RESET":
                    self._on_event(StartedAnew(self.spec.id, event_time(event)))
                if event["event"] == "SHUTDOWN" and event["data"]["reason"] == SWITCHED_OFF:
                    # -no-shutdown: it waits for us.
                    work = self._start_anew() if self._comes_back else self._end_switched_off()
                    self._after_power_off = asyncio.create_task(work, name=f"{self.spec.id} is switched off")

    async def _start_anew(self) -> None:
        self._comes_back = False
        try:
            await self.execute("system_reset")
            await self.resume()
        except HostError as error:
            log.error("vm.not_rebooted", vm=self.spec.id, error=str(error))
            self.kill()

    async def _end_switched_off(self) -> None:
        self.write_down(off=True)
        await self.quit()

    async def _wait_for_end(self) -> None:
        await self.process.wait()
        notes.remove_sockets(self.files)
        self.publish({"event": EXITED})
        how = Ending.OFF if self._note.off else Ending.CRASHED
        reason = (
            "" if self._note.off else self._why_killed or f"its QEMU has ended{last_words(self.files.log)}"
        )
        for stream in self.kept:
            stream.close()
        self._on_event(Exited(self.spec.id, time.time(), how, reason))
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)
        await disconnect(self._qmp)

    def error(self, what: str) -> HypervisorError:
        return HypervisorError(f"VM {self.spec.id}, QEMU process {self.process.pid}: {what}")

    def last_words(self) -> str:
        return last_words(self.files.log)


def last_words(path: Path) -> str:
    """The last lines of QEMU's log, as the end of a sentence."""
    try:
        lines = path.read_text(errors="replace").strip()
    except OSError:
        lines = ""
    return f": {' / '.join(lines.splitlines()[-3:])}" if lines else ", and its log is empty"
