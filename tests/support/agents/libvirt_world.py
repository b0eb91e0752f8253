"""Two servers whose VMs libvirt runs: real agents, hypervisors and sockets, with a libvirt in memory each."""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retinue.agent.controller_link.libvirt_reporter import LibvirtReporter
from retinue.agent.dispatcher import Dispatcher
from retinue.agent.migration.peer import Transfer
from retinue.agent.vms.departed import DepartedVMs
from retinue.agent.vms.vm_spec import spec
from retinue.core.migration import MigrationState
from retinue.hypervisor import VMSpec
from retinue.hypervisor.libvirt.connection import LibvirtHost
from retinue.hypervisor.libvirt.directory import Folder
from retinue.hypervisor.libvirt.hypervisor import LibvirtHypervisor
from retinue.protocol.events import ControllerEvent
from retinue.protocol.migrations import MigrationRecord
from retinue.protocol.vms import VMRecord
from support.agents.world import TABLE, AgentWorld, FakeRest
from support.fakes.libvirt import FakeConnection, FakeDomain, FakeLibrary

ID = "00000000-0000-4000-8000-000000000001"
VM = VMRecord(ID, "52:54:00:00:00:01", "server1")
SERVERS = ("server1", "server2")
INSIDE = Path("/vms")
LIMIT = 60.0
MEMORY = bytes(range(256)) * (1 << 14)
RUNS, PAUSED = 1, 3


def control(server: str) -> str:
    return f"qemu+tcp://{server}/system"


@dataclass
class ServerLocation:
    """A server's libvirt and what speaks to it."""

    name: str
    library: FakeLibrary
    folder: Path
    quiet: list[Sequence[str]] = field(default_factory=list)
    """The taps of VMs that were waited for."""

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.connection.folder = self.folder

    @property
    def connection(self) -> FakeConnection:
        assert self.library.server is not None
        return self.library.server

    def states(self) -> list[int]:
        return [domain.now[0] for domain in self.connection.domains_]

    def domain(self) -> FakeDomain:
        (domain,) = self.connection.domains_
        return domain

    def hypervisor(self) -> LibvirtHypervisor:
        async def quiet(taps: Sequence[str], holders: Mapping[str, int]) -> None:
            self.quiet.append(taps)

        def holders(taps: Sequence[str]) -> Mapping[str, int]:
            return dict.fromkeys(taps, os.getpid())  # Its QEMUs are threads of ours.

        host, folder = LibvirtHost(self.name, "test:///", self.library), Folder(INSIDE, self.folder)
        return LibvirtHypervisor(
            host, folder, control(self.name), postcopy=True, drain=quiet, holders=holders
        )


@contextlib.contextmanager
def locations() -> Any:
    """Both servers' libvirts, each reached by the other."""
    with tempfile.TemporaryDirectory() as short:  # A socket's path has little room.
        made = {name: ServerLocation(name, FakeLibrary(), Path(short) / name) for name in SERVERS}
        for location in made.values():
            location.connection.reaches = {control(name): made[name].connection for name in SERVERS}
        yield made


class LibvirtRest(FakeRest):
    """Keeps the watch's reports apart."""

    def __init__(self, world: AgentWorld, server: str) -> None:
        super().__init__(world, server)
        self.kinds: list[str] = []

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == f"/v1/servers/{self.server}/hypervisor-events":
            assert body["vm"] == ID
            self.kinds.append(body["kind"])
            return {}
        return await super().post(path, {key: value for key, value in body.items() if key != "at"})


class LibvirtAgent:
    def __init__(self, world: AgentWorld, location: ServerLocation, transfer: Transfer) -> None:
        self.location, self.transfer = location, transfer
        self.commands: list[str] = []
        self.rest = LibvirtRest(world, location.name)
        self.hypervisor = location.hypervisor()
        self.dispatcher = Dispatcher(
            location.name,
            self.rest,
            self.hypervisor,
            DepartedVMs(location.folder / "seen", "this boot"),
            lambda vm: spec(vm, TABLE),
            transfer,
        )
        hears = (self.hypervisor.on_event, self.dispatcher.on_hypervisor_event)
        self._watch = LibvirtReporter(
            location.name, self.hypervisor.host, self.dispatcher.reports, hears, self._run
        )
        self._watching: asyncio.Task[None] | None = None

    async def _run(self, argv: Sequence[str]) -> str:
        self.commands.append(" ".join(argv))
        return ""

    async def begin(self) -> None:
        await self.dispatcher.adopt_all(await self.hypervisor.adopt(self.dispatcher.listener))
        self._watching = asyncio.create_task(self._watch.run())
        async with asyncio.timeout(LIMIT):
            while not self.location.connection.watched():  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def down(self) -> None:
        """As when it is ended from outside: its sockets go with it."""
        await self.dispatcher.close()
        await self.transfer.close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)


