"""What libvirt's lifecycle events mean for a VM's network: a pure table.

libvirt tells each event with a detail (libvirt-domain.h, virDomainEventType and the enumerations after it;
the numbers are part of its interface). A live migration typed by anybody shows, in this order (times: one
run):

    target   the port, with its iface-id          0 ms    from Open vSwitch's database
    target   Started, Migrated: incoming        316
    source   Suspended, Migrated: suspended     429       from here on the source sends nothing
    target   Resumed, Migrated: resumed         490
    source   Stopped, Migrated: departed        729

and one that fails "Stopped, Failed" at the target, with nothing at the source unless it had been suspended.
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class Lifecycle(IntEnum):
    """virDomainEventType."""

    DEFINED = 0
    UNDEFINED = 1
    STARTED = 2
    SUSPENDED = 3
    RESUMED = 4
    STOPPED = 5
    SHUTDOWN = 6
    PMSUSPENDED = 7
    CRASHED = 8


STARTED_MIGRATED = 1
SUSPENDED_MIGRATED = 1
STOPPED_MIGRATED = 3
STOPPED_FAILED = 5
RESUMED_MIGRATED = 1


class Kind(StrEnum):
    """What a server's hypervisor says of a VM. The words of the REST interface."""

    STARTED = "started"
    """The VM runs here, or was found running."""
    INCOMING = "incoming"
    """A VM is being taken in: it has its port, and does not run yet."""
    SUSPENDED = "suspended"
    """At the source: the VM stands still for its move, and sends nothing any more."""
    RESUMED = "resumed"
    """The VM runs on: at the target after its move, at the source after one that failed."""
    DEPARTED = "departed"
    """At the source: the VM has gone to another server."""
    STOPPED = "stopped"
    """The VM has ended."""
    FAILED = "failed"
    """The VM did not come up here; at the target, its move came to nothing."""


@dataclass(frozen=True, slots=True)
class Happening:
    """One word about one VM. `at`: seconds since the epoch, by this server's clock, when it was heard."""

    vm: str
    kind: Kind
    at: float


def kind_of(event: int, detail: int) -> Kind | None:
    """What an event means, None for one that is nothing to the network (a pause by hand among them)."""
    match event, detail:
        case Lifecycle.STARTED, d:
            return Kind.INCOMING if d == STARTED_MIGRATED else Kind.STARTED
        case Lifecycle.SUSPENDED, d if d == SUSPENDED_MIGRATED:
            return Kind.SUSPENDED
        case Lifecycle.RESUMED, d:
            # Unpaused: as a VM of ours begins to run, which was made to stand still until its network stood.
            return Kind.RESUMED if d == RESUMED_MIGRATED else Kind.STARTED
        case Lifecycle.STOPPED, d if d == STOPPED_MIGRATED:
            return Kind.DEPARTED
        case Lifecycle.STOPPED, d if d == STOPPED_FAILED:
            return Kind.FAILED
        case Lifecycle.STOPPED, _:
            return Kind.STOPPED
        case _:
            return None
