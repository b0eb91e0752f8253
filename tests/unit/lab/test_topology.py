"""The lab's topology file: what it says, what is derived from it, and how a wrong one is rejected."""

import tomllib
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import msgspec
import pytest

from retinue.controller.config import load as controller_load
from retinue.controller.config_tables import LinkTable
from retinue.core.model import DEFAULT_VRF, Network, PortRef, Role, Server, Service, Subnet, Switch, mac
from retinue_lab.errors import LabError
from retinue_lab.guest.image import CLOUD, STORAGE
from retinue_lab.network import libvirtd
from retinue_lab.network.agents import guest_kind
from retinue_lab.network.controller_config import controller_config
from retinue_lab.network.dhcp_server import (
    DAEMONS,
    dhcpd_configuration,
    dnsmasq_configuration,
    kea_configuration,
    program_of,
)
from retinue_lab.topology import topology_file
from retinue_lab.topology.topology import Topology
from retinue_lab.topology.topology_file import decode_hook, encode_hook, load

DEFAULT = topology_file.DEFAULT_FILE.read_text()


def test_default_network_is_the_one_described() -> None:
    network = load()
    assert network.nodes == (
        *("controller", "fabric", "server1", "server2", "server3"),
        *("dhcp", "router", "client"),
    )
    assert {s.id: (s.node, s.bridge, s.role, s.dpid, s.ports) for s in network.switches} == {
        "spine1": ("fabric", "spine1", "spine", 0x51, ("spine1-leaf1", "spine1-leaf2")),
        "spine2": ("fabric", "spine2", "spine", 0x52, ("spine2-leaf1", "spine2-leaf2")),
        "leaf1": (
            *("fabric", "leaf1", "leaf", 0x11),
            ("leaf1-spine1", "leaf1-spine2", "leaf1-server1", "leaf1-server3"),
        ),
        "leaf2": (
            *("fabric", "leaf2", "leaf", 0x12),
            ("leaf2-spine1", "leaf2-spine2", "leaf2-server2", "leaf2-dhcp", "leaf2-router"),
        ),
        "edge1": ("server1", "br0", "edge", 0x31, ("up0",)),
        "edge2": ("server2", "br0", "edge", 0x32, ("up0",)),
        "edge3": ("server3", "br0", "edge", 0x33, ("up0",)),
    }


def test_every_switch_port_is_one_end_of_one_cable() -> None:
    network = load()
    ends = [(c.a_node, c.a) for c in network.cables] + [(c.b_node, c.b) for c in network.cables]
    assert len(ends) == len(set(ends))
    ports = {(s.node, port) for s in network.switches for port in s.ports}
    assert ports < set(ends)
    assert set(ends) - ports == {("dhcp", "eth0"), ("router", "eth0"), ("router", "out0"), ("client", "eth0")}


def test_management_addresses_are_one_a_node_and_the_controller_has_the_first() -> None:
    addresses = load().management_addresses
    assert addresses["controller"] == IPv4Interface("192.0.2.1/24")
    assert addresses["sandbox"] == IPv4Interface("192.0.2.254/24")
    assert len(set(addresses.values())) == len(addresses) == len(load().nodes) + 1


def test_topology_survives_json() -> None:
    network = load()
    encoded = msgspec.json.encode(network, enc_hook=encode_hook)
    assert msgspec.json.decode(encoded, type=Topology, dec_hook=decode_hook) == network


@dataclass
class Told:
    """A controller's configuration, read as the controller would."""

    network: Network
    listen: dict[str, object]


