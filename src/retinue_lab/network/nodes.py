"""Namespaces, cables and addresses of the lab's nodes, and what can be seen of them afterwards.

The management network is a Linux bridge in the sandbox's root namespace with one cable to each node. All
other cables are veth pairs of the fabric; Open vSwitch in user space reads raw frames from them, so every
offload that would leave a frame's checksum or size unfinished is turned off.
"""

import asyncio
import json
import sys
from collections.abc import Iterable, Sequence

from retinue.core.model.link_local import link_local
from retinue_lab.errors import LabError
from retinue_lab.measure import arp
from retinue_lab.network import tor_routers
from retinue_lab.processes.processes import run
from retinue_lab.topology.parts import Addressed, RouterPart, ServerPart
from retinue_lab.topology.topology import (
    CLIENT,
    DHCP,
    EDGE_BRIDGE,
    OUTER_BRIDGE,
    ROUTER,
    SANDBOX,
    TRANSIT,
    Topology,
    node_of,
)

MANAGEMENT_NIC = "mgmt0"
OFFLOADS = "rx off tx off sg off tso off gso off gro off"
ANNOUNCE_TRIES = 12

SYSCTLS = {
    "net/ipv6/conf/all/disable_ipv6": 1,
    "net/ipv6/conf/default/disable_ipv6": 1,
    # A NIC that is a port of a bridge must not answer ARP for the bridge's address.
    "net/ipv4/conf/all/arp_ignore": 1,
    "net/ipv4/conf/all/rp_filter": 0,
    "net/ipv4/conf/default/rp_filter": 0,
    "net/ipv4/conf/all/send_redirects": 0,
    "net/ipv4/conf/default/send_redirects": 0,
}


async def create(topology: Topology) -> None:
    """Make every namespace and cable, and bring them up with their addresses, but for the bridges' own."""
    await run(["ip", "-batch", "-"], text="\n".join(_skeleton(topology)) + "\n")
    await asyncio.gather(*(_configure(topology, node) for node in (SANDBOX, *topology.nodes)))


def _skeleton(topology: Topology) -> Iterable[str]:
    yield "link set lo up"
    yield f"link add {topology.management_bridge} type bridge forward_delay 0"
    for node in topology.nodes:
        yield f"netns add {node}"
        yield f"link add {_management_port(node)} type veth peer name {MANAGEMENT_NIC} netns {node}"
    for cable in topology.cables:
        address = f"address {cable.a_mac}" if cable.a_mac else ""
        yield (
            f"link add {cable.a} netns {cable.a_node} {address} mtu {cable.mtu} "
            f"type veth peer name {cable.b} netns {cable.b_node} mtu {cable.mtu}"
        )


def _management_port(node: str) -> str:
    return f"m-{node}"


async def _configure(topology: Topology, node: str) -> None:
    batch = "\n".join(_links_and_addresses(topology, node))
    sysctls = SYSCTLS | {"net/ipv4/ip_forward": int(node in (ROUTER, TRANSIT))}
    if any(tor.id == node for tor in topology.tor):
        sysctls |= tor_routers.SYSCTLS
    if topology.subnet6 and node in (ROUTER, CLIENT):
        sysctls |= {key: 0 for key in sysctls if key.endswith("disable_ipv6")}
        sysctls |= {"net/ipv6/conf/all/forwarding": int(node == ROUTER)}
    script = [f"echo {value} > /proc/sys/{key}" for key, value in sysctls.items()]
    script += [f"ethtool -K {nic} {OFFLOADS} > /dev/null" for nic in _fabric_nics(topology, node)]
    script += ["ip -batch -"]
    await run(["sh", "-ec", "\n".join(script)], node=node, text=batch + "\n")


def _fabric_nics(topology: Topology, node: str) -> list[str]:
    ends = [(c.a_node, c.a) for c in topology.cables] + [(c.b_node, c.b) for c in topology.cables]
    return [nic for where, nic in ends if where == node]


def _links_and_addresses(topology: Topology, node: str) -> Iterable[str]:
    management = topology.management_addresses[node]
    if node == SANDBOX:
        yield from (
            f"link set {_management_port(n)} master {topology.management_bridge} up" for n in topology.nodes
        )
        yield f"address add {management} dev {topology.management_bridge}"
        yield f"link set {topology.management_bridge} up"
        return
    yield "link set lo up"
    yield f"address add {management} dev {MANAGEMENT_NIC}"
    yield f"link set {MANAGEMENT_NIC} up"
    yield from (f"link set {nic} up" for nic in _fabric_nics(topology, node))
    router, client, dhcp = topology.router, topology.client, topology.dhcp
    if node == DHCP and dhcp is not None:
        yield from _into_fabric(topology, dhcp, "eth0")
    for cache in topology.cache:
        if cache.id == node:
            yield from _into_fabric(topology, cache, "eth0")
    if node == ROUTER and router is not None:
        yield from _router(topology, router)
    if node == TRANSIT:
        networks = {end: leaf.endpoint.network for end, leaf in topology.ends.items() if leaf.endpoint}
        yield from (f"address add {net[1]}/{net.prefixlen} dev {end}" for end, net in networks.items())
    if any(tor.id == node for tor in topology.tor):
        yield from tor_routers.configuration(topology, node)
    if node == CLIENT and client is not None and router is not None:
        yield f"address add {client.address}/{router.outside.prefixlen} dev eth0"
        yield f"route add default via {router.outside_address}"
        if client.address6 is not None and router.outside6 is not None:
            yield f"address add {client.address6}/{router.outside6.prefixlen} dev eth0 nodad"
            yield f"route add default via {router.outside_address6}"


