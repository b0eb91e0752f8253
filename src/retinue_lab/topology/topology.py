"""What the laboratory builds: subnets, switches, servers, DHCP server, router, client, and all that follows.

Everything derived from the topology file, names of ports and addresses on the management network among them,
is derived here once, so that the builder, the controller's configuration and the tests agree.
`topologies/default.toml` is the file to read first; topology_file reads it.
"""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network
from itertools import combinations
from typing import Annotated, Literal

import msgspec

from retinue.config_file import ConfigTable
from retinue.core.limits import LEAST_MTU, MOST_MTU, VXLAN_BYTES
from retinue_lab.errors import LabError
from retinue_lab.topology.parts import (
    Addressed,
    Attached,
    CachePart,
    ClientPart,
    DhcpPart,
    ForwarderPart,
    GatewayGroupPart,
    GatewayPart,
    LeafPart,
    LinkPart,
    Mac,
    ManagementPart,
    PodSwitchPart,
    RouterPart,
    ServerPart,
    Subnet6Part,
    SubnetPart,
    SwitchPart,
    TenantPart,
    TorPart,
    VnetPart,
)

SANDBOX = "sandbox"
"""The sandbox's own root namespace; carries the management bridge."""
FABRIC = "fabric"
"""The node whose one vswitchd runs all leaves and spines."""
CONTROLLER = "controller"
DHCP = "dhcp"
ROUTER = "router"
FORWARDER = "fcf"
"""The node of the FCoE forwarder."""
CLIENT = "client"
UPLINK, SECOND_UPLINK = "up0", "up1"
"""A server's NICs, ports of its edge switch."""
EDGE_BRIDGE = "br0"
TUNNEL = "tun0"
"""A gateway's way to the other domain, a port of its edge switch."""
TRANSIT = "transit"
"""The node that is the IP network of others between leaves: a router of Linux, which knows no VM."""
OUTER_NIC, OUTER_BRIDGE = "ip0", "brip"
"""A node's NIC on that network, and the bridge that has it as a port and the leaf's endpoint as its address:
a switch in user space sends tunnels' packets by such a bridge only."""
OPENFLOW_PORT, OVSDB_PORT, REST_PORT, DNS_PORT, PEER_PORT = 6653, 6640, 8080, 53, 8081
DATABASE = "database"
DATABASE_PORT, RAFT_PORT = 6641, 6642


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
    mtu: int = 1500


