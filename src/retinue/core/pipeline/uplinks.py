"""Edges with several uplinks: what is computed as for one, spread over all of them.

An edge takes in from each of its uplinks, and sends up by the one that is in use, which a group names: to use
another one changes that entry alone, at one instant. What is sent to a group of a vnet each of the leaves
brings, and the edge takes it in by the uplink in use only.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from retinue.core.model import Network, PortRef, Switch
from retinue.core.model.uplinks import used_uplink
from retinue.core.pipeline.entry import Action, Entry, Field, Flow, Group, Match, Output, ToGroup

UP_GROUP = 1
"""On an edge with several uplinks: the one in use."""


def spread(net: Network, edge: Switch, entries: Iterable[Entry], *, flooded: bool) -> Iterator[Entry]:
    """Entries that are computed for `Network.uplink_number`. `flooded`: they are about groups of a vnet."""
    meant = net.uplink_number(edge.id)
    numbers = [net.port_number(PortRef(edge.id, name)) for name in edge.uplinks]
    there = [number for number in numbers if number is not None]
    used = net.port_number(PortRef(edge.id, used_uplink(net, edge.id))) or meant
    for entry in entries:
        match entry:
            case Flow() if meant is not None and used is not None:
                actions = tuple(ToGroup(UP_GROUP) if one == Output(meant) else one for one in entry.actions)
                for number in _from(entry.match, meant, [used] if flooded else there):
                    yield replace(entry, match=number, actions=actions)
            case Group() if meant is not None and used is not None:
                yield replace(entry, buckets=tuple(_by(bucket, meant, used) for bucket in entry.buckets))
            case _:
                yield entry


def _from(match: Match, meant: int, numbers: Iterable[int]) -> list[Match]:
    """The match with each of these ports in the place of the one that is meant."""
    term = (Field.IN_PORT, meant, None)
    if term not in match:
        return [match]
    at = match.index(term)
    return [(*match[:at], (Field.IN_PORT, number, None), *match[at + 1 :]) for number in numbers]


def _by(bucket: tuple[Action, ...], meant: int, used: int) -> tuple[Action, ...]:
    return tuple(Output(used) if action == Output(meant) else action for action in bucket)
