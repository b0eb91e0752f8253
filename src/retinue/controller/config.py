"""The controller's configuration file: the fabric as the operator built it.

TOML; every key is checked, and a mistake is answered with the file, the key and what was expected.
"""

from collections.abc import Collection
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from retinue.config_file import ConfigError, ConfigTable, TlsTable, read
from retinue.controller.audit import AUDIT_SECONDS
from retinue.controller.migrations.history import MIGRATIONS_KEPT
from retinue.core.limits import LEAST_MTU, MOST_MTU
from retinue.core.model import (
    DEFAULT_VNET,
    DEFAULT_VRF,
    IP,
    Link,
    ModelError,
    Network,
    PortRef,
    Role,
    Server,
    Service,
    Subnet,
    Switch,
    Vnet,
    Vrf,
    entity_id,
    mac,
)
from retinue.core.placement import Policy, Weights
from retinue.core.text import quoted
from retinue.socket_addresses import endpoint

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
    """[[switch]]: `dpid` is hexadecimal, `uplink` an edge's port to its leaf."""

    id: str
    role: Role
    dpid: str
    uplink: str = ""


class LinkTable(ConfigTable, frozen=True):
    """[[link]]: a cable; both ends are SWITCH:PORT."""

    leaf: str
    spine: str


class GatewayGroupTable(ConfigTable, frozen=True):
    """[[gateway_group]]: servers whose VMs know the gateway by a MAC of their own."""

    id: str
    mac: str


class ServerTable(ConfigTable, frozen=True):
    """[[server]]: a machine on a leaf's port. `edge`: its switch, if it runs VMs. `at`: that leaf's port as
    SWITCH:PORT; left out, the controller finds it by ARP.
    """

    id: str
    mac: str
    address: str = ""
    edge: str = ""
    services: list[Service] = []
    routes: list[str] = []
    at: str = ""
    gateway_group: str = ""


class Config(ConfigTable, frozen=True):
    """The whole file."""

    gateway_mac: str
    migrations_kept: Annotated[int, msgspec.Meta(ge=1)] = MIGRATIONS_KEPT
    """How many ended migrations are remembered; the last one of each VM is, besides."""
    audit_seconds: Annotated[float, msgspec.Meta(ge=0, le=86400)] = AUDIT_SECONDS
    """Within this time each connected switch is read back, and repaired if need be. 0: never."""
    warm_up_seconds: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.25
    """How long a VM that has migrated has its new server to itself, before its old server is freed and its
    lease renewed. Both take processor time, just when the VM's caches are cold."""
    forward_seconds: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.5
    """For how long, from when a VM runs at its new place on, its old server's switch sends on what still
    comes there: a busy switch may follow its own flow tables late."""
    mtu: Annotated[int, msgspec.Meta(ge=LEAST_MTU, le=MOST_MTU)] = 1500
    """Bytes of an IP packet that each switch and server takes: VMs may send so much."""
    listen: Listen = Listen()
    tls: TlsTable | None = None
    rest: RestTable = RestTable()
    gateway_group: list[GatewayGroupTable] = []
    vrf: list[VrfTable] = []
    vnet: list[VnetTable] = []
    placement: PlacementTable = PlacementTable()
    subnet: list[SubnetTable] = []
    switch: list[SwitchTable] = []
    link: list[LinkTable] = []
    server: list[ServerTable] = []

    def network(self) -> Network:
        """A network with what the file says, and nothing else yet. Raises ConfigError."""
        try:
            net = Network(mac(self.gateway_mac), mtu=self.mtu)
            for switch in self.switch:
                net.add_switch(Switch(switch.id, switch.role, _dpid(switch), switch.uplink))
            for link in self.link:
                net.add_link(Link(port_ref(link.leaf), port_ref(link.spine)))
            for group in self.gateway_group:
                net.add_gateway_group(entity_id(group.id, "a gateway group"), mac(group.mac))
            for vrf in self.vrf:
                net.put_vrf(Vrf(entity_id(vrf.id, "a VRF"), vrf.tag))
            for kind, ids in (("VRF", [one.id for one in self.vrf]), ("vnet", [one.id for one in self.vnet])):
                if twice := next((id for id in ids if ids.count(id) > 1), ""):
                    raise ModelError(f"{kind} {twice} is given twice")
            for vnet in self.vnet:
                net.put_vnet(Vnet(entity_id(vnet.id, "a vnet"), vnet.vlan, vnet.mtu, vnet.vrf))
            for table in self.subnet:
                given = subnet(
                    *(table.id, table.prefix, table.gateway, table.dhcp, table.vnet, table.dhcp_pools),
                    table.slaac,
                    table.dhcp6,
                )
                net.add_subnet(replace(given, vlan=table.vlan))
            net.configured = frozenset(
                f"{kind} {one}"
                for kind, ids in (("vrf", net.vrfs), ("vnet", net.vnets), ("subnet", net.subnets))
                for one in ids
            )
            for server in self.server:
                net.put_server(_server(server))
        except ModelError as error:
            raise ConfigError(str(error)) from error
        return net


