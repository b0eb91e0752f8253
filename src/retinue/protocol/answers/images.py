"""Images, and who holds how much of them, as answers."""

import msgspec

from retinue.protocol.answers.common import Numbers
from retinue.protocol.images import HolderRecord, ImageState, SignedManifest


class HeldAt(msgspec.Struct):
    server: str
    here: bool
    name: str
    list_digest: str
    state: ImageState
    held: int
    reason: str
    rate: float
    origins: Numbers
    fallbacks: int
    pins: list[str]
    base: bool
    order: int


class ShownImage(msgspec.Struct):
    name: str
    manifest: SignedManifest
    publisher: str
    origin: str
    holders: list[HolderRecord]
    held: list[HeldAt]


class ShownStore(msgspec.Struct):
    server: str
    here: bool
    address: str
    used: int
    quota: int
    sent: int
    gcs: int
    freed: int
    scrubs: int
    checked: int
    bad: int


class AllImages(msgspec.Struct):
    images: list[ShownImage]
    stores: list[ShownStore]
    rejected: Numbers
    """By holder: chunks with a wrong digest."""


class OrderedImage(msgspec.Struct):
    image: str
    servers: list[str]


class OrderedFetch(msgspec.Struct):
    image: str
    servers: list[str]
    order: int
    """The order's number: `order` of what each of the servers holds, once it carries it out."""


class OrderedServer(msgspec.Struct):
    server: str
