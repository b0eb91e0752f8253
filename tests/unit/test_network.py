"""What the network refuses, before it changes anything; what a change touches; the compiler after a clash."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from networks import (
    GATEWAY,
    GATEWAY_MAC,
    INFRA_GATEWAY,
    UPLINK,
    add_vm,
    fabric,
    holding,
    leaf_port,
    server,
    vm_ip,
    vm_mac,
    vm_port,
)
from retinue.flows.compiler import ClashError, Compiler
from retinue.model import (
    VM,
    Link,
    ModelError,
    Network,
    PortRef,
    Role,
    Server,
    Service,
    Subnet,
    Switch,
    VMPort,
)
from retinue.model.network import NOTHING, Owner

Change = Callable[[Network], object]

SERVER2 = IPv4Address("10.0.0.12")
DEFAULT = IPv4Network("0.0.0.0/0")


def put(**changes: object) -> Change:
    return lambda net: net.put_server(replace(server(2), **changes))  # type: ignore[arg-type]


def hold(ip: IPv4Address, **changes: object) -> Change:
    return lambda net: net.hold(replace(holding(1), ip=ip, **changes))  # type: ignore[arg-type]


def give(ip: IPv4Address) -> Change:
    return lambda net: net.put_vm(VM("vm9", vm_mac(9), "server1", addresses=(ip,)))


def router(*routes: IPv4Network | IPv6Network) -> Change:
    return lambda net: net.put_server(Server("new", "02:00:00:00:09:09", routes=routes))


def subnet(prefix: str, gateway: str) -> Change:
    net = IPv6Network(prefix) if ":" in prefix else IPv4Network(prefix)
    at = IPv6Address(gateway) if ":" in gateway else IPv4Address(gateway)
    return lambda n: n.add_subnet(Subnet("new", net, at))


REFUSED: dict[str, tuple[Change, str]] = {
    "a VM holds a server's address": (hold(SERVER2), "10.0.0.12 is the address of server server2"),
    "a VM holds a gateway's address": (hold(GATEWAY), "10.1.0.254 is the gateway of subnet blue"),
    "a VM holds by another's MAC": (hold(vm_ip(5), mac=vm_mac(7)), "VM vm1 has MAC"),
    "a VM given a server's address": (give(SERVER2), "10.0.0.12 is the address of server server2"),
    "a VM given a gateway's address": (give(INFRA_GATEWAY), "is the gateway of subnet servers"),
    "a VM's MAC changed while it holds": (
        lambda net: net.put_vm(VM("vm1", vm_mac(7), "server1")),
        "VM vm1 holds 10.1.0.101 with MAC",
    ),
    "a server with a VM's MAC": (put(mac=vm_mac(1)), "belongs to VM vm1"),
    "a server with the gateway's MAC": (put(mac=GATEWAY_MAC), "the gateway's"),
    "a server with the broadcast MAC": (put(mac="ff:ff:ff:ff:ff:ff"), "group address"),
    "a server with a multicast MAC": (put(mac="01:00:5e:00:00:01"), "group address"),
    "a server with a held address": (put(address=vm_ip(1)), "10.1.0.101 is held by VM vm1"),
    "a server with another's address": (
        put(address=IPv4Address("10.0.0.1")),
        "10.0.0.1 is the address of server router",
    ),
    "a server with a gateway's address": (put(address=GATEWAY), "is the gateway of subnet blue"),
    "two ways to one prefix": (router(DEFAULT), "0.0.0.0/0 is reached through server router"),
    "a way to a subnet": (router(IPv4Network("10.1.0.0/24")), "is subnet blue"),
    "a server whose VMs would have no edge": (lambda n: n.put_server(replace(server(1), edge="")), "vm1"),
    "a second DHCP server at a port": (
        lambda net: net.put_server(
            Server(
                "dhcp2", "02:00:00:00:09:09", services=frozenset({Service.DHCP}),
                given_at=PortRef("leaf2", "dhcp"),
            )
        ),
        "leaf2:dhcp is the port of DHCP server dhcp",
    ),
    "a gateway with a held address": (subnet("10.9.0.0/24", "10.9.0.7"), "10.9.0.7 is held by VM vm1"),
    "a gateway with a server's address": (subnet("10.8.0.0/24", "10.8.0.7"), "address of server server3"),
    "a subnet with a route's prefix": (subnet("fd00::/64", "fd00::1"), "is reached through server server3"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_anything_changes(name: str) -> None:
    change, message = REFUSED[name]
    net = fabric()
    add_vm(net, 1, 1)
    net.hold(replace(holding(1), ip=IPv4Address("10.9.0.7")))
    net.put_server(replace(server(3), address=IPv4Address("10.8.0.7"), routes=(IPv6Network("fd00::/64"),)))
    before = deepcopy(net)
    with pytest.raises(ModelError, match=message.replace(".", r"\.")):
        change(net)
    assert net == before
    Compiler(net).update(net.everything())


def test_one_who_changes_only_itself_is_not_in_its_own_way() -> None:
    net = fabric()
    add_vm(net, 1, 1)
    net.put_server(net.servers["router"])
    net.put_server(replace(net.servers["dhcp"], mac="02:00:00:00:09:09"))
    net.add_subnet(net.subnets["blue"])
    assert net.hold(holding(1)) == NOTHING


def test_servers_are_found_by_address() -> None:
    net = fabric()
    assert net.server_of_address(SERVER2) == server(2)
    net.put_server(replace(server(2), address=IPv4Address("10.0.0.99")))
    assert net.server_of_address(SERVER2) is None
    net.remove_server("server2")
    assert net.server_of_address(IPv4Address("10.0.0.99")) is None


def test_a_second_dhcp_server_is_not_believed_to_be_at_the_port_of_the_first() -> None:
    net = fabric()
    net.put_server(Server("dhcp2", "02:00:00:00:09:09", services=frozenset({Service.DHCP})))
    assert net.detect("dhcp2", PortRef("leaf2", "dhcp")) == NOTHING
    assert net.place("dhcp2") is None
    assert net.detect("dhcp2", PortRef("leaf1", "p1"))
    Compiler(net).update(net.everything())


def test_a_port_number_has_one_vm_the_one_last_told() -> None:
    net = fabric()
    add_vm(net, 1, 1)
    add_vm(net, 2, 1)
    touched = net.set_vm_port("vm2", "edge1", VMPort(vm_port(1), "tap2"))
    assert touched == {Owner("vm", "vm1"), Owner("vm", "vm2")}
    assert net.vm_ports["vm1"] == {}
    found = net.vm_at("edge1", vm_port(1))
    assert found is not None
    assert found.id == "vm2"
    assert net.vm_at("edge1", vm_port(2)) is None
    Compiler(net).update(net.everything())


# ---- what a change of port numbers touches ----


def test_ports_that_lead_nowhere_touch_nothing() -> None:
    net = fabric()
    add_vm(net, 1, 1)
    assert net.set_ports("spine1", {"l1": 1, "l2": 2, "spare": 50}) == NOTHING
    assert net.set_ports("edge1", {"up0": UPLINK, "tap1": vm_port(1)}) == NOTHING
    ports = {"s1": 1, "s2": 2, "p1": leaf_port(1), "p3": leaf_port(3)}
    assert net.set_ports("leaf1", {**ports, "spare": 50}) == NOTHING
    assert net.port_number(PortRef("leaf1", "spare")) == 50


def test_ports_that_lead_somewhere_touch_what_they_lead_to() -> None:
    net = fabric()
    add_vm(net, 1, 1)
    add_vm(net, 2, 2)
    under_leaf1 = {Owner("server", "server1"), Owner("vm", "vm1"), Owner("server", "server3")}
    assert net.set_ports("spine1", {"l1": 7, "l2": 2}) >= under_leaf1
    assert Owner("vm", "vm2") not in net.set_ports("spine1", {"l1": 8, "l2": 2})
    ports = {"s1": 1, "s2": 2, "p1": leaf_port(1), "p3": leaf_port(3)}
    touched = net.set_ports("leaf1", ports | {"p1": 77})
    assert touched == {Owner("switch", "leaf1"), Owner("server", "server1"), Owner("vm", "vm1")}
    assert net.set_ports("leaf1", ports | {"p1": 77, "s2": 9}) == {Owner("switch", "leaf1")}
    assert Owner("server", "server1") in net.set_ports("edge1", {"up0": 9})


def test_a_spine_knows_its_port_to_each_leaf() -> None:
    net = fabric()
    assert net.spine_port("spine2", "leaf1") == 1
    assert net.spine_port("spine2", "edge1") is None
    net.add_switch(Switch("leaf9", Role.LEAF, 0x99))
    net.add_link(Link(PortRef("leaf9", "s2"), PortRef("spine2", "l9")))
    assert net.spine_port("spine2", "leaf9") is None, "its number is not known"
    net.set_ports("spine2", {"l1": 1, "l2": 2, "l9": 9})
    assert net.spine_port("spine2", "leaf9") == 9


# ---- the compiler ----


def test_a_clash_leaves_the_compiler_as_it_was() -> None:
    net = fabric()
    add_vm(net, 1, 1)
    compiler = Compiler(net)
    compiler.update(net.everything())
    programs = deepcopy(compiler.programs)
    # The network lets no such thing in; this is a fault made by hand.
    other = add_vm(net, 2, 1, bound=False)
    net.vm_ports["vm2"]["edge1"] = VMPort(vm_port(1), "tap2")
    with pytest.raises(ClashError, match="vm vm2 and vm vm1 both want"):
        compiler.update(net.everything())
    assert compiler.programs == programs
    net.remove_vm(other.id)
    add_vm(net, 3, 2)
    assert set(compiler.update({Owner("vm", "vm2"), Owner("vm", "vm3")})) >= {"edge2", "leaf2", "spine1"}
    fresh = Compiler(net)
    fresh.update(net.everything())
    assert compiler.programs == fresh.programs


def test_what_was_touched_and_not_yet_computed_is_in_nobodys_way() -> None:
    """Addresses go round between three VMs; one of them is computed before the others."""
    net = fabric()
    for number in (1, 2, 3):
        add_vm(net, number, number)
    compiler = Compiler(net)
    compiler.update(net.everything())
    for number in (1, 2, 3):
        net.release(vm_ip(number))
    for number in (1, 2, 3):
        net.hold(replace(holding(number), ip=vm_ip(number % 3 + 1)))
    assert compiler.update({Owner("vm", "vm1")})
    fresh = Compiler(net)
    fresh.update(net.everything())
    assert compiler.programs == fresh.programs


def test_one_port_is_given_to_one_server() -> None:
    net = fabric()
    router = net.servers["router"]
    second = replace(router, id="router2", mac="02:00:00:00:09:09", address=None, routes=())
    with pytest.raises(ModelError, match="given as the place of server router already"):
        net.put_server(second)
    assert "router2" not in net.servers
