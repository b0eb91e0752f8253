"""A client roams between attachment points under traffic, by the messages that servers say of VMs."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import aiohttp
import pytest

from retinue.host.taps import add_port, remove_port, tap_name
from retinue.security.identity import PeerRole
from retinue_lab.guest.image import ensure_program
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology import EDGE_BRIDGE, SANDBOX
from support.lab import air
from support.lab.migrating import reaches
from support.lab.programs import popen_in
from support.lab.start import lab_of
from support.lab.tools import Json, LabBench, eventually

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.no_vms]

PHONE, MAC, ADDRESS, RADIO = "phone1", "52:54:00:00:00:77", "10.1.0.77", "wlan0"
POINTS = ("server1", "server2")
"""Attachment points, at two leaves."""
STRANGER = "server3"
TAP = tap_name(PHONE)
PPS = 300
HANDOVERS = 6


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    """No agent of ours runs: an attachment point speaks for itself."""
    with lab_of(tmp_path_factory.mktemp("labs"), agents=False) as handle:
        yield handle


class Air:
    """The program air.py."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def __call__(self, *words: str) -> list[str]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(" ".join(words).encode() + b"\n")
        answer = (await self._process.stdout.readline()).decode().split()
        assert answer, (await self._process.communicate())[1].decode()
        return answer[1:]


class World:
    def __init__(self, bench: LabBench, radio: Air) -> None:
        self.bench = bench
        self.air = radio
        self.at = POINTS[0]
        self._points: dict[str, aiohttp.ClientSession] = {}

    async def says(self, server: str, path: str, body: Json, *, by: str = "") -> tuple[int, Json]:
        """A server says something with its own certificate, or another's."""
        by = by or server
        if by not in self._points:
            connector = aiohttp.TCPConnector(
                socket_factory=lambda _: self.bench.doorman.socket(),
                ssl=self.bench.tls_of(PeerRole.AGENT, by),
            )
            url = self.bench.topology.controller_url
            self._points[by] = aiohttp.ClientSession(url, connector=connector)
        async with self._points[by].post(path, json=body) as reply:
            return reply.status, dict(await reply.json())

    async def reports(self, server: str, kind: str) -> Json:
        body = {"vm": PHONE, "kind": kind, "at": time.time()}
        status, answer = await self.says(server, f"/v1/servers/{server}/hypervisor-events", body)
        assert status == 200, answer
        return answer

    async def plug(self, server: str) -> None:
        run = partial(_run, self.bench, server)
        await add_port(run, bridge=EDGE_BRIDGE, tap=TAP, vm=PHONE, mac=MAC)
        await self.air("open", server, TAP)

    async def unplug(self, server: str) -> None:
        await self.air("close", server)
        await remove_port(partial(_run, self.bench, server), bridge=EDGE_BRIDGE, tap=TAP)

    async def hands_over(self) -> str:
        """To the other attachment point; the migration that it was."""
        source, target = self.at, POINTS[1 - POINTS.index(self.at)]
        await self.plug(target)
        async with self.bench.events() as events:
            id = str((await self.reports(target, "incoming"))["migration"])
            await reaches(events, id, "copying")
            await self.air("leave")
            await self.reports(source, "suspended")
            path, waited = f"/v1/migrations/{id}/events", {"event": "waited", "server": source}
            status, answer = await self.says(source, path, {**waited, "watching": True})
            assert status == 200, answer
            left = await self.air("take", source)
            status, answer = await self.says(source, path, {**waited, "waiting": left})
            assert status == 200, answer
            await self.air("attach", target)
            await self.reports(target, "resumed")
            await reaches(events, id, "confirmed")
            await self.unplug(source)
            await self.reports(source, "departed")
            await reaches(events, id, "done")
        self.at = target
        return id

    async def close(self) -> None:
        for session in self._points.values():
            await session.close()


async def _run(bench: LabBench, server: str, argv: Any) -> str:
    return await bench.run(server, *argv)


