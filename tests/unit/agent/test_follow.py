"""An agent survives whatever comes through the event stream, and acts on what comes next."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from retinue.agent.main import follow
from retinue.core.limits import LARGEST_EVENT
from retinue.protocol.client import ControllerClient
from retinue.protocol.events import ACTED_ON, HELLO, ControllerEvent

PATIENCE = 60.0


class Streams:
    """A controller whose event stream is what the test makes it."""

    def __init__(self, *pieces: bytes, cut: bool = False) -> None:
        self.pieces = pieces
        self.asked: list[tuple[str | None, str | None]] = []

    async def stream(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.query.get("since"), request.query.get("types")))
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in (b'event: hello\ndata: {"id": 3, "type": "hello"}\n\n', *self.pieces):
            await response.write(piece)
        if len(self.asked) == 1 and not self.pieces:
            assert request.transport is not None
            request.transport.abort()
        return response


class Acts:
    """Stands in for the dispatcher and for the renewals."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[str] = asyncio.Queue()
        self.caught_up = 0
        self.fails = 0
        """How often more it does not catch up, by a fault of its own."""

    async def catch_up(self) -> None:
        self.caught_up += 1
        if self.fails:
            self.fails -= 1
            raise RuntimeError("a fault of ours")

    def on_event(self, event: ControllerEvent) -> None:
        if event.type == "vm.ready":
            raise RuntimeError("a fault of ours")
        self.events.put_nowait(event.type)

    def match(self, event: ControllerEvent) -> None:
        self.events.put_nowait(f"{event.match} asks {', '.join(event.servers)}")

    def take(self, renewal: dict[str, Any]) -> None:
        raise KeyError("id")


@contextlib.asynccontextmanager
async def following(controller: Streams) -> AsyncIterator[Acts]:
    app = web.Application()
    app.router.add_get("/v1/events", controller.stream)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    acts = Acts()
    async with ControllerClient(f"http://127.0.0.1:{port}") as rest:
        work = follow(rest, acts, acts, asyncio.Event(), others=acts.match)
        task = asyncio.create_task(work)
        try:
            yield acts
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await runner.cleanup()


def event(type: str, id: int, **data: object) -> bytes:
    shown = json.dumps({"id": id, "type": type, **data}).encode()
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (id, type.encode(), shown)


REMOVED = event("vm.removed", 9, vm={"id": "vm1", "mac": "m", "server": "s"})

ODD = {
    "an event of many MiB": b"event: renewal.failed\ndata: {" + b"x" * (3 * LARGEST_EVENT) + b"}\n\n",
    "one that an agent acts on": b'event: vm.ready\ndata: {"id": 4, "x": "'
    + b"y" * (2 * LARGEST_EVENT)
    + b'"}\n\n',
    "half a surrogate pair": b'event: vm.ready\ndata: {"\\ud800": 1}\n\n',
    "half a surrogate pair in a text": b'event: vm.removed\ndata: {"id": 4, "reason": "\\udfff"}\n\n',
    "no UTF-8": b"event: vm.ready\ndata: \xff\xfe\n\n",
    "no JSON": b"event: vm.removed\ndata: nonsense\n\n",
    "no object": b"event: vm.removed\ndata: []\n\n",
    "deep": b"event: vm.removed\ndata: " + b"[" * 100_000 + b"\n\n",
    "a huge number": b'event: vm.removed\ndata: {"id": ' + b"9" * 5000 + b"}\n\n",
    "a fault of ours": event("vm.ready", 5, vm={"id": "vm1", "mac": "m", "server": "s"}),
    "a renewal that is none": event("vm.renew", 6, renewal={"id": 7}),
    "lines of nothing": b"\n\n\r\n:\n: \nevent\n\n",
}


@pytest.mark.parametrize("odd", ODD)
async def test_an_agent_acts_on_what_comes_after(odd: str) -> None:
    async with following(Streams(ODD[odd], REMOVED)) as acts:
        async with asyncio.timeout(PATIENCE):
            while await acts.events.get() != "vm.removed":
                pass


async def test_an_agent_comes_back_whatever_went_wrong() -> None:
    async with following(Streams(REMOVED)) as acts:
        acts.fails = 2
        async with asyncio.timeout(PATIENCE):
            assert await acts.events.get() == "vm.removed"
        assert acts.fails == 0 and acts.caught_up >= 3


async def test_an_agent_comes_back_when_the_stream_breaks_off() -> None:
    controller = Streams()
    async with following(controller) as acts:
        async with asyncio.timeout(PATIENCE):
            while acts.caught_up < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert controller.asked[1][0] == "3"


async def test_an_agent_asks_for_what_it_acts_on() -> None:
    controller = Streams(REMOVED)
    async with following(controller) as acts:
        async with asyncio.timeout(PATIENCE):
            await acts.events.get()
    assert set((controller.asked[0][1] or "").split(",")) == ACTED_ON - {HELLO}


async def test_a_match_message_is_for_those_who_answer_it() -> None:
    asked = event("mobility.match", 8, match="match-1", vm="vm1", profile={"os": "x"}, servers=["a", "b"])
    async with following(Streams(asked, REMOVED)) as acts:
        async with asyncio.timeout(PATIENCE):
            assert [await acts.events.get() for _ in range(2)] == ["match-1 asks a, b", "vm.removed"]
