"""An image's manifest and its list of chunks: what they say, and what is not believed."""

import pytest

from retinue.core.content import CHUNK_BYTES, ZERO, Bitmap, ChunkList, ContentError, Manifest, chunk_digest
from retinue.core.limits import LARGEST_IMAGE
from support.content import image

ODD = b"\x01" * CHUNK_BYTES + bytes(CHUNK_BYTES) + b"\x01" * CHUNK_BYTES + b"end"


def test_a_file_is_cut_into_chunks_and_zeros_are_left_out() -> None:
    manifest, chunks = image("debian-12", ODD)
    assert (manifest.size, manifest.chunks, len(chunks)) == (len(ODD), 4, 4)
    assert [manifest.length_of(n) for n in range(4)] == [CHUNK_BYTES, CHUNK_BYTES, CHUNK_BYTES, 3]
    assert chunks[1] == ZERO
    assert chunks[0] == chunks[2] != chunks[3]
    assert sorted(chunks.distinct().values()) == [0, 3]


def test_a_short_last_chunk_of_zeros_is_left_out_too() -> None:
    assert image("z", b"\x01" * CHUNK_BYTES + bytes(5))[1][1] == ZERO
    assert chunk_digest(bytes(CHUNK_BYTES)) == ZERO


def test_each_chunk_is_checked_by_length_and_digest() -> None:
    _, chunks = image("debian-12", ODD)
    chunks.check(3, b"end")
    with pytest.raises(ContentError, match="chunk 3 of debian-12: its digest is wrong"):
        chunks.check(3, b"End")
    with pytest.raises(ContentError, match="2 bytes instead of 3"):
        chunks.check(3, b"en")
    for number in (-1, 4):
        with pytest.raises(IndexError):
            chunks[number]


@pytest.mark.parametrize(("cut", "why"), [(32, "96 bytes, where 128"), (0, "not the one the manifest names")])
def test_a_list_that_is_not_the_manifests_is_refused(cut: int, why: str) -> None:
    manifest, chunks = image("debian-12", ODD)
    data = chunks.data[cut:] if cut else bytes([chunks.data[0] ^ 1]) + chunks.data[1:]
    with pytest.raises(ContentError, match=why):
        ChunkList(manifest, data)


def test_what_is_signed_is_one_line_for_each_value() -> None:
    assert Manifest("d", 5, "ab" * 32, 7).signed == (
        b"retinue image, version 1: chunks of 1048576 bytes, SHA-256\nd\n5\n" + b"ab" * 32 + b"\n7\n"
    )


@pytest.mark.parametrize(
    "values",
    [
        ("a/b", 5, "ab" * 32, 7),
        ("", 5, "ab" * 32, 7),
        ("x" * 64, 5, "ab" * 32, 7),
        ("a\nb", 5, "ab" * 32, 7),
        ("d", 0, "ab" * 32, 7),
        ("d", -1, "ab" * 32, 7),
        ("d", LARGEST_IMAGE + 1, "ab" * 32, 7),
        ("d", 5, "AB" * 32, 7),
        ("d", 5, "ab" * 31, 7),
        ("d", 5, "ab" * 32, -1),
    ],
)
def test_no_image_has_such_values(values: tuple[str, int, str, int]) -> None:
    with pytest.raises(ContentError):
        Manifest(*values)


def test_a_bitmap_is_a_set_of_chunks() -> None:
    held = Bitmap.of(11, (0, 8, 10))
    assert (list(held), len(held), bytes(held)) == ([0, 8, 10], 3, b"\x01\x05")
    assert list(Bitmap(11, bytes(held))) == [0, 8, 10]
    held.discard(8)
    assert 8 not in held
    assert -1 not in held
    assert len(held) < held.size
    assert len(Bitmap.full(11)) == 11
    for size, bits in ((11, b"\x01"), (11, b"\x01\x08"), (8, b"\x01\x01")):
        with pytest.raises(ValueError, match="no bitmap"):
            Bitmap(size, bits)
    with pytest.raises(ValueError, match="no chunk"):
        held.add(11)
