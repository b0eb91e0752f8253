"""The example of US 9,515,930, figure by figure, with the header fields that are printed there."""

from ipaddress import IPv4Address

import pytest

from retinue.core.forwarding import Delivery, Hop
from retinue.core.model import mac_from_int, mac_to_int
from retinue.core.model.network import Owner
from retinue.core.packets import BROADCAST, Ethernet, EtherType, build_udp4, parse
from retinue.core.pipeline.compiler import contribution
from retinue.core.pipeline.entry import Field, Flow, Output, SetField
from retinue.core.pipeline.mac_table import mac_table as shown_table
from retinue.core.pipeline.tables import Table
from support.fabric.networks import UPLINK
from support.fabric.us9515930 import (
    A_MAC,
    B_MAC,
    GATEWAY,
    GATEWAY_MAC,
    HOSTS,
    ON_A,
    ON_B,
    cache_of,
    edge_of,
    example,
    ip_of,
    learned,
    mac_of,
    migrate_h1,
    port_of,
    put_host,
)
from support.fabric.world import FabricWorld

Head = tuple[str, str, str, str, int]
"""SMAC, DMAC, SIP, DIP, TTL."""


@pytest.fixture
def world() -> FabricWorld:
    return example()


@pytest.fixture
def moved() -> FabricWorld:
    """After H1 has migrated from A to B (figure 3)."""
    found = example()
    migrate_h1(found)
    return found


def head(frame: bytes) -> Head:
    ethernet = parse(frame)
    assert ethernet.vlan is None
    packet = ethernet.payload
    return (
        ethernet.src,
        ethernet.dst,
        str(IPv4Address(packet[12:16])),
        str(IPv4Address(packet[16:20])),
        packet[8],
    )


def sent(world: FabricWorld, host: int, dmac: str, to: int) -> list[Delivery]:
    """What becomes of a packet from a host to another, over each path that there is."""
    packet = build_udp4(ip_of(host), ip_of(to), 4000, 7, b"example")
    frame = Ethernet(dmac, mac_of(host), EtherType.IPV4, packet).build()
    return world.fabric.all_paths(edge_of(world, host), port_of(host), frame)


def way(delivery: Delivery) -> list[tuple[str, Head]]:
    """The switches that a packet comes to, and its header there."""
    return [(hop.switch, head(hop.frame)) for hop in delivery.hops]


def arrived(delivery: Delivery, host: int, edge: str) -> Head:
    """The header with which the one packet comes out of the host's port, and nowhere else."""
    ((switch, port, frame),) = delivery.arrivals
    assert (switch, port) == (edge, port_of(host))
    assert not delivery.to_controller
    return head(frame)


def entries(world: FabricWorld, switch: str, table: Table) -> list[Flow]:
    program = world.compiler.program(switch).values()
    return [entry for entry in program if isinstance(entry, Flow) and entry.table == table]


def mac_table(world: FabricWorld, edge: str) -> dict[str, set[int]]:
    """Figure 5: the MACs that a virtual switch knows, each with the ports behind it."""
    found: dict[str, set[int]] = {}
    for flow in entries(world, edge, Table.FORWARD):
        ports = {action.port for action in flow.actions if isinstance(action, Output)}
        macs = {value for field, value, mask in flow.match if field is Field.ETH_DST and mask is None}
        macs |= {value for field, value in written(flow) if field is Field.ETH_DST and UPLINK in ports}
        for mac in macs:
            found.setdefault(mac_from_int(mac), set()).update(ports)
    return found


def written(flow: Flow) -> list[tuple[Field, int]]:
    return [(action.field, action.value) for action in flow.actions if isinstance(action, SetField)]


# ---- figures 1 and 2: before ----


def test_figure_2_the_arp_cache_of_h1(world: FabricWorld) -> None:
    """Remote hosts and the gateway are at the shared MAC, hosts of the same server at their own."""
    assert cache_of(world, 1) == {
        "1.1.1.254": "00:00:de:ad:be:ef",
        "1.1.1.2": "00:00:01:01:01:02",
        "1.1.1.3": "00:00:01:01:01:03",
        "1.1.1.4": "00:00:de:ad:be:ef",
        "1.1.1.5": "00:00:de:ad:be:ef",
    }


