"""What a server's hypervisor does by itself, as its agent reports it: POST /v1/servers/{id}/hypervisor-events

The kinds are libvirt's lifecycle events reduced to what matters to a VM's network
(hypervisor/libvirt/events.py). The controller makes steps of a migration of them, whoever began it
(controller/external_migrations.py).
"""

from enum import StrEnum
from typing import Annotated

import msgspec

from retinue.core.limits import LATEST, MOST_NICS


class EventKind(StrEnum):
    STARTED = "started"
    """The VM runs here, or was found running."""
    INCOMING = "incoming"
    """A VM is being taken in: it has its port, and does not run yet."""
    SUSPENDED = "suspended"
    """At the source: the VM is paused for its migration, and sends nothing any more."""
    RESUMED = "resumed"
    """The VM is resumed: at the target after its migration, at the source after one that failed."""
    DEPARTED = "departed"
    """At the source: the VM has gone to another server."""
    REBOOTED = "rebooted"
    """The guest has started anew; the VM runs on, at the same port."""
    STOPPED = "stopped"
    """The VM was switched off, from inside or by its hypervisor's user."""
    FAILED = "failed"
    """The VM did not come up here, or has crashed; at the target, its migration came to nothing."""


class HypervisorEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One event of one VM. `vm` is the iface-id of its port."""

    vm: str
    kind: EventKind
    at: Annotated[float, msgspec.Meta(gt=0, le=LATEST)]
    """Seconds since the epoch, by the server's clock, when the agent learned of it."""
    vlan_filters: Annotated[tuple[str, ...], msgspec.Meta(max_length=MOST_NICS)] = ()
    """Ids of the VM's interfaces whose cards filter the VLANs that the guest asks for, said when it runs: a
    QEMU of 7.2 forgets these as it migrates."""
    without_checksums: Annotated[tuple[str, ...], msgspec.Meta(max_length=MOST_NICS)] = ()
    """Ids of those whose guests leave checksums to the network card, said when it runs, where the server's
    switch forwards in user space and drops such packets."""
