"""A lab seen from the host: start it, find it, run programs in its nodes, end it.

The sandbox is one `unshare` with user, mount, net, pid and uts namespaces of its own. Nothing in it reaches
the host, and when its first process ends the kernel ends the rest. What a lab leaves on the host while it
runs is one directory (see state), and `down` removes it.
"""

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

import retinue
from retinue.protocol import json_lines
from retinue.protocol.json_lines import RequestError
from retinue_lab.errors import LabError
from retinue_lab.guest import image
from retinue_lab.network import agents, credentials, libvirtd, switches
from retinue_lab.processes import host, state
from retinue_lab.processes.processes import last_words
from retinue_lab.processes.state import DaemonStatus, Directory, LabStatus, Settings
from retinue_lab.sandbox.init import DESCRIPTORS
from retinue_lab.topology import topology_file
from retinue_lab.topology.topology import SANDBOX, Topology

DEFAULT_NAME = "default"
NAMESPACES = ("--user", "--net", "--mount", "--pid", "--uts")
STOP_SECONDS = 10.0
REQUEST_SECONDS = 60.0

_started: dict[Path, tuple[subprocess.Popen[bytes], int]] = {}
"""Labs this process started: the `unshare` to be reaped, and this end of the tie (-1: none)."""


@dataclass(frozen=True, slots=True)
class LabHandle:
    """A running lab. `init_pid` is the sandbox's first process, as the host numbers it."""

    name: str
    directory: Path
    init_pid: int
    topology: Topology

    def beside(self) -> "LabHandle":
        """The lab's other domain, as a lab of its own; `down` ends both. Raises LabError."""
        other = self.topology.other
        if other is None:
            raise LabError(f"lab {self.name} has one domain only")
        return LabHandle(self.name, self.directory / other.domain, self.init_pid, other)

    def command(self, node: str, argv: Sequence[str]) -> list[str]:
        """The command on the host that runs `argv` in a node, for those who start processes themselves.

        It works where it is started, as far as that folder is seen in the sandbox; it is ended (SIGTERM) when
        the process the host sees is. Raises LabError when there is no such node.
        """
        if node not in (SANDBOX, *self.topology.nodes):
            known = ", ".join((SANDBOX, *self.topology.nodes))
            raise LabError(f"there is no node {node!r} in lab {self.name}; it has {known}")
        enter = [
            host.program("nsenter"),
            "--target",
            str(self.init_pid),
            *NAMESPACES,
            "--preserve-credentials",
        ]
        inside = [] if node == SANDBOX else ["ip", "netns", "exec", node]
        here = Path.cwd()
        hidden = any(here.is_relative_to(own) for own in ("/run", "/proc", "/sys"))
        env = {
            "PATH": host.search_path(),
            **(switches.env(node) if node in switches.nodes(self.topology) else {}),
            **libvirtd.env(self.topology, node),
            **credentials.manager(self.directory).environment,
        }
        words = [f"{key}={value}" for key, value in env.items()]
        return [
            *(*enter, "--", "setpriv", "--pdeathsig", "TERM", *inside),
            *("env", "-C", "/" if hidden else str(here), *words, *argv),
        ]

    def exec(self, node: str, argv: Sequence[str], **popen: Any) -> subprocess.CompletedProcess[Any]:
        """Run a program in a node to its end. Keywords are those of `subprocess.run`."""
        return subprocess.run(self.command(node, argv), **popen)

    def popen(self, node: str, argv: Sequence[str], **popen: Any) -> subprocess.Popen[Any]:
        """Start a program in a node. Keywords are those of `subprocess.Popen`."""
        return subprocess.Popen(self.command(node, argv), **popen)

    def request(self, timeout: float = REQUEST_SECONDS, **message: Any) -> dict[str, Any]:
        """Ask the lab's first process something (see service). Raises LabError if it cannot, or has ended."""
        path = Directory(self.directory).socket
        try:
            return json_lines.ask_blocking(path, f"lab {self.name}", timeout, **message)
        except RequestError as error:
            raise LabError(str(error)) from error

    def status(self) -> LabStatus:
        """The lab as it is right now."""
        return state.status_of(self.request(do="status")["status"])

    def daemons(self) -> list[DaemonStatus]:
        """Those of the status; the whole of it costs some dozen programs, and this none."""
        return msgspec.convert(self.request(do="daemons")["daemons"], list[DaemonStatus])

    def spawn(
        self,
        node: str,
        argv: Sequence[str],
        *,
        log: str = "",
        env: Mapping[str, str] | None = None,
        ready: bool = False,
    ) -> dict[str, Any]:
        """Start a program that outlives us, a child of the lab: its name, pid, host_pid and log."""
        return self.request(do="spawn", node=node, argv=list(argv), log=log, env=dict(env or {}), ready=ready)

    def kill(self, pid: int, number: int = signal.SIGTERM) -> None:
        """Send a signal to a program the lab started, by its pid in the sandbox."""
        self.request(do="kill", pid=pid, signal=int(number))

    def start_controller(self, node: str = "") -> None:
        """Start the controller, or start it again once it has ended; return when it answers. `node`: of one
        of several."""
        self.request(do="start_controller", node=node)

    def start_database(self, node: str) -> None:
        """Start a server of the database that controllers share, once it has ended."""
        self.request(do="start_database", node=node)

    def announce(self) -> dict[str, bool]:
        """Let every server ask for its gateway by ARP; for each, whether it was answered."""
        answered: dict[str, bool] = self.request(do="announce")["answered"]
        return answered

    def down(self) -> None:
        """End the lab; nothing of it is left."""
        down(self.name)


