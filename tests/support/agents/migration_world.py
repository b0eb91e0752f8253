"""One live migration, with troubles: two real agents, the real move machine, and a small controller between.

The agents' servers are those of `agent_world`, taking their time at each step; the words between agents and
controller, and those between the two agents, take theirs. All in virtual time (`virtual_time`).
"""

import asyncio
import contextlib
import itertools
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from retinue.agent.dispatcher import Dispatcher
from retinue.agent.main import follow
from retinue.agent.migration.peer import Transfer
from retinue.agent.renewal.service import RenewalService
from retinue.agent.vms.vm_spec import spec
from retinue.controller.events import EventBus
from retinue.controller.migrations.reports import DIVERTING_LIMIT
from retinue.core import migration as fsm
from retinue.core.migration import Migration, MigrationState, PlacementChange
from retinue.core.migration.copying import PLAIN, CopyOptions, Postcopy
from retinue.core.migration.precopy import WANTED_DOWNTIME
from retinue.core.model import Ending
from retinue.host.errors import HostError
from retinue.hypervisor import (
    Channel,
    ChannelError,
    HandedOverError,
    HypervisorError,
    Left,
    MigrationResult,
    OnEvent,
    OpenDisk,
    RunState,
    VMSpec,
    ignore,
)
from retinue.hypervisor.aio import cancelled
from retinue.hypervisor.another_way import AGAIN_LIMIT
from retinue.hypervisor.interface import Divert
from retinue.hypervisor.memory_channel import Again
from retinue.protocol.errors import ControllerAwayError, RejectedError
from retinue.protocol.events import ControllerEvent
from retinue.protocol.migrations import MigrationRecord, Order
from retinue.protocol.vms import VMRecord, VMsRecord
from support.agents.world import TABLE, VM, AgentWorld, FakeHypervisor, FakeMachine, FakePorts, to_its_end

SOURCE, TARGET = "server1", "server2"
ENDS = (SOURCE, TARGET)


@dataclass(frozen=True)
class Pace:
    """Seconds that things take, each in turn and from the start again."""

    report: Sequence[float] = (0.01,)
    stream: Sequence[float] = (0.01,)
    channel: Sequence[float] = (0.01,)
    switches: Sequence[float] = (0.01,)
    machine: Sequence[float] = (0.01,)
    repeated: Sequence[bool] = (False,)
    """Reports whose answer is lost, so that they come twice."""


class Clocked:
    """The paces, and what has been reached: names of states of the migration and of steps of the
    hypervisors."""

    def __init__(self, pace: Pace) -> None:
        self._turns: dict[str, Iterator[Any]] = {
            name: itertools.cycle(getattr(pace, name)) for name in Pace.__dataclass_fields__
        }
        self.moments: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def next(self, kind: str) -> Any:
        return next(self._turns[kind])

    async def pass_(self, kind: str) -> None:
        await asyncio.sleep(self.next(kind))


# ---- the servers ----


class TestedWorld(AgentWorld):
    """Also notes that a VM runs on from its past."""

    __test__ = False

    def __init__(self) -> None:
        super().__init__()
        self.went_back: list[str] = []
        self.resumed = False
        """The controller knows that the VM ran at the target."""

    def look(self, machine: "TimedMachine") -> None:
        """A machine begins to run."""
        machine.ran = True
        if machine.server != SOURCE:
            return
        others = [m for m in self.machines if isinstance(m, TimedMachine) and m.server == TARGET]
        if self.resumed or any(m.ran and not m.killed for m in others):
            self.went_back.append(f"at {asyncio.get_running_loop().time():g}")

    def ever_killed(self, server: str) -> bool:
        machines = [m for m in self.machines if isinstance(m, TimedMachine) and m.server == server]
        return any(m.killed or m.lost for m in machines)

    def alive(self, server: str) -> list[FakeMachine]:
        return [m for m in self.machines if m.server == server and not m.ended]


