"""Entries in little room: what an owner's have in common with others' is kept once, its own values apart.

All VMs with one address have the same entries but for port, MACs, addresses, lease and cookie: 25 of them,
some 16 KB as objects. A *shape* is an owner's entries on one switch with the places of such values numbered
instead of filled; owners of the same shape share it. What is left of each owner is the values that fill it,
some hundred bytes. What is in the shape and what is a value decides about room alone: whatever was packed
comes out equal (`tests/property/test_contributions.py`).

    entry      (ADMIT, 150, in_port=3 eth_src=52:54:00:00:00:07 ipv4_src=10.1.0.107, cookie ...1c2d)
    shape      (ADMIT, 150, in_port=[0] eth_src=[1] ipv4_src=[2], cookie ...0000), of every VM
    values     3, 52:54:00:00:00:07, 10.1.0.107
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast
from weakref import WeakValueDictionary

from retinue.core.pipeline.entry import (
    Action,
    Entry,
    Field,
    Flow,
    Group,
    Match,
    Meter,
    Output,
    PortNo,
    Program,
    SetField,
    key_of,
)

_OWN = frozenset(
    {
        Field.IN_PORT, Field.ETH_DST, Field.ETH_SRC, Field.IPV4_SRC, Field.IPV4_DST, Field.ARP_SPA,
        Field.ARP_TPA, Field.ARP_SHA, Field.ARP_THA, Field.IPV6_SRC, Field.IPV6_DST, Field.IPV6_ND_TARGET,
        Field.IPV6_ND_SLL, Field.IPV6_ND_TLL, Field.TUN_SRC, Field.TUN_DST, Field.METADATA,
    }
)  # fmt: skip
"""Fields whose values are an owner's own, or its place's."""

Values = tuple[int | float, ...]
_FlowPart = tuple[
    int, int, Match, tuple[Action | tuple[Field | None, int], ...], int | None, int | None, int, int | None
]
"""A flow's fields in their order. In match and actions the value of such a field is its place among the
values; so are the port of an output (without a field), the meter's number, and the end of the lease. Of the
cookie what is not the owner's hash is left."""
_MeterPart = tuple[int, int, int, bool]
"""A meter's fields; of its number the place among the values."""
_Parts = tuple[_FlowPart | _MeterPart | Group, ...]
_Places = dict[int | tuple[float], int]
"""Values in the order in which they were met, numbered. A lease's end is held as a tuple, or it could be
taken for an address that is the same number."""


class Shape:
    """Entries of one switch without what is an owner's own; there is one object of each."""

    __slots__ = ("__weakref__", "parts")

    def __init__(self, parts: _Parts) -> None:
        self.parts = parts


class Layout:
    """Switches, and the shape on each; there is one object of each. VMs of one server have the same."""

    __slots__ = ("__weakref__", "shapes", "switches")

    def __init__(self, switches: tuple[str, ...], shapes: tuple[Shape, ...]) -> None:
        self.switches, self.shapes = switches, shapes


@dataclass(frozen=True, slots=True)
class Packed:
    """An owner's entries: the switches with the shape on each, and the values that fill all of them."""

    layout: Layout
    values: Values

    @property
    def switches(self) -> tuple[str, ...]:
        return self.layout.switches

    def programs(self, mark: int) -> dict[str, Program]:
        """All entries, by switch; `mark` is the owner's hash."""
        return {switch: self.on(switch, mark) for switch in self.switches}

    def on(self, switch: str, mark: int) -> Program:
        """The entries on one switch."""
        if switch not in self.switches:
            return {}
        shape = self.layout.shapes[self.switches.index(switch)]
        return {key_of(entry): entry for entry in _filled(shape, self.values, mark)}


class Shapes:
    """The shapes in use: what nobody has any more is forgotten."""

    def __init__(self) -> None:
        self._shapes: WeakValueDictionary[_Parts, Shape] = WeakValueDictionary()
        self._layouts: WeakValueDictionary[tuple[object, object], Layout] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._shapes)

    def pack(self, programs: Mapping[str, Program], mark: int) -> Packed:
        """An owner's entries by switch; `mark` is its hash (see `cookies`)."""
        places: _Places = {}
        shapes = tuple([self._shape(_parts(program, places, mark)) for program in programs.values()])
        values = tuple([value[0] if type(value) is tuple else value for value in places])
        return Packed(self._layout(tuple(programs), shapes), values)  # type: ignore[arg-type]

    def _layout(self, switches: tuple[str, ...], shapes: tuple[Shape, ...]) -> Layout:
        layout = self._layouts.get((switches, shapes))
        if layout is None:
            layout = self._layouts[switches, shapes] = Layout(switches, shapes)
        return layout

    def _shape(self, parts: _Parts) -> Shape:
        shape = self._shapes.get(parts)
        if shape is None:
            shape = self._shapes[parts] = Shape(parts)
        return shape


def _parts(program: Program, places: _Places, mark: int) -> _Parts:
    """The shape of these entries; values not met before get the next of the `places`."""
    return tuple([_part(entry, places, mark) for entry in program.values()])


def _part(entry: Entry, places: _Places, mark: int) -> _FlowPart | _MeterPart | Group:
    place, own = places.setdefault, _OWN
    match entry:
        case Flow():
            return (
                entry.table,
                entry.priority,
                tuple([(t[0], place(t[1], len(places)), t[2]) if t[0] in own else t for t in entry.match]),
                tuple([_action(action, places) for action in entry.actions]) if entry.actions else (),
                entry.goto,
                None if entry.meter is None else place(entry.meter, len(places)),
                entry.cookie ^ mark,
                None if entry.expires_at is None else place((entry.expires_at,), len(places)),
            )
        case Meter():
            return place(entry.id, len(places)), entry.rate, entry.burst, entry.kilobits
        case Group():
            return entry


def _action(action: Action, places: _Places) -> Action | tuple[Field | None, int]:
    if type(action) is SetField and action.field in _OWN:
        return action.field, places.setdefault(action.value, len(places))
    if type(action) is Output and action.port < PortNo.MAX:
        return None, places.setdefault(action.port, len(places))
    return action


def _filled(shape: Shape, values: Values, mark: int) -> Iterator[Entry]:
    own = _OWN
    numbers = cast(tuple[int, ...], values)  # All but the ends of leases.
    for part in shape.parts:
        if isinstance(part, Group):
            yield part
        elif len(part) == 4:
            yield Meter(numbers[part[0]], *part[1:])
        else:
            table, priority, match, actions, goto, meter, cookie, until = part
            yield Flow(
                table,
                priority,
                tuple([(t[0], numbers[t[1]], t[2]) if t[0] in own else t for t in match]),
                tuple([_filled_action(action, numbers) for action in actions]) if actions else (),
                goto,
                None if meter is None else numbers[meter],
                cookie ^ mark,
                None if until is None else values[until],
            )


def _filled_action(action: Action | tuple[Field | None, int], numbers: tuple[int, ...]) -> Action:
    if not isinstance(action, tuple):
        return action
    field, place = action
    return Output(numbers[place]) if field is None else SetField(field, numbers[place])