def _router(topology: Topology, router: RouterPart) -> Iterable[str]:
    own = topology.subnet_of(router.address)
    yield f"address add {router.address}/{own.prefix.prefixlen} dev eth0"
    yield from (f"route add {s.prefix} via {own.gateway}" for s in topology.subnet if s.id != own.id)
    if topology.client is not None:
        yield f"address add {router.outside_address}/{router.outside.prefixlen} dev out0"
        if router.outside6 is not None:
            yield f"address add {router.outside_address6}/{router.outside6.prefixlen} dev out0 nodad"
    gateway = link_local(topology.gateway_mac)
    yield from (f"route add {s.prefix} via {gateway} dev eth0" for s in topology.subnet6)


def _into_fabric(topology: Topology, part: Addressed, nic: str) -> Iterable[str]:
    subnet = topology.subnet_of(part.address)
    yield f"address add {part.address}/{subnet.prefix.prefixlen} dev {nic}"
    yield f"link set {nic} up"
    yield f"route add default via {subnet.gateway}"


async def configure_server(topology: Topology, server: ServerPart) -> None:
    """Give a server its address; its own IP stack sits on its edge switch's LOCAL port, which must exist."""
    batch = "\n".join(_into_fabric(topology, server, EDGE_BRIDGE))
    script = f"ethtool -K {EDGE_BRIDGE} {OFFLOADS} > /dev/null 2>&1 || true; exec ip -batch -"
    await run(["sh", "-c", script], node=server.id, text=batch + "\n")


async def configure_endpoint(topology: Topology, node: str) -> None:
    """Give the node's leaf its address on the IP network that joins leaves; its bridge there must exist.

    The switch learns the router's MAC from its answer: in user space it drops tunnels' packets until then.
    """
    endpoint = topology.ends[node].endpoint
    assert endpoint is not None
    router = endpoint.network[1]
    ends = [leaf.endpoint for leaf in topology.ends.values() if leaf.endpoint is not None]
    batch = [f"address add {endpoint} dev {OUTER_BRIDGE}", f"link set {OUTER_BRIDGE} up"]
    batch += [f"route add {other.network} via {router}" for other in ends if other != endpoint]
    script = f"ethtool -K {OUTER_BRIDGE} {OFFLOADS} > /dev/null 2>&1 || true; exec ip -batch -"
    await run(["sh", "-c", script], node=node, text="\n".join(batch) + "\n")
    asks = [sys.executable, "-I", "-S", arp.__file__, OUTER_BRIDGE, str(endpoint.ip), str(router)]
    await run([*asks, str(ANNOUNCE_TRIES)], node=node)


async def announce_servers(topology: Topology) -> dict[str, bool]:
    """Each machine on a leaf asks for its gateway by ARP, as it would before its first packet.

    This is how the controller finds where it is. Returns for each node whether an answer came.
    """

    async def announce(part: Addressed) -> bool:
        nic = EDGE_BRIDGE if isinstance(part, ServerPart) else "eth0"
        gateway = topology.subnet_of(part.address).gateway
        program = [sys.executable, "-I", "-S", arp.__file__]
        try:
            await run(
                [*program, nic, str(part.address), str(gateway), str(ANNOUNCE_TRIES)], node=node_of(part)
            )
        except LabError:
            return False
        return True

    parts = topology.addressed
    answers = await asyncio.gather(*(announce(part) for part in parts))
    return dict(zip(map(node_of, parts), answers, strict=True))


async def interfaces(nodes: Sequence[str]) -> dict[str, tuple[list[str], list[str]]]:
    """Names of the interfaces and the addresses of each node, lo left out."""

    async def of(node: str) -> tuple[list[str], list[str]]:
        found = json.loads(await run(["ip", "-json", "address"], node=node))
        links = [link for link in found if link["ifname"] != "lo"]
        addresses = [f"{a['local']}/{a['prefixlen']}" for link in links for a in link["addr_info"]]
        return [link["ifname"] for link in links], addresses

    return dict(zip(nodes, await asyncio.gather(*map(of, nodes)), strict=True))