def load(path: Path) -> Config:
    """Raises ConfigError."""
    found = read(path, Config)
    for name in LISTENERS:
        try:
            endpoint(getattr(found.listen, name))
        except ValueError as error:
            raise ConfigError(f"{path}: listen.{name}: {error}") from error
    unsaid = [name for name in LISTENERS if name not in found.listen.plaintext]
    if found.tls is None and unsaid:
        named = msgspec.json.encode(unsaid).decode()
        raise ConfigError(
            f"{path}: {' and '.join(unsaid)} would be open to whoever connects. Add the table [tls] with ca, "
            "certificate and key (`retinue pki init` and `retinue pki issue controller` make them), or say "
            f"by name what is to be plain text: plaintext = {named} in [listen]"
        )
    return _beside(path.parent, found)


def _beside(folder: Path, config: Config) -> Config:
    """With the paths of its files complete."""
    change: dict[str, Any] = {}
    if config.tls is not None:
        change["tls"] = config.tls.beside(folder)
    if config.rest.tokens:
        change["rest"] = RestTable(str(folder / config.rest.tokens))
    return msgspec.structs.replace(config, **change)


def port_ref(text: str) -> PortRef:
    """Read "leaf1:leaf1-spine1"; raises ModelError."""
    switch, _, port = text.partition(":")
    if not switch or not port:
        raise ModelError(f"not a port: {quoted(text)} (expected SWITCH:PORT, such as leaf1:leaf1-spine1)")
    return PortRef(switch, port)


def address(text: str) -> IP:
    """Read an IP address; raises ModelError."""
    try:
        if "%" in text:
            raise ValueError("an address with a zone")  # Only its own host knows what the zone's name means.
        return ip_address(text)
    except ValueError as error:
        raise ModelError(f"not an IP address: {quoted(text)}") from error


def network(text: str) -> IPv4Network | IPv6Network:
    """Read a prefix such as 10.1.0.0/24; raises ModelError."""
    try:
        if "%" in text:
            raise ValueError(f"{quoted(text)} has a zone")
        return ip_network(text)
    except ValueError as error:
        raise ModelError(f"not an IP prefix: {error}") from error


def _dpid(switch: SwitchTable) -> int:
    try:
        return int(switch.dpid, 16)
    except ValueError:
        raise ModelError(
            f"switch {switch.id}: datapath id {switch.dpid!r} is not a hexadecimal number"
        ) from None


def subnet(
    id: str,
    prefix: str,
    gateway: str,
    dhcp: Collection[str],
    vnet: str,
    pools: Collection[str] = (),
    slaac: bool = False,
    dhcp6: bool = False,
) -> Subnet:
    """A subnet from what people write, here or by REST; raises ModelError."""
    at = address(gateway)
    servers: list[IPv4Address] = []
    for text in dhcp:
        server = address(text)
        if not isinstance(server, IPv4Address) or not isinstance(at, IPv4Address):
            raise ModelError(f"subnet {id}: DHCP can be relayed over IPv4 only, not to {quoted(text)}")
        servers.append(server)
    inside = network(prefix)
    ranges = tuple(_pool(id, inside, text) for text in pools)
    return Subnet(id, inside, at, dhcp=tuple(servers), dhcp_pools=ranges, vnet=vnet, slaac=slaac, dhcp6=dhcp6)


def _pool(subnet: str, prefix: IPv4Network | IPv6Network, text: str) -> tuple[IP, IP]:
    first, dash, last = text.partition("-")
    if not dash:
        raise ModelError(f"subnet {subnet}: dhcp_pools has {quoted(text)}, not FIRST-LAST")
    ends = address(first.strip()), address(last.strip())
    if ends[0] not in prefix or ends[1] not in prefix or int(ends[0]) > int(ends[1]):
        raise ModelError(f"subnet {subnet}: the pool {quoted(text)} is no range inside {prefix}")
    return ends


def _server(table: ServerTable) -> Server:
    return Server(
        id=table.id,
        mac=mac(table.mac),
        address=address(table.address) if table.address else None,
        edge=table.edge,
        services=frozenset(table.services),
        routes=tuple(network(route) for route in table.routes),
        given_at=port_ref(table.at) if table.at else None,
        gateway_group=table.gateway_group,
    )
