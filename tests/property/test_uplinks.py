"""Servers with two uplinks: whichever is in use, and while that changes, each packet arrives once.

Migrations from and to such servers are in test_pipeline_properties and test_late_caches, whose networks have
some.
"""

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from property.test_flooding import flooded
from property.test_pipeline_properties import Shape, check, number_of, shapes
from retinue.core.model import Network, PortRef
from retinue.core.model.network import NOTHING, Touched
from retinue.core.model.uplinks import all_found, has_several, ranks, used_uplink
from retinue.core.pipeline.underlay.fabric_uplinks import told_at_once
from support.examples import examples
from support.fabric.flooded import Flooded
from support.fabric.histories import equals_recomputed, fresh
from support.fabric.networks import nic_numbers
from support.fabric.world import FabricWorld


@st.composite
def redundant(draw: st.DrawFn) -> Shape:
    """At least one server has two uplinks; without cores, as these lead to leaves of one pod."""
    joined = shapes(vms=3, more_nics=1, over=draw(st.sampled_from(["spines", "macs"])))
    shape = draw(joined.filter(lambda one: one.leaves > 1 and not one.cores))
    return replace(shape, twice=(*shape.twice, draw(st.integers(1, len(shape.servers_on)))))


def places_of(shape: Shape, net: Network) -> dict[int, int]:
    return {nic: shape.vms_at[number_of(vm) - 1] for vm in net.vms.values() for nic in nic_numbers(vm)}


@settings(deadline=None, max_examples=examples(8), suppress_health_check=[HealthCheck.too_slow])
@given(shape=redundant(), data=st.data())
def test_every_state_of_a_change_of_uplinks_is_right(shape: Shape, data: st.DataObject) -> None:
    """Both are well: as when the preferred one has returned."""
    world = FabricWorld(shape.network())
    at = places_of(shape, world.net)
    may = {nic: {place} for nic, place in at.items()}
    number = data.draw(st.sampled_from(sorted(set(shape.twice))), label="server")
    edge = f"edge{number}"
    for _ in range(2):
        used = used_uplink(world.net, edge)
        touched = world.net.use_uplink(edge, "up1" if used == "up0" else "up0")
        world.apply(
            touched,
            [told_at_once(world.net, f"server{number}")],
            each=lambda: check(world, at, may),
            order=lambda s: data.draw(st.permutations(s)),
        )
        check(world, at, may)
        assert world.compiler.programs == fresh(world.net)


@settings(deadline=None, max_examples=examples(8), suppress_health_check=[HealthCheck.too_slow])
@given(world=flooded(), data=st.data())
def test_what_is_flooded_comes_once_while_uplinks_change(world: Flooded, data: st.DataObject) -> None:
    net = world.world.net
    for server in [one.id for one in net.servers.values() if one.edge and has_several(net, one.id)]:
        edge = net.servers[server].edge
        touched = net.use_uplink(edge, "up1" if used_uplink(net, edge) == "up0" else "up0")
        world.world.apply(
            touched,
            [told_at_once(net, server)],
            each=world.check,
            order=lambda s: data.draw(st.permutations(s)),
        )
        assert world.world.compiler.programs == fresh(net)


@settings(deadline=None, max_examples=examples(12), suppress_health_check=[HealthCheck.too_slow])
@given(shape=redundant(), data=st.data())
def test_no_packet_takes_an_uplink_that_is_lost(shape: Shape, data: st.DataObject) -> None:
    """One of several is cut: either end has told of it, or probes have."""
    world = FabricWorld(shape.network())
    at, net = places_of(shape, world.net), world.net
    number = data.draw(st.sampled_from(sorted(set(shape.twice))), label="server")
    edge, lost = f"edge{number}", data.draw(st.sampled_from(["up0", "up1"]), label="lost")
    lower = PortRef(edge, lost)
    upper = net.uplink_places[lower]
    told: PortRef | None = data.draw(st.sampled_from([lower, upper, None]), label="told by")
    if told is None:
        world.apply(net.lose_link(lower, "nothing comes in"))
    else:
        world.apply(net.set_ports(told.switch, net._numbers[told.switch], {told.port}))
    other = "up1" if lost == "up0" else "up0"
    world.apply(net.use_uplink(edge, other), [told_at_once(net, f"server{number}")])
    for end in (lower, upper):
        port = net.port_number(end)
        assert port is not None
        del world.fabric.cables[end.switch, port]  # What goes there would come out at nobody's port.
    check(world, at, {nic: {place} for nic, place in at.items()})
    assert world.compiler.programs == fresh(net)
    if told is None:
        world.apply(net.return_link(lower))
    else:
        world.apply(net.set_ports(told.switch, net._numbers[told.switch]))
    assert world.compiler.programs == fresh(net)


