"""First process of a lab's sandbox: builds the lab, serves it, and takes everything along when it ends.

Run by `handle.up` through `unshare` as `python -m retinue_lab.sandbox.init DIRECTORY`. It splits in two:
process 1 only reaps whatever loses its parent, its child does the work. When the child ends, process 1 ends,
and with it, by the kernel's rule for pid namespaces, every process of the sandbox.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import structlog

from retinue_lab.errors import LabError
from retinue_lab.network.builder import Lab
from retinue_lab.processes import state
from retinue_lab.processes.processes import HOST_PROC, Daemon, first_host_pid
from retinue_lab.processes.state import Directory, Settings
from retinue_lab.sandbox.service import Service

DESCRIPTORS = "RETINUE_LAB_DESCRIPTORS"
"""Environment variable with the numbers of three file descriptors, from `handle.up`: see Descriptors."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Descriptors:
    """File descriptors that the sandbox's first process inherits."""

    reports: int
    """Pipe to whoever starts the lab: one JSON object a line with "progress", "ready" or "error"."""
    lock: int
    """The lab's lock, held while process 1 lives."""
    tie: int
    """Pipe from the process that the lab must not outlive; -1: there is none."""

    @classmethod
    def take(cls) -> "Descriptors":
        """From the environment; no program started later gets them."""
        found = cls(*map(int, os.environ.pop(DESCRIPTORS).split(",")))
        for fd in (found.reports, found.lock, found.tie):
            if fd >= 0:
                os.set_inheritable(fd, False)
        return found


class StartupReports:
    """Lines to whoever starts the lab. That nobody reads them any more is no reason to fail."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def send(self, **message: Any) -> None:
        if self.fd >= 0:
            try:
                os.write(self.fd, msgspec.json.encode(message) + b"\n")
            except BrokenPipeError:
                self.fd = -1

    def progress(self, text: str) -> None:
        log.info("lab.progress", step=text)
        self.send(progress=text)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def main() -> NoReturn:
    where = Directory(Path(sys.argv[1]))
    descriptors = Descriptors.take()
    reports = StartupReports(descriptors.reports)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "event"], bool_as_flag=False
            ),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        settings = state.decode_settings(where.settings.read_bytes())
        _mount()
        where.pid.write_text(f"{first_host_pid()}\n")
        socket.sethostname(f"retinue-{settings.name}"[:64])
    except (LabError, OSError, msgspec.MsgspecError) as error:
        _give_up(where, reports, error)
    child = os.fork()
    if child:
        reports.close()
        if descriptors.tie >= 0:
            os.close(descriptors.tie)
        sys.exit(_reap_until_gone(child))
    os.close(descriptors.lock)
    try:
        asyncio.run(_work(where, settings, reports, descriptors.tie))
    except Exception as error:
        _give_up(where, reports, error)
    sys.exit("the work ends the process itself")


def _give_up(where: Directory, reports: StartupReports, error: BaseException) -> NoReturn:
    """Say in one sentence why, the traceback in the log only, and end at once."""
    log.error("lab.not_up", exc_info=error)
    sentence = str(error)
    if not isinstance(error, LabError | OSError):
        sentence = f"defect in the lab: {type(error).__name__}: {error} (log: {where.logs / 'init.log'})"
    sentence = " / ".join(filter(None, map(str.strip, sentence.splitlines())))
    where.error.write_text(f"{sentence}\n")
    reports.send(error=sentence)
    sys.stderr.flush()
    os._exit(1)


def _mount() -> None:
    """A /run and a /proc of the sandbox's own; the host's /proc stays visible below /run.

    Raises LabError when the kernel does not let us.
    """
    run = [["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"]]
    if not Path("/var/run").is_symlink():
        run.append(["mount", "--bind", "/run", "/var/run"])
    for argv in run:
        _must(argv)
    for folder in (HOST_PROC, Path("/run/netns"), Path("/run/lock")):
        folder.mkdir()
    _must(["mount", "--rbind", "/proc", str(HOST_PROC)])
    _must(["mount", "-t", "proc", "proc", "/proc"])


def _must(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(
            f"cannot make the sandbox: {' '.join(argv)}: {done.stderr.strip()} "
            "(a container must be started with the right to mount /proc: systempaths=unconfined)"
        )


def _reap_until_gone(child: int) -> int:
    """Process 1's whole work: collect every process that ends, until the child does; return its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status) & 0xFF


async def _work(where: Directory, settings: Settings, reports: StartupReports, tie: int) -> None:
    """Build the lab, then serve it until it is told to stop or the process it is tied to has ended.

    Ends the process itself, without cancelling what is under way: the kernel ends all of it, and cancelling
    the start of a program can wait for ever (asyncio's transports, when their pipes are not yet connected).
    """
    loop = asyncio.get_running_loop()
    if sys.version_info < (3, 12):  # later versions watch children by pidfd anyway
        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(loop)
        asyncio.set_child_watcher(watcher)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stopping.set)
    if tie >= 0:
        loop.add_reader(tie, stopping.set)
    changed = asyncio.Event()

    def ended(_: Daemon) -> None:
        changed.set()

    lab = Lab(where, settings, ended)
    async with contextlib.AsyncExitStack() as sockets:
        for one in (lab, lab.other):
            if one is not None:
                one.where.path.mkdir(exist_ok=True)
                await sockets.enter_async_context(Service(one, stopping.set).serving(one.where.socket))
        serving = asyncio.ensure_future(_serve(lab, reports, changed))
        stopped = asyncio.ensure_future(stopping.wait())
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done() and (error := serving.exception()) is not None:
            _give_up(where, reports, error)
    log.info("lab.stopped")
    sys.stderr.flush()
    os._exit(0)


async def _serve(lab: Lab, reports: StartupReports, changed: asyncio.Event) -> None:
    await lab.build(reports.progress)
    await _write_status(lab)
    reports.send(ready=first_host_pid())
    reports.close()
    while True:
        await changed.wait()
        changed.clear()
        await _write_status(lab)


async def _write_status(lab: Lab) -> None:
    path = lab.where.status
    draft = path.with_suffix(".new")
    draft.write_bytes(state.encode(await lab.status()))
    draft.rename(path)


if __name__ == "__main__":
    main()
