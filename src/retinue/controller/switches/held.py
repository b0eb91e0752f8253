"""What of a switch's entries is left as it is for now, though it is not what the program wants.

It is not known yet whether it is right, for the switch's ports, or all VMs, have not been told; or its owner
is kept as it is (core.pipeline.knowledge). A meter or a group stays for as long as an entry that is left uses
it, for with it the switch would delete that entry.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Set

from retinue.controller.switches.mirror import Mirror
from retinue.core.pipeline.diff import agrees
from retinue.core.pipeline.entry import Entry, EntryKey, Flow, Group, Program, named_by
from retinue.core.pipeline.knowledge import Knowledge


class Held:
    """Of one switch; all of it is pending, too."""

    def __init__(
        self,
        switch: str,
        knowledge: Knowledge,
        mirror: Mirror,
        pending: Set[EntryKey],
        wanted: Callable[[Iterable[EntryKey]], Program],
    ) -> None:
        """`pending`: what the switch has yet to confirm; `wanted`: what it should hold of some keys."""
        self._switch = switch
        self._knowledge = knowledge
        self._mirror = mirror
        self._pending = pending
        self._wanted = wanted
        self.keys: set[EntryKey] = set()
        self._of: dict[int, set[EntryKey]] = {}
        """What is held, and some of what was, by the hash of its owner; meters have none."""
        self._judged_by: Hashable = None
        """What had been told (Knowledge.told) when all that is held was looked at last."""

    def looked_at(self) -> None:
        """All that is held is judged by what is told now."""
        self._judged_by = self._knowledge.told(self._switch)

    def hold(self, keys: Collection[EntryKey]) -> None:
        self.keys.update(keys)
        wanted, has = self._wanted(keys), self._mirror.taken(keys)
        for key in keys:
            for entry in (has.get(key), wanted.get(key)):
                owner = None if entry is None else self._knowledge.owner_of(entry)
                if owner is not None:
                    self._of.setdefault(owner, set()).add(key)

    def let_go(self, keys: Collection[EntryKey]) -> None:
        """They have been decided about, or agree."""
        self.keys.difference_update(keys)
        if not self.keys:  # An empty set still has the room of the most that it ever had.
            self.keys.clear()
            self._of.clear()

    def release(self, touched: Collection[int]) -> frozenset[EntryKey]:
        """Those that can be judged by now, and are to be sent: they are held no longer. `touched`: the hashes
        of owners that have been computed since.
        """
        if not self.keys:
            return frozenset()
        told = self._knowledge.told(self._switch)
        keys = self._of_owners(touched) if told == self._judged_by else self.keys
        self._judged_by = told
        released = frozenset(keys - self.not_yet(keys)) if keys else frozenset()
        self.let_go(released)
        return released

    # ---- what is to be left ----

    def not_to_be_sent(self, keys: Collection[EntryKey]) -> set[EntryKey]:
        """Of what is to be sent to a switch that has been read: these are left."""
        return self.not_yet(keys) if self._knowledge.kept else self._used_by_held(keys)

    def not_yet(self, keys: Collection[EntryKey]) -> set[EntryKey]:
        """Of these keys, those in which the switch differs from its program, and is left as it is for now.

        What was pending and not held before goes: that was decided. A meter, or a group, stays with what uses
        it.
        """
        wanted, has = self._wanted(keys), self._mirror.taken(keys)
        held = {key for key in keys if self._is_left(key, wanted.get(key), has.get(key))}
        used = self._used_by(held).intersection(keys)
        return held | {key for key in used if key not in wanted and key in has} | self._used_by_held(keys)

    def _is_left(self, key: EntryKey, want: Entry | None, have: Entry | None) -> bool:
        if agrees(want, have):
            return False
        if any(self._knowledge.is_kept(entry) for entry in (want, have) if entry is not None):
            return True
        if have is None:
            return False
        if isinstance(want, Group) and want.replicates:
            # It is made of ports, which are told one by one: it may lack some that are right.
            return not self._knowledge.may_judge(have, self._switch)
        if want is not None or (key in self._pending and key not in self.keys):
            return False
        return not self._knowledge.may_judge(have, self._switch)

    def _used_by_held(self, keys: Collection[EntryKey]) -> set[EntryKey]:
        """Of these keys the meters and groups that are to go, and that what is held besides uses."""
        some: set[EntryKey] = {key for key in keys if key[0] in ("meter", "group")} if self.keys else set()
        gone = some.difference(self._wanted(some)) if some else some
        return gone & self._used_by(self.keys.difference(keys)) if gone else gone

    def _used_by(self, keys: Iterable[EntryKey]) -> set[EntryKey]:
        """The meters and groups that flows of these keys use on the switch."""
        flows = [flow for flow in self._mirror.taken(set(keys)).values() if isinstance(flow, Flow)]
        return {key for flow in flows for key in named_by(flow)}

    def _of_owners(self, owners: Collection[int]) -> set[EntryKey]:
        """What is held of these owners, and meters and groups that only this uses."""
        own: set[EntryKey] = set().union(*(self._of.get(owner, ()) for owner in owners)) & self.keys
        if not own:
            return own
        return own | (self._used_by(own) - self._used_by(self.keys - own)) & self.keys
