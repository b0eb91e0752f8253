"""The compared VM, run and moved by nothing but QEMU: the memory goes from one QEMU to the other.

It is the same QEMU, with the same arguments, guest and priority, as retinue's agents run. The memory goes
over in one pass as fast as it can, since QEMU before 9.0 loses pages on an emulated processor when it looks
more than once at which were written (retinue.hypervisor.departure); with a `downtime-limit` of 0 QEMU 7 stops
the VM after that pass, so the pause is as short as it can be, too.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from retinue.hypervisor import HypervisorError, VMSpec
from retinue.hypervisor.machine import GONE, EventQueue, QemuMachine, event_time
from retinue.hypervisor.qemu import QemuHypervisor
from retinue.hypervisor.taps import add_port, remove_port, tap_name
from retinue.lab.agents import NICE, NICER
from retinue.lab.compare_bench import ADDRESS, MAC, SERVERS, VM, Bench, Moved
from retinue.lab.errors import LabError
from retinue.lab.guest import command_line, ensure_guest
from retinue.lab.guest_shell import GuestShell, GuestShellError, console_line
from retinue.lab.processes import run
from retinue.lab.sandbox import LabHandle
from retinue.lab.switches import env
from retinue.lab.topology import EDGE_BRIDGE

BOOT_SECONDS = 60.0
MOVE_SECONDS = 60.0
UNBOUNDED = 1 << 40


class PlainBench(Bench):
    """Boots the VM on the first of the servers."""

    def __init__(self, lab: LabHandle) -> None:
        super().__init__(lab)
        self._folder = lab.directory / "vms"
        self._hypervisors = {
            server: QemuHypervisor(
                self._folder / server,
                ("ip", "netns", "exec", server, *NICE, *NICER, "setpriv", "--pdeathsig", "KILL"),
            )
            for server in SERVERS
        }
        self._machine: QemuMachine | None = None
        self._shell = GuestShell(Path())

    async def boot(self) -> None:
        self._folder.mkdir()
        try:
            await self._plug(self.at)
            self._lives_in(await self._hypervisors[self.at].start(self._spec()))
            await console_line(self._running.files.serial_log, "RETINUE READY", BOOT_SECONDS)
        except (HypervisorError, GuestShellError) as error:
            raise LabError(str(error)) from error

    async def close(self) -> None:
        if self._machine is not None:
            await self._machine.quit()

    async def in_guest(self, command: str, timeout: float = 20.0) -> tuple[int, str]:
        try:
            return await self._shell.run(command, timeout)
        except GuestShellError as error:
            raise LabError(str(error)) from error

    async def migrate(self, at_resume: Callable[[], Awaitable[None]]) -> Moved:
        """Move the VM to `target`; `at_resume` is called when it runs there. Raises LabError."""
        source, target = self.at, self.target
        began = time.monotonic()
        try:
            await self._plug(target)
            there = await self._hypervisors[target].open_target(self._spec())
            try:
                stopped_at, resumed_at = await self._copy(self._running, there, at_resume)
            except BaseException:
                await there.quit()
                raise
            await self._running.quit()
            self._lives_in(there)
            self.at = target
            await remove_port(_on(source), bridge=EDGE_BRIDGE, tap=tap_name(VM))
        except HypervisorError as error:
            raise LabError(f"{VM} was not moved: {error}") from error
        return Moved(source, target, stopped_at, resumed_at, (time.monotonic() - began) * 1000)

    async def _copy(
        self, source: QemuMachine, target: QemuMachine, at_resume: Callable[[], Awaitable[None]]
    ) -> tuple[float, float]:
        """When the VM stopped, and when it ran on."""
        heard: EventQueue = asyncio.Queue()
        uri = f"unix:{self._folder / 'memory.sock'}"
        stopped_at = 0.0
        try:
            async with asyncio.timeout(MOVE_SECONDS):
                for machine in (source, target):
                    events = [{"capability": "events", "state": True}]
                    await machine.execute("migrate-set-capabilities", capabilities=events)
                with source.events_into(heard), target.events_into(heard):
                    await source.execute("migrate-set-parameters", max_bandwidth=UNBOUNDED, downtime_limit=0)
                    await target.execute("migrate-incoming", uri=uri)
                    await source.execute("migrate", uri=uri)
                    while True:
                        machine, event = await heard.get()
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
                            case _, name, _ if name == GONE:
                                raise HypervisorError("a QEMU has ended")
        except TimeoutError:
            raise HypervisorError(f"not within {MOVE_SECONDS:.0f} s") from None

    @property
    def _running(self) -> QemuMachine:
        assert self._machine is not None
        return self._machine

    def _lives_in(self, machine: QemuMachine) -> None:
        self._machine, self._shell = machine, GuestShell(machine.files.shell)

    async def _plug(self, server: str) -> None:
        await add_port(_on(server), bridge=EDGE_BRIDGE, tap=tap_name(VM), vm=VM, mac=MAC)

    def _spec(self) -> VMSpec:
        guest = ensure_guest()
        line = command_line(f"{ADDRESS}/{self.subnet.prefix.prefixlen},{self.subnet.gateway}", hostname=VM)
        return VMSpec(VM, MAC, tap_name(VM), guest.kernel, guest.initrd, line)


def _on(server: str) -> Callable[..., Awaitable[str]]:
    return partial(run, node=server, env=env(server))