# ---- start ----


def up(
    name: str = DEFAULT_NAME,
    network: Topology | Path | str | None = None,
    *,
    start_controller: bool = True,
    start_driver: bool = False,
    wait: float = 180,
    progress: Callable[[str], None] = lambda text: None,
    tie_to_parent: bool = False,
) -> LabHandle:
    """Build a lab and return when all of it is up, or raise LabError with one sentence.

    `network` is a topology or its file (None: the default). `wait` bounds the whole thing in seconds.
    With `tie_to_parent` the lab ends when this process does; without, it goes on until `down`.
    """
    host.check()
    plan = network if isinstance(network, Topology) else topology_file.load(network)
    if start_driver:
        _make_guest(progress, agents.guest_kind(plan))
    libvirtd.check(plan)
    where = state.directory(name)
    state.create_base()
    settings = Settings(name, plan, start_controller, start_driver, _make_roomy())
    with _fresh(where) as lock:
        where.settings.write_bytes(state.encode(settings))
        init_pid = _start(where, lock, wait, progress, tie_to_parent)
    return LabHandle(name, where.path, init_pid, plan)


def _make_guest(progress: Callable[[str], None], kind: image.Kind) -> None:
    """The VMs' image, made here once: inside the sandbox there is no network to fetch its parts from."""
    try:
        image.ensure_guest(progress, kind)
    except image.GuestError as error:
        raise LabError(f"cannot make the VMs' image: {error}") from error


def _make_roomy() -> str:
    try:
        image.ensure_late_pages()  # For agents, which find it in the cache.
        return str(image.ensure_roomy())
    except image.GuestError as error:
        raise LabError(f"cannot make what switches and agents are started with: {error}") from error


@contextlib.contextmanager
def _fresh(where: Directory) -> Iterator[int]:
    """The lab's directory, empty, and its lock, held. Raises LabError when a lab of that name runs."""
    where.path.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(where.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(lock), where.lock.stat())
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            name = where.path.name
            raise LabError(f"lab {name} runs already: `retinue lab down --name {name}` ends it")
        for path in where.path.iterdir():
            if path == where.lock:
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        where.logs.mkdir()
        yield lock
    finally:
        os.close(lock)


