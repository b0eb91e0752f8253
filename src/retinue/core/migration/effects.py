"""Effects of a migration: what the controller must bring about, each answered by an event."""

from dataclasses import dataclass


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
class DivertToTarget:
    """Divert the VM's traffic to the target, in the underlay's order; answer Confirmed(DIVERTED)."""


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
    """Register the VM at the source alone, as before; answer Confirmed(TARGET_CLOSED)."""


@dataclass(frozen=True, slots=True)
class RollBackAtHypervisor:
    """Tell the hypervisor to end the VM at the target and see that the source runs."""


@dataclass(frozen=True, slots=True)
class ReturnToSource:
    """Tell the hypervisor at the source that the VM is its own again."""


Effect = (
    OpenTarget
    | AdmitAtTarget
    | StartCopy
    | DivertToTarget
    | ForwardFromSource
    | CopyToSource
    | CloseSource
    | FreeSource
    | CeaseForwarding
    | CloseTarget
    | RollBackAtHypervisor
    | ReturnToSource
)

ORDERS = (OpenTarget, StartCopy, FreeSource, RollBackAtHypervisor, ReturnToSource)
"""Those that a hypervisor carries out."""
