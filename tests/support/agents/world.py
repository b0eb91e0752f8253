"""Agents of two servers with fake hypervisors, ports and controller, and the real connection between them.

The world notes what happens, in order, and that no VM ever runs at two places.
"""

import asyncio
import contextlib
import os
from collections import defaultdict
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retinue.agent.config import VMTable
from retinue.agent.dispatcher import Dispatcher
from retinue.agent.migration.peer import Transfer
from retinue.agent.vms.vm_spec import spec
from retinue.core.migration import MigrationState
from retinue.core.migration.copying import PLAIN, CopyOptions, Postcopy
from retinue.core.migration.precopy import WANTED_DOWNTIME
from retinue.core.model import Ending
from retinue.host.errors import HostError
from retinue.hypervisor import (
    Channel,
    Copying,
    Divert,
    Exited,
    HandedOverError,
    HeldFrames,
    HypervisorError,
    MigrationFailed,
    MigrationResult,
    NICSpec,
    OnEvent,
    OpenDisk,
    Resumed,
    RunsElsewhere,
    RunState,
    StartedAnew,
    Stopped,
    VMSpec,
    ignore,
)
from retinue.hypervisor.memory_channel import Again
from retinue.hypervisor.paths import MachineFiles
from retinue.protocol.errors import ControllerAwayError, RejectedError
from retinue.protocol.events import ControllerEvent
from retinue.protocol.migrations import MigrationRecord
from retinue.protocol.vms import VMRecord, VMsRecord

TABLE = VMTable("/g/vmlinuz", "/g/initrd", append="quiet hostname={hostname} ip={ipv4}")
VM = VMRecord("web", "52:54:00:00:00:01", "server1", addresses=["10.1.0.50"])


