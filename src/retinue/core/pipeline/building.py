"""In which order a large change is told: what others need first, and the ways to servers soon.

A leaf's group of ways up is the leaf's own, and the prefixes routed to NICs, thousands perhaps, have entries
there that use it. A switch rejects an entry that names a group or meter which it does not have, and with one
that is deleted it deletes all entries that name it (OpenFlow 1.4.0, 5.6 and 7.3.4.14). A small change is told
as one; the parts of a large one have an order.

A router that moves touches each of these prefixes, too: no router may send as one of them, and that is said
at its port. Its own ways, by which all go outside, do not wait for thousands of these.
"""

from collections.abc import Iterable, Sequence

from retinue.core.model.network import Owner
from retinue.core.pipeline.compiler import Compiler, contribution
from retinue.core.pipeline.entry import Entry, EntryKey, Group, Meter


def steps(compiler: Compiler, owners: Iterable[Owner]) -> Sequence[list[Owner]]:
    """What brings a group or meter to its switch, servers, all else, and what takes one away: each step
    sorted, none empty."""
    first: list[Owner] = []
    servers: list[Owner] = []
    others: list[Owner] = []
    last: list[Owner] = []
    for owner in sorted(owners):
        if owner.kind == "server":
            servers.append(owner)
        elif owner.kind != "switch":  # Of others' groups and meters only their own entries make use.
            others.append(owner)
        else:
            new = _used_by_others(contribution(compiler.net, owner).get(owner.id, {}))
            old = _used_by_others(compiler.entries(owner, owner.id))
            (first if new - old else last if old - new else others).append(owner)
    return [step for step in (first, servers, others, last) if step]


def _used_by_others(entries: dict[EntryKey, Entry]) -> set[EntryKey]:
    return {key for key, entry in entries.items() if isinstance(entry, Group | Meter)}
