"""Agents of two servers with fake hypervisors, ports and controller, and the real connection between them.

The world notes what happens, in order, and that no VM ever runs at two places.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retinue.agent.config import VMTable
from retinue.agent.keeper import Keeper
from retinue.agent.records import Happening, MoveRecord, VMRecord
from retinue.agent.rest import ControllerAwayError, RefusedError
from retinue.agent.spec import spec
from retinue.agent.transfer import Transfer
from retinue.hypervisor import (
    Channel,
    Divert,
    Gone,
    HandedOverError,
    HypervisorError,
    MigrationFailed,
    MigrationResult,
    OnEvent,
    Resumed,
    RunState,
    Stopped,
    VMSpec,
    ignore,
)
from retinue.hypervisor.argv import Files

TABLE = VMTable("/g/vmlinuz", "/g/initrd", append="quiet hostname={hostname} ip={ipv4}")
VM = VMRecord("web", "52:54:00:00:00:01", "server1", addresses=["10.1.0.50"])


class World:
    """Everything that happens on the fake servers and is told to the fake controller, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.machines: list[FakeMachine] = []
        self.departed: set[str] = set()
        """VMs whose source has reached its target."""
        self.ran_twice: list[str] = []
        self.frames_waiting = self.frames_come = 0

    def note(self, what: str) -> None:
        self.log.append(what)

    def take(self) -> list[str]:
        found, self.log = self.log, []
        return found

    def running(self, vm: str) -> list[str]:
        """The servers where it runs."""
        return [m.server for m in self.machines if m.spec.id == vm and m.now is RunState.RUNNING]


class FakeMachine:
    def __init__(self, world: World, server: str, spec: VMSpec, on_event: OnEvent) -> None:
        self.world, self.server, self.spec, self.on_event = world, server, spec, on_event
        self.now = RunState.INCOMING
        self.files = Files.named(Path("/tmp"), f"{server}-{spec.port}")
        self.ended = self.stuck = False
        world.machines.append(self)

    async def state(self) -> RunState:
        if self.ended:
            raise HypervisorError("QEMU has ended")
        return self.now

    async def pause(self) -> None:
        self.now = RunState.PAUSED

    async def resume(self) -> None:
        if self.ended or self.stuck:
            raise HypervisorError("QEMU has ended" if self.ended else "it does not run on")
        if self.now is not RunState.RUNNING:
            self.world.note(f"{self.server}: cont")
            self.run()

    def run(self) -> None:
        self.now = RunState.RUNNING
        if len(where := self.world.running(self.spec.id)) > 1:
            self.world.ran_twice.append(f"{self.spec.id} runs at {' and '.join(where)}")

    async def waiting(self) -> int:
        return self.world.frames_waiting

    async def quit(self) -> None:
        if not self.ended:
            self.world.note(f"{self.server}: quit")
        self.die()

    async def let_go(self) -> None:
        self.on_event = ignore

    def die(self) -> None:
        if not self.ended:
            self.ended, self.now = True, RunState.BROKEN
            self.on_event(Gone(self.spec.id, 9.0))


