"""Two servers whose VMs libvirt runs: real agents, hypervisors and sockets, with a libvirt in memory each."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent_world import TABLE, FakeRest, World
from fake_libvirt import FakeConnection, FakeDomain, FakeLibrary
from retinue.agent.keeper import Keeper
from retinue.agent.records import Happening, MoveRecord, VMRecord
from retinue.agent.seen import Seen
from retinue.agent.spec import spec
from retinue.agent.transfer import Transfer
from retinue.agent.watch import Watch
from retinue.hypervisor import VMSpec
from retinue.hypervisor.libvirt_folder import Folder
from retinue.hypervisor.libvirt_host import LibvirtHost
from retinue.hypervisor.libvirt_hypervisor import LibvirtHypervisor

ID = "00000000-0000-4000-8000-000000000001"
VM = VMRecord(ID, "52:54:00:00:00:01", "server1")
SERVERS = ("server1", "server2")
INSIDE = Path("/vms")
LIMIT = 5.0
MEMORY = bytes(range(256)) * (1 << 14)
RUNS, PAUSED = 1, 3


def control(server: str) -> str:
    return f"qemu+tcp://{server}/system"


@dataclass
class Place:
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

        host = LibvirtHost(self.name, "test:///", self.library)
        return LibvirtHypervisor(host, Folder(INSIDE, self.folder), control(self.name), quiet=quiet)


@contextlib.contextmanager
def places() -> Any:
    """Both servers' libvirts, each reached by the other."""
    with tempfile.TemporaryDirectory() as short:  # A socket's path has little room.
        made = {name: Place(name, FakeLibrary(), Path(short) / name) for name in SERVERS}
        for place in made.values():
            place.connection.reaches = {control(name): made[name].connection for name in SERVERS}
        yield made


class Rest(FakeRest):
    """Keeps the watch's reports apart."""

    def __init__(self, world: World, server: str) -> None:
        super().__init__(world, server)
        self.kinds: list[str] = []

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == f"/v1/servers/{self.server}/hypervisor-events":
            assert body["vm"] == ID
            self.kinds.append(body["kind"])
            return {}
        return await super().post(path, {key: value for key, value in body.items() if key != "at"})


class Agent:
    def __init__(self, world: World, place: Place, transfer: Transfer) -> None:
        self.place, self.transfer = place, transfer
        self.commands: list[str] = []
        self.rest = Rest(world, place.name)
        self.hypervisor = place.hypervisor()
        self.keeper = Keeper(
            place.name,
            self.rest,
            self.hypervisor,
            Seen(place.folder / "seen", "this boot"),
            lambda vm: spec(vm, TABLE),
            transfer,
        )
        hears = (self.hypervisor.hear, self.keeper.noticed)
        self._watch = Watch(place.name, self.hypervisor.host, self.keeper.reports, hears, self._run)
        self._watching: asyncio.Task[None] | None = None

    async def _run(self, argv: Sequence[str]) -> str:
        self.commands.append(" ".join(argv))
        return ""

    async def begin(self) -> None:
        for machine in await self.hypervisor.adopt(self.keeper.listener):
            await self.keeper.adopt(machine)
        self._watching = asyncio.create_task(self._watch.run())
        async with asyncio.timeout(LIMIT):
            while not self.place.connection.watched():  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def down(self) -> None:
        """As when it is ended from outside: its sockets go with it."""
        await self.keeper.close()
        await self.transfer.close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)


class Bench:
    def __init__(self, places: dict[str, Place]) -> None:
        self.world = World()
        self.places = places
        self.agents: dict[str, Agent] = {}

    @property
    def source(self) -> Agent:
        return self.agents["server1"]

    @property
    def target(self) -> Agent:
        return self.agents["server2"]

    async def up(self, server: str) -> None:
        """Start an agent, or start it again."""
        port = 0
        if server in self.agents:
            port = int(self.agents[server].transfer.address.rpartition(":")[2])
            await self.agents[server].down()
        transfer = Transfer(server)
        await transfer.start("127.0.0.1", port)
        self.agents[server] = Agent(self.world, self.places[server], transfer)
        await self.agents[server].begin()

    def move(self, state: str = "", *, ours: bool = True) -> MoveRecord:
        memory_at = self.target.transfer.address if ours else ""
        return MoveRecord("move-1", ID, "server1", "server2", state, memory_at)

    def order(self, *names: str, ours: bool = True, vm: VMRecord = VM) -> None:
        """The controller's words "prepare", "begin", "copy", "cleanup", "rollback", "return" of the move."""
        for name in names:
            for agent in self.agents.values():
                agent.keeper.take(Happening(f"move.{name}", vm=vm, move=self.move(ours=ours)))

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
                for kept in list(agent.keeper.vms.values()):
                    await kept.todo.join()
                await agent.keeper.reports.delivered()
        return self.world.take()

    async def take(self, *happenings: Happening) -> list[str]:
        for happening in happenings:
            for agent in self.agents.values():
                agent.keeper.take(happening)
        return await self.idle()

    async def runs(self) -> FakeDomain:
        """VM runs at server1."""
        await self.take(Happening("vm.booked", vm=VM), Happening("vm.ready", vm=VM))
        domain = self.source.place.domain()
        domain.memory = MEMORY
        return domain

    async def opened(self) -> FakeDomain:
        """A move of ours, its target opened."""
        domain = await self.runs()
        self.order("prepare")
        await self.told("target_open")
        self.order("begin")
        await self.until(lambda: self.target.place.states() == [PAUSED])
        return domain

    async def catch_up(self, server: str, *moves: MoveRecord, vm: VMRecord = VM) -> list[str]:
        agent = self.agents[server]
        agent.rest.known, agent.rest.under_way = [vm], list(moves)
        await agent.keeper.catch_up()
        return await self.idle()


@contextlib.asynccontextmanager
async def bench_up() -> AsyncIterator[Bench]:
    with places() as made:
        bench = Bench(made)
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
