"""B4, S2.4: a binding that a switch has made by itself, under our controller, on real parts.

At server1's port of the VM the independent switch of the tests snoops DHCP, beside a dnsmasq of that server,
which the VM's client asks; our controller sees nothing of it, and the network has no DHCP server. What the
switch has in its table an adapter reports: it reads the switch's control port, and asks REST.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from retinue.host.taps import tap_name
from retinue_lab.network import snooping_switch
from retinue_lab.network.nodes import OFFLOADS
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology_file import load
from support.lab.foreign_vm import Said, program
from support.lab.start import addressed, lab_of
from support.lab.tools import BOOT_PATIENCE, Events, Json, LabBench, at, mac_of

pytestmark = pytest.mark.lab

VM, TAP, MAC = "vm1", tap_name("vm1"), mac_of("vm1")
NEIGHBOUR, NEIGHBOURS = "vm2", "10.1.0.50"
DHCP, FIRST, LAST = "10.1.0.3", "10.1.0.150", "10.1.0.159"
TRUSTED = "snoop0"

_TO_DHCP = f"""
ip link add {TRUSTED} type veth peer name dhcp0
for nic in {TRUSTED} dhcp0; do
    ethtool -K $nic {OFFLOADS} > /dev/null
    ip link set $nic up
done
ip address add {DHCP}/24 dev dhcp0
"""
_DNSMASQ = ("dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--user=root", "--interface=dhcp0",
            "--bind-interfaces", "--no-ping", "--dhcp-authoritative", f"--dhcp-range={FIRST},{LAST},10m",
            "--dhcp-option=option:router,10.1.0.254")  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    network = msgspec.structs.replace(load(None), dhcp=None)
    with lab_of(tmp_path_factory.mktemp("labs"), network) as handle:
        yield handle


class SnoopedPort:
    """The switch at a server's port of the VM, and its adapter."""

    def __init__(self, bench: LabBench, edge: str, control: Path, said: Said) -> None:
        self.edge, self.said = edge, said
        self._bench, self._control = bench, control

    async def table(self, **asked: object) -> list[Json]:
        """What it has, once it has done what is asked."""
        reader, writer = await asyncio.open_unix_connection(self._control)
        with contextlib.closing(writer):
            writer.write(json.dumps({"do": "rows", **asked}).encode() + b"\n")
            return list(json.loads(await reader.readline())["rows"])

    async def reported(self, **asked: object) -> dict[str, str]:
        """Why each row is not believed, by address, when the whole table has been reported."""
        return await report(self._bench, self.edge, await self.table(**asked))


async def report(bench: LabBench, edge: str, rows: list[Json]) -> dict[str, str]:
    answer = await bench.post(f"switches/{edge}/rows", {"rows": rows})
    return {row["ip"]: row["rejected"] for row in answer["rows"]}


@contextlib.asynccontextmanager
async def snooping(bench: LabBench, server: str, *, with_dhcp: bool = False) -> AsyncIterator[SnoopedPort]:
    """The VM has its port there."""
    edge = (await bench.server(server))["edge"]
    control = bench.lab.directory / f"{server}.table"
    argv = [sys.executable, "-u", "-I", "-S", snooping_switch.__file__, "--vm-port", TAP]
    async with contextlib.AsyncExitStack() as stack:
        await bench.run(server, "sh", "-ec", _TO_DHCP)
        if with_dhcp:
            leases = f"--dhcp-leasefile={bench.lab.directory / 'dnsmasq.leases'}"
            await program(bench.lab, server, *_DNSMASQ, leases, stack=stack)
        more = ["--trusted", TRUSTED, "--control", str(control)]
        said = await program(bench.lab, server, *argv, *more, stack=stack)
        await said.until(lambda e: bool(e["event"] == "ready"))
        yield SnoopedPort(bench, edge, control, said)


async def test_a_switchs_own_row_is_judged_lets_the_vm_in_and_migrates(bench: LabBench) -> None:
    async with bench.events() as events:
        await bench.post("vms", [at(VM, "server1"), at(NEIGHBOUR, "server2", NEIGHBOURS)])
        await started(events, VM)
        await started(events, NEIGHBOUR)
        async with snooping(bench, "server1", with_dhcp=True) as here:
            made = await here.said.until(lambda e: bool(e["event"] == "bound"), timeout=BOOT_PATIENCE)
            address = made["ip"]
            await addressed(bench, VM)
            assert await bench.bindings(VM) == []
            assert not await bench.ping(VM, NEIGHBOURS), "nobody has told our switch yet"
            assert await here.reported() == {address: ""}
            await binds(bench, address, "edge1")
            assert await bench.ping(VM, NEIGHBOURS)
            # What the switch says of others, and of other ports, is believed no more than anybody's word.
            forged = {"do": "store", "mac": MAC, "ip": NEIGHBOURS, "port": TAP, "seconds_left": 60.0}
            assert "VM vm2" in (await here.reported(**forged))[NEIGHBOURS]
            elsewhere = {"do": "store", "mac": mac_of(NEIGHBOUR), "ip": "10.1.0.60", "port": TAP}
            said = await here.reported(**elsewhere, seconds_left=60.0)
            assert said["10.1.0.60"] == "VM vm2 is at switch edge2, not at edge1"
            assert said[address] == ""
            left = await here.table()
            async with bench.traffic(address) as traffic:
                await bench.migration(VM, target_server="server2")
                await binds(bench, address, "edge2")
                # With its port the switch there goes; what is still said of it, or cleared, ends nothing.
                said = await report(bench, "edge1", left)
                assert said[address] == "VM vm1 is at switch edge2, not at edge1"
                assert await report(bench, "edge1", []) == {}
                await binds(bench, address, "edge2")
                print(await bench.unharmed(traffic))
        async with snooping(bench, "server2") as there:
            row = {"mac": MAC, "ip": address, "port": TAP}
            assert await there.reported(do="store", **row, seconds_left=300.0) == {address: ""}
            assert await bench.ping(VM, NEIGHBOURS)
            assert await there.reported(do="delete", **row) == {}
            ended = await events.until("binding.removed", lambda e: e["ip"] == address)
            assert ended["reason"] == "the switch that had made it has it no longer"
            assert not await bench.ping(VM, NEIGHBOURS), "it is let in no more"


async def started(events: Events, vm: str) -> None:
    await events.until("vm.started", lambda e: e["vm"]["id"] == vm, timeout=BOOT_PATIENCE)


async def binds(bench: LabBench, address: str, edge: str) -> None:
    (row,) = await bench.bindings(VM)
    assert (row["ip"], row["mac"], row["switch"], row["origin"]) == (address, MAC, edge, "switch")
    flows = await bench.flows(edge, "table=0", f"nw_src={address} ")
    assert flows, "its own entry lets it in"
