"""The laboratory's guest: a small Linux that boots in seconds and answers on port 7.

Made from Debian's packages, of which none is installed: the kernel for clouds with its virtio modules, the
statically linked busybox of this machine, and C programs compiled here. It is built once and kept in the
cache, under a name made of everything that went into it. What a guest does is set on its kernel command
line (`command_line`); `init` in the folder `guest` shows what it makes of it.

Where there is storage (FCoE), guests have Debian's full kernel: that for clouds has no Fibre Channel.
"""

import contextlib
import hashlib
import lzma
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from retinue_lab.guest import initrd

Progress = Callable[[str], None]

APT_READS = (Path("/etc/apt"), Path("/var/lib/apt/lists"), Path("/var/lib/dpkg/status"))
"""What decides which package that is, and of which version."""
MODULES = ("virtio_pci", "virtio_net", "virtio_blk", "button", "evdev")
SCRIPTS = ("fc-node", "further-nic", "network-address", "shell-server", "vlan-nic")
PROGRAMS = ("diskscribble", "responder", "scribble", "sendraw", "steady")
COMPILE = ("gcc", "-static", "-Os", "-s", "-Wall")
SHARED = ("gcc", "-shared", "-fPIC", "-Os", "-s", "-Wall")

QUICK = (
    # The measures of a real machine against hostile programs cost an emulated one dearly at boot; so do the
    # kernel's tests of its ciphers, and the rewriting of locks for one CPU.
    "console=ttyS0 quiet panic=1 mitigations=off nokaslr random.trust_cpu=on rcupdate.rcu_expedited=1 "
    "cryptomgr.notests=1 noreplace-smp no_timer_check audit=0 selinux=0 apparmor=0 rdinit=/init"
)


class GuestError(Exception):
    """The guest cannot be built; the message says what is missing and what to do."""


@dataclass(frozen=True, slots=True)
class Guest:
    kernel: Path
    initrd: Path


@dataclass(frozen=True, slots=True)
class Kind:
    """What a guest is made of."""

    kernel_package: str
    later: tuple[str, ...]
    """Modules that are loaded by whoever needs them: a guest's start is short."""


CLOUD = Kind("linux-image-cloud-amd64", ("8021q",))
STORAGE = Kind(
    # What a node of Fibre Channel needs as initiator (fcoe, sd_mod) or as target (tcm_fc, target_core_file).
    "linux-image-amd64",
    ("8021q", "fcoe", "sd_mod", "configfs", "tcm_fc", "target_core_file"),
)


def command_line(
    address: str = "dhcp", *, hostname: str = "guest", address6: str = "", ipv6: bool = False
) -> str:
    """The kernel command line of a guest.

    `address` is "dhcp", "none" or "ADDRESS/LENGTH" with ",ROUTER" where there is one; `address6` is the same
    for IPv6, without "dhcp". Without `ipv6` (or an `address6`) the guest has no IPv6 at all, not even
    link-local.
    """
    words = [QUICK, f"hostname={hostname}", f"ip={address}"]
    if address6:
        words.append(f"ip6={address6}")
    elif not ipv6:
        words.append("ipv6.disable=1")
    return " ".join(words)


def cache() -> Path:
    """Where built things are kept: $RETINUE_CACHE, else ~/.cache/retinue."""
    return Path(os.environ.get("RETINUE_CACHE") or Path.home() / ".cache" / "retinue")


def ensure_guest(progress: Progress = lambda _: None, kind: Kind = CLOUD) -> Guest:
    """The guest's kernel and initial RAM disk, built now if they are not in the cache.

    `progress` is called before each slow step. Needs Debian's package lists and, to build, its mirror; raises
    GuestError. Several processes may call this at a time: whoever is done first wins.
    """
    busybox = _busybox()
    package, version = _kernel_package(kind.kernel_package)
    sources = {name: _source(name) for name in ("init", "udhcpc.script", *SCRIPTS)}
    sources |= {name: _source(f"{name}.c") for name in PROGRAMS}
    inputs: list[str | bytes] = [
        package,
        version,
        *COMPILE,
        *MODULES,
        *kind.later,
        *sources,
        busybox.read_bytes(),
        *sources.values(),
    ]
    home = cache() / f"guest-{_digest(inputs)}"
    guest = Guest(home / "vmlinuz", home / "initrd")
    if guest.kernel.exists() and guest.initrd.exists():
        return guest

    progress(f"building the guest in {home}")
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache(), prefix="building-") as scratch:
        work, new = Path(scratch), Path(scratch) / "guest"
        new.mkdir()
        progress(f"fetching {package} {version}")
        tree = _fetch_kernel(package, work)
        progress("compiling the responder")
        programs = {name: _compile(name, work) for name in PROGRAMS}
        shutil.copyfile(_one(tree / "boot", "vmlinuz-*"), new / "vmlinuz")
        modules = _modules(tree, MODULES), _modules(tree, (*MODULES, *kind.later))
        entries = _entries(busybox.read_bytes(), sources, programs, *modules)
        (new / "initrd").write_bytes(initrd.archive(entries))
        try:
            new.rename(home)
        except OSError as error:
            if not guest.initrd.exists():  # else another process built the same in the meantime
                raise GuestError(f"the built guest cannot be put at {home}: {error}") from error
    return guest


