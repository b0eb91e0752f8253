"""VMs that others made at a server, on their way to the controller: by themselves, or by way of a manager."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from retinue.agent.admin_socket import answer
from retinue.agent.controller_link import libvirt_reporter, made_here
from retinue.agent.controller_link.libvirt_reporter import LibvirtReporter
from retinue.agent.controller_link.made_here import MadeHere
from retinue.agent.controller_link.reports import Reports
from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.core.limits import MOST_REPORTED
from retinue.hypervisor.libvirt.connection import LibvirtHost
from retinue.hypervisor.libvirt.domain_xml import Consoles, Interface, domain_xml
from retinue.protocol.client import ControllerClient
from retinue.protocol.errors import ControllerAwayError, ErrorCode, RejectedError
from retinue.protocol.json_lines import RequestError
from retinue.security.credentials import Credentials
from support.agents.libvirt_world import ID, made_spec
from support.fabric.networks import fabric, vm_ip, vm_mac
from support.fakes.libvirt import FakeLibrary
from support.fakes.reports_only import ReportsOnly

SERVER_MAC = "02:00:00:00:00:01"


async def own_mac(interface: str) -> str:
    assert interface == "br0"
    return SERVER_MAC


class Rest(ReportsOnly):
    """Takes reports; it is away while `away`, and refuses VMs in `refused`."""

    def __init__(self) -> None:
        self.away = False
        self.refused: set[str] = set()
        self.code = ""
        self.heard: list[dict[str, Any]] = []
        self.arrived = asyncio.Condition()

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.away:
            raise ControllerAwayError("nobody is there")
        assert path == "/v1/servers/server1/vm-reports"
        if body["vm"] in self.refused:
            raise RejectedError("no", self.code)
        async with self.arrived:
            self.heard.append(body)
            self.arrived.notify_all()
        return {"vm": body["vm"], "waiting": body.get("addresses", [])}

    async def until(self, number: int) -> list[str]:
        async with asyncio.timeout(60), self.arrived:
            await self.arrived.wait_for(lambda: len(self.heard) >= number)
        return [body["vm"] for body in self.heard]


@pytest.fixture
def rest(monkeypatch: pytest.MonkeyPatch) -> Rest:
    monkeypatch.setattr(made_here, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(made_here, "LATER_SECONDS", 0.01)
    return Rest()


@pytest.fixture
async def made(rest: Rest) -> AsyncIterator[MadeHere]:
    made = MadeHere("server1", rest, "br0", own_mac)
    yield made
    await made.close()


async def test_a_report_has_mac_addresses_and_the_servers_own_mac(rest: Rest, made: MadeHere) -> None:
    assert await made.tell("vm1", vm_mac(1), ["10.1.0.1"]) == {"vm": "vm1", "waiting": ["10.1.0.1"]}
    assert rest.heard == [
        {"vm": "vm1", "mac": vm_mac(1), "server_mac": SERVER_MAC, "addresses": ["10.1.0.1"]}
    ]
    assert made.has("vm1", vm_mac(1)) and not made.has("vm1", vm_mac(2))


async def test_all_is_said_again_to_a_controller_that_is_back_but_for_what_is_no_more(
    rest: Rest, made: MadeHere
) -> None:
    for number in (1, 2, 3):
        await made.tell(f"vm{number}", vm_mac(number))
    rest.refused = {"vm4"}
    with pytest.raises(RejectedError):
        await made.tell("vm4", vm_mac(4))
    await made.tell("vm2", vm_mac(2), gone=True)
    made.forget("vm3")
    await made.tell("vm5", vm_mac(5))
    rest.heard.clear()
    made.again()
    assert await rest.until(2) == ["vm1", "vm5"]


async def test_what_nobody_was_there_to_hear_is_said_when_somebody_is(rest: Rest, made: MadeHere) -> None:
    rest.away = True
    with pytest.raises(ControllerAwayError):
        await made.tell("vm1", vm_mac(1), ["10.1.0.1"])
    rest.away = False
    assert await rest.until(1) == ["vm1"]
    assert rest.heard[0]["addresses"] == ["10.1.0.1"]


@pytest.mark.parametrize("code", [ErrorCode.TOO_OFTEN, ErrorCode.MIGRATION_UNDER_WAY])
async def test_what_is_refused_for_now_is_said_until_it_is_taken(
    rest: Rest, made: MadeHere, code: ErrorCode
) -> None:
    """A hook says it once: whoever leads next must hear of it, too."""
    rest.refused, rest.code = {"vm1"}, code
    with pytest.raises(RejectedError):
        await made.tell("vm1", vm_mac(1), ["10.1.0.1"])
    await made.tell("vm2", vm_mac(2))
    made.again()
    assert await rest.until(2) == ["vm2", "vm2"]
    rest.refused = set()
    assert await rest.until(3) == ["vm2", "vm2", "vm1"]
    assert made.has("vm1", vm_mac(1))


async def test_so_many_are_kept_and_no_more(rest: Rest, made: MadeHere) -> None:
    for number in range(MOST_REPORTED):
        await made.tell(f"vm{number}", vm_mac(1))
    with pytest.raises(RequestError, match="1024 VMs of this server"):
        await made.tell("one more", vm_mac(1))


async def test_the_admin_socket_says_what_waits_and_why_not(
    rest: Rest, made: MadeHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest.refused = {"vm2"}
    line = b'{"do":"report","vm":"vm1","mac":"52:54:00:00:00:01","addresses":["10.1.0.1"]}'
    nobody: Any = object()
    assert await answer(nobody, line, made=made) == {"waiting": ["10.1.0.1"]}
    assert await answer(nobody, line.replace(b"vm1", b"vm2"), made=made) == {"error": "no"}
    assert "cannot do" in (await answer(nobody, line))["error"], "an agent that tells nobody"


async def test_what_libvirt_runs_is_reported_once_with_the_addresses_of_its_filter(
    rest: Rest, made: MadeHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libvirt_reporter, "ROUND_SECONDS", 0.01)
    library = FakeLibrary()
    assert library.server is not None
    xml = domain_xml(made_spec(), Consoles(Path("/a"), Path("/b")))
    filtered = """<filterref filter="clean-traffic"><parameter name="IP" value="10.1.0.9"/>
        <parameter name="CTRL_IP_LEARNING" value="none"/></filterref></interface>"""
    library.server.createXML(xml.replace("</interface>", filtered), 0)
    reports = Reports(rest)

    class Elsewhere(ReportsOnly):
        rounds = 0
        twice = asyncio.Event()

        async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
            self.rounds += 1
            if self.rounds > 4:
                self.twice.set()
            return {}

    elsewhere = Elsewhere()
    reports = Reports(elsewhere)
    host = LibvirtHost("server1", "test:///", library)
    reporter = LibvirtReporter("server1", host, reports, made=made)
    running = asyncio.create_task(reporter.run())
    await rest.until(1)
    await elsewhere.twice.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await reports.close()
    assert rest.heard == [
        {"vm": ID, "mac": made_spec().nics[0].mac, "server_mac": SERVER_MAC, "addresses": ["10.1.0.9"]}
    ]


async def test_an_address_that_somebody_reported_of_a_libvirt_vm_stays(
    rest: Rest, made: MadeHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt has none to tell: the next account of what it runs would have taken that one back."""
    monkeypatch.setattr(libvirt_reporter, "ROUND_SECONDS", 0.01)
    library = FakeLibrary()
    assert library.server is not None
    library.server.createXML(domain_xml(made_spec(), Consoles(Path("/a"), Path("/b"))), 0)

    class Quiet(ReportsOnly):
        async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
            return {}

    reports, host = Reports(Quiet()), LibvirtHost("server1", "test:///", library)
    reporter = LibvirtReporter("server1", host, reports, made=made)
    rounds = asyncio.create_task(reporter._rounds())
    await rest.until(1)
    mac, enough, looked = made_spec().nics[0].mac, asyncio.Event(), host.interfaces
    await made.tell(ID, mac, ["10.1.0.9"])
    looks = 0

    async def look() -> list[Interface]:
        nonlocal looks
        looks += 1
        if looks == 3:
            enough.set()
        return await looked()

    monkeypatch.setattr(host, "interfaces", look)
    async with asyncio.timeout(60):
        await enough.wait()
    rounds.cancel()
    await asyncio.gather(rounds, return_exceptions=True)
    assert [body["addresses"] for body in rest.heard] == [[], ["10.1.0.9"]]
    await reports.close()


