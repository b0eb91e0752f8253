"""What the laboratory builds, read from a TOML file: subnets, switches, servers, DHCP server, router, client.

Everything derived from it, names of ports and addresses on the management network among them, is derived
here once, so that the builder, the controller's configuration and the tests agree. `topologies/default.toml`
is the file to read first.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from retinue.lab.errors import LabError

DEFAULT_FILE = Path(__file__).parent / "topologies" / "default.toml"
SANDBOX = "sandbox"
"""The sandbox's own root namespace; carries the management bridge."""
FABRIC = "fabric"
"""The node whose one vswitchd runs all leaves and spines."""
CONTROLLER = "controller"
DHCP = "dhcp"
ROUTER = "router"
CLIENT = "client"
UPLINK = "up0"
"""A server's NIC, a port of its edge switch."""
EDGE_BRIDGE = "br0"
OPENFLOW_PORT, OVSDB_PORT, REST_PORT = 6653, 6640, 8080
QEMU = "qemu"
LIBVIRT = "libvirt"
IFNAME_MAX = 15
"""Longest name Linux takes for an interface (IFNAMSIZ - 1)."""

Mac = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")]
Dpid = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
Seconds = Annotated[int, msgspec.Meta(ge=1, le=(1 << 32) - 1)]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the file. A key that is not known is an error, not ignored."""


class SubnetPart(_Part, frozen=True, kw_only=True):
    id: str
    prefix: IPv4Network
    gateway: IPv4Address


class SwitchPart(_Part, frozen=True, kw_only=True):
    """A leaf or a spine."""

    id: str
    dpid: Dpid


class ServerPart(_Part, frozen=True, kw_only=True):
    """A server that runs VMs on an edge switch of its own."""

    id: str
    leaf: str
    mac: Mac
    address: IPv4Address
    edge: str
    dpid: Dpid
    given: bool = False
    """True: the controller is told the server's leaf port instead of finding it by ARP (row D7)."""
    hypervisor: Literal["qemu", "libvirt"] = "qemu"
    """Who runs its VMs: the VM driver's own QEMUs, or a libvirtd of the server."""


class Reservation(_Part, frozen=True, kw_only=True):
    mac: Mac
    address: IPv4Address


class DhcpPart(_Part, frozen=True, kw_only=True):
    leaf: str
    mac: Mac
    address: IPv4Address
    pool: tuple[IPv4Address, IPv4Address]
    lease_seconds: Seconds
    reservation: tuple[Reservation, ...] = ()
    given: bool = False


class RouterPart(_Part, frozen=True, kw_only=True):
    leaf: str
    mac: Mac
    address: IPv4Address
    outside: IPv4Network
    outside_address: IPv4Address
    given: bool = False


class ClientPart(_Part, frozen=True, kw_only=True):
    address: IPv4Address


class ManagementPart(_Part, frozen=True, kw_only=True):
    prefix: IPv4Network


class Bridge(msgspec.Struct, frozen=True):
    """An Open vSwitch bridge, switch `id`, on `node`; `ports` in the order of their numbers, from 1."""

    id: str
    node: str
    bridge: str
    role: str
    dpid: int
    ports: tuple[str, ...]


class Veth(msgspec.Struct, frozen=True):
    """A cable: interface `a` in `a_node`, `b` in `b_node`. `a_mac` is set on end a ("": whatever comes)."""

    a_node: str
    a: str
    b_node: str
    b: str
    a_mac: Mac = ""


