"""Machines with a Debian 12 that systemd has booted, as those that packages are installed on.

Each is a container of systemd-nspawn with a network of its own, with all capabilities and the system calls
that services may have, and with cgroups of version 2 alone, as a Debian 12 has them. All of them live in
namespaces of one process, the keeper: when it ends the kernel ends the rest. Of cgroups there is a folder,
removed at the end; on the host nothing is left. The kernel is this machine's; no module is loaded into it.
"""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from retinue_lab.guest import image

SUITE = "bookworm"
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "python3", "procps", "iproute2", "iputils-ping", "ethtool"),
    *("openvswitch-switch", "qemu-system-x86", "python3-libvirt", "man-db"),
    *("libvirt-daemon-system", "libvirt-clients", "openssh-server", "openssh-client"),
)
"""On each machine, before anything of ours: with what our packages need, for inside there is no mirror."""
PROGRAMS = ("mmdebstrap", "systemd-nspawn", "unshare", "nsenter", "ip", "qemu-system-x86_64")
LEFT_OUT = (
    *("var/log", "var/cache", "var/lib/dpkg", "var/lib/apt", "var/lib/systemd", "tmp", "var/tmp"),
    *("var/backups", "var/lib/logrotate"),  # Written at midnight.
)
BOOT_LIMIT, END_LIMIT, COMMAND_LIMIT = 180.0, 30.0, 300.0

_KEEPER = """
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
umount -l -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
echo ready
exec sleep infinity
"""
_BOOT = """
mkdir /sys/fs/cgroup/NAME
echo $$ > /sys/fs/cgroup/NAME/cgroup.procs
export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 SYSTEMD_NSPAWN_API_VFS_WRITABLE=network
exec systemd-nspawn --quiet --boot --directory=ROOT --machine=NAME --hostname=NAME \\
    --register=no --keep-unit --network-namespace-path=/run/netns/NAME --capability=all \\
    --system-call-filter='@debug @system-service' --bind=/dev/net/tun --console=pipe \\
    --link-journal=no --resolv-conf=off --timezone=off --bind-ro=GUEST:/srv/guest
"""


def missing() -> str:
    """Why there can be no such machines here; "" where there can."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"no {', '.join(absent)}: make test-packages installs it"
    if os.geteuid() != 0:
        return "needs root"
    if _cgroups() is None:
        return "no cgroups of version 2 are mounted here"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "no overlayfs in this kernel"
    return ""


def _cgroups() -> Path | None:
    """Where cgroups of version 2 are: beside those of version 1, where these are used."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(place)
    return None


def ensure_system() -> Path:
    """A Debian 12 as an archive, made now if it is not in the cache: some minutes, with Debian's mirror."""
    digest = hashlib.sha256(" ".join((SUITE, *PACKAGES)).encode()).hexdigest()[:16]
    made = image.cache() / f"debian-{digest}.tar"
    if not made.exists():
        image.cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=image.cache(), prefix="building-") as scratch:
            new = Path(scratch) / "debian.tar"
            argv = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
            subprocess.run([*argv, SUITE, str(new)], check=True)
            new.replace(made)
    return made


