"""What the network rejects, before it changes anything; what a change touches; the compiler after a clash."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest

from retinue.core.model import (
    NIC,
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
    Trust,
    VMPort,
)
from retinue.core.model.network import NOTHING, Owner
from retinue.core.pipeline.compiler import Compiler, ConflictError, contribution
from retinue.core.pipeline.entry import Program
from support.fabric.networks import (
    GATEWAY,
    GATEWAY_MAC,
    INFRA_GATEWAY,
    UPLINK,
    add_vm,
    assignment,
    fabric,
    leaf_port,
    server,
    vm_ip,
    vm_mac,
    vm_port,
)

Change = Callable[[Network], object]

SERVER2 = IPv4Address("10.0.0.12")
DEFAULT = IPv4Network("0.0.0.0/0")


def put(**changes: object) -> Change:
    return lambda net: net.put_server(replace(server(2), **changes))  # type: ignore[arg-type]


def hold(ip: IPv4Address, **changes: object) -> Change:
    return lambda net: net.assign(replace(assignment(1), ip=ip, **changes))  # type: ignore[arg-type]


def give(ip: IPv4Address) -> Change:
    return lambda net: net.put_vm(VM.with_one_nic("vm9", vm_mac(9), "server1", addresses=(ip,)))


def router(*routes: IPv4Network | IPv6Network) -> Change:
    return lambda net: net.put_server(Server("new", "02:00:00:00:09:09", routes=routes))


def subnet(prefix: str, gateway: str) -> Change:
    net = IPv6Network(prefix) if ":" in prefix else IPv4Network(prefix)
    at = IPv6Address(gateway) if ":" in gateway else IPv4Address(gateway)
    return lambda n: n.add_subnet(Subnet("new", net, at))


def location(**changes: object) -> Change:
    return lambda net: net.put_vm(replace(net.vms["vm1"], **changes))  # type: ignore[arg-type]


def vm_with(mac: str) -> Change:
    return lambda net: net.put_vm(VM("vm9", (NIC(mac, "vm9"),), "server1"))


def own_addresses(prefix: str, gateway: str) -> Change:
    made = Subnet("new", ip_network(prefix), ip_address(gateway), slaac=True)
    return lambda net: net.add_subnet(made)


def vm_at(address: str) -> Change:
    return lambda net: net.put_vm(
        VM.with_one_nic("vm9", vm_mac(9), "server1", addresses=(ip_address(address),))
    )


def link(leaf: str, spine: str) -> Change:
    return lambda net: net.add_link(Link(PortRef(leaf, "x"), PortRef(spine, "x")))


REJECTED: dict[str, tuple[Change, str]] = {
    "a VM holds a server's address": (hold(SERVER2), "10.0.0.12 is the address of server server2"),
    "a VM holds a gateway's address": (hold(GATEWAY), "10.1.0.254 is the gateway of subnet blue"),
    "a VM holds by another's MAC": (hold(vm_ip(5), mac=vm_mac(7)), "VM vm1 has MAC"),
    "a VM given a server's address": (give(SERVER2), "10.0.0.12 is the address of server server2"),
    "a VM given a gateway's address": (give(INFRA_GATEWAY), "is the gateway of subnet servers"),
    "a VM's MAC changed while it holds": (
        lambda net: net.put_vm(VM.with_one_nic("vm1", vm_mac(7), "server1")),
        "VM vm1 holds 10.1.0.101 with MAC",
    ),
    "a port given to a second VM": (
        lambda net: net.put_vm(VM("vm9", (NIC(vm_mac(9), "vm1"),), "server1")),
        "the port with iface-id vm1 already belongs to VM vm1",
    ),
    "a server with another's MAC": (put(mac=server(3).mac), "already belongs to server server3"),
    "a server on another's edge switch": (put(edge="edge3"), "edge switch edge3 already runs on server3"),
    "a server on no edge switch": (put(edge="leaf1"), "leaf1 is not a known edge switch"),
    "a server on an edge switch nobody knows": (put(edge="edge9"), "edge9 is not a known edge switch"),
    "a VM with a server's MAC": (vm_with(server(2).mac), "belongs to server server2"),
    "a VM with another's MAC": (vm_with(vm_mac(1)), "already belongs to VM vm1"),
    "a VM with the gateway's MAC": (vm_with(GATEWAY_MAC), "the gateway's"),
    "a VM with a multicast MAC": (vm_with("01:00:5e:00:00:01"), "group address"),
    "an address for nobody": (hold(vm_ip(5), vm="vm9"), "10.1.0.105: there is no VM vm9"),
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
    "a router with no such metric": (
        lambda net: net.put_server(replace(net.servers["router"], metric=65536)),
        "metric 65536 is not between 0 and 65535",
    ),
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
    "a subnet inside another": (
        subnet("10.1.0.128/25", "10.1.0.129"),
        "subnets blue and new overlap: 10.1.0.0/24, 10.1.0.128/25",
    ),
    "a subnet around another": (subnet("10.0.0.0/8", "10.2.0.1"), "subnets servers and new overlap"),
    "a subnet of link-local addresses": (subnet("fe80::/64", "fe80::1"), "no host can have"),
    "a subnet of groups": (subnet("ff00::/16", "ff00::1"), "no host can have"),
    "own addresses of a subnet of IPv4": (own_addresses("10.7.0.0/24", "10.7.0.1"), "an IPv6 /64 only"),
    "own addresses of a long prefix": (own_addresses("fd00:9::/80", "fd00:9::1"), "an IPv6 /64 only"),
    "a VM with a link-local address": (vm_at("fe80::5"), "fe80::5 cannot be registered"),
    "a VM with the loopback address": (vm_at("::1"), "::1 cannot be registered"),
    "a VM with IPv4 in disguise": (vm_at("::ffff:10.1.0.5"), "cannot be registered"),
    "a VM with a group's address": (vm_at("ff02::1"), "ff02::1 cannot be registered"),
    "a VM with a group's address of IPv4": (vm_at("224.0.0.5"), "224.0.0.5 cannot be registered"),
    "a VM with the loopback address of IPv4": (vm_at("127.0.0.1"), "127.0.0.1 cannot be registered"),
    "a VM with everybody's address": (vm_at("255.255.255.255"), "cannot be registered"),
    "a VM with nobody's address": (vm_at("0.0.0.0"), "0.0.0.0 cannot be registered"),
    "a VM copied to where it is not open": (
        location(also=frozenset({"server2"}), copied_to="server3"),
        "VM vm1: it is not open at server3, and nothing can be copied there",
    ),
    "a VM copied to where it is": (location(copied_to="server1"), "it is not open at server1"),
    "a VM that its own server forwards": (
        location(forwarded_from="server1"),
        "VM vm1: server1 cannot forward to itself",
    ),
    "a VM at no known server": (location(server="server9"), "VM vm1: there is no server server9"),
    "a VM open at no known server": (location(also=frozenset({"server9"})), "there is no server server9"),
    "a VM forwarded from no known server": (location(forwarded_from="server9"), "there is no server server9"),
    "a VM where no VMs run": (location(also=frozenset({"dhcp"})), "server dhcp has no edge switch"),
    "a link to a leaf nobody knows": (link("leaf9", "spine1"), "leaf9 is not a known leaf switch"),
    "a link to a spine nobody knows": (link("leaf1", "spine9"), "spine9 is not a known spine switch"),
    "a link the wrong way round": (link("spine1", "leaf1"), "leaf1 is not a known core switch"),
    "a link between leaves": (link("leaf1", "leaf2"), "leaf2 is not a known spine switch"),
}  # fmt: skip


@pytest.mark.parametrize("name", REJECTED)
def test_what_cannot_be_is_rejected_before_anything_changes(name: str) -> None:
    change, message = REJECTED[name]
    net = fabric()
    add_vm(net, 1, 1)
    net.assign(replace(assignment(1), ip=IPv4Address("10.9.0.7")))
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
    assert net.assign(assignment(1)) == NOTHING


def test_servers_are_found_by_address() -> None:
    net = fabric()
    assert net.server_of_address(SERVER2) == server(2)
    net.put_server(replace(server(2), address=IPv4Address("10.0.0.99")))
    assert net.server_of_address(SERVER2) is None
    net.remove_server("server2")
    assert net.server_of_address(IPv4Address("10.0.0.99")) is None


def test_a_server_that_stays_where_it_is_touches_nothing() -> None:
    net = fabric()
    add_vm(net, 1, 1)
    assert net.detect("server1", PortRef("leaf1", "p1")) == NOTHING
    moved = net.detect("server1", PortRef("leaf2", "p9"))
    assert moved == {Owner("server", "server1"), Owner("vm", "vm1")}
    assert net.detect("server1", PortRef("leaf2", "p9")) == NOTHING


def test_a_cache_runs_no_vms() -> None:
    net = fabric()
    with pytest.raises(ModelError, match="server server1 is a cache: it runs no VMs"):
        net.put_server(replace(net.servers["server1"], services=frozenset({Service.CACHE})))


def test_forwarders_are_those_that_servers_say_they_are_now() -> None:
    net = fabric()
    made = Server("fcf1", "02:00:00:00:0f:01")
    everything = net.put_server(replace(made, services=frozenset({Service.FORWARDER})))
    assert net.forwarders() == [net.servers["fcf1"]] and everything >= net.everything()
    assert net.put_server(made) >= net.everything() and net.forwarders() == []
    net.put_server(replace(made, services=frozenset({Service.FORWARDER})))
    assert net.remove_server("fcf1") >= net.everything() and net.forwarders() == []


def test_a_second_dhcp_server_is_not_believed_to_be_at_the_port_of_the_first() -> None:
    net = fabric()
    net.put_server(Server("dhcp2", "02:00:00:00:09:09", services=frozenset({Service.DHCP})))
    assert net.detect("dhcp2", PortRef("leaf2", "dhcp")) == NOTHING
    assert net.location("dhcp2") is None
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


def test_ports_that_appear_and_go_touch_what_they_lead_to() -> None:
    """A switch that connects after the start tells its ports for the first time."""
    for switch, touched in (
        ("leaf1", {"switch leaf1", "server server1", "vm vm1", "server server3"}),
        ("spine1", {"switch spine1", "server server1", "vm vm1", "server server2", "vm vm2"}),
        ("edge1", {"switch edge1", "server server1", "vm vm1"}),
    ):
        net = fabric()
        add_vm(net, 1, 1)
        add_vm(net, 2, 2)
        ports = dict(net._numbers[switch])
        compiler = Compiler(net)
        compiler.update(net.everything())
        before = deepcopy(compiler.programs)
        gone = net.set_ports(switch, {})
        compiler.update(gone)
        assert compiler.programs != before
        appeared = net.set_ports(switch, ports)
        assert gone == appeared
        assert {str(owner) for owner in appeared} >= touched
        compiler.update(appeared)
        assert compiler.programs == before, switch


def test_a_port_is_a_vms_only_where_the_vm_may_be() -> None:
    """A port with a VM's id on another server is nobody's: what it sends is not taken for the VM's word."""
    net = fabric()
    vm = add_vm(net, 1, at=1, ports_on=(2, 3))
    assert net.vm_at("edge1", vm_port(1)) == vm
    assert net.vm_at("edge3", vm_port(1)) is None
    moving = replace(vm, also=frozenset({"server2"}))
    net.put_vm(moving)
    assert net.vm_at("edge2", vm_port(1)) == moving, "a migration's other end"
    assert net.vm_at("edge3", vm_port(1)) is None
    assert net.vm_at("leaf1", vm_port(1)) is None