class Topology(_Part, frozen=True, kw_only=True):
    gateway_mac: Mac
    subnet: tuple[SubnetPart, ...]
    spine: tuple[SwitchPart, ...] = ()
    leaf: tuple[SwitchPart, ...]
    server: tuple[ServerPart, ...]
    management: ManagementPart
    dhcp: DhcpPart | None = None
    router: RouterPart | None = None
    client: ClientPart | None = None

    # ---- names ----

    @property
    def nodes(self) -> tuple[str, ...]:
        """All nodes that have a namespace, the controller first."""
        parts = ((DHCP, self.dhcp), (ROUTER, self.router), (CLIENT, self.client))
        return (
            CONTROLLER,
            FABRIC,
            *(s.id for s in self.server),
            *(name for name, part in parts if part is not None),
        )

    @property
    def management_addresses(self) -> dict[str, IPv4Interface]:
        """Address of each node, and of the sandbox, on the management network."""
        prefix = self.management.prefix
        numbers = {node: n for n, node in enumerate(self.nodes, 1)} | {SANDBOX: prefix.num_addresses - 2}
        return {node: IPv4Interface((prefix[n], prefix.prefixlen)) for node, n in numbers.items()}

    @property
    def controller_url(self) -> str:
        return f"https://{self.management_addresses[CONTROLLER].ip}:{REST_PORT}"

    @property
    def attached(self) -> tuple[ServerPart | DhcpPart | RouterPart, ...]:
        """Every machine on a leaf's port."""
        return (*self.server, *(part for part in (self.dhcp, self.router) if part is not None))

    @property
    def switches(self) -> tuple[Bridge, ...]:
        spines = (
            Bridge(
                s.id, FABRIC, s.id, "spine", s.dpid, tuple(fabric_port(s.id, leaf.id) for leaf in self.leaf)
            )
            for s in self.spine
        )
        leaves = (
            Bridge(
                leaf.id,
                FABRIC,
                leaf.id,
                "leaf",
                leaf.dpid,
                (
                    *(fabric_port(leaf.id, s.id) for s in self.spine),
                    *(fabric_port(leaf.id, node_of(part)) for part in self.attached if part.leaf == leaf.id),
                ),
            )
            for leaf in self.leaf
        )
        edges = (Bridge(s.edge, s.id, EDGE_BRIDGE, "edge", s.dpid, (UPLINK,)) for s in self.server)
        return (*spines, *leaves, *edges)

    @property
    def cables(self) -> tuple[Veth, ...]:
        """Every cable of the fabric and of the outside network; the management network is not among them."""
        cables = [
            Veth(FABRIC, fabric_port(leaf.id, spine.id), FABRIC, fabric_port(spine.id, leaf.id))
            for leaf in self.leaf
            for spine in self.spine
        ]
        for part in self.attached:
            node = node_of(part)
            nic = (UPLINK, "") if isinstance(part, ServerPart) else ("eth0", part.mac)
            cables.append(Veth(node, nic[0], FABRIC, fabric_port(part.leaf, node), nic[1]))
        if self.client is not None:
            cables.append(Veth(ROUTER, "out0", CLIENT, "eth0"))
        return tuple(cables)

    @property
    def leased(self) -> SubnetPart:
        """The subnet whose addresses the DHCP server gives. It may be in another, and is relayed to then."""
        if self.dhcp is None:
            raise LabError("this topology has no DHCP server")
        return self.subnet_of(self.dhcp.pool[0])

    def relays_to(self, subnet: SubnetPart) -> list[str] | None:
        """DHCP servers of other subnets to which messages of this one's VMs are relayed, None for no such."""
        dhcp = self.dhcp
        if dhcp is None or self.leased.id != subnet.id or dhcp.address in subnet.prefix:
            return None
        return [str(dhcp.address)]

    def subnet_of(self, address: IPv4Address) -> SubnetPart:
        found = next((s for s in self.subnet if address in s.prefix), None)
        if found is None:
            raise LabError(f"address {address} is in none of the subnets")
        return found


def fabric_port(switch: str, other: str) -> str:
    """Name of the switch's port that leads to `other`."""
    return f"{switch}-{other}"


def node_of(part: ServerPart | DhcpPart | RouterPart) -> str:
    match part:
        case ServerPart():
            return part.id
        case DhcpPart():
            return DHCP
        case RouterPart():
            return ROUTER


# ---- reading ----


def load(file: Path | str | None = None) -> Topology:
    """Read a topology file (None: the default one), or one of ours by its name, such as "libvirt".

    Raises LabError that names the file and the key.
    """
    path = Path(file) if file is not None else DEFAULT_FILE
    if path.name == str(path) and not path.exists():
        ours = DEFAULT_FILE.with_name(f"{path}.toml")
        path = ours if ours.exists() else path
    try:
        text = path.read_text()
    except OSError as error:
        raise LabError(f"topology {path}: {error.strerror}") from error
    try:
        return _check(msgspec.convert(tomllib.loads(text), Topology, dec_hook=decode_hook))
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, LabError) as error:
        raise LabError(f"topology {path}: {error}") from error


def encode_hook(value: Any) -> Any:
    """For msgspec: an address as the text people write."""
    if isinstance(value, IPv4Address | IPv4Network):
        return str(value)
    raise NotImplementedError(f"cannot encode {type(value).__name__}")


