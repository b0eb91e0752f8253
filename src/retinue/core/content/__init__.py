"""Content by name: what an image is made of, and how its chunks are fetched from many holders at once.

An image is a file under a name that never changes its meaning: a signed manifest names the digest of its list
of chunks, the list the digest of every chunk. Who has the manifest can check every byte, whoever sent it.
"""

from retinue.core.content.bitmap import Bitmap
from retinue.core.content.fetch import Ask, Distance, Effect, Fetch, HolderRejected, Patience
from retinue.core.content.manifest import (
    CHUNK_BYTES,
    ZERO,
    ChunkList,
    ContentError,
    Manifest,
    chunk_digest,
    digest_of,
    image_name,
)

__all__ = [
    "CHUNK_BYTES",
    "ZERO",
    "Ask",
    "Bitmap",
    "ChunkList",
    "ContentError",
    "Distance",
    "Effect",
    "Fetch",
    "HolderRejected",
    "Manifest",
    "Patience",
    "chunk_digest",
    "digest_of",
    "image_name",
]