def test_of_a_vms_rows_the_place_it_is_delivered_at_comes_first() -> None:
    for server_, also in ((1, 2), (2, 1)):
        net = fabric()
        vm = add_vm(net, 1, at=server_, ports_on=(also,))
        net.put_vm(replace(vm, also=frozenset({f"server{also}"})))
        rows = [(row.switch, row.active) for row in net.bindings()]
        assert rows == [(f"edge{server_}", True), (f"edge{also}", False)]


def test_a_spine_knows_its_port_to_each_leaf() -> None:
    net = fabric()
    assert net.port_down("spine2", "leaf1") == 1
    assert net.port_down("spine2", "edge1") is None
    net.add_switch(Switch("leaf9", Role.LEAF, 0x99))
    net.add_link(Link(PortRef("leaf9", "s2"), PortRef("spine2", "l9")))
    assert net.port_down("spine2", "leaf9") is None, "its number is not known"
    net.set_ports("spine2", {"l1": 1, "l2": 2, "l9": 9})
    assert net.port_down("spine2", "leaf9") == 9


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
    with pytest.raises(ConflictError, match="vm vm2 and vm vm1 both want"):
        compiler.update(net.everything())
    assert compiler.programs == programs
    net.remove_vm(other.id)
    add_vm(net, 3, 2)
    assert set(compiler.update({Owner("vm", "vm2"), Owner("vm", "vm3")})) >= {"edge2", "leaf2", "spine1"}
    fresh = Compiler(net)
    fresh.update(net.everything())
    assert compiler.programs == fresh.programs


