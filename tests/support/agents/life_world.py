"""A real controller over fake switches, and real agents over fake hypervisors and ports, in virtual time.

Whoever runs the VMs outlives the agents, and the database the controllers, so both may be killed at any
moment. A VM that ended while no agent looked is noted, as QemuHypervisor does.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any, cast

import msgspec

from retinue.agent.dispatcher import Dispatcher
from retinue.agent.main import follow
from retinue.agent.renewal.service import RenewalService
from retinue.agent.vms.vm_spec import spec
from retinue.controller.api import views
from retinue.controller.app import Controller
from retinue.controller.errors import RequestError
from retinue.core.model import Ending, PortStatus
from retinue.hypervisor import Event, Exited, HypervisorError, Left, OnEvent, VMSpec, ignore
from retinue.protocol.errors import ControllerAwayError, RejectedError
from retinue.protocol.events import ACTED_ON, HELLO, ControllerEvent, controller_event
from retinue.protocol.migrations import MigrationRecord
from retinue.protocol.records import record
from retinue.protocol.serving import encode
from retinue.protocol.vms import VMReport, VMsRecord
from retinue.southbound.ovsdb import BridgePort
from support.agents.migration_world import Clocked, MemoryTransfer, Pace
from support.agents.world import TABLE, AgentWorld, FakeHypervisor, FakeMachine, FakePorts
from support.fabric.networks import fabric, vm_port
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork

SERVERS = ("server1", "server2")


class KeptHypervisor(FakeHypervisor):
    """What runs, and the notes of what has ended, which outlive the agents."""

    def __init__(self, world: AgentWorld, server: str) -> None:
        super().__init__(world, server)
        self.ended: dict[str, Ending] = {}

    async def start(self, spec: VMSpec, on_event: OnEvent = ignore) -> FakeMachine:
        await asyncio.sleep(0.05)
        self.ended.pop(spec.id, None)
        machine = await super().start(spec)
        self.listened(machine, on_event)
        return machine

    def listened(self, machine: FakeMachine, on_event: OnEvent) -> None:
        def hear(event: Event) -> None:
            if isinstance(event, Exited) and not machine.asked:
                self.ended[machine.spec.id] = event.how
            on_event(event)

        machine.on_event = hear

    def end_is_reported(self, spec: VMSpec) -> None:
        self.ended.pop(spec.id, None)

    def left(self) -> Left[FakeMachine]:
        return Left([machine for machine in self.machines if not machine.ended], dict(self.ended))


class SwitchPorts(FakePorts):
    """Ports that the switch's database reports, as long as the controller is there."""

    def __init__(self, lives: "Lives", server: str) -> None:
        super().__init__(lives.world, server)
        self._lives = lives

    async def add(self, vm: str, mac: str, owner: str = "") -> None:
        await asyncio.sleep(0.02)
        await super().add(vm, mac)
        self._lives.port(self.server, vm, mac, there=True)

    async def remove(self, vm: str) -> None:
        await asyncio.sleep(0.02)
        await super().remove(vm)
        self.take_out(vm)

    def take_out(self, vm: str) -> None:
        self.plugged.discard(vm)
        self._lives.port(self.server, vm, "", there=False)


class Line:
    """The way from one agent to the controller (`Rest`)."""

    def __init__(self, lives: "Lives", server: str) -> None:
        self._lives, self._server = lives, server
        self.cut = False

    async def _up(self) -> Controller:
        await asyncio.sleep(0.01)
        if self.cut or self._lives.controller is None:
            raise ControllerAwayError("nobody answers")
        return self._lives.controller

    async def vms(self) -> VMsRecord:
        controller = await self._up()
        shown = [views.vm(controller, vm) for vm in controller.net.vms.values()]
        answer = {"vms": shown, "removed": controller.inventory.ports.removed_vms()}
        return record(VMsRecord, msgspec.json.decode(encode(answer)))

    async def migrations(self) -> list[MigrationRecord]:
        await self._up()
        return []

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        controller = await self._up()
        vm = path.removeprefix("/v1/vms/").removesuffix("/events")
        how = Ending(body.get("how", Ending.OFF))
        try:
            controller.inventory.power.on_report(
                vm, VMReport(body["event"]), body["server"], how, body.get("reason", "")
            )
        except RequestError as error:
            raise RejectedError(str(error)) from error
        return {}

    async def events(self, since: int | None) -> AsyncGenerator[ControllerEvent, None]:
        controller = await self._up()
        listener, last = controller.events.listen(since), controller.events.last_id
        with contextlib.closing(listener):
            yield ControllerEvent(HELLO, id=last)
            async for event in listener:
                if self.cut or self._lives.controller is not controller:
                    return
                if event.type in ACTED_ON:
                    yield controller_event(event.type, encode(views.event(event, controller)))


