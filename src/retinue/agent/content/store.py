"""Chunks on a server's disk, each under its digest, once however many images have it.

    FOLDER/chunks/ab/cdef...   a chunk; its name is its SHA-256
    FOLDER/lists/DIGEST        a chunk list
    FOLDER/images/NAME         what is known of an image: its signed manifest, its pins, whether it is wanted
    FOLDER/base/NAME           the image as a file (see make_base)

Nothing is stored whose digest has not been checked, and every file is complete or not there. The methods may
be called from any thread; those that read or write files block.

A store that *evicts*, a cache's, makes room by itself: the chunk goes that nobody has asked for the longest
(its file's time says when), but none of an image that is pinned, or being fetched.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec
import structlog

from retinue.core.content import Bitmap, ChunkList, ContentError, digest_of, image_name
from retinue.core.content.manifest import CHUNK_BYTES, ZERO
from retinue.core.limits import MOST_IMAGES, MOST_PINS
from retinue.protocol.images import SignedManifest

log = structlog.get_logger()

_DRAFT = "~new"
"""How the file of a write that is under way ends: no name of an image ends so."""


class StoreError(Exception):
    """What the store cannot do; the message says why and what helps."""


class _ImageFile(msgspec.Struct):
    signed: SignedManifest
    origin: str = ""
    wanted: bool = False
    base: bool = False
    pins: list[str] = []
    segment: tuple[int, int] | None = None


@dataclass(slots=True)
class StoredImage:
    """An image of which something is here, or is to be."""

    signed: SignedManifest
    chunks: ChunkList
    origin: str
    """The server where it was published."""
    wanted: bool = False
    """It is to be fetched until it is whole, also after a restart."""
    base: bool = False
    """A file is to be made of it."""
    pins: list[str] = field(default_factory=list)
    segment: tuple[int, int] | None = None
    """The chunks, first and last, that are wanted; None: all."""

    @property
    def name(self) -> str:
        return self.signed.name

    def want(self, segment: tuple[int, int] | None) -> None:
        """Have it fetched, or a segment of it; what was wanted already, and is not here yet, still is."""
        before = self.segment if self.wanted else segment
        self.segment = None
        if before is not None and segment is not None:
            self.segment = min(before[0], segment[0]), max(before[1], segment[1])
        self.wanted = True


class Store:
    """The chunks and images in one folder. Raises StoreError where the folder cannot be used."""

    def __init__(self, folder: Path, quota: int, *, evicts: bool = False) -> None:
        """`quota`: bytes of all chunks together; `evicts`: where they are used up older chunks go."""
        self.folder, self.quota, self._evicts = folder, quota, evicts
        self.images: dict[str, StoredImage] = {}
        self.used = 0
        self.changes = 0
        """Rises whenever a chunk comes or goes."""
        self._sizes: dict[bytes, int] = {}
        """By digest: bytes of each chunk that is here; where the store evicts, the next to go first."""
        self._kept: set[bytes] | None = None
        """What is not evicted, once somebody has asked."""
        self._lock = threading.Lock()
        with _disk():
            for part in ("chunks", "lists", "images", "base"):
                (folder / part).mkdir(parents=True, exist_ok=True, mode=0o700)
            self._load()

    def _load(self) -> None:
        for draft in self.folder.glob(f"*/**/*{_DRAFT}"):
            draft.unlink()  # Of a write that a crash has cut off.
        found = [(path, path.stat()) for path in self.folder.glob("chunks/??/*")]
        for path, of in sorted(found, key=lambda one: one[1].st_mtime_ns):
            with contextlib.suppress(ValueError):
                self._sizes[bytes.fromhex(path.parent.name + path.name)] = of.st_size
        self.used = sum(self._sizes.values())
        for path in sorted(self.folder.glob("images/*")):
            try:
                kept = msgspec.json.decode(path.read_bytes(), type=_ImageFile)
                manifest = kept.signed.manifest
                chunks = ChunkList(manifest, self._list_file(manifest.list_digest).read_bytes())
            except (OSError, ValueError, msgspec.MsgspecError) as error:
                log.warning("content.image_left_out", file=str(path), error=str(error))
                continue
            self.images[manifest.name] = StoredImage(
                kept.signed, chunks, kept.origin, kept.wanted, kept.base, kept.pins, kept.segment
            )

    # ---- images ----

    def put_image(self, signed: SignedManifest, chunk_list: bytes, origin: str) -> StoredImage:
        """Begin with an image, or go on with it. Raises ContentError, StoreError."""
        known = self.images.get(signed.name)
        if known is not None and known.signed.list_digest == signed.list_digest:
            return known
        if known is not None:
            raise StoreError(f"there is another image {signed.name} here: remove that first")
        if len(self.images) >= MOST_IMAGES:
            raise StoreError(f"there are {MOST_IMAGES} images here already: remove one")
        chunks = ChunkList(signed.manifest, chunk_list)
        with _disk():
            _write(self._list_file(signed.list_digest), chunk_list)
        image = StoredImage(signed, chunks, origin)
        self.save(image)
        self.images[signed.name] = image
        return image

    def save(self, image: StoredImage) -> None:
        """Keep what was changed of an image. Raises StoreError."""
        kept = _ImageFile(image.signed, image.origin, image.wanted, image.base, image.pins, image.segment)
        self._kept = None
        with _disk():
            _write(self.folder / "images" / image_name(image.name), msgspec.json.encode(kept))

    def pin(self, image: StoredImage, pin: str, *, on: bool) -> None:
        """A pinned image is not removed. Raises StoreError."""
        pins = sorted({*image.pins, pin} if on else {*image.pins} - {pin})
        if len(pins) > MOST_PINS:
            raise StoreError(f"{image.name} is needed for {MOST_PINS} things here already: unpin one")
        if pins != image.pins:
            image.pins = pins
            self.save(image)

    def remove_image(self, name: str) -> None:
        """Its chunks stay until `collect`. Raises StoreError when it is pinned."""
        image = self.images.get(name)
        if image is None:
            return
        if image.pins:
            raise StoreError(f"{name} is needed by {', '.join(image.pins)}")
        del self.images[name]
        self._kept = None
        others = {each.signed.list_digest for each in self.images.values()}
        with _disk():
            for path in (self.folder / "images" / name, self.base_file(name)):
                path.unlink(missing_ok=True)
            if image.signed.list_digest not in others:
                self._list_file(image.signed.list_digest).unlink(missing_ok=True)

    def base_file(self, name: str) -> Path:
        return self.folder / "base" / image_name(name)

    # ---- chunks ----

    def has(self, digest: bytes) -> bool:
        return digest == ZERO or digest in self._sizes

    def missing(self, image: StoredImage, segment: tuple[int, int] | None = None) -> list[int]:
        """Chunks that are to be fetched, of all or of a segment (first and last): of those with the same
        content the first."""
        chunks = image.chunks.distinct(segment)
        return [chunk for digest, chunk in chunks.items() if digest not in self._sizes]

    def bitmap(self, image: StoredImage) -> Bitmap:
        """What of it is here."""
        return Bitmap.of(len(image.chunks), (n for n, d in enumerate(image.chunks) if self.has(d)))

    def held_bytes(self, image: StoredImage) -> int:
        manifest = image.chunks.manifest
        lacking = sum(manifest.length_of(n) for n, d in enumerate(image.chunks) if not self.has(d))
        return manifest.size - lacking

    def put_chunk(self, image: StoredImage, chunk: int, data: bytes) -> None:
        """Store a chunk, once it has been checked. Raises ContentError; StoreError: there is no room."""
        image.chunks.check(chunk, data)
        digest = image.chunks[chunk]
        with self._lock:
            if digest in self._sizes:
                return
            self._make_room(len(data))
            if self.used + len(data) > self.quota:
                raise StoreError(
                    f"the quota of {self.quota >> 20} MiB is used up: `retinue image gc`, or remove an image"
                )
            self.used += len(data)  # Room is taken before it is written: several threads write at once.
        try:
            with _disk():
                _write(self._chunk_file(digest), data)
        except StoreError:
            with self._lock:
                self.used -= len(data)
            raise
        with self._lock:
            if digest in self._sizes:  # Another thread wrote the same.
                self.used -= len(data)
            self._sizes[digest] = len(data)
            self.changes += 1

    def get_chunk(self, image: StoredImage, chunk: int) -> bytes | None:
        """As it lies on the disk, unchecked: who gets it checks it. None: it is not here."""
        digest = image.chunks[chunk]
        if digest == ZERO:
            return bytes(image.chunks.manifest.length_of(chunk))
        try:
            data = self._chunk_file(digest).read_bytes()[: CHUNK_BYTES + 1]
            if self._evicts:
                self._used_now(digest)
            return data
        except FileNotFoundError:
            self._forget(digest)
            return None
        except OSError as error:
            log.warning("content.chunk_not_read", digest=digest.hex(), error=str(error))
            return None

    def get_good_chunk(self, image: StoredImage, chunk: int) -> bytes | None:
        """The same, checked. One that is not what it should be is removed."""
        data = self.get_chunk(image, chunk)
        try:
            if data is not None and image.chunks[chunk] != ZERO:
                image.chunks.check(chunk, data)
        except ContentError as error:
            log.warning("content.bad_chunk_removed", digest=image.chunks[chunk].hex(), error=str(error))
            with contextlib.suppress(StoreError):
                self.drop_chunk(image.chunks[chunk])
            return None
        return data

    def _make_room(self, length: int) -> None:
        """Evict until so much more fits, as far as may be. With the lock."""
        if not self._evicts or self.used + length <= self.quota:
            return
        if self._kept is None:
            needed = [image for image in list(self.images.values()) if image.pins or image.wanted]
            self._kept = {digest for image in needed for digest in image.chunks.distinct()}
        while self.used + length > self.quota:
            digest = next((digest for digest in self._sizes if digest not in self._kept), None)
            if digest is None:
                return
            with _disk():
                self._chunk_file(digest).unlink(missing_ok=True)
            self.used -= self._sizes.pop(digest)
            self.changes += 1

    def _used_now(self, digest: bytes) -> None:
        """It is the last to go."""
        with self._lock:
            if digest in self._sizes:
                self._sizes[digest] = self._sizes.pop(digest)
        with contextlib.suppress(OSError):
            os.utime(self._chunk_file(digest))

    def drop_chunk(self, digest: bytes) -> None:
        """Its content is not what it should be."""
        self._forget(digest)
        with _disk():
            self._chunk_file(digest).unlink(missing_ok=True)

    def collect(self) -> int:
        """Remove the chunks that no image has; the bytes that are free now. Raises StoreError."""
        needed = {digest for image in list(self.images.values()) for digest in image.chunks.distinct()}
        before = self.used
        for digest in [digest for digest in list(self._sizes) if digest not in needed]:
            self.drop_chunk(digest)
        return before - self.used

    def scrub(self) -> tuple[int, int]:
        """Read every chunk, and remove those that are not what they should be: how many were read, how many
        were bad. Raises StoreError."""
        bad = 0
        digests = list(self._sizes)
        for digest in digests:
            try:
                good = digest_of(self._chunk_file(digest).read_bytes()) == digest
            except OSError:
                good = False
            if not good and digest in self._sizes:
                log.warning("content.bad_chunk_removed", digest=digest.hex())
                self.drop_chunk(digest)
                bad += 1
        return len(digests), bad

    def _forget(self, digest: bytes) -> None:
        with self._lock:
            self.used -= self._sizes.pop(digest, 0)
            self.changes += 1

    def _chunk_file(self, digest: bytes) -> Path:
        text = digest.hex()
        return self.folder / "chunks" / text[:2] / text[2:]

    def _list_file(self, list_digest: str) -> Path:
        return self.folder / "lists" / list_digest


def make_base(store: Store, image: StoredImage) -> Path:
    """The image as a file: every chunk checked once more, zeros left out as holes. Whole, or not there.

    Raises StoreError for a chunk that is not here or not what it should be (which is then removed), and where
    the disk is full.
    """
    manifest, path = image.chunks.manifest, store.base_file(image.name)
    draft = path.with_name(path.name + _DRAFT)
    try:
        with _disk(), _created(draft) as file:
            file.truncate(manifest.size)
            for chunk, digest in enumerate(image.chunks):
                if digest == ZERO:
                    continue
                data = store.get_chunk(image, chunk)
                if data is None:
                    raise StoreError(f"chunk {chunk} of {image.name} is not here: fetch it again")
                try:
                    image.chunks.check(chunk, data)
                except ContentError as error:
                    store.drop_chunk(digest)
                    raise StoreError(f"{error}; it has been removed: fetch it again") from error
                file.seek(chunk * CHUNK_BYTES)
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
            draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    """A fault of the disk as a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError("the disk is full: free space on it, or `retinue image gc`") from error
        raise StoreError(f"{error.filename or 'the store'}: {error.strerror}") from error


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, for this user only."""
    draft = path.with_name(f"{path.name}.{threading.get_ident()}{_DRAFT}")
    try:
        path.parent.mkdir(exist_ok=True, mode=0o700)
        with _created(draft) as file:
            file.write(data)
        draft.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def _created(path: Path) -> BinaryIO:
    """A new file, for this user only."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
