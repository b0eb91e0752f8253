"""The parts of a data-centre network, each a frozen value."""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from retinue.core.limits import HIGHEST_VLAN, LEAST_MTU, MOST_DISKS, MOST_MTU, MOST_NICS, MOST_TRUNK_NICS
from retinue.core.model.addresses import IP, Mac, ModelError, Prefix
from retinue.core.model.disks import Disk
from retinue.core.model.nic import NIC
from retinue.core.model.run_state import Power, Restart
from retinue.core.model.vrfs import DEFAULT_VRF, Subinterface, Vrf


class Role(StrEnum):
    """What a switch is for. All run the same pipeline (see pipeline.tables)."""

    EDGE = "edge"
    """Virtual switch on a server; VMs plug into its ports."""
    LEAF = "leaf"
    """Top-of-rack switch; servers plug into its ports."""
    SPINE = "spine"
    """Joins the leaves of its pod: all there are, in a fabric without cores."""
    CORE = "core"
    """Joins the pods: it leads to one spine of each."""


class Service(StrEnum):
    """What a server that runs no VMs is trusted to be."""

    DHCP = "dhcp"
    """A DHCP server: the one kind of port whose DHCP server messages are believed."""
    ROUTER = "router"
    """The way to prefixes outside the data centre."""
    FORWARDER = "fcf"
    """An FCoE forwarder: the one kind of port from which grants to log in are believed."""
    CACHE = "cache"
    """It keeps chunks of images for the servers at its leaf, and fetches what it lacks (agent/content)."""


class PortStatus(StrEnum):
    """The state of a port's link."""

    UP = "up"
    DOWN = "down"
    DISABLED = "disabled"


class Trust(StrEnum):
    """Whether a port's DHCP server messages count."""

    TRUST = "trust"
    UNTRUST = "untrust"


@dataclass(frozen=True, slots=True)
class Switch:
    """An OpenFlow switch, as the operator gives it."""

    id: str
    role: Role
    dpid: int
    """OpenFlow datapath id."""
    uplink: str = ""
    """Edge only: name of the port that leads to the leaf."""
    given: bool = False
    """Leaf only: which server is at which port is the operator's to say, and nothing is detected there."""
    tunnel: str = ""
    """Leaf only: name of the port that is its end of the tunnels to other leaves, where an IP network that is
    not ours joins them; "": spines do."""
    endpoint: IPv4Address | None = None
    """Its address on that network."""
    router: bool = False
    """Leaf only: it is a router that is not ours, which is told host routes (see `plain_routers`)."""
    vdp: bool = False
    """Edge only: what the leaf says by LLDP at the uplink is which gateway group its server is in."""
    gateway_group: str = ""
    """Leaf only: the group whose MAC it says so to the servers at its ports; "": it says nothing."""
    standby: tuple[str, ...] = ()
    """Edge only: names of further uplinks, each to another leaf; one is used at a time (model.uplinks)."""

    def __post_init__(self) -> None:
        if self.vdp and self.role is not Role.EDGE:
            raise ModelError(f"switch {self.id}: only an edge is told the gateway's MAC by VDP, by its leaf")
        if self.gateway_group and self.role is not Role.LEAF:
            raise ModelError(f"switch {self.id}: only a leaf says the MAC of a gateway group by VDP")
        if not self.id:
            raise ModelError("a switch needs an id")
        if not 0 < self.dpid < 1 << 64:
            raise ModelError(f"switch {self.id}: datapath id {self.dpid} is not between 1 and 2^64-1")
        if self.role is Role.EDGE and not self.uplink:
            raise ModelError(f"edge switch {self.id}: the name of its uplink port is missing")
        if self.standby and (self.role is not Role.EDGE or len(set(self.uplinks)) <= len(self.standby)):
            raise ModelError(f"switch {self.id}: further uplinks are an edge's, each named once")
        if self.router and not (self.role is Role.LEAF and self.endpoint and self.given):
            raise ModelError(
                f"switch {self.id}: a router that is not ours is a leaf with an endpoint, and the places of "
                "servers at it are given"
            )
        if self.given and self.role is not Role.LEAF:
            raise ModelError(f"switch {self.id}: servers are at leaves, only there are their places given")
        if (self.tunnel or self.endpoint) and self.role is not Role.LEAF:
            raise ModelError(f"switch {self.id}: tunnels join leaves, no other switches")
        if bool(self.tunnel) != (self.endpoint is not None):
            raise ModelError(
                f"switch {self.id}: the port of its tunnels and its address there (tunnel, endpoint) belong "
                "together"
            )

    @property
    def uplinks(self) -> tuple[str, ...]:
        """Of an edge, the preferred one first."""
        return self.uplink, *self.standby


