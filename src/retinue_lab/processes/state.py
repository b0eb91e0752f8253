"""A lab's directory on the host, and the forms of its settings and status.

Outside and inside of the sandbox meet here only: the directory is the one place that both see.
"""

import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from retinue.socket_addresses import fits
from retinue_lab.errors import LabError
from retinue_lab.topology.topology import Topology
from retinue_lab.topology.topology_file import decode_hook, encode_hook


class NodeStatus(msgspec.Struct, frozen=True):
    """`pid` is the node's main daemon as the host numbers it, None where there is none."""

    pid: int | None
    netns: str
    addresses: list[str]
    """With prefix length: "10.0.0.11/24"."""
    interfaces: list[str]
    env: dict[str, str]
    """What a program run in the node finds in its environment, such as OVS_RUNDIR."""


class SwitchStatus(msgspec.Struct, frozen=True):
    node: str
    bridge: str
    dpid: int
    role: str
    ports: dict[str, int]
    """Port number by name, the bridge's own (LOCAL) port left out."""


class DaemonStatus(msgspec.Struct, frozen=True):
    name: str
    node: str
    pid: int
    """As numbered in the sandbox."""
    host_pid: int | None
    running: bool
    log: str


class LabStatus(msgspec.Struct, frozen=True):
    name: str
    init_pid: int
    """The sandbox's first process, as the host numbers it. When it ends, everything ends."""
    started_at: float
    """Seconds since the epoch."""
    versions: dict[str, str]
    nodes: dict[str, NodeStatus]
    switches: dict[str, SwitchStatus]
    daemons: list[DaemonStatus]
    controller_url: str | None
    """None when the lab was started without a controller."""
    topology: Topology
    directory: str


class Settings(msgspec.Struct, frozen=True):
    """What `up` asks of the sandbox's first process."""

    name: str
    topology: Topology
    start_controller: bool
    start_driver: bool
    roomy: str
    """The library that each switch is started with (switch/roomy.c)."""


@dataclass(frozen=True, slots=True)
class Directory:
    """The files of one lab."""

    path: Path

    @property
    def lock(self) -> Path:
        """Held (flock) by the lab's first process: locked means the lab is alive."""
        return self.path / "lock"

    @property
    def pid(self) -> Path:
        return self.path / "init.pid"

    @property
    def settings(self) -> Path:
        return self.path / "settings.json"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def error(self) -> Path:
        """The one sentence of a lab that did not come up."""
        return self.path / "error"

    @property
    def socket(self) -> Path:
        """Where the first process takes requests (see service)."""
        return self.path / "init.sock"

    @property
    def logs(self) -> Path:
        return self.path / "logs"


def base() -> Path:
    """The folder of all labs of this user: $RETINUE_LAB_DIR, or one below /tmp."""
    given = os.environ.get("RETINUE_LAB_DIR")
    if given:
        return Path(given).absolute()
    user = os.geteuid()
    return Path("/tmp/retinue-labs" if user == 0 else f"/tmp/retinue-labs-{user}")


def directory(name: str) -> Directory:
    """The directory of the lab of that name, which need not exist. Raises LabError for an unusable name."""
    if not name or not all(c.isascii() and (c.isalnum() or c in "-_") for c in name):
        raise LabError(f"{name!r} is no name for a lab: use letters, digits, - and _")
    found = Directory(base() / name)
    if not fits(found.socket):
        raise LabError(f"{found.path} is too long for a socket's path: set RETINUE_LAB_DIR to a shorter one")
    if found.path.is_relative_to("/run") or found.path.is_relative_to("/proc"):
        raise LabError(
            f"{found.path}: the sandbox has a /run and /proc of its own; set RETINUE_LAB_DIR elsewhere"
        )
    return found


def create_base() -> None:
    """Make the folder of all labs. Raises LabError when it belongs to another user."""
    folder = base()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.lstat()
    except OSError as error:
        raise LabError(f"cannot make {folder}: {error.strerror}; set RETINUE_LAB_DIR") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise LabError(f"{folder} is not a folder of this user; set RETINUE_LAB_DIR to one that is")


def locked(where: Directory) -> bool:
    """True when the lab's first process is alive, or the lab is being started."""
    try:
        fd = os.open(where.lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def names() -> list[str]:
    """Names of the labs that have a directory, running or not."""
    try:
        return sorted(path.parent.name for path in base().glob("*/lock"))
    except OSError:
        return []


def encode(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=encode_hook))


def status_of(value: Any) -> LabStatus:
    """The status from decoded JSON."""
    return msgspec.convert(value, LabStatus, dec_hook=decode_hook)


def decode_settings(data: bytes) -> Settings:
    return msgspec.json.decode(data, type=Settings, dec_hook=decode_hook)
