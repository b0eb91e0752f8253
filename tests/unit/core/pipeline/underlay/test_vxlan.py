"""S3.3: leaves that VXLAN joins over an IP network of others, with the example of US 9,515,930 over it."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from retinue.core.forwarding import vxlan
from retinue.core.model import Link, ModelError, Network, PortRef, Role, Switch
from retinue.core.model.constraints import check_tiers
from retinue.core.packets import Ethernet, EtherType, build_udp4, parse
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.entry import Flow
from retinue.core.pipeline.knowledge import Knowledge
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay import underlay_of
from retinue.core.pipeline.underlay.vxlan import VNI_OF_VRF, VxlanMesh
from support.fabric.networks import GATEWAY_MAC, TUNNEL, add_vm, endpoint, fabric, vm_ip, vm_mac, vm_port
from support.fabric.storage import FORWARDER_PORT, add_forwarder, from_forwarder, login, to_forwarder
from support.fabric.us9515930 import B_MAC, example, ip_of, mac_of, migrate_h1, port_of
from support.fabric.world import OUTSIDE, FabricWorld, tagged, udp_frame

STRANGER = IPv4Address("172.16.77.7")


def sent(world: FabricWorld, host: int, edge: str, dmac: str, to: int) -> list[tuple[str, bytes]]:
    """The switches that a packet comes to, with the frame as its tables see it there; and it arrives."""
    packet = build_udp4(ip_of(host), ip_of(to), 4000, 7, b"example")
    frame = Ethernet(dmac, mac_of(host), EtherType.IPV4, packet).build()
    (delivery,) = world.fabric.all_paths(edge, port_of(host), frame)
    ((switch, port, _),) = delivery.arrivals
    assert port == port_of(to) and switch == delivery.hops[-1].switch
    found = []
    for hop in delivery.hops:
        wrapped = vxlan.unwrap(hop.frame)
        assert (wrapped is not None) == (hop.in_port == TUNNEL)
        found.append((hop.switch, hop.frame if wrapped is None else wrapped.frame))
    return found


def macs_and_ttl(frame: bytes) -> tuple[str, str, int]:
    ethernet = parse(frame)
    return ethernet.src, ethernet.dst, ethernet.payload[8]


def test_figure_1_h1_to_h4_goes_by_a_tunnel_from_leaf_to_leaf() -> None:
    """As in the figure: the shared MAC at the sender, one hop of IP, its server's MAC in the tunnel."""
    way = sent(example(over_ip=True), 1, "vswitch1", GATEWAY_MAC, to=4)
    assert [(switch, macs_and_ttl(frame)) for switch, frame in way] == [
        ("vswitch1", ("00:00:01:01:01:01", "00:00:de:ad:be:ef", 64)),
        ("L1", ("00:00:01:01:01:01", "00:00:de:ad:be:ef", 64)),
        ("Lm", ("00:00:de:ad:be:ef", B_MAC, 63)),
        ("vswitchm", ("00:00:de:ad:be:ef", B_MAC, 63)),
    ]


def test_figure_3_h1_has_migrated_and_speaks_to_the_mac_that_it_knew() -> None:
    """Unknown at virtual switch m: DMAC becomes the shared MAC, and the leaf's tunnel leads to H2."""
    world = example(over_ip=True)
    migrate_h1(world)
    way = sent(world, 1, "vswitchm", mac_of(2), to=2)
    assert [switch for switch, _ in way] == ["vswitchm", "Lm", "L1", "vswitch1"]
    assert macs_and_ttl(way[1][1])[1] == GATEWAY_MAC
    back = sent(world, 2, "vswitch1", mac_of(1), to=1)
    assert [switch for switch, _ in back] == ["vswitch1", "L1", "Lm", "vswitchm"]


def test_figure_4_who_is_on_one_server_goes_by_no_tunnel() -> None:
    world = example(over_ip=True)
    migrate_h1(world)
    way = sent(world, 1, "vswitchm", GATEWAY_MAC, to=4)
    assert [switch for switch, _ in way] == ["vswitchm", "Lm", "vswitchm"]