@dataclass(frozen=True, slots=True, order=True)
class PortRef:
    """A port by the names of its switch and of itself; numbers are the switch's to give."""

    switch: str
    port: str

    def __str__(self) -> str:
        return f"{self.switch}:{self.port}"


@dataclass(frozen=True, slots=True)
class Link:
    """A cable between a leaf and a spine, or between a spine and a core."""

    lower: PortRef
    upper: PortRef

    def __str__(self) -> str:
        return f"{self.lower} - {self.upper}"


@dataclass(frozen=True, slots=True)
class GatewayGroup:
    """Servers whose VMs know the gateway by a MAC of their own; each server says which group it is in."""

    id: str
    mac: Mac
    default: bool = False
    """All servers that say no group are in this one. One group at most is so; without it they know the
    fabric's own MAC."""


@dataclass(frozen=True, slots=True, order=True)
class Host:
    """One of several machines with ports at the edge switch of one server, as at a physical switch."""

    id: str
    mac: Mac


@dataclass(frozen=True, slots=True)
class Server:
    """A physical machine on a leaf's port: one that runs VMs, a DHCP server, or a router.

    Its location is given by the operator (`given_at`) or detected when its ARP is seen (`Network.detected`).
    """

    id: str
    mac: Mac
    address: IP | None = None
    """Its own address in the fabric."""
    edge: str = ""
    """The edge switch it runs; "" for a machine that runs no VMs."""
    services: frozenset[Service] = frozenset()
    routes: tuple[Prefix, ...] = ()
    """Prefixes reached through it; for a router. Others may lead to the same."""
    given_at: PortRef | None = None
    gateway_group: str = ""
    """The group of servers whose VMs know the gateway by a MAC of their own; "": by that of the fabric."""
    hosts: tuple[Host, ...] = ()
    """Where its edge switch is none of its own: the machines whose VMs have ports there. Each port says whose
    it is; to the fabric they are one."""
    metric: int = 0
    """Of several routers to one prefix that are there, the one with the least is the way."""
    chassis: str = ""
    """Its LLDP chassis id, by which it is known when its MAC is another (`packets.lldp`); "": by its MAC
    alone.
    """
    subinterfaces: tuple[Subinterface, ...] = ()
    """Of a router: its interfaces in other VRFs than the default one, each with a tag of its own."""
    anycast: tuple[IP, ...] = ()
    """Addresses of services that it has with others (see `anycast`)."""
    load: int = 0
    """Of those that are equally near the one with the least is sent to."""

    def interface_in(self, vrf: str) -> Subinterface | None:
        """Its subinterface in another VRF than the default one."""
        return next((one for one in self.subinterfaces if one.vrf == vrf), None)

    def routes_in(self, vrf: str) -> tuple[Prefix, ...]:
        """Prefixes reached through it in a VRF."""
        if vrf == DEFAULT_VRF:
            return self.routes
        there = self.interface_in(vrf)
        return () if there is None else there.routes

    @property
    def ways(self) -> tuple[tuple[str, Prefix], ...]:
        """All prefixes reached through it, each after its VRF."""
        others = ((one.vrf, prefix) for one in self.subinterfaces for prefix in one.routes)
        return (*((DEFAULT_VRF, prefix) for prefix in self.routes), *others)

    @property
    def addresses(self) -> tuple[tuple[str, IP], ...]:
        """Its own addresses, each after its VRF."""
        found = ((DEFAULT_VRF, self.address), *((one.vrf, one.address) for one in self.subinterfaces))
        return tuple((vrf, ip) for vrf, ip in found if ip is not None)


