"""What the operator has laid out, with the indexes that questions of it need: switches, links, VRFs, vnets,
subnets and servers.

The lower half of `NetworkView`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network

from retinue.core.limits import HIGHEST_VM_PORT
from retinue.core.model.addresses import IP, Mac, ModelError, Prefix, is_multicast
from retinue.core.model.at_ports import AtPorts
from retinue.core.model.binding import Assignment, Binding, BindingKind, Origin
from retinue.core.model.entities import (
    DEFAULT_VNET,
    GatewayGroup,
    Link,
    Peer,
    PortRef,
    PortStatus,
    Role,
    Server,
    Service,
    Subnet,
    Switch,
    Trust,
    VMPort,
    Vnet,
)
from retinue.core.model.nic import NIC
from retinue.core.model.prefix_index import NestedPrefixes, PrefixIndex
from retinue.core.model.vrfs import DEFAULT_VRF, Address, Vrf, in_vrf


@dataclass
class LayoutView:
    """Frozen values by their ids. `gateway_mac` is the anycast gateway's MAC, shared by all leaves."""

    gateway_mac: Mac
    gateway_groups: dict[str, GatewayGroup] = field(default_factory=dict)
    """By the id of a group of servers: the gateway's MAC for the VMs there."""
    switches: dict[str, Switch] = field(default_factory=dict)
    links: tuple[Link, ...] = ()
    vrfs: dict[str, Vrf] = field(default_factory=lambda: {DEFAULT_VRF: Vrf(DEFAULT_VRF, 0)})
    vnets: dict[str, Vnet] = field(default_factory=lambda: {DEFAULT_VNET.id: DEFAULT_VNET})
    subnets: dict[str, Subnet] = field(default_factory=dict)
    configured: frozenset[str] = frozenset()
    """What stands in the configuration file: "vrf ID", "switch ID", "link LOWER - UPPER" and
    so on."""
    servers: dict[str, Server] = field(default_factory=dict)
    peers: dict[str, Peer] = field(default_factory=dict)
    """Other domains."""
    detected: AtPorts[str] = field(default_factory=AtPorts)
    """Server id to the leaf port where its ARP was last seen; where its edge has several uplinks, that of the
    one in use."""
    uplink_places: AtPorts[PortRef] = field(default_factory=AtPorts)
    """By uplinks of edges that have several: the leaf port to which each leads, as LLDP has found."""
    in_use: dict[str, str] = field(default_factory=dict)
    """By edges that have several uplinks: the one by which all goes, up and down."""
    drained: set[str] = field(default_factory=set)
    """Servers on which the operator wants no VM: none is put or migrated there."""
    fenced: set[str] = field(default_factory=set)
    """Servers of which the operator says that they are dead: nothing from there passes their leaf."""
    unanchored: set[str] = field(default_factory=set)
    """VMs of ours that are in another domain, and whose traffic does not pass our gateway any more: neither
    what is for them nor what they send."""
    untold: set[str] = field(default_factory=set)
    """Edges of which it has not been told since the start which VMs have ports there."""
    lost_routers: dict[str, str] = field(default_factory=dict)
    """Routers that are not there at the moment, each with why: another one is the way, if there is one."""
    routers_to: dict[tuple[str, Prefix], dict[str, None]] = field(default_factory=dict)
    """By VRF and prefix: the servers through which it is reached."""
    mtu: int = 1500
    """Bytes of an IP packet that each switch and server takes, and that VMs may send."""
    channel_kbps: int = 0
    """Kilobits a second that one server may send to others with which it exchanges VMs; 0: as many as go."""
    rewrites: bool = True
    """Edges replace a unicast MAC that they do not know by the gateway's; False: as without this software."""
    spines_by_mac: bool = False
    """Spines and cores forward by servers' MACs alone, and leaves know all hosts; False: they route."""
    _subnet_at: dict[tuple[str, int, int, int], str] = field(default_factory=dict)
    """By VRF, IP version, length and bits of its prefix: the subnet's id."""
    _prefix_lengths: dict[int, list[int]] = field(default_factory=dict)
    """By IP version: the lengths of the subnets' prefixes."""
    _with_role: dict[Role, dict[str, None]] = field(default_factory=dict)
    """By role: the ids of the switches that have it, in the order in which they came."""
    _numbers: dict[str, dict[str, int]] = field(default_factory=dict)
    _names: dict[str, dict[int, str]] = field(default_factory=dict)
    idle_links: set[PortRef] = field(default_factory=set)
    """Links by which nothing is sent up, by their lower ends: of new ones it is not known yet that both ends
    hold what they should, and others are about to go."""
    by_dpid: dict[int, str] = field(default_factory=dict)
    """The switches by their datapath ids."""
    lost_links: dict[PortRef, str] = field(default_factory=dict)
    """Links that lose frames though both ends have a carrier, by their lower ends: each with why."""
    _down: dict[str, frozenset[str]] = field(default_factory=dict)
    """By switch: its ports that have no link, as it has told."""
    _ways: dict[tuple[str, str], PortRef] = field(default_factory=dict)
    """By spine or core, and leaf: the port by which it leads to the leaf."""
    _links_at: dict[str, list[Link]] = field(default_factory=dict)
    """By switch: the links of which it has an end."""
    _given: AtPorts[str] = field(default_factory=AtPorts)
    """Server id to the leaf port where the operator says it is."""
    _server_of_chassis: dict[str, str] = field(default_factory=dict)
    _server_of_mac: dict[Mac, str] = field(default_factory=dict)
    _server_of_edge: dict[str, str] = field(default_factory=dict)
    _server_of_host: dict[str, str] = field(default_factory=dict)
    _host_of_mac: dict[Mac, str] = field(default_factory=dict)
    _server_of_address: dict[Address, str] = field(default_factory=dict)
    _reached: dict[str, NestedPrefixes] = field(default_factory=dict)
    """By VRF: the prefixes of `routers_to`."""
    _servers_in: dict[str, PrefixIndex] = field(default_factory=dict)
    """By VRF: the servers' addresses, each as a prefix of its own, and whose each is."""
    _forwarders: set[str] = field(default_factory=set)
    """The servers that are FCoE forwarders."""

    def __post_init__(self) -> None:
        if is_multicast(self.gateway_mac):
            raise ModelError(
                f"gateway MAC {self.gateway_mac} is a group address, which no host has; choose a "
                "locally administered unicast one, such as 00:00:de:ad:be:ef"
            )

    def port_number(self, ref: PortRef) -> int | None:
        return self._numbers.get(ref.switch, {}).get(ref.port)

    def port_name(self, switch: str, number: int) -> str | None:
        return self._names.get(switch, {}).get(number)

    def uplink_number(self, edge: str) -> int | None:
        """Number of an edge's port to its leaf; of one with several the first that is there (see
        `pipeline.uplinks`)."""
        numbers = (self.port_number(PortRef(edge, name)) for name in self.switches[edge].uplinks)
        return next((number for number in numbers if number is not None), None)

    def is_down(self, ref: PortRef) -> bool:
        """True where the switch has told that the port has no link."""
        return ref.port in self._down.get(ref.switch, ())

    def has_told_ports(self, switch: str) -> bool:
        """True once the switch has told its ports: one that has none is no switch."""
        return bool(self._numbers.get(switch))

    def location(self, server: str) -> PortRef | None:
        """The leaf port of a server: as the operator gave it, else where its ARP was seen."""
        return self.servers[server].given_at or self.detected.get(server)

    def server_of_mac(self, address: Mac) -> Server | None:
        name = self._server_of_mac.get(address)
        return None if name is None else self.servers[name]

    def server_of_address(self, ip: IP, vrf: str = DEFAULT_VRF) -> Server | None:
        """The server with this address; in another VRF than the default one that is a router."""
        name = self._server_of_address.get(in_vrf(vrf, ip))
        return None if name is None else self.servers[name]

    def servers_in(self, prefix: Prefix, vrf: str = DEFAULT_VRF) -> Iterator[tuple[IP, str]]:
        """The addresses of servers that are part of a prefix, each with its server."""
        found = self._servers_in[vrf].overlapping(prefix) if vrf in self._servers_in else iter(())
        return ((address.network_address, server) for address, server in found)

    def reached_in(self, prefix: Prefix, vrf: str = DEFAULT_VRF) -> Iterator[Prefix]:
        """The prefixes that are reached through servers, and are part of this one."""
        return self._reached[vrf].inside(prefix) if vrf in self._reached else iter(())

    def server_of_chassis(self, chassis: str) -> Server | None:
        """The server with this LLDP chassis id."""
        name = self._server_of_chassis.get(chassis)
        return None if name is None else self.servers[name]

    @property
    def has_chassis(self) -> bool:
        """True where there is a server that is known by its LLDP chassis id."""
        return bool(self._server_of_chassis)

    def given_at(self, at: PortRef) -> tuple[str, ...]:
        """The server that the operator says is at this leaf port."""
        return self._given.at(at)

    def located_at(self, at: PortRef) -> Iterator[str]:
        """The servers whose location is this leaf port."""
        for id in dict.fromkeys((*self._given.at(at), *self.detected.at(at))):
            if id in self.servers and self.location(id) == at:
                yield id

    def at_leaf(self, leaf: str) -> set[str]:
        """The servers that are given, or were detected, at this leaf."""
        return {server for index in (self._given, self.detected) for server, _ in index.at_switch(leaf)}

    def server_of_host(self, host: str) -> Server | None:
        """The server at whose edge switch a host is."""
        name = self._server_of_host.get(host)
        return None if name is None else self.servers[name]

    def place_of_mac(self, address: Mac) -> tuple[str, str] | None:
        """The server with this MAC, and "", or a host with it after its server."""
        host = self._host_of_mac.get(address, "")
        server = self._server_of_host[host] if host else self._server_of_mac.get(address)
        return None if server is None else (server, host)

    def server_of_edge(self, switch: str) -> Server | None:
        name = self._server_of_edge.get(switch)
        return None if name is None else self.servers[name]

    @property
    def gateway_macs(self) -> tuple[Mac, ...]:
        """Every MAC by which the gateway is known: a frame to one is the gateway's, wherever it is sent."""
        return self.gateway_mac, *(group.mac for group in self.gateway_groups.values())

    def gateway_mac_of(self, server: Server | None) -> Mac:
        """The MAC by which the VMs of a server know the gateway."""
        group = "" if server is None else server.gateway_group or self.default_group
        return self.gateway_groups[group].mac if group else self.gateway_mac

    @property
    def default_group(self) -> str:
        """The group of servers that say none; "": there is no such group."""
        return next((group.id for group in self.gateway_groups.values() if group.default), "")

    def servers_with(self, service: Service) -> list[Server]:
        return [s for s in self.servers.values() if service in s.services]

    def forwarder_at(self, switch: str, port: int) -> Server | None:
        """The FCoE forwarder whose location is this leaf port."""
        name = self.port_name(switch, port)
        at = None if name is None else PortRef(switch, name)
        return next((s for s in self.forwarders() if self.location(s.id) == at), None)

    def forwarders(self) -> list[Server]:
        """The FCoE forwarders. This is asked of every NIC: all servers are not looked through."""
        return [self.servers[name] for name in sorted(self._forwarders)]

    def dhcp_server_at(self, at: PortRef) -> Server | None:
        """The DHCP server whose location is this leaf port."""
        return next((s for s in self.servers_with(Service.DHCP) if self.location(s.id) == at), None)

    def peer_at(self, server: str) -> Peer | None:
        """The domain to which a server is the gateway."""
        return next((peer for peer in self.peers.values() if peer.gateway == server), None)

    def tunnel_at(self, switch: str) -> VMPort | None:
        """The port of a gateway's edge switch that leads to its peer; every VM that is away has it there."""
        peer = self.peer_at(self._server_of_edge.get(switch, "")) if self.peers else None
        number = None if peer is None else self.port_number(PortRef(switch, peer.tunnel))
        if peer is None or number is None or number > HIGHEST_VM_PORT:
            return None
        return VMPort(number, peer.tunnel)

    def tunnel_to(self, domain: str) -> tuple[str, int] | None:
        """The gateway's edge switch, and its port, that lead to another domain."""
        peer = self.peers.get(domain)
        edge = "" if peer is None else self.servers[peer.gateway].edge
        tunnel = self.tunnel_at(edge)
        return None if tunnel is None else (edge, tunnel.number)

    def is_tunnel(self, switch: str, port: int) -> bool:
        """True for the port that leads to another domain's gateway."""
        tunnel = self.tunnel_at(switch)
        return tunnel is not None and tunnel.number == port

    def vlan_in_trunk(self, nic: NIC) -> int:
        """The tag that a NIC's frames have at its port; 0: none."""
        vnet = self.vnets.get(nic.vnet) if nic.trunk else None
        return 0 if vnet is None else vnet.vlan

    def vrf_of_vnet(self, vnet: str) -> str:
        """The VRF of a vnet; of "", which is that of the fabric's subnets, the default one."""
        return self.vnets[vnet].vrf if vnet in self.vnets else DEFAULT_VRF

    def is_isolated(self, vnet: str) -> bool:
        """True for a vnet that is alone in the VRF of its name, whose tag is its VLAN: nothing is routed to
        another, and between switches its frames have its VLAN."""
        known = self.vnets.get(vnet)
        return (
            known is not None
            and known.vrf == known.id
            and known.vlan == self.vrfs[known.vrf].tag != 0
            and not any(other.vrf == known.vrf and other.id != known.id for other in self.vnets.values())
        )

    def vrf_of(self, nic: NIC | None) -> str:
        """The VRF in which a NIC's addresses are meant."""
        return self.vrf_of_vnet("" if nic is None else nic.vnet)

    def vrf_with_tag(self, tag: int) -> str | None:
        """The VRF whose packets have this tag on the fabric's links."""
        return next((vrf.id for vrf in self.vrfs.values() if vrf.tag == tag), None)

    def vrf_at_port(self, server: Server, vlan: int) -> str | None:
        """The VRF of what has this tag at a server's leaf port (0: none); None: no VRF's."""
        if not vlan:
            return DEFAULT_VRF
        return next((one.vrf for one in server.subinterfaces if one.vlan == vlan), None)

    def has_vrfs(self) -> bool:
        """True when there is another VRF than the default one; without, no entry tells any apart."""
        return len(self.vrfs) > 1

    def static(self, vm: str, nic: NIC, ip: IP) -> Assignment:
        """An address that the manager gives to a VM's NIC, in the NIC's VRF."""
        return Assignment(ip, nic.mac, vm, BindingKind.STATIC, Origin.MANAGER, vrf=self.vrf_of(nic))

    def subnets_in(self, vrf: str = DEFAULT_VRF) -> Iterator[Subnet]:
        return (s for s in self.subnets.values() if self.vrf_of_vnet(s.vnet) == vrf)

    def subnet_of(self, ip: IP, vrf: str = DEFAULT_VRF) -> Subnet | None:
        bits, number = ip.max_prefixlen, int(ip)
        for length in self._prefix_lengths.get(ip.version, ()):
            id = self._subnet_at.get((vrf, ip.version, length, number >> (bits - length)))
            if id is not None:
                return self.subnets[id]
        return None

    def subnets_of(self, assignments: Iterable[Assignment]) -> list[Subnet]:
        """The subnets in which these addresses are, each once, by their ids."""
        found = {s.id: s for a in assignments if (s := self.subnet_of(a.ip, a.vrf)) is not None}
        return [found[id] for id in sorted(found)]

    def vlan_of(self, subnet: Subnet) -> int:
        return subnet.vlan or self.vnets[subnet.vnet].vlan

    def vnets_of(self, nic: NIC) -> list[Vnet]:
        """The vnet that a NIC is said to be in; or those of its static addresses; or the default one."""
        subnets = (self.subnet_of(ip) for ip in nic.addresses)
        vnets = {nic.vnet} if nic.vnet else {subnet.vnet for subnet in subnets if subnet is not None}
        return [self.vnets[vnet] for vnet in sorted(vnets or {DEFAULT_VNET.id})]

    def mtu_of(self, nic: NIC) -> int:
        """Bytes of an IP packet that a NIC's network takes: as its vnet says, and no more than switches take.

        Of a NIC of which no vnet is said it is what the vnets of its static addresses say, at the least.
        """
        return min(self.mtu, *(self.mtu_in(vnet.id) for vnet in self.vnets_of(nic)))

    def mtu_in(self, vnet: str) -> int:
        """Bytes of an IP packet that a vnet takes."""
        return min(self.mtu, self.vnets[vnet].mtu or self.mtu)

    def port_down(self, switch: str, leaf: str) -> int | None:
        """Number of the port by which a spine, or core, leads to a leaf; None where it does not."""
        way = self._ways.get((switch, leaf))
        return None if way is None else self.port_number(way)

    def _leads_up(self, switch: str, port: str) -> bool:
        """True for a port of a leaf to a spine, or to other leaves, or of a spine to a core."""
        to_others = port == self.switches[switch].tunnel != ""
        return to_others or any(link.lower == PortRef(switch, port) for link in self.links_at(switch))

    def links_at(self, switch: str) -> Iterable[Link]:
        """The links of which a switch has an end."""
        return self._links_at.get(switch, ())

    def link_at(self, lower: PortRef) -> Link | None:
        """The link between switches with this lower end."""
        return next((link for link in self.links_at(lower.switch) if link.lower == lower), None)

    @property
    def over_ip(self) -> bool:
        """True where tunnels over an IP network that is not ours join leaves, and no spines.

        All leaves are alike in this (see constraints.check_tiers): one is asked.
        """
        first = next(self.with_role(Role.LEAF), None)
        return first is not None and first.endpoint is not None and not first.router

    @property
    def over_routers(self) -> bool:
        """True where the leaves are routers that are not ours; all are alike in this, too."""
        first = next(self.with_role(Role.LEAF), None)
        return first is not None and first.router

    @property
    def leaves_know_all(self) -> bool:
        """True where each leaf holds the hosts that are elsewhere, too."""
        return self.over_ip or self.over_routers or self.spines_by_mac

    def with_role(self, role: Role) -> Iterator[Switch]:
        return (self.switches[id] for id in self._with_role.get(role, ()))

    def _row(self, nic: NIC, assignment: Assignment, edge: str, port: VMPort, active: bool) -> Binding:
        subnet = self.subnet_of(assignment.ip, assignment.vrf)
        return Binding(
            mac=nic.speaks_as(assignment.ip),
            ip=assignment.leads,
            kind=assignment.kind,
            vm=assignment.vm,
            switch=edge,
            port=port.number,
            lease_end=assignment.lease_end,
            vlan=self.vlan_of(subnet) if subnet else 0,
            port_status=port.status if nic.enabled else PortStatus.DISABLED,
            trust=Trust.TRUST if nic.trusted else Trust.UNTRUST,
            origin=assignment.origin,
            active=active,
            vrf=assignment.vrf,
        )

    def _index_server(self, server: Server) -> None:
        self._server_of_mac[server.mac] = server.id
        if server.edge:
            self._server_of_edge[server.edge] = server.id
        if server.given_at is not None:
            self._given[server.id] = server.given_at
        if server.chassis:
            self._server_of_chassis[server.chassis] = server.id
        for host in server.hosts:
            self._server_of_host[host.id] = server.id
            self._host_of_mac[host.mac] = host.id
        for vrf, ip in server.addresses:
            self._server_of_address[in_vrf(vrf, ip)] = server.id
            self._servers_in.setdefault(vrf, PrefixIndex()).put(ip_network(ip), server.id)
        for way in server.ways:
            self.routers_to.setdefault(way, {})[server.id] = None
            self._reached.setdefault(way[0], NestedPrefixes()).put(way[1])
        if Service.FORWARDER in server.services:
            self._forwarders.add(server.id)

    def _forget_server(self, server: str) -> None:
        """Take it out of the indexes."""
        old = self.servers.get(server)
        if old is None:
            return
        del self._server_of_mac[old.mac]
        self._server_of_edge.pop(old.edge, None)
        self._server_of_chassis.pop(old.chassis, None)
        self._given.pop(server, None)
        self._forwarders.discard(server)
        for host in old.hosts:
            del self._server_of_host[host.id], self._host_of_mac[host.mac]
        for vrf, ip in old.addresses:
            del self._server_of_address[in_vrf(vrf, ip)]
            self._servers_in[vrf].discard(ip_network(ip))
        for way in set(old.ways):
            self.routers_to[way].pop(server, None)
            if not self.routers_to[way]:
                del self.routers_to[way]
                self._reached[way[0]].discard(way[1])
