"""Builds the lab inside the sandbox, step by step, and reports its state."""

import asyncio
import re
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from retinue.protocol.blocking import Client
from retinue.protocol.errors import ControllerError
from retinue.protocol.routes import Route
from retinue_lab.errors import LabError
from retinue_lab.network import agents, credentials, dhcp_server, libvirtd, nodes, switches
from retinue_lab.network.controller_config import controller_config
from retinue_lab.processes.processes import Daemon, Supervisor, first_host_pid, last_words, run
from retinue_lab.processes.state import Directory, LabStatus, NodeStatus, Settings, SwitchStatus
from retinue_lab.topology.topology import CONTROLLER, DHCP, LIBVIRT, REST_PORT, SANDBOX

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

Progress = Callable[[str], None]


class Lab:
    """What runs in the sandbox. `on_end` is called for each daemon that ends."""

    def __init__(self, where: Directory, settings: Settings, on_end: Callable[[Daemon], None]) -> None:
        self.where = where
        self.settings = settings
        self.topology = settings.topology
        self.started_at = time.time()
        self.controlled = False
        """True once a controller has been started."""
        self.versions: dict[str, str] = {}
        own = credentials.manager(where.path).environment
        self.supervisor = Supervisor(where.logs, {STATE_VARIABLE: str(where.path), **own}, on_end)

    async def build(self, progress: Progress) -> None:
        """Everything, in the order in which one part needs another. Raises LabError at the first failure."""
        progress(f"{len(self.topology.nodes)} nodes, {len(self.topology.cables)} cables")
        _, empty, _ = await asyncio.gather(
            nodes.create(self.topology),
            switches.make_database(),
            asyncio.to_thread(credentials.make, self.topology, self.where.path),
        )
        self._write_config()
        ovs = switches.nodes(self.topology)
        progress(f"{len(self.topology.switches)} switches, DHCP server")
        work = [self._find_versions(), *(self._start_switches(node, empty) for node in ovs)]
        if self.topology.dhcp is not None:
            work.append(dhcp_server.start(self.supervisor, self.topology, self.where.path))
        if self.settings.start_controller:
            work.append(self.start_controller())
        await asyncio.gather(*work)
        rest: list[Awaitable[Any]] = []
        if self.settings.start_controller:
            progress("switches look for the controller")
            rest.append(self._meet(progress))
        if self.settings.start_driver:
            progress("agents")
            rest += [self.start_agent(server.id) for server in self.topology.server]
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
        await agents.start(self.supervisor, self.topology, self.where.path, server)

    def env(self, node: str) -> dict[str, str]:
        """What a program in the node finds in its environment."""
        ovs = switches.env(node) if node in switches.nodes(self.topology) else {}
        return ovs | libvirtd.env(self.topology, node)

    async def announce(self) -> dict[str, bool]:
        return await nodes.announce_servers(self.topology)

    async def _start_switches(self, node: str, empty: Path) -> None:
        own = credentials.switch(self.where.path, node)
        await switches.start(self.supervisor, self.topology, node, empty, own, self.settings.roomy)
        for server in self.topology.server:
            if server.id == node:
                await nodes.configure_server(self.topology, server)
                if server.hypervisor == LIBVIRT:
                    await libvirtd.start(self.supervisor, self.topology, server)

    async def start_controller(self) -> None:
        """Start the controller in its node, or start it again; return when its REST interface answers."""
        if self.supervisor.running(CONTROLLER) is not None:
            raise LabError("the controller runs already")
        self.controlled = True
        config = self._write_config()
        database = self.where.path / "controller.db"
        program = [sys.executable, "-m", "retinue.cli.main", "controller", "run"]
        daemon = await self.supervisor.start(
            CONTROLLER, CONTROLLER, [*program, "--config", str(config), "--database", str(database)]
        )
        answering = asyncio.ensure_future(self._controller_answers())
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

    def _write_config(self) -> Path:
        config = self.where.path / "controller.toml"
        config.write_text(controller_config(self.topology, credentials.folder(self.where.path)))
        return config

    async def _controller_answers(self) -> None:
        """Return when GET /v1/status is answered with 200. It cannot call us: ask again till then."""
        while await self._controller_status() is None:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)

    async def _switches_connected(self) -> None:
        """Return when as many switches as there are have a session with the controller, by its own word:
        the switches' databases show it only every five seconds.
        """
        wanted, found = len(self.topology.switches), 0
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                while found < wanted:
                    if self.supervisor.running(CONTROLLER) is None:
                        log = self.where.logs / f"{CONTROLLER}.log"
                        raise LabError(f"the controller ended: {last_words(log)}")
                    status = await self._controller_status()
                    found = status["switches"]["connected"] if status else 0
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            raise LabError(
                f"only {found} of {wanted} switches reached the controller in {CONNECT_SECONDS:.0f} s"
            ) from None

    async def _controller_status(self) -> Any:
        """What the controller says of itself; None when it cannot be asked."""
        own = str(self.topology.management_addresses[CONTROLLER].ip)
        client = Client(f"https://{own}:{REST_PORT}", credentials.manager(self.where.path))
        try:
            return await asyncio.to_thread(client.ask, Route.GET_STATUS)
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
            daemons=[daemon.status for daemon in self.supervisor.daemons],
            controller_url=self.topology.controller_url if self.controlled else None,
            topology=self.topology,
            directory=str(self.where.path),
        )

    async def _ports(self, node: str) -> dict[str, dict[str, int]]:
        """Nothing when the node's database does not answer: a lab with a dead switch still has a status."""
        if self.supervisor.running(f"{node}-ovsdb") is None:
            return {}
        return await switches.ports(node)

    def _main_pid(self, node: str) -> int | None:
        main = {DHCP: self._dhcp_program(), CONTROLLER: CONTROLLER}.get(node, f"{node}-vswitchd")
        daemon = self.supervisor.running(main)
        return daemon.host_pid if daemon else None

    def _dhcp_program(self) -> str:
        """The name of the program that is the DHCP server; "" where there is none."""
        return dhcp_server.DAEMONS[self.topology.dhcp.program] if self.topology.dhcp is not None else ""
