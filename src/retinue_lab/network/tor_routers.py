"""Leaves that are routers and not ours: what an operator sets on each, and the adapter beside it.

Each is the kernel of a node. It has the gateway's MAC and addresses on its ports to machines, a route to each
of these, and to those of other routers by the cable between the two; it knows no VM but by the adapter's
routes.
"""

import sys
from collections.abc import Iterable

from retinue.southbound.routers import linux_router
from retinue_lab.topology.parts import RouterPart
from retinue_lab.topology.topology import Topology, fabric_port, node_of

SYSCTLS = {
    "net/ipv4/ip_forward": 1,
    # Servers are neighbours to each other only by its ports.
    "net/ipv4/conf/all/proxy_arp": 1,
}


def adapter(router: str) -> list[str]:
    """What starts it, where an operator has `ssh ROUTER`."""
    return ["ip", "netns", "exec", router, sys.executable, "-I", "-S", linux_router.__file__]


def configuration(topology: Topology, router: str) -> Iterable[str]:
    """For `ip -batch`: its own addresses and routes."""
    for part in topology.attached:
        if part.leaf == router:
            port = fabric_port(router, node_of(part))
            yield f"link set {port} address {topology.gateway_mac}"
            yield from (f"address add {subnet.gateway}/32 dev {port}" for subnet in topology.subnet)
    ids = [tor.id for tor in topology.tor]
    for other in ids:
        if other != router:
            yield f"address add {_on_cable(ids, router, other)}/24 dev {fabric_port(router, other)}"
    for part in topology.addressed:
        here = part.leaf == router
        port = fabric_port(router, node_of(part) if here else part.leaf)
        by = f"dev {port}" if here else f"via {_on_cable(ids, part.leaf, router)} dev {port}"
        source = f"src {topology.subnet_of(part.address).gateway}" if here else ""
        yield f"route add {part.address}/32 {by} {source}"
        if isinstance(part, RouterPart):
            yield f"route add default {f'via {part.address} dev {port} onlink' if here else by}"


def _on_cable(ids: list[str], router: str, other: str) -> str:
    """A router's address on its cable to another one."""
    low, high = sorted((ids.index(router), ids.index(other)))
    return f"172.16.{16 * low + high}.{1 + (ids.index(router) == high)}"
