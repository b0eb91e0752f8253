"""A controller that is killed in the middle of a migration, and the one that takes over from its database.

vm1 migrates, vm2 stays at the target's server, vm3 and the router are elsewhere. The switches go on with what
they hold; the next controller knows what the first had stored, and no port before it is told of it.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from retinue.controller.migrations.orchestrator import MigrationError
from retinue.core.migration import MigrationState
from retinue.core.migration.copying import CopyOptions
from retinue.core.migration.new_addresses import NewAddresses
from retinue.core.model import VM, Network, PortStatus
from retinue.core.packets import parse
from retinue.core.pipeline.cookies import is_ours
from retinue.protocol.migrations import Report, ReportAnswer
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import GATEWAY_MAC, fabric, vm_ip, vm_mac, vm_port
from support.fabric.world import OUTSIDE, udp_frame
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork, FakeSession
from support.fakes.switch import Delivery

MIGRATION = "migration-1"
WHOLE = ("target_opened", "copy_started", "converged", "stopped", "resumed", "source_freed")


def nothing_known_is_left(fake: FakeNetwork) -> None:
    """On switches that were read: all entries of owners that are known completely are wanted."""
    context = fake.controller.context
    for name, programmer in context.installer.switches.items():
        if not programmer.is_read:
            continue
        program = context.compiler.program(name)
        for flow in fake.fabric[name].flows.values():
            owners = context.compiler.owners_of(flow.cookie)
            assert is_ours(flow.cookie)
            known = bool(owners) and all(context.knowledge.knows(owner, name) for owner in owners)
            assert not known or flow.key in program, f"{name} still has {flow} of {owners}"


def port_of(vm: int, edge: int) -> BridgePort:
    return BridgePort(0x30 + edge, "br0", f"tap{vm}", vm_port(vm), PortStatus.UP, f"vm{vm}", vm_mac(vm))


@dataclass
class RestartWorld:
    """`servers_on`: the leaf of each server. The router is under the last leaf."""

    servers_on: tuple[int, ...]
    source: int
    target: int
    over_ip: bool = False
    by_mac: bool = False
    """Tunnels join the leaves, and no spines."""
    fake: FakeNetwork = field(init=False)
    kept: MemoryStore = field(default_factory=MemoryStore)
    told: dict[str, dict[str, int]] = field(default_factory=dict)
    """By switch: the ports it tells when it connects."""
    target_has_port: bool = False
    new_addresses: tuple[NewAddresses, ...] = ()
    """What vm1 is to have from its target on."""
    may_copy: bool = False
    """The VM's traffic may come to both of its places, once to each."""
    after_the_fact: bool = False
    """Hypervisors of others have migrated vm1, and a manager says so."""
    step_factor: float = 1.0

    async def begin(self) -> None:
        self.fake = self._controlled()
        self.told = {name: dict(ports) for name, ports in self.fake.net._numbers.items()}
        await self.fake.start()
        at = self.vms_at()
        vms = [
            VM.with_one_nic(f"vm{n}", vm_mac(n), f"server{server}", addresses=(vm_ip(n),))
            for n, server in at.items()
        ]
        inventory = self.fake.controller.inventory
        inventory.register_vms(vms)
        inventory.ports.changed([], [port_of(n, server) for n, server in at.items()])
        inventory.ports.edge_read(
            [0x30 + n for n in range(1, len(self.servers_on) + 1)], [f"vm{n}" for n in at]
        )
        await asyncio.sleep(1.0)
        self.fake.controller.orchestrator.start(
            "vm1",
            target_server=f"server{self.target}",
            new_addresses=self.new_addresses,
            after_the_fact=self.after_the_fact,
        )
        await asyncio.sleep(0.1)

    async def begin_copying(self) -> None:
        """The same, until the memory is being copied."""
        await self.begin()
        for report in WHOLE[:2]:
            self.say(report)
            await asyncio.sleep(0.1)

    def vms_at(self) -> dict[int, int]:
        others = [n for n in range(1, len(self.servers_on) + 1) if n != self.source]
        return {1: self.source, 2: self.target, 3: others[-1]}

    def _network(self) -> Network:
        return fabric(max(self.servers_on), 2, self.servers_on, over_ip=self.over_ip, by_mac=self.by_mac)

    @staticmethod
    def _clock() -> float:
        return asyncio.get_running_loop().time()

    @property
    def state(self) -> MigrationState:
        return self.fake.controller.orchestrator.migrations[MIGRATION].state

    def now(self) -> MigrationState:
        """As `state`: asked anew each time."""
        return self.state

    def say(self, report: str) -> None:
        """A report of an agent; one that does not fit any more is its own affair."""
        inventory = self.fake.controller.inventory
        if report == "target_opened":
            inventory.ports.changed([], [port_of(1, self.target)])
        if report == "stopped":
            self.may_copy = True
        try:
            self.fake.controller.orchestrator.reports.on_report(MIGRATION, Report(report), self._clock())
        except MigrationError:
            if report in ("target_closed", "rolled_back"):
                raise

    async def answer(self, report: str) -> ReportAnswer:
        """The answer to a report that was just made, when it comes."""
        return await self.fake.controller.orchestrator.reports.answer(MIGRATION, Report(report))

    # ---- the restart ----

    def _controlled(self) -> FakeNetwork:
        options = CopyOptions(step_factor=self.step_factor)
        return FakeNetwork(self._network(), self._clock, self.kept, forward_seconds=1.0, copy_options=options)

    async def kill(self, away: float = 0.0) -> None:
        """Nothing that was under way is finished; a new controller is there after so many seconds, and nobody
        has connected to it.
        """
        old, stored = self.fake, self.kept.load()
        had_port = "vm1" in old.net.vm_ports and f"edge{self.target}" in old.net.vm_ports["vm1"]
        self.target_has_port = had_port
        await old.controller.stop()
        await asyncio.sleep(away)
        self.fake = self._controlled()
        self.fake.fabric = old.fabric
        for switch in self.fake.net.switches:
            self.fake.net.set_ports(switch, {})
        self.fake.controller.restore(stored)
        await self.fake.controller.start()
        self.fake.controller.orchestrator.resume_all()

    def things_to_come(self) -> list[str]:
        """What comes back after a restart, in an order that the test chooses."""
        edges = [name for name in self.told if name.startswith("edge")]
        return [*self.told, *(f"database of {edge}" for edge in edges)]

    def comes(self, what: str) -> None:
        if not what.startswith("database"):
            session = FakeSession(self.fake, what, self.fake.net.switches[what].dpid, dict(self.told[what]))
            self.fake.sessions[what] = session
            self.fake.controller.connected(session)
            return
        number = int(what[-1])
        here = [vm for vm, server in self.vms_at().items() if server == number]
        if number == self.target and self.target_has_port:
            here.append(1)
        self.fake.controller.inventory.ports.changed([], [port_of(vm, number) for vm in here])
        self.fake.controller.inventory.ports.edge_read([0x30 + number], [f"vm{vm}" for vm in here])

    # ---- what must hold ----

    def reachable(self, at: Iterable[int]) -> None:
        """Whoever sends to vm1, it comes to one of these servers; while it may be copied, to each once."""
        ports = {(f"edge{server}", vm_port(1)) for server in at}
        for delivery in self._to_vm1():
            came = [(switch, port) for switch, port, _ in delivery.arrivals]
            assert came, f"{self.state}: lost: {delivery}"
            assert set(came) <= ports, f"{self.state}: came out at {came}, not at {ports}"
            assert len(came) == len(set(came)), f"{self.state}: twice to one port: {delivery}"
            assert len(came) == 1 or self.may_copy, f"{self.state}: came twice: {delivery}"
            assert all(parse(frame).dst == vm_mac(1) for _, _, frame in delivery.arrivals)
        for number, server in self.vms_at().items():
            if number != 1:
                for delivery in self._from_router(number):
                    assert [(s, p) for s, p, _ in delivery.arrivals] == [(f"edge{server}", vm_port(number))]

    def _to_vm1(self) -> list[Delivery]:
        sent = self._from_router(1)
        for number, server in self.vms_at().items():
            if number != 1:
                frame = udp_frame(vm_mac(number), GATEWAY_MAC, vm_ip(number), vm_ip(1))
                sent += self.fake.fabric.all_paths(f"edge{server}", vm_port(number), frame)
        return sent

    def _from_router(self, to: int) -> list[Delivery]:
        last = f"leaf{max(self.servers_on)}"
        frame = udp_frame(self.fake.net.servers["router"].mac, GATEWAY_MAC, OUTSIDE, vm_ip(to))
        return self.fake.fabric.all_paths(last, 91, frame)

    def nothing_known_is_left_beside_the_program(self) -> None:
        nothing_known_is_left(self.fake)
