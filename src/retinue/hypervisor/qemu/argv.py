"""The command line of a QEMU: a pure function of what is wanted."""

from collections.abc import Sequence

from retinue.hypervisor.interface import NICSpec, VMSpec
from retinue.hypervisor.paths import MachineFiles
from retinue.hypervisor.qemu.block_devices import disk_argv
from retinue.hypervisor.qemu.notes import OBSERVER_OPTIONS

# Through a switch in user space a packet whose checksum was left to the network card is dropped.
OFFLOADS = (
    *("csum", "gso", "host_tso4", "host_tso6", "host_ecn", "host_ufo"),
    *("guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo"),
)
OFFLOADS_OFF = ",".join(f"{name}=off" for name in OFFLOADS)
# A filter of VLANs in the card has nothing to do behind a switch that hands over what is the VM's. And QEMU
# 7.2, as it migrates, takes up the VLANs that a guest has asked for with the rest of the card's state, and
# then clears them (virtio_net_set_features): nothing with a tag came in any more.
SWITCHED_OFF = (*OFFLOADS, "ctrl_vlan")

MORE_NICS = "nics"
"""The bus of all NICs but the first: a NIC can be put in and taken out there while the VM runs, and has the
place of its slot, so that a target is like its source whatever came and went before."""

NIC_ID = "nic0"
"""By which QEMU's monitor knows the first NIC; others are called by their slots."""

BARE = "suppress-vmdesc=on,sata=off,smbus=off"
"""Nothing of the machine that goes over while a VM stands still and serves nobody: the description of its
state, for debugging, and controllers without devices. Each millisecond of the pause counts."""


def qemu_argv(
    spec: VMSpec,
    files: MachineFiles,
    *,
    qmp_fd: int,
    incoming: bool = False,
    binary: str = "qemu-system-x86_64",
    accelerator: str = "tcg",
    machine: str = "pc-q35-7.2",
    extra: Sequence[str] = (),
) -> list[str]:
    """Source and target must be built alike, `incoming` apart: QEMU rejects other devices on the way in."""
    argv = [binary, "-name", f"guest={_quoted(spec.id)}", "-nodefaults", "-no-user-config"]
    # A guest that reboots does so in this process; one that is switched off waits until somebody has seen it.
    argv += ["-no-shutdown"]
    argv += ["-accel", accelerator, "-M", f"{machine},{BARE}", "-smp", "1"]
    argv += ["-m", f"{memory_kib(spec, accelerator)}K"]
    argv += ["-display", "none", "-vga", "none"]
    argv += ["-kernel", str(spec.kernel), "-initrd", str(spec.initrd), "-append", spec.append]
    first, *others = spec.nics
    argv += _nic_argv(first, 0)
    argv += ["-device", f"pcie-pci-bridge,id={MORE_NICS},addr=0x10"]
    for nic in others:
        argv += _nic_argv(nic, nic.slot, f",bus={MORE_NICS},addr={nic.slot:#x}")
    for disk in spec.disks:
        argv += disk_argv(disk)
    argv += ["-serial", f"file:{files.serial_log}"]
    argv += ["-serial", f"unix:{files.shell},server=on,wait=off"]
    argv += ["-chardev", f"socket,id=control,fd={qmp_fd}", "-mon", "chardev=control,mode=control"]
    argv += ["-qmp", f"unix:{files.observer}{OBSERVER_OPTIONS}"]
    argv += extra
    if incoming:
        # -S: the VM, once it is there, waits for our word to run.
        argv += ["-incoming", "defer", "-S"]
    return argv


def memory_kib(spec: VMSpec, accelerator: str) -> int:
    """An emulated VM gets a little more than it was promised, so that its memory can be copied in several
    passes: see `may_look_again`."""
    return spec.memory_mib * 1024 + (8 if accelerator == "tcg" else 0)


def _nic_argv(nic: NICSpec, number: int, place: str = "") -> list[str]:
    """The tap of a NIC, and its device (`place`: where in the machine, if not where QEMU has room)."""
    tap = f"tap,id=net{number},ifname={_quoted(nic.port)},script=no,downscript=no"
    device = f"virtio-net-pci,netdev=net{number},id=nic{number},mac={nic.mac},host_mtu={nic.mtu},romfile="
    off = ",".join(f"{name}=off" for name in SWITCHED_OFF)
    return ["-netdev", tap, "-device", f"{device},{off}{place}"]


def _quoted(value: str) -> str:
    """A value inside one of QEMU's comma-separated options."""
    return value.replace(",", ",,")
