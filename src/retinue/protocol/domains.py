"""What the controllers of two domains say to each other, as typed records.

Each has a listener for the other, of six paths; docs/domains.md has the order of what is said. Who speaks
is known by the door: it lets in whom the other domain's authority calls a controller, and nobody else.

    POST /peer/v1/matches                 Match       ->  Offer
    POST /peer/v1/migrations              Prepare     ->  Prepared
    POST /peer/v1/migrations/{id}/words   Word        ->  Heard      {id}: the listener's own
    POST /peer/v1/removals                Removed     ->  {}
    POST /peer/v1/names                   NamesAsked  ->  Names
    POST /peer/v1/images                  ImageAsked  ->  ImageFound
"""

from enum import StrEnum
from typing import Annotated

import msgspec

from retinue.core.limits import (
    ID,
    LATEST,
    LONGEST_ADDRESS,
    LONGEST_ID,
    MOST_FC_LOGINS,
    MOST_IMAGE_HOLDERS,
    MOST_MEMORY_MIB,
    MOST_NICS,
)
from retinue.core.migration import MigrationState
from retinue.core.migration.precopy import WANTED_DOWNTIME
from retinue.core.placement.scores import FARTHEST
from retinue.protocol.images import SignedManifest
from retinue.protocol.migrations import LONGEST_DOWNTIME_MS
from retinue.protocol.mobility import Share, Size

MATCHES_PATH = "/peer/v1/matches"
PREPARE_PATH = "/peer/v1/migrations"
WORDS_PATH = "/peer/v1/migrations/{id}/words"
REMOVALS_PATH = "/peer/v1/removals"
NAMES_PATH = "/peer/v1/names"
IMAGES_PATH = "/peer/v1/images"
MOST_NAMES, LONGEST_VERSION, LONGEST_ZONE = 10_000, 16, 255
LONGEST_MARK, MOST_GUEST_ADDRESSES, LONGEST_REASON = 32, 16, 500
LONGEST_OPTIONS = 2048
"""Hexadecimal digits of an option field, or of a client identifier."""

_ID = ID.pattern
Id = Annotated[str, msgspec.Meta(max_length=LONGEST_ID, pattern=rf"^{_ID}\Z")]
"""It becomes part of paths, events and logs: what is none is not even read."""
IdOrNone = Annotated[str, msgspec.Meta(max_length=LONGEST_ID, pattern=rf"^({_ID})?\Z")]


class Said(StrEnum):
    """What is said of a migration that has been prepared."""

    # ---- by the source's domain ----
    COPY_STARTED = "copy_started"
    CONVERGED = "converged"
    """Divert: the VM runs at the source until you have, and a mark has come through the tunnel."""
    STOPPED = "stopped"
    SOURCE_FREED = "source_freed"
    ROLL_BACK = "roll_back"
    """It is off, and at the source the traffic goes to the source again."""
    # ---- by the target's domain ----
    OPENED = "opened"
    """QEMU and port wait at `server`, its memory is taken in at `memory_at`, and the way there stands."""
    DIVERTED = "diverted"
    """What comes by the tunnel goes to the target; accepted once `mark` has come by the tunnel."""
    RESUMED = "resumed"
    TARGET_CLOSED = "target_closed"
    FAILED = "failed"


MOST_ADDRESSES_OF_A_NAME = MOST_GUEST_ADDRESSES * MOST_NICS

Address = Annotated[str, msgspec.Meta(max_length=LONGEST_ADDRESS)]
Hex = Annotated[str, msgspec.Meta(max_length=LONGEST_OPTIONS, pattern="^([0-9a-f]{2})*$")]


