"""The tables of a topology file: what each part of a laboratory's network says of itself."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated, Literal

import msgspec

from retinue.config_file import ConfigTable

QEMU = "qemu"
LIBVIRT = "libvirt"
Mac = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")]
Dpid = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
Seconds = Annotated[int, msgspec.Meta(ge=1, le=(1 << 32) - 1)]


class SubnetPart(ConfigTable, frozen=True, kw_only=True):
    id: str
    prefix: IPv4Network
    gateway: IPv4Address
    vnet: str = "default"


class Subnet6Part(ConfigTable, frozen=True, kw_only=True):
    """A subnet of IPv6, in which VMs have static addresses, or (`slaac`) may make some themselves."""

    id: str
    prefix: IPv6Network
    gateway: IPv6Address
    slaac: bool = False
    vnet: str = "default"


class VnetPart(ConfigTable, frozen=True, kw_only=True):
    """A vnet of some of the subnets; `floods`: what a NIC sends to all comes to the others in it."""

    id: str
    vlan: Annotated[int, msgspec.Meta(ge=1, le=4094)]
    floods: bool = False


class TenantPart(ConfigTable, frozen=True, kw_only=True):
    """A VRF with one vnet and one subnet, all of this id, in which VMs have static addresses."""

    id: str
    tag: Annotated[int, msgspec.Meta(ge=1, le=4094)]
    prefix: IPv4Network
    gateway: IPv4Address


class SwitchPart(ConfigTable, frozen=True, kw_only=True):
    """A core."""

    id: str
    dpid: Dpid


class PodSwitchPart(SwitchPart, frozen=True, kw_only=True):
    """A leaf or a spine. Every leaf has a cable to every spine of its pod."""

    pod: str = ""
    """Of which pod it is, where there are cores: each has a cable to one spine of every pod."""


class LeafPart(PodSwitchPart, frozen=True, kw_only=True):
    on: str = ""
    """The server on which it stands, as one more bridge; "": on the node of the fabric."""
    endpoint: IPv4Interface | None = None
    """Its address on the IP network that joins leaves, with the length of the prefix, whose first address is
    a router's; where there are spines none has one."""
    gateway_group: str = ""
    """The group whose MAC it says to its servers by LLDP; "": it says nothing."""


class GatewayGroupPart(ConfigTable, frozen=True, kw_only=True):
    """Servers whose VMs know the gateway by this MAC."""

    id: str
    mac: Mac


class TorPart(ConfigTable, frozen=True, kw_only=True):
    """A leaf that is a router of Linux, and not ours, on a node of its own; all have cables to each other."""

    id: str


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
    vdp: bool = False
    """True: its edge is told the gateway's MAC by what its leaf says by LLDP."""
    second_leaf: str = ""
    """Another leaf, to which its edge has a second uplink; "": it has one."""


class CachePart(ConfigTable, frozen=True, kw_only=True):
    """A machine that keeps images for the servers at its leaf, and runs no VMs."""

    id: str
    leaf: str
    mac: Mac
    address: IPv4Address
    given: bool = False


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


class ForwarderPart(ConfigTable, frozen=True, kw_only=True):
    """An FCoE forwarder (FCF): where it is, guests have a kernel with Fibre Channel."""

    leaf: str
    mac: Mac


Addressed = ServerPart | CachePart | DhcpPart | RouterPart
"""A machine on a leaf's port with an address in the fabric."""


class ClientPart(ConfigTable, frozen=True, kw_only=True):
    address: IPv4Address
    address6: IPv6Address | None = None


class GatewayPart(ConfigTable, frozen=True, kw_only=True):
    """The gateway to another domain: an edge switch with a tunnel (VXLAN), over a link that is routed."""

    id: str
    domain: str
    """Where it leads."""
    leaf: str
    mac: Mac
    edge: str
    dpid: Dpid
    link_address: IPv4Interface
    """On its side of the link, whose first address is the router's."""


class LinkPart(ConfigTable, frozen=True, kw_only=True):
    """The link between two domains, through a router of its own."""

    delay_ms: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    """Each way."""
    loss_percent: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0
    """Of the tunnel's packets, each way."""


Attached = Addressed | GatewayPart | ForwarderPart
"""A machine on a leaf's port."""


class ManagementPart(ConfigTable, frozen=True, kw_only=True):
    prefix: IPv4Network