class Topology(ConfigTable, frozen=True, kw_only=True):
    gateway_mac: Mac
    mtu: Annotated[int, msgspec.Meta(ge=LEAST_MTU, le=MOST_MTU)] = 1500
    """Bytes of an IP packet that every cable of the fabric takes; outside it is 1500."""
    rewrite: bool = True
    """False: edges send a MAC that they do not know up as it is, for comparison."""
    spines: Literal["ip", "mac"] = "ip"
    """By what spines and cores forward."""
    vnet: tuple[VnetPart, ...] = ()
    subnet: tuple[SubnetPart, ...]
    subnet6: tuple[Subnet6Part, ...] = ()
    tenant: tuple[TenantPart, ...] = ()
    gateway_group: tuple[GatewayGroupPart, ...] = ()
    core: tuple[SwitchPart, ...] = ()
    spine: tuple[PodSwitchPart, ...] = ()
    leaf: tuple[LeafPart, ...] = ()
    tor: tuple[TorPart, ...] = ()
    """Instead of leaves that are ours, and of all above them."""
    server: tuple[ServerPart, ...]
    management: ManagementPart
    cache: tuple[CachePart, ...] = ()
    dhcp: DhcpPart | None = None
    router: RouterPart | None = None
    client: ClientPart | None = None
    forwarder: ForwarderPart | None = None
    zone: str = "dc1.test"
    """Of DNS: the controller answers for the names of VMs, servers and services there; "": it does not."""
    domain: str = ""
    """Its name, where there is another one beside it."""
    controller: str = CONTROLLER
    """The controller's node, and (`fabric`) that of leaves and spines."""
    fabric: str = FABRIC
    controllers: Annotated[int, msgspec.Meta(ge=1, le=5)] = 1
    """How many there are; of several one is active."""
    databases: Annotated[int, msgspec.Meta(ge=0, le=5)] = 0
    """Servers of the database that controllers share, each on a node of its own; 0: the controller has one
    to itself."""
    gateway: GatewayPart | None = None
    link: LinkPart | None = None
    other: "Topology | None" = None
    """Another domain, in the same laboratory, to which `link` leads."""

    # ---- names ----

    @property
    def nodes(self) -> tuple[str, ...]:
        """All nodes that have a namespace, the controller first."""
        parts = (
            *((DHCP, self.dhcp), (ROUTER, self.router), (CLIENT, self.client)),
            (FORWARDER, self.forwarder),
        )
        return (
            self.controller,
            *(() if self.tor else (self.fabric,)),
            *(tor.id for tor in self.tor),
            *(s.id for s in self.server),
            *(g.id for g in self.gateways),
            *(c.id for c in self.cache),
            *(name for name, part in parts if part is not None),
            *((TRANSIT,) if self.ends else ()),
            *self.controller_nodes[1:],
            *self.database_nodes,
        )

    @property
    def controller_nodes(self) -> tuple[str, ...]:
        """The first is `controller`."""
        return (self.controller, *(f"{self.controller}{n}" for n in range(2, self.controllers + 1)))

    @property
    def database_nodes(self) -> tuple[str, ...]:
        return tuple(f"{DATABASE}{n}" for n in range(1, self.databases + 1))

    @property
    def management_addresses(self) -> dict[str, IPv4Interface]:
        """Address of each node, and of the sandbox, on the management network."""
        prefix = self.management.prefix
        numbers = {node: n for n, node in enumerate(self.nodes, 1)} | {SANDBOX: prefix.num_addresses - 2}
        return {node: IPv4Interface((prefix[n], prefix.prefixlen)) for node, n in numbers.items()}

    @property
    def controller_url(self) -> str:
        """Of several all of them, with commas between."""
        return ",".join(map(self.url_of, self.controller_nodes))

    def url_of(self, controller: str) -> str:
        """Of the controller on this node."""
        return f"https://{self.management_addresses[controller].ip}:{REST_PORT}"

    @property
    def gateways(self) -> tuple[GatewayPart, ...]:
        """None, or the one."""
        return () if self.gateway is None else (self.gateway,)

    @property
    def domains(self) -> tuple["Topology", ...]:
        """It, and the other one beside it."""
        return (self,) if self.other is None else (self, self.other)

    @property
    def management_bridge(self) -> str:
        return f"mgmt-{self.domain}" if self.domain else "mgmt"

    @property
    def peer_url(self) -> str:
        """Where its controller has its door for the other domain's."""
        return f"https://{self.management_addresses[self.controller].ip}:{PEER_PORT}"

    @property
    def attached(self) -> tuple[Attached, ...]:
        """Every machine on a leaf's port."""
        forwarders = () if self.forwarder is None else (self.forwarder,)
        return (*self.server, *self.gateways, *self.addressed[len(self.server) :], *forwarders)

    @property
    def addressed(self) -> tuple[Addressed, ...]:
        """Those of them that have an address in the fabric."""
        services = (part for part in (self.dhcp, self.router) if part is not None)
        return (*self.server, *self.cache, *services)

    @property
    def agents(self) -> tuple[str, ...]:
        """Where there is an agent."""
        return (*(server.id for server in self.server), *(cache.id for cache in self.cache))

    @property
    def ends(self) -> dict[str, LeafPart]:
        """Where an IP network joins the leaves: the leaf of each node that has one."""
        return {leaf.on or self.fabric: leaf for leaf in self.leaf if leaf.endpoint is not None}

    @property
    def tunnel_ports(self) -> dict[str, LeafPart]:
        """The ports that are ends of tunnels, each with its leaf."""
        return {tunnel_port(leaf.id): leaf for leaf in self.ends.values()}

    @property
    def links(self) -> tuple[tuple[str, str, str], ...]:
        """The cables between switches of the fabric: the lower one's role, its id, and the upper one's id."""
        found = [
            ("leaf", leaf.id, spine.id) for leaf in self.leaf for spine in self.spine if leaf.pod == spine.pod
        ]
        for pod in dict.fromkeys(spine.pod for spine in self.spine):
            spines = [spine.id for spine in self.spine if spine.pod == pod]
            found += [("spine", spines[n % len(spines)], core.id) for n, core in enumerate(self.core)]
        return tuple(found)

    def _joined_to(self, switch: str) -> tuple[str, ...]:
        """The switch's ports to others of the fabric: of a spine first those down."""
        down = [fabric_port(switch, lower) for _, lower, upper in self.links if upper == switch]
        return (*down, *(fabric_port(switch, upper) for _, lower, upper in self.links if lower == switch))

    @property
    def switches(self) -> tuple[Bridge, ...]:
        above = (
            Bridge(s.id, self.fabric, s.id, role, s.dpid, self._joined_to(s.id))
            for role, switches in (("core", self.core), ("spine", self.spine))
            for s in switches
        )
        leaves = (
            Bridge(
                leaf.id,
                leaf.on or self.fabric,
                leaf.id,
                "leaf",
                leaf.dpid,
                (
                    *self._joined_to(leaf.id),
                    *(fabric_port(leaf.id, node_of(part)) for part in self.attached if part.leaf == leaf.id),
                    *(fabric_port(leaf.id, one.id) for one in self.server if one.second_leaf == leaf.id),
                    *((tunnel_port(leaf.id),) if leaf.endpoint is not None else ()),
                ),
            )
            for leaf in self.leaf
        )
        edges = (Bridge(s.edge, s.id, EDGE_BRIDGE, "edge", s.dpid, uplinks_of(s)) for s in self.server)
        gateways = (
            Bridge(g.edge, g.id, EDGE_BRIDGE, "edge", g.dpid, (UPLINK, TUNNEL)) for g in self.gateways
        )
        return (*above, *leaves, *edges, *gateways)

    @property
    def cables(self) -> tuple[Veth, ...]:
        """Every cable of the fabric and of the outside network; the management network is not among them."""
        cables = [
            Veth(self.fabric, fabric_port(lower, upper), self.fabric, fabric_port(upper, lower), mtu=self.mtu)
            for _, lower, upper in self.links
        ]
        on = {leaf.id: leaf.on or self.fabric for leaf in self.leaf} | {tor.id: tor.id for tor in self.tor}
        for one, other in combinations(self.tor, 2):
            ends = fabric_port(one.id, other.id), fabric_port(other.id, one.id)
            cables.append(Veth(one.id, ends[0], other.id, ends[1], mtu=self.mtu))
        for node in self.ends:
            cables.append(Veth(node, OUTER_NIC, TRANSIT, node, mtu=self.mtu + VXLAN_BYTES))
        for part in self.attached:
            node = node_of(part)
            at = on.get(part.leaf, self.fabric)
            nic = (UPLINK, "") if isinstance(part, ServerPart | GatewayPart) else ("eth0", part.mac)
            cables.append(Veth(node, nic[0], at, fabric_port(part.leaf, node), nic[1], self.mtu))
        for server in self.server:
            if server.second_leaf:
                ends = fabric_port(server.second_leaf, server.id), on.get(server.second_leaf, self.fabric)
                cables.append(Veth(server.id, SECOND_UPLINK, ends[1], ends[0], mtu=self.mtu))
        if self.client is not None:
            cables.append(Veth(ROUTER, "out0", CLIENT, "eth0"))
        return tuple(cables)

    @property
    def leaves(self) -> tuple[str, ...]:
        """Ids of all leaves, ours or not."""
        return (*(leaf.id for leaf in self.leaf), *(tor.id for tor in self.tor))

    @property
    def leased(self) -> SubnetPart:
        """The subnet whose addresses the DHCP server gives. It may be in another, and is relayed to then."""
        if self.dhcp is None:
            raise LabError("this topology has no DHCP server")
        return self.subnet_of(self.dhcp.pool[0])

    @property
    def prefixes(self) -> list[IPv4Network | IPv6Network]:
        """Of all its subnets."""
        return [*(subnet.prefix for subnet in self.subnet), *(subnet.prefix for subnet in self.subnet6)]

    def relays_to(self, subnet: SubnetPart) -> list[str] | None:
        """DHCP servers to which messages of this subnet's VMs are relayed, None for no such: those of other
        subnets, and one of its own that hears no broadcast."""
        dhcp = self.dhcp
        if dhcp is None or self.leased.id != subnet.id:
            return None
        if dhcp.address in subnet.prefix and dhcp.program != "kea-udp":
            return None
        return [str(dhcp.address)]

    def pools_of(self, subnet: SubnetPart) -> list[str] | None:
        """What the DHCP server gives out in this subnet, None where it gives nothing."""
        if self.dhcp is None or self.leased.id != subnet.id:
            return None
        first, last = self.dhcp.pool
        return [f"{first}-{last}"]

    def subnet_of(self, address: IPv4Address) -> SubnetPart:
        found = next((s for s in self.subnet if address in s.prefix), None)
        if found is None:
            raise LabError(f"address {address} is in none of the subnets")
        return found


def fabric_port(switch: str, other: str) -> str:
    """Name of the switch's port that leads to `other`."""
    return f"{switch}-{other}"


def uplinks_of(server: ServerPart) -> tuple[str, ...]:
    """Ports of its edge switch."""
    return (UPLINK, SECOND_UPLINK) if server.second_leaf else (UPLINK,)


def tunnel_port(leaf: str) -> str:
    """Name of the leaf's port that is the end of its tunnels."""
    return f"{leaf}-vxlan"


def node_of(part: Attached) -> str:
    match part:
        case ServerPart() | GatewayPart() | CachePart():
            return part.id
        case DhcpPart():
            return DHCP
        case RouterPart():
            return ROUTER
        case ForwarderPart():
            return FORWARDER