def read(config: str) -> Told:
    """Every value must be fit for the model, which rejects what does not fit together."""
    table = tomllib.loads(config)
    network = Network(gateway_mac=mac(table["gateway_mac"]))
    for s in table["switch"]:
        network.add_switch(Switch(s["id"], Role(s["role"]), int(s["dpid"], 16), s.get("uplink", "")))
    for link in table["link"]:
        network.add_link(LinkTable(**link).ends())
    for s in table["subnet"]:
        relayed = tuple(map(IPv4Address, s.get("dhcp", [])))
        gateway = IPv4Address(s["gateway"])
        network.add_subnet(Subnet(s["id"], IPv4Network(s["prefix"]), gateway, dhcp=relayed))
    for s in table["server"]:
        network.put_server(
            Server(
                s["id"],
                mac(s["mac"]),
                IPv4Address(s["address"]),
                s.get("edge", ""),
                frozenset(map(Service, s.get("services", []))),
                tuple(map(IPv4Network, s.get("routes", []))),
                PortRef(*s["at"].split(":")) if "at" in s else None,
            )
        )
    return Told(network, table["listen"])


def test_controller_is_told_of_everything_but_where_servers_are() -> None:
    told = read(controller_config(load()))
    assert told.listen == {
        "openflow": "192.0.2.1:6653",
        "ovsdb": "192.0.2.1:6640",
        "rest": "192.0.2.1:8080",
        "plaintext": ["openflow", "ovsdb", "rest"],
    }
    assert set(told.network.switches) == {"spine1", "spine2", "leaf1", "leaf2", "edge1", "edge2", "edge3"}
    assert told.network.switches["edge2"] == Switch("edge2", Role.EDGE, 0x32, "up0")
    assert len(told.network.links) == 4
    assert told.network.servers["server3"].edge == "edge3"
    assert [s.id for s in told.network.servers_with(Service.DHCP)] == ["dhcp"]
    assert [s.id for s in told.network.servers_with(Service.ROUTER)] == ["router"]
    assert all(told.network.location(server) is None for server in told.network.servers)


def test_a_given_place_is_told(tmp_path: Path) -> None:
    text = DEFAULT.replace('edge = "edge3"', 'edge = "edge3"\ngiven = true')
    told = read(controller_config(load(write(tmp_path, text))))
    assert told.network.location("server3") == PortRef("leaf1", "leaf1-server3")
    assert told.network.location("server1") is None


def test_kea_gets_pool_lifetime_router_and_reservations(tmp_path: Path) -> None:
    reservation = '[[dhcp.reservation]]\nmac = "52:54:00:00:00:01"\naddress = "10.1.0.50"\n'
    network = load(write(tmp_path, DEFAULT.replace("[router]", f"{reservation}\n[router]")))
    kea = kea_configuration(network, tmp_path / "leases")["Dhcp4"]
    assert kea["valid-lifetime"] == 600
    (subnet,) = kea["subnet4"]
    assert subnet["subnet"] == "10.1.0.0/24"
    assert subnet["pools"] == [{"pool": "10.1.0.100 - 10.1.0.199"}]
    assert subnet["option-data"] == [
        {"name": "routers", "data": "10.1.0.254"},
        {"name": "interface-mtu", "data": "1500"},
    ]
    assert subnet["reservations"] == [{"hw-address": "52:54:00:00:00:01", "ip-address": "10.1.0.50"}]


def test_a_network_for_jumbo_frames_is_one_from_cable_to_lease(tmp_path: Path) -> None:
    network = load(write(tmp_path, f"mtu = 9000\n{DEFAULT}"))
    assert {cable.mtu for cable in network.cables if cable.b_node != "client"} == {9000}
    assert [cable.mtu for cable in network.cables if cable.b_node == "client"] == [1500]
    (subnet,) = kea_configuration(network, tmp_path / "leases")["Dhcp4"]["subnet4"]
    assert {"name": "interface-mtu", "data": "9000"} in subnet["option-data"]
    assert "dhcp-option=option:mtu,9000" in dnsmasq_configuration(network, tmp_path / "leases")
    assert "option interface-mtu 9000;" in dhcpd_configuration(network)
    assert controller_config(network).splitlines()[1] == "mtu = 9000"


