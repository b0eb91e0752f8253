"""Edges with several uplinks, as the network has them: what cannot be, and what follows from the rest."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from retinue.core.model import Link, ModelError, Network, PortRef, Role, Switch, uplinks
from retinue.core.model.constraints import check_tiers
from retinue.core.model.network import NOTHING, Owner
from retinue.core.model.uplinks import (
    Rank,
    holders,
    open_links,
    places,
    ranks,
    unreached_by,
    used_uplink,
)
from support.fabric.networks import GATEWAY_MAC, add_uplink, add_vm, fabric

UP0, UP1 = PortRef("edge1", "up0"), PortRef("edge1", "up1")
FIRST, SECOND = PortRef("leaf1", "p1"), PortRef("leaf2", "q1")


@pytest.fixture
def net() -> Network:
    made = fabric(3, 2, (1, 2))
    add_uplink(made, 1, 2)
    return made


@pytest.mark.parametrize(
    ("role", "uplink", "standby"),
    [(Role.LEAF, "", ("up1",)), (Role.EDGE, "up0", ("up0",)), (Role.EDGE, "up0", ("up1", "up1"))],
)
def test_only_an_edge_has_several_each_named_once(role: Role, uplink: str, standby: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match="further uplinks are an edge's, each named once"):
        Switch("sw", role, 7, uplink, standby=standby)


def test_each_leads_to_another_leaf(net: Network) -> None:
    with pytest.raises(ModelError, match="edge1:up0 leads to leaf1, too"):
        net.find_uplink(UP1, PortRef("leaf1", "x"))
    for uplink, at in (
        (PortRef("edge2", "up0"), SECOND),
        (UP0, PortRef("spine1", "l1")),
        (PortRef("edge1", "x"), SECOND),
    ):
        with pytest.raises(ModelError):
            net.find_uplink(uplink, at)
    assert net.find_uplink(UP1, SECOND) == NOTHING
    assert net.uplink_places == {UP0: FIRST, UP1: SECOND}


def test_all_lead_to_leaves_of_one_pod() -> None:
    """A core that is told before the spines of the other pod would send there what these send back."""
    net = fabric(3, 1, (1, 2), 1)
    with pytest.raises(ModelError, match="other spines are above that leaf"):
        add_uplink(net, 1, 2)
    net.find_uplink(UP1, PortRef("leaf3", "q1"))
    assert net.uplink_places == {UP0: FIRST, UP1: PortRef("leaf3", "q1")}


def test_one_that_is_not_found_is_not_used(net: Network) -> None:
    with pytest.raises(ModelError, match="up7 of edge1 leads is not known"):
        net.use_uplink("edge1", "up7")
    with pytest.raises(ModelError, match="with one uplink"):
        net.use_uplink("edge2", "up0")
    assert net.use_uplink("edge1", "up0") == NOTHING
    assert used_uplink(net, "edge1") == "up0"


def test_a_server_is_where_the_one_in_use_leads_also_when_it_is_registered_anew(net: Network) -> None:
    net.use_uplink("edge1", "up1")
    assert net.location("server1") == SECOND
    assert places(net, "server1") == [FIRST, SECOND]
    assert net.detect("server1", PortRef("leaf3", "x")) == NOTHING, "ARP says nothing"
    known = net.servers["server1"]
    net.remove_server("server1")
    net.put_server(replace(known, mac="02:00:00:00:00:77"))
    assert net.location("server1") == SECOND


def test_a_port_to_which_another_uplink_leads_by_now_is_the_former_ones_no_more(net: Network) -> None:
    add_uplink(net, 2, 3)
    net.find_uplink(PortRef("edge2", "up1"), PortRef("leaf3", "x"))
    touched = net.find_uplink(PortRef("edge2", "up0"), SECOND)
    assert UP1 not in net.uplink_places
    assert Owner("server", "server1") in touched
    net.find_uplink(PortRef("edge2", "up1"), FIRST)
    assert net.location("server1") is None, "nothing is known to lead there"


def test_which_are_open_and_how_good_each_is(net: Network) -> None:
    assert ranks(net, "server1") == {"up0": Rank.WHOLE, "up1": Rank.WHOLE}
    net.lose_link(UP0, "nothing comes in")
    assert ranks(net, "server1") == {"up0": Rank.CARRIER, "up1": Rank.WHOLE}
    assert open_links(net, "server1") == [Link(UP1, SECOND)]
    assert unreached_by(net, ["server1"]) == {"leaf1"}
    net.set_ports("leaf2", net._numbers["leaf2"], {"s1", "s2"})
    assert ranks(net, "server1")["up1"] is Rank.SOUND, "its leaf leads nowhere else"
    net.set_ports("edge1", net._numbers["edge1"], {"up1"})
    assert ranks(net, "server1")["up1"] is Rank.NO_CARRIER
    assert open_links(net, "server1") == [Link(UP0, FIRST)], "one that loses some is more than none"
    net.set_ports("edge1", net._numbers["edge1"], {"up0", "up1"})
    assert len(open_links(net, "server1")) == 2, "there is none"
    assert unreached_by(net, ["server1", "server2"]) == frozenset()


def test_another_uplink_touches_no_vm_however_many_there_are(net: Network) -> None:
    for number in (1, 2):
        add_vm(net, number, 1)
    expected = {Owner("server", "server1"), Owner("switch", "edge1")}
    assert net.use_uplink("edge1", "up1") == expected
    assert net.lose_link(UP0, "nothing comes in") == {Owner("server", "server1")}
    assert net.return_link(UP0) == {Owner("server", "server1")}
    assert net.return_link(UP0) == NOTHING


def test_its_place_is_not_given(net: Network) -> None:
    with pytest.raises(ModelError, match="where the uplinks of edge1 lead is found"):
        net.put_server(replace(net.servers["server1"], given_at=FIRST))


def test_several_are_for_leaves_that_spines_join() -> None:
    net = fabric(2, over_ip=True)
    net.add_switch(replace(net.switches["edge1"], standby=("up1",)))
    with pytest.raises(ModelError, match="edge edge1: several uplinks are for leaves of ours"):
        check_tiers(net)
    with pytest.raises(ModelError, match="edge edge9: several uplinks are for leaves of ours"):
        net.put_switch(Switch("edge9", Role.EDGE, 0x99, "up0", standby=("up1",)))
    empty = Network(GATEWAY_MAC)
    empty.put_switch(Switch("edge9", Role.EDGE, 0x99, "up0", standby=("up1",)))
    with pytest.raises(ModelError, match="leaf9: edge edge9 has several uplinks, to leaves of ours"):
        empty.put_switch(Switch("leaf9", Role.LEAF, 0x19, tunnel="vxlan0", endpoint=IPv4Address("10.9.9.9")))


@pytest.mark.parametrize(
    ("first", "second"), [(SECOND, FIRST), (PortRef("leaf2", "x"), PortRef("leaf1", "x"))]
)
@pytest.mark.parametrize("found", [(0, 1), (1, 0)])
def test_both_cables_of_a_server_have_changed_leaves(
    net: Network, first: PortRef, second: PortRef, found: tuple[int, int]
) -> None:
    """To each other's ports, or to others of these leaves: the one that is found first is believed, although
    the other one was known to lead to that leaf."""
    for at in (FIRST, SECOND):
        if at not in (first, second):
            net.set_ports(at.switch, {**net._numbers[at.switch], "x": 300}, {at.port})
    ends = [(UP0, first), (UP1, second)]
    for number in found:
        net.find_uplink(*ends[number])
    assert net.uplink_places == dict(ends)
    assert net.location("server1") == first


def test_a_server_that_has_got_another_edge_is_where_that_ones_uplinks_lead(net: Network) -> None:
    """It is not known to be anywhere until they are found."""
    net.add_switch(Switch("edge9", Role.EDGE, 0x99, "up0", standby=("up1",)))
    net.put_server(replace(net.servers["server1"], edge="edge9"))
    assert net.location("server1") is None
    net.put_server(replace(net.servers["server1"], edge="edge1"))
    assert net.location("server1") == FIRST


def test_whose_a_port_is_costs_no_look_at_all_uplinks(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may send ARP, each time with this question."""
    looked: list[str] = []

    def has_several(of: Network, server: str) -> bool:
        looked.append(server)
        return server == "server1"

    monkeypatch.setattr(uplinks, "has_several", has_several)
    assert list(holders(net, FIRST)) == ["server1"]
    assert list(holders(net, SECOND)) == ["server1"]
    assert list(holders(net, PortRef("leaf1", "x"))) == []
    assert list(holders(net, PortRef("leaf2", "p2"))) == ["server2"]
    assert set(looked[:-1]) == {"server1"}
    net.remove_server("server1")
    assert list(holders(net, FIRST)) == []


def test_two_cables_to_one_leaf_do_not_take_each_others_place_again_and_again(net: Network) -> None:
    """Both had been lost, as when their leaf was away."""
    beside = PortRef("leaf1", "x")
    net.lose_link(UP1, "nothing comes in")
    with pytest.raises(ModelError, match="edge1:up0 leads to leaf1, too"):
        net.find_uplink(UP1, beside)
    net.lose_link(UP0, "nothing comes in")
    net.find_uplink(UP1, beside)
    net.find_uplink(UP0, FIRST)
    with pytest.raises(ModelError, match="edge1:up0 leads to leaf1, too"):
        net.find_uplink(UP1, beside)
    assert net.uplink_places == {UP0: FIRST}
    assert not net.lost_links
