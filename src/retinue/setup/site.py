"""The site: machines that run VMs over an IP network of somebody else's, said in one TOML file.

controller = "192.0.2.10"

[[subnet]]
id = "blue"
prefix = "10.1.0.0/24"
gateway = "10.1.0.254"

[[server]]
id = "server1"
management = "192.0.2.11"
endpoint = "172.16.1.2"

[[outside]]
id = "router"
services = ["router"]
server = "server1"
interface = "eth2"
mac = "02:00:00:00:00:e1"
address = "10.0.0.1"
routes = ["0.0.0.0/0"]
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Literal, Self

from retinue.config_file import ConfigError, ConfigTable, read
from retinue.core.limits import LEAST_MTU, MOST_MTU, VXLAN_BYTES
from retinue.core.model import DEFAULT_VNET, DEFAULT_VRF
from retinue.core.text import quoted

MOST_SERVERS = 1000
MOST_ROUTES = 64
"""Of one server."""
_ROUTE = re.compile(r"(?P<prefix>[0-9.]{7,15}/[0-9]{1,2})(?: via (?P<via>[0-9.]{7,15}))?", re.ASCII)
CONTROLLER = "controller"
"""The name of the controller's machine, which no server has."""
INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", re.ASCII)
"""Name of a network interface of Linux."""
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}", re.ASCII)
"""Of a machine: it is part of names of switches, files and folders."""


class VrfTable(ConfigTable, frozen=True):
    """A routing domain, and its tag between the switches; as in the controller's table of the same name."""

    id: str
    tag: int


class VnetTable(ConfigTable, frozen=True):
    """What subnets belong to; as in the controller's table of the same name."""

    id: str
    vrf: str = DEFAULT_VRF
    vlan: int = 0
    isolated: bool = False


class SubnetTable(ConfigTable, frozen=True):
    """A subnet of VMs, or of routers; the controller's table of the same name says what its keys mean."""

    id: str
    prefix: str
    gateway: str
    vnet: str = DEFAULT_VNET.id
    dhcp: tuple[str, ...] = ()
    dhcp_pools: tuple[str, ...] = ()
    dhcp6: bool = False
    slaac: bool = False


class ServerTable(ConfigTable, frozen=True):
    """A machine that runs VMs, or only has a router at its leaf."""

    id: str
    management: IPv4Address
    """Where other servers' agents, and the controller, reach it."""
    endpoint: IPv4Address
    """Its address on the IP network between the servers, which is another network than the VMs'."""
    libvirt: bool = True
    """Whether libvirt runs its VMs; the agent then follows what it does."""
    routes: tuple[str, ...] = ()
    """In user space, those to other servers that Open vSwitch is told: `172.16.0.0/16 via 172.16.1.1`."""
    control: str = ""
    """How other servers' libvirts reach this one's; "": no VM is brought here by `retinue move start`."""


@dataclass(frozen=True, slots=True)
class Route:
    """On the network between servers. `via`: a router; None where the prefix is that of an own cable."""

    prefix: IPv4Network
    via: IPv4Address | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Of `172.16.0.0/16 via 172.16.1.1`, or a prefix alone; raises ValueError."""
        match = _ROUTE.fullmatch(text)
        why = ""
        try:
            if match is not None:
                via = IPv4Address(match["via"]) if match["via"] else None
                return cls(IPv4Network(match["prefix"]), via)
        except ValueError as error:
            why = f": {error}"
        raise ValueError(f"{quoted(text)} is no route such as 172.16.0.0/16 via 172.16.1.1{why}")

    def __str__(self) -> str:
        return f"{self.prefix} via {self.via}" if self.via else str(self.prefix)


class SubinterfaceTable(ConfigTable, frozen=True):
    """A router's interface in a VRF, by a VLAN tag on its cable: the VRF's way out."""

    vrf: str
    vlan: int
    routes: tuple[str, ...] = ()
    address: str = ""


class OutsideTable(ConfigTable, frozen=True):
    """A router or a DHCP server, on a cable to an interface of one of the servers."""

    id: str
    server: str
    interface: str
    mac: str
    address: str
    services: tuple[Literal["router", "dhcp"], ...] = ("router",)
    routes: tuple[str, ...] = ()
    metric: int = 0
    subinterface: tuple[SubinterfaceTable, ...] = ()


class Site(ConfigTable, frozen=True):
    """All of it."""

    controller: IPv4Address
    """Where switches, agents and managers reach the controller."""
    server: tuple[ServerTable, ...]
    subnet: tuple[SubnetTable, ...]
    outside: tuple[OutsideTable, ...] = ()
    vrf: tuple[VrfTable, ...] = ()
    vnet: tuple[VnetTable, ...] = ()
    gateway_mac: str = "02:00:5e:00:00:fe"
    mtu: int = 1500
    """Bytes of an IP packet that the network between the servers takes."""
    datapath: Literal["system", "netdev"] = "system"
    """Open vSwitch's: in the kernel, or in user space."""

    @property
    def vm_mtu(self) -> int:
        return self.mtu - VXLAN_BYTES