def test_of_what_was_touched_a_clash_holds_up_only_those_that_clash() -> None:
    net = fabric()
    add_vm(net, 1, 1)
    compiler = Compiler(net)
    assert compiler.update_each(net.everything())[1] is None
    add_vm(net, 2, 1, bound=False)
    net.vm_ports["vm2"]["edge1"] = VMPort(vm_port(1), "tap2")
    add_vm(net, 3, 2)
    changed, clash = compiler.update_each(net.everything())
    assert "vm vm2 and vm vm1 both want" in str(clash) or "vm vm1 and vm vm2 both want" in str(clash)
    assert set(changed) >= {"edge2", "leaf2", "spine1"}
    net.remove_vm("vm2")
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
        net.unassign(vm_ip(number))
    for number in (1, 2, 3):
        net.assign(replace(assignment(number), ip=vm_ip(number % 3 + 1)))
    assert compiler.update({Owner("vm", "vm1")})
    fresh = Compiler(net)
    fresh.update(net.everything())
    assert compiler.programs == fresh.programs


def test_only_who_was_touched_or_is_in_the_way_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hundred thousand VMs a change of one must not cost a hundred thousand."""
    net = fabric()
    for number in (1, 2, 3):
        add_vm(net, number, number)
    compiler, computed = Compiler(net), list[str]()
    compiler.update(net.everything())

    def noted(net: Network, owner: Owner) -> dict[str, Program]:
        computed.append(str(owner))
        return contribution(net, owner)

    monkeypatch.setattr("retinue.core.pipeline.compiler.contribution", noted)
    net.unassign(vm_ip(1))
    compiler.update({Owner("vm", "vm1")})
    assert computed == ["vm vm1"]
    computed.clear()
    net.unassign(vm_ip(2))
    net.assign(replace(assignment(1), ip=vm_ip(2)))
    compiler.update({Owner("vm", "vm1")})
    assert computed == ["vm vm1", "vm vm2"], "vm2 has had the address, and was not computed since"


@pytest.mark.parametrize("kind", ["switch", "server", "vm"])
def test_of_who_is_gone_nothing_is_left(kind: str) -> None:
    net = fabric()
    add_vm(net, 1, 1)
    compiler = Compiler(net)
    compiler.update(net.everything())
    owner = {"switch": "edge3", "server": "server3", "vm": "vm1"}[kind]
    match kind:
        case "vm":
            touched = net.remove_vm(owner)
        case "server":
            touched = net.remove_server(owner)
        case _:
            del net.switches[owner]
            touched = frozenset({Owner(kind, owner)})
    assert touched == {Owner(kind, owner)}
    assert compiler.update(touched), "its entries are gone"
    assert contribution(net, Owner(kind, owner)) == {}
    assert not compiler.update(touched)


@pytest.mark.parametrize("mac", ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01"])
def test_a_gateways_mac_is_no_group_address(mac: str) -> None:
    with pytest.raises(ModelError, match="is a group address"):
        Network(mac)


def test_one_port_is_given_to_one_server() -> None:
    net = fabric()
    router = net.servers["router"]
    second = replace(router, id="router2", mac="02:00:00:00:09:09", address=None, routes=())
    with pytest.raises(ModelError, match="given as the location of server router already"):
        net.put_server(second)
    assert "router2" not in net.servers


def test_a_binding_shows_its_own_subnets_vlan_and_no_vm_is_trusted() -> None:
    """Not even one on a trusted server's edge."""
    net = fabric()
    net.subnets["blue"] = replace(net.subnets["blue"], vlan=42)
    net.subnets["servers"] = replace(net.subnets["servers"], vlan=7)
    for number, at in ((1, 1), (2, 3)):
        add_vm(net, number, at)
    net.put_server(replace(server(3), services=frozenset({Service.DHCP})))
    net.put_vm(VM.with_one_nic("vm9", vm_mac(9), "server2"))
    net.set_vm_port("vm9", "edge2", VMPort(vm_port(9), "tap9"))
    net.assign(replace(assignment(9), ip=IPv4Address("10.0.0.77")))
    shown = {row.vm: (row.vlan, row.trust) for row in net.bindings()}
    assert shown == {"vm1": (42, Trust.UNTRUST), "vm2": (42, Trust.UNTRUST), "vm9": (7, Trust.UNTRUST)}


def test_a_prefix_that_a_router_names_twice_is_one_way() -> None:
    net = fabric()
    router = net.servers["router"]
    doubled = replace(router, routes=(*router.routes, *router.routes))
    net.put_server(doubled)
    assert net.put_server(replace(router, routes=()))
    assert net.routers_to == {}
    net.put_server(doubled)
    net.remove_server("router")
    assert net.routers_to == {}