def test_figure_2_the_arp_caches_of_all_others(world: FabricWorld) -> None:
    for host in HOSTS:
        beside = ON_A if host in ON_A else ON_B
        wanted = {str(ip_of(other)): mac_of(other) for other in beside if other != host}
        wanted |= {str(ip_of(other)): GATEWAY_MAC for other in HOSTS if other not in beside}
        assert cache_of(world, host) == {str(GATEWAY): GATEWAY_MAC, **wanted}


def test_figure_1_h1_to_h2_is_switched_by_the_virtual_switch(world: FabricWorld) -> None:
    as_sent = ("00:00:01:01:01:01", "00:00:01:01:01:02", "1.1.1.1", "1.1.1.2", 64)
    (delivery,) = sent(world, 1, learned(world, 1, ip_of(2)), to=2)
    assert way(delivery) == [("vswitch1", as_sent)]
    assert arrived(delivery, 2, "vswitch1") == as_sent


def test_figure_1_h1_to_h4_is_routed_by_the_leaves(world: FabricWorld) -> None:
    """The header at every hop: shared MAC, both addresses, and one hop of IP."""
    ips = ("1.1.1.1", "1.1.1.4")
    paths = sent(world, 1, learned(world, 1, ip_of(4)), to=4)
    assert len(paths) == 2, "there are two spines"
    for number, delivery in enumerate(sorted(paths, key=lambda path: path.hops[2].switch), 1):
        assert way(delivery) == [
            ("vswitch1", ("00:00:01:01:01:01", "00:00:de:ad:be:ef", *ips, 64)),
            ("L1", ("00:00:01:01:01:01", "00:00:de:ad:be:ef", *ips, 64)),
            (f"spine{number}", ("00:00:de:ad:be:ef", "00:00:de:ad:be:ef", *ips, 63)),
            ("Lm", ("00:00:de:ad:be:ef", B_MAC, *ips, 63)),
            ("vswitchm", ("00:00:de:ad:be:ef", B_MAC, *ips, 63)),
        ]
        assert arrived(delivery, 4, "vswitchm") == ("00:00:de:ad:be:ef", "00:00:01:01:01:04", *ips, 63)


def test_every_host_reaches_every_other_by_what_it_has_learned(
    world: FabricWorld, moved: FabricWorld
) -> None:
    for stands in (world, moved):
        for host in HOSTS:
            for to in HOSTS:
                if host != to:
                    for delivery in sent(stands, host, learned(stands, host, ip_of(to)), to):
                        arrived(delivery, to, edge_of(stands, to))


# ---- figure 3: H1 has migrated, and every ARP cache is as it was ----


def test_figure_3_h1_to_h2_with_the_mac_it_knew(moved: FabricWorld) -> None:
    """Unknown at virtual switch m: DMAC becomes the shared MAC, SIP and DIP stay, and it is routed to H2."""
    ips = ("1.1.1.1", "1.1.1.2")
    for delivery in sent(moved, 1, "00:00:01:01:01:02", to=2):
        edge_m, leaf_m, spine, leaf_1, edge_1 = way(delivery)
        assert edge_m == ("vswitchm", ("00:00:01:01:01:01", "00:00:01:01:01:02", *ips, 64))
        assert leaf_m == ("Lm", ("00:00:01:01:01:01", "00:00:de:ad:be:ef", *ips, 64)), (
            "as printed in figure 3"
        )
        assert spine[1] == ("00:00:de:ad:be:ef", "00:00:de:ad:be:ef", *ips, 63)
        assert leaf_1 == ("L1", ("00:00:de:ad:be:ef", A_MAC, *ips, 63))
        assert edge_1 == ("vswitch1", ("00:00:de:ad:be:ef", A_MAC, *ips, 63))
        assert arrived(delivery, 2, "vswitch1") == ("00:00:de:ad:be:ef", "00:00:01:01:01:02", *ips, 63)