async def test_what_libvirt_no_longer_runs_is_not_said_again_and_what_a_hook_said_is(
    rest: Rest, made: MadeHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end was missed: a controller that is back would register it anew, at a server it has left."""
    monkeypatch.setattr(libvirt_reporter, "ROUND_SECONDS", 0.01)
    library = FakeLibrary()
    assert library.server is not None
    domain = library.server.createXML(domain_xml(made_spec(), Consoles(Path("/a"), Path("/b"))), 0)

    class Quiet(ReportsOnly):
        async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
            return {}

    reports = Reports(Quiet())
    reporter = LibvirtReporter("server1", LibvirtHost("server1", "test:///", library), reports, made=made)
    forgotten, forget = asyncio.Event(), made.forget

    def watch(vm: str, mac: str = "") -> None:
        forget(vm, mac)
        forgotten.set()

    monkeypatch.setattr(made, "forget", watch)
    await made.tell("hooked", vm_mac(7))
    rounds = asyncio.create_task(reporter._rounds())
    await rest.until(2)
    domain.destroy()
    async with asyncio.timeout(60):
        await forgotten.wait()
    rounds.cancel()
    await asyncio.gather(rounds, return_exceptions=True)
    rest.heard.clear()
    made.again()
    assert made._again is not None
    await made._again
    assert [body["vm"] for body in rest.heard] == ["hooked"]
    await reports.close()


# ---- indirectly ----


class Manager:
    """A manager's own door: what agents say there is passed on to the controller, by its right."""

    def __init__(self) -> None:
        self.controller_url = ""
        self.passed: list[str] = []

    async def take(self, request: web.Request) -> web.Response:
        self.passed.append(request.path)
        async with (
            aiohttp.ClientSession() as http,
            http.post(self.controller_url + request.path, json=await request.json()) as answered,
        ):
            return web.json_response(await answered.json(), status=answered.status)


async def test_a_report_reaches_the_controller_by_way_of_a_manager() -> None:
    """US 9,313,088: "directly or indirectly"; the manager adds nothing, and refuses nothing."""
    net = fabric()
    controller = Controller(net, clock=lambda: 1000.0)
    await controller.start()
    api = Api(controller, dict)
    manager = Manager()
    manager.controller_url = f"http://127.0.0.1:{await api.start('127.0.0.1', 0)}"
    app = web.Application()
    app.add_routes([web.post("/v1/servers/{id}/vm-reports", manager.take)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def its_mac(interface: str) -> str:
        return net.servers["server1"].mac

    try:
        async with ControllerClient(url, Credentials()) as to_manager:
            made = MadeHere("server1", to_manager, "br0", its_mac)
            told = await made.tell("vm1", vm_mac(1), [str(vm_ip(1))])
            assert told == {"vm": "vm1", "waiting": [str(vm_ip(1))]}
            with pytest.raises(RejectedError, match="is the gateway of subnet"):
                await made.tell("vm2", vm_mac(2), ["10.1.0.254"])
            await made.close()
        assert manager.passed == ["/v1/servers/server1/vm-reports"] * 2
        assert [(id, vm.nic.addresses) for id, vm in net.vms.items()] == [("vm1", ())]
        async with ControllerClient(manager.controller_url, Credentials()) as boss:
            with pytest.raises(RejectedError, match="addresses"):
                await boss.post("/v1/vms/vm1/confirm", {})
            confirmed = await boss.post("/v1/vms/vm1/confirm", {"addresses": [str(vm_ip(1))]})
        assert confirmed["holds"] == [str(vm_ip(1))]
        assert net.vms["vm1"].nic.addresses == (vm_ip(1),)
    finally:
        await runner.cleanup()
        await api.stop()
        await controller.stop()
