"""The command line of a QEMU: a pure function of what is wanted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retinue.hypervisor.interface import HypervisorError, VMSpec

LONGEST_SOCKET_PATH = 107
"""unix(7): sun_path has 108 octets, the last one zero."""

# Through a switch in user space a packet whose checksum was left to the network card is dropped.
OFFLOADS_OFF = ",".join(
    f"{name}=off"
    for name in (
        *("csum", "gso", "host_tso4", "host_tso6", "host_ecn", "host_ufo"),
        *("guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo"),
    )
)


@dataclass(frozen=True, slots=True)
class Files:
    """Where one QEMU keeps its ends: all in one folder, under one name."""

    serial_log: Path
    """What the guest writes to its console."""
    shell: Path
    """Socket of the guest's second serial port."""
    observer: Path
    """A QMP socket for others, such as an agent that watches VMs it did not start."""
    log: Path
    """What QEMU itself says."""

    @classmethod
    def named(cls, folder: Path, name: str) -> "Files":
        files = cls(
            serial_log=folder / f"{name}.console",
            shell=folder / f"{name}.shell",
            observer=folder / f"{name}.qmp",
            log=folder / f"{name}.log",
        )
        for path in (files.shell, files.observer):
            if len(str(path)) > LONGEST_SOCKET_PATH:
                raise HypervisorError(
                    f"{path}: too long for a socket (limit {LONGEST_SOCKET_PATH}): use a shorter folder"
                )
        return files


def qemu_argv(
    spec: VMSpec,
    files: Files,
    *,
    qmp_fd: int,
    incoming: bool = False,
    binary: str = "qemu-system-x86_64",
    accelerator: str = "tcg",
    machine: str = "pc-q35-7.2",
    extra: Sequence[str] = (),
) -> list[str]:
    """Source and target must be built alike, `incoming` apart: QEMU refuses other devices on the way in."""
    argv = [binary, "-name", _quoted(spec.id), "-nodefaults", "-no-user-config", "-no-reboot"]
    argv += ["-accel", accelerator, "-M", machine, "-m", str(spec.memory_mib), "-smp", "1"]
    argv += ["-display", "none", "-vga", "none"]
    argv += ["-kernel", str(spec.kernel), "-initrd", str(spec.initrd), "-append", spec.append]
    argv += ["-netdev", f"tap,id=net0,ifname={_quoted(spec.port)},script=no,downscript=no"]
    argv += ["-device", f"virtio-net-pci,netdev=net0,id=nic0,mac={spec.mac},romfile=,{OFFLOADS_OFF}"]
    argv += ["-serial", f"file:{files.serial_log}"]
    argv += ["-serial", f"unix:{files.shell},server=on,wait=off"]
    argv += ["-chardev", f"socket,id=control,fd={qmp_fd}", "-mon", "chardev=control,mode=control"]
    argv += ["-qmp", f"unix:{files.observer},server=on,wait=off"]
    argv += extra
    if incoming:
        # -S: the VM, once it is there, waits for our word to run.
        argv += ["-incoming", "defer", "-S"]
    return argv


def _quoted(value: str) -> str:
    """A value inside one of QEMU's comma-separated options."""
    return value.replace(",", ",,")
