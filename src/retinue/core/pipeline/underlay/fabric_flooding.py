"""Flooding on leaves, spines and cores: what one edge sends to a group goes to all others, once."""

from collections.abc import Iterable, Iterator

from retinue.core.model.network import Network
from retinue.core.pipeline.entry import (
    Action,
    EntriesBySwitch,
    FieldValue,
    Flow,
    Group,
    Output,
    ToGroup,
    match,
)
from retinue.core.pipeline.matches import ANY_TAG, GROUP_BIT
from retinue.core.pipeline.priorities import LeafAdmit, SpineAdmit
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay.fabric_switches import UP_GROUP, ports_up, ways_down


def flood_ways(
    net: Network, attached: Iterable[tuple[str, int]], vlan: int, group: int, mark: int
) -> EntriesBySwitch:
    """`attached`: leaf and port of each server. See Underlay.flood_ways."""
    ports: dict[str, set[int]] = {}
    for leaf, port in attached:
        ports.setdefault(leaf, set()).add(port)
    with_tag: dict[str, FieldValue] = {"vlan_vid": ANY_TAG[1] | vlan, "eth_dst": GROUP_BIT}
    found: EntriesBySwitch = {}
    for leaf in sorted(ports):
        spines = ports_up(net, leaf) if len(ports) > 1 else []
        down: tuple[Action, ...] = (ToGroup(group),)
        up: tuple[Action, ...] = (ToGroup(UP_GROUP),) if spines else ()
        found[leaf] = [Group(group, tuple((Output(port),) for port in sorted(ports[leaf])), replicates=True)]
        sources = [(port, down + up) for port in sorted(ports[leaf])] + [(spine, down) for spine in spines]
        for port, actions in sources:
            came_in = match(in_port=port, **with_tag)
            found[leaf].append(Flow(Table.ADMIT, LeafAdmit.FLOODED, came_in, actions, cookie=mark))
    if len(ports) < 2:
        return found
    leading: dict[str, dict[str, int]] = {}
    for leaf in sorted(ports):
        for above, port in ways_down(net, leaf):
            leading.setdefault(above, {})[leaf] = port
    for above, leaves in leading.items():
        down_ports = sorted(set(leaves.values()))
        found[above] = [
            Group(group, tuple((Output(port),) for port in down_ports), replicates=True),
            *_above(net, above, with_tag, group, mark, further=len(leaves) < len(ports)),
        ]
    return found


def _above(
    net: Network, switch: str, with_tag: dict[str, FieldValue], group: int, mark: int, *, further: bool
) -> Iterator[Flow]:
    """On a spine or core: down to the leaves concerned; `further`: others are in other pods."""
    cores = ports_up(net, switch)
    way: tuple[Action, ...] = (ToGroup(group),)
    for port in cores:
        came_in = match(in_port=port, **with_tag)
        yield Flow(Table.ADMIT, SpineAdmit.FLOODED_FROM_CORE, came_in, way, cookie=mark)
    up: tuple[Action, ...] = (ToGroup(UP_GROUP),) if further and cores else ()
    yield Flow(Table.ADMIT, SpineAdmit.FLOODED, match(**with_tag), way + up, cookie=mark)
