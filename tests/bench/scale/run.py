"""One size, measured: the phases in their order, each leaving its figures in the `Size`.

At every moment one agent of each server follows the event stream, as it would.
"""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from bench.scale.daemon import Daemon, free_ports
from bench.scale.fakes.dhcp import FakeDhcp
from bench.scale.fakes.hypervisors import FakeAgents, FakeHypervisors, Migrated, Orders
from bench.scale.fakes.ovsdb import FakeDatabase, hash_of
from bench.scale.fakes.switch import FakeBulkSwitch, Switches
from bench.scale.plan import Plan, VMPlan
from bench.scale.report import Latencies, Latency, Loaded, Size
from retinue.protocol.client import ControllerClient
from retinue.protocol.errors import ControllerError
from retinue.protocol.routes import Route

ENTRIES = 25
"""Of a VM with one address: 18 and three meters on its edge, two on its leaf, one on each spine."""
AT_ONCE = 1000
"""VMs of one request."""
PAUSE = 0.2
"""Seconds between two questions whether the switches are in step; ten times that with many switches."""
MANY_SWITCHES = 300
EVENT_LIMIT = 30.0
"""Seconds until an event counts as failed."""
SLOW = 300.0
"""Seconds of an answer that may take long, on a machine that is short of cores."""

LIMIT = 600.0

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    events: int = 200
    """Adds, moves and removes, one by one."""
    rate: float = 100.0
    """Events a second, under load."""
    seconds: float = 10.0
    leases: int = 500
    rest_seconds: float = 5.0
    limit: float = LIMIT
    """Seconds that one phase may take."""


