"""The messages a Change becomes, in order, and the words for each of them when a switch refuses it. Pure."""

from collections.abc import Callable, Iterable, Iterator, Set

from retinue.flows.change import Change
from retinue.flows.entry import Flow
from retinue.flows.text import match_text
from retinue.openflow import codec


def mod_count(change: Change) -> int:
    """How many messages `mods` makes."""
    return len(change.groups) + len(change.add) + len(change.remove) + len(change.remove_groups)


def mods(change: Change, groups: Set[int], xid: int, now: float) -> Iterator[bytes]:
    """Groups, flows to add, flows to remove, groups to remove; with transaction ids that count up from `xid`.

    `groups` are those the switch has: they are modified, others are added. Raises ValueError for an entry
    that cannot be encoded.
    """
    for group in change.groups:
        encode = codec.group_modify if group.id in groups else codec.group_add
        yield encode(xid, group)
        xid += 1
    for flow in change.add:
        yield codec.flow_add(xid, flow, now)
        xid += 1
    for flow in change.remove:
        yield codec.flow_remove(xid, flow)
        xid += 1
    for number in change.remove_groups:
        yield codec.group_remove(xid, number)
        xid += 1


def bundled(messages: Iterable[bytes], xid: int, bundle: int) -> Iterator[bytes]:
    """Each message inside one that puts it into the bundle; both carry the same transaction id."""
    for number, message in enumerate(messages, xid):
        yield codec.bundle_add(number, bundle, message)


def meter_mods(change: Change, meters: Set[int], xid: int) -> Iterator[bytes]:
    """Meters to add or modify; `meters` are those the switch has."""
    for number, meter in enumerate(change.meters, xid):
        encode = codec.meter_modify if meter.id in meters else codec.meter_add
        yield encode(number, meter)


def subject(change: Change, index: int) -> str:
    """What the message of this index, among those of `mods`, is about."""
    words: tuple[tuple[str, tuple[object, ...], Callable[[object], str]], ...] = (
        ("group", change.groups, lambda group: str(getattr(group, "id", group))),
        ("add flow", change.add, _flow_words),
        ("remove flow", change.remove, _flow_words),
        ("remove group", change.remove_groups, str),
    )
    for word, entries, text in words:
        if index < len(entries):
            return f"{word} {text(entries[index])}"
        index -= len(entries)
    return "the whole bundle"


def _flow_words(flow: object) -> str:
    assert isinstance(flow, Flow)
    return f"(table {flow.table}, priority {flow.priority}, {match_text(flow.match)})"