class TimedMachine(FakeMachine):
    ran = killed = lost = frozen = False
    """lost: its agent has ended it, since some of its memory does not come. frozen: its agent has died this
    moment, and can do nothing more to it."""

    async def resume(self) -> None:
        if self.frozen:
            raise HypervisorError("the agent is gone")
        await super().resume()

    def run(self) -> None:
        if not self.frozen:
            super().run()
            cast(TestedWorld, self.world).look(self)

    def die(self, how: Ending = Ending.CRASHED) -> None:
        if not self.frozen:
            super().die(how)

    async def quit(self) -> None:
        if not self.frozen:
            await super().quit()

    def kill(self) -> None:
        """It ends by itself."""
        self.killed = True
        self.die()

    def lose(self) -> None:
        if not self.frozen:
            self.lost = True
            self.die()


class TimedHypervisor(FakeHypervisor):
    """Takes its time at each point, and notices there that its machine has ended."""

    again_limit = AGAIN_LIMIT

    def __init__(self, world: AgentWorld, server: str, clocked: Clocked) -> None:
        super().__init__(world, server)
        self._clocked = clocked
        self._migrating: FakeMachine | None = None
        self.died = asyncio.Event()
        """Its agent has been killed."""

    def _make(self, how: str, spec: VMSpec, on_event: OnEvent) -> FakeMachine:
        self.world.note(f"{self.server}: {how} {spec.id}")
        machine = TimedMachine(self.world, self.server, spec, on_event)
        self.machines.append(machine)
        return machine

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
        self._migrating = source
        return await super().run_outgoing(source, channel, on_event, divert, wanted_downtime, options)

    async def run_incoming(self, target: FakeMachine, channel: Channel, on_event: OnEvent = ignore) -> float:
        self._migrating = target
        return await super().run_incoming(target, channel, on_event)

    async def _send_rest(self, source: FakeMachine, channel: Channel, on_event: OnEvent) -> None:
        await to_its_end(self._send_all_of_it(source, channel, on_event))

    async def _send_all_of_it(self, source: FakeMachine, channel: Channel, on_event: OnEvent) -> None:
        try:
            await super()._send_rest(source, channel, on_event)
        except HostError:
            if source.ended or self.died.is_set() or channel.again is None:
                raise
            await self.send_the_rest(source, channel.again, on_event)

    async def _rest(self, target: FakeMachine, channel: Channel) -> None:
        target.lacks = True
        try:
            await self._reach("rest comes")
            await self._take_rest(target, channel)
        except HostError as error:
            if target.ended or self.died.is_set() or channel.again is None:
                self._lose(target)
                raise HandedOverError(f"some of its memory does not come: {error}") from error
            await self.receive_the_rest(target, channel.again)

    async def _by_another_way(
        self, machine: FakeMachine, again: Again, do: Callable[[Channel], Awaitable[None]]
    ) -> None:
        trying = asyncio.create_task(super()._by_another_way(machine, again, do))
        dying = asyncio.create_task(self.died.wait())
        try:
            await asyncio.wait({trying, dying}, return_when=asyncio.FIRST_COMPLETED)
            if not trying.done():
                raise HypervisorError("the agent is gone")
            trying.result()
        finally:
            await cancelled(trying, dying)

    def _lose(self, target: FakeMachine) -> None:
        cast(TimedMachine, target).lose()

    async def _reach(self, point: str) -> None:
        self._clocked.moments[point].set()
        if point == "run":
            await to_its_end(self._clocked.pass_("machine"))
        else:
            await self._clocked.pass_("machine")
        if point != "give" and self._migrating is not None and self._migrating.ended:
            raise HypervisorError("its QEMU has ended")


# ---- between the servers ----


