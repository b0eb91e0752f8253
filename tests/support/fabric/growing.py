"""A fabric that gets a plane of spines, or a leaf, link by link; and how each such link comes and goes."""

from collections.abc import Callable, Collection, Iterable, Iterator

from retinue.core.model import Link, Network, PortRef, Role, Switch
from retinue.core.model.network import Owner
from support.fabric.world import FabricWorld

Run = Callable[[Iterable[Owner]], None]
"""Brings a change onto the switches."""


def planes(net: Network) -> tuple[list[Switch], list[Link]]:
    """What a further spine is, or, where there are cores, a further core with a spine in each pod."""
    leaves = [leaf.id for leaf in net.with_role(Role.LEAF)]
    cores = [core.id for core in net.with_role(Role.CORE)]
    if not cores:
        return [Switch("spine9", Role.SPINE, 0x59)], [joined(leaf, "spine9") for leaf in leaves]
    spines = [Switch(f"spine{pod}", Role.SPINE, 0x50 + pod) for pod in (8, 9)]
    links = [joined(leaf, spines[number % 2].id) for number, leaf in enumerate(leaves)]
    links += [joined(spine.id, "core9") for spine in spines]
    return [*spines, Switch("core9", Role.CORE, 0x79)], links


def a_leaf(net: Network) -> tuple[list[Switch], list[Link]]:
    """A leaf below all spines, or all of the first pod."""
    spines = sorted({one.upper.switch for one in net.links if one.lower.switch == "leaf1"})
    return [Switch("leaf9", Role.LEAF, 0x19)], [joined("leaf9", spine) for spine in spines]


def joined(lower: str, upper: str) -> Link:
    return Link(PortRef(lower, f"to-{upper}"), PortRef(upper, f"to-{lower}"))


def add(world: FabricWorld, switches: Collection[Switch], links: Collection[Link], run: Run) -> None:
    """The switches are there, and cables; of no link is anything known yet."""
    net = world.net
    for switch in switches:
        world.fabric.add(switch.id)
        world.installed.setdefault(switch.id, {})
        run(net.put_switch(switch))
    ends = [end for link in links for end in (link.lower, link.upper)]
    for switch_id in sorted({end.switch for end in ends}):
        ports = dict(net._numbers.get(switch_id, {}))
        for number, end in enumerate((end for end in ends if end.switch == switch_id), 40):
            ports[end.port] = number
        run(net.set_ports(switch_id, ports))
    for link in links:
        lower, upper = net.port_number(link.lower), net.port_number(link.upper)
        assert lower is not None
        assert upper is not None
        world.fabric.cable((link.lower.switch, lower), (link.upper.switch, upper))


def comes(net: Network, link: Link) -> Iterator[Iterable[Owner]]:
    """Its steps: it is there, and it is used."""
    yield net.put_link(link)
    yield net.set_idle(link.lower, idle=False)


def goes(net: Network, link: Link) -> Iterator[Iterable[Owner]]:
    """Its steps: nothing is sent by it any more, and it is gone."""
    yield net.leave_link(link.lower)
    yield net.remove_link(link.lower)