@dataclass(frozen=True)
class Machine:
    """One that has booted. `leader`: its first process, as the host numbers it."""

    name: str
    leader: int

    @property
    def files(self) -> Path:
        """Its files, seen from the host."""
        return Path(f"/proc/{self.leader}/root")

    def command(self, *argv: str) -> list[str]:
        """The command on the host that runs `argv` there, as root with an empty environment."""
        enter = ["nsenter", "--target", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return [*enter, "env", "-i", "-C", "/root", path, "HOME=/root", "LC_ALL=C.UTF-8", "TERM=dumb", *argv]

    def run(self, *argv: str, check: bool = True, limit: float = COMMAND_LIMIT) -> str:
        """What it prints, errors among it."""
        done = subprocess.run(
            self.command(*argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
        )
        assert not check or done.returncode == 0, f"{argv} on {self.name}: {done.returncode}: {done.stdout}"
        return done.stdout

    def sh(self, script: str, *, check: bool = True, limit: float = COMMAND_LIMIT) -> str:
        return self.run("sh", "-ec", script, check=check, limit=limit)

    def eventually(self, *argv: str, until: str, limit: float = 60.0) -> str:
        """Ask again until the answer has this."""
        end = time.monotonic() + limit
        while until not in (said := self.run(*argv, check=False)):
            assert time.monotonic() < end, f"{argv} on {self.name}: no {until!r} in {said}"
            time.sleep(0.2)
        return said

    def written(self) -> frozenset[str]:
        """All that lies on its disk, but for logs, caches, and dpkg's, logrotate's and systemd's own."""
        prune = " -o ".join(f"-path ./{folder}" for folder in LEFT_OUT)
        said = self.sh(f"cd /; find . -xdev \\( {prune} \\) -prune -o -print")
        return frozenset(said.splitlines())


class Machines:
    """Machines by name, and the network namespaces they are in. Made by `machines`."""

    def __init__(self, keeper: int, folder: Path, guest: Path) -> None:
        self._keeper = keeper
        self._folder = folder
        self._guest = guest
        self._containers: list[subprocess.Popen[bytes]] = []
        self.by_name: dict[str, Machine] = {}

    def __getitem__(self, name: str) -> Machine:
        return self.by_name[name]

    def outside(self, *argv: str) -> list[str]:
        """The command on the host that runs `argv` beside the machines, where their cables meet."""
        return ["nsenter", "--target", str(self._keeper), "-m", "-u", "-i", "-n", "-p", "-C", *argv]

    def network(self, script: str) -> None:
        subprocess.run(self.outside("sh", "-ec", script), check=True)

    def boot(self, names: Sequence[str]) -> None:
        """Return when systemd says that each is up, with no unit that has failed."""
        started = {name: self._start(name) for name in names}
        for name, container in started.items():
            self.by_name[name] = Machine(name, self._leader(name, container.pid))
        for machine in self.by_name.values():
            said = machine.eventually("systemctl", "is-system-running", "--wait", until="running")
            assert said.strip() == "running", machine.run("systemctl", "--failed", "--no-pager")

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        own = f"{self._folder}/disks/{name}"
        layers = f"lowerdir={self._folder}/disks/system,upperdir={own}/upper,workdir={own}/work"
        self.network(
            f"mkdir -p {own}/root {own}/upper/etc {own}/work; echo {name} > {own}/upper/etc/hostname\n"
            f"mount -t overlay -o {layers} overlay {own}/root"
        )
        values = {"NAME": name, "ROOT": f"{own}/root", "GUEST": str(self._guest)}
        container = subprocess.Popen(
            self.outside("sh", "-ec", _filled(_BOOT, values)),
            stdin=subprocess.DEVNULL,
            stdout=(self._folder / f"{name}.log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        self._containers.append(container)
        return container

    def _leader(self, name: str, container: int) -> int:
        """The container's first process, as soon as it is systemd."""
        end = time.monotonic() + BOOT_LIMIT
        console = self._folder / f"{name}.log"
        while time.monotonic() < end:
            for pid in _descendants(container):
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/comm").read_text() == "systemd\n":
                        return pid
            time.sleep(0.05)
        raise AssertionError(f"{name} does not boot: {console.read_text(errors='replace')}")

    def close(self) -> None:
        for container in self._containers:
            container.wait(END_LIMIT)


def _filled(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def _descendants(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from _descendants(int(child))


@contextlib.contextmanager
def machines(folder: Path) -> Iterator[Machines]:
    """None yet; those that are booted end with it. Their logs are in `folder`, their disks in memory."""
    guest = image.ensure_guest()
    system = ensure_system()
    (folder / "disks").mkdir(parents=True)
    with _cgroup() as cgroup:
        enter = f"echo $$ > {cgroup}/cgroup.procs; exec "
        enter += "unshare --mount --net --pid --ipc --uts --cgroup --fork --kill-child sh -ec "
        keeper = subprocess.Popen(
            ["sh", "-ec", f'{enter} "$1"', "sh", _KEEPER], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        try:
            assert keeper.stdout is not None and keeper.stdout.readline() == b"ready\n", (
                "the keeper has ended"
            )
            (inside,) = list(_descendants(keeper.pid))[1:]
            found = Machines(inside, folder, guest.kernel.parent)
            disks = f"{folder}/disks"
            found.network(
                f"mount -t tmpfs tmpfs {disks}; mkdir {disks}/system\n"
                f"tar -xf {system} -C {disks}/system --exclude='./dev/*'"
            )
            try:
                yield found
            finally:
                os.kill(inside, signal.SIGKILL)
                found.close()
        finally:
            keeper.kill()
            keeper.wait(END_LIMIT)


@contextlib.contextmanager
def _cgroup() -> Iterator[Path]:
    """A folder of cgroups, removed with all below it when nobody is in it any more."""
    base = _cgroups()
    assert base is not None
    own = base / f"retinue-machines-{os.getpid()}"
    own.mkdir()
    try:
        yield own
    finally:
        end = time.monotonic() + END_LIMIT
        while "populated 1" in (own / "cgroup.events").read_text() and time.monotonic() < end:
            time.sleep(0.05)
        for path, _, _ in os.walk(own, topdown=False):
            Path(path).rmdir()