class AgentWorld:
    """Everything that happens on the fake servers and is told to the fake controller, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.machines: list[FakeMachine] = []
        self.departed: set[str] = set()
        """VMs whose source has reached its target."""
        self.ran_twice: list[str] = []
        self.no_postcopy = ""
        """Why no server can run a VM before all of its memory is there."""
        self.frames_waiting = self.frames_come = 0
        self.held: list[bytes] | None = None
        """What waits in the taps of a target; None: nobody can hold it."""

    def note(self, what: str) -> None:
        self.log.append(what)

    def take(self) -> list[str]:
        found, self.log = self.log, []
        return found

    def running(self, vm: str) -> list[str]:
        """The servers where it runs."""
        return [m.server for m in self.machines if m.spec.id == vm and m.now is RunState.RUNNING]


class FakeMachine:
    def __init__(self, world: AgentWorld, server: str, spec: VMSpec, on_event: OnEvent) -> None:
        self.world, self.server, self.spec, self.on_event = world, server, spec, on_event
        self.now = RunState.INCOMING
        self.files = MachineFiles.named(
            Path("/tmp"), f"{os.getpid()}-{server}-{spec.port}-{len(world.machines)}"
        )
        self.ended = self.stuck = self.asked = False
        """asked: to end, and not by itself."""
        self.lacks = False
        """It runs, and some of its memory is at the source yet."""
        self.owes = False
        """Its VM runs elsewhere, and some of its memory is here yet."""
        self.deaf = False
        """Its guest does not heed the power button."""
        self.immortal = 0
        """How often it cannot be ended."""
        world.machines.append(self)

    async def state(self) -> RunState:
        if self.ended:
            raise HypervisorError("QEMU has ended")
        return self.now

    async def resume(self) -> None:
        if self.ended or self.stuck:
            raise HypervisorError("QEMU has ended" if self.ended else "it does not run on")
        if self.now is not RunState.RUNNING:
            self.world.note(f"{self.server}: cont")
            self.run()

    async def set_nics(self, nics: Sequence[NICSpec], gone: Collection[str]) -> None:
        if self.stuck:
            raise HypervisorError("its guest does not let go")
        self.world.note(f"{self.server}: has {' '.join(nic.port for nic in nics) or 'no further NICs'}")
        self.spec = replace(self.spec, more_nics=tuple(nics))

    def run(self) -> None:
        self.now = RunState.RUNNING
        if len(where := self.world.running(self.spec.id)) > 1:
            self.world.ran_twice.append(f"{self.spec.id} runs at {' and '.join(where)}")

    async def expect_postcopy(self) -> None:
        if self.world.no_postcopy:
            raise HypervisorError(self.world.no_postcopy)

    def hold_frames(self) -> HeldFrames | None:
        return None if self.world.held is None else HeldInWorld(self.world, self.server)

    async def take_disk(self, number: int, channel: Channel) -> None:
        raise HypervisorError("there are no disks here")

    async def waiting(self) -> int:
        return self.world.frames_waiting

    async def quit(self) -> None:
        if self.immortal:
            self.immortal -= 1
            raise HypervisorError("it does not end")
        if not self.ended:
            self.world.note(f"{self.server}: quit")
        self.asked = True
        self.die()

    async def let_go(self) -> None:
        self.on_event = ignore

    async def press_power(self) -> None:
        self.world.note(f"{self.server}: power button")
        if not self.deaf:
            self.power_off()

    async def reboot(self) -> None:
        self.world.note(f"{self.server}: reboot")
        if not self.deaf:
            self.on_event(StartedAnew(self.spec.id, 9.0))

    async def reset(self) -> None:
        self.world.note(f"{self.server}: reset")
        self.on_event(StartedAnew(self.spec.id, 9.0))

    async def flap_link(self) -> None:
        if self.stuck:
            raise HypervisorError("it does not answer")
        self.world.note(f"{self.server}: link down and up")

    async def cut_power(self) -> None:
        self.world.note(f"{self.server}: power cut")
        self.power_off()

    def power_off(self) -> None:
        """From inside, or as it was asked to."""
        self.die(Ending.OFF)

    def die(self, how: Ending = Ending.CRASHED) -> None:
        if not self.ended:
            self.ended, self.now = True, RunState.BROKEN
            self.on_event(Exited(self.spec.id, 9.0, how))


class HeldInWorld:
    """What waits at a fake server's taps."""

    def __init__(self, world: AgentWorld, server: str) -> None:
        self.world, self.server = world, server

    def take(self, most: int, most_bytes: int) -> list[bytes]:
        self.world.note(f"{self.server}: takes what waits")
        return list(self.world.held or ())

    def let_go(self) -> None:
        self.world.note(f"{self.server}: lets go what waits")


