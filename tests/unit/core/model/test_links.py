"""By which links a leaf, or a spine, sends up, as they come and go."""

import pytest

from retinue.core.model import Link, ModelError, Network, PortRef, Role, Switch, links, uplinks
from retinue.core.model.links import all_upward_ports, upward_ports
from retinue.core.model.network import Owner
from support.fabric.networks import fabric


def down(net: Network, *ports: str) -> frozenset[Owner]:
    """Each "switch:port"; all others of these switches have a link."""
    touched: frozenset[Owner] = frozenset()
    by_switch: dict[str, set[str]] = {}
    for switch, _, port in (one.partition(":") for one in ports):
        by_switch.setdefault(switch, set()).update({port} - {""})
    for switch, names in by_switch.items():
        touched |= net.set_ports(switch, net._numbers[switch], names)
    return touched


def up(net: Network) -> dict[str, list[str]]:
    """By leaf: the spines to which it sends."""
    found = {}
    for leaf in ("leaf1", "leaf2"):
        by_number = {
            net.port_number(one.lower): one.upper.switch for one in net.links if one.lower.switch == leaf
        }
        found[leaf] = sorted(by_number[number] for number in upward_ports(net, leaf))
    return found


def link(net: Network, leaf: str, spine: str) -> tuple[PortRef, PortRef]:
    found = next(one for one in net.links if (one.lower.switch, one.upper.switch) == (leaf, spine))
    return found.lower, found.upper


BOTH = {"leaf1": ["spine1", "spine2"], "leaf2": ["spine1", "spine2"]}
SECOND = {"leaf1": ["spine2"], "leaf2": ["spine2"]}


@pytest.mark.parametrize("end", [0, 1])
def test_a_spine_that_has_lost_a_leaf_gets_nothing_from_any(end: int) -> None:
    """Whichever end tells of it: the other may be silent."""
    net = fabric()
    assert up(net) == BOTH
    lost = str(link(net, "leaf1", "spine1")[end])
    touched = down(net, lost)
    assert up(net) == SECOND
    assert touched >= {Owner("switch", "leaf1"), Owner("switch", "leaf2")}
    assert not down(net, lost), "told once more"
    assert down(net, lost.partition(":")[0] + ":") >= {Owner("switch", "leaf2")}
    assert up(net) == BOTH


def test_where_no_spine_is_whole_each_leaf_sends_by_what_it_has() -> None:
    net = fabric()
    down(net, str(link(net, "leaf1", "spine1")[0]), str(link(net, "leaf2", "spine2")[0]))
    assert up(net) == {"leaf1": ["spine2"], "leaf2": ["spine1"]}
    down(net, *(str(link(net, "leaf1", spine)[0]) for spine in ("spine1", "spine2")))
    assert up(net)["leaf1"] == ["spine1", "spine2"], "none is left: then all, as before"


def test_a_port_that_is_gone_has_no_link_and_one_not_told_of_yet_has() -> None:
    net = fabric()
    port = link(net, "leaf1", "spine1")[1]
    left = {name: number for name, number in net._numbers["spine1"].items() if name != port.port}
    net.set_ports("spine1", left)
    assert up(net) == SECOND
    net.set_ports("spine1", {})
    assert up(net) == BOTH, "no port at all: the switch has told of none"


def test_a_core_that_has_lost_a_pod_gets_nothing_from_the_other_one_either() -> None:
    """Nor does a spine whose only core that is; each of two cores has a link to one spine of each pod."""
    net = fabric(leaves=2, spines=2, cores=2)
    lost = next(one for one in net.links if one.upper.switch == "core1")
    beside = next(
        one for one in net.links if one.upper.switch == "core1" and one.lower.switch != lost.lower.switch
    )
    down(net, str(lost.upper))
    for leaf in ("leaf1", "leaf2"):
        by_number = {
            net.port_number(one.lower): one.upper.switch for one in net.links if one.lower.switch == leaf
        }
        (to,) = (by_number[number] for number in upward_ports(net, leaf))
        assert to not in (lost.lower.switch, beside.lower.switch)