class End(Channel):
    """One end of a connection in memory."""

    other: "End"

    def __init__(self, clocked: Clocked) -> None:
        self._clocked = clocked
        self._heard: asyncio.Queue[bytes | dict[str, Any] | None] = asyncio.Queue()
        self._closed = self.cut_off = False
        self._last = 0.0
        self.before_memory = None
        self.again: Again | None = None

    async def send_message(self, type: str, **more: Any) -> None:
        await self._say({"type": type, **more})

    async def send_memory(self, nbytes: bytes | memoryview) -> None:
        await self._say(bytes(nbytes))

    async def _say(self, word: bytes | dict[str, Any]) -> None:
        await asyncio.sleep(0)
        if self._closed or self.cut_off:
            raise ChannelError("the other end of the migration has hung up")
        self._put(word)

    async def receive(self) -> bytes | dict[str, Any]:
        word = None if self._closed else await self._heard.get()
        if word is None:
            self._heard.put_nowait(None)
            raise ChannelError("the other end of the migration has hung up")
        if isinstance(word, bytes) and self.before_memory is not None:
            await self.before_memory()
        return word

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._put(None)

    def abort(self) -> None:
        if not self._closed:
            self._closed = True
            self._put(None)

    def cut(self) -> None:
        """The network fails: what is on its way is lost."""
        for end in (self, self.other):
            end.cut_off = True
            end._heard.put_nowait(None)

    def _put(self, word: bytes | dict[str, Any] | None) -> None:
        """In order, whatever the pace."""
        loop = asyncio.get_running_loop()
        self._last = max(self._last + 1e-4, loop.time() + self._clocked.next("channel"))
        loop.call_at(self._last, self.other._arrives, word)

    def _arrives(self, word: bytes | dict[str, Any] | None) -> None:
        if not self.cut_off:
            self._heard.put_nowait(word)


class MemoryTransfer(Transfer):
    """As the real one, without a network. `listening`: who can be reached, by address."""

    def __init__(self, server: str, listening: dict[str, "MemoryTransfer"], clocked: Clocked) -> None:
        super().__init__(server)
        self._clocked = clocked
        self._all = listening
        self.address = f"{server}:1"
        self._all[self.address] = self
        self.ends: list[End] = []

    async def close(self) -> None:
        self._all.pop(self.address, None)
        await super().close()

    async def connect(self, address: str, migration: str, target: str) -> Channel:
        await self._clocked.pass_("channel")
        there = self._all.get(address)
        source, waiting = there._expected.get(migration, ("", None)) if there else ("", None)
        if there is None or waiting is None or waiting.done() or source != self._server:
            raise HypervisorError(f"the agent of {target} does not let the migration in")
        ours, theirs = End(self._clocked), End(self._clocked)
        ours.other, theirs.other = theirs, ours
        waiting.set_result(theirs)
        there._latest[migration] = theirs
        return await self._connected(there, ours, theirs)

    async def connect_again(self, address: str, migration: str, target: str) -> Channel:
        await self._clocked.pass_("channel")
        there = self._all.get(address)
        source, waiting = there._expected.get(migration, ("", None)) if there else ("", None)
        begun = waiting is not None and waiting.done()
        if there is None or not begun or migration not in there._latest or source != self._server:
            raise HypervisorError(f"the agent of {target} does not let the migration in")
        ours, theirs = End(self._clocked), End(self._clocked)
        ours.other, theirs.other = theirs, ours
        there._let_in_again(migration, theirs)
        return await self._connected(there, ours, theirs)

    async def _connected(self, there: "MemoryTransfer", ours: End, theirs: End) -> Channel:
        self.ends.append(ours)
        there.ends.append(theirs)
        await self._clocked.pass_("channel")
        return ours

    def cut(self) -> None:
        for end in self.ends:
            end.cut()


# ---- the controller ----


