"""The controller's configuration file: the fabric as the operator built it.

TOML; every key is checked, and a mistake is answered with the file, the key and what was expected.
"""

import tomllib
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from retinue.controller.audit import AUDIT_SECONDS
from retinue.controller.history import MOVES_KEPT
from retinue.model import (
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
    mac,
)

LISTENERS = ("openflow", "ovsdb", "rest")


class ConfigError(Exception):
    """The file cannot be used; the message names it, the place in it and the reason."""


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Listen(_Table, frozen=True):
    """Addresses (host:port) the controller listens at."""

    openflow: str = "127.0.0.1:6653"
    ovsdb: str = "127.0.0.1:6640"
    rest: str = "127.0.0.1:8080"
    plaintext: list[Literal["openflow", "ovsdb", "rest"]] = []
    """Those of the three that speak plain text and believe whoever connects. All others use TLS."""


class TlsTable(_Table, frozen=True):
    """Files (PEM); relative ones are looked for beside the configuration."""

    ca: str
    """The authority whose certificates are believed."""
    certificate: str
    """The controller's own, of role controller."""
    key: str


class RestTable(_Table, frozen=True):
    tokens: str = ""
    """A file with bearer tokens (see pki.tokens); "": certificates only."""


class SubnetTable(_Table, frozen=True):
    id: str
    prefix: str
    gateway: str
    vlan: int = 0
    dhcp: list[str] = []
    """DHCP servers of other subnets, to which the messages of this one's VMs are relayed."""


class SwitchTable(_Table, frozen=True):
    id: str
    role: Role
    dpid: str
    uplink: str = ""


class LinkTable(_Table, frozen=True):
    leaf: str
    spine: str


class ServerTable(_Table, frozen=True):
    id: str
    mac: str
    address: str = ""
    edge: str = ""
    services: list[Service] = []
    routes: list[str] = []
    at: str = ""


class Config(_Table, frozen=True):
    """The whole file."""

    gateway_mac: str
    moves_kept: Annotated[int, msgspec.Meta(ge=1)] = MOVES_KEPT
    """Moves that have ended and are remembered; the last one of each VM is, besides."""
    audit_seconds: Annotated[float, msgspec.Meta(ge=0, le=86400)] = AUDIT_SECONDS
    """Within this time each connected switch is read again, and mended if need be. 0: never."""
    warm_up_seconds: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.25
    """How long a VM that has moved has its new server to itself, before its old place is cleaned up and its
    lease renewed. Both take processor time, just when the VM's caches are cold."""
    forward_seconds: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.5
    """For how long, from when a VM runs at its new place on, its old server's switch sends on what still
    comes there: a busy switch may follow its own flow tables late."""
    listen: Listen = Listen()
    tls: TlsTable | None = None
    rest: RestTable = RestTable()
    subnet: list[SubnetTable] = []
    switch: list[SwitchTable] = []
    link: list[LinkTable] = []
    server: list[ServerTable] = []

    def network(self) -> Network:
        """A network with what the file says, and nothing else yet. Raises ConfigError."""
        try:
            net = Network(mac(self.gateway_mac))
            for switch in self.switch:
                net.add_switch(Switch(switch.id, switch.role, _dpid(switch), switch.uplink))
            for link in self.link:
                net.add_link(Link(port_ref(link.leaf), port_ref(link.spine)))
            for subnet in self.subnet:
                net.add_subnet(_subnet(subnet))
            for server in self.server:
                net.put_server(_server(server))
        except ModelError as error:
            raise ConfigError(str(error)) from error
        return net


def load(path: Path) -> Config:
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    try:
        found = msgspec.convert(tomllib.loads(text), Config)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from error
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
    if (tls := config.tls) is not None:
        change["tls"] = TlsTable(*(str(folder / file) for file in (tls.ca, tls.certificate, tls.key)))
    if config.rest.tokens:
        change["rest"] = RestTable(str(folder / config.rest.tokens))
    return msgspec.structs.replace(config, **change)


def port_ref(text: str) -> PortRef:
    """Read "leaf1:leaf1-spine1"; raises ModelError."""
    switch, _, port = text.partition(":")
    if not switch or not port:
        raise ModelError(f"not a port: {text!r} (expected SWITCH:PORT, such as leaf1:leaf1-spine1)")
    return PortRef(switch, port)


def address(text: str) -> IP:
    """Read an IP address; raises ModelError."""
    try:
        return ip_address(text)
    except ValueError as error:
        raise ModelError(f"not an IP address: {text!r}") from error


def network(text: str) -> IPv4Network | IPv6Network:
    """Read a prefix such as 10.1.0.0/24; raises ModelError."""
    try:
        return ip_network(text)
    except ValueError as error:
        raise ModelError(f"not an IP prefix: {error}") from error


def endpoint(text: str) -> tuple[str, int]:
    """Read "192.0.2.1:6653"."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"not an address to listen at: {text!r} (expected HOST:PORT)")
    return host.strip("[]"), int(port)


def _dpid(switch: SwitchTable) -> int:
    try:
        return int(switch.dpid, 16)
    except ValueError:
        raise ModelError(
            f"switch {switch.id}: datapath id {switch.dpid!r} is not a hexadecimal number"
        ) from None


def _subnet(table: SubnetTable) -> Subnet:
    gateway = address(table.gateway)
    servers: list[IPv4Address] = []
    for text in table.dhcp:
        server = address(text)
        if not isinstance(server, IPv4Address) or not isinstance(gateway, IPv4Address):
            raise ModelError(f"subnet {table.id}: DHCP can be relayed over IPv4 only, not to {text}")
        servers.append(server)
    return Subnet(table.id, network(table.prefix), gateway, table.vlan, tuple(servers))


def _server(table: ServerTable) -> Server:
    return Server(
        id=table.id,
        mac=mac(table.mac),
        address=address(table.address) if table.address else None,
        edge=table.edge,
        services=frozenset(table.services),
        routes=tuple(network(route) for route in table.routes),
        given_at=port_ref(table.at) if table.at else None,
    )