class LibvirtServers:
    def __init__(self, locations: dict[str, ServerLocation]) -> None:
        self.world = AgentWorld()
        self.locations = locations
        self.agents: dict[str, LibvirtAgent] = {}

    @property
    def source(self) -> LibvirtAgent:
        return self.agents["server1"]

    @property
    def target(self) -> LibvirtAgent:
        return self.agents["server2"]

    async def up(self, server: str) -> None:
        """Start an agent, or start it again."""
        port = 0
        if server in self.agents:
            port = int(self.agents[server].transfer.address.rpartition(":")[2])
            await self.agents[server].down()
        transfer = Transfer(server)
        await transfer.start("127.0.0.1", port)
        self.agents[server] = LibvirtAgent(self.world, self.locations[server], transfer)
        await self.agents[server].begin()

    def migration(self, state: str = "planned", *, ours: bool = True) -> MigrationRecord:
        memory_at = self.target.transfer.address if ours else ""
        return MigrationRecord("migration-1", ID, "server1", "server2", MigrationState(state), memory_at)

    def order(self, *names: str, ours: bool = True, vm: VMRecord = VM) -> None:
        """The controller's words "open_target", "prepare_source", "start_copy", "free_source", "roll_back",
        "return_to_source" of the migration."""
        for name in names:
            for agent in self.agents.values():
                agent.dispatcher.on_event(
                    ControllerEvent(f"migration.{name}", vm=vm, migration=self.migration(ours=ours))
                )

    async def until(self, happened: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT):
            while not happened():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def told(self, *words: str) -> list[str]:
        """What has been told to the controller once these words have been; and forget it."""
        await self.until(lambda: all(any(w in line for line in self.world.log) for w in words))
        return self.world.take()

    async def idle(self) -> list[str]:
        """What has been told when nothing is to be done any more."""
        async with asyncio.timeout(LIMIT):
            for agent in self.agents.values():
                for vm in list(agent.dispatcher.vms.values()):
                    await vm.steps.join()
                await agent.dispatcher.reports.delivered()
        return self.world.take()

    async def take(self, *happenings: ControllerEvent) -> list[str]:
        for happening in happenings:
            for agent in self.agents.values():
                agent.dispatcher.on_event(happening)
        return await self.idle()

    async def runs(self) -> FakeDomain:
        """VM runs at server1."""
        await self.take(ControllerEvent("vm.registered", vm=VM), ControllerEvent("vm.ready", vm=VM))
        domain = self.source.location.domain()
        domain.memory = MEMORY
        return domain

    async def opened(self) -> FakeDomain:
        """A migration of ours, its target opened."""
        domain = await self.runs()
        self.order("open_target")
        await self.told("target_opened")
        self.order("prepare_source")
        await self.until(lambda: self.target.location.states() == [PAUSED])
        return domain

    async def catch_up(self, server: str, *migrations: MigrationRecord, vm: VMRecord = VM) -> list[str]:
        agent = self.agents[server]
        agent.rest.known, agent.rest.under_way = [vm], list(migrations)
        await agent.dispatcher.catch_up()
        return await self.idle()


@contextlib.asynccontextmanager
async def bench_up() -> AsyncIterator[LibvirtServers]:
    with locations() as made:
        bench = LibvirtServers(made)
        for server in SERVERS:
            await bench.up(server)
        try:
            yield bench
        finally:
            for agent in bench.agents.values():
                await agent.down()
                await agent.hypervisor.host.close()


def made_spec(vm: str = ID) -> VMSpec:
    return spec(VMRecord(vm, "52:54:00:00:00:01", "server1"), TABLE)
