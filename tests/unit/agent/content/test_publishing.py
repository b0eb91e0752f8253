"""An image brought to an agent: by a manager, as its manifest says, and only what is not there yet."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from retinue.agent.content.service import ContentService
from retinue.agent.content.store import Store
from retinue.agent.content.wire import Word, send_bytes
from retinue.agent.migration.peer import Transfer, agent_of
from retinue.cli import image_upload
from retinue.cli.errors import CliError
from retinue.core.content import CHUNK_BYTES, ChunkList
from retinue.hypervisor.memory_channel import READ_BYTES, Channel, ChannelError
from retinue.protocol.images import ImageRecord, ImageState, SignedManifest
from retinue.security.credentials import Credentials
from retinue.socket_addresses import endpoint
from support.agents.content import ImageAgents, ImageController
from support.content import image, parts, some_bytes
from support.pki_files import Certificates

DATA = some_bytes(5, zeros=(2,), tail=9)
SENT = len(DATA) - CHUNK_BYTES


@pytest.fixture
async def agents(tmp_path: Path) -> AsyncIterator[ImageAgents]:
    made = ImageAgents(tmp_path)
    await made.start("server1")
    yield made
    await made.close()


def published(
    controller: ImageController, data: bytes, origin: str = "server1"
) -> tuple[ImageRecord, ChunkList]:
    manifest, chunks = image("d", data)
    signed = SignedManifest("d", manifest.size, manifest.list_digest, manifest.published_at)
    controller.published["d"] = (signed, origin)
    return ImageRecord(signed, origin), chunks


async def upload(agents: ImageAgents, file: Path, record: ImageRecord, server: str = "server1") -> int:
    listed = image_upload.chunk_list(file, lambda done, size: None)
    address = agents.transfers[server].address
    return await image_upload._upload(file, listed, record, address, Credentials(), lambda done, size: None)


async def test_what_is_missing_is_brought_and_a_second_time_nothing(
    agents: ImageAgents, tmp_path: Path
) -> None:
    file = tmp_path / "disk.raw"
    file.write_bytes(DATA)
    record, _ = published(agents.controller, DATA)
    assert await upload(agents, file, record) == SENT
    store = agents.services["server1"].store
    assert not store.missing(store.images["d"])
    assert await upload(agents, file, record) == 0


async def test_a_file_that_changed_meanwhile_is_refused(agents: ImageAgents, tmp_path: Path) -> None:
    file = tmp_path / "disk.raw"
    file.write_bytes(DATA)
    record, chunks = published(agents.controller, DATA)
    file.write_bytes(b"x" + DATA[1:])
    address = agents.transfers["server1"].address
    with pytest.raises(CliError, match="not the one the manifest names"):
        await upload(agents, file, record)
    with pytest.raises(CliError, match="server1 does not take the image: chunk 0 of d: its digest is wrong"):
        await image_upload._upload(file, chunks.data, record, address, Credentials(), lambda done, size: None)
    assert agents.services["server1"].store.used == 0


async def test_what_is_not_published_here_is_refused(agents: ImageAgents, tmp_path: Path) -> None:
    file = tmp_path / "disk.raw"
    file.write_bytes(DATA)
    record, _ = published(agents.controller, DATA, "server2")
    with pytest.raises(CliError, match="d is published at server2: bring it there"):
        await upload(agents, file, record)
    agents.controller.published.clear()
    with pytest.raises(CliError, match="there is no image d"):
        await upload(agents, file, record)


async def test_an_upload_that_breaks_off_is_taken_up(agents: ImageAgents, tmp_path: Path) -> None:
    record, chunks = published(agents.controller, DATA)
    channel = Channel(*await asyncio.open_connection(*endpoint(agents.transfers["server1"].address)))
    await channel.send_message(Word.PUBLISH, image="d")
    assert (await channel.receive_message())["type"] == Word.ACCEPTED
    await send_bytes(channel, chunks.data)
    await channel.receive()
    await channel.send_message(Word.CHUNK, n=0)
    await channel.send_memory(parts(DATA)[0])
    await agents.controller.until("server1", "d", ImageState.PARTIAL)
    async with asyncio.timeout(60):
        while agents.controller.held("server1", "d")["held"] < 2 * CHUNK_BYTES:
            agents.controller.changed.clear()
            await agents.controller.changed.wait()
    await channel.close()
    file = tmp_path / "disk.raw"
    file.write_bytes(DATA)
    assert await upload(agents, file, record) == SENT - CHUNK_BYTES


@pytest.mark.parametrize(
    "words",
    [
        [(Word.END, {})],
        [(Word.CHUNK, {"n": 99})],
        [(Word.CHUNK, {"n": "0"})],
        [(Word.CHUNK, {})],
        [(Word.HAS, {"chunks": []})],
        [(Word.CHUNK, {"n": 0}), (Word.CHUNK, {"n": 1})],
    ],
)
async def test_whoever_says_something_else_is_not_listened_to(
    agents: ImageAgents, words: list[tuple[Word, dict[str, Any]]]
) -> None:
    _, chunks = published(agents.controller, DATA)
    channel = Channel(*await asyncio.open_connection(*endpoint(agents.transfers["server1"].address)))
    await channel.send_message(Word.PUBLISH, image="d")
    await channel.receive_message()
    await send_bytes(channel, chunks.data)
    await channel.receive()
    for word, more in words:
        await channel.send_message(word, **more)
    try:
        answer = await channel.receive_message()
        assert answer["type"] == Word.REJECTED
        assert "were not sent" in answer["reason"]
    except ChannelError:
        pass
    finally:
        await channel.close()
    assert agents.services["server1"].store.used == 0


# ---- who may ----


@pytest.mark.parametrize(
    ("party", "hello", "answer"),
    [
        ("manager/anna", Word.PUBLISH, Word.ACCEPTED),
        ("agent/server2", Word.PUBLISH, Word.REJECTED),
        ("manager/anna", Word.CONTENT, Word.ABSENT),
        ("agent/server2", Word.CONTENT, Word.ABSENT),
        ("reader/bob", Word.PUBLISH, None),
        ("reader/bob", Word.CONTENT, None),
        ("switch/edge1", Word.CONTENT, None),
        ("manager/anna", "migrate", None),
    ],
)
async def test_managers_publish_agents_fetch_and_nobody_else_is_let_in(
    tmp_path: Path, party: str, hello: str, answer: str | None
) -> None:
    pki = Certificates(tmp_path / "pki")
    listening = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    listening.load_cert_chain(*pki.files("agent/server1"))
    listening.load_verify_locations(pki.authority.ca)
    listening.verify_mode = ssl.CERT_REQUIRED
    transfer = Transfer("server1", listening, None, agent_of)
    controller = ImageController()
    published(controller, DATA)
    store = Store(tmp_path / "store", 1 << 30)
    transfer.visitors = ContentService(
        "server1", store, controller, transfer.open, lambda: transfer.address, None
    )
    await transfer.start("127.0.0.1")
    showing = pki.client(party)
    showing.check_hostname = False
    try:
        ends = await asyncio.open_connection(*endpoint(transfer.address), ssl=showing, limit=READ_BYTES)
        channel = Channel(*ends)
        try:
            await channel.send_message(hello, image="d", list="", migration="m", source="server2")
            got = (await channel.receive_message())["type"]
        except ChannelError:
            got = None
        assert got == answer
        await channel.close()
    finally:
        await transfer.close()
