"""`retinue image`, with the real controller and real agents in this process: what is said, and what is so."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner, Result

from retinue.agent.content.service import ContentService
from retinue.agent.content.store import Store
from retinue.agent.migration.peer import Transfer
from retinue.cli.main import app
from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.core.content import CHUNK_BYTES
from retinue.protocol.client import ControllerClient
from retinue.protocol.events import HELLO, IMAGE_ORDERS, EventType
from retinue.protocol.routes import Route
from retinue.security.credentials import Credentials
from support.agents.content import QUICK
from support.content import some_bytes
from support.fabric.networks import fabric

DATA = some_bytes(6, zeros=(3,), tail=7)


@dataclass
class World:
    url: str
    folder: Path
    controller: Controller
    services: dict[str, ContentService]
    following: dict[str, asyncio.Task[None]]

    async def leave(self, server: str) -> None:
        """Its agent goes, and the controller sees it when it has something to tell it."""
        self.following[server].cancel()
        async with asyncio.timeout(60):
            while not self.controller.context.agents.is_away(server):
                self.controller.events.publish(EventType.PORT_REMOVED, vm="none", switch="edge3")
                await asyncio.sleep(0.01)

    async def run(self, *words: str) -> Result:
        # The command makes an event loop of its own: it needs a thread.
        return await asyncio.to_thread(CliRunner().invoke, app, ["image", *words, "--url", self.url])

    async def says(self, *words: str) -> str:
        result = await self.run(*words)
        assert result.exit_code == 0, result.output
        return result.output

    async def complains(self, *words: str) -> str:
        result = await self.run(*words)
        assert result.exit_code == 1
        return result.output

    def file(self, name: str, data: bytes) -> str:
        path = self.folder / name
        path.write_bytes(data)
        return str(path)


async def _follow(rest: ControllerClient, service: ContentService) -> None:
    async with contextlib.aclosing(rest.events(None)) as events:
        async for event in events:
            if event.type == HELLO:
                service.reports.again()
            elif event.type in IMAGE_ORDERS:
                service.on_event(event)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Three agents follow the controller, in plain text."""
    for variable in ("RETINUE_CA", "RETINUE_CERT", "RETINUE_KEY", "RETINUE_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    controller = Controller(fabric())
    await controller.start()
    api = Api(controller, dict)
    url = f"http://127.0.0.1:{await api.start('127.0.0.1', 0)}"
    made = World(url, tmp_path, controller, {}, {})
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(structlog.testing.capture_logs())
        tasks = []
        for server in ("server1", "server2"):
            rest = ControllerClient(url, Credentials(), agent_of=server)
            stack.push_async_callback(rest.close)
            transfer = Transfer(server)
            await transfer.start("127.0.0.1")
            stack.push_async_callback(transfer.close)
            store = Store(tmp_path / server, 1 << 30)
            address = transfer.address
            service = ContentService(
                server, store, rest, transfer.open, lambda address=address: address, None, QUICK  # type: ignore[misc]
            )  # fmt: skip
            transfer.visitors = service
            stack.push_async_callback(service.close)
            made.services[server] = service
            made.following[server] = asyncio.create_task(_follow(rest, service))
            tasks += [asyncio.create_task(service.run()), made.following[server]]
        async with asyncio.timeout(60):
            while len(controller.images.holders.servers()) < 2:
                await rest.get(Route.GET_STATUS.path())
        yield made
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        controller.events.close()
    await api.stop()
    await controller.stop()


async def test_a_session(world: World) -> None:
    """An image is published, fetched, shown, pinned, removed, and its room freed."""
    assert "There are no images." in await world.says("list")
    file = world.file("disk.raw", DATA)
    said = await world.says("publish", file, "debian-12", "--server", "server1")
    assert said == "debian-12 is published at server1: 6.0 MiB, 5.0 MiB sent\n"
    assert "0 B sent" in await world.says("publish", file, "debian-12")
    said = await world.says("fetch", "debian-12", "--to", "server2", "--pin", "vm1", "--base", "--wait")
    assert said == "server2 holds debian-12: 5.0 MiB from server1\n"
    assert world.services["server2"].store.base_file("debian-12").read_bytes() == DATA
    assert "server1, server2" in await world.says("list")
    shown = await world.says("show", "debian-12")
    assert f"6.0 MiB ({len(DATA)} bytes)" in shown
    assert "vm1" in shown
    row = json.loads(await world.says("show", "debian-12", "--json"))
    assert [(held["server"], held["state"], held["pins"]) for held in row["held"]] == [
        ("server1", "held", []),
        ("server2", "held", ["vm1"]),
    ]
    assert "needed at server2 by vm1" in await world.complains("remove", "debian-12")
    assert "not needed for vm1 any more" in await world.says("unpin", "debian-12", "vm1")
    async with asyncio.timeout(60):
        while (await world.run("remove", "debian-12")).exit_code:
            pass
    freed = json.loads(await world.says("gc", "--json"))["stores"]
    assert [(store["server"], store["freed"], store["used"]) for store in freed] == [
        ("server1", 5 * CHUNK_BYTES + 7, 0),
        ("server2", 5 * CHUNK_BYTES + 7, 0),
    ]
    assert "There are no images." in await world.says("list")


async def test_scrub_says_what_it_found(world: World) -> None:
    await world.says("publish", world.file("disk.raw", DATA), "d", "--server", "server1")
    next((world.folder / "server1" / "chunks").glob("??/*")).write_bytes(b"bad")
    assert await world.says("scrub", "--server", "server1") == "server1: 6 chunks read, 1 bad\n"


@pytest.mark.parametrize(("word", "done"), [("gc", "5.0 MiB freed"), ("scrub", "6 chunks read, 0 bad")])
async def test_a_server_whose_agent_is_away_does_not_stop_the_others(
    world: World, word: str, done: str
) -> None:
    await world.says("publish", world.file("disk.raw", DATA), "d", "--server", "server2")
    if word == "gc":
        await world.says("remove", "d")
    await world.leave("server1")
    result = await world.run(word)
    assert result.exit_code == 1
    assert result.output.splitlines() == [f"server2: {done}", "retinue: no agent of server1 is here"]
    shown = json.loads((await world.run(word, "--json")).stdout)
    assert [one["server"] for one in shown["stores"]] == ["server2"]
    assert shown["not_done"] == {"server1": "no agent of server1 is here"}
    assert await world.says(word, "--server", "server2")


async def test_a_fetch_is_not_taken_for_an_earlier_one_that_failed(world: World) -> None:
    """Its reason stands until the agent hears of the new order; the command waits for what comes of that."""
    await world.says("publish", world.file("disk.raw", DATA), "d", "--server", "server1")
    store = world.services["server2"].store
    store.quota = 1
    assert "cannot fetch d: the quota" in await world.complains("fetch", "d", "--to", "server2", "--wait")
    store.quota = 1 << 30
    assert "server2 holds d" in await world.says("fetch", "d", "--to", "server2", "--wait")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("show", "none"), "there is no image none; `retinue image list` shows those there are"),
        (("fetch", "none"), "there is no image none"),
        (("remove", "none"), "there is no image none"),
        (("gc", "--server", "server3"), "no agent of server3 is here"),
        (("scrub", "--server", "nowhere"), "there is no server nowhere"),
        (("publish", "/no/such/file", "d"), "cannot read /no/such/file"),
        (("publish", "/dev/null", "d"), "has 0 bytes: an image has 1"),
        (("publish", "{file}", "a/b"), "is no name of an image"),
        (("publish", "{file}", "d", "--server", "server3"), "no agent of server3 is here to take the image"),
    ],
)
async def test_what_cannot_be_done_is_one_sentence(world: World, words: tuple[str, ...], why: str) -> None:
    file = world.file("disk.raw", b"some")
    said = await world.complains(*(word.format(file=file) for word in words))
    assert why in said
    assert len(said.splitlines()) == 1


