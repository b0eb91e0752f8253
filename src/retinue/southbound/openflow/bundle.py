"""The messages a Change becomes, in order, and what each of them is about when a switch rejects it. Pure."""

from collections.abc import Callable, Iterable, Iterator, Set
from itertools import count
from typing import TypeVar

from retinue.core.pipeline.entry import Change, Flow
from retinue.core.pipeline.text import match_text
from retinue.southbound.openflow.codec import encode

T = TypeVar("T")


def mod_count(change: Change) -> int:
    """How many messages `mods` makes."""
    return len(change.groups) + len(change.add) + len(change.remove) + len(change.remove_groups)


def mods(change: Change, groups: Set[int], xid: int, now: float) -> Iterator[bytes]:
    """Groups, flows to add, flows to remove, groups to remove; with transaction ids that count up from `xid`.

    `groups` are those the switch has: they are modified, others are added. Raises ValueError for an entry
    that cannot be encoded.
    """
    for group in change.groups:
        to_bytes = encode.group_modify if group.id in groups else encode.group_add
        yield to_bytes(xid, group)
        xid += 1
    for flow in change.add:
        yield encode.flow_add(xid, flow, now)
        xid += 1
    for flow in change.remove:
        yield encode.flow_remove(xid, flow)
        xid += 1
    for number in change.remove_groups:
        yield encode.group_remove(xid, number)
        xid += 1


def bundled(messages: Iterable[bytes], xid: int, bundle: int) -> Iterator[bytes]:
    """Each message inside one that puts it into the bundle; both carry the same transaction id."""
    for number, message in enumerate(messages, xid):
        yield encode.bundle_add(number, bundle, message)


def meter_mods(change: Change, meters: Set[int], xid: int) -> Iterator[bytes]:
    """Meters to add or modify; `meters` are those the switch has."""
    for number, meter in enumerate(change.meters, xid):
        to_bytes = encode.meter_modify if meter.id in meters else encode.meter_add
        yield to_bytes(number, meter)


def message_count(change: Change) -> int:
    """How many messages `messages` makes."""
    return len(change.meters) + mod_count(change) + len(change.remove_meters)


def messages(change: Change, groups: Set[int], meters: Set[int], xid: int, now: float) -> Iterator[bytes]:
    """All of a change, for a switch without bundles: meters, `mods`, meters to remove."""
    yield from meter_mods(change, meters, xid)
    yield from mods(change, groups, xid + len(change.meters), now)
    for number, meter in enumerate(change.remove_meters, xid + len(change.meters) + mod_count(change)):
        yield encode.meter_remove(number, meter)


def without(change: Change, left_out: Set[int]) -> Change:
    """The change without the messages of these indices among `messages`."""
    indices = count()

    def kept(entries: tuple[T, ...]) -> tuple[T, ...]:
        return tuple(entry for entry in entries if next(indices) not in left_out)

    meters, groups = kept(change.meters), kept(change.groups)
    add, remove = kept(change.add), kept(change.remove)
    return Change(add, remove, groups, kept(change.remove_groups), meters, kept(change.remove_meters))


def subject_of_message(change: Change, index: int) -> str:
    """What the message of this index, among those of `messages`, is about."""
    if index < len(change.meters):
        return f"meter {change.meters[index].id}"
    index -= len(change.meters)
    if index < mod_count(change):
        return subject(change, index)
    index -= mod_count(change)
    return f"remove meter {change.remove_meters[index]}" if index < len(change.remove_meters) else "a barrier"


def subject(change: Change, index: int) -> str:
    """What the message of this index, among those of `mods`, is about."""
    kinds: tuple[tuple[str, tuple[object, ...], Callable[[object], str]], ...] = (
        ("group", change.groups, lambda group: str(getattr(group, "id", group))),
        ("add flow", change.add, _flow_text),
        ("remove flow", change.remove, _flow_text),
        ("remove group", change.remove_groups, str),
    )
    for kind, entries, text in kinds:
        if index < len(entries):
            return f"{kind} {text(entries[index])}"
        index -= len(entries)
    return "the whole bundle"


def _flow_text(flow: object) -> str:
    assert isinstance(flow, Flow)
    return f"(table {flow.table}, priority {flow.priority}, {match_text(flow.match)})"
