"""A bench for one VM: a network namespace, one switch with two taps, and QEMU; no controller, no agents."""

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retinue.core.migration.copying import PLAIN, CopyOptions
from retinue.core.migration.precopy import WANTED_DOWNTIME
from retinue.host.taps import add_port, remove_port
from retinue.hypervisor import (
    DiskSpec,
    Divert,
    Event,
    HypervisorError,
    MigrationResult,
    QemuHypervisor,
    QemuMachine,
    VMSpec,
)
from retinue.hypervisor.qemu import incoming, undoing
from retinue.hypervisor.qemu import machine as qemu_machine
from retinue_lab.guest.image import Guest, command_line
from retinue_lab.guest.shell import GuestShell, console_line
from support.agents.loopback import migrate

VM = "vm1"
MAC = "52:54:00:00:00:01"
ADDRESS = "10.1.0.50"
BRIDGE = "edge"
PRODUCTS_LIMITS = ((qemu_machine, "RESUME_LIMIT"), (undoing, "RECOVERY_LIMIT"), (incoming, "LAST_WORD_LIMIT"))
"""Seconds, in which a busy machine may not do what nothing is wrong with."""


class QemuBench:
    """A network namespace with a switch in it. The namespace itself has the address 10.1.0.1."""

    def __init__(self, folder: Path, guest: Guest) -> None:
        self.folder = folder
        self.name = f"retinue-bench-{os.getpid()}"
        self.prefix = ("ip", "netns", "exec", self.name)
        self.vsctl = ("ovs-vsctl", "--timeout=10", f"--db=unix:{folder}/db.sock")
        # They outlive who starts them; not so here, however the test ends.
        self.hypervisor = QemuHypervisor(folder, (*self.prefix, "setpriv", "--pdeathsig", "KILL"))
        self.events: list[Event] = []
        self.machines: list[QemuMachine] = []
        self.guest = guest
        self.disks: tuple[DiskSpec, ...] = ()
        """Of the VM; private ones get a path for each tap."""

    async def run(self, argv: Sequence[str]) -> str:
        process = await self.popen("", argv)
        output, complaint = await process.communicate()
        assert process.returncode == 0, f"{argv}: {complaint.decode()}"
        return output.decode()

    async def popen(self, _node: str, argv: Sequence[str]) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        env = {**os.environ, "OVS_RUNDIR": str(self.folder)}
        command = (*self.prefix, *argv)
        return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, env=env)

    async def up(self) -> None:
        folder = self.folder
        await _host("ip", "netns", "add", self.name)
        await self.run(["ip", "link", "set", "lo", "up"])
        schema = "/usr/share/openvswitch/vswitch.ovsschema"
        await self.run(["ovsdb-tool", "create", f"{folder}/conf.db", schema])
        daemon = ["--detach", "--no-chdir", "--log-file=/dev/null"]
        remote = f"--remote=punix:{folder}/db.sock"
        pid = f"--pidfile={folder}/ovsdb-server.pid"
        await self.run(["ovsdb-server", f"{folder}/conf.db", remote, pid, *daemon])
        await self.run([*self.vsctl, "--no-wait", "init"])
        pid = f"--pidfile={folder}/ovs-vswitchd.pid"
        await self.run(["ovs-vswitchd", f"unix:{folder}/db.sock", pid, *daemon])
        await self.run([*self.vsctl, "add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=netdev"])
        await self.run(["ethtool", "-K", BRIDGE, "tx", "off"])
        await self.run(["ip", "address", "add", "10.1.0.1/24", "dev", BRIDGE])
        await self.run(["ip", "link", "set", BRIDGE, "up"])
        for tap in ("tap-a", "tap-b"):
            await self.plug(tap)

    async def plug(self, tap: str) -> None:
        await add_port(self.run, bridge=BRIDGE, tap=tap, vm=VM, mac=MAC, ovs_vsctl=self.vsctl)

    async def unplug(self, tap: str) -> None:
        await remove_port(self.run, bridge=BRIDGE, tap=tap, ovs_vsctl=self.vsctl)

    async def down(self) -> None:
        for machine in self.machines:
            await machine.quit()
        for daemon in ("ovs-vswitchd", "ovsdb-server"):
            with contextlib.suppress(FileNotFoundError):
                os.kill(int((self.folder / f"{daemon}.pid").read_text()), signal.SIGTERM)
        await _host("ip", "netns", "del", self.name)

    def spec(self, tap: str = "tap-a", ip: str = f"{ADDRESS}/24,10.1.0.1") -> VMSpec:
        disks = tuple(
            one
            if not one.private or one.path != Path()
            else replace(one, path=self.folder / f"{tap}.{one.node}.qcow2")
            for one in self.disks
        )
        return VMSpec(VM, MAC, tap, self.guest.kernel, self.guest.initrd, command_line(ip), disks=disks)

    async def boot(self, ip: str = f"{ADDRESS}/24,10.1.0.1") -> tuple[QemuMachine, GuestShell]:
        machine = await self.hypervisor.start(self.spec(ip=ip), self.events.append)
        self.machines.append(machine)
        await console_line(machine.files.serial_log, "RETINUE READY")
        return machine, GuestShell(machine.files.shell)

    async def target(self, tap: str = "tap-b") -> QemuMachine:
        machine = await self.hypervisor.open_target(self.spec(tap), self.events.append)
        self.machines.append(machine)
        return machine

    async def migration(
        self,
        source: QemuMachine,
        target: QemuMachine,
        divert: Divert | None = None,
        options: CopyOptions = PLAIN,
        wanted_downtime: float = WANTED_DOWNTIME,
    ) -> MigrationResult:
        both = (self.hypervisor, source, self.hypervisor, target)
        return await migrate(*both, self.events.append, divert, options, wanted_downtime)


class Held:
    """Called when the VM's traffic is to be diverted, waits until it may be."""

    def __init__(self, source: QemuMachine) -> None:
        self.source = source
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        self.fails = False
        self.remaining = -1

    async def __call__(self, taps: Collection[str]) -> bool:
        self.remaining = (await self.source.execute("query-migrate"))["ram"]["remaining"]
        self.reached.set()
        await self.go_on.wait()
        if self.fails:
            raise HypervisorError("the switches have not confirmed")
        return True


async def first_of(event: asyncio.Event, moving: "asyncio.Task[Any]") -> None:
    """Return when it has happened, or when the migration has ended before: then nobody waits for ever."""
    happening = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({happening, moving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        happening.cancel()


async def _host(*argv: str) -> None:
    process = await asyncio.create_subprocess_exec(*argv)
    assert await process.wait() == 0, argv


@contextlib.asynccontextmanager
async def qemu_bench(guest: Guest) -> AsyncIterator[QemuBench]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, pytest.MonkeyPatch.context() as patch:
        for module, limit in PRODUCTS_LIMITS:
            patch.setattr(module, limit, 120.0)
        made = QemuBench(Path(folder), guest)
        try:
            await made.up()
            yield made
        finally:
            await made.down()
