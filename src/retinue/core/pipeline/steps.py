"""A change cut into steps, for a switch that cannot make it at one instant (OpenFlow 1.3 has no bundles).

Between any two steps a frame has the fate that it had before the change, or that it has after it, or is
dropped for that moment. Within a table that holds by the order of priorities: of entries that are added the
higher ones come first, of those that are removed the lower ones go first, so that whatever wins meanwhile
wins before or after, too. Across tables what a frame comes to later is there before what sends it there, and
goes after it.

Entries of one step are as good as disjoint; a switch may take them in any order.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

from retinue.core.pipeline.entry import Change, Flow

Step = Change
"""A part of a change that is to be in force before the next one is begun."""


def makes(change: Change) -> Iterator[Step]:
    """What is added and changed: meters and groups, then the flows that use them."""
    if change.meters or change.groups:
        yield Change(meters=change.meters, groups=change.groups)
    for flows in _levels(change.add, lambda flow: (-flow.table, -flow.priority)):
        yield Change(add=flows)


def removes(change: Change) -> Iterator[Step]:
    """What is removed, once all is there that takes its place: flows, then groups and meters they used."""
    for flows in _levels(change.remove, lambda flow: (flow.table, flow.priority)):
        yield Change(remove=flows)
    if change.remove_groups or change.remove_meters:
        yield Change(remove_groups=change.remove_groups, remove_meters=change.remove_meters)


def _levels(flows: Iterable[Flow], rank: Callable[[Flow], tuple[int, int]]) -> Iterator[tuple[Flow, ...]]:
    """The flows of each table and priority, by this rank."""
    for _, level in groupby(sorted(flows, key=rank), rank):
        yield tuple(level)
