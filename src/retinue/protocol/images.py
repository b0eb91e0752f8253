"""Images: as they are published, as the controller shows them, and what agents report of what they hold."""

from enum import StrEnum
from typing import Annotated

import msgspec

from retinue.core.content import Manifest
from retinue.core.histogram import QUICK
from retinue.core.limits import (
    LARGEST_COUNT,
    LARGEST_IMAGE,
    LATEST,
    LONGEST_ADDRESS,
    LONGEST_ID,
    LONGEST_REASON,
    MOST_IMAGES,
    MOST_PINS,
)

LARGEST_CERTIFICATE = 16 << 10
"""Bytes of a publisher's certificate (PEM)."""
LONGEST_SIGNATURE = 1024
"""Hexadecimal digits."""
MOST_SERVERS = 4096
"""Servers that one order names."""

Name = Annotated[str, msgspec.Meta(max_length=LONGEST_ID)]
Place = Annotated[str, msgspec.Meta(max_length=2 * LONGEST_ID + 1)]
"""A server; of another domain as DOMAIN/SERVER."""
Servers = Annotated[list[Name], msgspec.Meta(max_length=MOST_SERVERS)]
Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_COUNT)]


class ImageState(StrEnum):
    """What a server has of an image."""

    HELD = "held"
    """All of it."""
    FETCHING = "fetching"
    PARTIAL = "partial"
    """Some of it, and nothing more is wanted now: an upload under way, or one that was broken off."""
    FAILED = "failed"
    """It cannot go on; `reason` says why."""


class SignedManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A manifest, and who vouches for it. Without certificates, in plain text, nobody does."""

    name: Name
    size: Annotated[int, msgspec.Meta(ge=1, le=LARGEST_IMAGE)]
    list_digest: Annotated[str, msgspec.Meta(max_length=64)]
    published_at: Annotated[int, msgspec.Meta(ge=0, le=LATEST)]
    signature: Annotated[str, msgspec.Meta(max_length=LONGEST_SIGNATURE)] = ""
    """Over Manifest.signed, in hexadecimal."""
    certificate: Annotated[str, msgspec.Meta(max_length=LARGEST_CERTIFICATE)] = ""
    """The publisher's: a manager's, in PEM."""

    @property
    def manifest(self) -> Manifest:
        """Raises ContentError for one that no image has."""
        return Manifest(self.name, self.size, self.list_digest, self.published_at)


class PublishBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/images."""

    manifest: SignedManifest
    server: Name = ""
    """Where it is brought first; "": where the controller likes."""


class FetchImageBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/images/{id}/fetch."""

    servers: Servers = []
    """[]: all servers that have an agent."""
    pin: Name = ""
    """Kept until it is unpinned; "": not pinned."""
    base: bool = False
    """Make a file of it there, too."""
    segment: tuple[Count, Count] | None = None
    """Only these chunks, of 1 MiB each: the first and the last, from 0."""
    domain: Name = ""
    """Where it is published, if not here; "": each domain is asked whose images are fetched."""


class UnpinBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/images/{id}/unpin."""

    pin: Name
    servers: Servers = []
    """[]: all."""


class HeldImage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one server has of one image, as its agent reports it. Sizes are bytes."""

    name: Name
    list_digest: Annotated[str, msgspec.Meta(max_length=64)]
    state: ImageState
    held: Count
    """Of `size`; zeros are held by everybody."""
    reason: Annotated[str, msgspec.Meta(max_length=LONGEST_REASON)] = ""
    rate: Annotated[float, msgspec.Meta(ge=0, le=LARGEST_COUNT)] = 0.0
    """Bytes a second in this fetch so far."""
    origins: dict[Place, Count] = {}
    """Bytes fetched in the last fetch, by the server they came from."""
    fallbacks: Count = 0
    """Chunks that the origin was asked for, although others have them."""
    pins: Annotated[list[Name], msgspec.Meta(max_length=MOST_PINS)] = []
    base: bool = False
    """A file has been made of it."""
    order: Count = 0
    """The number of the last order to fetch it that is carried out, or was."""


class StoreUse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes of a server's chunk store."""

    used: Count = 0
    quota: Count = 0
    sent: Count = 0
    """To other servers, since the agent started."""


class Upkeep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the last gc and the last scrub have done, counted since the agent started."""

    gcs: Count = 0
    freed: Count = 0
    """Bytes, by the last gc."""
    scrubs: Count = 0
    checked: Count = 0
    """Chunks, by the last scrub."""
    bad: Count = 0
    """Chunks that it found bad, and removed."""


class ChunkTimes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long fetching chunks took, since the agent started: see core.histogram."""

    counts: Annotated[list[Count], msgspec.Meta(max_length=len(QUICK) + 1)] = []
    """By the bounds of QUICK; [], none was fetched."""
    seconds: Annotated[float, msgspec.Meta(ge=0, le=LARGEST_COUNT)] = 0.0


class ImagesBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/servers/{id}/images: all that a server holds, each time."""

    address: Annotated[str, msgspec.Meta(max_length=LONGEST_ADDRESS)]
    """Where its agent lets others fetch."""
    images: Annotated[list[HeldImage], msgspec.Meta(max_length=MOST_IMAGES)] = []
    store: StoreUse = StoreUse()
    upkeep: Upkeep = Upkeep()
    faults: dict[Place, Count] = {}
    """By server: chunks with a wrong digest that came from there, since this agent started."""
    fetched: ChunkTimes = ChunkTimes()
    doors: dict[Name, Annotated[str, msgspec.Meta(max_length=LONGEST_ADDRESS)]] = {}
    """By domain: where its agents fetch from this one; left out where there is none. A controller that does
    not know it passes over it, as over all that it does not know of an agent's report (protocol.releases)."""


def domain_of(place: str) -> str:
    """Of a server as an image's origins and holders are named; "": this domain."""
    return place.partition("/")[0] if "/" in place else ""


class HolderRecord(msgspec.Struct, frozen=True):
    """One who may be asked for chunks."""

    server: str
    """Of another domain: DOMAIN/SERVER."""
    address: str
    near: bool = False
    """It is at the leaf of the server that asks."""


class ImageRecord(msgspec.Struct, frozen=True):
    """An image as GET /v1/images/{id} shows it: the fields that an agent and a publisher need."""

    manifest: SignedManifest
    origin: str
    """Of an image of another domain DOMAIN/SERVER: then that domain's authority vouches for its publisher."""
    holders: list[HolderRecord] = []
