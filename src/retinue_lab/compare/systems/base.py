"""The systems that are compared, each a small class: how the network becomes it, what it does at a migration.

A further one is a subclass of `System` with a line in registry. All have the same lab: guest, QEMU and its
arguments, servers, cables and switches. In the labs of those that are not retinue, none of it runs.
"""

import asyncio
import shutil
from typing import ClassVar

from retinue_lab import baseline
from retinue_lab.baseline import Bound
from retinue_lab.compare.bench import ADDRESS, MAC, SERVERS, VM, Bench, ManagedBench, Migrated
from retinue_lab.compare.hypervisor import PlainBench
from retinue_lab.errors import LabError
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology import topology_file
from retinue_lab.topology.topology import Topology


class System:
    """One way to run the network. `before_boot` and `set_up` are called once, the others, in this order, for
    each migration.
    """

    name: ClassVar[str]
    how: ClassVar[str]
    """How it is set up, in a sentence or two."""
    programs: ClassVar[dict[str, str]] = {}
    """Programs it needs on this machine, and the Debian package of each."""
    controlled: ClassVar[bool] = False
    """The lab has its controller."""
    managed: ClassVar[bool] = False
    """And agents, and they run the VM."""
    vm: ClassVar[str] = VM
    """The VM's id."""
    servers: ClassVar[tuple[str, str]] = SERVERS
    """Between which the VM goes to and fro."""
    may_be_dual: ClassVar[bool] = False
    """It can be set up for a VM with two NICs, and addresses of both families."""

    def __init__(self, *, dual: bool = False) -> None:
        self.dual = dual

    def network(self) -> Topology:
        """What its lab is built to."""
        return topology_file.load("dual-stack" if self.dual else None)

    def unavailable(self) -> str:
        """Why it is not measured here, "" when it is."""
        if self.dual and not self.may_be_dual:
            return "it is set up for a VM with one NIC, and IPv4, only"
        return self.missing()

    def missing(self) -> str:
        """Why it is not available here, "" when it is."""
        absent = [program for program in self.programs if shutil.which(program) is None]
        if absent:
            packages = " ".join(sorted({self.programs[program] for program in absent}))
            return f"{', '.join(absent)} not found: install the Debian packages {packages}"
        return ""

    def versions(self) -> dict[str, str]:
        """Of programs that no other system has."""
        return {}

    def bench(self, lab: LabHandle) -> Bench:
        """What runs the VM and migrates it."""
        if self.managed:
            return ManagedBench(lab, self.vm, dual=self.dual, servers=self.servers)
        return PlainBench(lab, dual=self.dual, servers=self.servers)

    async def before_boot(self, bench: Bench) -> None:
        """What must be so before the VM is started."""

    async def set_up(self, bench: Bench) -> None:
        """Make the lab's network this system's, where the VM runs."""

    async def before_migration(self, bench: Bench, source: str, target: str) -> None:
        """What a manager tells the network before it has the hypervisor migrate the VM."""

    async def at_resume(self, bench: Bench, source: str, target: str) -> None:
        """What the manager tells the network as soon as the VM runs at the target."""

    async def after_migration(self, bench: Bench, source: str, target: str) -> None:
        """Once all is measured: whatever is needed that the VM is reached where it is."""

    async def move(self, bench: Bench) -> Migrated:
        """Move the VM to `bench.target`: by the hypervisor alone, with the calls above around it."""
        source, target = bench.at, bench.target
        await self.before_migration(bench, source, target)
        return await bench.migrate(lambda: self.at_resume(bench, source, target))


class LearningSwitch(System):
    name = "learning-switch"
    how = "Switches learn MAC addresses (action NORMAL), nothing filters; QEMU announces the VM by RARP."

    async def set_up(self, bench: Bench) -> None:
        await baseline.make_plain(bench.lab, ())
        for server in bench.topology.server:
            await bench.ofctl(server.id, "add-flow", "br0", "priority=1,actions=NORMAL")


class StaticPortSecurity(System):
    name = "static-port-security"
    how = (
        "Learning switches, and on each server a static table of port, MAC and IP (IP source guard), written "
        "where the VM started. After each run the VM's row is written at its new place by hand."
    )

    async def set_up(self, bench: Bench) -> None:
        await baseline.make_plain(bench.lab, [Bound(bench.at, VM, MAC, ADDRESS)])

    async def after_migration(self, bench: Bench, source: str, target: str) -> None:
        # Ports get their numbers anew, so a row left behind could let somebody else in.
        for server in SERVERS:
            await bench.ofctl(server, "del-flows", "br0", f"dl_src={MAC}")
        await baseline.bind(Bound(target, VM, MAC, ADDRESS))
        await reached(bench)


async def reached(bench: Bench, tries: int = 10) -> None:
    """Return when the VM reaches its gateway, by which the network also learns where it is."""
    gateway = bench.subnet.gateway
    for _ in range(tries):
        code, _ = await bench.in_guest(f"ping -c 1 -W 1 {gateway}")
        if code == 0:
            return
        await asyncio.sleep(0.2)
    raise LabError(f"{bench.vm} does not reach its gateway {gateway}")
