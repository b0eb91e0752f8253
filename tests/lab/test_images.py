"""Images by name on real agents: published once, fetched at once, from whoever holds them."""

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from retinue.core.content import CHUNK_BYTES
from retinue_lab.network import agents
from support.lab.tools import LabBench, eventually

pytestmark = pytest.mark.lab

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
    freed = json.loads(await bench.cli("image", "gc", "--json"))["stores"]
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