class FakeHypervisor:
    """Its half of a move reaches, in this order, the points

    departure: "copy", "divert", "stop" (it stands still), "give" (it has said that the VM is the target's)
    arrival:   "arrive", "load" (it has been told that the VM is its own), "run" (it has let it run),
               "tell" (it has told that it runs)

    and does there what its script says: "fails" or "hangs".
    """

    def __init__(self, world: World, server: str) -> None:
        self.world, self.server = world, server
        self.machines: list[FakeMachine] = []
        self.script: dict[str, str] = {}
        self.reached: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.go_on = asyncio.Event()
        """Ends every "hangs"."""
        self.mute = False
        """Its end is sudden: the source is told nothing."""
        self.broken = ""
        """Why no machine can be made."""

    async def start(self, spec: VMSpec, on_event: OnEvent = ignore) -> FakeMachine:
        machine = self._make("start", spec, on_event)
        machine.run()
        return machine

    async def open_target(self, spec: VMSpec, on_event: OnEvent = ignore) -> FakeMachine:
        self.world.departed.discard(spec.id)
        return self._make("open", spec, on_event)

    def _make(self, how: str, spec: VMSpec, on_event: OnEvent) -> FakeMachine:
        if self.broken:
            raise HypervisorError(self.broken)
        self.world.note(f"{self.server}: {how} {spec.id}")
        self.machines.append(FakeMachine(self.world, self.server, spec, on_event))
        return self.machines[-1]

    async def depart(
        self,
        source: FakeMachine,
        channel: Channel,
        on_event: OnEvent = ignore,
        divert: Divert | None = None,
    ) -> MigrationResult:
        self.world.note(f"{self.server}: depart")
        self.world.departed.add(source.spec.id)
        given = False
        try:
            await self._reach("copy")
            if divert is not None:
                self.reached["divert"].set()
                await divert((source.spec.port,))
            source.now = RunState.PAUSED
            on_event(Stopped(source.spec.id, 100.0))
            await self._reach("stop")
            source.now = RunState.MOVED
            given = True
            await channel.say("yours")
            await self._reach("give")
            answer = await channel.hear()
            if answer["word"] != "runs":
                given = False
                raise HypervisorError(f"the target could not take the VM in: {answer.get('reason')}")
            return MigrationResult(100.0, float(answer["at"]), 600.0, 1, 2)
        except BaseException as error:
            if not given:
                with contextlib.suppress(HypervisorError):
                    await source.resume()
                runs = source.now is RunState.RUNNING
                on_event(MigrationFailed(source.spec.id, 101.0, str(error), source_runs=runs))
            elif isinstance(error, HypervisorError):
                raise HandedOverError(str(error)) from error
            raise
        finally:
            await channel.close()

    async def arrive(self, target: FakeMachine, channel: Channel, on_event: OnEvent = ignore) -> float:
        ran = False
        try:
            await self._reach("arrive")
            await channel.hear()
            await self._reach("load")
            self.world.note(f"{self.server}: runs")
            ran = True
            target.run()
            await self._reach("run")
        except BaseException as error:
            target.die()
            if not ran and not self.mute:
                with contextlib.suppress(HypervisorError):
                    await channel.say("failed", reason=str(error) or "it was called off")
            if ran and isinstance(error, HypervisorError):
                raise HandedOverError(f"it had been told to run: {error}") from error
            raise
        else:
            on_event(Resumed(target.spec.id, 100.5))
            self.reached["tell"].set()
            if self.script.get("tell") != "fails":
                with contextlib.suppress(HypervisorError):
                    await channel.say("runs", at=100.5)
            if self.script.get("tell") == "hangs":
                await self.go_on.wait()
            return 100.5
        finally:
            await channel.close()

    async def _reach(self, point: str) -> None:
        self.reached[point].set()
        match self.script.get(point):
            case "hangs":
                await self.go_on.wait()
            case "fails":
                raise HypervisorError(f"{point} fails")


class FakePorts:
    def __init__(self, world: World, server: str) -> None:
        self.world, self.server = world, server
        self.broken = self.still_fed = ""
        """Why no port can be made; and why the switch hands frames out at one for ever."""
        self.bypassed: list[tuple[str, ...]] = []

    async def add(self, vm: str, mac: str) -> None:
        if self.broken:
            raise HypervisorError(self.broken)
        self.world.note(f"{self.server}: plug {vm} {mac}")

    async def until_bypassed(self, taps: Collection[str], copies_from: str) -> bool:
        self.bypassed.append((*taps, copies_from))
        if self.still_fed:
            raise HypervisorError(self.still_fed)
        return True

    async def remove(self, vm: str) -> None:
        self.world.note(f"{self.server}: unplug {vm}")

    async def come(self, vm: str) -> int:
        return self.world.frames_come


COPIES_FROM = "02:00:00:00:00:02"


class FakeRest:
    """A controller as one agent sees it."""

    def __init__(self, world: World, server: str) -> None:
        self.world, self.server = world, server
        self.known: list[VMRecord] = []
        self.under_way: list[MoveRecord] = []
        self.memory_at = ""
        """As it was told last."""
        self.away = 0
        """How many reports are not received."""
        self.refuses = self.silent = ""
        """Two kinds of report: one that is refused, and one that is never answered."""
        self.streams: asyncio.Queue[list[Happening] | ControllerAwayError] = asyncio.Queue()
        self.since: asyncio.Queue[int | None] = asyncio.Queue()

    async def vms(self) -> list[VMRecord]:
        return self.known

    async def moves(self) -> list[MoveRecord]:
        return self.under_way

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        event = body["event"]
        if event == self.silent:
            await asyncio.Event().wait()
        if self.away:
            self.away -= 1
            raise ControllerAwayError("hung up")
        if event == self.refuses:
            raise RefusedError("does not fit")
        more = {name: value for name, value in body.items() if name != "event"}
        self.memory_at = more.pop("memory_at", self.memory_at)
        if path.startswith("/v1/vms/"):
            assert more.pop("server") == self.server
        subject = path.removeprefix("/v1/vms/").removeprefix("/v1/moves/").removesuffix("/events")
        self.world.note(" ".join([f"{self.server} tells {subject} {event}", *map(str, more.values())]))
        return {"copies_from": COPIES_FROM} if event == "converged" else {}

    async def events(self, since: int | None) -> AsyncGenerator[Happening, None]:
        self.since.put_nowait(since)
        stream = await self.streams.get()
        if isinstance(stream, ControllerAwayError):
            raise stream
        for happening in stream:
            yield happening


