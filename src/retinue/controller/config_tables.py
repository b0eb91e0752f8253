"""The tables of the controller's configuration file, each with its keys, their meaning and defaults."""

from typing import Annotated, Literal

import msgspec

from retinue.config_file import ConfigTable, TlsTable
from retinue.controller.parsing import port_ref
from retinue.core.limits import (
    HIGHEST_VLAN,
    LEAST_MTU,
    MOST_ANCHOR_SECONDS,
    MOST_LOAD,
    MOST_METRIC,
    MOST_MTU,
    MOST_STANDBY,
    VXLAN_BYTES,
)
from retinue.core.model import (
    DEFAULT_VNET,
    DEFAULT_VRF,
    Flood,
    Link,
    ModelError,
    Role,
    Service,
)
from retinue.core.placement import Policy, Weights

LISTENERS = ("openflow", "ovsdb", "rest")
Weight = Annotated[int, msgspec.Meta(ge=0, le=100)]


class Listen(ConfigTable, frozen=True):
    """Addresses (host:port) the controller listens at."""

    openflow: str = "127.0.0.1:6653"
    ovsdb: str = "127.0.0.1:6640"
    rest: str = "127.0.0.1:8080"
    plaintext: list[Literal["openflow", "ovsdb", "rest"]] = []
    """Listeners without TLS, which accept every peer. All others use TLS."""


class RestTable(ConfigTable, frozen=True):
    """[rest]: the REST interface."""

    tokens: str = ""
    """A file with bearer tokens (see security/tokens.py); "": certificates only."""


class VrfTable(ConfigTable, frozen=True):
    """[[vrf]]: a routing domain, and the VLAN tag by which the fabric's links tell it from others."""

    id: str
    tag: int


class VnetTable(ConfigTable, frozen=True):
    """[[vnet]]: what users call a network; subnets name the one they are in."""

    id: str
    vlan: int = 0
    mtu: int = 0
    vrf: str = DEFAULT_VRF
    isolated: bool = False
    flood: Flood = Flood.DROPPED


class PlacementTable(ConfigTable, frozen=True):
    """[placement]: how the target of a migration is chosen where nobody names it. Shares are per cent."""

    memory_percent: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    """Of a server's memory that VMs may be given together; over 100: it is over-committed."""
    cpu_percent: Annotated[int, msgspec.Meta(ge=1, le=6400)] = 100
    """The same of its processors."""
    margin: Annotated[int, msgspec.Meta(ge=0, le=100)] = 5
    """How much better another server must be where the manager did not ask for the move."""
    rest_seconds: Annotated[int, msgspec.Meta(ge=0, le=86400)] = 600
    """How long a VM that has migrated is then left where it is."""
    follow_switches: Annotated[int, msgspec.Meta(ge=0, le=4)] = 0
    """By how many switches nearer to its clients another server must be for a VM to follow them; 0: none
    does."""
    follow_seconds: Annotated[int, msgspec.Meta(ge=0, le=86400)] = 60
    """For how long without a break."""
    spread_percent: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    """How far the fullest server may be above the emptiest before the domain moves VMs by itself; 0: it does
    not."""
    spread_seconds: Annotated[int, msgspec.Meta(ge=0, le=86400)] = 300
    """For how long without a break; and between two moves."""
    weight_memory: Weight = 1
    weight_cpu: Weight = 1
    weight_bandwidth: Weight = 1
    weight_distance: Weight = 1
    weight_image: Weight = 1
    """How much each measure counts; 0: not at all."""

    def policy(self) -> Policy:
        weights = Weights(
            self.weight_memory,
            self.weight_cpu,
            self.weight_bandwidth,
            self.weight_distance,
            self.weight_image,
        )
        return Policy(self.memory_percent, self.cpu_percent, weights, self.margin * 100, self.rest_seconds)


class SubnetTable(ConfigTable, frozen=True):
    """[[subnet]]: a prefix of VMs or servers, and its gateway, which every leaf and edge answers for."""

    id: str
    prefix: str
    gateway: str
    vlan: int = 0
    dhcp: list[str] = []
    """DHCP servers of other subnets, to which the messages of this one's VMs are relayed."""
    dhcp_pools: list[str] = []
    """FIRST-LAST: addresses that DHCP servers give out; who gives one to a VM for good is warned."""
    vnet: str = DEFAULT_VNET.id
    slaac: bool = False
    """Of IPv6: VMs may make their own addresses."""
    dhcp6: bool = False
    """Of IPv6: VMs get addresses by DHCPv6."""


class SwitchTable(ConfigTable, frozen=True):
    """[[switch]]: `dpid` is hexadecimal, `uplink` an edge's port to its leaf; `places` a leaf's: whether
    its servers are found there, or all given. `tunnel`, `endpoint`: of a leaf that VXLAN joins to the
    others, the port, and its address on the IP network between them. `router`: of a leaf that is a router
    which is not ours, the command that starts its adapter; it has no `dpid`."""

    id: str
    role: Role
    dpid: str = ""
    uplink: str = ""
    standby: Annotated[list[str], msgspec.Meta(max_length=MOST_STANDBY)] = []
    """Of an edge: further ports, each to another leaf, where it has several uplinks."""
    places: Literal["detected", "given"] = "detected"
    tunnel: str = ""
    endpoint: str = ""
    router: list[str] = []
    vdp: bool = False
    """Of an edge: what its leaf says by LLDP is which gateway group its server is in."""
    gateway_group: str = ""
    """Of a leaf: the group whose MAC it says to its servers by LLDP."""


