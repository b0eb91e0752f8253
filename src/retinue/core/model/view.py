"""What the network is at the moment, with the indexes that its questions need.

The reading half of `Network`: what looks at a network without changing it, as `constraints` does, takes this.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from retinue.core.limits import HIGHEST_VM_PORT
from retinue.core.model.addresses import IP, Mac, ModelError, Prefix, is_multicast
from retinue.core.model.binding import Assignment, Binding, BindingKind, Origin
from retinue.core.model.entities import (
    DEFAULT_VNET,
    VM,
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
from retinue.core.model.prefix_index import PrefixIndex
from retinue.core.model.storage import FcLogin
from retinue.core.model.vrfs import DEFAULT_VRF, Address, Vrf, in_vrf


@dataclass
class NetworkView:
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
    """The VRFs, vnets and subnets of the configuration file: "vrf ID", "vnet ID", "subnet ID"."""
    servers: dict[str, Server] = field(default_factory=dict)
    peers: dict[str, Peer] = field(default_factory=dict)
    """Other domains."""
    vms: dict[str, VM] = field(default_factory=dict)
    assignments: dict[Address, Assignment] = field(default_factory=dict)
    """By `Assignment.key`; see `holder`."""
    detected: dict[str, PortRef] = field(default_factory=dict)
    """Server id to the leaf port where its ARP was last seen."""
    fc_logins: dict[Mac, FcLogin] = field(default_factory=dict)
    """By the MAC of a VN_Port: whose it is."""
    drained: set[str] = field(default_factory=set)
    """Servers on which the operator wants no VM: none is put or migrated there."""
    fenced: set[str] = field(default_factory=set)
    """Servers of which the operator says that they are dead: nothing from there passes their leaf."""
    lost_routers: dict[str, str] = field(default_factory=dict)
    """Routers that are not there at the moment, each with why: another one is the way, if there is one."""
    vm_ports: dict[str, dict[str, VMPort]] = field(default_factory=dict)
    """A NIC's port id to its port on each edge switch that has one; a port may be there before its VM."""
    routers_to: dict[Prefix, dict[str, None]] = field(default_factory=dict)
    """By prefix: the servers through which it is reached."""
    mtu: int = 1500
    """Bytes of an IP packet that each switch and server takes, and that VMs may send."""
    rewrites: bool = True
    """Edges replace a unicast MAC that they do not know by the gateway's; False: as without this software."""
    _subnet_at: dict[tuple[str, int, int, int], str] = field(default_factory=dict)
    """By VRF, IP version, length and bits of its prefix: the subnet's id."""
    _prefix_lengths: dict[int, list[int]] = field(default_factory=dict)
    """By IP version: the lengths of the subnets' prefixes."""
    _with_role: dict[Role, dict[str, None]] = field(default_factory=dict)
    """By role: the ids of the switches that have it, in the order in which they came."""
    _numbers: dict[str, dict[str, int]] = field(default_factory=dict)
    _names: dict[str, dict[int, str]] = field(default_factory=dict)
    _down: dict[str, frozenset[str]] = field(default_factory=dict)
    """By switch: its ports that have no link, as it has told."""
    _ways: dict[tuple[str, str], PortRef] = field(default_factory=dict)
    """By spine or core, and leaf: the port by which it leads to the leaf."""
    _server_of_mac: dict[Mac, str] = field(default_factory=dict)
    _server_of_edge: dict[str, str] = field(default_factory=dict)
    _server_of_host: dict[str, str] = field(default_factory=dict)
    _host_of_mac: dict[Mac, str] = field(default_factory=dict)
    _server_of_address: dict[IP, str] = field(default_factory=dict)
    _vms_on: dict[str, set[str]] = field(default_factory=dict)
    _vm_of_mac: dict[Mac, str] = field(default_factory=dict)
    _vm_of_port_id: dict[str, str] = field(default_factory=dict)
    _port_id_at: dict[tuple[str, int], str] = field(default_factory=dict)
    """By switch and port number: the port id of the NIC that is plugged in there."""
    _in_turn: dict[int, dict[str, None]] = field(default_factory=dict)
    """By turn (see `nic.turn_of`): the port ids of its NICs."""
    _allowed: dict[Address | Mac, set[str]] = field(default_factory=dict)
    """By an address that NICs are allowed, and by a MAC as whose they may speak for one: the VMs of these."""
    _routed: PrefixIndex = field(default_factory=PrefixIndex)
    """The prefixes that are routed to NICs, and the NIC's VM of each."""
    _trusted: dict[str, str] = field(default_factory=dict)
    """By the port id of a trusted NIC: its VM."""
    _in_vnet: dict[str, set[str]] = field(default_factory=dict)
    """By vnet: the VMs with a NIC that is said to be in it."""
    _held_by: dict[str, dict[Address, Assignment]] = field(default_factory=dict)
    _forwarders: set[str] = field(default_factory=set)
    """The servers that are FCoE forwarders."""
    _logins_of: dict[Mac, dict[Mac, FcLogin]] = field(default_factory=dict)
    """By the MAC of a NIC: its logins."""
    _lease_ends: list[tuple[float, int, IP, str]] = field(default_factory=list)
    """A heap: when leases end, by IP version, address and VRF; also of leases that are no more, or end
    later."""
    _held_as: dict[bytes, dict[Address, str]] = field(default_factory=dict)
    """By DHCP client identifier: the addresses leased under it, and the VM of each."""

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
        """The server with this address: none has one in another VRF than the default one."""
        name = self._server_of_address.get(ip) if vrf == DEFAULT_VRF else None
        return None if name is None else self.servers[name]

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
        group = "" if server is None else server.gateway_group
        return self.gateway_groups[group].mac if group else self.gateway_mac

    def servers_with(self, service: Service) -> list[Server]:
        return [s for s in self.servers.values() if service in s.services]

    def logins_of(self, nic: Mac) -> tuple[FcLogin, ...]:
        """Of a NIC, by its MAC."""
        return tuple(self._logins_of.get(nic, {}).values())

    def forwarder_at(self, switch: str, port: int) -> Server | None:
        """The FCoE forwarder whose location is this leaf port."""
        name = self.port_name(switch, port)
        at = None if name is None else PortRef(switch, name)
        return next((s for s in self.forwarders() if self.location(s.id) == at), None)

    def forwarders(self) -> list[Server]:
        """The FCoE forwarders. This is asked of every NIC: all servers are not looked through."""
        return [self.servers[name] for name in sorted(self._forwarders)]

    def dhcp_servers(self) -> list[Server]:
        """The DHCP servers: machines of their own, and VMs with a trusted NIC that has an address."""
        in_vms = (self._served_by(port_id) for port_id in sorted(self._trusted))
        return [*self.servers_with(Service.DHCP), *(server for server in in_vms if server is not None)]

    def trusted_at(self, switch: str, port: int) -> Server | None:
        """The DHCP server that is a VM with this port."""
        nic = self.nic_at(switch, port)
        return None if nic is None or not nic.trusted else self._served_by(nic.port_id)

    def port_of_server(self, server: Server) -> tuple[str, int] | None:
        """The edge and port number of a DHCP server that is a VM, where the VM is delivered."""
        vm = self.vm_of_mac(server.mac)
        nic = None if vm is None else vm.nic_with(server.mac)
        if vm is None or nic is None:
            return None
        edge = self.servers[vm.server].edge
        port = self.port_of(nic, edge)
        return None if port is None else (edge, port.number)

    def _served_by(self, port_id: str) -> Server | None:
        vm = self.vm_of_port_id(port_id)
        nic = None if vm is None else vm.nic_called(port_id)
        if vm is None or nic is None or not nic.enabled:
            return None
        held = (a.ip for a in self.assignments_of(vm, nic) if a.kind is not BindingKind.ALLOWED)
        address = next((ip for ip in held if ip.version == 4), None)
        # No server's id has a space in it.
        name = f"VM {port_id}"
        return None if address is None else Server(name, nic.mac, address, services=frozenset({Service.DHCP}))

    def dhcp_server_at(self, at: PortRef) -> Server | None:
        """The DHCP server whose location is this leaf port."""
        return next((s for s in self.servers_with(Service.DHCP) if self.location(s.id) == at), None)

    def vm_of_mac(self, address: Mac) -> VM | None:
        name = self._vm_of_mac.get(address)
        return None if name is None else self.vms[name]

    def vm_of_port_id(self, port_id: str) -> VM | None:
        """The VM whose NIC has the port with this `iface-id`."""
        name = self._vm_of_port_id.get(port_id)
        return None if name is None else self.vms[name]

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

    def port_of(self, nic: NIC, switch: str) -> VMPort | None:
        """The NIC's port on an edge switch, if it has one there."""
        tunnel = self.tunnel_at(switch)
        return tunnel if tunnel is not None else self.vm_ports.get(nic.plugged_as, {}).get(switch)

    def in_turn(self, turn: int) -> Iterator[tuple[VM, NIC]]:
        """The NICs whose turn it is (see `nic.turn_of`), each with its VM."""
        for port_id in self._in_turn.get(turn, ()):
            vm = self.vms[self._vm_of_port_id[port_id]]
            yield from ((vm, nic) for nic in vm.nics if nic.port_id == port_id)

    def has_ports(self, vm: str, switch: str) -> bool:
        """True when every NIC of the VM has its port on this edge switch."""
        known = self.vms.get(vm)
        return known is not None and all(self.port_of(nic, switch) is not None for nic in known.nics)

    def has_a_port(self, vm: VM, switch: str) -> bool:
        """True when any NIC of the VM has its port on this edge switch."""
        return any(self.port_of(nic, switch) is not None for nic in vm.nics)

    def nic_at(self, switch: str, port: int, mac: Mac = "") -> NIC | None:
        """The NIC with this port on a server where its VM is registered, if any.

        `mac`: the source of a frame that the switch has let in there, which tells those of a trunk apart.
        """
        vm = self.vm_at(switch, port)
        if vm is None:
            return None
        port_id = self._port_id_at[switch, port]
        in_trunk = (nic for nic in vm.nics if nic.trunk == port_id and nic.mac == mac)
        return next(in_trunk, None) or vm.nic_called(port_id)

    def vlan_in_trunk(self, nic: NIC) -> int:
        """The tag that a NIC's frames have at its port; 0: none."""
        vnet = self.vnets.get(nic.vnet) if nic.trunk else None
        return 0 if vnet is None else vnet.vlan

    def vm_at(self, switch: str, port: int) -> VM | None:
        """The VM with this port on a server where it is registered, if any."""
        vm = self.vm_of_port_id(self._port_id_at.get((switch, port), ""))
        server = self._server_of_edge.get(switch)
        return vm if vm is not None and server in (vm.server, *vm.also) else None

    def vms_on(self, server: str) -> frozenset[str]:
        """VMs hosted on this server, or migrating to or from it."""
        return frozenset(self._vms_on.get(server, ()))

    def held_by(self, vm: str) -> tuple[Assignment, ...]:
        """Every address a VM has, on whichever NIC."""
        return tuple(self._held_by.get(vm, {}).values())

    def vms_known_as(self, client_id: bytes, vrf: str = DEFAULT_VRF, version: int = 4) -> frozenset[str]:
        """The VMs of a VRF that hold a lease of this IP version under this DHCP client identifier (or DUID):
        one at most, in an honest network."""
        held = self._held_as.get(client_id, {})
        leases = ((self.assignments[key], vm) for key, vm in held.items())
        return frozenset(vm for lease, vm in leases if (lease.vrf, lease.ip.version) == (vrf, version))

    def assignments_of(self, vm: VM, nic: NIC) -> tuple[Assignment, ...]:
        """The addresses assigned to one NIC of a VM."""
        return tuple(a for a in self._held_by.get(vm.id, {}).values() if a.mac == nic.mac)

    def allowed_to(self, ip: IP, vrf: str = DEFAULT_VRF) -> frozenset[str]:
        """The VMs with a NIC that may take this address."""
        return frozenset(self._allowed.get(in_vrf(vrf, ip), ()))

    def routed(self) -> Iterable[tuple[Prefix, str]]:
        """The prefixes that are routed to NICs, each with its VM."""
        return self._routed

    def routed_to(self, ip: IP) -> tuple[Prefix, str] | None:
        """The prefix with this address that is routed to a NIC, and the NIC's VM."""
        return self._routed.at(ip)

    def routed_beside(self, prefix: Prefix) -> Iterator[tuple[Prefix, str]]:
        """The prefixes that overlap this one and are routed to NICs, each with its VM."""
        return self._routed.overlapping(prefix)

    def speaking_as(self, mac: Mac) -> frozenset[str]:
        """The VMs with a NIC that may speak as this MAC for an address it may take."""
        return frozenset(self._allowed.get(mac, ()))

    # ---- which VRF something is in; without a word the default one ----

    def vrf_of_vnet(self, vnet: str) -> str:
        """The VRF of a vnet; of "", which is that of the fabric's subnets, the default one."""
        return self.vnets[vnet].vrf if vnet in self.vnets else DEFAULT_VRF

    def vrf_of(self, nic: NIC | None) -> str:
        """The VRF in which a NIC's addresses are meant."""
        return self.vrf_of_vnet("" if nic is None else nic.vnet)

    def vrf_at(self, switch: str, port: int, mac: Mac = "") -> str:
        """The VRF of the NIC with this port of an edge switch; `mac` as in `nic_at`."""
        return self.vrf_of(self.nic_at(switch, port, mac))

    def vrf_of_mac(self, mac: Mac) -> str:
        """The VRF of the NIC with this MAC."""
        vm = self.vm_of_mac(mac)
        return self.vrf_of(None if vm is None else vm.nic_with(mac))

    def vrf_of_server(self, server: Server) -> str:
        """The VRF of a DHCP server: of a machine of its own the default one, of a VM its NIC's."""
        return DEFAULT_VRF if server.id in self.servers else self.vrf_of_mac(server.mac)

    def vrf_with_tag(self, tag: int) -> str | None:
        """The VRF whose packets have this tag on the fabric's links."""
        return next((vrf.id for vrf in self.vrfs.values() if vrf.tag == tag), None)

    def members(self, vnet: str) -> Iterator[tuple[VM, NIC]]:
        """The NICs that are said to be in a vnet, each with its VM, in the order of their ids."""
        for id in sorted(self._in_vnet.get(vnet, ())):
            vm = self.vms[id]
            yield from ((vm, nic) for nic in vm.nics if nic.vnet == vnet)

    def has_vrfs(self) -> bool:
        """True when there is another VRF than the default one; without, no entry tells any apart."""
        return len(self.vrfs) > 1

    def holder(self, ip: IP, vrf: str = DEFAULT_VRF) -> Assignment | None:
        """Who has this address in this VRF."""
        return self.assignments.get(in_vrf(vrf, ip))

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
        return to_others or any(link.lower == PortRef(switch, port) for link in self.links)

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

    def with_role(self, role: Role) -> Iterator[Switch]:
        return (self.switches[id] for id in self._with_role.get(role, ()))

    def bindings(self, vms: Iterable[str] | None = None) -> list[Binding]:
        """The rows of the snooping table, of all VMs or of some: each address at each server of its VM."""
        rows: list[Binding] = []
        for name in sorted(self.vms if vms is None else vms):
            vm = self.vms.get(name)
            if vm is None:
                continue
            for server in (vm.server, *sorted(vm.also)):
                edge = self.servers[server].edge
                for nic in vm.nics:
                    port = self.port_of(nic, edge)
                    if port is not None:
                        active, assigned = server == vm.server, self.assignments_of(vm, nic)
                        rows.extend(self._row(nic, a, edge, port, active) for a in assigned)
        return rows

    def _row(self, nic: NIC, assignment: Assignment, edge: str, port: VMPort, active: bool) -> Binding:
        subnet = self.subnet_of(assignment.ip, assignment.vrf)
        return Binding(
            mac=nic.speaks_as(assignment.ip),
            ip=assignment.ip,
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
