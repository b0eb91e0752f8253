"""Events of a migration: confirmations of what was asked for, and failures."""

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Matched:
    """The target server's location is known."""


@dataclass(frozen=True, slots=True)
class TargetOpened:
    """The target has a port and, where it has an agent of its own, takes the memory in at `memory_at`."""

    memory_at: str = ""


class PlacementChange(StrEnum):
    """A change of where the VM is registered, as the switches confirm it."""

    ADMITTED = "admitted at the target"
    DIVERTED = "diverted to the target"
    FORWARDED = "forwarded from the source"
    COPIED = "copied to the source"
    SOURCE_CLOSED = "source closed"
    SETTLED = "no longer forwarded"
    RETURNED = "returned to the source"
    TARGET_CLOSED = "target closed"


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Every switch concerned has confirmed this change."""

    change: PlacementChange


@dataclass(frozen=True, slots=True)
class CopyStarted:
    """The hypervisor copies the VM's memory; the VM runs at the source."""


@dataclass(frozen=True, slots=True)
class Converged:
    """Little is left to copy; the VM runs at the source, and does so until its traffic is diverted."""


@dataclass(frozen=True, slots=True)
class SourceStopped:
    """The VM is paused at the source: the rest of its memory is copied now."""

    at: float


@dataclass(frozen=True, slots=True)
class Resumed:
    """The VM runs at the target."""

    at: float


@dataclass(frozen=True, slots=True)
class SourceFreed:
    """Nothing of the VM is left at the source's hypervisor."""


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The VM runs at the source, as before the migration."""


@dataclass(frozen=True, slots=True)
class TargetClosed:
    """The VM never ran at the target, and never will."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A hypervisor, or the controller, cannot go on with the migration."""

    reason: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The manager wants the VM back where it was."""

    by: str


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The state has lasted longer than its limit (`record.LIMITS`)."""

    waits_for: str = ""
    """What it still waits for, in words."""


Event = (
    Matched
    | TargetOpened
    | Confirmed
    | CopyStarted
    | Converged
    | SourceStopped
    | Resumed
    | SourceFreed
    | RolledBack
    | TargetClosed
    | Failed
    | Cancelled
    | TimedOut
)
