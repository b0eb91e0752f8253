"""What the network is at the moment, with the indexes that its questions need.

The reading half of `Network`: what looks at a network without changing it, as `constraints` does, takes this.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from retinue.core.model.addresses import IP, Mac, Prefix
from retinue.core.model.binding import Assignment, Binding, BindingKind
from retinue.core.model.entities import (
    VM,
    Server,
    Service,
    VMPort,
)
from retinue.core.model.layout_view import LayoutView
from retinue.core.model.nic import NIC, led_to_nic
from retinue.core.model.prefix_index import PrefixIndex
from retinue.core.model.storage import FcLogin
from retinue.core.model.vrfs import DEFAULT_VRF, Address, in_vrf

NO_PREFIXES = PrefixIndex()


@dataclass
class NetworkView(LayoutView):
    """Frozen values by their ids."""

    vms: dict[str, VM] = field(default_factory=dict)
    assignments: dict[Address, Assignment] = field(default_factory=dict)
    """By `Assignment.key`; see `holder`."""
    fc_logins: dict[Mac, FcLogin] = field(default_factory=dict)
    """By the MAC of a VN_Port: whose it is."""
    vm_ports: dict[str, dict[str, VMPort]] = field(default_factory=dict)
    """A NIC's port id to its port on each edge switch that has one; a port may be there before its VM."""
    _vms_on: dict[str, set[str]] = field(default_factory=dict)
    _vm_of_mac: dict[Mac, str] = field(default_factory=dict)
    _vm_of_port_id: dict[str, str] = field(default_factory=dict)
    _port_id_at: dict[tuple[str, int], str] = field(default_factory=dict)
    """By switch and port number: the port id of the NIC that is plugged in there."""
    _in_turn: dict[int, dict[str, None]] = field(default_factory=dict)
    """By turn (see `nic.turn_of`): the port ids of its NICs."""
    _allowed: dict[Address | Mac, set[str]] = field(default_factory=dict)
    """By an address that NICs are allowed, and by a MAC as whose they may speak for one: the VMs of these."""
    _routed: dict[str, PrefixIndex] = field(default_factory=dict)
    """By VRF: the prefixes that are routed to NICs, and the NIC's VM of each."""
    _anycast: dict[IP, dict[str, str]] = field(default_factory=dict)
    """By anycast address: the port ids of the NICs that have it, their VMs. All are in the default VRF."""
    _serving: dict[IP, dict[str, None]] = field(default_factory=dict)
    """By anycast address: the servers that have it themselves."""
    _trusted: dict[str, str] = field(default_factory=dict)
    """By the port id of a trusted NIC: its VM."""
    _in_vnet: dict[str, set[str]] = field(default_factory=dict)
    """By vnet: the VMs with a NIC that is said to be in it."""
    _held_by: dict[str, tuple[Assignment, ...]] = field(default_factory=dict)
    """By VM: what it holds, in the order in which that came."""
    _in_no_subnet: dict[str, dict[IP, None]] = field(default_factory=dict)
    """By VRF: the addresses that are held, and were in no subnet as they came. Those of one stay in one."""
    _logins_of: dict[Mac, dict[Mac, FcLogin]] = field(default_factory=dict)
    """By the MAC of a NIC: its logins."""
    _lease_ends: list[tuple[float, int, IP, str]] = field(default_factory=list)
    """A heap: when leases end, by IP version, address and VRF; also of leases that are no more, or end
    later."""
    _share_of: dict[str, int] = field(default_factory=dict)
    """By VM that has to do with another domain: the number of its share of what comes by the tunnel."""
    _shares: dict[int, str] = field(default_factory=dict)
    """By such a number: whose it is."""
    _held_as: dict[bytes, dict[Address, str]] = field(default_factory=dict)
    """By DHCP client identifier: the addresses leased under it, and the VM of each."""

    def logins_of(self, nic: Mac) -> tuple[FcLogin, ...]:
        """Of a NIC, by its MAC."""
        return tuple(self._logins_of.get(nic, {}).values())

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

    def vm_of_mac(self, address: Mac) -> VM | None:
        name = self._vm_of_mac.get(address)
        return None if name is None else self.vms[name]

    def vm_of_port_id(self, port_id: str) -> VM | None:
        """The VM whose NIC has the port with this `iface-id`."""
        name = self._vm_of_port_id.get(port_id)
        return None if name is None else self.vms[name]

    def port_of(self, nic: NIC, switch: str) -> VMPort | None:
        """The NIC's port on an edge switch, if it has one there."""
        tunnel = self.tunnel_at(switch)
        return tunnel if tunnel is not None else self.vm_ports.get(nic.plugged_as, {}).get(switch)

    def share_of(self, vm: str) -> int | None:
        """Of a VM that is away, or a guest: the number of its share of what a gateway hands up; None: it has
        none of its own (see `domains.free_share`)."""
        return self._share_of.get(vm)

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
        vm = self.vm_at(switch, port, mac)
        if vm is None:
            return None
        port_id = self._port_id_at.get((switch, port))
        if port_id is None:  # A tunnel's.
            return vm.nic_with(mac)
        in_trunk = (nic for nic in vm.nics if nic.trunk == port_id and nic.mac == mac)
        return next(in_trunk, None) or vm.nic_called(port_id)

    def vm_at(self, switch: str, port: int, mac: Mac = "") -> VM | None:
        """The VM with this port on a server where it is registered, if any.

        A tunnel is the port of all that are away there: which of them it is `mac` tells, as for `nic_at`.
        """
        vm = self.vm_of_port_id(self._port_id_at.get((switch, port), ""))
        if vm is None and mac and self.is_tunnel(switch, port):
            found = self.vm_of_mac(mac)
            vm = None if found is None or found.home else found
        server = self._server_of_edge.get(switch)
        return vm if vm is not None and server in (vm.server, *vm.also) else None

    def vms_on(self, server: str) -> frozenset[str]:
        """VMs hosted on this server, or migrating to or from it."""
        return frozenset(self._vms_on.get(server, ()))

    def held_by(self, vm: str) -> tuple[Assignment, ...]:
        """Every address a VM has, on whichever NIC."""
        return self._held_by.get(vm, ())

    def vms_known_as(self, client_id: bytes, vrf: str = DEFAULT_VRF, version: int = 4) -> frozenset[str]:
        """The VMs of a VRF that hold a lease of this IP version under this DHCP client identifier (or DUID):
        one at most, in an honest network."""
        held = self._held_as.get(client_id, {})
        leases = ((self.assignments[key], vm) for key, vm in held.items())
        return frozenset(vm for lease, vm in leases if (lease.vrf, lease.ip.version) == (vrf, version))

    def assignments_of(self, vm: VM, nic: NIC) -> tuple[Assignment, ...]:
        """The addresses assigned to one NIC of a VM."""
        return tuple(a for a in self._held_by.get(vm.id, ()) if a.mac == nic.mac)

    def held_in(self, prefix: Prefix, vrf: str = DEFAULT_VRF) -> Iterator[Assignment]:
        """The addresses that are held of a prefix in which there is no address of a subnet."""
        inside = (ip for ip in self._in_no_subnet.get(vrf, ()) if ip in prefix)
        return (self.assignments[in_vrf(vrf, ip)] for ip in inside)

    def allowed_to(self, ip: IP, vrf: str = DEFAULT_VRF) -> frozenset[str]:
        """The VMs with a NIC that may take this address."""
        return frozenset(self._allowed.get(in_vrf(vrf, ip), ()))

    def routed(self, vrf: str = DEFAULT_VRF) -> Iterable[tuple[Prefix, str]]:
        """The prefixes of a VRF that are routed to NICs, each with its VM; "": servers alone have it."""
        return self._routed.get(vrf, NO_PREFIXES)

    def routed_to(self, ip: IP, vrf: str = DEFAULT_VRF) -> tuple[Prefix, str] | None:
        """The prefix with this address that is routed to a NIC, and the NIC's VM; "": servers have it."""
        return self._routed.get(vrf, NO_PREFIXES).at(ip)

    def nic_of_prefix(self, prefix: Prefix, vm: str, vrf: str) -> NIC | None:
        """The VM's NIC to which a prefix of a VRF is routed."""
        nics = (nic for nic in self.vms[vm].nics if prefix in self.prefixes_of(self.vms[vm], nic))
        return next((nic for nic in nics if self.vrf_of(nic) == vrf), None)

    def prefixes_of(self, vm: VM, nic: NIC) -> tuple[Prefix, ...]:
        """The prefixes that are led to a NIC: by its manager's word, as anycast addresses, or delegated by
        DHCPv6."""
        delegated = (a.prefix for a in self.assignments_of(vm, nic) if a.prefix is not None)
        return (*led_to_nic(nic), *delegated)

    def routed_beside(self, prefix: Prefix, vrf: str = DEFAULT_VRF) -> Iterator[tuple[Prefix, str]]:
        """The prefixes that overlap this one and are routed to NICs, each with its VM."""
        return self._routed.get(vrf, NO_PREFIXES).overlapping(prefix)

    def anycast(self) -> Iterable[IP]:
        """The anycast addresses that some NIC or server has."""
        return [*self._anycast, *(ip for ip in self._serving if ip not in self._anycast)]

    def is_anycast(self, ip: IP) -> bool:
        return ip in self._anycast or ip in self._serving

    def serving(self, ip: IP) -> Iterable[str]:
        """The servers that have an anycast address themselves."""
        return self._serving.get(ip, {})

    def anycast_at(self, ip: IP) -> Iterable[tuple[str, str]]:
        """The port ids of the NICs that have an anycast address, each with its VM."""
        return self._anycast.get(ip, {}).items()

    def speaking_as(self, mac: Mac) -> frozenset[str]:
        """The VMs with a NIC that may speak as this MAC for an address it may take."""
        return frozenset(self._allowed.get(mac, ()))

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

    def members(self, vnet: str) -> Iterator[tuple[VM, NIC]]:
        """The NICs that are said to be in a vnet, each with its VM, in the order of their ids."""
        for id in sorted(self._in_vnet.get(vnet, ())):
            vm = self.vms[id]
            yield from ((vm, nic) for nic in vm.nics if nic.vnet == vnet)

    def holder(self, ip: IP, vrf: str = DEFAULT_VRF) -> Assignment | None:
        """Who has this address in this VRF."""
        return self.assignments.get(in_vrf(vrf, ip))

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
