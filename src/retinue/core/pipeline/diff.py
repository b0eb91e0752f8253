"""What to send a switch so that it holds what it should: desired entries against those it has."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from retinue.core.pipeline.entry import Change, Entry, EntryKey, Flow, Group, Meter

LEASE_SLACK = 2.0
"""Seconds by which an entry's own end on the switch may differ from the lease's before it is sent again."""


def difference(
    desired: Mapping[EntryKey, Entry], installed: Mapping[EntryKey, Entry], keys: Iterable[EntryKey]
) -> Change:
    """The change that makes `installed` agree with `desired` for `keys`; other entries are left alone."""
    add: list[Entry] = []
    remove: list[Entry] = []
    for key in keys:
        want, have = desired.get(key), installed.get(key)
        if agrees(want, have):
            continue
        if want is not None:
            add.append(want)
        elif have is not None:
            remove.append(have)
    return Change(
        add=tuple(e for e in add if isinstance(e, Flow)),
        remove=tuple(e for e in remove if isinstance(e, Flow)),
        groups=tuple(e for e in add if isinstance(e, Group)),
        remove_groups=tuple(e.id for e in remove if isinstance(e, Group)),
        meters=tuple(e for e in add if isinstance(e, Meter)),
        remove_meters=tuple(e.id for e in remove if isinstance(e, Meter)),
    )


def agrees(want: Entry | None, have: Entry | None) -> bool:
    """True when nothing need be sent to the switch; None means no entry."""
    if want == have:
        return True
    if not (isinstance(want, Flow) and isinstance(have, Flow)):
        return False
    if want.expires_at is None or have.expires_at is None:
        return False
    # The switch counts whole seconds: what is read back differs a little from what was meant.
    close = abs(want.expires_at - have.expires_at) <= LEASE_SLACK
    return close and replace(want, expires_at=None) == replace(have, expires_at=None)
