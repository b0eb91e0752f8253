"""What is at which port: found both ways, and what is reported of one place looks at no other."""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.core.model import ModelError, Network, PortRef
from retinue.core.model.at_ports import AtPorts
from retinue.core.model.routed_prefixes import check_prefix
from retinue.core.model.uplinks import at_switch, holders
from retinue.core.packets.lldp import Lldp, lldp_frame
from retinue.core.pipeline.underlay.fabric_uplinks import probe_entries
from retinue.core.snooping import chassis
from support.fabric.networks import add_uplink, fabric

PORTS = st.builds(PortRef, st.sampled_from(["leaf1", "leaf2"]), st.sampled_from(["p1", "p2"]))


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.none() | PORTS)))
def test_both_ways_say_the_same(history: list[tuple[str, PortRef | None]]) -> None:
    found: AtPorts[str] = AtPorts()
    plain: dict[str, PortRef] = {}
    for what, at in history:
        if at is None:
            assert found.pop(what, None) == plain.pop(what, None)
        else:
            found[what] = plain[what] = at
    assert found == plain
    for at in {*plain.values(), PortRef("leaf1", "p1")}:
        assert set(found.at(at)) == {what for what, where in plain.items() if where == at}
    for switch in ("leaf1", "leaf2", "leaf3"):
        here = {(what, at.port) for what, at in plain.items() if at.switch == switch}
        assert set(found.at_switch(switch)) == here
    assert set(found._by_switch) == {at.switch for at in plain.values()}, "what is empty goes"


class LookedThrough(dict[str, object]):
    """Who looks through all servers fails."""

    def __iter__(self) -> NoReturn:
        raise AssertionError("all servers were looked through")

    keys = values = items = __iter__


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Network:
    """Four servers with two uplinks each; whoever looks at all of them, or at all uplinks, fails."""
    made = fabric(4, 2, (1, 2, 3, 4))
    for number in range(1, 5):
        add_uplink(made, number, number % 4 + 1)

    def iterated(self: object) -> NoReturn:
        raise AssertionError("all were looked through")

    monkeypatch.setattr(AtPorts, "__iter__", iterated)
    made.servers = LookedThrough(made.servers)  # type: ignore[assignment]
    return made


FIRST = PortRef("leaf1", "p1")


@pytest.mark.parametrize(
    "happens",
    [
        lambda net: net.set_ports("leaf1", net._numbers["leaf1"], {"p1"}),
        lambda net: net.set_ports("leaf1", {**net._numbers["leaf1"], "p1": 77}),
        lambda net: net.set_ports("edge1", net._numbers["edge1"], {"up0"}),
        lambda net: net.lose_link(PortRef("edge1", "up0"), "nothing comes in"),
        lambda net: net.use_uplink("edge1", "up1"),
        lambda net: net.find_uplink(PortRef("edge1", "up0"), PortRef("leaf1", "other")),
        lambda net: list(probe_entries(net, "leaf1")),
        lambda net: chassis.judge(net, FIRST, lldp_frame(Lldp(b"\x07x", b"\x07p", 120), "02:00:00:00:00:99")),
    ],
)
def test_a_report_of_one_leaf_or_edge_looks_at_no_other(
    net: Network, happens: Callable[[Network], object]
) -> None:
    happens(net)


def test_who_is_at_a_port_is_found_without_a_look_at_others(net: Network) -> None:
    assert list(holders(net, FIRST)) == ["server1"]
    assert list(holders(net, PortRef("leaf4", "dhcp"))) == ["dhcp"]
    assert sorted(at_switch(net, "leaf1")) == ["server1", "server4"]
    assert at_switch(net, "edge1") == ["server1"]


def test_a_place_is_given_to_one_server(net: Network) -> None:
    with pytest.raises(ModelError, match="given as the location of server dhcp already"):
        net.put_server(replace(net.servers["router"], given_at=PortRef("leaf4", "dhcp")))


def test_a_prefix_is_compared_with_the_servers_in_it(net: Network) -> None:
    check_prefix(net, "vm1", ip_network("10.77.0.0/24"), "default", [])
    net.subnets.clear()
    with pytest.raises(ModelError, match=r"10\.0\.0\.13 is the address of server server3"):
        check_prefix(net, "vm1", ip_network("10.0.0.13/32"), "default", [])
