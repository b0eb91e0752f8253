"""Effects of one end of a migration: what an agent does about a VM, and reports.

An effect says with which fact (`endpoint_events`) it is answered; a Report is one of the controller's own
events (`events`).
"""

from dataclasses import dataclass
from enum import StrEnum

from retinue.core.migration.events import (
    CopyStarted,
    Failed,
    Resumed,
    RolledBack,
    SourceFreed,
    TargetClosed,
    TargetOpened,
)
from retinue.core.model import Ending


class Why(StrEnum):
    """Why an order is rejected; the agent makes a sentence of it, with the names."""

    NOT_RUNNING = "not running"
    NOT_PREPARED = "not prepared"
    BUSY = "busy"
    """It is in another migration."""


@dataclass(frozen=True, slots=True)
class MakePort:
    """Answer PortMade, or nothing."""


@dataclass(frozen=True, slots=True)
class StartMachine:
    """Make the port if there is none, and start the VM; answer Started or NotStarted."""


@dataclass(frozen=True, slots=True)
class StopMachine:
    """Switch the VM off, in the background; Exited tells of its end."""

    hard: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class RebootMachine:
    seconds: float


@dataclass(frozen=True, slots=True)
class ResetMachine:
    pass


@dataclass(frozen=True, slots=True)
class OpenMachine:
    """Make a machine that waits, and the port unless the VM is `plugged`; answer Opened or NotOpened."""

    migration: str
    plugged: bool


@dataclass(frozen=True, slots=True)
class ReceiveMemory:
    """Let the source's agent in, in the background; answer RanHere, NotArrived or RanAndEnded."""

    migration: str


@dataclass(frozen=True, slots=True)
class SendMemory:
    """Bring the VM to the target's agent, in the background; answer Stays or GivenAway."""

    migration: str


@dataclass(frozen=True, slots=True)
class AllowCopy:
    """The transfer, which has opened the target, may copy now."""


@dataclass(frozen=True, slots=True)
class KeepAtSource:
    """See that the VM, which has not been handed over, runs here; answer TakenBack or NotTakenBack."""

    migration: str


@dataclass(frozen=True, slots=True)
class ResumeAtSource:
    """Resume the VM, which the target has given back; answer TakenBack or NotTakenBack."""

    migration: str


@dataclass(frozen=True, slots=True)
class SendRest:
    """See that the target, where the VM runs, has all of its memory, if the machine here still has some to
    give: whoever began with that may have ended. What cannot be sent is logged."""

    migration: str


@dataclass(frozen=True, slots=True)
class CountFrames:
    """Note how many frames have come to the VM's port, which forgets it when its machine ends."""


@dataclass(frozen=True, slots=True)
class HandBack:
    """Give the controller what has waited for the VM here, when nothing more comes: it goes to the source."""

    migration: str


@dataclass(frozen=True, slots=True)
class EndMachine:
    """End the machine that is here, if there is one."""


@dataclass(frozen=True, slots=True)
class RemovePort:
    pass


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the controller what has come of a migration."""

    migration: str
    what: TargetOpened | CopyStarted | Resumed | SourceFreed | RolledBack | TargetClosed | Failed


@dataclass(frozen=True, slots=True)
class Reject:
    """Tell the controller that the migration has failed, since an order cannot be carried out."""

    migration: str
    why: Why


@dataclass(frozen=True, slots=True)
class ReportStarted:
    pass


@dataclass(frozen=True, slots=True)
class ReportLost:
    """Tell the controller that the VM, which was given back to this server, does not exist here any more."""


@dataclass(frozen=True, slots=True)
class ReportStopped:
    reason: str = ""
    how: Ending = Ending.CRASHED


Effect = (
    MakePort
    | StartMachine
    | StopMachine
    | RebootMachine
    | ResetMachine
    | OpenMachine
    | ReceiveMemory
    | SendMemory
    | AllowCopy
    | KeepAtSource
    | ResumeAtSource
    | SendRest
    | CountFrames
    | HandBack
    | EndMachine
    | RemovePort
    | Report
    | Reject
    | ReportStarted
    | ReportLost
    | ReportStopped
)
