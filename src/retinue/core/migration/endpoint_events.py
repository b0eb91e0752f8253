"""Orders and facts of one end of a migration: what an agent is told of a VM, and what it learns.

`endpoint` decides what is to be done (`endpoint_effects`).
"""

from dataclasses import dataclass

from retinue.core.model import Ending

# ---- the controller's orders ----


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


# ---- facts ----


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
