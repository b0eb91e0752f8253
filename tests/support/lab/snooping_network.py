"""A small network with nothing of ours: two servers with switches that snoop by themselves, a LAN, Kea.

    [swa: snooping_switch, QEMU] - lan (Linux bridge) - [swb: snooping_switch, QEMU]
                                         |
                                  [judge: Kea, 10.9.0.2]

It stands in the sandbox of a lab, whose own switches take no part. VMs are started and migrated by QEMU's own
means.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from qemu.qmp import QMPClient

from retinue.host.taps import tap_name
from retinue.hypervisor.qemu.argv import OFFLOADS_OFF
from retinue_lab.guest.image import command_line, ensure_guest
from retinue_lab.network.dhcp_server import KEA_READY
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology import SANDBOX
from support.lab import snooping_switch
from support.lab.programs import popen_in
from support.lab.tools import BOOT_PATIENCE, PATIENCE, Json, eventually
from support.lab.watch import Capture

SWITCHES = ("swa", "swb")
JUDGE, SERVER, SERVER_MAC = "judge", "10.9.0.2", "02:00:00:00:09:02"
VM, MAC = "guest", "52:54:00:00:09:01"
TAP = tap_name(VM)
CLIENT_ID = "01" + MAC.replace(":", "")
"""What the guest's DHCP client, udhcpc, says by itself: hardware type and address."""

_NETWORK = f"""
for node in swa swb {JUDGE} lan; do
    ip netns add $node
    for kind in all default; do
        ip netns exec $node sh -c "echo 1 > /proc/sys/net/ipv6/conf/$kind/disable_ipv6"
    done
    ip -n $node link set lo up
done
ip -n lan link add lan type bridge forward_delay 0
ip -n lan link set lan up
for node in swa swb {JUDGE}; do
    nic=up0; test $node = {JUDGE} && nic=eth0
    ip link add to-$node netns lan type veth peer name $nic netns $node
    ip -n lan link set to-$node master lan up
    test $node = {JUDGE} && ip -n $node link set $nic address {SERVER_MAC}
    ip -n $node link set $nic up
    ip netns exec lan ethtool -K to-$node rx off tx off sg off tso off gso off gro off > /dev/null
    ip netns exec $node ethtool -K $nic rx off tx off sg off tso off gso off gro off > /dev/null
done
ip -n {JUDGE} address add {SERVER}/24 dev eth0
for node in swa swb; do
    ip netns exec $node ip tuntap add dev {TAP} mode tap
    ip -n $node link set {TAP} up
done
mkdir -p /run/retinue/judge
"""

_ECHO = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
    wire.settimeout(float(sys.argv[2]))
    wire.connect((sys.argv[1], 7))
    wire.send(b"hello")
    try:
        print(wire.recv(100).decode())
    except TimeoutError:
        print("silence")
