"""What the laboratory builds: subnets, switches, servers, DHCP server, router, client, and all that follows.

Everything derived from the topology file, names of ports and addresses on the management network among them,
is derived here once, so that the builder, the controller's configuration and the tests agree.
`topologies/default.toml` is the file to read first; topology_file reads it.
"""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated, Literal

import msgspec

from retinue.config_file import ConfigTable
from retinue.core.limits import LEAST_MTU, MOST_MTU
from retinue_lab.errors import LabError

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

Mac = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")]
Dpid = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
Seconds = Annotated[int, msgspec.Meta(ge=1, le=(1 << 32) - 1)]


class SubnetPart(ConfigTable, frozen=True, kw_only=True):
    id: str
    prefix: IPv4Network
    gateway: IPv4Address


class Subnet6Part(ConfigTable, frozen=True, kw_only=True):
    """A subnet of IPv6, in which VMs have static addresses, or (`slaac`) may make some themselves."""

    id: str
    prefix: IPv6Network
    gateway: IPv6Address
    slaac: bool = False


class TenantPart(ConfigTable, frozen=True, kw_only=True):
    """A VRF with one vnet and one subnet, all of this id, in which VMs have static addresses."""

    id: str
    tag: Annotated[int, msgspec.Meta(ge=1, le=4094)]
    prefix: IPv4Network
    gateway: IPv4Address


class SwitchPart(ConfigTable, frozen=True, kw_only=True):
    """A leaf or a spine."""

    id: str
    dpid: Dpid


class ServerPart(ConfigTable, frozen=True, kw_only=True):
    """A server that runs VMs on an edge switch of its own."""

    id: str
    leaf: str
    mac: Mac
    address: IPv4Address
    edge: str
    dpid: Dpid
    given: bool = False
    """True: the controller's configuration names the leaf port; False: the controller finds it by ARP."""
    hypervisor: Literal["qemu", "libvirt"] = "qemu"
    """What runs its VMs: QEMUs that the server's agent starts, or a libvirtd of the server."""


class Reservation(ConfigTable, frozen=True, kw_only=True):
    mac: Mac
    address: IPv4Address


class DhcpPart(ConfigTable, frozen=True, kw_only=True):
    leaf: str
    mac: Mac
    address: IPv4Address
    pool: tuple[IPv4Address, IPv4Address]
    lease_seconds: Seconds
    program: Literal["kea", "kea-udp", "dnsmasq", "isc-dhcpd"] = "kea"
    """Which DHCP server it is; see network.dhcp_server."""
    reservation: tuple[Reservation, ...] = ()
    given: bool = False


class RouterPart(ConfigTable, frozen=True, kw_only=True):
    leaf: str
    mac: Mac
    address: IPv4Address
    outside: IPv4Network
    outside_address: IPv4Address
    outside6: IPv6Network | None = None
    outside_address6: IPv6Address | None = None
    given: bool = False


class ClientPart(ConfigTable, frozen=True, kw_only=True):
    address: IPv4Address
    address6: IPv6Address | None = None


class ManagementPart(ConfigTable, frozen=True, kw_only=True):
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
    mtu: int = 1500


class Topology(ConfigTable, frozen=True, kw_only=True):
    gateway_mac: Mac
    mtu: Annotated[int, msgspec.Meta(ge=LEAST_MTU, le=MOST_MTU)] = 1500
    """Bytes of an IP packet that every cable of the fabric takes; outside it is 1500."""
    subnet: tuple[SubnetPart, ...]
    subnet6: tuple[Subnet6Part, ...] = ()
    tenant: tuple[TenantPart, ...] = ()
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
            Veth(FABRIC, fabric_port(leaf.id, spine.id), FABRIC, fabric_port(spine.id, leaf.id), mtu=self.mtu)
            for leaf in self.leaf
            for spine in self.spine
        ]
        for part in self.attached:
            node = node_of(part)
            nic = (UPLINK, "") if isinstance(part, ServerPart) else ("eth0", part.mac)
            cables.append(Veth(node, nic[0], FABRIC, fabric_port(part.leaf, node), nic[1], self.mtu))
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


def node_of(part: ServerPart | DhcpPart | RouterPart) -> str:
    match part:
        case ServerPart():
            return part.id
        case DhcpPart():
            return DHCP
        case RouterPart():
            return ROUTER
