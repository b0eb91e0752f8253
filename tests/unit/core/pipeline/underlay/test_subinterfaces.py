"""What a VRF's way out costs, and that nobody pays who has none."""

from dataclasses import replace

from retinue.core.model import Network
from retinue.core.model.network import Owner
from retinue.core.pipeline.compiler import Compiler, contribution
from retinue.core.pipeline.cookies import Reason, reason_of
from retinue.core.pipeline.entry import Field, Flow, Output, SetField
from retinue.core.pipeline.priorities import VRF_BAND, LeafAdmit, Route, Servers
from retinue.core.pipeline.tables import Table
from support.fabric.networks import fabric
from support.fabric.tenants import add_tenant
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


def test_a_router_of_the_default_vrf_too_is_heard_without_a_tag() -> None:
    net = fabric()
    add_tenant(net, "red")
    own = contribution(net, Owner("server", "router"))["leaf2"]
    add_exits(net, {"red": RED_VLAN}, apart=False)
    now = contribution(net, Owner("server", "router"))["leaf2"]
    without_spoofed = {k: e for k, e in own.items() if not _is_spoofed(e)}
    assert without_spoofed.items() <= now.items()
    untagged = [e for e in now.values() if _is_spoofed(e) and (Field.VLAN_VID, 0, None) in e.match]  # type: ignore[union-attr]
    assert len(untagged) == sum(_is_spoofed(e) for e in own.values())
    assert replace(net.servers["router"], subinterfaces=()) == fabric().servers["router"]


def _is_spoofed(entry: object) -> bool:
    spoofed = isinstance(entry, Flow) and reason_of(entry.cookie) is Reason.SPOOFED_IP
    return spoofed and isinstance(entry, Flow) and entry.priority == LeafAdmit.SERVICE_SPOOFED