class FakeHypervisor:
    """Its half of a migration reaches, in this order, the points

    departure: "copy", "divert", "stop" (it stands still), "give" (it has said that the VM is the target's)
    arrival:   "arrive", "load" (it has been told that the VM is its own), "run" (it has let it run),
               "tell" (it has told that it runs)

    and does there what its script says: "fails" or "hangs".
    """

    again_limit = 0.2
    """Seconds for another way of what is left of a post-copy."""

    def __init__(self, world: AgentWorld, server: str) -> None:
        self.world, self.server = world, server
        self.machines: list[FakeMachine] = []
        self.script: dict[str, str] = {}
        self.reached: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.go_on = asyncio.Event()
        """Ends every "hangs"."""
        self.mute = False
        """Its end is sudden: the source is told nothing."""
        self.stops_early = False
        """It has stopped the VM before anything was diverted."""
        self.taps: tuple[str, ...] = ()
        """A machine's, where they are not as we would name them."""
        self.waits_for_sent = False
        """It hands the VM over when what that has sent is on its way: others do so at once."""
        self.broken = ""
        """Why no machine can be made."""
        self.reported: list[str] = []
        self.forgotten: list[str] = []
        """VMs whose end the controller knows, and whose consoles have gone."""

    def end_is_reported(self, spec: VMSpec) -> None:
        self.reported.append(spec.id)

    def forget(self, spec: VMSpec) -> None:
        self.forgotten.append(spec.id)

    def forget_all_but(self, specs: Collection[VMSpec]) -> None:
        pass

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

    async def run_outgoing(
        self,
        source: FakeMachine,
        channel: Channel,
        on_event: OnEvent = ignore,
        divert: Divert | None = None,
        wanted_downtime: float = WANTED_DOWNTIME,
        options: CopyOptions = PLAIN,
        open_disk: OpenDisk | None = None,
    ) -> MigrationResult:
        self.world.note(f"{self.server}: outgoing")
        self.world.departed.add(source.spec.id)
        given = False
        try:
            await self._reach("copy")
            await channel.send_memory(b"memory")
            if self.stops_early:
                source.now = RunState.PAUSED
                on_event(Stopped(source.spec.id, 100.0))
            if divert is not None:
                self.reached["divert"].set()
                await divert(self.taps or (source.spec.port,))
            if not self.stops_early:
                source.now = RunState.PAUSED
                on_event(Stopped(source.spec.id, 100.0))
            await self._reach("stop")
            if self.waits_for_sent:
                await channel.may_hand_over()
            source.now = RunState.MOVED
            given = True
            postcopy = divert is not None and options.postcopy is not Postcopy.NEVER
            source.owes = postcopy
            await channel.send_message("handed_over", postcopy=postcopy)
            await self._reach("give")
            answer = await channel.receive_message()
            if answer["type"] != "running":
                given = False
                raise HypervisorError(f"the target could not take the VM in: {answer.get('reason')}")
            if postcopy:
                on_event(RunsElsewhere(source.spec.id, float(answer["at"])))
                await self._send_rest(source, channel, on_event)
            return MigrationResult(100.0, float(answer["at"]), 600.0, 1, 2)
        except BaseException as error:
            if not given:
                with contextlib.suppress(HostError):
                    await source.resume()
                runs = source.now is RunState.RUNNING
                on_event(MigrationFailed(source.spec.id, 101.0, str(error), source_runs=runs))
            elif isinstance(error, HostError):
                raise HandedOverError(str(error)) from error
            raise
        finally:
            await channel.close()

    async def run_incoming(self, target: FakeMachine, channel: Channel, on_event: OnEvent = ignore) -> float:
        ran = False
        try:
            await self._reach("arrive")
            assert await channel.receive() == b"memory"
            postcopy = (await channel.receive_message()).get("postcopy") is True
            await self._reach("load")
            self.world.note(f"{self.server}: runs")
            ran = True
            target.run()
            await self._reach("run")
        except BaseException as error:
            target.die()
            if not ran and not self.mute:
                with contextlib.suppress(HostError):
                    await channel.send_message("failed", reason=str(error) or "it was called off")
            if ran and isinstance(error, HostError):
                raise HandedOverError(f"it had been told to run: {error}") from error
            raise
        else:
            on_event(Resumed(target.spec.id, 100.5))
            self.reached["tell"].set()
            if self.script.get("tell") != "fails":
                with contextlib.suppress(HostError):
                    await channel.send_message("running", at=100.5)
            if self.script.get("tell") == "hangs":
                await self.go_on.wait()
            if postcopy:
                await to_its_end(self._rest(target, channel))
            return 100.5
        finally:
            await channel.close()

    async def _rest(self, target: FakeMachine, channel: Channel) -> None:
        target.lacks = True
        try:
            await self._reach("rest comes")
            await self._take_rest(target, channel)
        except HostError as error:
            self._lose(target)
            raise HandedOverError(f"some of its memory does not come: {error}") from error

    async def _send_rest(self, source: FakeMachine, channel: Channel, on_event: OnEvent) -> None:
        await self._reach("rest")
        await self._give_rest(source, channel)

    async def _give_rest(self, source: FakeMachine, channel: Channel) -> None:
        await channel.send_message("rest")
        assert (await channel.receive_message())["type"] == "got"
        source.owes = False

    async def _take_rest(self, target: FakeMachine, channel: Channel) -> None:
        assert (await channel.receive_message())["type"] == "rest"
        target.lacks = False
        with contextlib.suppress(HostError):
            await channel.send_message("got")

    async def send_the_rest(self, source: FakeMachine, again: Again, on_event: OnEvent = ignore) -> None:
        async def give(channel: Channel) -> None:
            self.world.note(f"{self.server}: sends the rest")
            on_event(Copying(source.spec.id, 101.0, 3, 4096, 0, postcopy=True))
            await self._give_rest(source, channel)

        if source.owes:
            self.world.note(f"{self.server}: has memory to give")
            await self._by_another_way(source, again, give)

    async def receive_the_rest(self, target: FakeMachine, again: Again) -> None:
        async def take(channel: Channel) -> None:
            await self._take_rest(target, channel)
            self.world.note(f"{self.server}: has the rest")

        try:
            await self._by_another_way(target, again, take)
        except HostError as error:
            self._lose(target)
            raise HandedOverError(f"some of its memory does not come: {error}") from error

    async def _by_another_way(
        self, machine: FakeMachine, again: Again, do: Callable[[Channel], Awaitable[None]]
    ) -> None:
        try:
            async with asyncio.timeout(self.again_limit):
                while True:
                    if machine.ended:
                        raise HandedOverError("its QEMU has ended")
                    try:
                        channel = await again()
                        await do(channel)
                        await channel.close()
                        return
                    except HostError:
                        await asyncio.sleep(0.01)
        except TimeoutError as error:
            raise HypervisorError("there is no other way in time") from error

    def _lose(self, target: FakeMachine) -> None:
        target.die()

    async def _reach(self, point: str) -> None:
        self.reached[point].set()
        match self.script.get(point):
            case "hangs":
                await self.go_on.wait()
            case "fails":
                raise HypervisorError(f"{point} fails")


