"""A VM that none of our agents runs: its QEMUs are started and migrated by QEMU's own means, on any node."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient

from retinue.host import taps
from retinue.hypervisor.qemu.argv import OFFLOADS_OFF
from retinue_lab.guest.image import command_line, ensure_guest
from retinue_lab.guest.shell import GuestShell
from support.lab.programs import Commands, popen_in
from support.lab.tools import BOOT_PATIENCE, PATIENCE, Json, LabBench, eventually

PXE_ROM = Path("/usr/lib/ipxe/qemu/efi-virtio.rom")
"""Of Debian's ipxe-qemu, which its QEMU recommends: what cards have where nobody says otherwise."""


class Said:
    """A program's output, an object a line where it is JSON."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.lines: list[str] = []
        self.events: list[Json] = []
        self._process = process
        self._arrived = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            async with self._arrived:
                self.lines.append(line.decode().rstrip())
                with contextlib.suppress(ValueError):
                    self.events.append(json.loads(line))
                self._arrived.notify_all()

    async def until(self, wanted: Callable[[Json], bool], timeout: float = PATIENCE) -> Json:
        """The first event that fits, among those seen and those to come."""
        try:
            async with asyncio.timeout(timeout), self._arrived:
                await self._arrived.wait_for(lambda: any(map(wanted, self.events)))
        except TimeoutError:
            raise AssertionError(f"not in {timeout:g} s, but: {self.lines[-20:]}") from None
        return next(filter(wanted, self.events))

    async def until_line(self, text: str, timeout: float = PATIENCE) -> None:
        try:
            async with asyncio.timeout(timeout), self._arrived:
                await self._arrived.wait_for(lambda: any(text in line for line in self.lines))
        except TimeoutError:
            raise AssertionError(f"no {text!r} in {timeout:g} s, but: {self.lines[-20:]}") from None

    def of(self, kind: str) -> list[Json]:
        return [e for e in self.events if e["event"] == kind]

    async def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        await self._reader
        await self._process.wait()


async def program(lab: Commands, node: str, *argv: str, stack: contextlib.AsyncExitStack) -> Said:
    """Start a program on a node that runs until the stack is closed."""
    said = Said(await popen_in(lab)(node, ["sh", "-c", 'exec "$0" "$@" 2>&1', *argv]))
    stack.push_async_callback(said.close)
    return said


@dataclass
class Machine:
    """A QEMU of the VM, at a tap of its node that is there already."""

    node: str
    process: Said
    qmp: Path
    console: Path
    shell: Path
    monitor: QMPClient

    async def execute(self, command: str, **arguments: Any) -> Any:
        sent = {name.replace("_", "-"): value for name, value in arguments.items()}
        return await self.monitor.execute(command, sent or None)

    async def guest(self, command: str) -> str:
        """What a command in the guest has printed; it must end well."""
        code, said = await GuestShell(self.shell).run(command)
        assert code == 0, said
        return said

    async def booted(self) -> str:
        """When the guest has its address and serves: the address."""

        async def ready() -> bool:
            text = self.console.read_text(errors="replace") if self.console.exists() else ""
            return "RETINUE READY" in text and "RETINUE ADDRESS" in text

        await eventually(ready, BOOT_PATIENCE)
        return self.console.read_text().split("RETINUE ADDRESS ")[-1].split()[0]

    async def migrate(self, memory: Path) -> None:
        """To the QEMU that waits at this socket; returns when all has been handed over."""
        await self.execute("migrate", uri=f"unix:{memory}")

        async def completed() -> bool:
            status = (await self.execute("query-migrate"))["status"]
            assert status != "failed"
            return bool(status == "completed")

        await eventually(completed)


@dataclass(frozen=True)
class ForeignVM:
    """`folder`: of its QEMUs' sockets and consoles, on this machine."""

    name: str
    mac: str
    folder: Path
    address: str = "dhcp"
    """As the guest's command line has it."""

    @property
    def command_line(self) -> str:
        return command_line(self.address, hostname=self.name)

    @property
    def memory(self) -> Path:
        """Where a QEMU that waits takes the memory."""
        return self.folder / "memory"

    async def start(
        self,
        lab: Commands,
        node: str,
        tap: str,
        stack: contextlib.AsyncExitStack,
        *,
        incoming: bool = False,
        by_network: bool = False,
        called: str = "",
    ) -> Machine:
        """A QEMU with the VM, or one that waits for it, until the stack is closed; its files are called so
        (without a word as the node is). One that starts `by_network` has nothing but its card's own ROM."""
        guest = await asyncio.to_thread(ensure_guest)
        paths = {
            kind: self.folder / f"{called or node}.{kind}" for kind in ("qmp", "control", "console", "shell")
        }
        argv = ["nice", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"]
        # What the ROM and the BIOS say comes by the serial line, too.
        machine = ("pc-q35-7.2,graphics=off", "256") if by_network else ("pc-q35-7.2", "96")
        argv += ["-accel", "tcg", "-M", machine[0], "-m", machine[1]]
        if not by_network:
            argv += ["-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", self.command_line]
        rom = "bootindex=1" if by_network else "romfile="  # Its own: QEMU gives that the card's ids.
        argv += ["-netdev", f"tap,id=net0,ifname={tap},script=no,downscript=no"]
        argv += ["-device", f"virtio-net-pci,netdev=net0,mac={self.mac},{rom},{OFFLOADS_OFF}"]
        argv += ["-serial", f"file:{paths['console']}"]
        argv += ["-serial", f"unix:{paths['shell']},server=on,wait=off"]
        argv += ["-qmp", f"unix:{paths['control']},server=on,wait=off"]
        argv += ["-qmp", f"unix:{paths['qmp']},server=on,wait=off"]
        argv += ["-incoming", f"unix:{self.memory}"] if incoming else []
        said = await program(lab, node, *argv, stack=stack)
        await eventually(lambda: asyncio.to_thread(paths["control"].exists))
        monitor = QMPClient("test")
        await monitor.connect(str(paths["control"]))
        stack.push_async_callback(monitor.disconnect)
        return Machine(node, said, paths["qmp"], paths["console"], paths["shell"], monitor)


async def without_agents(bench: LabBench, *servers: str) -> None:
    """Their agents end, and the operator says that they have none: until then no manager reroutes a VM."""
    running_now = {daemon.name for daemon in bench.lab.daemons() if daemon.running}
    for server in servers:
        if f"{server}-agent" in running_now:
            bench.kill(f"{server}-agent")

        async def is_forgotten(server: str = server) -> bool:
            said = await bench.cli("server", "forget-agent", server, fails=None)
            return f"{server} has no agent" in said

        await eventually(is_forgotten)


async def plug(bench: LabBench, vm: ForeignVM, server: str, tap: str, host: str = "") -> None:
    """A tap for the VM at the server's switch, with the ids by which the controller knows it."""

    async def run(argv: Sequence[str]) -> str:
        return await bench.run(server, *argv)

    await taps.add_port(run, bridge="br0", tap=tap, vm=vm.name, mac=vm.mac)
    if host:
        await run(["ovs-vsctl", "set", "interface", tap, f"external_ids:host={host}"])