class Agent:
    def __init__(self, lives: "Lives", server: str) -> None:
        self.server = server
        self.hypervisor = KeptHypervisor(lives.world, server)
        self.ports = SwitchPorts(lives, server)
        self.line = Line(lives, server)
        self.dispatcher: Dispatcher | None = None
        self._tasks: list[asyncio.Task[Any]] = []

    async def begin(self) -> None:
        transfer = MemoryTransfer(self.server, {}, Clocked(Pace()))
        self.dispatcher = dispatcher = Dispatcher(
            self.server, self.line, self.hypervisor, self.ports, lambda vm: spec(vm, TABLE), transfer
        )
        left = self.hypervisor.left()
        for machine in left.machines:
            self.hypervisor.listened(machine, dispatcher.listener(machine.spec.id))
        await dispatcher.adopt_all(left)
        renewals = cast(RenewalService, None)
        self._tasks = [
            asyncio.create_task(self._clear(dispatcher)),
            asyncio.create_task(follow(self.line, dispatcher, renewals, asyncio.Event())),
        ]

    async def _clear(self, dispatcher: Dispatcher) -> None:
        """As agents.backends: what cannot be removed now is later."""
        while left := self.ports.plugged - dispatcher.vms.keys():
            try:
                for vm in left:
                    await self.ports.remove(vm)
            except HypervisorError:
                await asyncio.sleep(1)

    async def die(self) -> None:
        """At once, wherever it is; what it was doing is half done."""
        dispatcher, self.dispatcher = self.dispatcher, None
        if dispatcher is None:
            return
        for machine in self.hypervisor.machines:
            self.hypervisor.listened(machine, ignore)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await dispatcher.close()
        for machine in self.hypervisor.machines:
            self.hypervisor.listened(machine, ignore)


class Lives:
    """Two servers, and one controller after the other."""

    def __init__(self) -> None:
        self.world = AgentWorld()
        self.store = MemoryStore()
        self.fake: FakeNetwork | None = None
        self.macs: dict[str, str] = {}
        self.agents = {server: Agent(self, server) for server in SERVERS}

    @property
    def controller(self) -> Controller | None:
        return None if self.fake is None else self.fake.controller

    async def controller_begins(self) -> None:
        clock = asyncio.get_running_loop().time
        fake = FakeNetwork(fabric(), lambda: 1e6 + clock(), self.store)
        fake.controller.restore(self.store.load())
        await fake.controller.start()
        self.fake = fake
        for switch in fake.net.switches:
            fake.connect(switch)
        for server, agent in self.agents.items():
            dpid = fake.net.switches[fake.net.servers[server].edge].dpid
            fake.controller.inventory.ports.edge_read([dpid], list(agent.ports.plugged))
            for vm in sorted(agent.ports.plugged):
                self.port(server, vm, self.macs[vm], there=True)
        await fake.settle()

    async def controller_dies(self) -> None:
        fake, self.fake = self.fake, None
        if fake is not None:
            await fake.stop()

    def port(self, server: str, vm: str, mac: str, *, there: bool) -> None:
        """The switch's database reports a port that came or went."""
        mac = self.macs[vm] = mac or self.macs.get(vm, "")
        if self.fake is None:
            return
        port = BridgePort(
            dpid=self.fake.net.switches[self.fake.net.servers[server].edge].dpid, bridge="br0",
            name=f"tap-{vm}", number=vm_port(1), status=PortStatus.UP, iface_id=vm, attached_mac=mac,
        )  # fmt: skip
        self.fake.controller.inventory.ports.changed([] if there else [port], [port] if there else [])

    async def close(self) -> None:
        for agent in self.agents.values():
            await agent.die()
        await self.controller_dies()


__all__ = ["SERVERS", "Lives"]
