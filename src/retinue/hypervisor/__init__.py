"""The hypervisors, behind one interface, and the ports they plug VMs into."""

from retinue.hypervisor.errors import HandedOverError, HypervisorError
from retinue.hypervisor.interface import (
    Copying,
    Divert,
    Event,
    Exited,
    Hypervisor,
    Left,
    Machine,
    ManagedHypervisor,
    MigrationFailed,
    MigrationResult,
    NICSpec,
    OnEvent,
    Opened,
    Resumed,
    RunState,
    Started,
    StartedAnew,
    Stopped,
    VMSpec,
    ignore,
)
from retinue.hypervisor.memory_channel import Channel, ChannelError, channel_pair
from retinue.hypervisor.qemu.hypervisor import QemuHypervisor
from retinue.hypervisor.qemu.machine import QemuMachine

__all__ = [
    "Channel",
    "ChannelError",
    "Copying",
    "Divert",
    "Event",
    "Exited",
    "HandedOverError",
    "Hypervisor",
    "HypervisorError",
    "Left",
    "Machine",
    "ManagedHypervisor",
    "MigrationFailed",
    "MigrationResult",
    "NICSpec",
    "OnEvent",
    "Opened",
    "QemuHypervisor",
    "QemuMachine",
    "Resumed",
    "RunState",
    "Started",
    "StartedAnew",
    "Stopped",
    "VMSpec",
    "channel_pair",
    "ignore",
]
