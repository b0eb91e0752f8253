"""The link between two domains: a router of its own, with delay and loss, and the tunnel that goes over it.

Everything that one domain's machines say to the other's goes through it: the controllers', the agents', and
the tunnel of the gateways. Delay and loss are those of the tunnel's cable to the first domain (see wire).
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from retinue_lab.network import wire as wire_program
from retinue_lab.network.nodes import MANAGEMENT_NIC, OFFLOADS
from retinue_lab.processes.processes import Supervisor, run
from retinue_lab.topology.parts import GatewayPart, LinkPart
from retinue_lab.topology.topology import TUNNEL, Topology

ROUTER = "link"
WIRE = wire_program.__file__
LINK_NIC = "link0"
VXLAN_BYTES = 50
"""What the tunnel puts before each frame."""
VNI, VXLAN_PORT = 7, 4789
WIRE_OUT, WIRE_IN = "wire-out", "wire-in"
"""The wire's ends in the router's node: to the first domain's gateway, and to the router."""


async def join(first: Topology, supervisor: Supervisor, counts: Path) -> None:
    """Make the router, the cables to it, and the tunnel. The domains' own nodes are there.

    `counts`: the file in which the wire counts frames.
    """
    second, link = first.other, first.link or LinkPart()
    assert second is not None
    await run(["ip", "-batch", "-"], text="\n".join(_cables(first, second)) + "\n")
    await run(["sh", "-ec", "\n".join(_router(first, second))], node=ROUTER)
    wire = [WIRE_OUT, WIRE_IN, str(link.delay_ms), str(link.loss_percent), str(counts)]
    await supervisor.start("wire", ROUTER, [sys.executable, "-I", "-S", str(WIRE), *wire])
    for here, there in ((first, second), (second, first)):
        for node in here.nodes:
            way = f"ip route add {there.management.prefix} via {_router_at(here)} dev {MANAGEMENT_NIC}"
            await run(["sh", "-ec", way], node=node)
        for gateway, other in zip(here.gateways, there.gateways, strict=True):
            await run(["sh", "-ec", "\n".join(_tunnel(here, gateway, other))], node=gateway.id)


def _cables(*domains: Topology) -> Iterable[str]:
    yield f"netns add {ROUTER}"
    for domain in domains:
        bridge = domain.management_bridge
        yield f"link add m-{ROUTER}-{domain.domain} type veth peer name {bridge} netns {ROUTER}"
        yield f"link set m-{ROUTER}-{domain.domain} master {bridge} up"
        for gateway in domain.gateways:
            mtu = domain.mtu + VXLAN_BYTES
            end = WIRE_OUT if domain.link is not None else gateway.id
            yield (
                f"link add {end} netns {ROUTER} mtu {mtu} "
                f"type veth peer name {LINK_NIC} netns {gateway.id} mtu {mtu}"
            )
            if end == WIRE_OUT:
                yield (
                    f"link add {WIRE_IN} netns {ROUTER} mtu {mtu} "
                    f"type veth peer name {gateway.id} netns {ROUTER} mtu {mtu}"
                )


def _router_at(domain: Topology) -> str:
    prefix = domain.management.prefix
    return str(prefix[prefix.num_addresses - 3])


def _router(first: Topology, second: Topology) -> Iterable[str]:
    yield "echo 1 > /proc/sys/net/ipv4/ip_forward"
    yield "echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 0 > /proc/sys/net/ipv4/conf/default/rp_filter"
    yield "ip link set lo up"
    yield from (line for end in (WIRE_OUT, WIRE_IN) for line in _up(end))
    for domain in (first, second):
        bridge, prefix = domain.management_bridge, domain.management.prefix
        yield f"ip address add {_router_at(domain)}/{prefix.prefixlen} dev {bridge}"
        yield from _up(bridge)
        for gateway in domain.gateways:
            network = gateway.link_address.network
            yield f"ip address add {network[1]}/{network.prefixlen} dev {gateway.id}"
            yield from _up(gateway.id)


def _up(nic: str) -> Iterable[str]:
    yield f"ethtool -K {nic} {OFFLOADS} > /dev/null"
    yield f"ip link set {nic} up"


def _tunnel(here: Topology, gateway: GatewayPart, other: GatewayPart) -> Iterable[str]:
    own, network = gateway.link_address, gateway.link_address.network
    yield f"ethtool -K {LINK_NIC} {OFFLOADS} > /dev/null"
    yield f"ip address add {own} dev {LINK_NIC}"
    yield f"ip link set {LINK_NIC} up"
    yield f"ip route add {other.link_address.network} via {network[1]}"
    yield (
        f"ip link add {TUNNEL} mtu {here.mtu} type vxlan id {VNI} local {own.ip} "
        f"remote {other.link_address.ip} dstport {VXLAN_PORT} nolearning"
    )
    yield f"ethtool -K {TUNNEL} {OFFLOADS} > /dev/null 2>&1 || true"
    yield f"ip link set {TUNNEL} up"
