"""Small networks for tests: a leaf-spine fabric with servers, addresses that tell what they belong to."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from retinue.core.model import (
    NIC,
    VM,
    Assignment,
    BindingKind,
    GatewayGroup,
    Link,
    Network,
    Origin,
    PortRef,
    Role,
    Server,
    Service,
    Subnet,
    Switch,
    VMPort,
    port_id_of,
)
from retinue.core.model.plain_routers import OTHERS

GATEWAY_MAC = "00:00:de:ad:be:ef"
GATEWAY = IPv4Address("10.1.0.254")
GATEWAY6 = IPv6Address("fd00:1::fe")
INFRA_GATEWAY = IPv4Address("10.0.0.254")
UPLINK = 1
"""Port number of an edge switch's uplink."""


OVER = ["spines", "macs", "tunnels"]
"""What joins leaves that are ours: spines that route, spines that know MACs alone, tunnels."""


def leaf_port(server: int) -> int:
    """Number of the leaf port a server is on; spines are on ports 1, 2, ..."""
    return 100 + server


TUNNEL = 60
"""Port number of a leaf's end of the tunnels."""


def endpoint(leaf: int) -> IPv4Address:
    """A leaf's address on the IP network that joins leaves, where no spines do."""
    return IPv4Address(f"172.16.{leaf}.2")


def fabric(
    leaves: int = 2,
    spines: int = 2,
    servers_on: tuple[int, ...] = (1, 2, 1),
    cores: int = 0,
    *,
    over_ip: bool = False,
    over_routers: bool = False,
    by_mac: bool = False,
) -> Network:
    """Leaves and spines fully meshed; server N is under leaf `servers_on[N-1]` and runs edge N.

    With cores, as many as there are spines at least, there are two pods, each with every second leaf and so
    many spines. `over_ip`: tunnels over an IP network of others join the leaves, and there are no spines.
    `over_routers`: the leaves are routers that are not ours, and the DHCP server is any host.
    `by_mac`: spines and cores forward by MAC alone.

    Under the last leaf there are also the DHCP server (leaf port 90) and the router (leaf port 91).
    """
    net = Network(GATEWAY_MAC, spines_by_mac=by_mac)
    net.add_subnet(Subnet("servers", IPv4Network("10.0.0.0/24"), INFRA_GATEWAY))
    net.add_subnet(Subnet("blue", IPv4Network("10.1.0.0/24"), GATEWAY))
    if over_ip or over_routers:
        spines = cores = 0
    pods = min(leaves, 2) if cores else 1
    for number in range(1, cores + 1):
        net.add_switch(Switch(f"core{number}", Role.CORE, 0x70 + number))
    for number in range(1, pods * spines + 1):
        net.add_switch(Switch(f"spine{number}", Role.SPINE, 0x50 + number))
    for number in range(1, leaves + 1):
        leaf_of_fabric = Switch(f"leaf{number}", Role.LEAF, 0x10 + number)
        joined_by_ip = replace(leaf_of_fabric, tunnel="vxlan0", endpoint=endpoint(number))
        router = replace(joined_by_ip, tunnel=OTHERS, router=True, given=True)
        net.add_switch(router if over_routers else joined_by_ip if over_ip else leaf_of_fabric)
    for number in range(1, len(servers_on) + 1):
        net.add_switch(Switch(f"edge{number}", Role.EDGE, 0x30 + number, uplink="up0"))

    def of_pod(pod: int) -> range:
        return range(pod * spines + 1, (pod + 1) * spines + 1)

    for leaf in range(1, leaves + 1):
        for spine in of_pod((leaf - 1) % pods):
            net.add_link(Link(PortRef(f"leaf{leaf}", f"s{spine}"), PortRef(f"spine{spine}", f"l{leaf}")))
    for core in range(1, cores + 1):
        for pod in range(pods):
            spine = of_pod(pod)[core % spines]
            net.add_link(Link(PortRef(f"spine{spine}", f"c{core}"), PortRef(f"core{core}", f"s{spine}")))
    for switch, ports in _ports_between(net).items():
        net.set_ports(switch, ports)
    for leaf in range(1, leaves + 1):
        ports = _ports_between(net).get(f"leaf{leaf}", {})
        ports |= {f"p{n}": leaf_port(n) for n, at in enumerate(servers_on, 1) if at == leaf}
        if leaf == leaves:
            ports |= {"dhcp": 90, "router": 91}
        if over_ip:
            ports["vxlan0"] = TUNNEL
        if over_routers:
            ports[OTHERS] = TUNNEL
        net.set_ports(f"leaf{leaf}", ports)
    for number, leaf in enumerate(servers_on, 1):
        net.set_ports(f"edge{number}", {"up0": UPLINK})
        place = PortRef(f"leaf{leaf}", f"p{number}")
        net.put_server(replace(server(number), given_at=place if over_routers else None))
        net.detect(f"server{number}", PortRef(f"leaf{leaf}", f"p{number}"))
    last = f"leaf{leaves}"
    net.put_server(
        Server(
            "dhcp", "02:00:00:00:01:02", IPv4Address("10.1.0.2"),
            services=frozenset() if over_routers else frozenset({Service.DHCP}),
            given_at=PortRef(last, "dhcp"),
        )
    )  # fmt: skip
    net.put_server(
        Server(
            "router", "02:00:00:00:01:01", IPv4Address("10.0.0.1"), services=frozenset({Service.ROUTER}),
            routes=(IPv4Network("0.0.0.0/0"),), given_at=PortRef(last, "router"),
        )
    )  # fmt: skip
    return net


