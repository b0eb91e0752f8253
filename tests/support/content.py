"""Images for tests."""

from retinue.core.content import CHUNK_BYTES, ChunkList, Manifest, chunk_digest, digest_of


def image(name: str, data: bytes) -> tuple[Manifest, ChunkList]:
    """The manifest and the chunk list of a file with this content."""
    listed = b"".join(chunk_digest(part) for part in parts(data))
    manifest = Manifest(name, len(data), digest_of(listed).hex(), 1_700_000_000)
    return manifest, ChunkList(manifest, listed)


def parts(data: bytes) -> list[bytes]:
    return [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]


def some_bytes(chunks: int, *, zeros: tuple[int, ...] = (), tail: int = 0) -> bytes:
    """Content of so many chunks, each different, those in `zeros` all zero, and `tail` bytes more."""
    numbers = range(1, chunks + 1)
    whole = (bytes(CHUNK_BYTES) if n in zeros else n.to_bytes(4) * (CHUNK_BYTES // 4) for n in numbers)
    return b"".join(whole) + b"t" * tail
