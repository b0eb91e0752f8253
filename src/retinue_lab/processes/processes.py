"""Programs run from inside the sandbox: the short ones awaited, the long ones supervised.

The sandbox's first process alone has a supervisor. A long-running program is ready when it says so: by
leaving the foreground (Open vSwitch), by a line of output (Kea), or by writing "ready" to the file descriptor
whose number is in RETINUE_READY_FD (our own). Nothing here waits by the clock, but for an upper bound.
"""

import asyncio
import contextlib
import os
import shlex
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from retinue_lab.errors import LabError
from retinue_lab.processes.state import DaemonStatus
from retinue_lab.topology.topology import SANDBOX

HOST_PROC = Path("/run/host-proc")
"""The host's /proc as it was before the sandbox mounted its own: it has the host's number of each process."""
READY_FD = "RETINUE_READY_FD"
READY_TIMEOUT = 60.0
"""Seconds a program may take to become ready."""
CLOSE_TIMEOUT = 1.0
"""Seconds between a program's pipe closing and its end, if that is why it closed."""

Popen = Callable[[str, Sequence[str]], Awaitable[asyncio.subprocess.Process]]
"""Starts a program on the node of that name; its standard input, output and error are pipes."""

log = structlog.get_logger()


def in_node(node: str, argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` in a node's network namespace."""
    return list(argv) if node == SANDBOX else ["ip", "netns", "exec", node, *argv]


async def run(
    argv: Sequence[str], *, node: str = SANDBOX, text: str = "", env: Mapping[str, str] | None = None
) -> str:
    """Run a program to its end, `text` on its standard input; return its output.

    Raises LabError with the command, the exit code and its complaint if it fails.
    """
    process = await asyncio.create_subprocess_exec(
        *in_node(node, argv),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    out, err = await process.communicate(text.encode())
    if process.returncode != 0:
        complaint = (err or out).decode(errors="replace").strip()
        where = "" if node == SANDBOX else f" on {node}"
        raise LabError(f"{shlex.join(argv)[:200]}{where} ended with code {process.returncode}: {complaint}")
    return out.decode(errors="replace")


async def popen(node: str, argv: Sequence[str]) -> asyncio.subprocess.Process:
    """`Popen` for a process that is in the sandbox itself."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*in_node(node, argv), stdin=pipe, stdout=pipe, stderr=pipe)


@dataclass(slots=True)
class Daemon:
    """A program that the sandbox's first process started and that runs, or has run, on a node."""

    name: str
    node: str
    pid: int
    host_pid: int | None
    log: Path
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def running(self) -> bool:
        return not self.ended.is_set()

    @property
    def status(self) -> DaemonStatus:
        return DaemonStatus(self.name, self.node, self.pid, self.host_pid, self.running, str(self.log))


class Supervisor:
    """The long-running programs. `on_end` is called for each that ends; it stays in the list, not running,
    until another takes its name.
    """

    def __init__(self, logs: Path, env: Mapping[str, str], on_end: Callable[[Daemon], None]) -> None:
        self.logs = logs
        self.env = dict(env)
        self.on_end = on_end
        self.daemons: list[Daemon] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(
        self,
        name: str,
        node: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        ready_fd: bool = False,
        ready_line: str = "",
    ) -> Daemon:
        """Start a program in the foreground of the sandbox; return once it is ready.

        `ready_fd`: it writes "ready" to the descriptor named by RETINUE_READY_FD. `ready_line`: a line of its
        output has this text. Neither: it is taken as ready. Raises LabError with its last words if it ends
        first.
        """
        path = self.logs / f"{name}.log"
        receiver, sender = os.pipe() if ready_fd or ready_line else (None, None)
        extra = {READY_FD: str(sender)} if ready_fd else {}
        with path.open("ab", buffering=0) as sink:
            try:
                process = await asyncio.create_subprocess_exec(
                    *in_node(node, argv),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=sender if ready_line and sender is not None else sink,
                    stderr=asyncio.subprocess.STDOUT,
                    env={**os.environ, **self.env, **(env or {}), **extra},
                    pass_fds=(sender,) if ready_fd and sender is not None else (),
                )
            except BaseException:
                if receiver is not None:
                    os.close(receiver)
                raise
            finally:
                if sender is not None:
                    os.close(sender)
        daemon = self._add(name, node, process.pid, path)
        self._background(self._await_child(daemon, process))
        if receiver is not None:
            await self._ready(daemon, receiver, ready_line or "ready", copy=bool(ready_line))
        return daemon

    async def start_detached(
        self,
        name: str,
        node: str,
        argv: Sequence[str],
        pidfile: Path,
        *,
        env: Mapping[str, str] | None = None,
    ) -> Daemon:
        """Start a program that leaves the foreground when it is ready and has written its pid file."""
        await run(argv, node=node, env={**self.env, **(env or {})})
        pid = int(pidfile.read_text())
        daemon = self._add(name, node, pid, self.logs / f"{name}.log")
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._end(daemon, "at once")
            raise LabError(f"{name} ended at once: {last_words(daemon.log)}") from None
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(fd)
            os.close(fd)
            self._end(daemon, "unknown")

        loop.add_reader(fd, ended)
        return daemon

    def running(self, name: str) -> Daemon | None:
        return next((d for d in self.daemons if d.name == name and d.running), None)

    def free_name(self, name: str) -> str:
        """`name`, or with a number behind it if a program of that name runs."""
        taken = {d.name for d in self.daemons if d.running}
        numbered = (f"{name}-{n}" for n in range(2, len(taken) + 3))
        return name if name not in taken else next(n for n in numbered if n not in taken)

    def _add(self, name: str, node: str, pid: int, path: Path) -> Daemon:
        daemon = Daemon(name, node, pid, host_pids().get(pid), path)
        self.daemons = [d for d in self.daemons if d.running or d.name != name]
        self.daemons.append(daemon)
        log.info("daemon.started", daemon=name, node=node, pid=pid)
        return daemon

    def _end(self, daemon: Daemon, code: int | str) -> None:
        daemon.ended.set()
        log.warning("daemon.ended", daemon=daemon.name, node=daemon.node, pid=daemon.pid, code=code)
        self.on_end(daemon)

    async def _await_child(self, daemon: Daemon, process: asyncio.subprocess.Process) -> None:
        self._end(daemon, await process.wait())

    async def _ready(self, daemon: Daemon, fd: int, text: str, *, copy: bool) -> None:
        """Read lines from `fd` until one has the text; with `copy` go on and write all of them to the log."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
        )
        ready = asyncio.Event()
        reading = self._background(_read(reader, text, ready, daemon.log if copy else None))
        waiting = asyncio.ensure_future(ready.wait())
        try:
            await asyncio.wait({waiting, reading}, timeout=READY_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            if not copy:
                reading.cancel()
                transport.close()
        if ready.is_set():
            return
        why = f"did not become ready in {READY_TIMEOUT:.0f} s"
        if reading.done() and not reading.cancelled():
            why = "closed its pipe before it was ready"
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(daemon.ended.wait(), CLOSE_TIMEOUT)
                why = "ended before it was ready"
        raise LabError(f"{daemon.name} {why}: {last_words(daemon.log)}")

    def _background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _read(reader: asyncio.StreamReader, text: str, ready: asyncio.Event, copy: Path | None) -> None:
    with copy.open("ab", buffering=0) if copy else contextlib.nullcontext() as sink:
        while line := await reader.readline():
            if sink is not None:
                sink.write(line)
            if text.encode() in line:
                ready.set()


def last_words(path: Path, lines: int = 3) -> str:
    """The end of a log, on one line."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return "it wrote no log"
    kept = [line.strip() for line in text.splitlines() if line.strip()][-lines:]
    return f"{' / '.join(kept) or 'the log is empty'} (log: {path})"


def host_pids() -> dict[int, int]:
    """The host's number of each process below the sandbox's first one, by the sandbox's own number."""
    found: dict[int, int] = {}
    waiting = [first_host_pid()]
    while waiting:
        pid = waiting.pop()
        with contextlib.suppress(OSError):  # ended meanwhile
            status = (HOST_PROC / str(pid) / "status").read_text()
            numbers = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
            found[int(numbers[1])] = pid
            for children in (HOST_PROC / str(pid) / "task").glob("*/children"):
                waiting.extend(int(child) for child in children.read_text().split())
    return found


def first_host_pid() -> int:
    """The host's number of the sandbox's first process: own parent, or this one itself."""
    own = int((HOST_PROC / "self").readlink().name)
    if os.getpid() == 1:
        return own
    status = (HOST_PROC / str(own) / "status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:"))
