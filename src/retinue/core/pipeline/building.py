"""In which order a large change is told where entries of one owner use groups or meters of another's.

A leaf's group of ways up is the leaf's own, and the prefixes routed to NICs, thousands perhaps, have entries
there that use it. A switch rejects an entry that names a group or meter which it does not have, and with one
that is deleted it deletes all entries that name it (OpenFlow 1.4.0, 6.7 and 6.8). A small change is told as
one; the parts of a large one have an order.
"""

from collections.abc import Iterable, Sequence

from retinue.core.model.network import Owner
from retinue.core.pipeline.compiler import Compiler, contribution
from retinue.core.pipeline.entry import Entry, EntryKey, Group, Meter


def steps(compiler: Compiler, owners: Iterable[Owner]) -> Sequence[list[Owner]]:
    """First those that bring a group or meter to their switch, last those that take one away, each step
    sorted; none is empty."""
    first, between, last = found = ([], [], [])  # type: tuple[list[Owner], list[Owner], list[Owner]]
    for owner in sorted(owners):
        if owner.kind != "switch":  # Of others' groups and meters only their own entries make use.
            between.append(owner)
            continue
        new = contribution(compiler.net, owner).get(owner.id, {})
        wanted, has = _used_by_others(new), _used_by_others(compiler.entries(owner, owner.id))
        (first if wanted - has else last if has - wanted else between).append(owner)
    return [step for step in found if step]


def _used_by_others(entries: dict[EntryKey, Entry]) -> set[EntryKey]:
    return {key for key, entry in entries.items() if isinstance(entry, Group | Meter)}
