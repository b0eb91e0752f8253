"""The leaf-spine fabric: where servers are attached, which switches a migration concerns, in which order."""

import pytest

from retinue.core.model import Network, PortRef, Service
from retinue.core.pipeline.underlay import Underlay, underlay_of
from support.fabric.networks import fabric, leaf_port


@pytest.fixture
def net() -> Network:
    """server1 and server3 under leaf1, server2 under leaf2, two spines."""
    return fabric()


@pytest.fixture
def underlay(net: Network) -> Underlay:
    return underlay_of(net)


def test_a_server_is_attached_where_its_leaf_has_its_port(net: Network, underlay: Underlay) -> None:
    assert underlay.attachment("server1") == ("leaf1", leaf_port(1))
    (dhcp,) = net.servers_with(Service.DHCP)
    assert underlay.attachment(dhcp.id) == ("leaf2", 90)
    net.set_ports("leaf1", {})
    assert underlay.attachment("server1") is None
    assert underlay.is_reachable("server1"), "its location is known, only the port is gone"
    del net.detected["server1"]
    assert underlay.attachment("server1") is None
    assert not underlay.is_reachable("server1")


def test_ports_that_lead_to_spines_are_trunks(underlay: Underlay) -> None:
    assert underlay.trunk_ports("leaf1") == {1, 2}
    assert underlay.trunk_ports("edge1") == frozenset()


def test_a_migration_concerns_both_servers_switches_and_the_spines(underlay: Underlay) -> None:
    between = {"edge1", "leaf1", "edge2", "leaf2", "spine1", "spine2"}
    assert underlay.concerned(("server1", "server2")) == between
    assert underlay.concerned(("server1", "removed")) == {"edge1", "leaf1", "spine1", "spine2"}


ALL = ("edge1", "edge2", "edge3", "leaf1", "leaf2", "spine1", "spine2")


@pytest.mark.parametrize(
    ("source", "target", "order"),
    [
        ("server1", "server2", [["edge2"], ["edge1"], ["leaf2"], ["spine1", "spine2"], ["leaf1"], ["edge3"]]),
        ("server1", "server3", [["edge3"], ["edge1"], ["leaf1"], ["spine1", "spine2"], ["leaf2"], ["edge2"]]),
    ],
)
def test_traffic_is_diverted_from_the_target_outwards(
    underlay: Underlay, source: str, target: str, order: list[list[str]]
) -> None:
    changed = dict.fromkeys(ALL, frozenset[str]())
    assert underlay.stages(changed, underlay.order_to_divert(source, target)) == order


def test_a_server_withdraws_edge_first_then_leaf(underlay: Underlay) -> None:
    changed = dict.fromkeys(ALL, frozenset[str]())
    assert underlay.stages(changed, underlay.order_to_withdraw("server1")) == [
        ["edge1"], ["leaf1"], ["spine1", "spine2"], ["leaf2"], ["edge2", "edge3"],
    ]  # fmt: skip


def test_a_server_found_elsewhere_is_attached_there(net: Network, underlay: Underlay) -> None:
    net.set_ports("leaf2", {"p1": 55})
    net.detect("server1", PortRef("leaf2", "p1"))
    assert underlay.attachment("server1") == ("leaf2", 55)
