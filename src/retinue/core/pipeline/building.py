"""In which order a large change is told: what others need first, and the ways to servers soon.

A leaf's group of ways up is the leaf's own, and the prefixes routed to NICs, thousands perhaps, have entries
there that use it. A switch rejects an entry that names a group or meter which it does not have, and with one
that is deleted it deletes all entries that name it (OpenFlow 1.4.0, 5.6 and 7.3.4.14). A small change is told
as one; the parts of a large one have an order.

A router that moves touches each of these prefixes, too: no router may send as one of them, and that is said
at its port. Its own ways, by which all go outside, do not wait for thousands of these.
"""

from enum import IntEnum

from retinue.core.model.network import Owner
from retinue.core.pipeline.compiler import Compiler, contribution
from retinue.core.pipeline.entry import Entry, EntryKey, Group, Meter


class Step(IntEnum):
    """Of a large change, in their order."""

    BRINGS = 0
    """A group or meter, which others use, to its switch."""
    SERVER = 1
    OTHER = 2
    TAKES = 3
    """A group or meter away."""


def step_of(compiler: Compiler, owner: Owner) -> Step:
    """Where an owner that has not been computed anew yet comes in a large change."""
    if owner.kind == "server":
        return Step.SERVER
    if owner.kind != "switch":  # What else is named goes along with what names it (`Compiler`).
        return Step.OTHER
    new = _used_by_others(contribution(compiler.net, owner).get(owner.id, {}))
    old = _used_by_others(compiler.entries(owner, owner.id))
    return Step.BRINGS if new - old else Step.TAKES if old - new else Step.OTHER


def _used_by_others(entries: dict[EntryKey, Entry]) -> set[EntryKey]:
    return {key for key, entry in entries.items() if isinstance(entry, Group | Meter)}
