"""The store of chunks: nothing unchecked comes in, nothing that is needed goes, a full disk is a sentence."""

import errno
import os
import stat
from pathlib import Path

import pytest

from retinue.agent.content import store as module
from retinue.agent.content.store import Store, StoredImage, StoreError, make_base
from retinue.core.content import CHUNK_BYTES, ContentError
from retinue.protocol.images import SignedManifest
from support.content import image, parts, some_bytes

QUOTA = 64 * CHUNK_BYTES
DATA = some_bytes(4, zeros=(2,), tail=5)


def known(store: Store, name: str, data: bytes, origin: str = "server1") -> StoredImage:
    manifest, chunks = image(name, data)
    signed = SignedManifest(name, manifest.size, manifest.list_digest, manifest.published_at)
    return store.put_image(signed, chunks.data, origin)


def filled(store: Store, name: str, data: bytes) -> StoredImage:
    made = known(store, name, data)
    for chunk in store.missing(made):
        store.put_chunk(made, chunk, parts(data)[chunk])
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "content", QUOTA)


def test_an_image_is_stored_but_for_its_zeros_and_is_there_after_a_restart(store: Store) -> None:
    made = known(store, "d", DATA)
    assert store.missing(made) == [0, 2, 3, 4]
    assert list(store.bitmap(made)) == [1]
    filled(store, "d", DATA)
    assert (store.used, store.held_bytes(made)) == (3 * CHUNK_BYTES + 5, len(DATA))
    again = Store(store.folder, QUOTA)
    found = again.images["d"]
    assert (again.used, again.missing(found), len(again.bitmap(found))) == (store.used, [], 5)
    assert b"".join(again.get_chunk(found, n) or b"" for n in range(5)) == DATA


def test_what_two_images_share_is_stored_once(store: Store) -> None:
    filled(store, "d", DATA)
    before = store.used
    other = known(store, "e", some_bytes(3) + b"more")
    assert store.missing(other) == [1, 3], "its second chunk is zeros in the other"
    assert store.used == before


def test_nobody_else_can_read_what_is_stored(store: Store) -> None:
    filled(store, "d", DATA)
    make_base(store, store.images["d"])
    for path in store.folder.rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_a_chunk_that_is_not_what_it_should_be_is_not_stored(store: Store) -> None:
    made = known(store, "d", DATA)
    for chunk, data in ((0, b"x" * CHUNK_BYTES), (0, b""), (4, parts(DATA)[0]), (1, bytes(CHUNK_BYTES - 1))):
        with pytest.raises(ContentError):
            store.put_chunk(made, chunk, data)
    assert store.used == 0
    assert not list(store.folder.glob("chunks/*/*"))


def test_a_list_that_is_not_the_manifests_is_not_stored(store: Store) -> None:
    manifest, chunks = image("d", DATA)
    signed = SignedManifest("d", manifest.size, manifest.list_digest, 7)
    with pytest.raises(ContentError):
        store.put_image(signed, chunks.data[::-1], "server1")
    assert not store.images


def test_the_quota_bounds_all_chunks_together(tmp_path: Path) -> None:
    small = Store(tmp_path, 2 * CHUNK_BYTES)
    made = known(small, "d", DATA)
    small.put_chunk(made, 0, parts(DATA)[0])
    small.put_chunk(made, 2, parts(DATA)[2])
    with pytest.raises(StoreError, match="the quota of 2 MiB is used up: `retinue image gc`"):
        small.put_chunk(made, 4, parts(DATA)[4])
    assert small.used == 2 * CHUNK_BYTES
    assert small.missing(made) == [3, 4]