def load(path: Path) -> Site:
    """Raises ConfigError, which names the file and what cannot be."""
    site = read(path, Site, _decode)
    for reason in _mistakes(site):
        raise ConfigError(f"{path}: {reason}")
    return site


def _decode(kind: type, value: Any) -> Any:
    if kind is IPv4Address:
        return IPv4Address(value)
    raise NotImplementedError


def _mistakes(site: Site) -> list[str]:
    """What the tables by themselves do not show; the rest the controller's own reading finds."""
    if not 1 <= len(site.server) <= MOST_SERVERS:
        return [f"a site has 1 to {MOST_SERVERS} servers, not {len(site.server)}"]
    names = [*(one.id for one in site.server), *(one.id for one in site.outside)]
    found = [
        f"{quoted(name)} is no name of a machine: lower-case letters, digits and -, up to 31"
        for name in names
        if not NAME.fullmatch(name) or name == CONTROLLER
    ]
    found += [f"{name} is there {times} times" for name, times in Counter(names).items() if times > 1]
    for what in ("management", "endpoint"):
        taken = Counter(getattr(one, what) for one in site.server)
        found += [f"{what} {address} is of {times} servers" for address, times in taken.items() if times > 1]
    found += [reason for one in site.server for reason in _wrong_routes(site, one)]
    servers = {one.id for one in site.server}
    for one in site.outside:
        if one.server not in servers:
            found.append(f"{one.id} is at server {quoted(one.server)}, which is not there")
        if not INTERFACE.fullmatch(one.interface):
            found.append(f"{one.id}: {quoted(one.interface)} is no name of an interface")
    places = Counter((one.server, one.interface) for one in site.outside)
    found += [f"interface {at} of {of} is named {n} times" for (of, at), n in places.items() if n > 1]
    if not LEAST_MTU + VXLAN_BYTES <= site.mtu <= MOST_MTU:
        found.append(f"mtu is {LEAST_MTU + VXLAN_BYTES} to {MOST_MTU}, not {site.mtu}")
    return found


def _wrong_routes(site: Site, server: ServerTable) -> Iterator[str]:
    if server.routes and site.datapath != "netdev":
        yield f'{server.id} has routes, which Open vSwitch is told in user space alone: datapath = "netdev"'
    if len(server.routes) > MOST_ROUTES:
        yield f"{server.id} has {len(server.routes)} routes; up to {MOST_ROUTES} are told"
    prefixes: Counter[IPv4Network] = Counter()
    for text in server.routes[:MOST_ROUTES]:
        try:
            prefixes[Route.parse(text).prefix] += 1
        except ValueError as error:
            yield f"{server.id}: {error}"
    yield from (f"{server.id} has {times} routes to {to}" for to, times in prefixes.items() if times > 1)


def dpid_of(switch: str) -> int:
    """The datapath id of a switch: made of its name, so that a server more changes nobody else's."""
    return int.from_bytes(hashlib.sha256(f"retinue switch {switch}".encode()).digest()[:6])


def mac_of(server: str) -> str:
    """The MAC by which a server's edge is known at its leaf, locally administered."""
    digest = hashlib.sha256(f"retinue server {server}".encode()).digest()[:5]
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest))
