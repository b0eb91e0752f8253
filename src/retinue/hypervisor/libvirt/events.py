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

from enum import IntEnum

from retinue.protocol.hypervisor_events import EventKind


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
SUSPENDED_MIGRATED, SUSPENDED_POSTCOPY = 1, 7
STOPPED_CRASHED = 2
STOPPED_MIGRATED = 3
STOPPED_FAILED = 5
RESUMED_MIGRATED, RESUMED_POSTCOPY, RESUMED_POSTCOPY_FAILED = 1, 3, 4


def kind_of(event: int, detail: int) -> EventKind | None:
    """What an event means, None for one that is nothing to the network (a pause by hand among them)."""
    match event, detail:
        case Lifecycle.STARTED, d:
            return EventKind.INCOMING if d == STARTED_MIGRATED else EventKind.STARTED
        case Lifecycle.SUSPENDED, d if d in (SUSPENDED_MIGRATED, SUSPENDED_POSTCOPY):
            return EventKind.SUSPENDED
        case Lifecycle.RESUMED, d if d in (RESUMED_MIGRATED, RESUMED_POSTCOPY):
            return EventKind.RESUMED
        case Lifecycle.RESUMED, d if d == RESUMED_POSTCOPY_FAILED:
            return None  # It runs as it did, until it touches memory that does not come.
        case Lifecycle.RESUMED, _:
            # Unpaused: so a VM of ours is started, which was made paused until its network was ready.
            return EventKind.STARTED
        case Lifecycle.STOPPED, d if d == STOPPED_MIGRATED:
            return EventKind.DEPARTED
        case Lifecycle.STOPPED, d if d in (STOPPED_CRASHED, STOPPED_FAILED):
            # Failed, too, where QEMU has ended without having been shut down.
            return EventKind.FAILED
        case Lifecycle.STOPPED, _:
            return EventKind.STOPPED
        case _:
            return None
