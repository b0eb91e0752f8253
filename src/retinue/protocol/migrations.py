"""A migration as controller, agents, command line and laboratory speak of it.

The controller gives orders on its event stream; the agents of the two servers carry them out, and report:

    order (event)               report that answers it        then the migration is
    migration.open_target       target_opened                 admitting
    migration.prepare_source    - (the target's port appears) admitting
    migration.start_copy        copy_started                  copying
    -                           converged, stopped            diverted
    -                           resumed                       switched
    migration.free_source       source_freed                  freed
    migration.roll_back         rolled_back, waited,          undone
                                target_closed
    migration.return_to_source  rolled_back                   undone

docs/api.md says what each side must do; core/migration/states.py has the whole table of states.
"""

from enum import StrEnum
from typing import Annotated

import msgspec

from retinue.core.limits import (
    LARGEST_COUNT,
    LARGEST_FRAME,
    LATEST,
    LONGEST_ADDRESS,
    MOST_AT_ONCE,
    MOST_NICS,
    MOST_TRUNK_NICS,
)
from retinue.core.migration import MigrationState
from retinue.core.migration.copying import Postcopy
from retinue.core.migration.precopy import WANTED_DOWNTIME
from retinue.core.placement import Reason
from retinue.protocol.nics import Addresses


class Order(StrEnum):
    """What the controller orders of the hypervisors' side: the types of its events."""

    OPEN_TARGET = "migration.open_target"
    """To the target: make the VM's port, and wait for its memory."""
    PREPARE_SOURCE = "migration.prepare_source"
    """To a source whose hypervisor opens the target by itself, as libvirt does: do so now."""
    START_COPY = "migration.start_copy"
    """To the source: copy the VM to the target."""
    FREE_SOURCE = "migration.free_source"
    """To the source: end what is left of the VM there, and remove its port."""
    ROLL_BACK = "migration.roll_back"
    """To both: the VM is to run at the source, and nothing of it is to stay at the target."""
    RETURN_TO_SOURCE = "migration.return_to_source"
    """To the source: the VM never ran at the target, so the source resumes it."""


class Report(StrEnum):
    """What the hypervisors' side reports of a migration: the field `event` of POST .../events."""

    TARGET_OPENED = "target_opened"
    COPY_STARTED = "copy_started"
    COPYING = "copying"
    """Progress of the copy, as often as the source likes: the migration stays as it is."""
    CONVERGED = "converged"
    """Little is left to copy, and the VM runs at the source until this is answered."""
    STOPPED = "stopped"
    """The VM is paused at the source."""
    RESUMED = "resumed"
    """The VM runs at the target: the point of no return."""
    SOURCE_FREED = "source_freed"
    WAITED = "waited"
    """What waited for the VM at a target that is given up: first without frames, to be answered when nothing
    more goes there, then with them. Or at a source where the VM was stopped before it was diverted: first
    `watching`, and then without, even where nothing waits."""
    TARGET_CLOSED = "target_closed"
    """The VM never ran at the target, and never will."""
    ROLLED_BACK = "rolled_back"
    """The VM runs at the source."""
    FAILED = "failed"


ORDER_AWAITED = {
    MigrationState.MATCHED: Order.OPEN_TARGET,
    MigrationState.PREPARED: Order.START_COPY,
    MigrationState.CONFIRMED: Order.FREE_SOURCE,
    MigrationState.ROLLING_BACK: Order.ROLL_BACK,
}
"""By the state of a migration: the order which the hypervisors' side has to carry out then, and may have
missed."""


class FarRecord(msgspec.Struct, frozen=True):
    """The end of a migration that is in another domain."""

    domain: str
    server: str = ""
    """The server there whose agent speaks, or is spoken to."""
    migration: str = ""
    """The migration, as that domain counts it."""


class MigrationRecord(msgspec.Struct, frozen=True):
    """A migration as GET /v1/migrations and the events show it: the fields that an agent acts on."""

    id: str
    vm: str
    source: str
    target: str
    state: MigrationState = MigrationState.PLANNED
    memory_at: str = ""
    """Where the target's agent takes the memory in: host:port."""
    wanted_downtime: float = WANTED_DOWNTIME
    """Seconds that the VM should be paused for at the most."""
    postcopy: Postcopy = Postcopy.NEVER
    """Whether the VM may run at the target before all of its memory is there."""
    compress: bool = False
    """The agents compress the memory that they send each other."""
    step_factor: float = 1.0
    """So many times as long as elsewhere an agent waits for the controller, for the order to copy, and for
    the copy."""
    target_closed: bool = False
    """Rolling back: the target has given the VM back."""
    far: FarRecord | None = None
    """In a migration between domains: what is behind the gateway that is its source or target here."""
    after_the_fact: bool = False
    """Hypervisors of others have made it: no agent has a part in it."""