def test_figure_3_reverse_traffic_is_handled_in_the_same_manner(moved: FabricWorld) -> None:
    """H2 still has H1's own MAC in its cache; virtual switch 1 does not know it any more."""
    ips = ("1.1.1.2", "1.1.1.1")
    for delivery in sent(moved, 2, "00:00:01:01:01:01", to=1):
        assert way(delivery)[0] == ("vswitch1", ("00:00:01:01:01:02", "00:00:01:01:01:01", *ips, 64))
        assert way(delivery)[1] == ("L1", ("00:00:01:01:01:02", "00:00:de:ad:be:ef", *ips, 64))
        assert arrived(delivery, 1, "vswitchm") == ("00:00:de:ad:be:ef", "00:00:01:01:01:01", *ips, 63)


def test_figure_3_nothing_is_flooded(moved: FabricWorld) -> None:
    """Each packet comes into each switch of its way once, and out of one port."""
    for host, dmac, to in ((1, mac_of(2), 2), (2, mac_of(1), 1), (1, "00:00:01:01:01:99", 3)):
        for delivery in sent(moved, host, dmac, to):
            switches = [hop.switch for hop in delivery.hops]
            assert len(switches) == len(set(switches))
            assert all(len(hop.result.outputs) == 1 for hop in delivery.hops)
            arrived(delivery, to, edge_of(moved, to))


@pytest.mark.parametrize("dmac", [BROADCAST, "01:00:5e:00:00:fb", "33:33:00:00:00:01"])
def test_figure_6_only_a_unicast_dmac_is_replaced(moved: FabricWorld, dmac: str) -> None:
    """ "This replacement is only performed for unicast DMAC addresses and not for multicast" """
    for delivery in sent(moved, 1, dmac, to=2):
        assert [hop.switch for hop in delivery.hops] == ["vswitchm"]
        assert not delivery.arrivals


# ---- figure 4: H1 and H4 are on one server now ----


def test_figure_4_h1_to_h4_by_the_leaf_until_the_cache_is_refreshed(moved: FabricWorld) -> None:
    """The shared MAC stands in H1's cache: out of virtual switch m to its leaf, and back by the same port."""
    ips = ("1.1.1.1", "1.1.1.4")
    (delivery,) = sent(moved, 1, "00:00:de:ad:be:ef", to=4)
    assert way(delivery) == [
        ("vswitchm", ("00:00:01:01:01:01", "00:00:de:ad:be:ef", *ips, 64)),
        ("Lm", ("00:00:01:01:01:01", "00:00:de:ad:be:ef", *ips, 64)),
        ("vswitchm", ("00:00:de:ad:be:ef", B_MAC, *ips, 63)),
    ]
    hairpin: Hop = delivery.hops[1]
    assert [port for port, _ in hairpin.result.outputs] == [hairpin.in_port]
    assert arrived(delivery, 4, "vswitchm") == ("00:00:de:ad:be:ef", "00:00:01:01:01:04", *ips, 63)


def test_figure_4_and_directly_once_it_is(moved: FabricWorld) -> None:
    assert learned(moved, 1, ip_of(4)) == "00:00:01:01:01:04"
    as_sent = ("00:00:01:01:01:01", "00:00:01:01:01:04", "1.1.1.1", "1.1.1.4", 64)
    (delivery,) = sent(moved, 1, "00:00:01:01:01:04", to=4)
    assert way(delivery) == [("vswitchm", as_sent)]
    assert arrived(delivery, 4, "vswitchm") == as_sent


def test_figure_4_reverse_traffic_is_handled_in_the_same_manner(moved: FabricWorld) -> None:
    (stale,) = sent(moved, 4, "00:00:de:ad:be:ef", to=1)
    assert [hop.switch for hop in stale.hops] == ["vswitchm", "Lm", "vswitchm"]
    assert arrived(stale, 1, "vswitchm")[:2] == ("00:00:de:ad:be:ef", "00:00:01:01:01:01")
    assert learned(moved, 4, ip_of(1)) == "00:00:01:01:01:01"
    (fresh,) = sent(moved, 4, "00:00:01:01:01:01", to=1)
    assert [hop.switch for hop in fresh.hops] == ["vswitchm"]
    assert arrived(fresh, 1, "vswitchm") == (mac_of(4), mac_of(1), "1.1.1.4", "1.1.1.1", 64)


