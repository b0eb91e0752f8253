"""What an image is: its name, its size, and the digests by which every byte of it can be checked.

A file is cut into chunks of 1 MiB, the last may be shorter. The *chunk list* is the SHA-256 digests of all
chunks, one after another, 32 bytes each; a chunk of zeros is not stored anywhere and stands in the list as 32
zero bytes. The *manifest* has the name, the size, and the digest of the list; it is small, and is what the
publisher signs. So nothing that arrives need be trusted: the signature covers the list, the list the chunks.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from retinue.core.limits import ID, ID_IN_WORDS, LARGEST_IMAGE, LATEST
from retinue.core.text import quoted

CHUNK_BYTES = 1 << 20
DIGEST_BYTES = 32
ZERO = bytes(DIGEST_BYTES)
"""In the place of the digest of a chunk of zeros."""
_ZEROS = bytes(CHUNK_BYTES)
_VERSION = "retinue image, version 1: chunks of 1048576 bytes, SHA-256"
"""The first line of what is signed: no signature of anything else can be taken for one of an image."""


class ContentError(ValueError):
    """A name, a manifest, a list or a chunk that is not what it should be; the message says what is wrong."""


def image_name(text: str) -> str:
    """The name itself. Raises ContentError."""
    if not ID.fullmatch(text):
        raise ContentError(f"{quoted(text)} is no name of an image: {ID_IN_WORDS}")
    return text


def digest_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def chunk_digest(chunk: bytes) -> bytes:
    """As it stands in a chunk list: ZERO for a chunk of zeros."""
    return ZERO if chunk == _ZEROS[: len(chunk)] else digest_of(chunk)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Raises ContentError for values that no image has."""

    name: str
    size: int
    """Bytes of the file."""
    list_digest: str
    """SHA-256 of the chunk list, in hexadecimal."""
    published_at: int
    """Seconds since the epoch, by the publisher's clock."""

    def __post_init__(self) -> None:
        image_name(self.name)
        if not 0 < self.size <= LARGEST_IMAGE:
            raise ContentError(f"an image has 1 to {LARGEST_IMAGE >> 30} GiB, not {self.size} bytes")
        if len(self.list_digest) != 2 * DIGEST_BYTES or set(self.list_digest) - set("0123456789abcdef"):
            raise ContentError(f"{quoted(self.list_digest)} is no SHA-256 digest in hexadecimal")
        if not 0 <= self.published_at <= LATEST:
            raise ContentError(f"{self.published_at} is no time of a publication")

    @property
    def chunks(self) -> int:
        return -(-self.size // CHUNK_BYTES)

    @property
    def list_bytes(self) -> int:
        return self.chunks * DIGEST_BYTES

    def length_of(self, chunk: int) -> int:
        """Bytes of a chunk."""
        return min(CHUNK_BYTES, self.size - chunk * CHUNK_BYTES)

    @property
    def signed(self) -> bytes:
        """What the publisher's signature is over: always the same bytes for the same manifest, and no others
        have them, since no value has a line end."""
        lines = (_VERSION, self.name, str(self.size), self.list_digest, str(self.published_at))
        return "".join(f"{line}\n" for line in lines).encode()


class ChunkList:
    """The digests of an image's chunks. Raises ContentError when it is not the manifest's list."""

    def __init__(self, manifest: Manifest, data: bytes) -> None:
        if len(data) != manifest.list_bytes:
            raise ContentError(f"a chunk list of {len(data)} bytes, where {manifest.list_bytes} are right")
        if digest_of(data).hex() != manifest.list_digest:
            raise ContentError("a chunk list that is not the one the manifest names")
        self.manifest = manifest
        self.data = data

    def __len__(self) -> int:
        return self.manifest.chunks

    def __getitem__(self, chunk: int) -> bytes:
        """The digest of a chunk; ZERO: it is all zeros."""
        if not 0 <= chunk < len(self):
            raise IndexError(chunk)
        return self.data[chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES]

    def __iter__(self) -> Iterator[bytes]:
        return (self[chunk] for chunk in range(len(self)))

    def distinct(self, segment: tuple[int, int] | None = None) -> dict[bytes, int]:
        """Each digest but ZERO, of all or of a segment (first and last chunk), with the first chunk that has
        it: what must be fetched and stored."""
        first: dict[bytes, int] = {}
        low, high = segment or (0, len(self) - 1)
        for chunk in range(max(0, low), min(high + 1, len(self))):
            digest = self[chunk]
            if digest != ZERO:
                first.setdefault(digest, chunk)
        return first

    def check(self, chunk: int, data: bytes) -> None:
        """Raises ContentError unless this is that chunk's content."""
        if len(data) != self.manifest.length_of(chunk):
            want = self.manifest.length_of(chunk)
            raise ContentError(f"chunk {chunk} of {self.manifest.name}: {len(data)} bytes instead of {want}")
        if digest_of(data) != self[chunk]:
            raise ContentError(f"chunk {chunk} of {self.manifest.name}: its digest is wrong")