async def to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """As the real one: a VM that is told to run is not called off any more."""
    task = asyncio.create_task(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)


class FakePorts:
    def __init__(self, world: AgentWorld, server: str) -> None:
        self.world, self.server = world, server
        self.broken = self.still_fed = self.stale = ""
        """Why no port can be made; why the switch hands frames out at one for ever, or does not follow its
        tables."""
        self.followed = 0
        self.stuck = 0
        """How often a port cannot be removed."""
        self.bypassed: list[tuple[str, ...]] = []
        self.given_so_far: list[str] | None = None
        """What each look finds that the switch has handed out, the last one again and again; None: nobody can
        tell."""
        self.taken: asyncio.Event | None = None
        """Set when nothing waits at a tap for the switch; None: nothing does."""
        self.plugged: set[str] = set()
        self.macs: dict[str, str] = {}

    async def add(self, vm: str, mac: str, owner: str = "") -> None:
        if self.broken:
            raise HypervisorError(self.broken)
        self.world.note(f"{self.server}: plug {vm} {mac}")
        self.plugged.add(vm)
        self.macs[vm] = mac

    async def missing(self, vms: Mapping[str, str]) -> list[str]:
        if self.broken:
            raise HypervisorError(self.broken)
        return [vm for vm, mac in vms.items() if vm not in self.plugged or self.macs.get(vm, mac) != mac]

    async def until_followed(self) -> None:
        self.followed += 1
        if self.stale:
            raise HypervisorError(self.stale)

    async def given(self, taps: Collection[str], /) -> Mapping[str, str] | None:
        if self.given_so_far is None:
            return None
        self.world.note(f"{self.server}: look")
        return {"a flow": self.given_so_far.pop(0) if len(self.given_so_far) > 1 else self.given_so_far[0]}

    async def until_taken(self, taps: Collection[str], /) -> None:
        if self.taken is not None:
            self.world.note(f"{self.server}: waits for {', '.join(taps)}")
            await self.taken.wait()

    async def until_bypassed(self, taps: Collection[str], copies_from: str, /) -> bool:
        self.bypassed.append((*taps, copies_from))
        if self.still_fed:
            raise HypervisorError(self.still_fed)
        return True

    async def remove(self, vm: str) -> None:
        if self.stuck:
            self.stuck -= 1
            raise HypervisorError("the switch's database is away")
        self.world.note(f"{self.server}: unplug {vm}")
        self.plugged.discard(vm)

    async def rx_frames(self, vm: str) -> int:
        """As a tap: it forgets what has come when nobody has it open any more."""
        machines = [m for m in self.world.machines if m.server == self.server and m.spec.id == vm]
        return self.world.frames_come if any(not m.ended for m in machines) else 0