class GuestAddress(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An address that no manager has given it: a lease of DHCP, or one of IPv6 that the VM has made."""

    ip: Address
    leased: bool = False
    """By a DHCP server at its home; all else is said of a lease only."""
    seconds: Annotated[float, msgspec.Meta(ge=0, le=LATEST)] | None = None
    """For which the lease goes on; None: without end."""
    server: Address = ""
    """The server identifier; "": it is not known, or the lease is of DHCPv6."""
    client_id: Hex = ""
    options: Hex = ""
    """What the VM said to get it, and `told`: the name servers that it was told; as fields of options."""
    told: Hex = ""
    dhcp6: "GuestLease6 | None" = None
    """Of a lease of DHCPv6: what else there is to it."""


class GuestLease6(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """With it a lease of DHCPv6 is renewed; see core.model.Lease6."""

    server: Hex
    """DUID of the server that granted it."""
    iaid: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]
    preferred: Annotated[float, msgspec.Meta(ge=0, le=LATEST)] | None = None
    """Seconds for which the address is preferred; None: as long as the lease."""
    temporary: bool = False
    """Of an IA_TA."""
    options: Hex = ""


class GuestLogin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A port of storage that a forwarder at its home has granted to the NIC."""

    mac: Annotated[str, msgspec.Meta(max_length=17)]
    forwarder: Annotated[str, msgspec.Meta(max_length=17)]
    """The forwarder's MAC."""


class GuestNIC(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A NIC of it, with its static addresses, and what else it holds."""

    mac: Annotated[str, msgspec.Meta(max_length=17)]
    port_id: Id
    addresses: Annotated[list[Address], msgspec.Meta(max_length=MOST_GUEST_ADDRESSES)]
    slot: Annotated[int, msgspec.Meta(ge=1, le=MOST_NICS)] = 1
    held: Annotated[list[GuestAddress], msgspec.Meta(max_length=MOST_GUEST_ADDRESSES)] = []
    logins: Annotated[list[GuestLogin], msgspec.Meta(max_length=MOST_FC_LOGINS)] = []


class Guest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The VM, as its domain knows it."""

    id: Id
    nics: Annotated[list[GuestNIC], msgspec.Meta(min_length=1, max_length=MOST_NICS)]
    is_home: bool
    """It comes home, to the domain that is asked; else the domain that asks is its home."""
    memory_mib: Annotated[int, msgspec.Meta(ge=0, le=MOST_MEMORY_MIB)] = 0


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which of your servers would be best for a VM? Nothing is booked."""

    match: Id
    """As whoever asks counts it."""
    vm: Guest
    cpus: Size = 0
    bandwidth_mbps: Size = 0


class Offer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The best server as it is now, by the rules of its own domain; see core.placement.ServerState."""

    server: IdOrNone = ""
    """ "": none, for the reason given."""
    reason: Annotated[str, msgspec.Meta(max_length=LONGEST_REASON)] = ""
    cpus: Size = 0
    memory_mib: Size = 0
    promised_cpus: Size = 0
    promised_mib: Size = 0
    unknown_vms: Size = 0
    free_mib: Size | None = None
    bandwidth_mbps: Size = 0
    bandwidth_used_mbps: Size = 0
    cpu_used: Share | None = None
    cpu_pressure: Share = 0
    memory_pressure: Share = 0
    distance: Annotated[int, msgspec.Meta(ge=0, le=FARTHEST)] | None = None
    """To the VM's clients, where the VM would come home."""


class Prepare(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Book a place for a VM that is to migrate here."""

    migration: Id
    """As whoever asks counts it; asked again, it is the same one."""
    vm: Guest
    source: Id
    """The server whose agent brings the VM's memory."""
    server: IdOrNone = ""
    """The wished one; "": the best."""
    downtime_ms: Annotated[int, msgspec.Meta(ge=0, le=LONGEST_DOWNTIME_MS)] = round(WANTED_DOWNTIME * 1000)


class Prepared(msgspec.Struct, frozen=True):
    """It is booked; `opened` follows, or `failed`."""

    migration: Id
    """As whoever is asked counts it."""
    server: Id


class Word(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    said: Said
    at: Annotated[float, msgspec.Meta(ge=0, le=LATEST)] = 0.0
    """With `stopped` and `resumed`: when, in seconds since the epoch."""
    reason: Annotated[str, msgspec.Meta(max_length=LONGEST_REASON)] = ""
    memory_at: Annotated[str, msgspec.Meta(max_length=LONGEST_ADDRESS)] = ""
    server: IdOrNone = ""
    mark: Annotated[str, msgspec.Meta(max_length=LONGEST_MARK)] = ""


class Heard(msgspec.Struct, frozen=True):
    """How far the migration is where the word was heard."""

    state: MigrationState


class Removed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A VM of the listener's was a guest of whoever says it, and was removed there."""

    vm: Id


class NamesAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which names have you in the zone that is of both?"""

    zone: Annotated[str, msgspec.Meta(max_length=LONGEST_ZONE)]
    known: Annotated[str, msgspec.Meta(max_length=LONGEST_VERSION)] = ""
    """The version that was answered last; "": none."""


class DomainName(msgspec.Struct, frozen=True):
    """A VM, server or service; of a service the addresses of the VM that serves it."""

    name: Annotated[str, msgspec.Meta(pattern="^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    addresses: Annotated[list[Address], msgspec.Meta(max_length=MOST_ADDRESSES_OF_A_NAME)]


class Names(msgspec.Struct, frozen=True, omit_defaults=True):
    version: Annotated[str, msgspec.Meta(max_length=LONGEST_VERSION)]
    names: Annotated[list[DomainName], msgspec.Meta(max_length=MOST_NAMES)] | None = None
    """All of them; None: it is the version that is known."""


class ImageAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Have you published an image of this name, and who hands it on?"""

    name: Id


class ImageHolder(msgspec.Struct, frozen=True):
    """A server of the domain that answers, whose agent hands chunks on to the other's agents."""

    server: Id
    address: Address


class ImageFound(msgspec.Struct, frozen=True):
    manifest: SignedManifest
    """What the name means, with the signature of a manager of the domain that answers."""
    origin: Id
    """The server where it was published."""
    holders: Annotated[list[ImageHolder], msgspec.Meta(max_length=MOST_IMAGE_HOLDERS)] = []


SAID_BY_SOURCE = frozenset(
    {Said.COPY_STARTED, Said.CONVERGED, Said.STOPPED, Said.SOURCE_FREED, Said.ROLL_BACK}
)
"""All else is the target's domain to say."""
