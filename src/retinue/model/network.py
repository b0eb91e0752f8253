"""The whole network in one place, with the indexes the pipeline needs.

Every change goes through a method here and returns the *owners* it touched: the things whose flows must
be computed again. What cannot be (see `rules`) is refused with ModelError before anything changes. No method
does any I/O; the same calls give the same network.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from retinue.model.addresses import IP, Mac, ModelError
from retinue.model.binding import Binding, Holding
from retinue.model.rules import check_holding, check_server, check_subnet, check_vm
from retinue.model.things import (
    VM,
    Link,
    PortRef,
    PortStatus,
    Role,
    Server,
    Service,
    Subnet,
    Switch,
    Trust,
    VMPort,
)


@dataclass(frozen=True, slots=True, order=True)
class Owner:
    """Something that has flows of its own: kind is "switch", "server" or "vm"."""

    kind: str
    id: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


Touched = frozenset[Owner]
NOTHING: Touched = frozenset()


@dataclass
class Network:
    """Mutable index over frozen values. `gateway_mac` is the anycast gateway's MAC, shared by all leaves."""

    gateway_mac: Mac
    switches: dict[str, Switch] = field(default_factory=dict)
    links: tuple[Link, ...] = ()
    subnets: dict[str, Subnet] = field(default_factory=dict)
    servers: dict[str, Server] = field(default_factory=dict)
    vms: dict[str, VM] = field(default_factory=dict)
    holdings: dict[IP, Holding] = field(default_factory=dict)
    detected: dict[str, PortRef] = field(default_factory=dict)
    """Server id to the leaf port where its ARP was last seen (row D2)."""
    vm_ports: dict[str, dict[str, VMPort]] = field(default_factory=dict)
    """VM id to its port on each edge switch that has one."""
    _numbers: dict[str, dict[str, int]] = field(default_factory=dict)
    _names: dict[str, dict[int, str]] = field(default_factory=dict)
    _ways: dict[tuple[str, str], PortRef] = field(default_factory=dict)
    """By spine and leaf: the spine's port to the leaf."""
    _server_of_mac: dict[Mac, str] = field(default_factory=dict)
    _server_of_edge: dict[str, str] = field(default_factory=dict)
    _server_of_address: dict[IP, str] = field(default_factory=dict)
    _vms_on: dict[str, set[str]] = field(default_factory=dict)
    _vm_of_mac: dict[Mac, str] = field(default_factory=dict)
    _vm_of_port: dict[tuple[str, int], str] = field(default_factory=dict)
    _held_by: dict[str, dict[IP, Holding]] = field(default_factory=dict)

    # ---- what is fixed by the operator ----

    def add_switch(self, switch: Switch) -> Touched:
        clash = next((s for s in self.switches.values() if s.dpid == switch.dpid and s.id != switch.id), None)
        if clash:
            raise ModelError(
                f"switches {clash.id} and {switch.id} have the same datapath id {switch.dpid:#x}"
            )
        self.switches[switch.id] = switch
        return frozenset({Owner("switch", switch.id)})

    def add_link(self, link: Link) -> Touched:
        for ref, role in ((link.leaf, Role.LEAF), (link.spine, Role.SPINE)):
            if ref.switch not in self.switches or self.switches[ref.switch].role is not role:
                raise ModelError(
                    f"link {link.leaf} - {link.spine}: {ref.switch} is not a known {role} switch"
                )
        self.links = (*self.links, link)
        self._ways.setdefault((link.spine.switch, link.leaf.switch), link.spine)
        return self.everything()

    def add_subnet(self, subnet: Subnet) -> Touched:
        check_subnet(self, subnet)
        self.subnets[subnet.id] = subnet
        return frozenset(Owner("switch", s) for s in self.switches)

    def put_server(self, server: Server) -> Touched:
        """Add a server, or replace the one of the same id (row D6: a changed MAC re-routes its VMs)."""
        check_server(self, server)
        self._forget_server(server.id)
        self.servers[server.id] = server
        self._server_of_mac[server.mac] = server.id
        if server.edge:
            self._server_of_edge[server.edge] = server.id
        if server.address is not None:
            self._server_of_address[server.address] = server.id
        return self._server_and_vms(server.id)

    def remove_server(self, server: str) -> Touched:
        """Forget a server that runs no VMs. Removing what is not there is no error."""
        if self._vms_on.get(server):
            raise ModelError(f"server {server} runs VMs: {', '.join(sorted(self._vms_on[server]))}")
        if server not in self.servers:
            return NOTHING
        self._forget_server(server)
        del self.servers[server]
        self.detected.pop(server, None)
        return frozenset({Owner("server", server)})

    # ---- what switches tell ----

    def set_ports(self, switch: str, numbers: Mapping[str, int]) -> Touched:
        """The switch's port numbers by name, all of them; touches what uses a port whose number changed."""
        old = self._numbers.get(switch, {})
        changed = {name for name in old.keys() | numbers.keys() if old.get(name) != numbers.get(name)}
        self._numbers[switch] = dict(numbers)
        self._names[switch] = {number: name for name, number in numbers.items()}
        match self.switches[switch].role:
            case Role.SPINE:
                # A spine's entries point at leaves, and belong to what is under these.
                leaves = {
                    leaf
                    for (spine, leaf), ref in self._ways.items()
                    if spine == switch and ref.port in changed
                }
                near = [s for s in self.servers if (at := self.place(s)) is not None and at.switch in leaves]
                itself = bool(leaves)
            case Role.LEAF:
                at_changed = {PortRef(switch, name) for name in changed}
                near = [s for s in self.servers if self.place(s) in at_changed]
                itself = bool(near) or any(link.leaf in at_changed for link in self.links)
            case Role.EDGE:
                itself = self.switches[switch].uplink in changed
                runs = self._server_of_edge.get(switch)
                near = [runs] if itself and runs is not None else []
        touched = frozenset({Owner("switch", switch)}) if itself else NOTHING
        return touched.union(*(self._server_and_vms(s) for s in near))

    def detect(self, server: str, at: PortRef) -> Touched:
        """The server's ARP came in at this leaf port.

        A port has one DHCP server at most, the first: what another DHCP server says there is not believed.
        """
        if self.detected.get(server) == at:
            return NOTHING
        if Service.DHCP in self.servers[server].services:
            first = self.dhcp_server_at(at)
            if first is not None and first.id != server:
                return NOTHING
        self.detected[server] = at
        return self._server_and_vms(server)

    def set_vm_port(self, vm: str, switch: str, port: VMPort | None) -> Touched:
        """The VM's port on an edge switch appeared, changed, or (None) went away.

        A number belongs to one port; who had it before has lost it.
        """
        ports = self.vm_ports.setdefault(vm, {})
        old = ports.pop(switch, None)
        if old == port:
            if old is not None:
                ports[switch] = old
            return NOTHING
        touched = {Owner("vm", vm)}
        if old is not None:
            del self._vm_of_port[switch, old.number]
        if port is not None:
            before = self._vm_of_port.get((switch, port.number))
            if before is not None:
                del self.vm_ports[before][switch]
                touched.add(Owner("vm", before))
            ports[switch] = port
            self._vm_of_port[switch, port.number] = vm
        return frozenset(touched)

    # ---- VMs and the addresses they hold ----

    def put_vm(self, vm: VM) -> Touched:
        """Add a VM, or replace the one of the same id."""
        check_vm(self, vm)
        old = self.vms.get(vm.id)
        if old == vm:
            return NOTHING
        if old is not None:
            self._forget_place(old)
        self.vms[vm.id] = vm
        self._vm_of_mac[vm.mac] = vm.id
        for place in vm.places:
            self._vms_on.setdefault(place, set()).add(vm.id)
        return frozenset({Owner("vm", vm.id)})

    def remove_vm(self, vm: str) -> Touched:
        """Forget a VM and every address it holds. Removing what is not there is no error."""
        old = self.vms.pop(vm, None)
        if old is None:
            return NOTHING
        self._forget_place(old)
        for ip in tuple(self._held_by.get(vm, ())):
            self.release(ip)
        return frozenset({Owner("vm", vm)})

    def hold(self, holding: Holding) -> Touched:
        """Give an address to a VM. One address has one holder: another VM's is refused, never taken."""
        check_holding(self, holding)
        if self.holdings.get(holding.ip) == holding:
            return NOTHING
        self.holdings[holding.ip] = holding
        self._held_by.setdefault(holding.vm, {})[holding.ip] = holding
        return frozenset({Owner("vm", holding.vm)})

    def release(self, ip: IP) -> Touched:
        holding = self.holdings.pop(ip, None)
        if holding is None:
            return NOTHING
        del self._held_by[holding.vm][ip]
        return frozenset({Owner("vm", holding.vm)})

    # ---- questions ----

    def everything(self) -> Touched:
        return frozenset(
            [
                *(Owner("switch", s) for s in self.switches),
                *(Owner("server", s) for s in self.servers),
                *(Owner("vm", v) for v in self.vms),
            ]
        )

    def port_number(self, ref: PortRef) -> int | None:
        return self._numbers.get(ref.switch, {}).get(ref.port)

    def port_name(self, switch: str, number: int) -> str | None:
        return self._names.get(switch, {}).get(number)

    def place(self, server: str) -> PortRef | None:
        """The leaf port of a server: the operator's word, else where its ARP was seen (row D7)."""
        return self.servers[server].given_at or self.detected.get(server)

    def server_of_mac(self, address: Mac) -> Server | None:
        name = self._server_of_mac.get(address)
        return None if name is None else self.servers[name]

    def server_of_address(self, ip: IP) -> Server | None:
        name = self._server_of_address.get(ip)
        return None if name is None else self.servers[name]

    def server_of_edge(self, switch: str) -> Server | None:
        name = self._server_of_edge.get(switch)
        return None if name is None else self.servers[name]

    def servers_with(self, service: Service) -> list[Server]:
        return [s for s in self.servers.values() if service in s.services]

    def dhcp_server_at(self, at: PortRef) -> Server | None:
        """The DHCP server whose place is this leaf port."""
        return next((s for s in self.servers_with(Service.DHCP) if self.place(s.id) == at), None)

    def vm_of_mac(self, address: Mac) -> VM | None:
        name = self._vm_of_mac.get(address)
        return None if name is None else self.vms[name]

    def vm_at(self, switch: str, port: int) -> VM | None:
        """The VM whose booked place has this port, if any."""
        vm = self.vms.get(self._vm_of_port.get((switch, port), ""))
        server = self._server_of_edge.get(switch)
        return vm if vm is not None and server in (vm.server, *vm.also) else None

    def vms_on(self, server: str) -> frozenset[str]:
        """VMs delivered at, moving to, or leaving this server."""
        return frozenset(self._vms_on.get(server, ()))

    def held_by(self, vm: str) -> tuple[Holding, ...]:
        return tuple(self._held_by.get(vm, {}).values())

    def subnet_of(self, ip: IP) -> Subnet | None:
        return next((s for s in self.subnets.values() if ip in s.prefix), None)

    def spine_port(self, spine: str, leaf: str) -> int | None:
        """Number of the spine's port that leads to the leaf."""
        way = self._ways.get((spine, leaf))
        return None if way is None else self.port_number(way)

    def with_role(self, role: Role) -> Iterator[Switch]:
        return (s for s in self.switches.values() if s.role is role)

    def bindings(self, vms: Iterable[str] | None = None) -> list[Binding]:
        """The rows of the snooping table, of all VMs or of some: each address at each place of its VM."""
        rows: list[Binding] = []
        for name in sorted(self.vms if vms is None else vms):
            vm = self.vms.get(name)
            if vm is None:
                continue
            for server in (vm.server, *sorted(vm.also)):
                edge = self.servers[server].edge
                port = self.vm_ports.get(name, {}).get(edge)
                rows.extend(
                    self._row(h, edge, port, active=server == vm.server) for h in self.held_by(name) if port
                )
        return rows

    def _row(self, holding: Holding, edge: str, port: VMPort, active: bool) -> Binding:
        subnet = self.subnet_of(holding.ip)
        return Binding(
            mac=holding.mac,
            ip=holding.ip,
            kind=holding.kind,
            vm=holding.vm,
            switch=edge,
            port=port.number,
            lease_end=holding.lease_end,
            vlan=subnet.vlan if subnet else 0,
            port_status=port.status,
            trust=Trust.UNTRUST,
            origin=holding.origin,
            active=active,
        )

    def _server_and_vms(self, server: str) -> Touched:
        return frozenset({Owner("server", server), *(Owner("vm", v) for v in self._vms_on.get(server, ()))})

    def _forget_server(self, server: str) -> None:
        """Take it out of the indexes."""
        old = self.servers.get(server)
        if old is None:
            return
        del self._server_of_mac[old.mac]
        self._server_of_edge.pop(old.edge, None)
        if old.address is not None:
            del self._server_of_address[old.address]

    def _forget_place(self, vm: VM) -> None:
        self._vm_of_mac.pop(vm.mac, None)
        for place in vm.places:
            self._vms_on.get(place, set()).discard(vm.id)


def moved(vm: VM, to: str) -> VM:
    """The VM delivered at `to`, its former place still open."""
    return replace(vm, server=to, also=(vm.also | {vm.server}) - {to})


__all__ = ["NOTHING", "Network", "Owner", "PortStatus", "Touched", "moved"]
