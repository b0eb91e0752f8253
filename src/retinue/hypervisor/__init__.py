"""H1: the hypervisors, behind one interface, and the ports they plug VMs into."""

from retinue.hypervisor.interface import (
    Event,
    Gate,
    Gone,
    Hypervisor,
    HypervisorError,
    Machine,
    MigrationFailed,
    MigrationResult,
    OnEvent,
    Resumed,
    RunState,
    Started,
    Stopped,
    VMSpec,
    ignore,
    open_gate,
)
from retinue.hypervisor.machine import QemuMachine
from retinue.hypervisor.qemu import QemuHypervisor

__all__ = [
    "Event",
    "Gate",
    "Gone",
    "Hypervisor",
    "HypervisorError",
    "Machine",
    "MigrationFailed",
    "MigrationResult",
    "OnEvent",
    "QemuHypervisor",
    "QemuMachine",
    "Resumed",
    "RunState",
    "Started",
    "Stopped",
    "VMSpec",
    "ignore",
    "open_gate",
]