def decode_hook(kind: type, value: Any) -> Any:
    """For msgspec: the other way round."""
    if kind not in (IPv4Address, IPv4Network):
        raise NotImplementedError(f"cannot decode {kind.__name__}")
    if not isinstance(value, str):
        raise ValueError(f"expected an address as text, got {value!r}")
    return kind(value)


def _check(topology: Topology) -> Topology:
    """The topology itself, if its parts fit together. Raises LabError otherwise."""
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
    _check_services(topology)
    if len({server.hypervisor for server in topology.server}) > 1:
        raise LabError("servers: all of them run the same hypervisor, a VM cannot move between two kinds")
    return topology


def _check_networks(topology: Topology) -> None:
    networks = [(f"subnet {s.id}", s.prefix) for s in topology.subnet]
    networks.append(("management", topology.management.prefix))
    if topology.router is not None:
        networks.append(("outside", topology.router.outside))
    for n, (name, network) in enumerate(networks):
        for other_name, other in networks[:n]:
            if network.overlaps(other):
                raise LabError(f"{other_name} and {name} overlap: {other}, {network}")


def _check_services(topology: Topology) -> None:
    if (dhcp := topology.dhcp) is not None:
        prefix = topology.leased.prefix
        for address in (*dhcp.pool, *(r.address for r in dhcp.reservation)):
            if address not in prefix:
                raise LabError(f"dhcp: {address} is not inside {prefix}, the subnet of {dhcp.pool[0]}")
        if dhcp.pool[0] > dhcp.pool[1]:
            raise LabError(f"dhcp: the pool ends at {dhcp.pool[1]}, before it starts at {dhcp.pool[0]}")
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


# ---- what the controller is told ----


def controller_config(topology: Topology, pki: Path | None = None) -> str:
    """The controller's configuration file (TOML) for this network.

    `pki` is the folder with its certificate; without one it speaks plain text.
    """
    own = topology.management_addresses[CONTROLLER].ip
    tables = [
        f'gateway_mac = "{topology.gateway_mac}"\n',
        _table(
            "[listen]",
            openflow=f"{own}:{OPENFLOW_PORT}",
            ovsdb=f"{own}:{OVSDB_PORT}",
            rest=f"{own}:{REST_PORT}",
            plaintext=None if pki is not None else ["openflow", "ovsdb", "rest"],
        ),
        *([] if pki is None else [_tls_table(pki)]),
        *(
            _table(
                "[[subnet]]",
                id=s.id,
                prefix=str(s.prefix),
                gateway=str(s.gateway),
                dhcp=topology.relays_to(s),
            )
            for s in topology.subnet
        ),
        *(
            _table(
                "[[switch]]",
                id=s.id,
                role=s.role,
                dpid=hex(s.dpid),
                uplink=UPLINK if s.role == "edge" else None,
            )
            for s in topology.switches
        ),
        *(
            _table(
                "[[link]]",
                leaf=f"{leaf.id}:{fabric_port(leaf.id, spine.id)}",
                spine=f"{spine.id}:{fabric_port(spine.id, leaf.id)}",
            )
            for leaf in topology.leaf
            for spine in topology.spine
        ),
        *(_server_table(part) for part in topology.attached),
    ]
    return "\n".join(tables)


def _tls_table(pki: Path) -> str:
    own = pki / f"{CONTROLLER}-{CONTROLLER}"
    return _table("[tls]", ca=f"{pki / 'ca.pem'}", certificate=f"{own}.pem", key=f"{own}.key")


def _server_table(part: ServerPart | DhcpPart | RouterPart) -> str:
    node = node_of(part)
    return _table(
        "[[server]]",
        id=node,
        mac=part.mac,
        address=str(part.address),
        edge=part.edge if isinstance(part, ServerPart) else None,
        services=None if isinstance(part, ServerPart) else [node],
        routes=["0.0.0.0/0"] if isinstance(part, RouterPart) else None,
        at=f"{part.leaf}:{fabric_port(part.leaf, node)}" if part.given else None,
    )


def _table(header: str, **keys: str | list[str] | None) -> str:
    """A TOML table; keys that are None are left out. Every value is plain ASCII, whose JSON is TOML too."""
    lines = (f"{key} = {msgspec.json.encode(v).decode()}\n" for key, v in keys.items() if v is not None)
    return f"{header}\n{''.join(lines)}"
