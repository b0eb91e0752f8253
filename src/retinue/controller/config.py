"""The controller's configuration file: the fabric as the operator built it.

TOML; every key is checked, and a mistake is answered with the file, the key and what was expected.
"""

from collections.abc import Collection
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Any, Literal
from zlib import crc32

import msgspec

from retinue.config_file import ConfigError, ConfigTable, TlsTable, read
from retinue.controller.audit import AUDIT_SECONDS
from retinue.controller.config_tables import (
    LISTENERS,
    ClusterTable,
    DomainTable,
    GatewayGroupTable,
    LinkTable,
    Listen,
    ManagersTable,
    PairTable,
    PlacementTable,
    RestTable,
    ServerTable,
    SubnetTable,
    SwitchTable,
    VnetTable,
    VrfTable,
    VxlanTable,
)
from retinue.controller.dns.zone import DnsTable
from retinue.controller.migrations.history import MIGRATIONS_KEPT
from retinue.controller.parsing import address, network, port_ref, subinterface, subnet
from retinue.controller.zenoh_names import ZenohTable
from retinue.core.limits import LEAST_MTU, MOST_CHANNEL_MBPS, MOST_LEASES, MOST_MTU, VXLAN_BYTES
from retinue.core.migration.copying import Postcopy
from retinue.core.model import (
    IP,
    GatewayGroup,
    Mac,
    ModelError,
    Network,
    Peer,
    Server,
    Switch,
    Vnet,
    Vrf,
    entity_id,
    mac,
    mac_to_come,
)
from retinue.core.model.constraints import check_tiers
from retinue.core.model.plain_routers import OTHERS
from retinue.core.snooping.dhcp_rules import LEASES_PER_NIC
from retinue.core.text import quoted
from retinue.socket_addresses import endpoint


