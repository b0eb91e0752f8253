"""The example of US 9,515,930, figures 1 to 5: five hosts of one subnet on two servers under two leaves.

H1, H2 and H3 are on server A, whose virtual switch 1 is at leaf L1; H4 and H5 on B, with virtual switch m at
leaf Lm. Addresses, MACs and the gateway are the document's.
"""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from retinue.core.model import (
    VM,
    Link,
    Network,
    PortRef,
    Role,
    Server,
    Subnet,
    Switch,
    VMPort,
)
from retinue.core.model.network import Touched
from retinue.core.packets import ArpOp, arp_reply, arp_request, parse, parse_arp
from retinue.core.pipeline.cookies import Reason, reason_of
from retinue.core.pipeline.responders import arp
from support.fabric.networks import TUNNEL, UPLINK, endpoint
from support.fabric.world import FabricWorld

GATEWAY_MAC = "00:00:de:ad:be:ef"
GATEWAY = IPv4Address("1.1.1.254")
SUBNET = IPv4Network("1.1.1.0/24")
HOSTS = (1, 2, 3, 4, 5)
ON_A, ON_B = (1, 2, 3), (4, 5)
A_MAC, B_MAC = "02:00:00:00:00:0a", "02:00:00:00:00:0b"


def ip_of(host: int) -> IPv4Address:
    return IPv4Address(f"1.1.1.{host}")


def mac_of(host: int) -> str:
    return f"00:00:01:01:01:{host:02x}"


def port_of(host: int) -> int:
    """The same number on either virtual switch."""
    return 10 + host


def example(*, over_ip: bool = False, by_mac: bool = False) -> FabricWorld:
    """Before H1 migrates; on B it has a port already, as a migration makes one before all else.

    `over_ip`: VxLAN is what joins the leaves, over an IP network of others, and there are no spines.
    `by_mac`: the spines know servers' MACs alone.
    """
    net = Network(GATEWAY_MAC, spines_by_mac=by_mac)
    net.add_subnet(Subnet("example", SUBNET, GATEWAY))
    spines = () if over_ip else (1, 2)
    for number in spines:
        net.add_switch(Switch(f"spine{number}", Role.SPINE, 0x50 + number))
    for number, (leaf, edge, server, mac) in enumerate(
        (("L1", "vswitch1", "A", A_MAC), ("Lm", "vswitchm", "B", B_MAC)), 1
    ):
        of_fabric = Switch(leaf, Role.LEAF, 0x10 + number)
        joined_by_ip = replace(of_fabric, tunnel="vxlan0", endpoint=endpoint(number))
        net.add_switch(joined_by_ip if over_ip else of_fabric)
        net.add_switch(Switch(edge, Role.EDGE, 0x30 + number, uplink="up0"))
        for spine in spines:
            net.add_link(Link(PortRef(leaf, f"s{spine}"), PortRef(f"spine{spine}", leaf)))
        net.set_ports(leaf, {"s1": 1, "s2": 2, "host": 100, "vxlan0": TUNNEL})
        net.set_ports(edge, {"up0": UPLINK})
        net.put_server(Server(server, mac, edge=edge))
        net.detect(server, PortRef(leaf, "host"))
    for spine in spines:
        net.set_ports(f"spine{spine}", {"L1": 1, "Lm": 2})
    for host in HOSTS:
        server = "A" if host in ON_A else "B"
        put_host(net, f"H{host}", mac_of(host), ip_of(host), server, port_of(host))
    net.set_vm_port("H1", "vswitchm", VMPort(port_of(1)))
    return FabricWorld(net)


def put_host(net: Network, id: str, mac: str, ip: IPv4Address, server: str, port: int) -> Touched:
    """A host with its static address and its port."""
    vm = VM.with_one_nic(id, mac, server, addresses=(ip,))
    touched = net.put_vm(vm) | net.assign(net.static(id, vm.nic, ip))
    return touched | net.set_vm_port(id, net.servers[server].edge, VMPort(port))


def migrate_h1(world: FabricWorld) -> None:
    """H1 goes from A to B, and has nothing on A any more."""
    net, h1 = world.net, world.net.vms["H1"]
    for placed in (
        replace(h1, also=frozenset({"B"})),
        replace(h1, server="B", also=frozenset({"A"}), forwarded_from="A"),
        replace(h1, server="B"),
    ):
        world.apply(net.put_vm(placed))
    world.apply(net.set_vm_port("H1", "vswitch1", None))


def edge_of(world: FabricWorld, host: int) -> str:
    return world.net.servers[world.net.vms[f"H{host}"].server].edge


def learned(world: FabricWorld, host: int, wanted: IPv4Address) -> str:
    """The MAC that a host writes into its ARP cache when it asks for an address: exactly one answer."""
    asked = arp_request(mac_of(host), ip_of(host), wanted)
    edge = edge_of(world, host)
    found = []
    for delivery in world.fabric.all_paths(edge, port_of(host), asked):
        assert {hop.switch for hop in delivery.hops} == {edge}, "ARP ends at the virtual switch"
        answers = [frame for _, port, frame in delivery.arrivals if port == port_of(host)]
        assert len(answers) == len(delivery.arrivals)
        for switch, cookie, _, frame in delivery.to_controller:
            assert reason_of(cookie) is Reason.VM_ARP
            question = parse_arp(parse(frame).payload)
            if arp.answers_vm(world.net, switch, question):
                answers.append(arp_reply(question, GATEWAY_MAC))
        (answer,) = answers
        reply = parse_arp(parse(answer).payload)
        assert (reply.op, reply.spa, reply.tpa) == (ArpOp.REPLY, wanted, ip_of(host))
        found.append(reply.sha)
    assert len(set(found)) == 1
    return found[0]


def cache_of(world: FabricWorld, host: int) -> dict[str, str]:
    """A host's whole ARP cache when it has spoken to everybody: last byte of the address to MAC."""
    others = [ip_of(other) for other in HOSTS if other != host]
    return {str(ip): learned(world, host, ip) for ip in (GATEWAY, *others)}