LONGEST_DOWNTIME_MS = 60_000


class NewAddressesBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a NIC is to have from the target on; what is left out, or null, stays."""

    nic: str = ""
    """Its id; "": the VM's first."""
    mac: str | None = None
    vnet: str | None = None
    addresses: Addresses | None = None
    """All its static addresses."""


class MigrationBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/migrations: a live-migration message, with either the target server or its edge switch; with
    neither, the best server is looked for.

    What else is given is checked: a message about a VM that is elsewhere, or another, is rejected.
    """

    vm: str
    target_server: str = ""
    target_switch: str = ""
    source_server: str = ""
    mac: str = ""
    ip: str = ""
    reason: Reason = Reason.OPERATOR
    """Why; with another reason than the manager's own wish, the filters and the rest of placement count, also
    for a target that is named."""
    downtime_ms: Annotated[int, msgspec.Meta(ge=0, le=LONGEST_DOWNTIME_MS)] = round(WANTED_DOWNTIME * 1000)
    """How long the VM should be paused at the most: the memory is copied in as many passes as that takes, if
    the VM does not write faster than it is copied."""
    postcopy: Postcopy | None = None
    """Whether it may run at the target before all of its memory is there; as configured unless given."""
    compress: bool | None = None
    """Whether the agents compress the memory that they send each other; as configured unless given."""
    nics: Annotated[list[NewAddressesBody], msgspec.Meta(max_length=MOST_NICS + MOST_TRUNK_NICS)] = []
    """NICs that are to have other addresses from the target on."""
    after_the_fact: bool = False
    """The VM runs at the target already: hypervisors of others have migrated it, of which no agent of ours is
    at either server. The controller asks nobody for anything, and moves its bindings."""


Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_COUNT)]
Frame = Annotated[bytes, msgspec.Meta(max_length=LARGEST_FRAME)]
"""An Ethernet frame; in JSON it is written in base64."""


class ReportBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/migrations/{id}/events: a report of the hypervisors' side."""

    event: Report
    at: Annotated[float, msgspec.Meta(ge=0, le=LATEST)] = 0.0
    """When it happened, in seconds since the epoch; needed with `stopped` and `resumed`."""
    server: str = ""
    """The server whose agent reports."""
    reason: str = ""
    memory_at: Annotated[str, msgspec.Meta(max_length=LONGEST_ADDRESS)] = ""
    """With `target_opened`: where the target's agent takes the memory in, host:port."""
    image_ms: Count = 0
    machine_ms: Count = 0
    """With `target_opened`, in milliseconds: until all was there that is no VM's own (images), and then until
    the machine was made of it (overlays, QEMU) that waits for what is the VM's own."""
    copy_pass: Count = 0
    """With `copying`: which pass over the memory has begun; the first is 1."""
    remaining: Count = 0
    """With `copying`: bytes of memory to go over in it."""
    written_a_second: Count = 0
    """With `copying`: bytes of memory that the VM wrote a second during the pass before."""
    postcopy: bool = False
    """With `copying`: the VM runs at the target already, and so much has yet to follow."""
    watching: bool = False
    """With `converged`: the source looks itself whether anything still comes by the old way. The answer comes
    when what had left for the source before has come there. Nothing is forwarded from the source until it
    says `converged` without this. With `waited`, of a source, likewise: it is answered when all switches lead
    to the target, and nothing is copied from there until it says `waited` without this."""
    sent: bool = False
    """With `stopped`, said once more: the source's switch has sent on all that it got from the VM. The answer
    comes when that has come so far that what the VM sends from the target does not overtake it; the target
    may run the VM then."""
    frames: Annotated[int, msgspec.Meta(ge=0, le=LARGEST_COUNT)] = 0
    """With `rolled_back` and `target_closed`: the frames that had come to the VM's port at this server."""
    waiting: Annotated[list[Frame], msgspec.Meta(max_length=MOST_AT_ONCE)] = []
    """With `waited`: frames of which there are no copies where the VM is, in order."""


class ReportAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a report is answered with."""

    state: MigrationState
    copies_from: str = ""
    """To `converged`: the MAC address that the copies for the paused VM will come from. To `waited`: that of
    which a copy was made has it as its source, and is at the source already."""
