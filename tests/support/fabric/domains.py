"""Two joined domains: each a leaf-spine fabric with a gateway, a tunnel between the gateways."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from retinue.core.migration import Migration
from retinue.core.migration import PlacementChange as C
from retinue.core.model import (
    IP,
    NIC,
    VM,
    Link,
    Network,
    Peer,
    PortRef,
    Role,
    Server,
    Service,
    Subnet,
    Switch,
    VMPort,
)
from retinue.core.model.network import Touched
from retinue.core.packets import ARP, Ethernet, arp_request, build_udp4, parse, parse_arp
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.diff import difference
from retinue.core.pipeline.entry import Program
from retinue.core.pipeline.underlay import Near, underlay_of
from support.fabric.ipv6 import udp6_frame
from support.fakes.switch import Delivery, FakeFabric

UPLINK, TUNNEL, FIRST_VM = 1, 2, 10
MARK = b"between two domains"
GATEWAY_MACS = {"a": "00:00:de:ad:0a:00", "b": "00:00:de:ad:0b:00"}
SUBNETS = {"a": IPv4Network("10.1.0.0/24"), "b": IPv4Network("10.2.0.0/24")}
DHCP_MAC, DHCP_SERVER = "02:00:00:00:00:d1", IPv4Address("10.1.0.2")
DHCP_AT = ("a-leaf1", 102)
SUBNETS6 = {"a": IPv6Network("fd00:a::/64"), "b": IPv6Network("fd00:b::/64")}


def other(domain: str) -> str:
    return "b" if domain == "a" else "a"


def server_of(domain: str, number: int) -> str:
    return f"{domain}-server{number}"


def gateway_of(domain: str) -> str:
    """The gateway of a domain to the other one."""
    return f"to-{other(domain)}"


def network(
    domain: str, leaves: int, spines: int, *, dual: bool = False, dhcp: bool = False, by_mac: bool = False
) -> Network:
    """Servers 1 and 2 under the first and the last leaf, the gateway under the last. `dual`: of IPv6, too;
    `dhcp`: with a DHCP server in domain a."""
    net, tag = Network(GATEWAY_MACS[domain], spines_by_mac=by_mac), domain == "b"
    net.add_subnet(Subnet("blue", SUBNETS[domain], SUBNETS[domain][254]))
    if dual:
        net.add_subnet(Subnet("blue6", SUBNETS6[domain], SUBNETS6[domain][0xFE]))
    for n in range(1, spines + 1):
        net.add_switch(Switch(f"{domain}-spine{n}", Role.SPINE, 0x100 * tag + 0x50 + n))
    for n in range(1, leaves + 1):
        net.add_switch(Switch(f"{domain}-leaf{n}", Role.LEAF, 0x100 * tag + 0x10 + n))
    for leaf in range(1, leaves + 1):
        for spine in range(1, spines + 1):
            ends = PortRef(f"{domain}-leaf{leaf}", f"s{spine}"), PortRef(f"{domain}-spine{spine}", f"l{leaf}")
            net.add_link(Link(*ends))
    for spine in range(1, spines + 1):
        net.set_ports(f"{domain}-spine{spine}", {f"l{leaf}": leaf for leaf in range(1, leaves + 1)})
    for leaf in range(1, leaves + 1):
        ports = {f"s{spine}": spine for spine in range(1, spines + 1)}
        net.set_ports(f"{domain}-leaf{leaf}", ports | {f"p{n}": 100 + n for n in (1, 2, 3)})
    for n, (name, leaf) in enumerate(
        ((server_of(domain, 1), 1), (server_of(domain, 2), leaves), (gateway_of(domain), leaves)), 1
    ):
        net.add_switch(Switch(f"{domain}-edge{n}", Role.EDGE, 0x100 * tag + 0x30 + n, uplink="up0"))
        net.set_ports(f"{domain}-edge{n}", {"up0": UPLINK} | ({"tun0": TUNNEL} if n == 3 else {}))
        mac = f"02:00:00:0{int(tag)}:00:0{n}"
        at = PortRef(f"{domain}-leaf{leaf}", f"p{n}")
        net.put_server(Server(name, mac, edge=f"{domain}-edge{n}", given_at=at))
    granted = (SUBNETS[other(domain)], SUBNETS6[other(domain)])
    if dhcp and domain == "a":
        at = PortRef("a-leaf1", "p2")
        net.put_server(Server("dhcp", DHCP_MAC, DHCP_SERVER, services=frozenset({Service.DHCP}), given_at=at))
    net.put_peer(Peer(other(domain), gateway_of(domain), "tun0", granted))
    return net


def nic(domain: str, number: int, *, dual: bool = False) -> NIC:
    """With an address of IPv4 and, where it is `dual`, one of IPv6."""
    mac = f"52:54:00:0{int(domain == 'b')}:00:{number:02x}"
    own: tuple[IP, ...] = (SUBNETS[domain][100 + number],)
    return NIC(mac, f"vm-{domain}{number}", (*own, SUBNETS6[domain][0x100 + number]) if dual else own)


def nics_of(domain: str, number: int, *, dual: bool = False) -> tuple[NIC, ...]:
    """VM vm-a1 has two."""
    first = nic(domain, number, dual=dual)
    second = replace(nic("a", 4, dual=dual), slot=2)
    return (first, second) if (domain, number) == ("a", 1) else (first,)


def port(nic: NIC) -> int:
    return FIRST_VM + int(nic.port_id[-1]) + (4 if nic.port_id[-2] == "b" else 0)


@dataclass
class Domains:
    """Both networks on the switches of one fabric. VM "vm-a1" is domain a's."""

    leaves: int
    spines: int
    dual: bool = False
    """With IPv6 beside IPv4."""
    by_mac: bool = False
    """Spines forward by MAC alone."""
    nets: dict[str, Network] = field(init=False)
    compilers: dict[str, Compiler] = field(init=False)
    fabric: FakeFabric = field(default_factory=FakeFabric)
    installed: dict[str, Program] = field(default_factory=dict)

    def near(self, domain: str, migration: Migration, change: C) -> Near:
        """Which switches of a domain are told of its half of a migration, and in which order."""
        underlay = underlay_of(self.nets[domain])
        if change is C.ADMITTED:
            return [underlay.near(migration.target)]
        if change in (C.DIVERTED, C.FORWARDED, C.COPIED):
            return underlay.order_to_divert(migration.source, migration.target)
        if change is C.RETURNED:
            return underlay.order_to_return(migration.source, migration.target)
        if change is C.TARGET_CLOSED:
            return underlay.order_to_withdraw(migration.source)
        return ()

    def __post_init__(self) -> None:
        shape = {"dual": self.dual, "by_mac": self.by_mac}
        self.nets = {domain: network(domain, self.leaves, self.spines, **shape) for domain in "ab"}
        self.compilers = {domain: Compiler(net, recent=1) for domain, net in self.nets.items()}
        for domain, net in self.nets.items():
            for switch in net.switches:
                self.fabric.add(switch)
                self.installed[switch] = {}
            for link in net.links:
                leaf, spine = net.port_number(link.lower), net.port_number(link.upper)
                assert leaf is not None
                assert spine is not None
                self.fabric.cable((link.lower.switch, leaf), (link.upper.switch, spine))
            for server in net.servers.values():
                assert server.given_at is not None
                number = net.port_number(server.given_at)
                assert number is not None
                self.fabric.cable((server.edge, UPLINK), (server.given_at.switch, number))
            self.install(domain, net.everything())
        self.fabric.cable(("a-edge3", TUNNEL), ("b-edge3", TUNNEL))

    def install(
        self, domain: str, touched: Touched, near: Near = (), each: Callable[[], None] = lambda: None
    ) -> None:
        """Bring a change onto one domain's switches as its controller does."""
        net, compiler = self.nets[domain], self.compilers[domain]
        changed = compiler.update(touched)
        for stage in underlay_of(net).stages(changed, near):
            for switch in stage:
                program = compiler.program(switch).whole()
                self.fabric[switch].apply(difference(program, self.installed[switch], changed[switch]))
                self.installed[switch] = program
                each()

    def add(self, domain: str, home: str, number: int, server: str) -> VM:
        """VM `number` of domain `home`, registered at a server of `domain`, with ports on all its edges."""
        net, nics = self.nets[domain], nics_of(home, number, dual=self.dual)
        vm = VM(nics[0].port_id, nics, server, home="" if home == domain else home)
        touched = net.put_vm(vm)
        for its in nics:
            for ip in its.addresses:
                touched |= net.assign(net.static(vm.id, its, ip))
            for n in (1, 2):
                made = VMPort(port(its), f"tap-{its.port_id}")
                touched |= net.set_vm_port(its.port_id, f"{domain}-edge{n}", made)
        self.install(domain, touched)
        return vm

    # ---- frames ----

    def send(self, at: tuple[str, int], src_mac: str, src: object, dst: object) -> list[Delivery]:
        """All that may become of an IP packet that comes in at this port of a switch."""
        gateway = GATEWAY_MACS["a"]
        if isinstance(src, IPv6Address):
            assert isinstance(dst, IPv6Address)
            return list(self.fabric.all_paths(*at, udp6_frame(src_mac, gateway, src, dst)))
        assert isinstance(src, IPv4Address)
        assert isinstance(dst, IPv4Address)
        packet = build_udp4(src, dst, 4000, 7, MARK)
        return list(self.fabric.all_paths(*at, Ethernet(gateway, src_mac, 0x0800, packet).build()))

    def asks(self, at: tuple[str, int], asker: NIC, wanted: IPv4Address) -> ARP:
        """The answer to an ARP request, which the switch gives by itself: its controller may be dead."""
        spa = asker.addresses[0]
        assert isinstance(spa, IPv4Address)
        (delivery,) = self.fabric.all_paths(*at, arp_request(asker.mac, spa, wanted))
        assert not delivery.to_controller, f"only the controller could answer: {delivery}"
        ((switch, port, answer),) = delivery.arrivals
        assert (switch, port) == at, delivery
        assert parse(answer).dst == asker.mac
        return parse_arp(parse(answer).payload)

    def arrivals(self, at: tuple[str, int], sender: NIC, to: NIC) -> list[list[tuple[str, int]]]:
        """Where an honest packet of each family comes out, for each way the fabric may choose."""
        found = []
        for src, dst in zip(sender.addresses, to.addresses, strict=True):
            hops = 14 + (8 if src.version == 4 else 7)
            for delivery in self.send(at, sender.mac, src, dst):
                assert all(parse(frame).dst == to.mac for _, _, frame in delivery.arrivals), delivery
                assert all(frame[hops] == 63 for _, _, frame in delivery.arrivals), f"not one hop: {delivery}"
                assert not delivery.to_controller
                found.append([(switch, port) for switch, port, _ in delivery.arrivals])
        return found