def test_a_full_disk_is_a_sentence_and_leaves_nothing_behind(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = known(store, "d", DATA)

    def full(path: Path) -> object:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(module, "_created", full)
    with pytest.raises(StoreError, match="the disk is full"):
        store.put_chunk(made, 0, parts(DATA)[0])
    assert (store.used, store.missing(made)) == (0, [0, 2, 3, 4])
    assert not list(store.folder.glob("chunks/*/*"))
    with pytest.raises(StoreError, match="the disk is full"):
        known(store, "e", DATA + b"x")
    assert set(store.images) == {"d"}


def test_a_write_that_a_crash_cut_off_is_forgotten(store: Store) -> None:
    filled(store, "d", DATA)
    some = next(store.folder.glob("chunks/*/*"))
    some.rename(some.with_name(f"{some.name}.7~new"))
    again = Store(store.folder, QUOTA)
    assert len(again.missing(again.images["d"])) == 1
    assert not list(store.folder.rglob("*new"))


def test_an_image_that_cannot_be_read_is_left_out_and_the_others_are_there(store: Store) -> None:
    filled(store, "d", DATA)
    filled(store, "e", DATA + b"x")
    (store.folder / "images" / "e").write_bytes(b"{}")
    assert set(Store(store.folder, QUOTA).images) == {"d"}


def test_a_name_means_one_image_here_too(store: Store) -> None:
    known(store, "d", DATA)
    with pytest.raises(StoreError, match="another image d here"):
        known(store, "d", DATA + b"x")


# ---- what is needed stays ----


def test_gc_takes_what_no_image_has_and_nothing_else(store: Store) -> None:
    filled(store, "d", DATA)
    only_here = filled(store, "e", DATA + some_bytes(9)[-CHUNK_BYTES:])
    part = known(store, "part", some_bytes(8))
    store.put_chunk(part, 6, parts(some_bytes(8))[6])
    assert store.collect() == 0, "an image that is being fetched keeps what it has"
    before = store.used
    store.remove_image("e")
    freed = store.collect()
    assert freed == before - store.used > 0
    assert not store.missing(store.images["d"])
    assert only_here.name not in store.images
    assert store.get_chunk(part, 6)


def test_what_is_pinned_is_not_removed(store: Store) -> None:
    made = filled(store, "d", DATA)
    store.pin(made, "vm1", on=True)
    store.pin(made, "migration-1", on=True)
    store.pin(made, "vm1", on=False)
    again = Store(store.folder, QUOTA)
    with pytest.raises(StoreError, match="d is needed by migration-1"):
        again.remove_image("d")
    again.pin(again.images["d"], "migration-1", on=False)
    again.remove_image("d")
    again.remove_image("d")
    again.collect()
    assert again.used == 0
    assert not [path for path in again.folder.rglob("*") if path.is_file()]


# ---- what has gone bad ----


def spoil(store: Store, made: StoredImage, chunk: int) -> Path:
    digest = made.chunks[chunk].hex()
    path = store.folder / "chunks" / digest[:2] / digest[2:]
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    return path


def test_scrub_finds_and_removes_what_has_gone_bad(store: Store) -> None:
    made = filled(store, "d", DATA)
    assert store.scrub() == (4, 0)
    path = spoil(store, made, 3)
    assert store.scrub() == (4, 1)
    assert not path.exists()
    assert store.missing(made) == [3]
    store.put_chunk(made, 3, parts(DATA)[3])
    assert store.scrub() == (4, 0)


def test_a_file_is_made_with_holes_and_is_what_was_published(store: Store) -> None:
    data = some_bytes(2, zeros=(2,)) + bytes(8 * CHUNK_BYTES) + b"end"
    path = make_base(store, filled(store, "d", data))
    assert path.read_bytes() == data
    assert path.stat().st_blocks * 512 < 3 * CHUNK_BYTES


def test_a_chunk_that_went_bad_here_does_not_get_into_the_file(store: Store) -> None:
    made = filled(store, "d", DATA)
    spoil(store, made, 2)
    with pytest.raises(StoreError, match="chunk 2 of d: its digest is wrong; it has been removed"):
        make_base(store, made)
    assert store.missing(made) == [2]
    with pytest.raises(StoreError, match="chunk 2 of d is not here"):
        make_base(store, made)
    assert not list((store.folder / "base").iterdir())


def test_a_chunk_whose_file_is_gone_is_missing(store: Store) -> None:
    made = filled(store, "d", DATA)
    spoil(store, made, 0).unlink()
    assert store.get_chunk(made, 0) is None
    assert store.missing(made) == [0]


def test_an_image_may_have_any_name_that_the_draft_of_a_file_has_not(store: Store) -> None:
    for name in ("d", "d.new"):
        make_base(store, filled(store, name, DATA))
    again = Store(store.folder, QUOTA)
    assert set(again.images) == {"d", "d.new"}
    assert again.base_file("d.new").read_bytes() == DATA


def test_a_store_that_evicts_lets_go_of_what_nobody_asked_for_the_longest(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache", 4 * CHUNK_BYTES, evicts=True)
    first = filled(store, "d", some_bytes(4))
    for n, path in enumerate(sorted((store.folder / "chunks").glob("??/*"), key=os.path.getmtime)):
        os.utime(path, (n, n))
    assert store.get_chunk(first, 0) is not None, "now the second is the oldest"
    again = Store(store.folder, store.quota, evicts=True)
    for known_store in (store, again):  # Also after a restart.
        made = known(known_store, "e", some_bytes(5)[4 * CHUNK_BYTES :])
        known_store.put_chunk(made, 0, some_bytes(5)[4 * CHUNK_BYTES :])
        assert known_store.missing(known_store.images["d"]) == [1]
        assert known_store.used == 4 * CHUNK_BYTES
        known_store.drop_chunk(made.chunks[0])
        known_store.put_chunk(known_store.images["d"], 1, parts(some_bytes(4))[1])
        os.utime(known_store._chunk_file(first.chunks[1]), (0, 0))


def test_a_store_evicts_nothing_that_is_pinned_or_being_fetched(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache", 4 * CHUNK_BYTES, evicts=True)
    first = filled(store, "d", some_bytes(2))
    store.pin(first, "vm1", on=True)
    second = known(store, "e", some_bytes(4)[2 * CHUNK_BYTES :])
    second.want(None)
    store.save(second)
    for chunk in (0, 1):
        store.put_chunk(second, chunk, parts(some_bytes(4))[2 + chunk])
    third = known(store, "f", some_bytes(5)[4 * CHUNK_BYTES :])
    with pytest.raises(StoreError, match="is used up"):
        store.put_chunk(third, 0, some_bytes(5)[4 * CHUNK_BYTES :])
    store.pin(first, "vm1", on=False)
    store.put_chunk(third, 0, some_bytes(5)[4 * CHUNK_BYTES :])
    assert store.missing(first) == [0]


def test_what_was_wanted_of_an_image_stays_wanted(store: Store) -> None:
    made = known(store, "d", DATA)
    made.want((1, 2))
    assert made.segment == (1, 2) and store.missing(made, made.segment) == [2]
    made.want((4, 4))
    assert made.segment == (1, 4), "until it is here"
    store.save(made)
    assert Store(store.folder, QUOTA).images["d"].segment == (1, 4)
    made.want(None)
    assert made.segment is None
    made.want((0, 0))
    assert made.segment is None, "all of it is still wanted"
    made.wanted = False
    made.want((0, 0))
    assert made.segment == (0, 0)