class Flood(StrEnum):
    """What becomes of what a NIC sends to a group of its vnet: broadcast and multicast of IP."""

    DROPPED = "dropped"
    CONTROLLED = "controlled"
    """Every other NIC that is said to be in the vnet gets a copy, up to a rate for each sender."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another domain, and the way there (see `domains`)."""

    id: str
    gateway: str
    """The server whose edge switch has the tunnel to the domain's gateway."""
    tunnel: str
    """The name of that port."""
    prefixes: tuple[IPv4Network | IPv6Network, ...] = ()
    """Addresses that VMs may come with whose home is that domain: its grant."""
    match: bool = False
    """Its servers are looked at too where no target is named."""
    names: bool = False
    """Its names are in our zone of DNS, too."""
    storage: bool = False
    """Storage frames of VMs that are away, or guests, go by the tunnel."""
    images: bool = False
    """Images that are published there may be fetched here, and ours there."""
    anchor_idle: float = 0.0
    """Seconds without a packet for a VM that is there, after which we are its anchor no more; 0: we stay."""


@dataclass(frozen=True, slots=True)
class Vnet:
    """What users call a network: subnets that belong together, as whose VLAN their bindings are shown."""

    id: str
    vlan: int = 0
    """0: none."""
    mtu: int = 0
    """Bytes of IP in one frame; 0: nobody has said."""
    vrf: str = DEFAULT_VRF
    """The routing domain in which its addresses mean something."""
    flood: Flood = Flood.DROPPED

    @property
    def floods(self) -> bool:
        return self.flood is Flood.CONTROLLED

    def isolated(self) -> tuple[Vrf, "Vnet"]:
        """A VRF that it shares with no other, whose tag is its VLAN, and itself there. Raises ModelError."""
        if self.id == DEFAULT_VRF:
            raise ModelError(f"vnet {self.id} is not isolated: servers and routers are in its VRF")
        if self.vrf not in (DEFAULT_VRF, self.id):
            raise ModelError(
                f"vnet {self.id}: one that is isolated has a VRF of its own, and cannot be in {self.vrf}"
            )
        if not self.vlan:
            raise ModelError(
                f"vnet {self.id}: to be isolated it needs a VLAN, which its frames have between switches"
            )
        return Vrf(self.id, self.vlan), replace(self, vrf=self.id)

    def __post_init__(self) -> None:
        if self.floods and not self.vlan:
            raise ModelError(
                f"vnet {self.id}: flooding needs a VLAN, which tells its frames from others' on the fabric's "
                "links; give it one"
            )
        if not 0 <= self.vlan <= HIGHEST_VLAN:
            raise ModelError(
                f"vnet {self.id}: VLAN {self.vlan} is not between 1 and {HIGHEST_VLAN}, or 0: none"
            )
        if self.mtu and not LEAST_MTU <= self.mtu <= MOST_MTU:
            raise ModelError(f"vnet {self.id}: MTU {self.mtu} is not between {LEAST_MTU} and {MOST_MTU}")


DEFAULT_VNET = Vnet("default")
"""The vnet of subnets for which no other is named; it is always there."""


@dataclass(frozen=True, slots=True)
class Subnet:
    """Addresses that share a prefix and a gateway; may span all leaves. Only inside it VMs go by MACs."""

    id: str
    prefix: IPv4Network | IPv6Network
    gateway: IP
    """The anycast gateway's address, the same on every leaf."""
    vlan: int = 0
    """Where the configuration gives it one of its own; 0: its vnet's."""
    dhcp: tuple[IPv4Address, ...] = ()
    """DHCP servers of other subnets to which its VMs' messages are relayed (RFC 1542, 4.1.1). Of IPv6: those,
    by their addresses in the fabric, that serve it; none: all do, where it is of the default VRF."""
    dhcp_pools: tuple[tuple[IP, IP], ...] = ()
    """First and last of the addresses that DHCP servers give out, as far as the operator has said."""
    vnet: str = DEFAULT_VNET.id
    slaac: bool = False
    """Of IPv6: VMs may make their own addresses of the prefix (RFC 4862)."""
    dhcp6: bool = False
    """Of IPv6: VMs get addresses of the prefix from the DHCP servers (RFC 8415), and are told so."""

    def __post_init__(self) -> None:
        if self.gateway not in self.prefix:
            raise ModelError(f"subnet {self.id}: gateway {self.gateway} is not inside {self.prefix}")