@settings(deadline=None, max_examples=examples(8), suppress_health_check=[HealthCheck.too_slow])
@given(shape=redundant(), data=st.data())
def test_a_leaf_dies_and_all_of_its_servers_go_by_the_other(shape: Shape, data: st.DataObject) -> None:
    """Switches at the other ends of its cables have told of it, or probes have."""
    # The router is at the last leaf, by one cable.
    dead = data.draw(st.integers(1, shape.leaves - 1), label="dead")
    there = tuple(n for n, leaf in enumerate(shape.servers_on, 1) if leaf == dead)
    shape = replace(shape, twice=(*shape.twice, *there))
    world = FabricWorld(shape.network())
    at, net = places_of(shape, world.net), world.net
    silent, leaf = data.draw(st.booleans(), label="found by probes"), f"leaf{dead}"
    links = [one for one in (*net.links, *all_found(net)) if leaf in (one.lower.switch, one.upper.switch)]
    for link in links:
        if silent:
            world.apply(net.lose_link(link.lower, "nothing comes in"))
            continue
        end = link.upper if link.lower.switch == leaf else link.lower
        down = {*net._down.get(end.switch, ()), end.port}
        world.apply(net.set_ports(end.switch, net._numbers[end.switch], down))
    for server in [one.id for one in net.servers.values() if one.edge and has_several(net, one.id)]:
        best = max(ranks(net, server).items(), key=lambda one: one[1])[0]
        touched = net.use_uplink(net.servers[server].edge, best)
        world.apply(touched, [told_at_once(net, server)])
    for end in (end for link in links for end in (link.lower, link.upper)):
        port = net.port_number(end)
        assert port is not None
        world.fabric.cables[end.switch, port] = ("nothing", 1)
    world.fabric.add("nothing")
    check(world, at, {nic: {place} for nic, place in at.items()})
    assert world.compiler.programs == fresh(net)


@settings(deadline=None, max_examples=examples(25), suppress_health_check=[HealthCheck.too_slow])
@given(shape=redundant(), data=st.data())
def test_incremental_is_recomputed_whatever_becomes_of_uplinks(shape: Shape, data: st.DataObject) -> None:
    net = shape.network()
    uplinks = sorted(net.uplink_places)
    free = [PortRef(f"leaf{leaf}", "q99") for leaf in range(1, shape.leaves + 1)]
    kinds = st.sampled_from(
        ["use", "lose", "return", "down", "up", "find", "gone", "vm", "number", "remove", "add", "one", "two"]
    )
    servers, edges = dict(net.servers), dict(net.switches)
    others: dict[PortRef, int] = {}
    steps = data.draw(st.lists(st.tuples(kinds, st.sampled_from(uplinks), st.sampled_from(free)), max_size=8))

    def change(step: tuple[str, PortRef, PortRef]) -> Touched:
        kind, uplink, other = step
        server = next(one for one in servers.values() if one.edge == uplink.switch)
        end = uplink if other.switch == free[0].switch else net.uplink_places.get(uplink, uplink)
        numbers = net._numbers[end.switch]
        match kind:
            case "use":
                return net.use_uplink(uplink.switch, uplink.port)
            case "lose":
                return net.lose_link(uplink, "nothing comes in")
            case "return":
                return net.return_link(uplink)
            case "down" | "up":
                return net.set_ports(end.switch, numbers, {end.port} if kind == "down" else ())
            case "find":
                return net.find_uplink(uplink, other)
            case "gone":
                return net.set_ports(end.switch, {n: v for n, v in numbers.items() if n != end.port})
            case "number":
                return net.set_ports(
                    end.switch, {**numbers, end.port: others.setdefault(end, 700 + len(others))}
                )
            case "remove":
                gone = [net.remove_vm(vm) for vm in net.vms_on(server.id)]
                return NOTHING.union(*gone, net.remove_server(server.id))
            case "add":
                return net.put_server(server)
            case "one" | "two":
                standby = edges[uplink.switch].standby if kind == "two" else ()
                return net.add_switch(replace(edges[uplink.switch], standby=standby))
            case _:
                return net.put_vm(replace(net.vms["vm1"], server=server.id)) if "vm1" in net.vms else NOTHING

    equals_recomputed(net, steps, change)
