"""Reading a topology file, and checking that its parts fit together."""

import re
from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import msgspec

from retinue import config_file
from retinue_lab.errors import LabError
from retinue_lab.topology.topology import SANDBOX, Topology, node_of

DEFAULT_FILE = Path(__file__).parent / "topologies" / "default.toml"
STORAGE_MTU = 2158
"""Bytes after the Ethernet header of the longest frame of FCoE (FC-BB-5, 7.7)."""
IFNAME_MAX = 15
"""Longest name Linux takes for an interface (IFNAMSIZ - 1)."""


def load(file: Path | str | None = None) -> Topology:
    """Read a topology file (None: the default one), or one of ours by its name, such as "libvirt".

    Raises LabError that names the file and the key.
    """
    path = Path(file) if file is not None else DEFAULT_FILE
    if path.name == str(path) and not path.exists():
        ours = DEFAULT_FILE.with_name(f"{path}.toml")
        path = ours if ours.exists() else path
    try:
        topology = config_file.read(path, Topology, decode_hook)
    except config_file.ConfigError as error:
        raise LabError(f"topology {error}") from error
    try:
        check(topology)
    except LabError as error:
        raise LabError(f"topology {path}: {error}") from error
    return topology


def with_controllers(topology: Topology, controllers: int, databases: int | None) -> Topology:
    """With so many controllers, and servers of their database (None: as many as that needs).

    Raises LabError.
    """
    if controllers == 1 and databases is None:
        return topology
    shared = int(controllers > 1) if databases is None else databases
    found = msgspec.structs.replace(topology, controllers=controllers, databases=shared)
    check(found)
    return found


def encode_hook(value: Any) -> Any:
    """For msgspec: an address as the text people write."""
    if isinstance(value, ADDRESSES):
        return str(value)
    raise NotImplementedError(f"cannot encode {type(value).__name__}")


def decode_hook(kind: type, value: Any) -> Any:
    """For msgspec: the other way round."""
    if kind not in ADDRESSES:
        raise NotImplementedError(f"cannot decode {kind.__name__}")
    if not isinstance(value, str):
        raise ValueError(f"expected an address as text, got {value!r}")
    return kind(value)


ADDRESSES = (IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network)


def check(topology: Topology) -> None:
    """Raises LabError when the parts do not fit together."""
    if topology.controllers > 1 and not topology.databases:
        raise LabError("several controllers share a database: say how many servers it has (databases = 1)")
    if topology.databases and topology.other is not None:
        raise LabError("two domains have one controller each")
    if topology.other is not None:
        _check_domains(topology, topology.other)
        check(topology.other)
    switches = topology.switches
    _unique("id", [*topology.nodes, SANDBOX, *(s.id for s in switches)])
    _unique("dpid", [hex(s.dpid) for s in switches])
    _unique("mac", [topology.gateway_mac, *(part.mac for part in topology.attached)])
    _unique("address", [str(a) for a in _addresses(topology)])
    for name in (*topology.nodes, *(s.id for s in switches)):
        if not re.fullmatch(r"[a-z][a-z0-9]*", name):
            raise LabError(f"{name!r} is no usable id: lower-case letters and digits only")
    cables = (name for cable in topology.cables for name in (cable.a, cable.b))
    for port in (*cables, *(f"m-{node}" for node in topology.nodes)):
        if len(port) > IFNAME_MAX:
            raise LabError(f"ids too long: interface {port} would have more than {IFNAME_MAX} characters")
    if not topology.leaves:
        raise LabError("there must be a leaf")
    if topology.tor and (topology.leaf or topology.spine or topology.core or topology.dhcp):
        raise LabError("where a leaf is a router (tor) all are, and there is no DHCP server: VMs are static")
    _check_ends(topology)
    if len(topology.leaf) > 1 and not topology.spine and not topology.ends:
        raise LabError("leaves are joined by spines: with more than one leaf there must be a spine")
    pods = {one.pod for one in topology.spine}
    if topology.spine and {one.pod for one in topology.leaf} != pods:
        raise LabError("leaves are joined by the spines of their pod: each pod needs both")
    most = max(Counter(one.pod for one in topology.spine).values(), default=0)
    if (len(pods) > 1 or topology.core) and len(topology.core) < most:
        raise LabError(f"pods are joined by cores: with {most} spines in a pod there must be {most} cores")
    for subnet in topology.subnet:
        if subnet.gateway not in subnet.prefix:
            raise LabError(f"subnet {subnet.id}: gateway {subnet.gateway} is not inside {subnet.prefix}")
    leaves = set(topology.leaves)
    for part in topology.attached:
        if part.leaf not in leaves:
            raise LabError(f"{node_of(part)}: leaf {part.leaf!r} is not among the leaves")
    for server in topology.server:
        if server.second_leaf and (server.second_leaf not in leaves or server.second_leaf == server.leaf):
            raise LabError(
                f"{server.id}: its second leaf {server.second_leaf!r} is not another of the leaves"
            )
        if server.second_leaf and (server.given or not topology.spine):
            raise LabError(f"{server.id}: two uplinks are for leaves below spines, and are found, not given")
    for one in topology.addressed:
        topology.subnet_of(one.address)
    if topology.management.prefix.num_addresses < len(topology.nodes) + 3:
        raise LabError(
            f"management: {topology.management.prefix} is too small for {len(topology.nodes)} nodes"
        )
    _check_networks(topology)
    _check_ipv6(topology)
    _check_services(topology)
    if len({server.hypervisor for server in topology.server}) > 1:
        raise LabError("servers: all of them run the same hypervisor, a VM cannot move between two kinds")