def test_other_dhcp_servers_are_told_the_same(tmp_path: Path) -> None:
    reservation = '[[dhcp.reservation]]\nmac = "52:54:00:00:00:01"\naddress = "10.1.0.50"\n'
    text = DEFAULT.replace("[router]", f"{reservation}\n[router]")
    network = load(write(tmp_path, text))
    assert {
        "dhcp-range=10.1.0.100,10.1.0.199,255.255.255.0,600",
        "dhcp-option=option:router,10.1.0.254",
        "dhcp-host=52:54:00:00:00:01,10.1.0.50",
    } <= set(dnsmasq_configuration(network, tmp_path / "leases").splitlines())
    said = " ".join(dhcpd_configuration(network).split())
    assert "default-lease-time 600;" in said
    assert (
        "subnet 10.1.0.0 netmask 255.255.255.0 { range 10.1.0.100 10.1.0.199; option routers 10.1.0.254; "
        "option interface-mtu 1500; }" in said
    )
    assert "hardware ethernet 52:54:00:00:00:01; fixed-address 10.1.0.50;" in said
    for name, daemon in DAEMONS.items():
        other = load(write(tmp_path, text.replace("[dhcp]", f'[dhcp]\nprogram = "{name}"')))
        program = program_of(other, tmp_path)
        assert program.argv[0] == daemon
        sockets = {"kea": b'"raw"', "kea-udp": b'"udp"'}.get(name, b"")
        assert sockets in program.configuration


def test_one_that_hears_no_broadcast_is_relayed_to_in_its_own_subnet(tmp_path: Path) -> None:
    text = topology_file.DEFAULT_FILE.read_text().replace("[dhcp]", '[dhcp]\nprogram = "kea-udp"')
    told = read(controller_config(load(write(tmp_path, text)))).network
    dhcp = told.servers["dhcp"].address
    assert dhcp in told.subnets["blue"].prefix
    assert {s.id: s.dhcp for s in told.subnets.values()} == {"servers": (), "blue": (dhcp,)}


def test_a_dhcp_server_of_another_subnet_is_relayed_to() -> None:
    network = load(topology_file.DEFAULT_FILE.with_name("relayed.toml"))
    told = read(controller_config(network)).network
    dhcp = told.servers["dhcp"].address
    assert {s.id: s.dhcp for s in told.subnets.values()} == {"servers": (), "blue": (dhcp,)}
    (subnet,) = kea_configuration(network, Path("leases"))["Dhcp4"]["subnet4"]
    assert subnet["subnet"] == "10.1.0.0/24"
    assert subnet["option-data"] == [
        {"name": "routers", "data": "10.1.0.254"},
        {"name": "interface-mtu", "data": "1500"},
    ]
    assert all(s.dhcp == () for s in read(controller_config(load())).network.subnets.values())