class Config(ConfigTable, frozen=True):
    """The whole file."""

    gateway_mac: str
    migrations_kept: Annotated[int, msgspec.Meta(ge=1)] = MIGRATIONS_KEPT
    """How many ended migrations are remembered; the last one of each VM is, besides."""
    audit_seconds: Annotated[float, msgspec.Meta(ge=0, le=86400)] = AUDIT_SECONDS
    """Within this time each connected switch is read back, and repaired if need be. 0: never."""
    switch_seconds: Annotated[float, msgspec.Meta(ge=1, le=60)] = 5.0
    """In which a switch or its database says who it is, and a switch confirms a change; half of the time in
    which it must give a sign of life. Longer for those that are far."""
    warm_up_seconds: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.25
    """How long a VM that has migrated has its new server to itself, before its old server is freed and its
    lease renewed. Both take processor time, just when the VM's caches are cold."""
    postcopy: Postcopy = Postcopy.NEVER
    """Whether VMs may run at the target before all of their memory is there: see core.migration.copying."""
    compress: bool = False
    """Whether agents compress the memory that they send each other. Whoever starts a migration may say
    otherwise, of both."""
    step_factor: Annotated[float, msgspec.Meta(ge=1, le=10)] = 1.0
    """So many times as long as docs/limits.md says a migration's steps may take, for its switches and its
    agents: for those that are far."""
    channel_mbps: Annotated[int, msgspec.Meta(ge=0, le=MOST_CHANNEL_MBPS)] = 0
    """Megabits a second that one server may send to others with which it exchanges VMs, where that goes by
    our switches; 0: as many as go."""
    forward_seconds: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.5
    """For how long, from when a VM runs at its new place on, its old server's switch sends on what still
    comes there: a busy switch may follow its own flow tables late."""
    router_silence_seconds: Annotated[float, msgspec.Meta(ge=1, le=60)] = 3.0
    """A router that has not answered for so long is lost, where another leads to the same prefix."""
    router_hold_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 10.0
    """For so long a router that was lost must be well again before it is the way again."""
    link_probe_seconds: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0.2
    """So often each link between switches is probed, each way. 0: never."""
    link_hold_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 10.0
    """For so long a link that has lost frames must lose none before it is used again; longer each time that
    it is lost soon after."""
    leases_per_nic: Annotated[int, msgspec.Meta(ge=1, le=MOST_LEASES)] = LEASES_PER_NIC
    """Leases of IPv4 that one NIC may hold at a time, under as many client identifiers."""
    mtu: Annotated[int, msgspec.Meta(ge=LEAST_MTU, le=MOST_MTU)] = 1500
    """Bytes of an IP packet that each switch and server takes: VMs may send so much."""
    rewrite: bool = True
    """Edges replace a unicast MAC that they do not know by the gateway's. False is for comparison only: what
    is for a VM that has moved is lost at the leaf then."""
    spines: Literal["ip", "mac"] = "ip"
    """By what spines and cores forward: they hold the routes of all hosts, or know servers' MACs alone, and
    leaves hold the routes."""
    listen: Listen = Listen()
    tls: TlsTable | None = None
    rest: RestTable = RestTable()
    gateway_group: list[GatewayGroupTable] = []
    vrf: list[VrfTable] = []
    vnet: list[VnetTable] = []
    placement: PlacementTable = PlacementTable()
    dns: DnsTable = DnsTable()
    zenoh: ZenohTable = ZenohTable()
    subnet: list[SubnetTable] = []
    switch: list[SwitchTable] = []
    link: list[LinkTable] = []
    vxlan: VxlanTable = VxlanTable()
    server: list[ServerTable] = []
    domain: list[DomainTable] = []
    managers: ManagersTable = ManagersTable()
    cluster: ClusterTable | None = None
    pair: list[PairTable] = []

    def pairs(self) -> list[tuple[Mac, IP]]:
        """The pool of pairs of MAC and IP. Raises ConfigError."""
        try:
            return [(mac(one.mac), address(one.ip)) for one in self.pair]
        except ModelError as error:
            raise ConfigError(str(error)) from error

    def routers(self) -> dict[str, list[str]]:
        """By router that is not ours: the command that starts its adapter."""
        return {switch.id: switch.router for switch in self.switch if switch.router}

    def network(self) -> Network:
        """A network with what the file says, and nothing else yet. Raises ConfigError."""
        try:
            net = Network(mac(self.gateway_mac), mtu=self.mtu, rewrites=self.rewrite)
            net.channel_kbps = self.channel_mbps * 1000
            net.spines_by_mac = self.spines == "mac"
            for switch in self.switch:
                net.add_switch(_switch(switch))
            for link in self.link:
                net.add_link(link.ends())
            check_tiers(net)
            if net.over_ip:
                net.mtu = min(net.mtu, self.vxlan.mtu - VXLAN_BYTES)
            for group in self.gateway_group:
                net.put_gateway_group(GatewayGroup(entity_id(group.id, "a gateway group"), mac(group.mac)))
            for vrf in self.vrf:
                net.put_vrf(Vrf(entity_id(vrf.id, "a VRF"), vrf.tag))
            for kind, ids in (
                ("gateway group", [one.id for one in self.gateway_group]),
                ("VRF", [one.id for one in self.vrf]),
                ("vnet", [one.id for one in self.vnet]),
                ("subnet", [one.id for one in self.subnet]),
                ("switch", [one.id for one in self.switch]),
                ("server", [one.id for one in self.server]),
            ):
                if twice := next((id for id in ids if ids.count(id) > 1), ""):
                    raise ModelError(f"{kind} {twice} is given twice")
            for vnet in self.vnet:
                made = Vnet(entity_id(vnet.id, "a vnet"), vnet.vlan, vnet.mtu, vnet.vrf, vnet.flood)
                if vnet.isolated:
                    own, made = made.isolated()
                    net.put_vrf(own)
                net.put_vnet(made)
            if shared := next((v.id for v in self.vnet if v.isolated and not net.is_isolated(v.id)), ""):
                raise ModelError(f"vnet {shared} is isolated, and another vnet is in VRF {shared}, too")
            for table in self.subnet:
                given = subnet(
                    *(
                        entity_id(table.id, "a subnet"),
                        table.prefix,
                        table.gateway,
                        table.dhcp,
                        table.vnet,
                        table.dhcp_pools,
                    ),
                    table.slaac,
                    table.dhcp6,
                )
                net.add_subnet(replace(given, vlan=table.vlan))
            kinds: dict[str, Collection[str]] = {"vrf": net.vrfs, "vnet": net.vnets, "subnet": net.subnets}
            kinds["gateway group"] = net.gateway_groups
            kinds["switch"], kinds["link"] = net.switches, [str(link) for link in net.links]
            net.configured = frozenset(f"{kind} {one}" for kind, ids in kinds.items() for one in ids)
            for server in self.server:
                net.put_server(_server(server))
                net.configured |= {f"server {server.id}"}
            for domain in self.domain:
                if domain.id in net.peers:
                    raise ModelError(f"domain {domain.id} is given twice")
                prefixes = tuple(network(prefix) for prefix in domain.prefixes)
                id = entity_id(domain.id, "a domain")
                peer = Peer(id, domain.gateway, domain.tunnel, prefixes, domain.match, domain.names)
                idle = float(domain.anchor_idle_seconds)
                peer = replace(peer, storage=domain.storage, images=domain.images, anchor_idle=idle)
                net.put_peer(peer)
        except ModelError as error:
            raise ConfigError(str(error)) from error
        return net


