"""H1: the hypervisors, behind one interface, and the ports they plug VMs into."""

from retinue.hypervisor.channel import Channel, ChannelError, channel_pair
from retinue.hypervisor.interface import (
    Divert,
    Event,
    Gone,
    HandedOverError,
    Hypervisor,
    HypervisorError,
    Machine,
    ManagedHypervisor,
    MigrationFailed,
    MigrationResult,
    OnEvent,
    Opened,
    Resumed,
    RunState,
    Started,
    Stopped,
    VMSpec,
    ignore,
)
from retinue.hypervisor.machine import QemuMachine
from retinue.hypervisor.qemu import QemuHypervisor

__all__ = [
    "Channel",
    "ChannelError",
    "Divert",
    "Event",
    "Gone",
    "HandedOverError",
    "Hypervisor",
    "HypervisorError",
    "Machine",
    "ManagedHypervisor",
    "MigrationFailed",
    "MigrationResult",
    "OnEvent",
    "Opened",
    "QemuHypervisor",
    "QemuMachine",
    "Resumed",
    "RunState",
    "Started",
    "Stopped",
    "VMSpec",
    "channel_pair",
    "ignore",
]