def _check_ends(topology: Topology) -> None:
    """An IP network between leaves: each has an endpoint, in a prefix of its own, and a node for itself."""
    servers = {server.id for server in topology.server}
    for leaf in topology.leaf:
        if leaf.on and leaf.on not in servers:
            raise LabError(f"leaf {leaf.id}: there is no server {leaf.on} for it to stand on")
        if leaf.on and leaf.endpoint is None:
            raise LabError(f"leaf {leaf.id} on {leaf.on} needs an endpoint, by which others reach it")
    with_one = [leaf for leaf in topology.leaf if leaf.endpoint is not None]
    if not with_one:
        return
    if len(with_one) < len(topology.leaf) or topology.spine or topology.core or topology.other is not None:
        raise LabError("an IP network joins all leaves (endpoint), and no spines, in one domain; or none")
    if len(topology.ends) < len(with_one):
        raise LabError("leaves with an endpoint stand on different nodes (on)")
    networks = [leaf.endpoint.network for leaf in with_one if leaf.endpoint is not None]
    for n, network in enumerate(networks):
        if any(network.overlaps(other) for other in networks[:n]):
            raise LabError(f"endpoints: {network} overlaps another; between them there is a router")


def _check_domains(first: Topology, second: Topology) -> None:
    """Two domains in one laboratory have nothing in common but the link between them."""
    domains = (first, second)
    for domain, other in ((first, second), (second, first)):
        if domain.gateway is None or domain.gateway.domain != other.domain or not domain.domain:
            raise LabError("two domains: each needs its name (domain), and a gateway to the other")
    _unique("id", [*(name for domain in domains for name in domain.nodes), SANDBOX, "link"])
    _unique("id", [switch.id for domain in domains for switch in domain.switches])
    networks = [s.prefix for domain in domains for s in domain.subnet]
    networks += [domain.management.prefix for domain in domains]
    networks += [gateway.link_address.network for domain in domains for gateway in domain.gateways]
    for n, network in enumerate(networks):
        if any(network.overlaps(other) for other in networks[:n]):
            raise LabError(f"two domains: {network} overlaps another network")


def _check_networks(topology: Topology) -> None:
    networks = [(f"subnet {s.id}", s.prefix) for s in topology.subnet]
    networks.append(("management", topology.management.prefix))
    if topology.router is not None:
        networks.append(("outside", topology.router.outside))
    for n, (name, network) in enumerate(networks):
        for other_name, other in networks[:n]:
            if network.overlaps(other):
                raise LabError(f"{other_name} and {name} overlap: {other}, {network}")


def _check_ipv6(topology: Topology) -> None:
    router, client = topology.router, topology.client
    for subnet in topology.subnet6:
        if subnet.gateway not in subnet.prefix:
            raise LabError(f"subnet6 {subnet.id}: gateway {subnet.gateway} is not inside {subnet.prefix}")
    outside = None if router is None else router.outside6
    if router is not None and (outside is None) != (router.outside_address6 is None):
        raise LabError("router: outside6 and outside_address6 belong together")
    for what, address in (
        ("router: outside_address6", router and router.outside_address6),
        ("client: address6", client and client.address6),
    ):
        if address is not None and (outside is None or address not in outside):
            raise LabError(f"{what} {address} is not inside the router's outside6, {outside}")


def _check_services(topology: Topology) -> None:
    if (dhcp := topology.dhcp) is not None:
        prefix = topology.leased.prefix
        for address in (*dhcp.pool, *(r.address for r in dhcp.reservation)):
            if address not in prefix:
                raise LabError(f"dhcp: {address} is not inside {prefix}, the subnet of {dhcp.pool[0]}")
        if dhcp.pool[0] > dhcp.pool[1]:
            raise LabError(f"dhcp: the pool ends at {dhcp.pool[1]}, before it starts at {dhcp.pool[0]}")
    if topology.forwarder is not None:
        if topology.mtu < STORAGE_MTU:
            raise LabError(f"forwarder: storage frames need an mtu of {STORAGE_MTU}, it is {topology.mtu}")
        if topology.tor:
            raise LabError("forwarder: routers that are not ours (tor) forward no storage")
    router, client = topology.router, topology.client
    if router is not None and router.outside_address not in router.outside:
        raise LabError(f"router: outside_address {router.outside_address} is not inside {router.outside}")
    if client is not None and (router is None or client.address not in router.outside):
        raise LabError(f"client: {client.address} must be inside the outside network of a router")


def _addresses(topology: Topology) -> Iterable[IPv4Address]:
    yield from (s.gateway for s in topology.subnet)
    yield from (part.address for part in topology.addressed)
    if topology.router is not None:
        yield topology.router.outside_address
    if topology.client is not None:
        yield topology.client.address


def _unique(key: str, values: Iterable[str]) -> None:
    for value, times in Counter(values).items():
        if times > 1:
            raise LabError(f"{key} {value} is used {times} times")
