"""One running QEMU, spoken to by its monitor protocol (QMP)."""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog
from qemu.qmp import ExecuteError, QMPError

from retinue.hypervisor.argv import Files
from retinue.hypervisor.commands import run
from retinue.hypervisor.interface import Gone, HypervisorError, OnEvent, RunState, VMSpec
from retinue.hypervisor.process import Process
from retinue.hypervisor.quiet import frames_given, until_quiet
from retinue.hypervisor.taps import QUEUE_FRAMES, frames_come, queue_for

COMMAND_LIMIT = 10.0
QUIT_LIMIT = 5.0
DISCONNECT_LIMIT = 2.0
RESUME_LIMIT = 5.0

GONE = "GONE"
"""Name of the one event that is ours: the process has ended."""

log = structlog.get_logger()

# The library logs the end of every connection as an error; we report each failure ourselves.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)

QMPEvent = dict[str, Any]
EventQueue = asyncio.Queue[tuple["QemuMachine", QMPEvent]]

_STATES = {
    "running": RunState.RUNNING,
    "inmigrate": RunState.INCOMING,
    "postmigrate": RunState.MOVED,
    "internal-error": RunState.BROKEN,
    "guest-panicked": RunState.BROKEN,
    "io-error": RunState.BROKEN,
    "shutdown": RunState.BROKEN,
}


def event_time(event: QMPEvent) -> float:
    """Seconds since the epoch, by QEMU's own clock (QMP specification, "timestamp")."""
    stamp = event["timestamp"]
    return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6


class QemuMachine:
    """One QEMU process. Made by QemuHypervisor."""

    def __init__(self, spec: VMSpec, files: Files, process: Process, qmp: Any, on_event: OnEvent) -> None:
        self._spec = spec
        self.files = files
        self.process = process
        self._qmp = qmp
        self._on_event = on_event
        self._subscribers: list[EventQueue] = []
        self._pump = asyncio.create_task(self._hand_on_events(), name=f"QMP events of {spec.id}")
        self._watch = asyncio.create_task(self._wait_for_end(), name=f"QEMU of {spec.id}")

    @property
    def spec(self) -> VMSpec:
        return self._spec

    @property
    def alive(self) -> bool:
        return self.process.alive

    async def state(self) -> RunState:
        status = (await self.execute("query-status"))["status"]
        return _STATES.get(status, RunState.PAUSED)

    async def pause(self) -> None:
        await self.execute("stop")

    async def resume(self) -> None:
        try:
            async with asyncio.timeout(RESUME_LIMIT):
                while await self.state() is not RunState.RUNNING:
                    try:
                        await self.execute("cont")
                    except HypervisorError:  # the migration thread has not let go of the guest yet
                        await asyncio.sleep(0.01)
        except TimeoutError as error:
            raise self._error(f"it does not run on within {RESUME_LIMIT:.0f} s") from error

    async def quit(self) -> None:
        if self.alive:
            with contextlib.suppress(HypervisorError):
                await self.execute("quit")
            try:
                async with asyncio.timeout(QUIT_LIMIT):
                    await self.process.wait()
            except TimeoutError:
                log.warning("QEMU did not quit, killing it", vm=self.spec.id, pid=self.process.pid)
                self.kill()
        await self._watch
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)
        await disconnect(self._qmp)

    async def let_go(self) -> None:
        """Leave it as it is; another of us may take it up (QemuHypervisor.adopt)."""
        for task in (self._watch, self._pump):
            task.cancel()
        await asyncio.gather(self._watch, self._pump, return_exceptions=True)
        self.process.let_go()
        await disconnect(self._qmp)

    def kill(self) -> None:
        """End the process at once."""
        self.process.kill()

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Run one QMP command; "_" in the arguments' names stand for "-". Raises HypervisorError."""
        sent = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            async with asyncio.timeout(COMMAND_LIMIT):
                return await self._qmp.execute(command, sent or None)
        except TimeoutError as error:
            raise self._error(f"no answer to {command} within {COMMAND_LIMIT:.0f} s") from error
        except ExecuteError as error:
            raise self._error(f"{command} was refused: {error}") from error
        except (QMPError, OSError, EOFError) as error:
            if not self.alive:
                raise self._error(f"{command}: QEMU has ended{last_words(self.files.log)}") from error
            raise self._error(f"{command}: {error}") from error

    def frames_given(self) -> int:
        """How many frames its tap has given it."""
        return frames_given(self.process.pid, self.spec.port)

    async def waiting(self) -> int:
        come = await frames_come(self._on_its_server, self.spec.port)
        return max(0, come - self.frames_given()) if self.alive and come else 0

    async def make_room(self, frames_a_second: float) -> None:
        """Let its tap hold what comes for it while it stands still."""
        frames = queue_for(frames_a_second)
        if frames > QUEUE_FRAMES:
            await self._on_its_server(["ip", "link", "set", "dev", self.spec.port, "txqueuelen", str(frames)])

    async def until_quiet(self, nothing_comes: bool) -> None:
        """Return when the VM has been given all that comes for it. See Divert."""
        port, pid = self.spec.port, self.process.pid
        await until_quiet([port], {port: pid} if nothing_comes else {}, network=pid)

    async def give(self, end: socket.socket) -> str:
        """Give QEMU a socket of ours; returns what it is called in a migration. We may close it then."""
        self._qmp.send_fd_scm(end.fileno())
        await self.execute("getfd", fdname="memory")
        return "fd:memory"

    @contextlib.contextmanager
    def events_into(self, queue: EventQueue) -> Iterator[None]:
        """Put the machine's events into the queue, from now on; what happened before is not told.

        That matters to a VM that has moved here: its past holds a migration that was completed.
        """
        self._subscribers.append(queue)
        try:
            if not self.alive:
                queue.put_nowait((self, {"event": GONE}))
            yield
        finally:
            self._subscribers.remove(queue)

    async def _on_its_server(self, argv: Sequence[str]) -> str:
        return await run(["nsenter", "--target", str(self.process.pid), "--net", *argv])

    async def _hand_on_events(self) -> None:
        with self._qmp.listener() as heard:
            async for event in heard:
                self._publish(event)

    async def _wait_for_end(self) -> None:
        await self.process.wait()
        self._publish({"event": GONE})
        self._on_event(Gone(self.spec.id, time.time()))

    def _publish(self, event: QMPEvent) -> None:
        for queue in self._subscribers:
            queue.put_nowait((self, event))

    def _error(self, what: str) -> HypervisorError:
        return HypervisorError(f"VM {self.spec.id}, QEMU process {self.process.pid}: {what}")


async def disconnect(qmp: Any) -> None:
    """Close the connection. At the end of a QEMU the library reports its closing as an error; it is none.

    Nor is a library that does not come to an end with it anything to wait for.
    """
    closing = asyncio.ensure_future(qmp.disconnect())
    await asyncio.wait({closing}, timeout=DISCONNECT_LIMIT)
    if not closing.done():
        closing.cancel()
        return
    with contextlib.suppress(QMPError, OSError, EOFError):
        closing.result()


def last_words(path: Path) -> str:
    """What QEMU said last, as the end of a sentence."""
    try:
        said = path.read_text(errors="replace").strip()
    except OSError:
        said = ""
    return f": {' / '.join(said.splitlines()[-3:])}" if said else ", and it said nothing"
