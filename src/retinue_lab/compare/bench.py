"""The one VM of a comparison, in a lab of its own, as the compared systems see it.

Used inside the lab's sandbox. What runs the VM is a matter of the subclass: `ManagedBench` has it registered
with and run by retinue, `compare.hypervisor.PlainBench` runs QEMU by itself.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from retinue.protocol.routes import Route
from retinue_lab.compare.report.summary import Family
from retinue_lab.errors import LabError
from retinue_lab.network import switches
from retinue_lab.network.switches import env
from retinue_lab.network.vm_driver import SOCKET
from retinue_lab.processes.processes import run
from retinue_lab.sandbox.clients import Driver, Manager
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.parts import Subnet6Part, SubnetPart

VM, MAC, ADDRESS = "vm1", "52:54:00:00:00:01", "10.1.0.50"
"""The address is set by the manager: a DHCP server is no part of what is compared. A system may have another
id for the VM (compare.systems.base.System.vm)."""
SECOND_MAC = "52:54:00:00:00:02"
DUAL: tuple[tuple[str, str, str], ...] = (
    (MAC, ADDRESS, "fd00:1::50"),
    (SECOND_MAC, "10.1.0.51", "fd00:1::51"),
)
"""The NICs of a VM with two: MAC, and the address of each family."""
SERVERS = ("server1", "server2")
"""Between these, each on a leaf of its own, the VM goes to and fro; but for systems that have others."""
BOOT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Migrated:
    """One migration, whatever made it. What a system has no figure for is left out."""

    source: str
    target: str
    stopped_at: float
    resumed_at: float
    """Seconds since the epoch, by the hypervisor's events."""
    total_ms: float
    more: dict[str, Any] = field(default_factory=dict)
    """Further fields of compare.report.summary.MigrationRow."""

    @property
    def pause_ms(self) -> float:
        return (self.resumed_at - self.stopped_at) * 1000


def address_of(family: Family, nic: int) -> str:
    """Of the VM's NIC, from 1."""
    _, ipv4, ipv6 = DUAL[nic - 1]
    return ipv4 if family == "ipv4" else ipv6


SETTLED = "until ! ip -6 address show | grep -q tentative; do usleep 50000; done"
"""The guest has found that nobody else has its addresses of IPv6 (RFC 4862, 5.4), and may use them."""


class Bench:
    """The VM of a comparison, and the means to boot it, to migrate it and to run commands around it."""

    def __init__(
        self, lab: LabHandle, vm: str = VM, *, dual: bool = False, servers: tuple[str, str] = SERVERS
    ) -> None:
        self.lab = lab
        self.servers = servers
        self.vm = vm
        self.dual = dual
        """It has two NICs, each with an address of each family; else one, with one of IPv4."""
        self.topology = lab.topology
        self.at = servers[0]
        """Where the VM runs."""
        self.several_passes = False
        """Where the hypervisor moves the VM by itself: with as many passes as it likes, not with one."""

    @property
    def target(self) -> str:
        """Where it goes next."""
        return self.servers[1 - self.servers.index(self.at)]

    def came_to(self, server: str) -> None:
        """The VM runs there now."""
        self.at = server

    @property
    def subnet(self) -> SubnetPart:
        """The VM's."""
        return next(subnet for subnet in self.topology.subnet if subnet.id == "blue")

    @property
    def subnet6(self) -> Subnet6Part:
        """The VM's of IPv6, where it is dual."""
        (subnet,) = self.topology.subnet6
        return subnet

    async def boot(self) -> None:
        """Start the VM; return when its guest serves. Raises LabError."""
        raise NotImplementedError

    async def settle(self) -> None:
        """Return when the guest, which has booted, may use all of its addresses. Raises LabError."""
        if self.dual:
            await self.in_guest(SETTLED)

    async def close(self) -> None:
        """End what was started, as far as it does not end with the lab."""

    async def in_guest(self, command: str, timeout: float = 20.0) -> tuple[int, str]:
        """Run shell text as root in the guest: exit code and output. Raises LabError when it is silent."""
        raise NotImplementedError

    async def migrate(self, at_resume: Callable[[], Awaitable[None]]) -> Migrated:
        """Let the hypervisor move the VM by itself; call `at_resume` when it has resumed. Raises LabError."""
        raise LabError("this VM is moved by its manager alone")

    async def vsctl(self, server: str, *words: str) -> str:
        return await run(["ovs-vsctl", *words], node=server, env=env(server))

    async def ofctl(self, server: str, *words: str) -> str:
        return await run(["ovs-ofctl", "-O", "OpenFlow14", *words], node=server, env=env(server))


Drops = dict[tuple[str, str], int]


async def drops(bench: Bench) -> Drops:
    """Frames lost so far between each port and its switch, by node and port.

    A switch in user space takes frames from a socket of limited size (packet(7)). When it does not get the
    processor for too long, the kernel drops what does not fit.
    """

    async def of(node: str) -> Drops:
        return drops_of(node, await run(["ss", "-0nmHO"], node=node))

    other = bench.topology.other
    nodes = [*switches.nodes(bench.topology), *([] if other is None else switches.nodes(other))]
    return {key: n for each in await asyncio.gather(*map(of, nodes)) for key, n in each.items()}


def drops_of(node: str, output: str) -> Drops:
    """What ss(8) shows of a node's packet sockets, several of which may be at one port."""
    found: Drops = {}
    for port, count in re.findall(r"\*:(\S+) .*skmem:\(.*,d(\d+)\)", output):
        found[node, port] = found.get((node, port), 0) + int(count)
    return found


def dropped(before: Drops, after: Drops) -> int:
    """How many were lost between two looks. Those of a port that was removed meanwhile are not known."""
    return sum(max(0, count - before.get(port, 0)) for port, count in after.items())


class ManagedBench(Bench):
    """The VM is registered with the lab's controller, which has it run."""

    def __init__(
        self, lab: LabHandle, vm: str = VM, *, dual: bool = False, servers: tuple[str, str] = SERVERS
    ) -> None:
        super().__init__(lab, vm, dual=dual, servers=servers)
        self.manager = Manager(lab.topology.controller_url)
        self.driver = Driver(lab.directory / SOCKET)

    async def boot(self) -> None:
        inventory: dict[str, Any] = {"id": self.vm, "server": self.at}
        if self.dual:
            inventory["nics"] = [{"mac": mac, "addresses": addresses} for mac, *addresses in DUAL]
        else:
            inventory |= {"mac": MAC, "addresses": [ADDRESS]}
        await self.manager.post(Route.REGISTER_VMS.path(), inventory)
        until = asyncio.get_running_loop().time() + BOOT_SECONDS
        while asyncio.get_running_loop().time() < until:
            with contextlib.suppress(LabError):  # It is not there yet.
                if "RETINUE READY" in (await self.driver.ask(do="serial", vm=self.vm)).get("text", ""):
                    return await self.settle()
            await asyncio.sleep(0.1)
        raise LabError(f"{self.vm} did not boot within {BOOT_SECONDS:.0f} s")

    async def close(self) -> None:
        await self.manager.close()

    async def in_guest(self, command: str, timeout: float = 20.0) -> tuple[int, str]:
        answer = await self.driver.ask(do="guest", vm=self.vm, command=command, timeout=timeout)
        return answer["code"], answer["output"]