def load(path: Path) -> Config:
    """Raises ConfigError."""
    found = read(path, Config)
    listeners: dict[tuple[str, int], str] = {}
    for name in LISTENERS:
        try:
            at = endpoint(getattr(found.listen, name))
        except ValueError as error:
            raise ConfigError(f"{path}: listen.{name}: {error}") from error
        if at[1] and at in listeners:
            raise ConfigError(f"{path}: listen.{name}: listen.{listeners[at]} is there; give it another port")
        listeners[at] = name
    found.dns.checked()
    found.zenoh.checked(tls=found.tls is not None)
    unsaid = [name for name in LISTENERS if name not in found.listen.plaintext]
    if found.tls is None and unsaid:
        named = msgspec.json.encode(unsaid).decode()
        raise ConfigError(
            f"{path}: {' and '.join(unsaid)} would be open to whoever connects. Add the table [tls] with ca, "
            "certificate and key (`retinue pki init` and `retinue pki issue controller` make them), or say "
            f"by name what is to be plain text: plaintext = {named} in [listen]"
        )
    if found.cluster is not None:
        _check_cluster(path, found.cluster)
    _check_managers(path, found)
    if found.domain and found.tls is None:
        raise ConfigError(f"{path}: domains speak TLS with each other; add the table [tls]")
    for domain in found.domain:
        if domain.names and not found.dns.zone:
            raise ConfigError(f"{path}: domain {domain.id}: names: they would be in no zone; add dns.zone")
        try:
            endpoint(domain.listen)
        except ValueError as error:
            raise ConfigError(f"{path}: domain {domain.id}: listen: {error}") from error
        if not domain.url.startswith("https://"):
            raise ConfigError(
                f"{path}: domain {domain.id}: url: {quoted(domain.url)} is no https://HOST:PORT"
            )
    return _beside(path.parent, found)


def _check_managers(path: Path, config: Config) -> None:
    given = config.managers
    if not given.mobility and not given.resources:
        return
    for key, url in (("mobility", given.mobility), ("resources", given.resources)):
        if not url.startswith("https://"):
            raise ConfigError(
                f"{path}: managers.{key}: {quoted(url)} is no https://HOST:PORT; both managers are needed"
            )
    if config.tls is None:
        raise ConfigError(f"{path}: managers are spoken to by TLS; add the table [tls]")
    if unknown := sorted({*given.domains} - {one.id for one in config.domain}):
        raise ConfigError(f"{path}: managers.domains: there is no [[domain]] {quoted(unknown[0])}")