COPIES_FROM = "02:00:00:00:00:02"


class FakeRest:
    """A controller as one agent sees it."""

    def __init__(self, world: AgentWorld, server: str) -> None:
        self.world, self.server = world, server
        self.known: list[VMRecord] = []
        self.removed: list[str] = []
        self.fenced: list[str] = []
        self.under_way: list[MigrationRecord] = []
        self.memory_at = ""
        self.prepared: dict[str, int] = {}
        """As it was told last."""
        self.away = 0
        """How many reports are not received."""
        self.rejects = self.silent = ""
        """Two kinds of report: one that is rejected, and one that is never answered."""
        self.gone: asyncio.Event | None = None
        """Set when what a stopped VM has sent is on its way; None: it is. That it is waited for is noted."""
        self.streams: asyncio.Queue[list[ControllerEvent] | ControllerAwayError] = asyncio.Queue()
        self.since: asyncio.Queue[int | None] = asyncio.Queue()

    async def vms(self) -> VMsRecord:
        return VMsRecord(self.known, self.removed, self.fenced)

    async def migrations(self) -> list[MigrationRecord]:
        return self.under_way

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        event = body["event"]
        if event == self.silent:
            await asyncio.Event().wait()
        if self.away:
            self.away -= 1
            raise ControllerAwayError("hung up")
        if event == self.rejects:
            raise RejectedError("does not fit")
        if body.get("sent"):
            if self.gone is not None:
                self.world.note(f"{self.server} asks what has become of it")
                await self.gone.wait()
            return {}
        more = {name: value for name, value in body.items() if name != "event"}
        self.memory_at = more.pop("memory_at", self.memory_at)
        took: dict[str, int] = {name: more.pop(name) for name in ("image_ms", "machine_ms") if name in more}
        self.prepared = took or self.prepared
        if path.startswith("/v1/vms/"):
            assert more.pop("server") == self.server
        subject = path.removeprefix("/v1/vms/").removeprefix("/v1/migrations/").removesuffix("/events")
        self.world.note(" ".join([f"{self.server} tells {subject} {event}", *map(str, more.values())]))
        return {"copies_from": COPIES_FROM} if event in ("converged", "waited") else {}

    async def events(self, since: int | None) -> AsyncGenerator[ControllerEvent, None]:
        self.since.put_nowait(since)
        stream = await self.streams.get()
        if isinstance(stream, ControllerAwayError):
            raise stream
        for happening in stream:
            yield happening


@dataclass
class FakeServer:
    """One server."""

    rest: FakeRest
    hypervisor: FakeHypervisor
    ports: FakePorts
    transfer: Transfer
    dispatcher: Dispatcher

    @classmethod
    async def up(cls, world: AgentWorld, server: str, port: int = 0) -> "FakeServer":
        rest, hypervisor, ports = (
            FakeRest(world, server),
            FakeHypervisor(world, server),
            FakePorts(world, server),
        )
        transfer = Transfer(server)
        await transfer.start("127.0.0.1", port)
        dispatcher = Dispatcher(server, rest, hypervisor, ports, lambda vm: spec(vm, TABLE), transfer, ports)
        return cls(rest, hypervisor, ports, transfer, dispatcher)

    async def down(self) -> None:
        await self.dispatcher.close()
        await self.transfer.close()

    @property
    def machine(self) -> FakeMachine:
        """The latest."""
        return self.hypervisor.machines[-1]