class LinkTable(ConfigTable, frozen=True):
    """[[link]]: a cable, of a leaf and a spine, or of a spine and a core; both ends are SWITCH:PORT."""

    leaf: str = ""
    spine: str = ""
    core: str = ""

    def ends(self) -> Link:
        """Raises ModelError."""
        lower, *above = [end for end in (self.leaf, self.spine, self.core) if end] or [""]
        if len(above) != 1:
            raise ModelError(f"link {lower}: name two ends, leaf and spine, or spine and core")
        return Link(port_ref(lower), port_ref(above[0]))


class VxlanTable(ConfigTable, frozen=True):
    """[vxlan]: the IP network, none of ours, by which leaves with an endpoint reach each other."""

    mtu: Annotated[int, msgspec.Meta(ge=LEAST_MTU + VXLAN_BYTES, le=MOST_MTU)] = 1500
    """Bytes of an IP packet that it takes, the tunnels' own among them."""


class GatewayGroupTable(ConfigTable, frozen=True):
    """[[gateway_group]]: servers whose VMs know the gateway by a MAC of their own."""

    id: str
    mac: str


class SubinterfaceTable(ConfigTable, frozen=True):
    """[[server.subinterface]]: a router's interface in a VRF, with a VLAN tag at its port."""

    vrf: str
    vlan: Annotated[int, msgspec.Meta(ge=1, le=HIGHEST_VLAN)]
    routes: list[str] = []
    """Prefixes reached through it, in the VRF."""
    address: str = ""
    """The router's own there."""


class ServerTable(ConfigTable, frozen=True):
    """[[server]]: a machine on a leaf's port. `edge`: its switch, if it runs VMs. `at`: that leaf's port as
    SWITCH:PORT; left out, the controller finds it by ARP.
    """

    id: str
    mac: str = ""
    """"": it is known by its chassis id, and LLDP tells its MAC."""
    address: str = ""
    edge: str = ""
    services: list[Service] = []
    routes: list[str] = []
    metric: Annotated[int, msgspec.Meta(ge=0, le=MOST_METRIC)] = 0
    """Of several routers to one prefix that are there, the one with the least is the way."""
    chassis: str = ""
    """Its LLDP chassis id, by which it is known when its MAC is another."""
    anycast: list[str] = []
    """Addresses of services that it has itself, with others."""
    load: Annotated[int, msgspec.Meta(ge=0, le=MOST_LOAD)] = 0
    at: str = ""
    gateway_group: str = ""
    subinterface: list[SubinterfaceTable] = []


class DomainTable(ConfigTable, frozen=True):
    """[[domain]]: another domain, whose controller may bring VMs here, and take them back."""

    id: str
    gateway: str
    """The server whose edge switch leads there."""
    tunnel: str
    """The port of that switch which does."""
    url: str
    """Where that domain's controller has its door for us: https://HOST:PORT."""
    listen: str
    """Where we have ours for it: host:port."""
    ca: str
    """The file with that domain's authority: who shows a certificate of it is that domain."""
    prefixes: list[str] = []
    """Addresses that VMs may come with whose home is that domain."""
    match: bool = False
    """It is asked too which of its servers is best for a VM whose target nobody names."""
    names: bool = False
    """Its zone of DNS is ours, too: each of the two answers for the names of both."""
    storage: bool = False
    """Storage frames (FCoE) go by the tunnel, between a VM that is away and its home's forwarder."""
    images: bool = False
    """Images that are published there may be fetched here, and ours there, by their names."""
    anchor_idle_seconds: Annotated[int, msgspec.Meta(ge=0, le=MOST_ANCHOR_SECONDS)] = 0
    """Without a packet for a VM of ours that is there, after which our gateway lets none through for it any
    more; 0: it always does."""


class ManagersTable(ConfigTable, frozen=True):
    """[managers]: a mobility manager and a resource manager that are processes of their own."""

    mobility: str = ""
    """https://HOST:PORT of the mobility manager, which decides; "": the controller does."""
    resources: str = ""
    """https://HOST:PORT of the door that the resource manager has for this domain."""
    ca: str = ""
    """The authority of their certificates, if it is not that of [tls]."""
    domains: list[str] = []
    """Other domains that the resource manager serves: it offers their servers, where `match` of the domain's
    table says that these are wanted."""


class ClusterTable(ConfigTable, frozen=True):
    """[cluster]: this controller is one of several, which share a database; one of them is active."""

    name: str
    """Its own name, which no other of them has."""
    url: str
    """Where clients reach its REST interface: a standby tells them the active one's."""
    database: list[str]
    """The database's servers, such as ssl:192.0.2.21:6641; of a cluster all of its members."""
    tls: TlsTable | None = None
    """What it shows them, of an authority of the database's own: whoever has a certificate of that writes."""
    mandate_seconds: Annotated[float, msgspec.Meta(ge=1, le=60)] = 10.0
    """For how long the active one goes on that cannot reach the database; half as long again, and a standby
    that hears nothing of it takes over."""


class PairTable(ConfigTable, frozen=True):
    """[[pair]]: a MAC and an IP, of which a VM that is registered without either takes one."""

    mac: str
    ip: str