def ensure_program(name: str) -> Path:
    """One of the guest's programs, compiled to run on this machine too; kept in the cache like the guest.

    Raises GuestError where it cannot be compiled.
    """
    return _ensure_compiled(name, "guest/files", COMPILE)


def ensure_roomy() -> Path:
    """The library that is loaded into each switch of the lab: see switch/roomy.c. Raises GuestError."""
    return _ensure_compiled("roomy", "network/switch", SHARED)


def ensure_late_pages() -> Path:
    """The library that is loaded into each agent of the lab: see server/late_pages.c. Raises GuestError."""
    return _ensure_compiled("late_pages", "network/server", SHARED)


def _ensure_compiled(name: str, folder: str, command: Sequence[str]) -> Path:
    path = cache() / f"{name}-{_digest([*command, _source(f'{name}.c', folder)])}"
    if not path.exists():
        cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache(), prefix="building-") as scratch:
            _compile(name, Path(scratch), folder, command)
            (Path(scratch) / name).replace(path)
    return path


def _entries(
    busybox: bytes,
    sources: dict[str, bytes],
    programs: dict[str, bytes],
    at_boot: dict[str, bytes],
    modules: dict[str, bytes],
) -> list[initrd.Entry]:
    later = [name for name in modules if name not in at_boot]
    return [
        *(initrd.directory(path) for path in ("bin", "dev", "etc", "modules")),
        initrd.character_device("dev/console", 5, 1),
        initrd.program("bin/busybox", busybox),
        initrd.program("init", sources["init"]),
        initrd.program("etc/udhcpc.script", sources["udhcpc.script"]),
        *(initrd.program(f"bin/{name}", sources[name]) for name in SCRIPTS),
        *(initrd.program(f"bin/{name}", data) for name, data in programs.items()),
        *(initrd.file(f"modules/{name}", data) for name, data in modules.items()),
        initrd.file("modules/order", "".join(f"{name}\n" for name in at_boot).encode()),
        initrd.file("modules/later", "".join(f"{name}\n" for name in later).encode()),
    ]


# ---- the kernel ----


def _kernel_package(stands_for_it: str) -> tuple[str, str]:
    """Name and version of the kernel package that a package of Debian's stands for.

    apt needs seconds of a processor to tell, so its answer is kept until something that it reads has changed.
    """
    kept = cache() / f"kernel-of-{stands_for_it}"
    state = _digest([f"{path} {_version_of(path)}" for path in _files_below(APT_READS)])
    with contextlib.suppress(OSError, ValueError):
        known, package, version = kept.read_text().splitlines()
        if known == state:
            return package, version
    package, version = _asked_of_apt(stands_for_it)
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache(), prefix="building-") as scratch:
        (Path(scratch) / kept.name).write_text(f"{state}\n{package}\n{version}\n")
        (Path(scratch) / kept.name).replace(kept)
    return package, version


def _files_below(locations: Sequence[Path]) -> list[Path]:
    return sorted(
        file for location in locations for file in (location, *location.rglob("*")) if file.is_file()
    )


def _version_of(file: Path) -> str:
    """Different when the file is another, or has been written to."""
    try:
        found = file.stat()
    except FileNotFoundError:  # It went while we looked.
        return ""
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns}"


