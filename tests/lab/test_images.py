"""Images by name on real agents: published once, fetched at once, from whoever holds them."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import msgspec
import pytest

from retinue.core.content import CHUNK_BYTES
from retinue_lab.network import agents
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology import topology_file
from retinue_lab.topology.parts import CachePart
from support.lab.start import lab_of
from support.lab.tools import LabBench, eventually

pytestmark = [pytest.mark.lab, pytest.mark.patient]

CACHE = CachePart(id="cache1", leaf="leaf1", mac="02:00:00:00:00:c1", address=IPv4Address("10.0.0.201"))
"""At the leaf of server1 and server3."""

SERVERS = ("--server", "server1", "--server", "server2", "--server", "server3")
"""All but the cache, which dies."""
HOLE = 16
"""Chunks of zeros in the middle of an image."""


def written(path: Path, chunks: int) -> tuple[int, str]:
    """A file of random content with a hole and an odd end; its size and digest."""
    with path.open("wb") as file:
        file.write(os.urandom(chunks // 2 * CHUNK_BYTES))
        file.write(bytes(HOLE * CHUNK_BYTES))
        file.write(os.urandom(chunks // 2 * CHUNK_BYTES + 77))
    return path.stat().st_size, digest(path)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def base(bench: LabBench, server: str, name: str) -> Path:
    return agents.folder(Path(bench.lab.directory), server) / "content" / "base" / name


async def held(bench: LabBench, name: str, server: str) -> dict[str, Any]:
    rows = (await bench.get(f"images/{name}"))["held"]
    return next((row for row in rows if row["server"] == server), {})


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    """The default network and a cache."""
    network = msgspec.structs.replace(topology_file.load(), cache=(CACHE,))
    with lab_of(tmp_path_factory.mktemp("labs"), network) as handle:
        yield handle


async def sent(bench: LabBench, server: str) -> int:
    """Bytes of chunks that have left a server, by its agent's last report."""
    stores = (await bench.get("images"))["stores"]
    return next(int(store["sent"]) for store in stores if store["server"] == server)


async def test_one_copy_comes_to_a_leaf_with_a_cache_however_many_fetch_there(
    bench: LabBench, tmp_path: Path
) -> None:
    """Nobody was told where the cache is: it is at the leaf where its ARP was seen. Then it dies for good."""
    size, right = written(tmp_path / "cached.raw", 64)
    once = size - HOLE * CHUNK_BYTES
    await bench.cli("image", "publish", f"{tmp_path}/cached.raw", "cached", "--server", "server2")
    shown = await bench.get("images/cached?server=server3")
    assert {holder["server"]: holder["near"] for holder in shown["holders"]} == {
        "cache1": True,
        "server2": False,
    }
    to = ("--to", "server1", "--to", "server3")
    shown = json.loads(await bench.cli("image", "fetch", "cached", *to, "--base", "--wait", "--json"))
    rows = {row["server"]: row for row in shown["held"]}
    for server in ("server1", "server3"):
        assert digest(base(bench, server, "cached")) == right
        assert "server2" not in rows[server]["origins"] and not rows[server]["fallbacks"]
        assert rows[server]["origins"]["cache1"] > 0

    async def told() -> bool:
        return await sent(bench, "server2") >= once

    await eventually(told)
    left_the_origin = await sent(bench, "server2")
    print(f"bytes that left the origin: {left_the_origin / once:.2f} copies")
    assert left_the_origin == once
    assert (await held(bench, "cached", "cache1"))["state"] == "held"

    bench.kill("cache1-agent")
    said = await bench.cli("image", "fetch", "cached", "--to", "server2", "--segment", "0-1", "--wait")
    assert "server2 holds 0-1 of cached: it was there" in said
    await bench.cli("image", "remove", "cached")
    await bench.cli("image", "gc", *SERVERS)