def _check_cluster(path: Path, cluster: ClusterTable) -> None:
    try:
        entity_id(cluster.name, "a controller")
    except ModelError as error:
        raise ConfigError(f"{path}: cluster.name: {error}") from error
    if not cluster.database:
        raise ConfigError(f"{path}: cluster.database names no server")
    for one in cluster.database:
        kind, _, rest = one.partition(":")
        try:
            if kind != "unix":
                endpoint(rest)
        except ValueError as error:
            raise ConfigError(f"{path}: cluster.database: {error}") from error
        if kind not in ("ssl", "tcp", "unix"):
            raise ConfigError(f"{path}: cluster.database: {quoted(one)} is no ssl:HOST:PORT or unix:PATH")
        if kind == "ssl" and cluster.tls is None:
            raise ConfigError(f"{path}: cluster.database: {one} needs the table [cluster.tls]")


def _beside(folder: Path, config: Config) -> Config:
    """With the paths of its files complete."""
    change: dict[str, Any] = {}
    if config.tls is not None:
        change["tls"] = config.tls.beside(folder)
    if config.cluster is not None and config.cluster.tls is not None:
        tls = config.cluster.tls.beside(folder)
        change["cluster"] = msgspec.structs.replace(config.cluster, tls=tls)
    if config.domain:
        change["domain"] = [
            msgspec.structs.replace(domain, ca=str(folder / domain.ca)) for domain in config.domain
        ]
    if config.managers.ca:
        change["managers"] = msgspec.structs.replace(config.managers, ca=str(folder / config.managers.ca))
    if config.rest.tokens:
        change["rest"] = RestTable(str(folder / config.rest.tokens))
    return msgspec.structs.replace(config, **change)


def _dpid(switch: SwitchTable) -> int:
    try:
        return int(switch.dpid, 16)
    except ValueError:
        raise ModelError(
            f"switch {switch.id}: datapath id {switch.dpid!r} is not a hexadecimal number"
        ) from None


def _switch(table: SwitchTable) -> Switch:
    if table.router:
        return _router(table)
    endpoint = address(table.endpoint) if table.endpoint else None
    if isinstance(endpoint, IPv6Address):
        raise ModelError(f"switch {table.id}: endpoint {endpoint} is no address of IPv4")
    return Switch(
        entity_id(table.id, "a switch"), table.role, _dpid(table), table.uplink,
        table.places == "given", table.tunnel, endpoint,
        vdp=table.vdp, gateway_group=table.gateway_group, standby=tuple(table.standby),
    )  # fmt: skip


def _router(table: SwitchTable) -> Switch:
    """A router has no datapath id, and where it is its neighbours know: both are numbers for it alone."""
    if table.dpid or table.uplink or table.tunnel or table.endpoint:
        raise ModelError(f"switch {table.id}: beside `router` there is only `role`, which is leaf")
    number = crc32(entity_id(table.id, "a switch").encode())
    at = IPv4Address(0xF000_0000 | number >> 4)
    return Switch(table.id, table.role, 1 << 63 | number, given=True, tunnel=OTHERS, endpoint=at, router=True)


def _server(table: ServerTable) -> Server:
    return Server(
        id=entity_id(table.id, "a server"),
        mac=mac(table.mac) if table.mac else mac_to_come(table.id),
        address=address(table.address) if table.address else None,
        edge=table.edge,
        services=frozenset(table.services),
        routes=tuple(network(route) for route in table.routes),
        metric=table.metric,
        chassis=table.chassis,
        anycast=tuple(map(address, table.anycast)),
        load=table.load,
        given_at=port_ref(table.at) if table.at else None,
        gateway_group=table.gateway_group,
        subinterfaces=tuple(
            subinterface(one.vrf, one.vlan, one.routes, one.address) for one in table.subinterface
        ),
    )