def write(folder: Path, text: str) -> Path:
    path = folder / "net.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("lease_seconds = 600", 'lease_seconds = "long"', "dhcp: lease_seconds"),
        ("lease_seconds = 600", "lease_seconds = 0", "dhcp: lease_seconds"),
        ("lease_seconds = 600", "lease_secs = 600", "lease_secs"),
        ('mac = "02:00:00:00:00:02"', 'mac = "02-00"', "[[server]] server2: mac"),
        ('address = "10.0.0.12"', 'address = "10.0.0.512"', "[[server]] server2: address"),
        ('address = "10.0.0.12"', "address = 12", "[[server]] server2: address"),
        ('address = "10.0.0.12"', 'address = "10.9.0.12"', "10.9.0.12 is in none of the subnets"),
        ('address = "10.0.0.12"', 'address = "10.0.0.11"', "address 10.0.0.11 is used 2 times"),
        ("dpid = 0x52", "dpid = 0x51", "dpid 0x51 is used 2 times"),
        ("dpid = 0x52", "dpid = 0", "[[spine]] spine2: dpid"),
        ("02:00:00:00:00:d1", "02:00:00:00:00:e1", "mac 02:00:00:00:00:e1 is used 2 times"),
        ('id = "server2"', 'id = "server1"', "id server1 is used 2 times"),
        ('id = "server2"', 'id = "fabric"', "id fabric is used 2 times"),
        ('id = "server2"', 'id = "Server 2"', "'Server 2' is no usable id"),
        ('id = "server2"', 'id = "averylongserver"', "ids too long"),
        ('id = "server2"\nleaf = "leaf2"', 'id = "server2"\nleaf = "leaf9"', "leaf 'leaf9' is not among"),
        ('edge = "edge2"', 'edge = "edge2"\nsecond_leaf = "leaf9"', "second leaf 'leaf9' is not another"),
        ('edge = "edge2"', 'edge = "edge2"\nsecond_leaf = "leaf2"', "second leaf 'leaf2' is not another"),
        ('edge = "edge2"', 'edge = "edge2"\nsecond_leaf = "leaf1"\ngiven = true', "are found, not given"),
        ('"10.1.0.199"', '"10.2.0.199"', "10.2.0.199 is not inside 10.1.0.0/24"),
        ('"10.1.0.199"', '"10.1.0.3"', "the pool ends at 10.1.0.3"),
        ('gateway = "10.1.0.254"', 'gateway = "10.2.0.254"', "gateway 10.2.0.254 is not inside"),
        ('prefix = "192.0.2.0/24"', 'prefix = "192.0.2.0/29"', "too small"),
        ('prefix = "192.0.2.0/24"', 'prefix = "10.0.0.0/8"', "overlap"),
        ('address = "203.0.113.9"', 'address = "198.51.100.9"', "client: 198.51.100.9"),
        ("[client]", "[client", "Expected ']'"),
    ],
)
def test_a_wrong_file_is_rejected_with_its_name_and_the_place(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    assert old in DEFAULT
    path = write(tmp_path, DEFAULT.replace(old, new, 1))
    with pytest.raises(LabError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"absent\.toml cannot be read: No such file"):
        load(tmp_path / "absent.toml")


def test_leaves_without_a_spine_are_rejected(tmp_path: Path) -> None:
    start, end = DEFAULT.index("[[spine]]"), DEFAULT.index("[[leaf]]")
    with pytest.raises(LabError, match="there must be a spine"):
        load(write(tmp_path, DEFAULT[:start] + DEFAULT[end:]))


def test_the_libvirt_network_is_the_default_one_with_other_hypervisors() -> None:
    plain, other = load(), load("libvirt")
    assert {server.hypervisor for server in plain.server} == {"qemu"}
    assert {server.hypervisor for server in other.server} == {"libvirt"}
    assert controller_config(other) == controller_config(plain), "the controller does not know the difference"
    assert libvirtd.env(other, "server1") and not libvirtd.env(other, "client")
    assert not libvirtd.env(plain, "server1")


def test_a_vm_cannot_move_between_two_kinds_of_hypervisor(tmp_path: Path) -> None:
    file = tmp_path / "mixed.toml"
    file.write_text(DEFAULT.replace("dpid = 0x31\n", 'dpid = 0x31\nhypervisor = "libvirt"\n'))
    with pytest.raises(LabError, match="same hypervisor"):
        load(file)
    file.write_text(DEFAULT.replace("dpid = 0x31\n", 'dpid = 0x31\nhypervisor = "xen"\n'))
    with pytest.raises(LabError, match="xen"):
        load(file)


def test_libvirt_that_is_missing_is_said_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirtd, "PROGRAMS", ("virsh-that-nobody-has",))
    libvirtd.check(load())
    with pytest.raises(LabError, match=r"virsh-that-nobody-has.* `make install-libvirt`"):
        libvirtd.check(load("libvirt"))


# ---- IPv6 ----


def test_tenants_are_vrfs_with_the_vms_own_addresses(tmp_path: Path) -> None:
    file = tmp_path / "controller.toml"
    file.write_text(controller_config(load("tenants")))
    net = controller_load(file).network()
    assert [(vrf.id, vrf.tag) for vrf in net.vrfs.values()] == [(DEFAULT_VRF, 0), ("red", 7), ("green", 8)]
    for vrf in (DEFAULT_VRF, "red", "green"):
        subnet = net.subnet_of(IPv4Address("10.1.0.100"), vrf)
        assert subnet is not None
        assert subnet.id == {DEFAULT_VRF: "blue"}.get(vrf, vrf)


