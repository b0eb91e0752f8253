"""Orders, facts and effects of one end of a migration: what an agent is told, what it learns, what it does.

An effect says with which fact it is answered; a Report is one of the controller's own events (`events`).
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

# ---- events: the controller's orders ----


@dataclass(frozen=True, slots=True)
class Register:
    """The VM is registered on this server."""


@dataclass(frozen=True, slots=True)
class Start:
    """The VM's network is complete: it may be started."""


@dataclass(frozen=True, slots=True)
class Remove:
    """The VM is to end."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The VM is to be switched off: by its power button and, after so many seconds, at once."""

    hard: bool = False
    """At once."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Reboot:
    """The guest is to shut down and start anew; after so many seconds it is reset."""

    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Reset:
    """The guest is to start anew at once."""


@dataclass(frozen=True, slots=True)
class OpenTarget:
    migration: str


@dataclass(frozen=True, slots=True)
class PrepareSource:
    migration: str
    running: bool = True
    """The hypervisor runs the VM now."""


@dataclass(frozen=True, slots=True)
class StartCopy:
    migration: str
    prepared: bool = False
    """The source must have been prepared for it (PrepareSource)."""


@dataclass(frozen=True, slots=True)
class FreeSource:
    migration: str


@dataclass(frozen=True, slots=True)
class RollBackAtSource:
    migration: str


@dataclass(frozen=True, slots=True)
class RollBackAtTarget:
    migration: str


@dataclass(frozen=True, slots=True)
class ReturnToSource:
    """The VM never ran at the target, and never will: the source resumes it."""

    migration: str


Order = (
    Register
    | Start
    | Remove
    | Stop
    | Reboot
    | Reset
    | OpenTarget
    | PrepareSource
    | StartCopy
    | FreeSource
    | RollBackAtSource
    | RollBackAtTarget
    | ReturnToSource
)


# ---- events: facts ----


@dataclass(frozen=True, slots=True)
class PortMade:
    pass


@dataclass(frozen=True, slots=True)
class Started:
    at: float


@dataclass(frozen=True, slots=True)
class NotStarted:
    reason: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The VM's present machine has ended, and is not to be replaced by another."""

    how: Ending = Ending.CRASHED
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """The machine waits for the VM's memory."""

    migration: str


@dataclass(frozen=True, slots=True)
class NotOpened:
    migration: str
    reason: str
    plugged: bool


@dataclass(frozen=True, slots=True)
class RanHere:
    """All of the VM has arrived, and it runs here."""

    migration: str
    at: float


@dataclass(frozen=True, slots=True)
class NotArrived:
    """The VM has not run here, and what had been opened for it has ended."""

    migration: str
    reason: str


@dataclass(frozen=True, slots=True)
class RanAndEnded:
    """The VM had been told to run, so that it must run nowhere else, and has ended."""

    migration: str
    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class Stays:
    """The transfer has ended, and the VM has not left: it has failed, or was called off (no `reason`)."""

    migration: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class GivenAway:
    """The transfer has ended, and the target has been told that the VM is its own."""

    migration: str


@dataclass(frozen=True, slots=True)
class TakenBack:
    """A migration is off, and the VM runs here."""

    migration: str
    at: float


@dataclass(frozen=True, slots=True)
class NotTakenBack:
    """A migration is off, and the VM, which runs nowhere else, could not be resumed here."""

    migration: str
    reason: str


@dataclass(frozen=True, slots=True)
class FoundRunning:
    """The hypervisor runs the VM, whoever made it do so."""

    at: float


@dataclass(frozen=True, slots=True)
class FoundIncoming:
    """Somebody else brings the VM here."""


@dataclass(frozen=True, slots=True)
class Departed:
    """The hypervisor tells that it has migrated the VM away, whoever asked for it."""


@dataclass(frozen=True, slots=True)
class NotFound:
    """The hypervisor does not have the VM. `ended`: it has ended, or is of no concern to this server."""

    ended: bool


Fact = (
    PortMade
    | Started
    | NotStarted
    | Exited
    | Opened
    | NotOpened
    | RanHere
    | NotArrived
    | RanAndEnded
    | Stays
    | GivenAway
    | TakenBack
    | NotTakenBack
    | FoundRunning
    | FoundIncoming
    | Departed
    | NotFound
)
Event = Order | Fact


# ---- effects ----


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