async def test_an_image_is_fetched_by_two_servers_at_once_and_about_one_copy_leaves_the_origin(
    bench: LabBench, tmp_path: Path
) -> None:
    size, right = written(tmp_path / "disk.raw", 128)
    said = json.loads(
        await bench.cli("image", "publish", f"{tmp_path}/disk.raw", "disk-1", "--server", "server1", "--json")
    )
    assert (said["server"], said["sent"]) == ("server1", size - HOLE * CHUNK_BYTES)
    again = await bench.cli("image", "publish", f"{tmp_path}/disk.raw", "disk-1", "--server", "server1")
    assert "0 B sent" in again, "what is there is not sent again"

    to = ("--to", "server2", "--to", "server3")
    shown = json.loads(await bench.cli("image", "fetch", "disk-1", *to, "--base", "--wait", "--json"))
    rows = {row["server"]: row for row in shown["held"]}
    for server in ("server2", "server3"):
        made = base(bench, server, "disk-1")
        assert digest(made) == right
        assert stat.S_IMODE(made.stat().st_mode) == 0o600
        assert made.stat().st_blocks * 512 <= size - (HOLE - 1) * CHUNK_BYTES, "zeros are holes"
        assert sum(rows[server]["origins"].values()) == size - HOLE * CHUNK_BYTES
    left_the_origin = sum(rows[server]["origins"].get("server1", 0) for server in ("server2", "server3"))
    print(f"bytes that left the origin: {left_the_origin / (size - HOLE * CHUNK_BYTES):.2f} copies")
    assert left_the_origin <= 1.5 * size
    assert rows["server2"]["origins"].get("server3", 0) > 0
    assert rows["server3"]["origins"].get("server2", 0) > 0

    assert "server1, server2, server3" in await bench.cli("image", "list")
    assert "disk-1" in await bench.cli("image", "show", "disk-1")
    other = tmp_path / "other.raw"
    other.write_bytes(b"another")
    refused = await bench.cli("image", "publish", str(other), "disk-1", fails=True)
    assert "disk-1 is another image already" in refused


async def test_a_bad_chunk_is_found_by_scrub_and_fetched_again(bench: LabBench) -> None:
    folder = agents.folder(Path(bench.lab.directory), "server2") / "content" / "chunks"
    victim = next(path for path in sorted(folder.glob("??/*")))
    content = victim.read_bytes()
    victim.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    said = json.loads(await bench.cli("image", "scrub", "--server", "server2", "--json"))
    assert [(store["server"], store["bad"]) for store in said["stores"]] == [("server2", 1)]

    async def whole() -> bool:
        return (await held(bench, "disk-1", "server2"))["state"] == "held" and victim.exists()

    await eventually(whole)
    assert victim.read_bytes() == content


async def test_what_is_pinned_stays_and_what_nobody_needs_goes(bench: LabBench) -> None:
    await bench.cli("image", "fetch", "disk-1", "--to", "server3", "--pin", "vm7", "--wait")
    assert "disk-1 is needed at server3 by vm7" in await bench.cli("image", "remove", "disk-1", fails=True)
    await bench.cli("image", "unpin", "disk-1", "vm7")

    async def unpinned() -> bool:
        return not (await held(bench, "disk-1", "server3"))["pins"]

    await eventually(unpinned)
    await bench.cli("image", "remove", "disk-1")

    async def forgotten() -> bool:
        return not base(bench, "server3", "disk-1").exists()

    await eventually(forgotten)
    freed = json.loads(await bench.cli("image", "gc", *SERVERS, "--json"))["stores"]
    assert all(store["freed"] >= 128 * CHUNK_BYTES and store["used"] == 0 for store in freed)


async def test_a_holder_dies_in_the_middle_and_the_fetch_ends_right(bench: LabBench, tmp_path: Path) -> None:
    size, right = written(tmp_path / "large.raw", 256)
    file = f"{tmp_path}/large.raw"
    await bench.cli("image", "publish", file, "large", "--server", "server1")
    await bench.cli("image", "fetch", "large", "--to", "server2", "--wait")
    await bench.cli("image", "fetch", "large", "--to", "server3", "--base")

    async def begun() -> bool:
        return bool((await held(bench, "large", "server3")).get("held", 0) > 20 * CHUNK_BYTES)

    await eventually(begun)
    bench.kill("server2-agent")

    async def whole() -> bool:
        row = await held(bench, "large", "server3")
        return bool(row["state"] == "held" and row["base"])

    await eventually(whole)
    row = await held(bench, "large", "server3")
    assert digest(base(bench, "server3", "large")) == right
    assert min(row["origins"].get("server1", 0), row["origins"].get("server2", 0)) > 0, "it died too late"
    assert sum(row["origins"].values()) == size - HOLE * CHUNK_BYTES