def _ports_between(net: Network) -> dict[str, dict[str, int]]:
    """By switch: its ports to others; to spine, leaf or core N number N, to cores from 60 on."""
    found: dict[str, dict[str, int]] = {}
    for link in net.links:
        for end in (link.lower, link.upper):
            number = int(end.port[1:]) + (60 if end.port.startswith("c") else 0)
            found.setdefault(end.switch, {})[end.port] = number
    return found


def tunnel_ends(net: Network) -> list[tuple[tuple[str, int], IPv4Address]]:
    """The end of each leaf's tunnels, switch and port, with its address."""
    found = []
    for switch in net.switches.values():
        port = net.port_number(PortRef(switch.id, switch.tunnel))
        if switch.endpoint is not None and port is not None:
            found.append(((switch.id, port), switch.endpoint))
    return found


def add_ipv6(net: Network) -> None:
    """The VMs' subnet has IPv6, too, and the router leads to all of it outside."""
    net.add_subnet(Subnet("blue6", IPv6Network("fd00:1::/64"), GATEWAY6))
    router = net.servers["router"]
    net.put_server(replace(router, routes=(*router.routes, IPv6Network("::/0"))))


def split(net: Network) -> None:
    """The VMs' subnet in parts: NICs 1 to 3 in one, 4 to 6, and second and third NICs, in others."""
    for id, prefix, gateway in (
        ("blue", "10.1.0.0/26", "10.1.0.62"),
        ("first", "10.1.0.100/30", "10.1.0.100"),
        ("second", "10.1.0.104/30", "10.1.0.107"),
        ("third", "10.1.0.112/28", "10.1.0.127"),
        ("fourth", "10.1.0.128/26", "10.1.0.190"),
        ("rest", "10.1.0.192/26", "10.1.0.254"),
    ):
        net.add_subnet(Subnet(id, IPv4Network(prefix), IPv4Address(gateway)))


OTHER_GATEWAY_MAC = "00:00:de:ad:00:02"


def group(net: Network) -> None:
    """Every second server is in a group with a gateway MAC of its own."""
    net.put_gateway_group(GatewayGroup("second", OTHER_GATEWAY_MAC))
    for server in list(net.servers.values()):
        if server.edge and int(server.id[-1]) % 2 == 0:
            net.put_server(replace(server, gateway_group="second"))


SECOND_UPLINK = 2
"""Port number of an edge's second uplink, where it has one."""


def second_leaf_port(server: int) -> int:
    """Number of the port of the other leaf to which a server's second uplink leads."""
    return 200 + server


def add_uplink(net: Network, number: int, leaf: int) -> None:
    """Server N has a second uplink, to this leaf; it uses the first."""
    edge, first = net.switches[f"edge{number}"], net.detected[f"server{number}"]
    net.add_switch(replace(edge, standby=("up1",)))
    net.set_ports(edge.id, {"up0": UPLINK, "up1": SECOND_UPLINK})
    net.set_ports(f"leaf{leaf}", {**net._numbers[f"leaf{leaf}"], f"q{number}": second_leaf_port(number)})
    net.find_uplink(PortRef(edge.id, "up0"), first)
    net.find_uplink(PortRef(edge.id, "up1"), PortRef(f"leaf{leaf}", f"q{number}"))
    net.use_uplink(edge.id, "up0")


def server(number: int) -> Server:
    return Server(
        f"server{number}",
        f"02:00:00:00:00:{number:02x}",
        IPv4Address(f"10.0.0.{10 + number}"),
        edge=f"edge{number}",
    )


def vm_mac(number: int) -> str:
    return f"52:54:00:00:00:{number:02x}"


def vm_ip(number: int) -> IPv4Address:
    return IPv4Address(f"10.1.0.{100 + number}")


def vm_port(number: int) -> int:
    """A VM has the same port number on every edge here: 10 and up."""
    return 9 + number


NICS_APART = 16
"""What is numbered by VM is numbered by NIC, too: NIC K of VM N has the number N + 16 (K - 1)."""


def nic_numbers(vm: VM) -> list[int]:
    """The numbers of a VM's NICs; the first has the VM's own."""
    return [int(vm.id.removeprefix("vm")) + NICS_APART * index for index in range(len(vm.nics))]


def add_vm(
    net: Network,
    number: int,
    at: int,
    *,
    bound: bool = True,
    ports_on: tuple[int, ...] = (),
    nics: int = 1,
) -> VM:
    """VM N on server `at`, with ports there (and on `ports_on`), holding its addresses when `bound`."""
    id = f"vm{number}"
    numbers = [number + NICS_APART * index for index in range(nics)]
    of_vm = tuple(NIC(vm_mac(n), port_id_of(id, index), slot=index) for index, n in enumerate(numbers, 1))
    vm = VM(id, of_vm, f"server{at}")
    net.put_vm(vm)
    for nic, n in zip(of_vm, numbers, strict=True):
        for location in {at, *ports_on}:
            net.set_vm_port(nic.port_id, f"edge{location}", VMPort(vm_port(n), f"tap{n}"))
        if bound:
            net.assign(replace(assignment(n), vm=id))
    return vm


def moved(vm: VM, to: str) -> VM:
    """The VM delivered at `to`, its former server still open."""
    return replace(vm, server=to, also=(vm.also | {vm.server}) - {to})


def assignment(number: int, lease_end: float | None = 1e10) -> Assignment:
    return Assignment(
        vm_ip(number), vm_mac(number), f"vm{number}", BindingKind.DYNAMIC, Origin.CONTROLLER, lease_end
    )


def holding6(number: int, lease_end: float | None = 1e10) -> Assignment:
    """As `assignment`, of an IPv6 address."""
    return replace(assignment(number, lease_end), ip=IPv6Address(f"fd00:1::{100 + number}"))
