"""Switches and links that come and go while all runs: no packet is lost, and incremental = recomputed."""

from collections.abc import Iterable, Iterator
from itertools import permutations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retinue.core.model import Link, ModelError, Network, PortRef, Role, Switch
from retinue.core.model.network import NOTHING, Owner, Touched
from support.examples import examples
from support.fabric import growing
from support.fabric.histories import equals_recomputed, fresh
from support.fabric.networks import GATEWAY_MAC, add_vm, fabric, vm_ip, vm_mac
from support.fabric.world import FabricWorld, udp_frame

AT = {1: 1, 2: 2, 3: 3}
"""VMs, and the servers where they are: under two leaves, or under three in two pods."""


@settings(
    deadline=None,
    max_examples=examples(25),
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    cores=st.sampled_from([0, 2]),
    by_mac=st.booleans(),
    leaf=st.booleans(),
    together=st.booleans(),
    data=st.data(),
)
def test_what_comes_and_goes_link_by_link_costs_no_packet(
    cores: int, by_mac: bool, leaf: bool, together: bool, data: st.DataObject
) -> None:
    """Links come, are used and go in any order; after each single switch every packet arrives, once.

    `together`: all are in place at one time, and used by one change.
    """
    net = fabric(leaves=3, servers_on=(1, 2, 3), cores=cores, by_mac=by_mac)
    for vm, server in AT.items():
        add_vm(net, vm, server)
    world = FabricWorld(net)

    def check() -> None:
        for one, other in permutations(AT, 2):
            world.reaches(one, AT[one], other, {AT[other]})

    def run(touched: Iterable[Owner]) -> None:
        world.apply(touched, each=check, order=lambda stage: data.draw(st.permutations(stage), label="order"))

    switches, links = growing.a_leaf(net) if leaf else growing.planes(net)
    before = fresh(net)
    growing.add(world, switches, links, run)
    if together:
        for link in links:
            run(net.put_link(link))
        touched: set[Owner] = set().union(*(net.set_idle(link.lower, idle=False) for link in links))
        run(touched)
    else:
        take_turns(data, [growing.comes(net, link) for link in links], run)
    uppers = {link.upper.switch for link in net.links}
    carried = {switch for pair in permutations(AT, 2) for switch in hops(world, *pair)}
    assert uppers <= carried | {"leaf9"}, "all spines and cores have their share"
    take_turns(data, [growing.goes(net, link) for link in links], run)
    for switch in data.draw(st.permutations(switches), label="removed"):
        run(net.remove_switch(switch.id))
    got = {switch: program for switch, program in world.compiler.programs.items() if program}
    assert got == fresh(net)
    assert got == before


def hops(world: FabricWorld, one: int, other: int) -> Iterator[str]:
    """The switches that may have a packet of one VM to another."""
    frame = udp_frame(vm_mac(one), GATEWAY_MAC, vm_ip(one), vm_ip(other))
    for delivery in world.send(one, AT[one], frame):
        yield from (hop.switch for hop in delivery.hops)


def take_turns(data: st.DataObject, stories: list[Iterator[Iterable[Owner]]], run: growing.Run) -> None:
    """A step of one of them, and of any again, until all have ended."""
    while stories:
        story = data.draw(st.sampled_from(stories), label="next")
        step = next(story, None)
        if step is None:
            stories.remove(story)
        else:
            run(step)


NAMES = st.sampled_from(["leaf1", "leaf2", "leaf9", "spine1", "spine2", "spine9", "core9", "edge1", "edge9"])
KINDS = st.sampled_from(["switch", "no switch", "given", "link", "use", "leave", "no link", "ports", "down"])


@settings(deadline=None, max_examples=examples(20))
@given(
    cores=st.sampled_from([0, 2]),
    by_mac=st.booleans(),
    steps=st.lists(st.tuples(KINDS, NAMES, NAMES), max_size=25),
)
def test_incremental_equals_recomputed(cores: int, by_mac: bool, steps: list[tuple[str, str, str]]) -> None:
    net = fabric(leaves=3, servers_on=(1, 2, 1), cores=cores, by_mac=by_mac)
    net.detected.pop("server3")  # Every leaf looks for it.
    for vm in (1, 2):
        add_vm(net, vm, vm)
    equals_recomputed(net, steps, lambda step: change(net, *step))


ROLES = {"leaf": Role.LEAF, "spin": Role.SPINE, "core": Role.CORE, "edge": Role.EDGE}


def change(net: Network, kind: str, one: str, other: str) -> Touched:
    link = growing.joined(one, other)
    known = [known for known in net.links if (known.lower.switch, known.upper.switch) == (one, other)]
    lower = known[0].lower if known else link.lower
    match kind:
        case "switch":
            role = ROLES[one[:4]]
            dpid = 0x900 + sum(one.encode())
            return net.put_switch(Switch(one, role, dpid, uplink="up0" if role is Role.EDGE else ""))
        case "given" if one in net.switches and ROLES[one[:4]] is Role.LEAF:
            return net.put_switch(Switch(one, Role.LEAF, net.switches[one].dpid, given=other < one))
        case "no switch":
            return net.remove_switch(one)
        case "link":
            return net.put_link(link)
        case "use" if known:
            return net.set_idle(lower, idle=False)
        case "leave":
            return net.leave_link(lower)
        case "no link":
            return net.remove_link(lower)
        case "ports" if one in net.switches:
            return net.set_ports(one, {**net._numbers.get(one, {}), f"to-{other}": 41 + len(other)})
        case "down" if one in net.switches:
            return net.set_ports(one, net._numbers.get(one, {}), {f"to-{other}"})
        case _:
            return NOTHING


def test_a_link_that_goes_leaves_nobody_without_a_way() -> None:
    """All refused, and nothing changed."""
    net = fabric(leaves=2, spines=1, servers_on=(1, 2))
    before = fresh(net)
    for lower in (PortRef("leaf1", "s1"), PortRef("leaf2", "s1"), PortRef("leaf1", "s7")):
        try:
            net.leave_link(lower)
        except ModelError:
            continue
        raise AssertionError(f"{lower} went")
    assert fresh(net) == before
    assert net.idle_links == set()
    assert all(isinstance(link, Link) for link in net.links)
