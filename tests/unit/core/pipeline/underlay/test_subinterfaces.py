"""What a VRF's way out costs, and that nobody pays who has none."""

from dataclasses import replace

import pytest

from retinue.core.model import Network
from retinue.core.model.network import Owner
from retinue.core.pipeline.compiler import Compiler, contribution
from retinue.core.pipeline.cookies import Reason, reason_of
from retinue.core.pipeline.entry import Field, Flow, Output, SetField
from retinue.core.pipeline.priorities import VRF_BAND, LeafAdmit, Route, Servers
from retinue.core.pipeline.tables import Table
from support.fabric.networks import fabric
from support.fabric.tenants import TAGS, add_tenant
from support.fabric.ways_out import EXIT_PORT, RED_VLAN, add_exits


def entries(net: Network) -> dict[str, int]:
    compiler = Compiler(net)
    compiler.update(net.everything())
    return {switch: len(program) for switch, program in compiler.programs.items()}


def test_what_it_costs() -> None:
    """On the router's leaf five, three for each subnet, and a route for each prefix and for its address;
    elsewhere the routes alone; at edges nothing."""
    net = fabric()
    add_tenant(net, "red")
    add_exits(net, {}, apart=True)
    before = entries(net)
    add_exits(net, {"red": RED_VLAN}, apart=True)
    more = {switch: count - before[switch] for switch, count in entries(net).items()}
    subnets, routes = 2, 2
    # The router's untagged packets are no longer taken: one entry in the place of those of two subnets.
    assert more.pop("leaf1") == 5 + 3 * subnets + routes - 2 + 1
    assert {switch: more[switch] for switch in ("leaf2", "spine1", "spine2")} == dict.fromkeys(
        ("leaf2", "spine1", "spine2"), routes
    )
    assert not any(count for switch, count in more.items() if switch.startswith("edge"))


def test_other_servers_have_the_entries_they_had() -> None:
    net = fabric()
    add_tenant(net, "red")
    servers = [Owner("server", id) for id in net.servers]
    before = [contribution(net, one) for one in servers]
    add_exits(net, {"red": RED_VLAN}, apart=True)
    assert [contribution(net, one) for one in servers] == before


def test_only_the_routers_leaf_knows_its_tag() -> None:
    net = fabric()
    add_tenant(net, "red")
    add_exits(net, {"red": RED_VLAN}, apart=True)
    at_port = SetField(Field.VLAN_VID, 0x1000 | RED_VLAN)
    for switch, program in contribution(net, Owner("server", "exit")).items():
        flows = [entry for entry in program.values() if isinstance(entry, Flow)]
        if switch != "leaf1":
            assert not any(at_port in flow.actions for flow in flows)
            continue
        out = [flow for flow in flows if Output(EXIT_PORT) in flow.actions and at_port in flow.actions]
        assert {(Table(flow.table), flow.priority) for flow in out} == {
            (Table.ROUTE, VRF_BAND + Route.PREFIX),
            (Table.ROUTE, VRF_BAND + Route.HOST),
            (Table.SERVERS, Servers.SUBINTERFACE),
        }


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("over_ip", [True, False])
def test_what_has_the_tag_of_a_vrf_that_it_is_not_in_never_goes_to_the_router(
    apart: bool, over_ip: bool
) -> None:
    """On the links green's tag is 4094, at the router's port that is red's: a spine that is late would send
    from the one into the other."""
    net = fabric(over_ip=over_ip)
    for vrf in ("red", "green"):
        add_tenant(net, vrf)
    add_exits(net, {"red": TAGS["green"]}, apart=apart)
    router = net.servers["exit" if apart else "router"]
    leaf, port = ("leaf1", EXIT_PORT) if apart else ("leaf2", 91)
    found = contribution(net, Owner("server", router.id))[leaf].values()
    by_mac = [flow for flow in found if isinstance(flow, Flow) and flow.table == Table.SERVERS]
    assert {term for flow in by_mac for term in flow.match if term[0] is Field.VLAN_VID} == {
        (Field.VLAN_VID, 0, None),
        (Field.VLAN_VID, 0x1000 | TAGS["red"], None),
    }
    assert all(Output(port) in flow.actions and Field.VLAN_VID in dict_of(flow) for flow in by_mac)


def dict_of(flow: Flow) -> dict[Field, object]:
    return {field: value for field, value, _ in flow.match}


def test_a_router_of_the_default_vrf_too_is_heard_without_a_tag() -> None:
    net = fabric()
    add_tenant(net, "red")
    own = contribution(net, Owner("server", "router"))["leaf2"]
    add_exits(net, {"red": RED_VLAN}, apart=False)
    now = contribution(net, Owner("server", "router"))["leaf2"]
    as_before = {k: e for k, e in own.items() if not _is_spoofed(e) and not _is_by_mac(e)}
    assert as_before.items() <= now.items()
    untagged = [e for e in now.values() if _is_spoofed(e) and (Field.VLAN_VID, 0, None) in e.match]  # type: ignore[union-attr]
    assert len(untagged) == sum(_is_spoofed(e) for e in own.values())
    assert replace(net.servers["router"], subinterfaces=()) == fabric().servers["router"]


def _is_by_mac(entry: object) -> bool:
    """To the router: without a tag, where it has subinterfaces."""
    return isinstance(entry, Flow) and entry.table == Table.SERVERS


def _is_spoofed(entry: object) -> bool:
    spoofed = isinstance(entry, Flow) and reason_of(entry.cookie) is Reason.SPOOFED_IP
    return spoofed and isinstance(entry, Flow) and entry.priority == LeafAdmit.SERVICE_SPOOFED
