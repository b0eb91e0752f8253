"""Small networks for tests: a leaf-spine fabric with servers, addresses that tell what they belong to."""

from ipaddress import IPv4Address, IPv4Network

from retinue.model import (
    VM,
    BindingKind,
    Holding,
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
)

GATEWAY_MAC = "00:00:de:ad:be:ef"
GATEWAY = IPv4Address("10.1.0.254")
INFRA_GATEWAY = IPv4Address("10.0.0.254")
UPLINK = 1
"""Port number of an edge switch's uplink."""


def leaf_port(server: int) -> int:
    """Number of the leaf port a server is on; spines are on ports 1, 2, ..."""
    return 100 + server


def fabric(leaves: int = 2, spines: int = 2, servers_on: tuple[int, ...] = (1, 2, 1)) -> Network:
    """Leaves and spines fully meshed; server N is under leaf `servers_on[N-1]` and runs edge N.

    Under the last leaf there are also the DHCP server (leaf port 90) and the router (leaf port 91).
    """
    net = Network(GATEWAY_MAC)
    net.add_subnet(Subnet("servers", IPv4Network("10.0.0.0/24"), INFRA_GATEWAY))
    net.add_subnet(Subnet("blue", IPv4Network("10.1.0.0/24"), GATEWAY))
    for number in range(1, spines + 1):
        net.add_switch(Switch(f"spine{number}", Role.SPINE, 0x50 + number))
    for number in range(1, leaves + 1):
        net.add_switch(Switch(f"leaf{number}", Role.LEAF, 0x10 + number))
    for number in range(1, len(servers_on) + 1):
        net.add_switch(Switch(f"edge{number}", Role.EDGE, 0x30 + number, uplink="up0"))
    for leaf in range(1, leaves + 1):
        for spine in range(1, spines + 1):
            net.add_link(Link(PortRef(f"leaf{leaf}", f"s{spine}"), PortRef(f"spine{spine}", f"l{leaf}")))
    for spine in range(1, spines + 1):
        net.set_ports(f"spine{spine}", {f"l{leaf}": leaf for leaf in range(1, leaves + 1)})
    for leaf in range(1, leaves + 1):
        ports = {f"s{spine}": spine for spine in range(1, spines + 1)}
        ports |= {f"p{n}": leaf_port(n) for n, at in enumerate(servers_on, 1) if at == leaf}
        if leaf == leaves:
            ports |= {"dhcp": 90, "router": 91}
        net.set_ports(f"leaf{leaf}", ports)
    for number, leaf in enumerate(servers_on, 1):
        net.set_ports(f"edge{number}", {"up0": UPLINK})
        net.put_server(server(number))
        net.detect(f"server{number}", PortRef(f"leaf{leaf}", f"p{number}"))
    last = f"leaf{leaves}"
    net.put_server(
        Server(
            "dhcp", "02:00:00:00:01:02", IPv4Address("10.1.0.2"), services=frozenset({Service.DHCP}),
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


def add_vm(net: Network, number: int, at: int, *, bound: bool = True, ports_on: tuple[int, ...] = ()) -> VM:
    """VM N on server `at`, with a port there (and on `ports_on`), holding its address when `bound`."""
    vm = VM(f"vm{number}", vm_mac(number), f"server{at}")
    net.put_vm(vm)
    for place in {at, *ports_on}:
        net.set_vm_port(vm.id, f"edge{place}", VMPort(vm_port(number), f"tap{number}"))
    if bound:
        net.hold(holding(number))
    return vm


def holding(number: int, lease_end: float | None = 1e10) -> Holding:
    return Holding(
        vm_ip(number), vm_mac(number), f"vm{number}", BindingKind.DYNAMIC, Origin.CONTROLLER, lease_end
    )
