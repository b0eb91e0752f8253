"""In which order switches are told of a change: nearest to the new place first.

A source leaf that points up while a spine still points down is a loop; a spine that points at a leaf that
does not know the VM is a hole. So: the new place's edge and leaf, then the spines, then the other leaves,
then the other edges. Each stage is confirmed by every switch in it before the next begins. A removal has no
new place and starts at the spines.
"""

from collections.abc import Collection, Mapping, Sequence

from retinue.flows.compiler import Keys
from retinue.model import Role, Switch
from retinue.model.network import Network

Near = Sequence[Collection[str]]
"""Groups of switches told before all others, group by group: around the new place."""

CACHE_LAG = 0.006
"""Seconds by which a switch's flow cache may follow what it has confirmed (Open vSwitch: 5.3 ms seen)."""


def stages(changed: Keys, switches: Mapping[str, Switch], near: Near) -> list[list[str]]:
    """Switches of `changed` in the order they must be told, those of one list at the same time."""

    def stage(switch: str) -> int:
        for number, group in enumerate(near):
            if switch in group:
                return number
        return len(near) + {Role.SPINE: 0, Role.LEAF: 1, Role.EDGE: 2}[switches[switch].role]

    found: dict[int, list[str]] = {}
    for switch in sorted(changed):
        found.setdefault(stage(switch), []).append(switch)
    return [found[number] for number in sorted(found)]


def near_server(net: Network, server: str) -> frozenset[str]:
    """The edge and the leaf of a server: where a VM's new place is prepared first."""
    at = net.place(server)
    names = {net.servers[server].edge, "" if at is None else at.switch}
    return frozenset(names - {""})
