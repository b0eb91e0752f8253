"""What is here of a VM at one server, as its agent knows it; `endpoint` says what becomes of it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Absent:
    """Nothing of the VM is here."""


@dataclass(frozen=True, slots=True)
class Plugged:
    """The VM has its port here and does not run: it was never started here, or has ended."""


@dataclass(frozen=True, slots=True)
class Running:
    """The VM runs here. `since`: seconds since the epoch, when it was started, or resumed here."""

    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Outgoing:
    """The VM is on its way to another server, and runs here until it is paused to be handed over."""

    migration: str
    since: float = 0.0
    copying: bool = True
    """False: the target is being opened from here, and nothing may be copied yet."""
    exited: bool = False
    """Its machine has ended meanwhile. The transfer may have handed the VM over before that."""


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The target has been told that the VM is its own. `migration` is "" when others migrate it."""

    migration: str = ""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A machine here waits for the VM's memory. `migration` is "" when others migrate the VM."""

    migration: str = ""


@dataclass(frozen=True, slots=True)
class IncomingFailed:
    """The VM did not arrive, and has not run here. The controller will roll back, or order it once more."""

    migration: str
    plugged: bool = True
    """It has its port."""


Presence = Absent | Plugged | Running | Outgoing | HandedOver | Incoming | IncomingFailed
