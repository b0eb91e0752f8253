"""The VM goes to another site and back: by retinue between two domains, and by layer 2 that is stretched.

Both have the lab of two data-centre networks with a routed link between them, 10 ms each way, and the client
at the first of them. What is stretched over it is one subnet, by VXLAN between the sites' gateways: the two
ends flood and learn, as all switches do, and the one router is at the first site.
"""

import asyncio
from typing import ClassVar

from retinue.core.migration import MigrationState
from retinue.protocol.routes import Route
from retinue_lab import baseline
from retinue_lab.compare.bench import SERVERS, VM, Bench, ManagedBench
from retinue_lab.compare.systems.base import System
from retinue_lab.compare.systems.own import Retinue
from retinue_lab.errors import LabError
from retinue_lab.network import credentials
from retinue_lab.network.vm_driver import SOCKET
from retinue_lab.sandbox.clients import Driver, Manager
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology import topology_file
from retinue_lab.topology.topology import EDGE_BRIDGE, Topology

BETWEEN = (SERVERS[0], "server3")
LOOKS, LOOK_SECONDS = 600, 0.1


class DomainsBench(ManagedBench):
    """The VM is registered in the first domain; where it is, that domain's controller and VM driver serve."""

    def __init__(self, lab: LabHandle, servers: tuple[str, str]) -> None:
        super().__init__(lab, VM, servers=servers)
        there = lab.beside()
        other = Manager(there.topology.controller_url, credentials.manager(there.directory))
        self.managers = dict(zip(servers, (self.manager, other), strict=True))
        self._drivers = dict(zip(servers, (self.driver, Driver(there.directory / SOCKET)), strict=True))

    def came_to(self, server: str) -> None:
        super().came_to(server)
        self.manager, self.driver = self.managers[server], self._drivers[server]

    async def close(self) -> None:
        for manager in self.managers.values():
            await manager.close()


class RetinueDomains(Retinue):
    name = "retinue-domains"
    how = (
        "Two domains, each with a controller; the VM goes to a server of the other one and back, by "
        "`POST /v1/migrations`, and its traffic by the gateway of its home."
    )
    servers: ClassVar[tuple[str, str]] = BETWEEN
    may_be_dual = False

    def network(self) -> Topology:
        return topology_file.load("domains")

    def bench(self, lab: LabHandle) -> Bench:
        return DomainsBench(lab, self.servers)

    def named(self, server: str) -> str:
        first, second = self.servers
        other = self.network().other
        assert other is not None
        domains = {first: self.network().domain, second: other.domain}
        return f"{domains[server]}/{server}"

    async def after_migration(self, bench: Bench, source: str, target: str) -> None:
        """Each domain ends its own half."""
        assert isinstance(bench, DomainsBench)
        for _ in range(LOOKS):
            found = [await one.get(Route.LIST_MIGRATIONS.path()) for one in bench.managers.values()]
            states = [MigrationState(row["state"]) for each in found for row in each["migrations"]]
            if all(state.ended for state in states):
                return
            await asyncio.sleep(LOOK_SECONDS)
        raise LabError(f"the migration of {bench.vm} does not end in both domains")


class StretchedLayer2(System):
    name = "stretched-layer-2"
    how = (
        "One subnet over both sites: VXLAN between their gateways that floods and learns, as all switches do "
        "(action NORMAL), nothing filters; the router is at the first site, QEMU announces the VM by RARP."
    )
    servers: ClassVar[tuple[str, str]] = BETWEEN

    def network(self) -> Topology:
        return topology_file.load("domains")

    async def set_up(self, bench: Bench) -> None:
        for lab in (bench.lab, bench.lab.beside()):
            await baseline.make_plain(lab, ())
            edges = [bridge.node for bridge in lab.topology.switches if bridge.role == "edge"]
            for node in edges:
                await bench.ofctl(node, "add-flow", EDGE_BRIDGE, "priority=1,actions=NORMAL")
