"""What libvirt does, on its way to the controller: in order, again while it is away, not if rejected."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from retinue.agent.controller_link import libvirt_reporter
from retinue.agent.controller_link import reports as reporting
from retinue.agent.controller_link.libvirt_reporter import LibvirtReporter
from retinue.agent.controller_link.reports import Reports
from retinue.hypervisor.libvirt.connection import LibvirtHost
from retinue.hypervisor.libvirt.domain_xml import Consoles, domain_xml
from retinue.protocol.client import ControllerClient
from retinue.protocol.hypervisor_events import EventKind, HypervisorEvent
from retinue.security.credentials import Credentials
from support.agents.libvirt_world import ID, made_spec
from support.fakes.libvirt import FakeLibrary

LIMIT = 60.0


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
    monkeypatch.setattr(reporting, "RETRY_SECONDS", 0.01)
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
async def watched(controller: Controller) -> AsyncIterator[LibvirtReporter]:
    http = ControllerClient(controller.url, Credentials())
    reports = Reports(http)
    yield LibvirtReporter("server 1", LibvirtHost("server1", "test:///", FakeLibrary()), reports)
    await reports.close()
    await http.close()


def word(vm: str, kind: EventKind, ago: float = 0.0) -> HypervisorEvent:
    return HypervisorEvent(vm, kind, time.time() - ago)


async def test_reports_about_one_vm_keep_their_order_and_others_do_not_wait(
    controller: Controller, watched: LibvirtReporter
) -> None:
    held = controller.hold["a"] = asyncio.Event()
    for vm, kind in (
        ("a", EventKind.INCOMING),
        ("a", EventKind.RESUMED),
        ("b", EventKind.STARTED),
    ):
        watched.report(word(vm, kind))
    assert await controller.until(1) == [("b", "started")]
    assert watched._reports.busy("libvirt's a")
    held.set()
    assert (await controller.until(3))[1:] == [("a", "incoming"), ("a", "resumed")]
    assert controller.paths == {"/v1/servers/server 1/hypervisor-events"}
    assert set(controller.heard[0]) == {"vm", "kind", "at"}


async def test_a_controller_out_of_order_is_told_again_before_anything_later(
    controller: Controller, watched: LibvirtReporter
) -> None:
    controller.answers = [500, 503]
    for kind in (EventKind.SUSPENDED, EventKind.DEPARTED):
        watched.report(word("a", kind))
    assert await controller.until(4) == [*[("a", "suspended")] * 3, ("a", "departed")]


async def test_a_rejected_report_is_not_told_again(controller: Controller, watched: LibvirtReporter) -> None:
    controller.answers = [409]
    for kind in (EventKind.SUSPENDED, EventKind.DEPARTED):
        watched.report(word("a", kind))
    assert await controller.until(2) == [("a", "suspended"), ("a", "departed")]


async def test_what_is_no_news_any_more_is_left_out(controller: Controller, watched: LibvirtReporter) -> None:
    watched.report(word("a", EventKind.SUSPENDED, ago=libvirt_reporter.OLDEST + 1))
    watched.report(word("a", EventKind.STARTED))
    assert await controller.until(1) == [("a", "started")]


@pytest.mark.parametrize(
    ("printed", "lost"),
    [("netdev\n", True), ('netdev\n"true"\n', False), ('""\n', False), ("system\n", False)],
)
async def test_a_card_that_leaves_checksums_out_is_told_where_the_switch_drops_such_packets(
    controller: Controller, monkeypatch: pytest.MonkeyPatch, printed: str, lost: bool
) -> None:
    monkeypatch.setattr(libvirt_reporter, "ROUND_SECONDS", 0.01)
    library, asked = FakeLibrary(), list[Sequence[str]]()
    assert library.server is not None
    xml = domain_xml(made_spec(), Consoles(Path("/a"), Path("/b")))
    library.server.createXML(xml.replace("<host ", "<none "), 0)

    async def run(argv: Sequence[str]) -> str:
        asked.append(argv)
        return printed

    http = ControllerClient(controller.url, Credentials())
    reports = Reports(http)
    host = LibvirtHost("server1", "test:///", library)
    reporter = LibvirtReporter("server1", host, reports, run=run, bridge="retinue")
    rounds = asyncio.create_task(reporter._rounds())
    await controller.until(3)
    rounds.cancel()
    await asyncio.gather(rounds, return_exceptions=True)
    assert [body.get("without_checksums") for body in controller.heard[:3]] == [[ID] if lost else None] * 3
    (words,) = asked
    assert words[:4] == ["ovs-vsctl", "get", "bridge", "retinue"], "and that once"
    await reports.close()
    await http.close()


async def test_what_runs_is_told_at_once_and_again_from_time_to_time(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libvirt_reporter, "ROUND_SECONDS", 0.01)
    library = FakeLibrary()
    assert library.server is not None
    library.server.createXML(domain_xml(made_spec(), Consoles(Path("/a"), Path("/b"))), 0)
    http = ControllerClient(controller.url, Credentials())
    reports, heard = Reports(http), list[str]()
    following = LibvirtReporter(
        "server1", LibvirtHost("server1", "test:///", library), reports, [lambda h: heard.append(h.kind)]
    )
    running = asyncio.create_task(following.run())
    assert await controller.until(3) == [(ID, "started")] * 3
    assert heard == ["started"], "what is told again is no news here"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await reports.close()
    await http.close()