@pytest.fixture
def world() -> FabricWorld:
    """vm1 on server1, vm2 on server2, each at a leaf of its own, and a third leaf with server3."""
    net = fabric(3, 0, (1, 2, 3), over_ip=True)
    for number in (1, 2):
        add_vm(net, number, number)
    return FabricWorld(net)


def arriving(world: FabricWorld, src: IPv4Address, frame: bytes, vni: int = VNI_OF_VRF, leaf: int = 2) -> int:
    """How many ports get what comes to a leaf by its tunnel."""
    outer = vxlan.wrap(src, endpoint(leaf), vni, frame)
    return sum(len(d.arrivals) for d in world.fabric.all_paths(f"leaf{leaf}", TUNNEL, outer))


def to_vm2(world: FabricWorld) -> bytes:
    return udp_frame(GATEWAY_MAC, world.net.servers["server2"].mac, OUTSIDE, vm_ip(2))


def test_what_a_stranger_sends_into_a_tunnel_reaches_nobody(world: FabricWorld) -> None:
    frame = to_vm2(world)
    assert arriving(world, endpoint(1), frame) == 1
    assert arriving(world, STRANGER, frame) == 0
    assert arriving(world, endpoint(2), frame) == 0, "no leaf sends to itself"


def test_by_a_tunnel_comes_ip_for_a_server_here_and_nothing_else(world: FabricWorld) -> None:
    frame, at_gateway = to_vm2(world), udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), vm_ip(2))
    assert arriving(world, endpoint(1), frame, vni=VNI_OF_VRF + 9) == 0, "there is no such VRF"
    assert arriving(world, endpoint(1), tagged(frame, 7)) == 0, "the tag is the leaf's to put"
    assert arriving(world, endpoint(1), at_gateway) == 0, "it is routed where it enters, once"
    elsewhere = udp_frame(GATEWAY_MAC, world.net.servers["server3"].mac, OUTSIDE, vm_ip(2))
    assert arriving(world, endpoint(1), elsewhere) == 0, "it goes into no tunnel again"
    asked = Ethernet(world.net.servers["server2"].mac, GATEWAY_MAC, EtherType.ARP, bytes(28)).build()
    assert arriving(world, endpoint(1), asked) == 0


def test_no_vm_sends_vxlan_to_a_leaf(world: FabricWorld) -> None:
    """To a VM endpoints are addresses outside, as all are that nobody of ours has."""
    inner = vxlan.wrap(vm_ip(1), endpoint(2), VNI_OF_VRF, to_vm2(world))
    frame = vm_mac(1).replace(":", "")
    sent_by_vm = bytes.fromhex(GATEWAY_MAC.replace(":", "") + frame) + inner[12:]
    for delivery in world.send(1, 1, sent_by_vm):
        assert [(switch, port) for switch, port, _ in delivery.arrivals] == [("leaf3", 91)], "the router"


def test_a_packet_whose_time_ends_is_told_at_the_leaf_where_it_comes_in(world: FabricWorld) -> None:
    packet = build_udp4(vm_ip(1), vm_ip(2), 4000, 7, b"", 1)
    frame = Ethernet(GATEWAY_MAC, vm_mac(1), EtherType.IPV4, packet).build()
    (delivery,) = world.send(1, 1, frame)
    assert not delivery.arrivals
    assert [switch for switch, *_ in delivery.to_controller] == ["leaf1"]


def test_all_leaves_are_told_of_a_move_at_once_after_the_new_place(world: FabricWorld) -> None:
    underlay = underlay_of(world.net)
    assert isinstance(underlay, VxlanMesh)
    concerned = {"edge1", "edge2", "leaf1", "leaf2", "leaf3"}
    assert underlay.concerned(["server1", "server2"]) == concerned
    new = replace(world.net.switches["leaf3"], id="leaf9", dpid=0x19, endpoint=endpoint(9))
    world.net.put_switch(new)
    assert underlay.concerned(["server1", "server2"]) == concerned, "nothing comes to one that is new"
    world.net.remove_switch("leaf9")
    near = underlay.order_to_divert("server1", "server2")
    changed = dict.fromkeys(["edge1", "edge2", "leaf1", "leaf2", "leaf3"], frozenset[str]())
    assert underlay.stages(changed, near) == [["edge2"], ["edge1"], ["leaf2"], ["leaf1", "leaf3"]]