def test_the_network_for_vrrp_floods_in_the_vms_vnet(tmp_path: Path) -> None:
    file = tmp_path / "controller.toml"
    file.write_text(controller_config(load("vrrp")))
    net = controller_load(file).network()
    assert net.vnets["balanced"].floods
    assert {s.id for s in net.subnets.values() if s.vnet == "balanced"} == {"blue", "blue6"}


def test_the_network_for_storage_has_a_forwarder_and_guests_with_fibre_channel(tmp_path: Path) -> None:
    network, file = load("san"), tmp_path / "controller.toml"
    file.write_text(controller_config(network))
    config = controller_load(file)
    net = config.network()
    assert [(one.id, one.mac) for one in net.forwarders()] == [("fcf", "02:00:00:00:0f:01")]
    assert net.servers["fcf"].given_at == PortRef("leaf2", "leaf2-fcf")
    cable = next(cable for cable in network.cables if cable.a_node == "fcf")
    assert (cable.a, cable.b_node, cable.b, cable.a_mac) == (
        "eth0",
        "fabric",
        "leaf2-fcf",
        "02:00:00:00:0f:01",
    )
    assert cable.mtu == config.mtu == 2500
    assert (guest_kind(network), guest_kind(load())) == (STORAGE, CLOUD)


SAN = topology_file.DEFAULT_FILE.with_name("san.toml").read_text()
FORWARDER = 'leaf = "leaf2"\nmac = "02:00:00:00:0f:01"'


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("mtu = 2500", "mtu = 2157", "storage frames need an mtu of 2158"),
        ("02:00:00:00:0f:01", "02:00:00:00:00:01", "mac 02:00:00:00:00:01 is used 2 times"),
        (FORWARDER, FORWARDER.replace("leaf2", "leaf9"), "fcf: leaf 'leaf9' is not among"),
    ],
)
def test_a_forwarder_that_does_not_fit_is_rejected(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in SAN
    with pytest.raises(LabError, match=said):
        load(write(tmp_path, SAN.replace(old, new)))


DUAL = topology_file.DEFAULT_FILE.with_name("dual-stack.toml").read_text()


def test_a_dual_stack_network_tells_the_controller_of_its_ipv6() -> None:
    told = tomllib.loads(controller_config(load("dual-stack")))
    six = [s for s in told["subnet"] if ":" in s["prefix"]]
    prefix = {"prefix": "fd00:1::/64", "gateway": "fd00:1::fe"}
    assert six == [{"id": "blue6", **prefix, "vnet": "default", "slaac": True}]
    assert [s["routes"] for s in told["server"] if "routes" in s] == [["0.0.0.0/0", "::/0"]]
    plain = tomllib.loads(controller_config(load()))
    assert [s["routes"] for s in plain["server"] if "routes" in s] == [["0.0.0.0/0"]]
    network = load("dual-stack")
    encoded = msgspec.json.encode(network, enc_hook=encode_hook)
    assert msgspec.json.decode(encoded, type=Topology, dec_hook=decode_hook) == network


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("fd00:1::fe", "fd00:2::fe", "subnet6 blue6: gateway fd00:2::fe is not inside fd00:1::/64"),
        ('outside_address6 = "2001:db8::1"\n', "", "outside6 and outside_address6 belong together"),
        ('"2001:db8::1"', '"2001:db9::1"', "outside_address6 2001:db9::1 is not inside"),
        ('"2001:db8::9"', '"fd00:1::9"', "client: address6 fd00:1::9 is not inside"),
        ('"fd00:1::/64"', '"10.2.0.0/24"', "subnet6"),
    ],
)
def test_ipv6_that_does_not_fit_is_rejected(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in DUAL
    (tmp_path / "net.toml").write_text(DUAL.replace(old, new))
    with pytest.raises(LabError, match=said):
        load(tmp_path / "net.toml")


def test_more_controllers_and_their_database_move_no_address(tmp_path: Path) -> None:
    one = load()
    two = topology_file.with_controllers(one, 2, 3)
    assert two.controller_nodes == ("controller", "controller2")
    assert two.database_nodes == ("database1", "database2", "database3")
    assert two.management_addresses.items() >= one.management_addresses.items()
    assert two.controller_url.split(",") == [two.url_of("controller"), two.url_of("controller2")]
    file = tmp_path / "controller.toml"
    file.write_text(controller_config(two, tmp_path / "pki", node="controller2"))
    found = controller_load(file)
    assert found.cluster is not None
    assert (found.cluster.name, found.cluster.url) == ("controller2", two.url_of("controller2"))
    assert len(found.cluster.database) == 3
    assert found.listen.rest == two.url_of("controller2").removeprefix("https://")
    with pytest.raises(LabError, match="share a database"):
        topology_file.with_controllers(one, 2, 0)


def test_over_an_ip_network_each_server_has_a_leaf_and_the_border_one_more(tmp_path: Path) -> None:
    """S3.3: no switch of ours is between servers; a router of Linux is."""
    topology = load("vxlan")
    leaves = {s.id: (s.node, s.ports) for s in topology.switches if s.role == "leaf"}
    assert leaves == {
        "leaf1": ("server1", ("leaf1-server1", "leaf1-vxlan")),
        "leaf2": ("server2", ("leaf2-server2", "leaf2-vxlan")),
        "leaf3": ("server3", ("leaf3-server3", "leaf3-vxlan")),
        "leaf4": ("border", ("leaf4-dhcp", "leaf4-router", "leaf4-vxlan")),
    }
    within = [(c.a_node, c.a, c.b) for c in topology.cables if c.a_node == c.b_node]
    assert within == [(f"server{n}", "up0", f"leaf{n}-server{n}") for n in (1, 2, 3)]
    outer = [(c.a_node, c.b_node, c.mtu) for c in topology.cables if "transit" in (c.a_node, c.b_node)]
    assert outer == [(node, "transit", 1500) for node in ("server1", "server2", "server3", "border")]
    told = tmp_path / "controller.toml"
    told.write_text(controller_config(topology))
    net = controller_load(told).network()
    assert (net.over_ip, net.mtu, net.links) == (True, 1450, ())
    ends = {id: (s.tunnel, str(s.endpoint)) for id, s in net.switches.items() if s.role is Role.LEAF}
    assert ends == {f"leaf{n}": (f"leaf{n}-vxlan", f"172.16.{n}.2") for n in (1, 2, 3, 4)}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('endpoint = "172.16.4.2/24"', "", "joins all leaves"),
        (
            'on = "server2"\nendpoint = "172.16.2.2/24"',
            'on = "server2"',
            "leaf2 on server2 needs an endpoint",
        ),
        ('on = "server2"', 'on = "server9"', "there is no server server9"),
        ('on = "server2"', 'on = "server1"', "different nodes"),
        ('"172.16.2.2/24"', '"172.16.1.3/24"', "overlaps another"),
        ("[[server]]", '[[spine]]\nid = "spine1"\ndpid = 0x51\n\n[[server]]', "no spines"),
    ],
)
def test_ends_of_tunnels_that_do_not_fit_are_rejected(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = topology_file.DEFAULT_FILE.with_name("vxlan.toml").read_text()
    file = tmp_path / "wrong.toml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(LabError, match=said):
        load(file)


def test_a_server_with_two_uplinks_has_a_cable_to_each_leaf(tmp_path: Path) -> None:
    network = load("two-uplinks")
    ports = {switch.id: switch.ports for switch in network.switches}
    assert (ports["edge1"], ports["edge3"]) == (("up0", "up1"), ("up0",))
    assert {"leaf1-server1", "leaf1-server2"} < set(ports["leaf1"])
    ends = [(c.a_node, c.a) for c in network.cables] + [(c.b_node, c.b) for c in network.cables]
    assert len(ends) == len(set(ends))
    told = controller_load(write(tmp_path, controller_config(network))).network()
    assert {id: one.uplinks for id, one in told.switches.items() if one.role is Role.EDGE} == {
        "edge1": ("up0", "up1"), "edge2": ("up0", "up1"), "edge3": ("up0",),
    }  # fmt: skip
