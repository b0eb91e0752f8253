"""What a switch has confirmed: its program, but for the entries in which the switch is known to differ.

Nearly always it differs in nothing, so that the mirror of a switch that is in step takes no room. What the
program was before a change is told by whoever has computed the change (`changed`).
"""

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Set

from retinue.controller.switches.readback import in_parts
from retinue.core.pipeline.contributions import SwitchProgram
from retinue.core.pipeline.diff import agrees
from retinue.core.pipeline.entry import Change, Entry, EntryKey, Program


class Mirror:
    """Empty until it is first told what the switch holds (`holds`)."""

    def __init__(self, program: SwitchProgram) -> None:
        self._program = program
        self._is_known = False
        self._differs: dict[EntryKey, Entry | None] = {}
        """What the switch has where that is not what its program has; None: nothing."""
        self._changed: set[EntryKey] | None = None
        """What has been changed since the switch is being compared; None: it is not."""

    async def holds(self, found: Mapping[EntryKey, Entry]) -> None:
        """The switch has been read, and holds this; others have their turn while it is compared.

        The mirror is what it was until this returns, but for one that was empty.
        """
        late = self._changed = set()
        differs: dict[EntryKey, Entry | None] = {}
        try:
            async for key, want in compared(self._program, found):
                if not agrees(want, found.get(key)):
                    differs[key] = found.get(key)
        finally:
            self._changed = None
        self._differs, self._is_known = differs, True
        # It was compared with what the program is no longer.
        self.set({key: found.get(key) for key in late})

    def changed(self, before: Mapping[EntryKey, Entry | None]) -> None:
        """The program is another now; `before`: what it was, by the keys that changed."""
        if self._changed is not None:
            self._changed.update(before)
        if not self._is_known:
            return
        for key, old in before.items():
            if key not in self._differs:
                self._differs[key] = old
            elif self._differs[key] == self._program.get(key):
                del self._differs[key]

    def set(self, entries: Mapping[EntryKey, Entry | None]) -> None:
        """The switch has these by now; None: nothing."""
        if not self._is_known:
            return
        wanted = self._program.taken(entries)
        for key, entry in entries.items():
            if wanted.get(key) == entry:
                self._differs.pop(key, None)
            else:
                self._differs[key] = entry
        if not self._differs:
            self._differs.clear()  # An empty one still has the room of the most that it ever had.

    def sent(self, change: Change) -> None:
        """The switch has confirmed this change."""
        self.set(change.entries)

    # ---- questions ----

    @property
    def differing(self) -> Set[EntryKey]:
        """Where the switch differs from its program; of one that was never read it is not known."""
        return self._differs.keys()

    def has_all(self, wanted: Iterable[EntryKey]) -> bool:
        """True when the switch has an entry of each of these keys, which its program has."""
        return self._is_known and all(self._differs.get(key, self) is not None for key in wanted)

    def get(self, key: EntryKey) -> Entry | None:
        return self.taken([key]).get(key)

    def taken(self, keys: Collection[EntryKey]) -> Program:
        """What the switch has of these keys."""
        if not self._is_known:
            return {}
        found = self._program.taken(key for key in keys if key not in self._differs)
        differing = ((key, self._differs.get(key)) for key in keys)
        found.update((key, entry) for key, entry in differing if entry is not None)
        return found


async def compared(
    program: SwitchProgram, found: Mapping[EntryKey, Entry]
) -> AsyncIterator[tuple[EntryKey, Entry | None]]:
    """All that was found, each with what is wanted there, and all that is wanted and was not found; others
    have their turn meanwhile."""
    there, changes = 0, program.changes
    async for keys in in_parts(list(found)):
        wanted = program.taken(keys)
        there += len(wanted)
        for key in keys:
            yield key, wanted.get(key)
    if there == len(program) and program.changes == changes:
        return
    async for owners in in_parts(list(program.owners())):
        for key, want in program.of(owners).items():
            if key not in found:
                yield key, want