def test_refreshed_every_cache_is_that_of_the_new_place(moved: FabricWorld) -> None:
    assert cache_of(moved, 1) == {
        "1.1.1.254": "00:00:de:ad:be:ef",
        "1.1.1.2": "00:00:de:ad:be:ef",
        "1.1.1.3": "00:00:de:ad:be:ef",
        "1.1.1.4": "00:00:01:01:01:04",
        "1.1.1.5": "00:00:01:01:01:05",
    }
    assert [learned(moved, host, ip_of(1)) for host in (2, 3, 4, 5)] == [
        "00:00:de:ad:be:ef",
        "00:00:de:ad:be:ef",
        "00:00:01:01:01:01",
        "00:00:01:01:01:01",
    ]


# ---- figure 5: what is stored where ----


def test_figure_5_the_mac_table_of_virtual_switch_m(world: FabricWorld, moved: FabricWorld) -> None:
    """Its own hosts' MACs and the shared one; none of a host that is elsewhere. H1's is there at once."""
    shared = {"00:00:de:ad:be:ef": {UPLINK}}
    hosts = {"00:00:01:01:01:04": {port_of(4)}, "00:00:01:01:01:05": {port_of(5)}}
    assert mac_table(world, "vswitchm") == {**shared, **hosts}
    assert mac_table(moved, "vswitchm") == {**shared, **hosts, "00:00:01:01:01:01": {port_of(1)}}
    assert set(mac_table(moved, "vswitch1")) == {GATEWAY_MAC, mac_of(2), mac_of(3)}
    # As `retinue switch table` shows it.
    for stands in (world, moved):
        for edge in ("vswitch1", "vswitchm"):
            program = stands.compiler.program(edge).values()
            shown = shown_table(flow for flow in program if isinstance(flow, Flow))
            assert {row.mac: {row.port} for row in shown} == mac_table(stands, edge)
            assert [row.mac for row in shown if row.shared] == [GATEWAY_MAC]


def test_a_leaf_stores_no_mac_of_any_host_and_nothing_of_those_elsewhere(
    world: FabricWorld, moved: FabricWorld
) -> None:
    """ "there is no need for a leaf to store MAC addresses of remote hosts" """
    for stands in (world, moved):
        for leaf, edge in (("L1", "vswitch1"), ("Lm", "vswitchm")):
            here = {int(ip_of(host)) for host in HOSTS if edge_of(stands, host) == edge}
            flows = [f for f in stands.compiler.program(leaf).values() if isinstance(f, Flow)]
            named = {value for flow in flows for field, value, _ in flow.match if field is Field.IPV4_DST}
            hosts = {int(ip_of(host)) for host in HOSTS}
            assert named & hosts == here
            known = {(field, value) for flow in flows for field, value, _ in flow.match}
            known |= {pair for flow in flows for pair in written(flow)}
            macs = {mac_to_int(mac_of(host)) for host in HOSTS}
            assert not macs & {value for field, value in known if field in (Field.ETH_DST, Field.ETH_SRC)}


@pytest.mark.parametrize("more", [1, 40])
def test_a_leafs_table_does_not_grow_with_hosts_elsewhere(more: int) -> None:
    """So many hosts come to B; leaf L1 has the entries that it had, and Lm as many more for each."""
    world = example()
    before = {leaf: dict(world.compiler.program(leaf)) for leaf in ("L1", "Lm")}
    of_one = len(contribution(world.net, Owner("vm", "H5"))["Lm"])
    for number in range(more):
        mac = f"00:00:01:01:02:{number:02x}"
        world.apply(put_host(world.net, f"more{number}", mac, ip_of(100 + number), "B", 100 + number))
    assert world.compiler.program("L1") == before["L1"]
    assert len(world.compiler.program("Lm")) == len(before["Lm"]) + more * of_one