@dataclass(frozen=True, slots=True)
class VM:
    """A virtual machine as the manager registers it, and the servers where its network must be found.

    The VM's traffic is delivered at `server`. `also` are further servers where the VM may send and where its
    port would take frames, but none are sent there: a migration's target before the switch-over, its
    source after it.
    """

    id: str
    nics: tuple[NIC, ...]
    """Its network interfaces, in the order in which the guest finds them; their ports have different ids."""
    server: str
    also: frozenset[str] = frozenset()
    reported: bool = False
    """True when no manager registered the VM: a server reported it by the port it made."""
    copied_to: str = ""
    """The server that gets a copy of all that the other one hands to the VM, or "": a migration's source,
    while the VM is paused. Were the migration to fail, the VM would find there what it was sent meanwhile."""
    forwarded_from: str = ""
    """A server that sends on what still comes there, or "": a migration's source, when nothing should, and
    for a little while after the VM has nothing else there; or its target, when the migration is undone."""
    power: Power = Power.RUNNING
    power_reason: str = ""
    """Why it is not RUNNING, where somebody has said so."""
    restart: Restart = Restart.NEVER
    memory_mib: int = 0
    """Its memory; 0: as the configuration of its server has it."""
    disks: tuple[Disk, ...] = ()
    """In the order in which the guest finds them."""
    home: str = ""
    """The domain whose VM it is, where it is a guest here; "": ours."""
    host: str = ""
    """Which of its server's hosts it is on; "": of none that is known."""

    def __post_init__(self) -> None:
        if len(self.disks) > MOST_DISKS:
            raise ModelError(f"VM {self.id} has {len(self.disks)} disks; give it {MOST_DISKS} at the most")
        in_trunks = sum(bool(nic.trunk) for nic in self.nics)
        if not 1 <= len(self.nics) - in_trunks <= MOST_NICS:
            raise ModelError(
                f"VM {self.id} has {len(self.nics) - in_trunks} network interfaces; "
                f"give it between 1 and {MOST_NICS}"
            )
        if in_trunks > MOST_TRUNK_NICS:
            raise ModelError(
                f"VM {self.id} has {in_trunks} VLANs in trunks; give it {MOST_TRUNK_NICS} at the most"
            )
        # In another vnet it may be another address, see `vrfs`; vm_constraints.check_vm knows.
        addresses: list[tuple[str, list[object]]] = [
            ("address", [ip for nic in self.nics if nic.vnet == vnet for ip in nic.addresses])
            for vnet in sorted({nic.vnet for nic in self.nics})
        ]
        of_each: tuple[tuple[str, list[object]], ...] = (
            ("MAC", [nic.mac for nic in self.nics]),
            ("NIC id", [nic.port_id for nic in self.nics]),
            *addresses,
        )
        for what, values in of_each:
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ModelError(f"VM {self.id}: {what} {twice} is given twice")

    @classmethod
    def with_one_nic(
        cls,
        id: str,
        mac: Mac,
        server: str,
        also: frozenset[str] = frozenset(),
        addresses: tuple[IP, ...] = (),
        reported: bool = False,
        power: Power = Power.RUNNING,
        power_reason: str = "",
        restart: Restart = Restart.NEVER,
    ) -> "VM":
        """A VM from its one NIC's MAC and static addresses; the VM's id is the port's `iface-id`, too.

        Whatever outside the model describes a VM without naming its NIC makes the VM here.
        """
        nics = (NIC(mac, id, addresses),)
        return cls(id, nics, server, also, reported, power=power, power_reason=power_reason, restart=restart)

    @property
    def nic(self) -> NIC:
        """The VM's first network interface."""
        return self.nics[0]

    def nic_with(self, mac: Mac) -> NIC | None:
        """Its NIC with this MAC."""
        return next((nic for nic in self.nics if nic.mac == mac), None)

    def nic_called(self, port_id: str) -> NIC | None:
        """Its NIC whose port has this id."""
        return next((nic for nic in self.nics if nic.port_id == port_id), None)

    @property
    def locations(self) -> tuple[str, ...]:
        """The servers whose switches hold state for this VM, the one it is delivered at first."""
        return (self.server, *sorted({*self.also, self.forwarded_from} - {"", self.server}))


@dataclass(frozen=True, slots=True)
class VMPort:
    """The port of a VM's NIC on an edge switch, as the switch's database reports it."""

    number: int
    name: str = ""
    status: PortStatus = field(default=PortStatus.UP)
