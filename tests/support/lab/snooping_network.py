"""A small network with nothing of ours: two servers with switches that snoop by themselves, a LAN, Kea.

    [swa: snooping_switch, QEMU] - lan (Linux bridge) - [swb: snooping_switch, QEMU]
                                         |
                                  [judge: Kea, 10.9.0.2]

It stands in the sandbox of a lab, whose own switches take no part. VMs are started and migrated by QEMU's own
means.
"""

import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from retinue.host.taps import tap_name
from retinue_lab.network import snooping_switch
from retinue_lab.network.dhcp_server import KEA_READY
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology import SANDBOX
from support.lab.foreign_vm import ForeignVM, Machine, Said, program
from support.lab.programs import popen_in
from support.lab.tools import Json
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


_FROM_TAP = """
import fcntl, os, struct, sys
tap = os.open("/dev/net/tun", os.O_RDWR)
TUNSETIFF, TAP, WITHOUT_HEADER = 0x400454CA, 2, 0x1000
fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", sys.argv[1].encode(), TAP | WITHOUT_HEADER))
os.write(tap, bytes.fromhex(sys.argv[2]))
"""


@dataclass
class SnoopingNetwork:
    """`command` makes it a lab with nodes of its own, for those who start programs."""

    lab: LabHandle
    folder: Path
    switches: dict[str, Said] = field(default_factory=dict)
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
        return await program(self, node, *argv, stack=self._open)

    async def capture(self, node: str, interface: str, direction: str) -> Capture:
        watch = await Capture.start(popen_in(self), node, interface, direction)
        self._open.push_async_callback(watch.close)
        return watch

    def control(self, switch: str) -> Path:
        """The switch's control port."""
        return self.folder / f"{switch}.table"

    async def sends(self, node: str, frame: bytes) -> None:
        """Somebody sends from the VM's port, where the VM has no machine any more."""
        await self.run(node, sys.executable, "-I", "-S", "-c", _FROM_TAP, TAP, frame.hex())

    # ---- VMs ----

    async def start(self, node: str, *, incoming: bool = False) -> Machine:
        """A QEMU with the VM, or one that waits for it."""
        return await ForeignVM(VM, MAC, self.folder).start(self, node, TAP, self._open, incoming=incoming)

    async def migrate(self, source: Machine) -> None:
        """By QEMU alone; returns when the source has handed all over."""
        await source.migrate(self.folder / "memory")

    async def echo(self, address: str, patience: float) -> bool:
        """True when the guest answers one datagram in time."""
        said = await self.run(JUDGE, sys.executable, "-I", "-S", "-c", _ECHO, address, str(patience))
        return "hello" in said


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
async def foreign_world(lab: LabHandle, *switch_options: str) -> AsyncIterator[SnoopingNetwork]:
    """The network with its switches and Kea, no VM yet. One world a lab."""
    folder = lab.directory / "foreign"
    folder.mkdir()
    world = SnoopingNetwork(lab, folder)
    async with world._open:
        await world.run(SANDBOX, "sh", "-ec", _NETWORK)
        for switch in SWITCHES:
            argv = [sys.executable, "-u", "-I", "-S", snooping_switch.__file__]
            argv += [
                "--vm-port",
                TAP,
                "--trusted",
                "up0",
                "--control",
                str(world.control(switch)),
                *switch_options,
            ]
            world.switches[switch] = await world.program(switch, *argv)
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