"""


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
        async with asyncio.timeout(timeout), self._arrived:
            await self._arrived.wait_for(lambda: any(text in line for line in self.lines))

    def of(self, kind: str) -> list[Json]:
        return [e for e in self.events if e["event"] == kind]

    async def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        await self._reader
        await self._process.wait()


@dataclass
class Machine:
    """A QEMU on one of the servers."""

    node: str
    process: Said
    qmp: Path
    console: Path
    shell: Path
    monitor: QMPClient

    async def execute(self, command: str, **arguments: Any) -> Any:
        sent = {name.replace("_", "-"): value for name, value in arguments.items()}
        return await self.monitor.execute(command, sent or None)


@dataclass
class SnoopingNetwork:
    """`command` makes it a lab with nodes of its own, for those who start programs."""

    lab: LabHandle
    folder: Path
    switches: dict[str, Said] = field(default_factory=dict)
    machines: list[Machine] = field(default_factory=list)
    kea: Said = field(init=False)
    _open: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    def command(self, node: str, argv: Sequence[str]) -> list[str]:
        inside = [] if node == SANDBOX else ["ip", "netns", "exec", node]
        return self.lab.command(SANDBOX, [*inside, *argv])

    async def run(self, node: str, *argv: str) -> str:
        process = await popen_in(self)(node, argv)
        out, err = await process.communicate(b"")
        assert process.returncode == 0, f"{argv} on {node}: {err.decode()}"
        return out.decode()

    async def program(self, node: str, *argv: str) -> Said:
        """Start a program that runs until the world ends."""
        said = Said(await popen_in(self)(node, ["sh", "-c", 'exec "$0" "$@" 2>&1', *argv]))
        self._open.push_async_callback(said.close)
        return said

    async def capture(self, node: str, interface: str, direction: str) -> Capture:
        watch = await Capture.start(popen_in(self), node, interface, direction)
        self._open.push_async_callback(watch.close)
        return watch

    # ---- VMs ----

    async def start(self, node: str, *, incoming: bool = False) -> Machine:
        """A QEMU with the VM, or one that waits for it."""
        guest = await asyncio.to_thread(ensure_guest)
        paths = {kind: self.folder / f"{node}.{kind}" for kind in ("qmp", "control", "console", "shell")}
        argv = ["nice", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"]
        argv += ["-accel", "tcg", "-M", "pc-q35-7.2", "-m", "96", "-kernel", str(guest.kernel)]
        argv += ["-initrd", str(guest.initrd), "-append", command_line("dhcp", hostname=VM)]
        argv += ["-netdev", f"tap,id=net0,ifname={TAP},script=no,downscript=no"]
        argv += ["-device", f"virtio-net-pci,netdev=net0,mac={MAC},romfile=,{OFFLOADS_OFF}"]
        argv += ["-serial", f"file:{paths['console']}"]
        argv += ["-serial", f"unix:{paths['shell']},server=on,wait=off"]
        argv += ["-qmp", f"unix:{paths['control']},server=on,wait=off"]
        argv += ["-qmp", f"unix:{paths['qmp']},server=on,wait=off"]
        argv += ["-incoming", f"unix:{self.folder / 'memory'}"] if incoming else []
        said = await self.program(node, *argv)
        await eventually(lambda: _exists(paths["control"]))
        monitor = QMPClient("test")
        await monitor.connect(str(paths["control"]))
        self._open.push_async_callback(monitor.disconnect)
        machine = Machine(node, said, paths["qmp"], paths["console"], paths["shell"], monitor)
        self.machines.append(machine)
        return machine

    async def booted(self, machine: Machine) -> str:
        """When the guest has its address by DHCP and serves: the address."""

        async def ready() -> bool:
            text = machine.console.read_text(errors="replace") if machine.console.exists() else ""
            return "RETINUE READY" in text and "RETINUE ADDRESS" in text

        await eventually(ready, BOOT_PATIENCE)
        return machine.console.read_text().split("RETINUE ADDRESS ")[-1].split()[0]

    async def migrate(self, source: Machine) -> None:
        """By QEMU alone; returns when the source has handed all over."""
        await source.execute("migrate", uri=f"unix:{self.folder / 'memory'}")

        async def completed() -> bool:
            status = (await source.execute("query-migrate"))["status"]
            assert status != "failed"
            return bool(status == "completed")

        await eventually(completed)

    async def echo(self, address: str, patience: float) -> bool:
        """True when the guest answers one datagram in time."""
        said = await self.run(JUDGE, sys.executable, "-I", "-S", "-c", _ECHO, address, str(patience))
        return "hello" in said


async def _exists(path: Path) -> bool:
    return await asyncio.to_thread(path.exists)


def kea_configuration(folder: Path) -> Json:
    return {
        "Dhcp4": {
            "interfaces-config": {"interfaces": ["eth0"], "dhcp-socket-type": "raw"},
            "control-socket": {"socket-type": "unix", "socket-name": "/run/retinue/judge/kea.sock"},
            "lease-database": {"type": "memfile", "persist": False, "name": str(folder / "leases4.csv")},
            "authoritative": True,
            "valid-lifetime": 600,
            "subnet4": [
                {"id": 1, "subnet": "10.9.0.0/24", "pools": [{"pool": "10.9.0.100 - 10.9.0.199"}]},
            ],
            "loggers": [
                {
                    "name": "kea-dhcp4",
                    "output_options": [{"output": "stdout"}],
                    "severity": "DEBUG",
                    "debuglevel": 99,
                },
            ],
        }
    }


@contextlib.asynccontextmanager
async def foreign_world(lab: LabHandle) -> AsyncIterator[SnoopingNetwork]:
    """The network with its switches and Kea, no VM yet. One world a lab."""
    folder = lab.directory / "foreign"
    folder.mkdir()
    world = SnoopingNetwork(lab, folder)
    async with world._open:
        await world.run(SANDBOX, "sh", "-ec", _NETWORK)
        for switch in SWITCHES:
            argv = [sys.executable, "-u", "-I", "-S", snooping_switch.__file__]
            world.switches[switch] = await world.program(switch, *argv, "--vm-port", TAP, "--trusted", "up0")
            await world.switches[switch].until(lambda e: bool(e["event"] == "ready"))
        (folder / "kea.json").write_bytes(msgspec.json.encode(kea_configuration(folder)))
        locations = [f"{key}=/run/retinue/judge" for key in ("KEA_PIDFILE_DIR", "KEA_LOCKFILE_DIR")]
        world.kea = await world.program(
            JUDGE,
            "env",
            *locations,
            "KEA_LOGGER_DESTINATION=stdout",
            "kea-dhcp4",
            "-c",
            str(folder / "kea.json"),
        )
        await world.kea.until_line(KEA_READY)
        yield world