class TwoServers:
    """Both servers, and a migration of VM from server1 to server2."""

    def __init__(self, world: AgentWorld, agents: dict[str, FakeServer]) -> None:
        self.world, self.agents = world, agents
        self.step_factor = 1.0
        """So many times as long the migration's steps may take."""

    @property
    def source(self) -> FakeServer:
        return self.agents["server1"]

    @property
    def target(self) -> FakeServer:
        return self.agents["server2"]

    def migration(self, state: str = "planned", id: str = "migration-1") -> MigrationRecord:
        return MigrationRecord(
            *(id, "web", "server1", "server2", MigrationState(state), self.target.transfer.address),
            step_factor=self.step_factor,
        )

    async def after(self, *happenings: ControllerEvent) -> list[str]:
        """What has happened when both agents have dealt with these."""
        for happening in happenings:
            for agent in self.agents.values():
                agent.dispatcher.on_event(happening)
        return await self.settled()

    async def step(self, *steps: str) -> list[str]:
        """After the controller's words "open_target", "start_copy", "free_source", "roll_back",
        "return_to_source" of the migration."""
        told = []
        for name in steps:
            told += await self.after(ControllerEvent(f"migration.{name}", vm=VM, migration=self.migration()))
        return told

    async def settled(self) -> list[str]:
        async with asyncio.timeout(60):
            for _ in "what one agent does", "what the other does then":
                for agent in self.agents.values():
                    await self._settled(agent)
        return self.world.take()

    async def _settled(self, agent: FakeServer) -> None:
        for vm in list(agent.dispatcher.vms.values()):
            await vm.steps.join()
            under_way = vm.runs or vm.id in self.world.departed
            if vm.transfer is not None and under_way and not self._hangs():
                await asyncio.wait({vm.transfer})
        await agent.dispatcher.reports.delivered()

    def _hangs(self) -> bool:
        return any(
            "hangs" in agent.hypervisor.script.values() and not agent.hypervisor.go_on.is_set()
            for agent in self.agents.values()
        )

    async def catch_up(
        self, server: str, *migrations: MigrationRecord, vms: tuple[VMRecord, ...] = (VM,)
    ) -> list[str]:
        agent = self.agents[server]
        agent.rest.known, agent.rest.under_way = list(vms), list(migrations)
        await agent.dispatcher.catch_up()
        return await self.settled()

    async def registered(self) -> None:
        """VM runs at server1."""
        await self.after(ControllerEvent("vm.registered", vm=VM), ControllerEvent("vm.ready", vm=VM))

    async def prepared(self) -> None:
        await self.registered()
        await self.step("open_target")

    async def copying_until(self, point: str, server: str = "server1") -> None:
        """A migration that hangs at this point of its departure or arrival."""
        await self.prepared()
        hypervisor = self.agents[server].hypervisor
        hypervisor.script[point] = "hangs"
        self.source.dispatcher.on_event(ControllerEvent("migration.start_copy", migration=self.migration()))
        async with asyncio.timeout(60):
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
        self.agents[server] = await FakeServer.up(
            self.world, server, int(old.transfer.address.rpartition(":")[2])
        )
        self.world.take()


@contextlib.asynccontextmanager
async def bench_up() -> AsyncIterator[TwoServers]:
    world = AgentWorld()
    bench = TwoServers(
        world, {server: await FakeServer.up(world, server) for server in ("server1", "server2")}
    )
    try:
        yield bench
    finally:
        for agent in bench.agents.values():
            await agent.down()
    assert world.ran_twice == []