def _start(
    where: Directory, lock: int, wait: float, progress: Callable[[str], None], tie_to_parent: bool
) -> int:
    """Start the first process and listen until it reports that all is up; return its pid."""
    listen, report = os.pipe()
    tied, tie = os.pipe() if tie_to_parent else (-1, -1)
    given = [fd for fd in (report, lock, tied) if fd >= 0]
    package = str(Path(retinue.__file__).parents[1])
    python_path = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    env = {
        **os.environ,
        "PATH": host.search_path(),
        "PYTHONPATH": os.pathsep.join(python_path),
        DESCRIPTORS: f"{report},{lock},{tied}",
        # A lab trusts its own authority; to read the host's costs each Python program a fifth of its start.
        "SSL_CERT_FILE": os.devnull,
        "SSL_CERT_DIR": os.devnull,
    }
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(os.close, listen)
        try:
            with (where.logs / "init.log").open("ab") as sink:
                process = subprocess.Popen(
                    [
                        *(host.program("unshare"), *NAMESPACES, "--map-root-user", "--fork", "--kill-child"),
                        *(sys.executable, "-P", "-m", "retinue_lab.sandbox.init", str(where.path)),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    pass_fds=given,
                    start_new_session=True,
                    env=env,
                )
        finally:
            os.close(report)
            if tied >= 0:
                os.close(tied)
        _started[where.path] = (process, tie)
        try:
            return _listen(where, listen, time.monotonic() + wait, wait, progress)
        except BaseException:
            _abort(where, process)
            raise


def _abort(where: Directory, process: subprocess.Popen[bytes]) -> None:
    """End a lab that is not to come up; return when nothing of it runs."""
    with contextlib.suppress(LabError, ProcessLookupError):
        init_pid = _init_pid(where)
        if _parent(init_pid) == process.pid:
            _end(init_pid, signal.SIGKILL)
    process.kill()  # and with it, by --kill-child, a first process whose pid is not known yet
    _reap(where)


def _listen(
    where: Directory, listen: int, deadline: float, wait: float, progress: Callable[[str], None]
) -> int:
    waiting = b""
    while True:
        readable, _, _ = select.select([listen], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            raise LabError(f"the lab did not come up in {wait:.0f} s (logs: {where.logs})")
        received = os.read(listen, 65536)
        if not received:
            raise LabError(_why_it_ended(where))
        waiting += received
        *lines, waiting = waiting.split(b"\n")
        for line in lines:
            match json.loads(line):
                case {"progress": str(text)}:
                    progress(text)
                case {"ready": int(pid)}:
                    return pid
                case {"error": str(text)}:
                    raise LabError(text)


def _why_it_ended(where: Directory) -> str:
    words = last_words(where.logs / "init.log")
    if "unshare:" in words:
        return (
            f"this user may not make namespaces ({words}): run the lab as root, or allow it with "
            "`sysctl kernel.unprivileged_userns_clone=1` "
            "(Ubuntu: `sysctl kernel.apparmor_restrict_unprivileged_userns=0`)"
        )
    return f"the lab's first process ended: {words}"


# ---- find and end ----


def handle(name: str = DEFAULT_NAME) -> LabHandle:
    """The running lab of that name. Raises LabError when there is none."""
    where = state.directory(name)
    if not state.locked(where):
        why = f" (it did not come up: {where.error.read_text().strip()})" if where.error.exists() else ""
        raise LabError(f"there is no lab {name}{why}: `retinue lab up --name {name}` starts one")
    if not where.status.exists():
        raise LabError(f"lab {name} is only being started")
    settings = state.decode_settings(where.settings.read_bytes())
    return LabHandle(name, where.path, _init_pid(where), settings.topology)


def list_labs() -> list[str]:
    """Names of the labs that run, or are being started."""
    return [name for name in state.names() if state.locked(state.directory(name))]


def down(name: str = DEFAULT_NAME) -> None:
    """End a lab and remove its directory. Raises LabError when there is neither."""
    where = state.directory(name)
    if not where.path.exists():
        raise LabError(f"there is no lab {name}")
    if state.locked(where):
        _end(_init_pid(where))
    _reap(where)
    shutil.rmtree(where.path, ignore_errors=True)


def _init_pid(where: Directory) -> int:
    try:
        return int(where.pid.read_text())
    except (OSError, ValueError) as error:
        raise LabError(f"lab {where.path.name} is only being started") from error


def _end(init_pid: int, *signals: signal.Signals) -> None:
    """Send the first process the signals, one after the other while it runs (by default TERM, then KILL).

    Returns when the first process, its children and its `unshare` have ended.
    """
    with contextlib.ExitStack() as cleanup:
        watched = []
        for pid in (init_pid, _parent(init_pid)):
            with contextlib.suppress(ProcessLookupError):
                watched.append(os.pidfd_open(pid))
                cleanup.callback(os.close, watched[-1])
        if not watched:
            return
        for number in signals or (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(watched[0], number)
            deadline = time.monotonic() + STOP_SECONDS
            if all(_gone(fd, deadline) for fd in watched):
                return
        raise LabError(f"process {init_pid} does not end")


def _gone(pidfd: int, deadline: float) -> bool:
    return bool(select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))[0])


def _parent(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError as error:
        raise ProcessLookupError(pid) from error
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("PPid:"))


def _reap(where: Directory) -> None:
    """Collect the `unshare` of a lab that this process started and that has ended."""
    process, tie = _started.pop(where.path, (None, -1))
    if tie >= 0:
        os.close(tie)
    if process is not None:
        process.wait(STOP_SECONDS)
