"""The compared VM, run and moved by nothing but QEMU: the memory goes from one QEMU to the other.

It is the same QEMU, with the same arguments, guest and priority, as retinue's agents run. The memory goes
over as fast as it can: with a `downtime-limit` of 0 QEMU 7 stops the VM after one pass, so the pause of a
guest that writes little is as short as it can be. A guest that writes gets as many passes as QEMU likes, with
the downtime that retinue aims at, too.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from retinue.core.migration.precopy import WANTED_DOWNTIME
from retinue.core.model import port_id_of
from retinue.host.errors import HostError
from retinue.host.taps import add_port, remove_port, tap_name
from retinue.hypervisor import HypervisorError, VMSpec
from retinue.hypervisor.interface import NICSpec
from retinue.hypervisor.monitor import EXITED, EventQueue, event_time
from retinue.hypervisor.qemu.hypervisor import QemuHypervisor
from retinue.hypervisor.qemu.machine import QemuMachine
from retinue_lab.compare.bench import ADDRESS, DUAL, MAC, SERVERS, VM, Bench, Migrated
from retinue_lab.errors import LabError
from retinue_lab.guest.image import command_line, ensure_guest
from retinue_lab.guest.shell import GuestShell, GuestShellError, console_line
from retinue_lab.network.agents import NICE, NICER
from retinue_lab.network.switches import env
from retinue_lab.processes.processes import run
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology import EDGE_BRIDGE

BOOT_SECONDS = 60.0
MIGRATION_SECONDS = 60.0
UNBOUNDED = 1 << 40
SECOND_NIC = port_id_of(VM, 2)


class PlainBench(Bench):
    """Boots the VM on the first of the servers."""

    def __init__(self, lab: LabHandle, *, dual: bool = False, servers: tuple[str, str] = SERVERS) -> None:
        super().__init__(lab, dual=dual, servers=servers)
        self._folder = lab.directory / "vms"
        self._hypervisors = {
            server: QemuHypervisor(self._folder / server, self.launcher(server)) for server in servers
        }
        self._machine: QemuMachine | None = None
        self._shell = GuestShell(Path())

    def launcher(self, server: str) -> tuple[str, ...]:
        """What a QEMU is started by on a server: a command that takes QEMU's as its last words."""
        return ("ip", "netns", "exec", server, *NICE, *NICER, "setpriv", "--pdeathsig", "KILL")

    async def boot(self) -> None:
        self._folder.mkdir()
        try:
            await self.plug(self.at)
            self._lives_in(await self._hypervisors[self.at].start(self._spec()))
            await console_line(self._running.files.serial_log, "RETINUE READY", BOOT_SECONDS)
            await self.settle()
        except (HostError, GuestShellError) as error:
            raise LabError(str(error)) from error

    async def close(self) -> None:
        if self._machine is not None:
            await self._machine.quit()

    async def in_guest(self, command: str, timeout: float = 20.0) -> tuple[int, str]:
        try:
            return await self._shell.run(command, timeout)
        except GuestShellError as error:
            raise LabError(str(error)) from error

    async def migrate(self, at_resume: Callable[[], Awaitable[None]]) -> Migrated:
        """Move the VM to `target`; `at_resume` is called when it runs there. Raises LabError."""
        source, target = self.at, self.target
        began = time.monotonic()
        try:
            await self.plug(target)
            there = await self._hypervisors[target].open_target(self._spec())
            try:
                stopped_at, resumed_at = await self._copy(self._running, there, at_resume)
            except BaseException:
                await there.quit()
                raise
            ram = (await self._running.execute("query-migrate")).get("ram", {})
            await self._running.quit()
            self._lives_in(there)
            self.came_to(target)
            for id, _ in self.nics:
                await remove_port(_on(source), bridge=EDGE_BRIDGE, tap=tap_name(id))
        except HostError as error:
            raise LabError(f"{VM} was not migrated: {error}") from error
        total_ms = (time.monotonic() - began) * 1000
        passes = int(ram.get("dirty-sync-count", 2)) - 1
        return Migrated(source, target, stopped_at, resumed_at, total_ms, {"passes": passes})

    async def _copy(
        self, source: QemuMachine, target: QemuMachine, at_resume: Callable[[], Awaitable[None]]
    ) -> tuple[float, float]:
        """When the VM was paused, and when it was resumed."""
        events: EventQueue = asyncio.Queue()
        uri = f"unix:{self._folder / 'memory.sock'}"
        stopped_at = 0.0
        try:
            async with asyncio.timeout(MIGRATION_SECONDS):
                for machine in (source, target):
                    on = [{"capability": "events", "state": True}]
                    await machine.execute("migrate-set-capabilities", capabilities=on)
                with source.events_into(events), target.events_into(events):
                    limit = round(WANTED_DOWNTIME * 1000) if self.several_passes else 0
                    await source.execute(
                        "migrate-set-parameters", max_bandwidth=UNBOUNDED, downtime_limit=limit
                    )
                    await target.execute("migrate-incoming", uri=uri)
                    await source.execute("migrate", uri=uri)
                    while True:
                        machine, event = await events.get()
                        match machine is source, event["event"], event.get("data", {}).get("status"):
                            case True, "STOP", _:
                                stopped_at = event_time(event)
                            case False, "MIGRATION", "completed":
                                await target.execute("cont")
                            case False, "RESUME", _:
                                await at_resume()
                                return stopped_at, event_time(event)
                            case _, "MIGRATION", "failed":
                                raise HypervisorError("the migration failed")
                            case _, name, _ if name == EXITED:
                                raise HypervisorError("a QEMU has ended")
        except TimeoutError:
            raise HypervisorError(f"not within {MIGRATION_SECONDS:.0f} s") from None

    @property
    def _running(self) -> QemuMachine:
        assert self._machine is not None
        return self._machine

    def _lives_in(self, machine: QemuMachine) -> None:
        self._machine, self._shell = machine, GuestShell(machine.files.shell)

    @property
    def nics(self) -> list[tuple[str, str]]:
        """The id of each of its NICs' ports, and its MAC."""
        return [(VM, MAC), (SECOND_NIC, DUAL[1][0])] if self.dual else [(VM, MAC)]

    async def plug(self, server: str) -> None:
        """Make the VM's ports there."""
        for id, mac in self.nics:
            await add_port(_on(server), bridge=EDGE_BRIDGE, tap=tap_name(id), vm=VM, mac=mac, nic=id)

    def guest_address(self) -> str:
        """As the guest's command line has it: set by hand, as DHCP is no part of what is compared."""
        return f"{ADDRESS}/{self.subnet.prefix.prefixlen},{self.subnet.gateway}"

    def _spec(self) -> VMSpec:
        guest = ensure_guest()
        (first, mac), *others = self.nics
        line = " ".join(
            [command_line(self.guest_address(), hostname=VM, address6=self._ipv6(0)), *self._second()]
        )
        more = tuple(NICSpec(id, its, tap_name(id), slot) for slot, (id, its) in enumerate(others, 2))
        return VMSpec(VM, mac, tap_name(first), guest.kernel, guest.initrd, line, more_nics=more)

    def _ipv6(self, nic: int) -> str:
        if not self.dual:
            return ""
        return f"{DUAL[nic][2]}/{self.subnet6.prefix.prefixlen},{self.subnet6.gateway}"

    def _second(self) -> list[str]:
        """What the guest is told of its second NIC."""
        if not self.dual:
            return []
        ipv4 = f"{DUAL[1][1]}/{self.subnet.prefix.prefixlen},{self.subnet.gateway}"
        return [f"nic1={ipv4}", f"nic1ip6={self._ipv6(1)}"]


def _on(server: str) -> Callable[..., Awaitable[str]]:
    return partial(run, node=server, env=env(server))
