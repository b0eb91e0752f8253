"""What all owners contribute, kept in little room; a switch's program is made of it whenever it is asked for.

A contribution that was just computed will be asked for again, by whoever sends it and sees it confirmed. So
the last ones are kept as they are; of the others their shape and values (see `shapes`). An index says, by
the hash of an entry's key, whose it is (see `places`); two keys of one hash are one place with two owners.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from retinue.core.model.network import Owner
from retinue.core.pipeline.cookies import owner_hash
from retinue.core.pipeline.entry import Entry, EntryKey, Program
from retinue.core.pipeline.places import Places
from retinue.core.pipeline.shapes import Packed, Shapes

Contribution = dict[str, Program]
"""An owner's entries by switch."""
_place: Callable[[EntryKey], int] = hash

RECENT = 600
"""Contributions that are kept as they were computed, some 8 MB: more than are on their way to the switches at
a time, so that what is sent and confirmed is not made of shapes for each step on the way."""


@dataclass
class Contributions:
    """Contributions by owner. An owner's is put and dropped as a whole."""

    recent: int = RECENT
    changes: int = 0
    """How often something was put or dropped: whether what was asked before may be another by now."""
    _recent: dict[Owner, Contribution] = field(default_factory=dict)
    """The oldest first."""
    _packed: dict[Owner, Packed] = field(default_factory=dict)
    _shapes: Shapes = field(default_factory=Shapes)
    _index: dict[str, Places] = field(default_factory=dict)
    """By switch, and by the hash of a key: the number of whose entry it is."""
    _numbers: dict[Owner, int] = field(default_factory=dict)
    _owners: list[Owner] = field(default_factory=list)
    """By number: who has it, or had it last."""
    _free: list[int] = field(default_factory=list)
    """Numbers that nobody has any more."""

    def put(self, owner: Owner, contribution: Contribution) -> None:
        """Keep what an owner contributes. It has nothing here yet, nobody else an entry of the same key."""
        if not contribution:
            return
        self.changes += 1
        self._recent[owner] = contribution
        number = self._number(owner)
        for switch, program in contribution.items():
            places = self._index.get(switch)
            if places is None:
                places = self._index[switch] = Places()
            places.add([_place(key) for key in program], number)
        while len(self._recent) > self.recent:
            oldest = next(iter(self._recent))
            self._packed[oldest] = self._shapes.pack(self._recent.pop(oldest), owner_hash(oldest))

    def drop(self, owner: Owner) -> Contribution:
        """Forget an owner's; what it was."""
        contribution = self.of(owner)
        self.changes += 1
        self._recent.pop(owner, None)
        self._packed.pop(owner, None)
        number = self._numbers.pop(owner, None)
        if number is not None:
            self._free.append(number)
            for switch, program in contribution.items():
                self._index[switch].remove([_place(key) for key in program], number)
        return contribution

    def _number(self, owner: Owner) -> int:
        number = self._free.pop() if self._free else len(self._owners)
        if number == len(self._owners):
            self._owners.append(owner)
        self._owners[number], self._numbers[owner] = owner, number
        return number

    # ---- questions ----

    def of(self, owner: Owner) -> Contribution:
        recent, packed = self._recent.get(owner), self._packed.get(owner)
        if recent is None and packed is not None:
            return packed.programs(owner_hash(owner))
        return recent or {}

    def on(self, owner: Owner, switch: str) -> Program:
        """An owner's entries on one switch."""
        recent, packed = self._recent.get(owner), self._packed.get(owner)
        if recent is None and packed is not None:
            return packed.on(switch, owner_hash(owner))
        return (recent or {}).get(switch, {})

    def switches_of(self, owner: Owner) -> Collection[str]:
        """Where an owner has entries."""
        packed = self._packed.get(owner)
        return self._recent.get(owner, {}) if packed is None else packed.switches

    def owners_at(self, switch: str, key: EntryKey) -> Iterable[Owner]:
        """Who may have the entry of this key; another only where two keys have the same hash."""
        places = self._index.get(switch)
        return [] if places is None else [self._owners[number] for number in places.at(_place(key))]

    def owners_on(self, switch: str) -> set[Owner]:
        """Who has entries on a switch."""
        places = self._index.get(switch)
        return set() if places is None else {self._owners[number] for number in places.numbers()}

    def count(self, switch: str) -> int:
        return len(self._index.get(switch, ()))

    def switches(self) -> Iterable[str]:
        """All on which somebody has, or had, an entry."""
        return self._index.keys()


@dataclass(frozen=True, slots=True, eq=False)
class SwitchProgram(Mapping[EntryKey, Entry]):
    """All that a switch should hold, as it is whenever it is asked; `taken` is the way to ask for many."""

    _contributions: Contributions
    _switch: str

    def __getitem__(self, key: EntryKey) -> Entry:
        for owner in self._contributions.owners_at(self._switch, key):
            entry = self._contributions.on(owner, self._switch).get(key)
            if entry is not None:
                return entry
        raise KeyError(key)

    def __iter__(self) -> Iterator[EntryKey]:
        return iter(self.whole())

    def __len__(self) -> int:
        return self._contributions.count(self._switch)

    @property
    def changes(self) -> int:
        """See Contributions: it is the same while the program is."""
        return self._contributions.changes

    def whole(self) -> Program:
        """All entries."""
        return self.of(self.owners())

    def owners(self) -> set[Owner]:
        """Those that have entries here."""
        return self._contributions.owners_on(self._switch)

    def of(self, owners: Iterable[Owner]) -> Program:
        """The entries of these owners."""
        found: Program = {}
        for owner in owners:
            found.update(self._contributions.on(owner, self._switch))
        return found

    def owners_at(self, key: EntryKey) -> Iterable[Owner]:
        """Who may have the entry of this key (see Contributions)."""
        return self._contributions.owners_at(self._switch, key)

    def taken(self, keys: Iterable[EntryKey]) -> Program:
        """The entries of these keys, as far as there are: each owner's are made once."""
        keys = list(keys)
        program = self.of({owner for key in keys for owner in self.owners_at(key)})
        return {key: program[key] for key in keys if key in program}
