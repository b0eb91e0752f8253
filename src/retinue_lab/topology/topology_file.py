"""Reading a topology file, and checking that its parts fit together."""

import re
from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

from retinue import config_file
from retinue_lab.errors import LabError
from retinue_lab.topology.topology import SANDBOX, Topology, node_of

DEFAULT_FILE = Path(__file__).parent / "topologies" / "default.toml"
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


ADDRESSES = (IPv4Address, IPv4Network, IPv6Address, IPv6Network)


def check(topology: Topology) -> None:
    """Raises LabError when the parts do not fit together."""
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
    if not topology.leaf:
        raise LabError("there must be a leaf")
    if len(topology.leaf) > 1 and not topology.spine:
        raise LabError("leaves are joined by spines: with more than one leaf there must be a spine")
    for subnet in topology.subnet:
        if subnet.gateway not in subnet.prefix:
            raise LabError(f"subnet {subnet.id}: gateway {subnet.gateway} is not inside {subnet.prefix}")
    leaves = {leaf.id for leaf in topology.leaf}
    for part in topology.attached:
        if part.leaf not in leaves:
            raise LabError(f"{node_of(part)}: leaf {part.leaf!r} is not among the leaves")
        topology.subnet_of(part.address)
    if topology.management.prefix.num_addresses < len(topology.nodes) + 3:
        raise LabError(
            f"management: {topology.management.prefix} is too small for {len(topology.nodes)} nodes"
        )
    _check_networks(topology)
    _check_ipv6(topology)
    _check_services(topology)
    if len({server.hypervisor for server in topology.server}) > 1:
        raise LabError("servers: all of them run the same hypervisor, a VM cannot move between two kinds")


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
        if dhcp.program == "kea-udp" and topology.relays_to(topology.leased) is None:
            raise LabError(
                f"dhcp: Kea with UDP sockets hears no broadcast; give it an address outside {prefix}, "
                f"then messages are relayed to it"
            )
    router, client = topology.router, topology.client
    if router is not None and router.outside_address not in router.outside:
        raise LabError(f"router: outside_address {router.outside_address} is not inside {router.outside}")
    if client is not None and (router is None or client.address not in router.outside):
        raise LabError(f"client: {client.address} must be inside the outside network of a router")


def _addresses(topology: Topology) -> Iterable[IPv4Address]:
    yield from (s.gateway for s in topology.subnet)
    yield from (part.address for part in topology.attached)
    if topology.router is not None:
        yield topology.router.outside_address
    if topology.client is not None:
        yield topology.client.address


def _unique(key: str, values: Iterable[str]) -> None:
    for value, times in Counter(values).items():
        if times > 1:
            raise LabError(f"{key} {value} is used {times} times")
