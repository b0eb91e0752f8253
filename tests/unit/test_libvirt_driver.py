"""The laboratory's driver of libvirt servers, with a controller and two libvirtds in memory."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fake_libvirt import FakeConnection, FakeDomain, FakeLibrary
from retinue.hypervisor.libvirt_host import LibvirtHost
from retinue.hypervisor.libvirt_hypervisor import LibvirtHypervisor
from retinue.lab import libvirt_driver, libvirtd
from retinue.lab.driver_records import Happening, MoveRecord, VMRecord
from retinue.lab.driver_rest import RefusedError
from retinue.lab.guest import Guest
from retinue.lab.libvirt_driver import LibvirtKeeper
from retinue.lab.topology import load

VM = "00000000-0000-4000-8000-000000000001"
LIMIT = 5.0
RECORD = VMRecord(VM, "52:54:00:00:00:01", "server1")
MOVE = MoveRecord("move-1", VM, "server1", "server2")


class FakeRest:
    """The controller: keeps what it is told; refuses what is in `refuses`."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.refuses: set[str] = set()
        self.known: list[VMRecord] = []
        self.under_way: list[MoveRecord] = []
        self._arrived = asyncio.Condition()

    async def vms(self) -> list[VMRecord]:
        return self.known

    async def moves(self) -> list[MoveRecord]:
        return self.under_way

    async def post(self, path: str, body: dict[str, Any]) -> None:
        async with self._arrived:
            self.told.append((path.removeprefix("/v1/"), body["event"]))
            self._arrived.notify_all()
        if body["event"] in self.refuses:
            raise RefusedError("it does not fit")

    async def events(self, since: int | None) -> AsyncIterator[Happening]:
        return
        yield

    async def until(self, event: str) -> list[str]:
        """All that was told once this event has been."""
        async with asyncio.timeout(LIMIT), self._arrived:
            await self._arrived.wait_for(lambda: event in [said for _, said in self.told])
        return [said for _, said in self.told]


@dataclass
class Bench:
    keeper: LibvirtKeeper
    rest: FakeRest
    libraries: dict[str, FakeLibrary]
    taken: bytearray = field(default_factory=bytearray)

    def at(self, server: str) -> FakeConnection:
        connection = self.libraries[server].server
        assert connection is not None
        return connection

    def state(self, server: str) -> list[int]:
        return [domain.now[0] for domain in self.at(server).domains_]

    async def does(self, *happenings: Happening) -> None:
        """Give it these, and return when it has nothing more to do."""
        for happening in happenings:
            self.keeper.take(happening)
        while self.keeper._tasks:
            await asyncio.wait(set(self.keeper._tasks), timeout=LIMIT)
        await self.keeper.reports.delivered()

    async def runs(self) -> FakeDomain:
        await self.does(Happening("vm.booked", vm=RECORD), Happening("vm.ready", vm=RECORD))
        self.rest.told.clear()
        (domain,) = self.at("server1").domains_
        domain.memory, domain.goes_to = bytes(2 << 20), self.at("server2")
        return domain

    async def take_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while octets := await reader.read(1 << 16):
                self.taken += octets
            writer.write(b"all of it")
            await writer.drain()
        writer.close()


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    async def quiet(pid: int, tap: str) -> None:
        pass

    monkeypatch.setattr(libvirt_driver, "until_quiet", quiet)
    monkeypatch.setattr(libvirtd, "pid", lambda node: 1)
    with tempfile.TemporaryDirectory() as short:  # A socket's path has little room.
        libraries = {f"server{n}": FakeLibrary() for n in (1, 2)}
        servers = {}
        for name, library in libraries.items():
            (Path(short) / name).mkdir()
            servers[name] = LibvirtHypervisor(LibvirtHost(name, "test:///", library), Path(short) / name)
        rest = FakeRest()
        keeper = LibvirtKeeper(rest, servers, Guest(Path("/k"), Path("/i")), load("libvirt"))  # type: ignore[arg-type]
        made = Bench(keeper, rest, libraries)
        server = await asyncio.start_unix_server(made.take_in, Path(short) / "server2" / f"{VM}.memory")
        yield made
        await keeper.close()
        server.close()
        for hypervisor in servers.values():
            await hypervisor.host.close()


async def test_a_booked_vm_waits_paused_and_runs_when_its_network_stands(bench: Bench) -> None:
    await bench.does(Happening("vm.booked", vm=RECORD))
    assert (bench.state("server1"), bench.rest.told) == ([3], [])
    await bench.does(Happening("vm.ready", vm=RECORD))
    assert (bench.state("server1"), bench.rest.told) == ([1], [(f"vms/{VM}/events", "started")])
    await bench.does(Happening("vm.removed", vm=RECORD))
    assert bench.state("server1") == []


async def test_vms_of_others_are_left_alone(bench: Bench) -> None:
    theirs = VMRecord(VM, "52:54:00:00:00:01", "server1", reported=True)
    for type_ in ("vm.booked", "vm.ready", "vm.removed"):
        await bench.does(Happening(type_, vm=theirs))
    assert (bench.state("server1"), bench.rest.told) == ([], [])


async def test_a_move_that_is_asked_for_is_carried_out_by_libvirt(bench: Bench) -> None:
    domain = await bench.runs()
    await bench.does(Happening("move.prepare", move=MOVE))
    assert [said for _, said in bench.rest.told] == ["target_open"]
    assert not bench.taken, "nothing is copied before it is asked for"
    await bench.does(Happening("move.copy", move=MOVE))
    said = await bench.rest.until("stopped")
    assert said == ["target_open", "copying", "converged", "stopped"]
    await asyncio.wait_for(bench.keeper._copies[MOVE.id], LIMIT)
    assert bytes(bench.taken) == domain.memory
    assert (bench.state("server1"), bench.state("server2")) == ([], [1])


async def test_a_refused_diversion_ends_the_move_with_the_vm_where_it_was(bench: Bench) -> None:
    domain = await bench.runs()
    bench.rest.refuses = {"converged"}
    await bench.does(Happening("move.prepare", move=MOVE), Happening("move.copy", move=MOVE))
    await bench.rest.until("failed")
    assert (domain.now[0], domain.aborted, bench.state("server2")) == (1, True, [])
    await bench.does(Happening("move.rollback", move=MOVE))
    assert (await bench.rest.until("rolled_back"))[-2:] == ["failed", "rolled_back"]


async def test_what_somebody_else_moves_is_not_moved_by_us(bench: Bench) -> None:
    """A person's virsh is at it: the target has the VM already when the controller asks."""
    domain = await bench.runs()
    bench.at("server2").createXML(domain.xml, 1)
    await bench.does(Happening("move.prepare", move=MOVE), Happening("move.copy", move=MOVE))
    assert (bench.rest.told, domain.sent) == ([], 0)


async def test_a_vm_that_is_not_there_cannot_be_moved(bench: Bench) -> None:
    await bench.does(Happening("move.prepare", move=MOVE))
    assert [said for _, said in bench.rest.told] == ["failed", "rolled_back"]


async def test_what_was_missed_is_caught_up_with(bench: Bench) -> None:
    bench.rest.known = [VMRecord(VM, RECORD.mac, "server1", state="ready")]
    bench.rest.under_way = [MoveRecord("move-1", VM, "server1", "server2", state="matched")]
    await bench.keeper.catch_up()
    await bench.does()
    assert [said for _, said in bench.rest.told] == ["started", "target_open"]
