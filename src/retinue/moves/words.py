"""The words of a move: events, which are proofs or trouble, and effects, which are to be brought about."""

from dataclasses import dataclass
from enum import StrEnum

# ---- events: the proofs, and what goes wrong ----


@dataclass(frozen=True, slots=True)
class Matched:
    pass


@dataclass(frozen=True, slots=True)
class TargetOpen:
    memory_at: str = ""


class Booked(StrEnum):
    """A change of where the VM is booked, as the switches confirm it."""

    ADMITTED = "admitted at the target"
    STEERED = "steered to the target"
    FORWARDED = "forwarded from the source"
    COPIED = "copied to the source"
    SOURCE_CLOSED = "source closed"
    SETTLED = "no longer forwarded"
    TARGET_CLOSED = "target closed"


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Every switch concerned has confirmed this change."""

    change: Booked


@dataclass(frozen=True, slots=True)
class CopyStarted:
    pass


@dataclass(frozen=True, slots=True)
class Converged:
    """Little is left to copy; the VM runs at the source, and will until its traffic is diverted."""


@dataclass(frozen=True, slots=True)
class SourceStopped:
    at: float


@dataclass(frozen=True, slots=True)
class Resumed:
    at: float


@dataclass(frozen=True, slots=True)
class SourceFreed:
    pass


@dataclass(frozen=True, slots=True)
class RolledBack:
    pass


@dataclass(frozen=True, slots=True)
class TargetGone:
    """The VM never ran at the target, and never will."""


@dataclass(frozen=True, slots=True)
class Failed:
    reason: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    by: str


@dataclass(frozen=True, slots=True)
class TimedOut:
    pass


Event = (
    Matched
    | TargetOpen
    | Confirmed
    | CopyStarted
    | Converged
    | SourceStopped
    | Resumed
    | SourceFreed
    | RolledBack
    | TargetGone
    | Failed
    | Cancelled
    | TimedOut
)


# ---- effects: what the controller must bring about ----


@dataclass(frozen=True, slots=True)
class OpenTarget:
    """Ask the hypervisor for a port and a waiting VM at the target."""


@dataclass(frozen=True, slots=True)
class AdmitAtTarget:
    """Set binding and flows at the target; answer Confirmed(ADMITTED)."""


@dataclass(frozen=True, slots=True)
class StartCopy:
    """Tell the hypervisor that the copy may start, the target's port having been primed."""


@dataclass(frozen=True, slots=True)
class SteerToTarget:
    """Turn the VM's traffic to the target, in the order of flows.plan; answer Confirmed(STEERED)."""


@dataclass(frozen=True, slots=True)
class ForwardFromSource:
    """Let the source send on what still comes there; answer Confirmed(FORWARDED)."""


@dataclass(frozen=True, slots=True)
class CopyToSource:
    """Let what the VM is sent at the target go to the source, too; answer Confirmed(COPIED)."""


@dataclass(frozen=True, slots=True)
class CloseSource:
    """Delete binding and flows at the source; answer Confirmed(SOURCE_CLOSED)."""


@dataclass(frozen=True, slots=True)
class FreeSource:
    """Tell the hypervisor to free what is left at the source."""


@dataclass(frozen=True, slots=True)
class CeaseForwarding:
    """Forward nothing from the source, once nothing comes there any more; answer Confirmed(SETTLED)."""


@dataclass(frozen=True, slots=True)
class CloseTarget:
    """Book the VM at the source alone, as before; answer Confirmed(TARGET_CLOSED)."""


@dataclass(frozen=True, slots=True)
class UndoAtHypervisor:
    """Tell the hypervisor to end the VM at the target and see that the source runs."""


@dataclass(frozen=True, slots=True)
class ReturnToSource:
    """Tell the hypervisor at the source that the VM is its own again."""


Effect = (
    OpenTarget
    | AdmitAtTarget
    | StartCopy
    | SteerToTarget
    | ForwardFromSource
    | CopyToSource
    | CloseSource
    | FreeSource
    | CeaseForwarding
    | CloseTarget
    | UndoAtHypervisor
    | ReturnToSource
)
