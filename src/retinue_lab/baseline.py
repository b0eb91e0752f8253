"""The baseline: the lab's network as it is without a controller, and the same migration in it.

Every switch learns addresses by itself, along a tree without loops, and every edge has static port security
(DHCP snooping and IP source guard): it lets a VM's frames in only by the port, MAC and IP in its own table,
which was written where the VM was when it got its address. A VM that is migrated is then cut off: the problem
the controller is there for.
"""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass

from retinue.host.taps import tap_name
from retinue_lab.network import switches
from retinue_lab.processes.processes import run
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology import CONTROLLER, EDGE_BRIDGE, ROUTER, UPLINK, Bridge, Topology

PROTOCOL = ("-O", "OpenFlow14")


@dataclass(frozen=True, slots=True)
class Bound:
    """A row of an edge's static table: this VM sends from this server's port with this MAC and IP only."""

    server: str
    vm: str
    mac: str
    ip: str


async def make_plain(lab: LabHandle, bound: Iterable[Bound]) -> None:
    """End the controller and turn every switch of the lab into a plain one. Run inside the sandbox."""
    await asyncio.to_thread(_end_controller, lab)
    topology = lab.topology
    await asyncio.gather(*(_make_plain(topology, bridge) for bridge in topology.switches))
    await _route(topology)
    for row in bound:
        await bind(row)


def _end_controller(lab: LabHandle) -> None:
    for daemon in lab.daemons():
        if daemon.name == CONTROLLER and daemon.running:
            lab.kill(daemon.pid)
            lab.request(do="wait", pid=daemon.pid)


async def _make_plain(topology: Topology, bridge: Bridge) -> None:
    env = switches.env(bridge.node)
    name = bridge.bridge
    await run(["ovs-vsctl", "del-controller", name], node=bridge.node, env=env)
    for clear in (["del-flows"], ["del-groups"], ["del-meters"]):
        await run(["ovs-ofctl", *PROTOCOL, *clear, name], node=bridge.node, env=env)
    await run(
        ["ovs-ofctl", *PROTOCOL, "add-flows", name, "-"],
        node=bridge.node,
        env=env,
        text="\n".join(plain_flows(topology, bridge)) + "\n",
    )
    await run(["ovs-appctl", "fdb/flush", name], node=bridge.node, env=env)


def plain_flows(topology: Topology, bridge: Bridge) -> list[str]:
    """Without flows a switch drops: so do all spines but the first of each pod, and all cores but the first,
    that nothing goes round in circles."""
    first = {spine.pod: spine.id for spine in reversed(topology.spine)}
    match bridge.role:
        case "core" | "spine" if bridge.id not in (*first.values(), *(core.id for core in topology.core[:1])):
            return ["priority=0,actions=drop"]
        case "edge":  # Trusted: the fabric and the server itself. All other ports are VMs'.
            trusted = (f"priority=10,in_port={port},actions=NORMAL" for port in (UPLINK, "LOCAL"))
            return [*trusted, "priority=0,actions=drop"]
        case _:
            return ["priority=0,actions=NORMAL"]


async def _route(topology: Topology) -> None:
    """The gateway of all subnets, till now in every switch, is now the router alone, with the same MAC."""
    router = topology.router
    if router is None:
        return
    own = topology.subnet_of(router.address)
    batch = [f"link set eth0 address {topology.gateway_mac}"]
    for subnet in topology.subnet:
        if subnet.id != own.id:
            batch.append(f"route del {subnet.prefix} via {own.gateway}")
        batch.append(f"address add {subnet.gateway}/{subnet.prefix.prefixlen} dev eth0")
    batch.append("neigh flush dev eth0")
    await run(["ip", "-batch", "-"], node=ROUTER, text="\n".join(batch) + "\n")


async def bind(row: Bound) -> None:
    """Write a row into the table of the edge of its server, where the VM must have its port."""
    port = await port_number(row.server, row.vm)
    own = f"priority=20,in_port={port},dl_src={row.mac}"
    flows = [
        f"{own},ip,nw_src={row.ip},actions=NORMAL",
        f"{own},arp,arp_sha={row.mac},arp_spa={row.ip},actions=NORMAL",
    ]
    await run(
        ["ovs-ofctl", *PROTOCOL, "add-flows", EDGE_BRIDGE, "-"],
        node=row.server,
        env=switches.env(row.server),
        text="\n".join(flows) + "\n",
    )


async def port_number(server: str, vm: str) -> int:
    """The number by which the server's edge switch calls the VM's tap. Raises LabError when it has none."""
    output = await run(
        ["ovs-vsctl", "get", "interface", tap_name(vm), "ofport"], node=server, env=switches.env(server)
    )
    return int(json.loads(output))
