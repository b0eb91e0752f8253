"""The agent alone: switches of others snoop DHCP by themselves, and nobody tells them that a VM has migrated.

On each server a switch that is none of ours (network.snooping_switch) takes the place of Open vSwitch, which
is left without an uplink. The agent sees at QEMU that a VM has arrived, has the lease from the source's, and
renews it from the VM's own port; by the ACK the switch there binds the VM.
"""

import asyncio
import json
import sys
from ipaddress import IPv4Address

import msgspec

from retinue_lab import baseline
from retinue_lab.compare.bench import ADDRESS, MAC, SERVERS, VM, Bench
from retinue_lab.compare.hypervisor import PlainBench
from retinue_lab.compare.systems.base import System, reached
from retinue_lab.errors import LabError
from retinue_lab.network import snooping_switch
from retinue_lab.processes.processes import popen
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.parts import Reservation
from retinue_lab.topology.topology import EDGE_BRIDGE, UPLINK, Topology

PORT, TAP = 7800, f"tap-{VM}"
CONFIGURATION = """server = {server}
listen = "{address}:{port}"
bridge = ""
folder = {folder}
plaintext = true

[alone]
qmp = [{qmp}]
peers = {{ {peer} = "{peer_address}:{port}" }}
"""
READY_SECONDS = 60.0


class SnoopedBench(PlainBench):
    """With a switch of others at each port of the VM, and at each QEMU a second door, for the agent."""

    def __init__(self, lab: LabHandle) -> None:
        super().__init__(lab)
        self._programs: dict[str, Running] = {}

    def door(self, server: str) -> str:
        """The agent's socket of the VM's QEMU there."""
        return str(self.lab.directory / f"{server}.qmp")

    def launcher(self, server: str) -> tuple[str, ...]:
        with_door = f'exec "$@" -qmp unix:{self.door(server)},server=on,wait=off'
        return (*super().launcher(server), "sh", "-c", with_door, "sh")

    def guest_address(self) -> str:
        return "dhcp"

    async def plug(self, server: str) -> None:
        await super().plug(server)
        argv = ["-u", "-I", "-S", snooping_switch.__file__, "--quiet", "--vm-port", TAP, "--trusted", UPLINK]
        await self.start(f"{server}'s switch", server, [*argv], "ready")

    async def start(self, name: str, server: str, python: list[str], ready: str) -> None:
        """Run a Python program on a server in the place of the one of this name, until it says `ready`."""
        if name in self._programs:
            await self._programs.pop(name).end()
        both = ["sh", "-c", 'exec "$0" "$@" 2>&1', sys.executable, *python]
        process = await popen(server, both)
        self._programs[name] = Running(name, process)
        await self._programs[name].until(ready)

    async def close(self) -> None:
        for program in self._programs.values():
            await program.end()
        await super().close()


class Running:
    """A program on a server, of which only its last words are kept."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self._name, self._process = name, process
        self._rest: asyncio.Task[None] | None = None

    async def until(self, word: str) -> None:
        """Raises LabError when it ends before it has said this."""
        assert self._process.stdout is not None
        said = b""
        async with asyncio.timeout(READY_SECONDS):
            while word.encode() not in said:
                before, said = said, await self._process.stdout.readline()
                if not said:
                    raise LabError(f"{self._name} has ended: {before.decode(errors='replace').strip()}")
        self._rest = asyncio.create_task(self._read_on())

    async def _read_on(self) -> None:
        assert self._process.stdout is not None
        while await self._process.stdout.read(1 << 16):
            pass

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        if self._rest is not None:
            await self._rest


class RenewalAlone(System):
    name = "renewal-alone"
    how = (
        "Switches of others on the servers snoop DHCP by themselves, the rest learns MAC addresses; there is "
        "no controller. QEMU migrates the VM by itself, and the target's agent renews its lease."
    )

    def network(self) -> Topology:
        """The VM always gets the address by which it is asked."""
        plan = super().network()
        assert plan.dhcp is not None
        reservation = (Reservation(mac=MAC, address=IPv4Address(ADDRESS)),)
        return msgspec.structs.replace(plan, dhcp=msgspec.structs.replace(plan.dhcp, reservation=reservation))

    def bench(self, lab: LabHandle) -> Bench:
        return SnoopedBench(lab)

    async def before_boot(self, bench: Bench) -> None:
        assert isinstance(bench, SnoopedBench)
        await baseline.make_plain(bench.lab, ())
        for server in SERVERS:
            await bench.vsctl(server, "del-port", EDGE_BRIDGE, UPLINK)
            await self._agent(bench, server)

    async def _agent(self, bench: SnoopedBench, server: str) -> None:
        addresses = bench.topology.management_addresses
        peer = next(other for other in SERVERS if other != server)
        folder = bench.lab.directory / f"alone-{server}"
        folder.mkdir()
        configuration = folder / "agent.toml"
        configuration.write_text(
            CONFIGURATION.format(
                server=json.dumps(server),
                address=addresses[server].ip,
                port=PORT,
                folder=json.dumps(str(folder)),
                qmp=json.dumps(bench.door(server)),
                peer=peer,
                peer_address=addresses[peer].ip,
            )
        )
        command = ["-P", "-m", "retinue.cli.main", "agent", "run", "--config", str(configuration)]
        await bench.start(f"{server}'s agent", server, command, "agent.ready")

    async def after_migration(self, bench: Bench, source: str, target: str) -> None:
        await reached(bench, 30)