def test_ports_that_lead_to_no_switch_cost_no_look_at_the_fabric(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand edges tell their ports at a start, and one of them for each VM that comes or goes."""
    net, asked = fabric(), list[str]()

    def looked(net: Network) -> dict[str, list[int]]:
        asked.append("all")
        return all_upward_ports(net)

    monkeypatch.setattr(uplinks, "all_upward_ports", looked)
    net.set_ports("edge1", {**net._numbers["edge1"], "tap1": 7}, ["tap1"])
    net.set_ports("leaf1", {**net._numbers["leaf1"], "new": 77}, ["new"])
    net.set_ports("spine1", dict(net._numbers["spine1"]))
    assert not asked
    net.set_ports("spine1", {})
    assert asked


def test_each_link_is_looked_at_a_few_times_however_many_leaves_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A spine that dies loses a link to each leaf, and the controller does nothing else meanwhile."""
    net, looks = fabric(leaves=20, spines=4), 0
    has_carrier = links.has_carrier

    def counted(net: Network, link: Link) -> bool:
        nonlocal looks
        looks += 1
        return has_carrier(net, link)

    monkeypatch.setattr(links, "has_carrier", counted)
    net.lose_link(lower(net, "leaf1", "spine1"), "all of it")
    assert looks <= 2 * 4 * len(net.links)


def test_ports_of_servers_change_no_way_up() -> None:
    net = fabric()
    ends = {one.lower.port for one in net.links if one.lower.switch == "leaf1"}
    name = next(name for name in net._numbers["leaf1"] if name not in ends)
    assert Owner("switch", "leaf2") not in down(net, f"leaf1:{name}")
    assert up(net) == BOTH


# ---- links that lose frames ----


def lower(net: Network, leaf: str, spine: str) -> PortRef:
    return link(net, leaf, spine)[0]


def test_a_link_that_loses_frames_is_left_as_one_without_a_carrier_is() -> None:
    net = fabric()
    lost = lower(net, "leaf1", "spine1")
    both_leaves = {Owner("switch", "leaf1"), Owner("switch", "leaf2")}
    assert net.lose_link(lost, "nothing comes in") == both_leaves
    assert up(net) == SECOND
    assert not net.lose_link(lost, "half of it comes in"), "told once more"
    assert net.lost_links == {lost: "half of it comes in"}
    assert net.return_link(lost) == both_leaves
    assert up(net) == BOTH
    assert not net.return_link(lost)
    with pytest.raises(ModelError, match="no link at leaf1:p1"):
        net.lose_link(PortRef("leaf1", "p1"), "")


def test_a_link_that_loses_some_is_better_than_none() -> None:
    """The other one has no carrier; and where both lose some, both are used, as if it were not known."""
    net = fabric()
    down(net, str(lower(net, "leaf1", "spine2")))
    net.lose_link(lower(net, "leaf1", "spine1"), "some")
    assert up(net) == {"leaf1": ["spine1"], "leaf2": ["spine1", "spine2"]}
    down(net, "leaf1:")
    net.lose_link(lower(net, "leaf1", "spine2"), "some")
    assert up(net)["leaf1"] == ["spine1", "spine2"]


def joined(net: Network, leaf: str, spine: str, name: str) -> Link:
    """Another link between these, whose ports are there."""
    made = Link(PortRef(leaf, f"{name}-up"), PortRef(spine, f"{name}-down"))
    for number, end in enumerate((made.lower, made.upper), 70):
        net.set_ports(end.switch, {**net._numbers.get(end.switch, {}), end.port: number})
    return made


def test_a_spine_that_leads_to_some_leaves_only_gets_nothing_from_any() -> None:
    net = fabric()
    net.add_switch(Switch("spine3", Role.SPINE, 0x53))
    net.add_link(joined(net, "leaf1", "spine3", "x"))
    assert up(net) == BOTH
    lost = str(link(net, "leaf1", "spine1")[0]), str(link(net, "leaf2", "spine2")[0])
    down(net, *lost)
    assert up(net) == {"leaf1": ["spine2"], "leaf2": ["spine1"]}, "where none is whole neither"
    net.add_link(joined(net, "leaf2", "spine3", "x"))
    both = ["spine2", "spine3"]
    assert up(net) == {"leaf1": both, "leaf2": both}, "leaf2 has told its ports anew, all with a link"


def test_a_spine_that_leads_to_no_core_gets_nothing_where_another_does() -> None:
    net = fabric(leaves=4, cores=2)
    net.add_switch(Switch("spine9", Role.SPINE, 0x59))
    for leaf in ("leaf1", "leaf3"):
        net.add_link(joined(net, leaf, "spine9", "x"))
    assert up(net)["leaf1"] == ["spine1", "spine2"]
    net.add_switch(Switch("core9", Role.CORE, 0x79))
    net.add_link(joined(net, "spine9", "core9", "y"))
    assert up(net)["leaf1"] == ["spine1", "spine2"], "nor where that core leads to no other pod"


def test_of_two_links_between_two_switches_the_one_that_goes_is_left_both_ways() -> None:
    net = fabric()
    second = joined(net, "leaf1", "spine1", "x")
    first = link(net, "leaf1", "spine1")
    net.put_link(second)
    net.set_idle(second.lower, idle=False)
    assert net.port_down("spine1", "leaf1") == net.port_number(first[1])
    assert net.leave_link(first[0]) == net.everything()
    assert net.port_down("spine1", "leaf1") == net.port_number(second.upper)
    assert up(net) == BOTH


def test_an_uplink_is_found_while_a_spine_comes_link_by_link() -> None:
    """Leaves of one pod are below the same spines but for such a one."""
    net = fabric()
    net.add_switch(Switch("spine3", Role.SPINE, 0x53))
    assert links.spines_of_pod(net, "leaf1") == {"spine1", "spine2"}
    net.add_link(joined(net, "leaf1", "spine3", "x"))
    assert links.spines_of_pod(net, "leaf1") == links.spines_of_pod(net, "leaf2")
    assert links.spines_of_pod(fabric(leaves=4, cores=2), "leaf2") == {"spine3", "spine4"}


# ---- the links between two leaves ----


def ways(net: Network, start: str, end: str) -> list[list[str]]:
    """Each link as "lower up upper" or "upper down lower"."""
    found = links.links_between(net, start, end)
    return [
        sorted(
            f"{one.lower.switch} up {one.upper.switch}"
            if upwards
            else f"{one.upper.switch} down {one.lower.switch}"
            for one, upwards in some
        )
        for some in found
    ]


def test_between_two_leaves_are_the_links_by_each_spine() -> None:
    net = fabric()
    assert ways(net, "leaf1", "leaf2") == [
        ["leaf1 up spine1", "leaf1 up spine2"],
        ["spine1 down leaf2", "spine2 down leaf2"],
    ]
    assert ways(net, "leaf1", "leaf1") == []
    down(net, str(link(net, "leaf1", "spine1")[0]))
    assert ways(net, "leaf1", "leaf2") == [["leaf1 up spine2"], ["spine2 down leaf2"]]
    net.lose_link(link(net, "leaf2", "spine2")[0], "nothing comes in")
    assert ways(net, "leaf1", "leaf2") == [], "nothing is sent by it, but where there is no other"
    assert ways(fabric(over_ip=True), "leaf1", "leaf2") == []


def test_up_from_a_leaf_are_its_sound_links_and_those_on_to_cores() -> None:
    def found(net: Network, leaf: str) -> list[list[str]]:
        levels = links.links_up(net, leaf)
        assert all(upwards for level in levels for _, upwards in level)
        return [sorted(f"{one.lower.switch} {one.upper.switch}" for one, _ in level) for level in levels]

    net = fabric()
    assert found(net, "leaf1") == [["leaf1 spine1", "leaf1 spine2"]]
    net.lose_link(link(net, "leaf1", "spine2")[0], "nothing comes in")
    assert found(net, "leaf1") == [["leaf1 spine1"]]
    spines, cores = found(fabric(4, 2, cores=2), "leaf1")
    assert {one.split()[0] for one in cores} == {one.split()[1] for one in spines}
    assert {one.split()[1] for one in cores} == {"core1", "core2"}
    assert found(fabric(over_ip=True), "leaf1") == []


def test_between_two_pods_they_go_by_each_core_and_within_one_by_none() -> None:
    net = fabric(4, 2, cores=2)
    up, over, beyond, to_leaf = ways(net, "leaf1", "leaf2")
    assert len(up) == len(over) == len(beyond) == len(to_leaf) == 2
    assert {way.split()[2] for way in up} == {way.split()[0] for way in over}
    assert {way.split()[2] for way in over} == {way.split()[0] for way in beyond} == {"core1", "core2"}
    assert {way.split()[2] for way in beyond} == {way.split()[0] for way in to_leaf}
    assert [way.split()[1] for way in (up[0], over[0], beyond[0], to_leaf[0])] == ["up", "up", "down", "down"]
    within = ways(net, "leaf1", "leaf3")
    assert len(within) == 2
    assert "core" not in str(within)
