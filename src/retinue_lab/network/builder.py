"""Builds the lab inside the sandbox, step by step, and reports its state."""

import asyncio
import re
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from retinue.controller.store.members import doubt_of_clusters
from retinue.protocol.blocking import Client
from retinue.protocol.errors import ControllerError
from retinue.protocol.routes import Route
from retinue_lab.errors import LabError
from retinue_lab.network import (
    agents,
    credentials,
    databases,
    dhcp_server,
    domains,
    libvirtd,
    nodes,
    switches,
)
from retinue_lab.network.controller_config import controller_config
from retinue_lab.processes import state
from retinue_lab.processes.processes import Daemon, Supervisor, first_host_pid, last_words, run
from retinue_lab.processes.state import DaemonStatus, Directory, LabStatus, NodeStatus, Settings, SwitchStatus
from retinue_lab.topology.parts import LIBVIRT
from retinue_lab.topology.topology import CONTROLLER, DHCP, FORWARDER, SANDBOX, Topology

STATE_VARIABLE = "RETINUE_LAB_STATE"
"""Environment variable by which every program in the sandbox knows the lab's directory."""
VERSIONS = {
    "openvswitch": ["ovs-vswitchd", "--version"],
    "qemu": ["qemu-system-x86_64", "--version"],
    "kea": ["kea-dhcp4", "-v"],
}
CONTROLLER_SECONDS = 60.0
CONNECT_SECONDS = 60.0
LOOK_SECONDS = 0.05
DRIVER = "retinue_lab.network.vm_driver"
FORWARDER_PROGRAM = "retinue_lab.storage.forwarder"

Progress = Callable[[str], None]