class MigrationController:
    """Carries out what the migration machine wants, as the real one does, with switches that take their time.

    Moves and VMs outlive it; events and what it is waiting for do not.
    """

    def __init__(self, world: TestedWorld, clocked: Clocked, postcopy: bool = False) -> None:
        self.world, self._clocked = world, clocked
        self.vm = _with(VM, state="ready")
        self.switches_answer = asyncio.Event()
        self.switches_answer.set()
        self.broken_rules: list[str] = []
        self.life = 0
        """Which one this is."""
        self._open: str | None = None
        options = CopyOptions(postcopy=Postcopy.REQUIRED if postcopy else Postcopy.NEVER)
        self.migration = fsm.begin("migration-1", VM.id, SOURCE, TARGET, self._now(), options=options)
        self._begin()

    def start_migration(self) -> None:
        self._step(fsm.Matched())

    def start_again(self) -> None:
        self.life += 1
        self.close()
        self._begin()
        self._open = None
        if not self.migration.state.ended:
            self.migration, effects = fsm.again(self.migration, self._now())
            for effect in effects:
                self._carry_out(effect)
            if self.migration.state is MigrationState.PLANNED:
                self._step(fsm.Matched())

    def close(self) -> None:
        self.bus.close()
        for task in (*self._confirming.values(), self._ticking):
            task.cancel()

    def _begin(self) -> None:
        self.bus = EventBus(self._now)
        self._diverted = asyncio.Event()
        self._confirming: dict[PlacementChange, asyncio.Task[None]] = {}
        self._ticking = asyncio.create_task(self._tick())

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            deadline = self.migration.deadline()
            if deadline is not None and self._now() >= deadline:
                self._step(fsm.TimedOut())

    # ---- what it is told ----

    async def told(self, path: str, body: dict[str, Any]) -> None:
        """Returns when it has answered. Raises RejectedError."""
        if path.startswith("/v1/vms/"):
            state = "running" if body["event"] == "started" else "ready"
            self.vm = _with(self.vm, state=state)
            return
        event, life = body["event"], self.life
        try:
            self._hear(event, body)
        except fsm.IllegalEventError as error:
            raise RejectedError(str(error)) from error
        if event == "converged" and self.migration.state is MigrationState.DIVERTED:
            try:
                async with asyncio.timeout(DIVERTING_LIMIT):
                    await self._diverted.wait()
            except TimeoutError:
                raise RejectedError("not confirmed in time") from None
            if life != self.life:
                raise ControllerAwayError("hung up")

    def _hear(self, event: str, body: dict[str, Any]) -> None:
        match event:
            case "target_opened":
                self._open = body["memory_at"]
                if self.migration.state is MigrationState.MATCHED:
                    self._step(fsm.TargetOpened(self._open))
            case "copy_started":
                self._step(fsm.CopyStarted())
            case "converged":
                self._step(fsm.Converged())
            case "stopped":
                self._step(fsm.SourceStopped(body["at"]))
            case "resumed":
                self._step(fsm.Resumed(body["at"]))
                self.world.resumed = True
            case "source_freed":
                self._step(fsm.SourceFreed())
            case "target_closed":
                self._step(fsm.TargetClosed())
            case "rolled_back":
                self._step(fsm.RolledBack())
            case "failed":
                self._step(fsm.Failed(body["reason"]))
            case other:
                raise AssertionError(f"an agent tells {other}")

    def cancel(self) -> None:
        with contextlib.suppress(fsm.IllegalEventError):
            self._step(fsm.Cancelled("the operator"))

    def out_of_time(self) -> None:
        if self.migration.deadline() is not None:
            self._step(fsm.TimedOut())

    # ---- what it does ----

    def _step(self, event: fsm.Event) -> None:
        self.migration, effects = fsm.step(self.migration, event, self._now())
        self._clocked.moments[str(self.migration.state)].set()
        for effect in effects:
            self._carry_out(effect)

    def _carry_out(self, effect: fsm.Effect) -> None:
        match effect:
            case fsm.OpenTarget():
                self.bus.publish(Order.OPEN_TARGET, vm=self.vm, migration=record(self.migration))
            case fsm.StartCopy():
                self.bus.publish(Order.START_COPY, migration=record(self.migration))
            case fsm.FreeSource():
                self.bus.publish(Order.FREE_SOURCE, migration=record(self.migration))
            case fsm.ReturnToSource():
                self.bus.publish(Order.RETURN_TO_SOURCE, migration=record(self.migration))
            case fsm.RollBackAtHypervisor():
                self.bus.publish(Order.ROLL_BACK, migration=record(self.migration))
            case fsm.AdmitAtTarget():
                self._reregister(PlacementChange.ADMITTED)
            case fsm.DivertToTarget():
                self._reregister(PlacementChange.DIVERTED)
            case fsm.CloseSource():
                self._reregister(PlacementChange.SOURCE_CLOSED)
            case fsm.CeaseForwarding():
                self._reregister(PlacementChange.SETTLED)
            case fsm.CloseTarget():
                self._reregister(PlacementChange.TARGET_CLOSED)

    def _reregister(self, change: PlacementChange) -> None:
        there = change in (PlacementChange.DIVERTED, PlacementChange.SOURCE_CLOSED, PlacementChange.SETTLED)
        self.vm = _with(self.vm, server=TARGET if there else SOURCE)
        running = self._confirming.get(change)
        if running is None or running.done():
            self._confirming[change] = asyncio.create_task(self._confirm(change))

    async def _confirm(self, change: PlacementChange) -> None:
        await self._clocked.pass_("switches")
        await self.switches_answer.wait()
        if change is PlacementChange.DIVERTED:
            self._diverted.set()
        with contextlib.suppress(fsm.IllegalEventError):
            self._step(fsm.Confirmed(change))


