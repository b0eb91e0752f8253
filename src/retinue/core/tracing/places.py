"""Ports by what is at them: where a frame comes in, where one comes out, and what joins two switches."""

from dataclasses import dataclass, field
from ipaddress import IPv4Address

from retinue.core.forwarding import End
from retinue.core.model import DEFAULT_VRF, IP, NIC, VM, Mac, ModelError, PortRef, Role, Server
from retinue.core.model.network import Network
from retinue.core.model.uplinks import found_links, has_several, places
from retinue.core.pipeline.entry import PortNo


@dataclass(frozen=True, slots=True)
class Place:
    """A port of a switch."""

    switch: str
    port: int
    name: str
    """ "edge1:tap-vm1"."""
    mac: Mac = ""
    """Of a NIC in a trunk: which it is, of those at this port."""
    vlan: int = 0
    """The tag that its frames, or those of a router's subinterface, have there."""


@dataclass(frozen=True, slots=True)
class Host:
    """Who is at a port; all is empty where nobody is known to be."""

    name: str = ""
    """A VM's or a server's id."""
    mac: Mac = ""
    addresses: tuple[IP, ...] = ()
    vrf: str = DEFAULT_VRF


def place_of_nic(net: Network, vm: VM, nic: NIC, server: str = "") -> Place:
    """Where a VM's NIC is plugged in on a server, "": where it is delivered. Raises ModelError."""
    at = net.servers[server or vm.server]
    port = net.port_of(nic, at.edge)
    if port is None:
        raise ModelError(
            f"NIC {nic.port_id} of VM {vm.id} has no port on {at.edge or at.id}: "
            f"`retinue vm show {vm.id}` says what the VM waits for"
        )
    return place(net, at.edge, port.number, nic.mac)


def place_named(net: Network, switch: str, port: str) -> Place:
    """A port by its name or number. Raises ModelError."""
    number = PortNo.LOCAL if port.upper() == "LOCAL" else net.port_number(PortRef(switch, port))
    if number is None:
        of_vms = (at[switch] for at in net.vm_ports.values() if switch in at)
        number = next((one.number for one in of_vms if port and one.name == port), None)
    if number is None and port.isascii() and port.isdecimal() and 0 < int(port[:12]) < PortNo.MAX:
        number = int(port[:12])
    if number is None:
        raise ModelError(f"switch {switch} has no port {port}; `retinue switch list --json` shows its ports")
    return place(net, switch, number)


def place(net: Network, switch: str, port: int, mac: Mac = "") -> Place:
    """`mac`: of the NIC that is meant, where several go by this port."""
    name, nic = f"{switch}:{port_name(net, switch, port)}", net.nic_at(switch, port, mac)
    if nic is None or not nic.trunk:
        return Place(switch, port, name)
    return Place(switch, port, name, nic.mac, net.vlan_in_trunk(nic))


def port_name(net: Network, switch: str, port: int) -> str:
    """By name, else by number."""
    if port in PortNo._value2member_map_:
        return PortNo(port).name
    name = net.port_name(switch, port)
    if name is None:
        nic = plugged_in(net, switch, port)
        at = None if nic is None else net.port_of(nic[1], switch)
        name = None if at is None else at.name
    return name or str(port)


def plugged_in(net: Network, switch: str, port: int) -> tuple[VM, NIC] | None:
    """The VM, and its NIC, with this port of an edge, whether or not the VM is registered at its server."""
    for port_id, at in net.vm_ports.items():
        if switch in at and at[switch].number == port:
            vm = net.vm_of_port_id(port_id)
            nic = None if vm is None else vm.nic_called(port_id)
            if vm is not None and nic is not None:
                return vm, nic
    return None


def servers_at(net: Network, leaf: str, port: int) -> list[Server]:
    """The machines that are known to be at a leaf's port."""
    name = net.port_name(leaf, port)
    return [s for s in net.servers.values() if name and PortRef(leaf, name) in places(net, s.id)]


def at_port(net: Network, at: Place) -> Host:
    """Who is at a port: a VM's NIC, a server, a router."""
    vm, nic = net.vm_at(at.switch, at.port), net.nic_at(at.switch, at.port, at.mac)
    if vm is not None and nic is not None:
        held = tuple(a.ip for a in net.assignments_of(vm, nic) if a.prefix is None) + nic.addresses
        return Host(vm.id, nic.mac, tuple(dict.fromkeys(held)), net.vrf_of(nic))
    if net.switches[at.switch].role is Role.EDGE:
        server = net.server_of_edge(at.switch) if at.port == PortNo.LOCAL else None
    else:
        server = next(iter(servers_at(net, at.switch, at.port)), None)
    if server is None:
        return Host()
    vrf = net.vrf_at_port(server, at.vlan) or DEFAULT_VRF
    return Host(server.id, server.mac, tuple(ip for of, ip in server.addresses if of == vrf), vrf)


@dataclass(frozen=True, slots=True)
class Joined:
    """What joins switches: cables, by both ends of each; and tunnels, by the address of each end."""

    cables: dict[End, End] = field(default_factory=dict)
    addresses: dict[IPv4Address, End] = field(default_factory=dict)

    def __contains__(self, end: object) -> bool:
        """True for a port that leads to other switches."""
        return end in self.cables or end in self.addresses.values()

    def tunnels_of(self, switch: str) -> dict[int, IPv4Address]:
        """The switch's own address at each port that is a tunnel's end."""
        return {port: address for address, (at, port) in self.addresses.items() if at == switch}


def joined(net: Network) -> Joined:
    ends = {
        leaf.endpoint: (leaf.id, number)
        for leaf in net.with_role(Role.LEAF)
        if leaf.endpoint and (number := net.port_number(PortRef(leaf.id, leaf.tunnel))) is not None
    }
    return Joined(_cables(net), ends)


def _cables(net: Network) -> dict[End, End]:
    """Every port with a cable to another switch, with the port at its other end."""
    found: dict[End, End] = {}
    pairs = [(link.lower, link.upper) for link in net.links]
    for server in net.servers.values():
        at = net.location(server.id)
        if has_several(net, server.id):
            pairs += [(link.upper, link.lower) for link in found_links(net, server.id)]
        elif server.edge and at is not None:
            pairs.append((at, PortRef(server.edge, net.switches[server.edge].uplink)))
    for one, other in pairs:
        numbers = net.port_number(one), net.port_number(other)
        if numbers[0] is not None and numbers[1] is not None:
            found[one.switch, numbers[0]] = (other.switch, numbers[1])
            found[other.switch, numbers[1]] = (one.switch, numbers[0])
    return found
