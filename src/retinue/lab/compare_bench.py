"""One VM in one lab, as the compared systems see it: booted, moved by its hypervisor, watched for RESUME.

Used inside the lab's sandbox.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retinue.hypervisor.taps import tap_name
from retinue.lab import agents, switches
from retinue.lab.demo_wire import Driver, Manager
from retinue.lab.errors import LabError
from retinue.lab.processes import run
from retinue.lab.sandbox import LabHandle
from retinue.lab.vmdriver import SOCKET

VM, MAC, ADDRESS = "vm1", "52:54:00:00:00:01", "10.1.0.50"
"""The address is set by the manager: a DHCP server is no part of what is compared."""
SERVERS = ("server1", "server2")
"""Between these, each on a leaf of its own, the VM goes to and fro."""
BOOT_SECONDS = 60.0
RESUME_SECONDS = 60.0
LOOK_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Moved:
    """One move, whoever made it. What a system has no figure for is left out."""

    source: str
    target: str
    stopped_at: float
    resumed_at: float
    """Seconds since the epoch, by the hypervisor's events."""
    total_ms: float
    more: dict[str, Any] = field(default_factory=dict)
    """Further fields of compare_report.MoveRow."""

    @property
    def pause_ms(self) -> float:
        return (self.resumed_at - self.stopped_at) * 1000


class Bench:
    def __init__(self, lab: LabHandle, manager: Manager) -> None:
        self.lab = lab
        self.topology = lab.topology
        self.manager = manager
        self.driver = Driver(lab.directory / SOCKET)
        self.at = SERVERS[0]
        """Where the VM runs."""

    @property
    def target(self) -> str:
        """Where it goes next."""
        return SERVERS[1 - SERVERS.index(self.at)]

    async def boot(self) -> None:
        """Start the VM under the lab's own controller; return when its guest serves. Raises LabError."""
        await self.manager.post("/v1/vms", {"id": VM, "mac": MAC, "server": self.at, "addresses": [ADDRESS]})
        until = asyncio.get_running_loop().time() + BOOT_SECONDS
        while asyncio.get_running_loop().time() < until:
            with contextlib.suppress(LabError):  # It is not there yet.
                if "RETINUE READY" in (await self.driver.ask(do="serial", vm=VM)).get("text", ""):
                    return
            await asyncio.sleep(0.1)
        raise LabError(f"{VM} did not boot within {BOOT_SECONDS:.0f} s")

    async def migrate(self, at_resume: Callable[[], Awaitable[None]]) -> Moved:
        """Let the hypervisor move the VM by itself, and call `at_resume` when it runs on. Raises LabError."""
        source, target = self.at, self.target
        began = time.monotonic()
        async with _resumes(agents.folder(self.lab.directory, target) / "vms", at_resume) as hooked:
            moved = await self.driver.ask(do="migrate", vm=VM, target=target)
            total_ms = (time.monotonic() - began) * 1000
            await hooked()
        self.at = target
        return Moved(source, target, moved["stopped_at"], moved["resumed_at"], total_ms)

    async def vsctl(self, server: str, *words: str) -> str:
        return await run(["ovs-vsctl", *words], node=server, env=self.env(server))

    async def ofctl(self, server: str, *words: str) -> str:
        return await run(["ovs-ofctl", "-O", "OpenFlow14", *words], node=server, env=self.env(server))

    @staticmethod
    def env(server: str) -> dict[str, str]:
        return switches.env(server)

    async def in_guest(self, command: str) -> tuple[int, str]:
        return await self.driver.in_guest(VM, command)


@contextlib.asynccontextmanager
async def _resumes(
    folder: Path, hook: Callable[[], Awaitable[None]]
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Calls `hook` at RESUME of the QEMU that comes to be in `folder`; gives a function that waits for it."""
    known = set(_monitors(folder))
    task = asyncio.create_task(_at_resume(folder, known, hook))

    async def hooked() -> None:
        try:
            async with asyncio.timeout(RESUME_SECONDS):
                await task
        except TimeoutError:
            raise LabError(f"no RESUME of {VM} was heard in {folder}") from None

    try:
        yield hooked
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _monitors(folder: Path) -> list[Path]:
    """QEMU's monitor sockets for others (hypervisor.argv, `observer`)."""
    return list(folder.glob(f"{tap_name(VM)}-*.qmp"))


async def _at_resume(folder: Path, known: set[Path], hook: Callable[[], Awaitable[None]]) -> None:
    while True:
        with contextlib.suppress(OSError):
            for path in set(_monitors(folder)) - known:
                reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
                break
            else:
                raise FileNotFoundError
            break
        await asyncio.sleep(LOOK_SECONDS)  # A file tells no one that it has come to be.
    try:
        await reader.readline()
        writer.write(b'{"execute": "qmp_capabilities"}\n')
        while line := await reader.readline():
            if json.loads(line).get("event") == "RESUME":
                return await hook()
        raise LabError(f"the QEMU of {VM} in {folder} ended before it ran on")
    finally:
        writer.close()