@pytest.fixture
async def world(bench: LabBench) -> AsyncIterator[World]:
    """The client is attached at the first point, and has its address by a manager's word."""
    gateway = next(subnet for subnet in bench.topology.subnet if subnet.id == "blue").gateway
    for argv in (
        f"ip netns add {PHONE}",
        f"ip -n {PHONE} tuntap add dev {RADIO} mode tap",
        f"ip -n {PHONE} link set {RADIO} address {MAC} up",
        f"ip -n {PHONE} address add {ADDRESS}/24 dev {RADIO}",
        f"ip -n {PHONE} route add default via {gateway}",
    ):
        await bench.run(SANDBOX, *argv.split())
    answers = f"ip netns exec {PHONE} {ensure_program('responder')} </dev/null >/dev/null 2>&1"
    await bench.run(SANDBOX, "sh", "-ec", answers)
    process = await popen_in(bench.lab)(SANDBOX, ["python3", "-I", "-S", air.__file__, PHONE, RADIO])
    made = World(bench, Air(process))
    try:
        await bench.post("entities", {"name": PHONE, "kind": "client", "profile": {"os": "lineage"}})
        assert "attached nowhere" in await bench.cli("name", "resolve", PHONE)
        await made.plug(made.at)
        await made.air("attach", made.at)
        server = next(one for one in bench.topology.server if one.id == made.at)
        said = {"vm": PHONE, "mac": MAC, "server_mac": str(server.mac), "addresses": [ADDRESS]}
        status, answer = await made.says(made.at, f"/v1/servers/{made.at}/vm-reports", said)
        assert status < 300, answer
        await bench.post(f"vms/{PHONE}/confirm", {"addresses": [ADDRESS]})
        await made.reports(made.at, "started")
        yield made
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await made.close()


async def steered(bench: LabBench) -> list[tuple[str, str, int]]:
    """Where the client is delivered: address, switch, port."""
    rows = [row for row in await bench.bindings(PHONE) if row["active"]]
    return [(row["ip"], row["switch"], row["port"]) for row in rows]


async def test_a_roaming_client_keeps_its_address_and_loses_nothing(world: World) -> None:
    """It is handed over again and again; each time its old point reports that it leaves, and hands on what it
    has left there, before the new one reports that it has arrived. Its name leads to where it is."""
    bench = world.bench

    async def answers() -> bool:
        return " 0% packet loss" in await bench.run("client", "sh", "-c", f"ping -c1 -W1 {ADDRESS} || true")

    await eventually(answers)
    async with bench.traffic(ADDRESS, pps=PPS) as traffic:
        for _ in range(HANDOVERS):
            await world.hands_over()
            row = await bench.get(f"entities/{PHONE}")
            assert (row["kind"], row["locator"]["server"]) == ("client", world.at)
            assert row["locator"]["addresses"] == [ADDRESS]
            (binding,) = await bench.bindings(PHONE)
            assert (binding["ip"], binding["mac"]) == (ADDRESS, MAC)
        figures = await bench.unharmed(traffic)
    print(figures)
    assert figures.sent > PPS

    # A stranger says that it is with him; and that its point says so.
    before = await steered(bench)
    async with bench.traffic(ADDRESS, pps=PPS) as traffic:
        body = {"vm": PHONE, "kind": "suspended", "at": time.time()}
        path = f"/v1/servers/{world.at}/hypervisor-events"
        status, answer = await world.says(world.at, path, body, by=STRANGER)
        assert (status, answer["code"]) == (403, "not_allowed")
        id = str((await world.reports(STRANGER, "incoming"))["migration"])
        run = partial(_run, bench, STRANGER)
        await add_port(run, bridge=EDGE_BRIDGE, tap=TAP, vm=PHONE, mac=MAC)
        await world.reports(STRANGER, "resumed")
        assert await steered(bench) == before
        async with bench.events() as events:
            await world.reports(world.at, "resumed")  # It is here: it has not left.
            await reaches(events, id, "undone")
        await remove_port(run, bridge=EDGE_BRIDGE, tap=TAP)
        figures = await bench.unharmed(traffic)
    print(figures)
    assert await steered(bench) == before

    # Nobody else moves it, and what has gone is attached nowhere; its name stays.
    assert "is a client" in await bench.cli("move", "start", PHONE, fails=True)
    await world.unplug(world.at)

    async def is_gone() -> bool:
        return "attached nowhere" in await bench.cli("name", "resolve", PHONE)

    await eventually(is_gone)
