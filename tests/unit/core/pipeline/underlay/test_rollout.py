"""In which order switches are told, and which of them are near a server."""

from dataclasses import replace
from itertools import permutations

from retinue.core.model import Network
from retinue.core.pipeline.underlay import underlay_of
from support.fabric.networks import fabric


def told(net: Network, near: list[set[str]], *changed: str) -> list[list[str]]:
    return underlay_of(net).stages(dict.fromkeys(changed, frozenset[str]()), near)


def test_without_a_new_place_spines_are_told_first_and_edges_last() -> None:
    net = fabric()
    everyone = list(net.switches)
    in_order = [["spine1", "spine2"], ["leaf1", "leaf2"], ["edge1", "edge2", "edge3"]]
    assert told(net, [], *everyone) == in_order
    assert told(net, [], *reversed(everyone)) == in_order
    assert told(net, [], "edge3", "spine2") == [["spine2"], ["edge3"]], "who has nothing to do makes no stage"
    assert told(net, []) == []


def test_who_is_near_is_told_before_all_others_group_by_group() -> None:
    net = fabric()
    near = [{"edge2"}, {"leaf2", "edge1"}]
    for changed in permutations(("edge1", "edge2", "edge3", "leaf1", "leaf2", "spine1")):
        assert told(net, near, *changed) == [["edge2"], ["edge1", "leaf2"], ["spine1"], ["leaf1"], ["edge3"]]


def test_near_a_server_are_its_edge_and_its_leaf() -> None:
    net = fabric()
    assert underlay_of(net).near("server2") == {"edge2", "leaf2"}
    assert underlay_of(net).near("dhcp") == {"leaf2"}, "it runs no VMs"


def test_near_a_server_that_was_not_found_yet_is_its_edge_alone() -> None:
    net = fabric()
    del net.detected["server2"]
    assert underlay_of(net).near("server2") == {"edge2"}
    net.put_server(replace(net.servers["router"], given_at=None))
    assert underlay_of(net).near("router") == frozenset()