def _asked_of_apt(stands_for_it: str) -> tuple[str, str]:
    depends = _run(["apt-cache", "depends", "--important", stands_for_it], "finding the kernel package")
    names = [line.split(":", 1)[1].strip() for line in depends.splitlines() if "Depends:" in line]
    if not names:
        raise GuestError(f"apt knows no package {stands_for_it}: run apt-get update, then try again")
    shown = _run(["apt-cache", "show", "--no-all-versions", names[0]], "reading the kernel package's version")
    version = next(
        (line.split(":", 1)[1].strip() for line in shown.splitlines() if line.startswith("Version:")), ""
    )
    return names[0], version


def _fetch_kernel(package: str, work: Path) -> Path:
    """Download the package and unpack it; returns the tree it unpacks to."""
    download = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", package]
    _run(download, f"downloading {package} (is the package list fresh? apt-get update makes it so)", cwd=work)
    tree = work / "kernel"
    _run(["dpkg-deb", "-x", str(_one(work, f"{package}_*.deb")), str(tree)], f"unpacking {package}")
    return tree


def _modules(tree: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The wanted modules and those they need, in the order to load them, without those built in."""
    found = {
        path.name.split(".")[0].replace("-", "_"): path for path in tree.rglob("*.ko*") if path.is_file()
    }
    built_in = {
        Path(line).stem.replace("-", "_")
        for path in tree.rglob("modules.builtin")
        for line in path.read_text().splitlines()
    }
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in built_in or f"{name}.ko" in order:
            return
        if name not in found:
            raise GuestError(f"the kernel package has no module {name}")
        data = _decompressed(found[name])
        for needed in _depends(data):
            add(needed)
        order[f"{name}.ko"] = data

    for name in names:
        add(name)
    return order


def _decompressed(path: Path) -> bytes:
    match path.suffix:
        case ".ko":
            return path.read_bytes()
        case ".xz":
            return lzma.decompress(path.read_bytes())
        case other:
            raise GuestError(
                f"the kernel's module {path.name} is compressed as {other}: only .xz is understood"
            )


def _depends(module: bytes) -> Iterator[str]:
    """Names in the module's own "depends=" note (kernel documentation, MODULE_INFO)."""
    _, found, rest = module.partition(b"\0depends=")
    names = rest.split(b"\0", 1)[0].decode() if found else ""
    return (name.replace("-", "_") for name in names.split(",") if name)


# ---- the rest ----


def _busybox() -> Path:
    found = shutil.which("busybox")
    if found is None:
        raise GuestError("there is no busybox: install the Debian package busybox-static")
    path = Path(found)
    if _needs_libraries(path.read_bytes()):
        raise GuestError(f"{path} is not statically linked: install the Debian package busybox-static")
    return path


def _needs_libraries(elf: bytes) -> bool:
    """True for a program that names an interpreter: a program header of type 3 (elf(5), PT_INTERP)."""
    start, size, number = (
        int.from_bytes(elf[32:40], "little"),
        int.from_bytes(elf[54:56], "little"),
        int.from_bytes(elf[56:58], "little"),
    )
    headers = (elf[start + size * i : start + size * (i + 1)] for i in range(number))
    return any(header[:4] == (3).to_bytes(4, "little") for header in headers)


def _source(name: str, folder: str = "guest/files") -> bytes:
    return (resources.files("retinue_lab") / folder / name).read_bytes()


def _compile(name: str, work: Path, folder: str = "guest/files", command: Sequence[str] = COMPILE) -> bytes:
    source, result = work / f"{name}.c", work / name
    source.write_bytes(_source(f"{name}.c", folder))
    _run([*command, "-o", str(result), str(source)], f"compiling {name} (Debian packages gcc and libc6-dev)")
    return result.read_bytes()


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise GuestError(f"the kernel package holds no {pattern}")
    return found[-1]


def _digest(inputs: Sequence[str | bytes]) -> str:
    digest = hashlib.sha256()
    for item in inputs:
        data = item.encode() if isinstance(item, str) else item
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]


def _run(argv: Sequence[str], purpose: str, cwd: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    except FileNotFoundError as error:
        raise GuestError(f"{purpose}: the program {argv[0]} is missing") from error
    except subprocess.TimeoutExpired as error:
        raise GuestError(f"{purpose}: {argv[0]} did not end within 300 s") from error
    if done.returncode:
        output = " ".join(done.stderr.split())[-400:]
        raise GuestError(f"{purpose}: {argv[0]} failed with code {done.returncode}: {output}")
    return done.stdout