class Bench:
    """The controller of one size, with all that is around it."""

    def __init__(self, plan: Plan, effort: Effort, folder: Path, progress: Progress) -> None:
        self.size = Size(plan.servers, plan.vms)
        self._plan, self._effort, self._progress = plan, effort, progress
        self._openflow, self._ovsdb, self._rest = free_ports(3)
        self.daemon = Daemon(folder, plan.config(self._openflow, self._ovsdb, self._rest))
        self._switches = Switches(self._openflow)
        self._edges: list[FakeDatabase] = []
        for switch in plan.switches():
            fake = FakeBulkSwitch(self._switches, switch.id, switch.dpid, switch.ports)
            if switch.role == "edge":
                self._edges.append(FakeDatabase(self._switches, fake, self._ovsdb))
        for leaf, up, spine, down in plan.links():
            lower, upper = self._switches.all[leaf], self._switches.all[spine]
            lower.above[lower.ports[up]] = upper, upper.ports[down]
        self._client = ControllerClient(f"http://127.0.0.1:{self._rest}")
        self._agents: list[FakeAgents] = []
        self._next = plan.vms
        self._where = {number: plan.server_of(number) for number in range(plan.vms)}
        self._random = random.Random(1)
        self.controller_cpu = 0.0
        """Seconds of a core, of processes that have ended."""

    async def run(self) -> None:
        """All phases. Raises what stopped it; the size has what was measured until then."""
        phases: tuple[tuple[str, Callable[[], Awaitable[None]]], ...] = (
            ("attach", self._attach), ("build", self._build), ("rest", self._at_rest), ("idle", self._idle),
            ("load", self._loaded), ("leases", self._leases), ("restart", self._restart),
        )  # fmt: skip
        try:
            for name, phase in phases:
                began = time.monotonic()
                async with asyncio.timeout(self._effort.limit):
                    await phase()
                took = time.monotonic() - began
                self._progress(f"{self._plan.servers}, {self._plan.vms}: {name} took {took:.1f} s")
        finally:
            self._switches.up = False
            for agent in self._agents:
                agent.close()
            await self._client.close()
            await self._stop()

    async def _stop(self) -> None:
        self.controller_cpu += self.daemon.cpu()
        await self.daemon.stop()

    # ---- phases ----

    async def _attach(self) -> None:
        await self.daemon.start(self._rest)
        for switch in self._switches.all.values():
            switch.dial(self._random.uniform(0, 1))
        for edge in self._edges:
            edge.dial(self._random.uniform(0, 1))
        await self._in_step()
        await self._listen()

    async def _listen(self) -> None:
        for agent in self._agents:
            agent.close()
        servers = [f"server{k}" for k in range(self._plan.servers)]
        self._agents = await FakeAgents.listen(self._rest, servers)

    async def _build(self) -> None:
        before, began = self.daemon.rss(), time.monotonic()
        wanted = self._switches.entries
        for first in range(0, self._plan.vms, AT_ONCE):
            numbers = range(first, min(self._plan.vms, first + AT_ONCE))
            await self._register({n: self._plan.vm(n) for n in numbers}, static=True)
            wanted += ENTRIES * len(numbers)
        await self._in_step(wanted)
        self.size.build_s = round(self._switches.last_change - began, 2)
        after = self.daemon.rss()
        self.size.rss_mib = round(after / (1 << 20), 1)
        self.size.bytes_per_vm = round((after - before) / self._plan.vms)

    async def _at_rest(self) -> None:
        before, began = self.daemon.cpu(), time.monotonic()
        await asyncio.sleep(self._effort.rest_seconds)
        self.size.cpu_at_rest = round((self.daemon.cpu() - before) / (time.monotonic() - began), 3)

    async def _idle(self) -> None:
        added: list[tuple[VMPlan, int]] = []
        adds, removes = [], []
        async with self._watched() as hypervisors:
            for _ in range(self._effort.events):
                vm, server = self._fresh()
                adds.append(await self._add(vm, server))
                added.append((vm, server))
            numbers = self._random.choices(range(self._plan.vms), k=self._effort.events)
            moves = [await self._move(number, hypervisors) for number in numbers]
            for vm, server in added:
                removes.append(await self._remove(vm, server))
        self.size.idle = Latencies(Latency.of(adds), Latency.of(removes), *_of_moves(moves))
        mods = [move.flow_mods for move in moves]
        self.size.flow_mods_per_move = [min(mods), max(mods)]

    async def _loaded(self) -> None:
        """At an even rate 45 % adds, 45 % removes of what was added half a second before, 10 % moves."""
        effort = self._effort
        adds: list[float] = []
        removes: list[float] = []
        moves: list[Migrated] = []
        here: list[tuple[float, VMPlan, int]] = []
        moving: set[int] = set()
        candidates = cycle(range(self._plan.vms))

        async def add() -> None:
            vm, server = self._fresh()
            adds.append(await self._add(vm, server))
            here.append((time.monotonic() + 0.5, vm, server))

        async def remove() -> None:
            if here and here[0][0] <= time.monotonic():
                _, vm, server = here.pop(0)
                removes.append(await self._remove(vm, server))

        async def move() -> None:
            number = next(number for number in candidates if number not in moving)
            moving.add(number)
            try:
                moves.append(await self._move(number, hypervisors))
            finally:
                moving.discard(number)

        kinds = (add, remove) * 9 + (move,) * 2
        async with self._watched() as hypervisors:
            tasks: list[asyncio.Task[None]] = []
            began = time.monotonic()
            for k in range(round(effort.rate * effort.seconds)):
                await asyncio.sleep(max(0.0, began + k / effort.rate - time.monotonic()))
                tasks.append(asyncio.create_task(kinds[k % len(kinds)]()))
            found: list[object] = [*await asyncio.gather(*tasks, return_exceptions=True)]
            left = (self._remove(vm, server) for _, vm, server in here)
            found += await asyncio.gather(*left, return_exceptions=True)
        failures = [error for error in found if isinstance(error, BaseException)]
        for error in failures[:3]:
            self._progress(f"failed under load: {error!r}")
        latencies = Latency.of(adds), Latency.of(removes), *_of_moves(moves)
        self.size.loaded = Loaded(*latencies, failures=len(failures))

    async def _leases(self) -> None:
        vms = {number: self._plan.leasing_vm(number) for number in range(self._effort.leases)}
        dhcp = FakeDhcp(self._switches)
        await self._register(vms, static=False)
        await self._in_step()
        asking = [(vm, self._edges[self._plan.server_of(n)]) for n, vm in vms.items()]
        self.size.acks_per_s = round(await dhcp.lease_to(asking, self._effort.limit), 1)
        await self._in_step()

    async def _restart(self) -> None:
        await self._stop()
        sent = self._switches.flow_mods
        began = time.monotonic()
        await self.daemon.start(self._rest)
        await self._listen()
        await self._in_step()
        self.size.restart_s = round(time.monotonic() - began, 2)
        self.size.restart_flow_mods = self._switches.flow_mods - sent

    # ---- what phases do ----

    async def _in_step(self, entries: int | None = None) -> None:
        """Return when every switch is connected, nothing is pending, and the fakes hold what is wanted (or so
        many entries)."""
        many = len(self._switches.all) > MANY_SWITCHES
        while True:
            self.daemon.check()
            if entries is None or self._switches.entries >= entries:
                try:
                    answer = await self._client.request("GET", Route.LIST_SWITCHES.path(), limit=SLOW)
                except ControllerError:
                    answer = {"switches": []}
                rows = answer["switches"]
                wanted = sum(row["flows"] for row in rows)
                ready = sum(row["connected"] and not row["pending"] for row in rows)
                databases = all(edge.monitored for edge in self._edges)
                if ready == len(self._switches.all) and databases and wanted == self._switches.entries:
                    return
            await asyncio.sleep(PAUSE * 5 if many else PAUSE)

    async def _register(self, vms: dict[int, VMPlan], *, static: bool) -> None:
        body = [
            {
                "id": vm.id,
                "mac": vm.mac,
                "server": f"server{self._plan.server_of(number)}",
                "addresses": [str(vm.ip)] if static else [],
            }
            for number, vm in vms.items()
        ]
        await self._client.request("POST", Route.REGISTER_VMS.path(), body, limit=SLOW)
        by_server: dict[int, list[VMPlan]] = {}
        for number, vm in vms.items():
            by_server.setdefault(self._plan.server_of(number), []).append(vm)
        for server, some in by_server.items():
            self._edges[server].add(some)

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[FakeHypervisors]:
        """Inside, it is noted when entries are confirmed, and migrations are followed."""
        confirmations = self._switches.confirmations
        confirmations.on = True
        async with Orders(self._client) as orders:
            yield FakeHypervisors(self._client, orders, confirmations)
        confirmations.on = False

    def _fresh(self) -> tuple[VMPlan, int]:
        self._next += 1
        return self._plan.vm(self._next), self._random.randrange(self._plan.servers)

    async def _add(self, vm: VMPlan, server: int) -> float:
        owner, began = hash_of(vm.id), time.monotonic()
        body = {"id": vm.id, "mac": vm.mac, "server": f"server{server}", "addresses": [str(vm.ip)]}
        await self._client.post(Route.REGISTER_VMS.path(), body)
        self._edges[server].add([vm])
        return await self._confirmed(owner, began)

    async def _remove(self, vm: VMPlan, server: int) -> float:
        owner, began = hash_of(vm.id), time.monotonic()
        await self._client.request("DELETE", Route.REMOVE_VM.path(vm.id))
        took = await self._confirmed(owner, began)
        self._edges[server].remove(vm.id)
        return took

    async def _confirmed(self, owner: int, began: float) -> float:
        confirmations = self._switches.confirmations
        try:
            return await confirmations.reach(owner, began, ENTRIES, EVENT_LIMIT) - began
        finally:
            confirmations.forget(owner)

    async def _move(self, number: int, hypervisors: FakeHypervisors) -> Migrated:
        source, vm = self._where[number], self._plan.vm(number)
        target = self._elsewhere(source)
        found = await hypervisors.migrate(vm, self._edges[source], self._edges[target], f"server{target}")
        self._where[number] = target
        self._switches.confirmations.forget(hash_of(vm.id))
        return found

    def _elsewhere(self, source: int) -> int:
        """A server under another leaf, if there is one."""
        plan = self._plan
        targets = [s for s in range(plan.servers) if plan.leaf_of(s) != plan.leaf_of(source)]
        return self._random.choice(targets or [s for s in range(plan.servers) if s != source])


def _of_moves(moves: list[Migrated]) -> tuple[Latency, Latency]:
    return Latency.of([move.steer for move in moves]), Latency.of([move.whole for move in moves])


def load() -> float:
    return round(os.getloadavg()[0], 2)
