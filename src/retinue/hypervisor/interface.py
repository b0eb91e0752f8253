"""What any hypervisor must be able to do for us (H1), and what it tells.

A `Machine` is one virtual machine on one server. During a move there are two of the same VM: the source,
which runs, and the target, opened to take its memory in. Times are seconds since the epoch, by the clock of
the hypervisor's own host.
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from retinue.hypervisor.channel import Channel


class HypervisorError(Exception):
    """The hypervisor did not do what it was asked; the message says what, for which VM, and why."""


class HandedOverError(HypervisorError):
    """The target does not say that the VM runs, though it may: the source must not run it again."""


@dataclass(frozen=True, slots=True)
class VMSpec:
    """A VM to run on a server, with one network interface."""

    id: str
    mac: str
    port: str
    """Name of the tap it plugs into; the tap must exist."""
    kernel: Path
    initrd: Path
    append: str = ""
    """The kernel's command line."""
    memory_mib: int = 128


class RunState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    INCOMING = "incoming"
    """Opened as a move's target; its memory has not arrived."""
    MOVED = "moved"
    """Stopped at the source because the VM now runs elsewhere."""
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Started:
    """The VM's processor runs for the first time."""

    vm: str
    at: float


@dataclass(frozen=True, slots=True)
class Stopped:
    """The VM stands still on the source: from here on it sends nothing."""

    vm: str
    at: float


@dataclass(frozen=True, slots=True)
class Resumed:
    """The VM runs on the target."""

    vm: str
    at: float


@dataclass(frozen=True, slots=True)
class MigrationFailed:
    """The move came to nothing. `source_runs` tells whether the VM runs on at the source."""

    vm: str
    at: float
    reason: str
    source_runs: bool
    waited: int = 0
    """Frames that had come for it while it stood still, and that it found when it ran on."""


@dataclass(frozen=True, slots=True)
class Gone:
    """The VM's process has ended, asked or not."""

    vm: str
    at: float


Event = Started | Stopped | Resumed | MigrationFailed | Gone
OnEvent = Callable[[Event], None]
"""Called at once, in the event loop; must not block."""


Divert = Callable[[Collection[str]], Awaitable[bool]]
"""Turns the VM's traffic to the target; returns when the switches have confirmed it. HypervisorError.

It is given the VM's taps, and returns True when it is known that nothing more comes to them; False when what
is on its way may still come.
"""


Opened = Callable[[], Awaitable[None]]
"""Called when the target is open and its port is there; returns when the copy may start. HypervisorError."""


def ignore(event: Event) -> None:
    """For a caller who wants no events."""


@dataclass(frozen=True, slots=True)
class MigrationResult:
    stopped_at: float
    resumed_at: float
    total_ms: float
    """From the order to move until the VM runs on the target."""
    transferred: int
    """Octets of memory that went over, 0 if the source could not tell."""
    passes: int
    """How often the source looked which pages were written meanwhile; see retinue.hypervisor.departure."""

    @property
    def pause_ms(self) -> float:
        """How long the VM stood still."""
        return (self.resumed_at - self.stopped_at) * 1000


class Machine(Protocol):
    @property
    def spec(self) -> VMSpec: ...

    async def state(self) -> RunState: ...

    async def pause(self) -> None: ...

    async def resume(self) -> None:
        """Make it run on. Tried for a while, since a move called off a moment ago may still hold it."""

    async def waiting(self) -> int:
        """How many frames have come for it that it has not read yet."""

    async def quit(self) -> None:
        """End the machine, whatever its state. Ending what has ended is no error."""


M = TypeVar("M", bound=Machine)


class Hypervisor(Protocol[M]):
    """Runs VMs on one server. Every method raises HypervisorError and has a time limit of its own."""

    async def start(self, spec: VMSpec, on_event: OnEvent = ignore) -> M:
        """Boot a VM; returns when it runs."""

    async def open_target(self, spec: VMSpec, on_event: OnEvent = ignore) -> M:
        """Open a machine that waits for the memory of the same VM, its port plugged in."""

    async def depart(
        self, source: M, channel: "Channel", on_event: OnEvent = ignore, divert: Divert | None = None
    ) -> MigrationResult:
        """Move the running VM to whoever takes it in at the other end of the channel.

        With `divert`, the VM runs until its traffic goes to the target and what was on its way to the source
        has arrived. Returns when it runs there; the source is left stopped, for the caller to end.

        On failure, and when this call is cancelled, the source runs on, `MigrationFailed` is told, and
        HypervisorError raised; HandedOverError when it is not known whether the VM runs at the target, so
        that the source stays as it is. The channel is closed.
        """

    async def arrive(self, target: M, channel: "Channel", on_event: OnEvent = ignore) -> float:
        """Take a VM in, and run it as soon as the source has handed it over; returns since when it runs.

        On failure the target is ended, the source told, and HypervisorError raised; HandedOverError, the
        source not being told, when the VM may have run here. The channel is closed.
        """


@runtime_checkable
class ManagedHypervisor(Hypervisor[M], Protocol[M]):
    """A hypervisor under a manager of its own, such as libvirt, which others use, too.

    A VM's port comes with the VM, and a move's target is opened from its source: `open_target` opens nothing
    yet. VMs come and go by others' hands, so what is here is asked for.
    """

    async def plug(self, spec: VMSpec) -> M:
        """Make a VM, and with it its port; it does not run before `start`. What is there is left alone."""

    async def find(self, vm: str) -> M | None:
        """The VM, if this server has it, running or not, whoever made it."""

    async def depart(
        self,
        source: M,
        channel: "Channel",
        on_event: OnEvent = ignore,
        divert: Divert | None = None,
        opened: Opened | None = None,
    ) -> MigrationResult:
        """As any hypervisor's. `opened` is awaited when the target is open, before anything is copied."""

    async def call_off(self, machine: M) -> bool:
        """End a move that is under way from here, whoever began it. True when the VM stays here."""