def test_a_move_changes_two_edges_and_one_entry_on_every_other_leaf(world: FabricWorld) -> None:
    vm = world.net.vms["vm1"]
    world.net.set_vm_port("vm1", "edge2", replace(world.net.vm_ports["vm1"]["edge1"], number=vm_port(1)))
    keys = world.compiler.update(world.net.put_vm(replace(vm, server="server2")))
    assert set(keys) == {"edge1", "edge2", "leaf1", "leaf2", "leaf3"}
    assert len(keys["leaf3"]) == 1


def test_the_tunnels_port_may_lead_to_no_server(world: FabricWorld) -> None:
    assert underlay_of(world.net).trunk_ports("leaf1") == {TUNNEL}


def test_entries_to_a_server_are_judged_when_its_leaf_has_told_its_ports() -> None:
    net = fabric(2, 0, (1, 2), over_ip=True)
    knowledge = Knowledge(net, Compiler(net), set())
    told = knowledge.told("leaf1")
    assert underlay_of(net).knows("server2", "leaf1")
    net.set_ports("leaf2", {})
    assert not underlay_of(net).knows("server2", "leaf1")
    assert knowledge.told("leaf1") != told, "so all that is held is looked at again"


def test_what_comes_from_a_fenced_servers_leaf_is_dropped_by_all_others(world: FabricWorld) -> None:
    """Its own leaf is on it, and as dead, or as little to be trusted, as it is."""
    frame = to_vm2(world)
    world.apply(world.net.fence("server1"))
    assert arriving(world, endpoint(1), frame) == 0
    assert arriving(world, endpoint(3), frame) == 1
    assert underlay_of(world.net).lost_with("server1") == {"leaf1"}, "nobody waits for it"
    world.apply(world.net.unfence("server1"))
    assert arriving(world, endpoint(1), frame) == 1


def test_a_leaf_with_other_servers_goes_on_when_one_is_fenced() -> None:
    net = fabric(2, 0, (1, 2, 1), over_ip=True)
    add_vm(net, 2, 2)
    world = FabricWorld(net)
    world.apply(net.fence("server1"))
    assert arriving(world, endpoint(1), to_vm2(world)) == 1
    assert underlay_of(net).lost_with("server1") == frozenset()
    world.apply(net.remove_server("server3"))
    assert arriving(world, endpoint(1), to_vm2(world)) == 0, "now the leaf is server1's alone"


def test_without_its_port_a_leaf_says_nothing_to_others_and_hears_nothing() -> None:
    net = fabric(2, 0, (1, 2), over_ip=True)
    net.set_ports("leaf1", {"p1": 101})
    compiler = Compiler(net)
    compiler.update(net.everything())
    flows = [f for f in compiler.program("leaf1").values() if isinstance(f, Flow)]
    assert {f.match for f in flows if f.table in (Table.UNWRAP, Table.WRAP)} == {()}
    changed = compiler.update(net.set_ports("leaf1", {"p1": 101, "vxlan0": 7}))
    assert set(changed) == {"leaf1"}