def record(migration: Migration) -> MigrationRecord:
    return MigrationRecord(
        migration.id,
        migration.vm,
        migration.source,
        migration.target,
        migration.state,
        migration.memory_at,
        postcopy=migration.postcopy,
        target_closed=migration.target_closed,
    )


def _with(vm: VMRecord, **changes: Any) -> VMRecord:
    fields = {name: getattr(vm, name) for name in VMRecord.__struct_fields__}
    return VMRecord(**{**fields, **changes})


class Line:
    """The controller as one agent sees it (`Rest`)."""

    def __init__(self, controller: MigrationController, server: str, clocked: Clocked) -> None:
        self._controller, self._server, self._clocked = controller, server, clocked
        self.dead = False
        """The agent has died this moment: nobody hears it."""
        self._listening: Any = None

    async def vms(self) -> VMsRecord:
        return VMsRecord([self._controller.vm])

    async def migrations(self) -> list[MigrationRecord]:
        return [record(self._controller.migration)]

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        await self._there("report")
        world = self._controller.world
        more = [str(value) for name, value in body.items() if name != "event"]
        try:
            await self._controller.told(path, body)
        except RejectedError:
            world.note(" ".join([f"{self._server} tells {body['event']}, rejected:", *more]))
            raise
        world.note(" ".join([f"{self._server} tells {body['event']}", *more]))
        if self._clocked.next("repeated"):
            raise ControllerAwayError("the answer is lost")
        await self._there("report")
        return {}

    async def _there(self, pace: str) -> None:
        life = self._controller.life
        await self._clocked.pass_(pace)
        if self.dead:
            await asyncio.Event().wait()
        if life != self._controller.life:
            raise ControllerAwayError("hung up")

    def hang_up(self) -> None:
        if self._listening is not None:
            self._listening.cancel()

    async def events(self, since: int | None) -> AsyncGenerator[ControllerEvent, None]:
        await self._there("stream")
        bus, life = self._controller.bus, self._controller.life
        last, stream = bus.last_id, bus.listen(since)
        yield ControllerEvent("hello", last)
        while True:
            self._listening = asyncio.ensure_future(anext(stream))
            try:
                event = await self._listening
            except (StopAsyncIteration, asyncio.CancelledError):
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                return
            await self._clocked.pass_("stream")
            if life != self._controller.life:
                return
            yield ControllerEvent(event.type, event.id, **event.data)


# ---- everything together ----