@dataclass
class Agent:
    """One server."""

    rest: FakeRest
    hypervisor: FakeHypervisor
    ports: FakePorts
    transfer: Transfer
    keeper: Keeper

    @classmethod
    async def up(cls, world: World, server: str, port: int = 0) -> "Agent":
        rest, hypervisor, ports = (
            FakeRest(world, server),
            FakeHypervisor(world, server),
            FakePorts(world, server),
        )
        transfer = Transfer(server)
        await transfer.start("127.0.0.1", port)
        keeper = Keeper(
            server, rest, hypervisor, ports, lambda vm: spec(vm, TABLE), transfer, ports.until_bypassed
        )
        return cls(rest, hypervisor, ports, transfer, keeper)

    async def down(self) -> None:
        await self.keeper.close()
        await self.transfer.close()

    @property
    def machine(self) -> FakeMachine:
        """The latest."""
        return self.hypervisor.machines[-1]


class Bench:
    """Both servers, and a move of VM from server1 to server2."""

    def __init__(self, world: World, agents: dict[str, Agent]) -> None:
        self.world, self.agents = world, agents

    @property
    def source(self) -> Agent:
        return self.agents["server1"]

    @property
    def target(self) -> Agent:
        return self.agents["server2"]

    def move(self, state: str = "", id: str = "move-1") -> MoveRecord:
        return MoveRecord(id, "web", "server1", "server2", state, self.target.transfer.address)

    async def after(self, *happenings: Happening) -> list[str]:
        """What has happened when both agents have dealt with these."""
        for happening in happenings:
            for agent in self.agents.values():
                agent.keeper.take(happening)
        return await self.settled()

    async def step(self, *steps: str) -> list[str]:
        """After the controller's words "prepare", "copy", "cleanup", "rollback", "return" of the move."""
        told = []
        for name in steps:
            told += await self.after(Happening(f"move.{name}", vm=VM, move=self.move()))
        return told

    async def settled(self) -> list[str]:
        async with asyncio.timeout(5):
            for _ in "what one agent does", "what the other does then":
                for agent in self.agents.values():
                    await self._settled(agent)
        return self.world.take()

    async def _settled(self, agent: Agent) -> None:
        for kept in list(agent.keeper.vms.values()):
            await kept.todo.join()
            under_way = kept.runs or kept.id in self.world.departed
            if kept.copying is not None and under_way and not self._hangs():
                await asyncio.wait({kept.copying})
        await agent.keeper.reports.delivered()

    def _hangs(self) -> bool:
        return any(
            "hangs" in agent.hypervisor.script.values() and not agent.hypervisor.go_on.is_set()
            for agent in self.agents.values()
        )

    async def catch_up(self, server: str, *moves: MoveRecord, vms: tuple[VMRecord, ...] = (VM,)) -> list[str]:
        agent = self.agents[server]
        agent.rest.known, agent.rest.under_way = list(vms), list(moves)
        await agent.keeper.catch_up()
        return await self.settled()

    async def booked(self) -> None:
        """VM runs at server1."""
        await self.after(Happening("vm.booked", vm=VM), Happening("vm.ready", vm=VM))

    async def prepared(self) -> None:
        await self.booked()
        await self.step("prepare")

    async def copying_until(self, point: str, server: str = "server1") -> None:
        """A move that hangs at this point of its departure or arrival."""
        await self.prepared()
        hypervisor = self.agents[server].hypervisor
        hypervisor.script[point] = "hangs"
        self.source.keeper.take(Happening("move.copy", move=self.move()))
        async with asyncio.timeout(5):
            await hypervisor.reached[point].wait()
        await self.settled()

    async def start_again(self, server: str) -> None:
        """The server fails: its agent ends, and all its VMs; another agent starts at the same address."""
        old = self.agents[server]
        old.hypervisor.mute = True
        await old.down()
        for machine in old.hypervisor.machines:
            machine.on_event = ignore
            machine.die()
        self.agents[server] = await Agent.up(self.world, server, int(old.transfer.address.rpartition(":")[2]))
        self.world.take()


@contextlib.asynccontextmanager
async def bench_up() -> AsyncIterator[Bench]:
    world = World()
    bench = Bench(world, {server: await Agent.up(world, server) for server in ("server1", "server2")})
    try:
        yield bench
    finally:
        for agent in bench.agents.values():
            await agent.down()
    assert world.ran_twice == []