async def test_a_name_means_one_image(world: World) -> None:
    await world.says("publish", world.file("one.raw", b"one"), "d")
    said = await world.complains("publish", world.file("two.raw", b"two"), "d")
    assert "d is another image already, and a name never changes its meaning" in said


async def test_a_segment_is_fetched_by_itself(world: World) -> None:
    await world.says("publish", world.file("disk.raw", DATA), "debian-12", "--server", "server1")
    said = await world.says("fetch", "debian-12", "--to", "server2", "--segment", "0-1", "--wait")
    assert said == "server2 holds 0-1 of debian-12: 2.0 MiB from server1\n"
    store = world.services["server2"].store
    assert list(store.bitmap(store.images["debian-12"])) == [0, 1, 2], "the third is zeros"
    said = await world.says("fetch", "debian-12", "--to", "server2", "--segment", "1-1", "--wait")
    assert "server2 holds 1-1 of debian-12" in said
    said = await world.says("fetch", "debian-12", "--to", "server2", "--wait")
    assert said == "server2 holds debian-12: 3.0 MiB from server1\n"
    assert "is no segment" in await world.complains("fetch", "debian-12", "--segment", "3-99")
    for wrong in ("1", "a-b", "-2", "1-2-3"):
        assert "is not FIRST-LAST" in await world.complains("fetch", "debian-12", f"--segment={wrong}")


async def test_of_a_domain_that_is_none_nothing_is_fetched(world: World) -> None:
    assert "there is no domain c" in await world.complains("fetch", "debian-12", "--from", "c")
    assert "there is no image debian-12" in await world.complains("fetch", "debian-12")