class TestOfTheNetwork:
    def leaf(self, number: int, **more: str | IPv4Address) -> Switch:
        return replace(Switch(f"leaf{number}", Role.LEAF, number), **more)  # type: ignore[arg-type]

    def test_port_and_address_of_the_tunnels_belong_together(self) -> None:
        for one in ({"tunnel": "vxlan0"}, {"endpoint": endpoint(1)}):
            with pytest.raises(ModelError, match="belong together"):
                self.leaf(1, **one)

    def test_no_other_switch_has_tunnels(self) -> None:
        with pytest.raises(ModelError, match="tunnels join leaves"):
            Switch("spine1", Role.SPINE, 1, tunnel="vxlan0", endpoint=endpoint(1))

    def test_an_endpoint_is_one_leafs(self) -> None:
        net = Network(GATEWAY_MAC)
        net.add_switch(self.leaf(1, tunnel="vxlan0", endpoint=endpoint(1)))
        with pytest.raises(ModelError, match="leaf1 and leaf2 have the same endpoint"):
            net.add_switch(self.leaf(2, tunnel="vxlan0", endpoint=endpoint(1)))

    def test_all_leaves_have_one_or_none(self) -> None:
        net = Network(GATEWAY_MAC)
        net.add_switch(self.leaf(1))
        net.add_switch(self.leaf(2, tunnel="vxlan0", endpoint=endpoint(2)))
        with pytest.raises(ModelError, match="leaf leaf1: where tunnels join the leaves each"):
            check_tiers(net)

    def test_there_are_no_spines_beside(self) -> None:
        net = Network(GATEWAY_MAC)
        net.add_switch(self.leaf(1, tunnel="vxlan0", endpoint=endpoint(1)))
        net.add_switch(Switch("spine1", Role.SPINE, 9))
        with pytest.raises(ModelError, match="tunnels join the leaves here, and no links"):
            net.add_link(Link(PortRef("leaf1", "s1"), PortRef("spine1", "l1")))


class TestWrapping:
    def test_there_and_back(self) -> None:
        outer = vxlan.wrap(endpoint(1), endpoint(2), 4103, bytes(60))
        assert vxlan.unwrap(outer) == vxlan.Wrapped(endpoint(1), endpoint(2), 4103, bytes(60))
        assert len(outer) == 60 + 50

    def test_it_is_what_scapy_reads(self) -> None:
        from scapy.layers.inet import IP, UDP
        from scapy.layers.l2 import Ether
        from scapy.layers.vxlan import VXLAN

        read = Ether(vxlan.wrap(endpoint(1), endpoint(2), 4103, bytes(60)))
        assert (read[IP].src, read[IP].dst) == (str(endpoint(1)), str(endpoint(2)))
        assert (read[UDP].dport, read[VXLAN].vni, read[VXLAN].flags.Instance) == (4789, 4103, True)

    def test_what_is_none(self) -> None:
        outer = vxlan.wrap(endpoint(1), endpoint(2), 5, bytes(60))
        other_port = Ethernet(
            GATEWAY_MAC, GATEWAY_MAC, EtherType.IPV4, build_udp4(endpoint(1), endpoint(2), 1, 4790, bytes(80))
        )
        without_vni = outer[:42] + b"\0" + outer[43:]
        for frame in (other_port.build(), without_vni, outer[:60], bytes(60)):
            assert vxlan.unwrap(frame) is None


def test_storage_goes_to_its_forwarder_and_back_by_tunnels_as_it_is() -> None:
    """By MACs, which nothing on the way writes; in the VNI of the default VRF."""
    net = fabric(3, 0, (1, 2), over_ip=True)
    add_forwarder(net, "leaf3")
    add_vm(net, 1, 1)
    net.log_in(login(1))
    world = FabricWorld(net)
    for frame, start, leaves, end in (
        (to_forwarder(1), ("edge1", vm_port(1)), ["leaf1", "leaf3"], ("leaf3", FORWARDER_PORT)),
        (from_forwarder(1), ("leaf3", FORWARDER_PORT), ["leaf3", "leaf1"], ("edge1", vm_port(1))),
    ):
        (delivery,) = world.fabric.all_paths(*start, frame)
        assert [(switch, port, same) for switch, port, same in delivery.arrivals] == [(*end, frame)]
        assert [hop.switch for hop in delivery.hops if hop.switch.startswith("leaf")] == leaves
        (wrapped,) = (found for hop in delivery.hops if (found := vxlan.unwrap(hop.frame)) is not None)
        assert (wrapped.vni, wrapped.frame) == (VNI_OF_VRF, frame)
        assert wrapped.dst == endpoint(int(leaves[1][-1]))
