"""The watcher's reports on their way to the controller: in order, again while it is away, not if refused."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from retinue.agent import libvirt_watch
from retinue.agent.libvirt_watch import Reporter
from retinue.hypervisor.libvirt_events import Happening, Kind

LIMIT = 5.0


class Controller:
    """Takes reports, and answers each as `answers` says, in turn, then 200."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.paths: set[str] = set()
        self.answers: list[int] = []
        self.hold: dict[str, asyncio.Event] = {}
        """Reports about these VMs are answered when the event is set."""
        self.url = ""
        self._arrived = asyncio.Condition()

    async def take(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.paths.add(request.path)
        if body["vm"] in self.hold:
            await self.hold[body["vm"]].wait()
        async with self._arrived:
            self.heard.append(body)
            self._arrived.notify_all()
        status = self.answers.pop(0) if self.answers else 200
        return web.json_response({"error": "no"} if status >= 400 else {}, status=status)

    async def until(self, number: int) -> list[tuple[str, str]]:
        """What the first so many reports were about."""
        async with asyncio.timeout(LIMIT), self._arrived:
            await self._arrived.wait_for(lambda: len(self.heard) >= number)
        return [(body["vm"], body["kind"]) for body in self.heard[:number]]


@pytest.fixture
async def controller(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Controller]:
    monkeypatch.setattr(libvirt_watch, "AGAIN_SECONDS", 0.01)
    made = Controller()
    app = web.Application()
    app.add_routes([web.post("/v1/servers/{id}/hypervisor-events", made.take)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    yield made
    await runner.cleanup()


@pytest.fixture
async def reporter(controller: Controller) -> AsyncIterator[Reporter]:
    made = Reporter(controller.url, "server 1")
    yield made
    await made.close()


def word(vm: str, kind: Kind, ago: float = 0.0) -> Happening:
    return Happening(vm, kind, time.time() - ago)


async def test_reports_about_one_vm_keep_their_order_and_others_do_not_wait(
    controller: Controller, reporter: Reporter
) -> None:
    held = controller.hold["a"] = asyncio.Event()
    for vm, kind in (("a", Kind.INCOMING), ("a", Kind.RESUMED), ("b", Kind.STARTED)):
        reporter.tell(word(vm, kind))
    assert await controller.until(1) == [("b", "started")]
    assert reporter.busy("a")
    held.set()
    assert (await controller.until(3))[1:] == [("a", "incoming"), ("a", "resumed")]
    assert controller.paths == {"/v1/servers/server 1/hypervisor-events"}
    assert set(controller.heard[0]) == {"vm", "kind", "at"}


async def test_a_controller_out_of_order_is_told_again_before_anything_later(
    controller: Controller, reporter: Reporter
) -> None:
    controller.answers = [500, 503]
    for kind in (Kind.SUSPENDED, Kind.DEPARTED):
        reporter.tell(word("a", kind))
    assert await controller.until(4) == [*[("a", "suspended")] * 3, ("a", "departed")]


async def test_a_refused_report_is_not_told_again(controller: Controller, reporter: Reporter) -> None:
    controller.answers = [409]
    for kind in (Kind.SUSPENDED, Kind.DEPARTED):
        reporter.tell(word("a", kind))
    assert await controller.until(2) == [("a", "suspended"), ("a", "departed")]


async def test_what_is_no_news_any_more_is_left_out(controller: Controller, reporter: Reporter) -> None:
    reporter.tell(word("a", Kind.SUSPENDED, ago=libvirt_watch.OLDEST + 1))
    reporter.tell(word("a", Kind.STARTED))
    assert await controller.until(1) == [("a", "started")]