class Server:
    """One server with its agent, which may come and go."""

    def __init__(
        self,
        name: str,
        controller: MigrationController,
        listening: dict[str, MemoryTransfer],
        clocked: Clocked,
    ) -> None:
        self.name, self._controller, self._listening, self._clocked = name, controller, listening, clocked
        self.world = controller.world
        self.ports = FakePorts(self.world, name)
        self._up()

    def _up(self) -> None:
        self.hypervisor = TimedHypervisor(self.world, self.name, self._clocked)
        self.line = Line(self._controller, self.name, self._clocked)
        self.transfer = MemoryTransfer(self.name, self._listening, self._clocked)
        self.dispatcher = Dispatcher(
            self.name, self.line, self.hypervisor, self.ports, lambda vm: spec(vm, TABLE), self.transfer
        )

    def follow(self) -> None:
        renewals = cast(RenewalService, None)  # Nothing is renewed here.
        self._following = asyncio.create_task(follow(self.line, self.dispatcher, renewals, asyncio.Event()))

    def machines(self) -> list[TimedMachine]:
        return [m for m in self.world.alive(self.name) if isinstance(m, TimedMachine)]

    def kill_machine(self) -> None:
        for machine in self.machines():
            machine.kill()

    async def down(self) -> None:
        """In order, as on SIGTERM."""
        self._following.cancel()
        await self.dispatcher.close()
        await self.transfer.close()
        self.line.dead = True

    async def die(self) -> None:
        """As on SIGKILL: nothing more is told, nothing more is done."""
        self.line.dead = True
        self.transfer.cut()
        self.hypervisor.died.set()
        before = [(machine, machine.now) for machine in self.machines()]
        for machine, _ in before:
            machine.frozen = True
        await self.down()
        for machine, now in before:
            machine.now, machine.frozen = now, False

    async def restart(self, *, sudden: bool, keeps: bool) -> None:
        """The agent ends, all VMs with it unless it `keeps` them, and another one starts."""
        await (self.die() if sudden else self.down())
        machines = self.machines()
        for machine in machines:
            machine.on_event = ignore
            if not keeps:
                machine.kill()
        self.world.note(f"{self.name}: another agent")
        self._up()
        await self._adopt([machine for machine in machines if keeps])
        self.follow()

    async def _adopt(self, machines: list[TimedMachine]) -> None:
        """As the daemon does, and QemuHypervisor.adopt."""
        left: Left[TimedMachine] = Left()
        for machine in machines:
            machine.on_event = self.dispatcher.listener(machine.spec.id)
            if machine.now is RunState.INCOMING:
                await machine.quit()
            else:
                left.machines.append(machine)
                if machine.lacks and machine.now is RunState.RUNNING:
                    left.lacking.add(machine.spec.id)
        await self.dispatcher.adopt_all(left)
        self.ports.plugged = {machine.spec.id for machine in self.dispatcher.machines()}


class MigrationRun:
    """VM runs at the source, and is to be moved."""

    def __init__(self, pace: Pace, postcopy: bool = False) -> None:
        self.world, self.clocked = TestedWorld(), Clocked(pace)
        self.controller = MigrationController(self.world, self.clocked, postcopy)
        self._one_trouble = asyncio.Lock()
        listening: dict[str, MemoryTransfer] = {}
        self.servers = {name: Server(name, self.controller, listening, self.clocked) for name in ENDS}

    @property
    def state(self) -> MigrationState:
        return self.controller.migration.state

    async def begin(self) -> None:
        for server in self.servers.values():
            server.follow()
        await asyncio.sleep(20)
        assert self.world.running(VM.id) == [SOURCE]
        self.controller.start_migration()

    async def trouble(self, kind: str) -> None:
        """One after the other, when they come at once."""
        async with self._one_trouble:
            await self._trouble(kind)

    async def _trouble(self, kind: str) -> None:
        what, _, at = kind.partition(" ")
        self.world.note(f"-- {kind}")
        match what:
            case "cancel":
                self.controller.cancel()
            case "timeout":
                self.controller.out_of_time()
            case "controller":
                self.controller.start_again()
            case "cut":
                self.servers[SOURCE].transfer.cut()
            case "switches":
                self.controller.switches_answer.clear()
            case "kill":
                self.servers[at].kill_machine()
            case "deaf":
                self.servers[at].line.hang_up()
            case "restart":
                await self.servers[at].restart(sudden=False, keeps=True)
            case "crash":
                await self.servers[at].restart(sudden=True, keeps=True)
            case "lose":
                await self.servers[at].restart(sudden=True, keeps=False)
            case other:
                raise AssertionError(other)

    async def ended(self) -> None:
        """No more troubles: the migration ends, and then everything that is under way does."""
        self.controller.switches_answer.set()
        await asyncio.sleep(1000)  # The longest that a state may last is 600.
        assert self.state.ended, f"the migration stays {self.state}"

    async def close(self) -> None:
        self.controller.close()
        for server in self.servers.values():
            await server.down()