class Lab:
    """What runs in the sandbox. `on_end` is called for each daemon that ends."""

    def __init__(self, where: Directory, settings: Settings, on_end: Callable[[Daemon], None]) -> None:
        self.where = where
        self.settings = settings
        self.topology = settings.topology
        self.started_at = time.time()
        self.peers: dict[str, tuple[Topology, Path]] = {}
        self.controlled = False
        """True once a controller has been started."""
        self.versions: dict[str, str] = {}
        self.other: Lab | None = None
        """The domain beside this one, in a folder of this one's."""
        if self.topology.other is not None:
            own_settings = msgspec.structs.replace(settings, topology=self.topology.other)
            beside = Directory(where.path / self.topology.other.domain)
            self.other = Lab(beside, own_settings, on_end)
            self.other.peers[self.topology.domain] = self.topology, credentials.folder(where.path) / "ca.pem"
            its_ca = credentials.folder(beside.path) / "ca.pem"
            self.peers[self.topology.other.domain] = self.topology.other, its_ca
        own = credentials.manager(where.path).environment
        self.supervisor = Supervisor(where.logs, {STATE_VARIABLE: str(where.path), **own}, on_end)

    async def build(self, progress: Progress) -> None:
        """Everything, in the order in which one part needs another. Raises LabError at the first failure."""
        progress(f"{len(self.topology.nodes)} nodes, {len(self.topology.cables)} cables")
        empty = await self._lay()
        if self.other is not None:
            progress(f"the other domain: {len(self.other.topology.nodes)} nodes")
            await self.other.lay_beside()
            await domains.join(self.topology, self.supervisor, self.where.path / "wire.json")
            await asyncio.gather(self._start(empty, progress), self.other.start_beside(empty, progress))
            return
        await self._start(empty, progress)

    async def lay_beside(self) -> None:
        """The other domain's nodes, cables and certificates."""
        self.where.logs.mkdir(parents=True)
        self.where.settings.write_bytes(state.encode(self.settings))
        await self._lay()

    async def start_beside(self, empty: Path, progress: Progress) -> None:
        await self._start(empty, lambda text: progress(f"domain {self.topology.domain}: {text}"))

    async def _lay(self) -> Path:
        """Nodes, cables, certificates; the empty database for the switches."""
        _, empty, _ = await asyncio.gather(
            nodes.create(self.topology),
            switches.make_database(),
            asyncio.to_thread(credentials.make, self.topology, self.where.path),
        )
        return empty

    async def _start(self, empty: Path, progress: Progress) -> None:
        self._write_configs()
        ovs = switches.nodes(self.topology)
        progress(f"{len(self.topology.switches)} switches, DHCP server")
        work: list[Awaitable[Any]] = [
            self._find_versions(),
            *(self._start_switches(node, empty) for node in ovs),
        ]
        if self.topology.dhcp is not None:
            work.append(dhcp_server.start(self.supervisor, self.topology, self.where.path))
        if self.topology.forwarder is not None:
            forwarder = [sys.executable, "-m", FORWARDER_PROGRAM, "eth0"]
            work.append(self.supervisor.start(FORWARDER, FORWARDER, forwarder, ready_line="ready"))
        if self.settings.start_controller:
            work.append(self._start_controllers(progress))
        await asyncio.gather(*work)
        rest: list[Awaitable[Any]] = []
        if self.settings.start_controller:
            progress("switches look for the controller")
            rest.append(self._meet(progress))
        if self.settings.start_driver:
            progress("agents")
            rest += [self.start_agent(server) for server in self.topology.agents]
            driver = [sys.executable, "-m", DRIVER]
            rest.append(self.supervisor.start("vmdriver", SANDBOX, driver, ready_fd=True))
        await asyncio.gather(*rest)

    async def _meet(self, progress: Progress) -> None:
        """Switches and controller find each other, then the servers are seen."""
        await self._switches_connected()
        silent = [node for node, answered in (await self.announce()).items() if not answered]
        progress(f"servers announced; no answer to: {', '.join(silent)}" if silent else "servers announced")

    async def start_agent(self, server: str) -> None:
        """Start a server's agent, or start it again."""
        await agents.start(self.supervisor, self.topology, self.where.path, server, self.peers)

    def env(self, node: str) -> dict[str, str]:
        """What a program in the node finds in its environment."""
        ovs = switches.env(node) if node in switches.nodes(self.topology) else {}
        return ovs | libvirtd.env(self.topology, node)

    async def announce(self) -> dict[str, bool]:
        return await nodes.announce_servers(self.topology)

    async def _start_switches(self, node: str, empty: Path) -> None:
        own = credentials.switch(self.where.path, node)
        await switches.start(self.supervisor, self.topology, node, empty, own, self.settings.roomy)
        if node in self.topology.ends:
            await nodes.configure_endpoint(self.topology, node)
            await switches.keep_routes(self.topology, node)
        for server in self.topology.server:
            if server.id == node:
                await nodes.configure_server(self.topology, server)
                if server.hypervisor == LIBVIRT:
                    await libvirtd.start(self.supervisor, self.topology, server)

    async def _start_controllers(self, progress: Progress) -> None:
        """Their database first. The first controller is up before the others are started: it is active."""
        if self.topology.databases > 1 and (doubt := await doubt_of_clusters()):
            progress(doubt)
        for node in self.topology.database_nodes:
            await self.start_database(node)
        for node in self.topology.controller_nodes:
            await self.start_controller(node)

    async def start_database(self, node: str) -> None:
        """Start a server of the database that controllers share, or start it again."""
        if node not in self.topology.database_nodes:
            raise LabError(f"there is no database {node}")
        if self.supervisor.running(node) is not None:
            raise LabError(f"{node} runs already")
        await databases.start(self.supervisor, self.topology, self.where.path, node)

    async def start_controller(self, node: str = "") -> None:
        """Start the controller in its node, or start it again; return when its REST interface answers.

        `node`: of one of several, left out: the first.
        """
        node = node or self.topology.controller
        if node not in self.topology.controller_nodes:
            raise LabError(f"there is no controller {node}")
        name = self._program_of(node)
        if self.supervisor.running(name) is not None:
            raise LabError(f"the {name} runs already")
        self.controlled = True
        self._write_configs()
        program = [sys.executable, "-m", "retinue.cli.main", "controller", "run"]
        own = [] if self.topology.databases else ["--database", str(self.where.path / "controller.db")]
        daemon = await self.supervisor.start(
            name, node, [*program, "--config", str(self._config_of(node)), *own]
        )
        answering = asyncio.ensure_future(self._controller_answers(node))
        ending = asyncio.ensure_future(daemon.ended.wait())
        try:
            await asyncio.wait(
                {answering, ending}, timeout=CONTROLLER_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if answering.done():
                return answering.result()
            why = "ended" if ending.done() else f"did not answer in {CONTROLLER_SECONDS:.0f} s"
            raise LabError(f"the controller {why}: {last_words(daemon.log)}")
        finally:
            answering.cancel()
            ending.cancel()

    def _program_of(self, controller: str) -> str:
        """The name of the controller's program on this node."""
        return CONTROLLER if controller == self.topology.controller else controller

    def _config_of(self, controller: str) -> Path:
        return self.where.path / f"{self._program_of(controller)}.toml"

    def _write_configs(self) -> None:
        pki = credentials.folder(self.where.path)
        for node in self.topology.controller_nodes:
            self._config_of(node).write_text(controller_config(self.topology, pki, self.peers, node))

    async def _controller_answers(self, node: str) -> None:
        """Return when it says which one it is. It cannot call us: ask again till then."""
        url = self.topology.url_of(node)
        while await self._ask_controller(url, Route.GET_CLUSTER) is None:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)

    async def _switches_connected(self) -> None:
        """Return when as many switches as there are have a session with the controller, by its own word:
        the switches' databases show it only every five seconds.
        """
        wanted, found = len(self.topology.switches) + len(self.topology.tor), 0
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                while found < wanted:
                    if self.supervisor.running(CONTROLLER) is None:
                        log = self.where.logs / f"{CONTROLLER}.log"
                        raise LabError(f"the controller ended: {last_words(log)}")
                    status = await self._ask_controller(self.topology.controller_url, Route.GET_STATUS)
                    found = status["switches"]["connected"] if status else 0
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            raise LabError(
                f"only {found} of {wanted} switches reached the controller in {CONNECT_SECONDS:.0f} s"
            ) from None

    async def _ask_controller(self, url: str, route: Route) -> Any:
        """What a controller says of itself; None when it cannot be asked."""
        client = Client(url, credentials.manager(self.where.path))
        try:
            return await asyncio.to_thread(client.ask, route)
        except ControllerError:
            return None

    async def _find_versions(self) -> None:
        async def of(argv: list[str]) -> str:
            found = re.search(r"\d+(\.\d+)+", await run(argv))
            return found[0] if found else "unknown"

        versions = await asyncio.gather(*map(of, VERSIONS.values()))
        self.versions = dict(zip(VERSIONS, versions, strict=True))

    async def status(self) -> LabStatus:
        """The lab right now, as the kernel and Open vSwitch report it; nothing is remembered."""
        names = [SANDBOX, *self.topology.nodes]
        ovs = switches.nodes(self.topology)
        seen, ports = await asyncio.gather(
            nodes.interfaces(names), asyncio.gather(*(self._ports(node) for node in ovs))
        )
        ports_of = dict(zip(ovs, ports, strict=True))
        return LabStatus(
            name=self.settings.name,
            init_pid=first_host_pid(),
            started_at=self.started_at,
            versions=self.versions,
            nodes={
                node: NodeStatus(
                    pid=self._main_pid(node),
                    netns=node,
                    addresses=addresses,
                    interfaces=interfaces,
                    env=self.env(node),
                )
                for node, (interfaces, addresses) in seen.items()
            },
            switches={
                b.id: SwitchStatus(b.node, b.bridge, b.dpid, b.role, ports_of[b.node].get(b.bridge, {}))
                for b in self.topology.switches
            },
            daemons=self.daemons,
            controller_url=self.topology.controller_url if self.controlled else None,
            topology=self.topology,
            directory=str(self.where.path),
        )

    @property
    def daemons(self) -> list[DaemonStatus]:
        return [daemon.status for daemon in self.supervisor.daemons]

    async def _ports(self, node: str) -> dict[str, dict[str, int]]:
        """Nothing when the node's database does not answer: a lab with a dead switch still has a status."""
        if self.supervisor.running(f"{node}-ovsdb") is None:
            return {}
        return await switches.ports(node)

    def _main_pid(self, node: str) -> int | None:
        own = {DHCP: self._dhcp_program(), **{one: one for one in self.topology.database_nodes}}
        own |= {one: self._program_of(one) for one in self.topology.controller_nodes}
        own |= {cache.id: f"{cache.id}-agent" for cache in self.topology.cache} | {FORWARDER: FORWARDER}
        main = own.get(node, f"{node}-vswitchd")
        daemon = self.supervisor.running(main)
        return daemon.host_pid if daemon else None

    def _dhcp_program(self) -> str:
        """The name of the program that is the DHCP server; "" where there is none."""
        return dhcp_server.DAEMONS[self.topology.dhcp.program] if self.topology.dhcp is not None else ""
