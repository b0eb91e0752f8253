"""Which of an edge's several uplinks is used, by how good each is (`core.model.uplinks.Rank`).

    the one in use is             then
    not there, or worse           the first of the best, at once
    as good as any                it stays; or the first that is as good and preferred, once that has been so
                                  for the hold time, and its leaf has all of its entries

The hold time of one that was left doubles each time that it is left again soon: one that comes and goes costs
packets each time that it goes.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ChoiceLimits:
    """Seconds."""

    hold: float = 10.0
    """For so long a preferred uplink that was left must be as good as any before it is used again..."""
    longest_hold: float = 300.0
    """... at most; and after so long in use without being left it is as if it had never been."""


@dataclass(slots=True)
class UplinkChoice:
    """Of one edge."""

    limits: ChoiceLimits
    used: str = ""
    """The uplink in use; "": none yet."""
    _good_since: dict[str, float] = field(default_factory=dict)
    _left: dict[str, int] = field(default_factory=dict)
    """How often an uplink was left, one time soon after the other."""

    @classmethod
    def as_it_was(cls, limits: ChoiceLimits, used: str, uplinks: Collection[str]) -> "UplinkChoice":
        """Of an edge that used this one when the last controller ended: those before it had been left."""
        ordered = list(uplinks)
        before = ordered[: ordered.index(used)] if used in ordered else []
        return cls(limits, used, _left=dict.fromkeys(before, 1))

    def look(self, ranks: Mapping[str, int], ready: Collection[str], now: float) -> str | None:
        """The uplink to be used from now on, None where nothing changes. `ranks`: of those whose leaf is
        known, the preferred one first; `ready`: those by which all would go on."""
        best = max(ranks.values(), default=None)
        good = [name for name, rank in ranks.items() if rank == best]
        self._good_since = {name: self._good_since.get(name, now) for name in good}
        if not good:
            return None
        if self.used not in good:
            if self.used:
                self._left[self.used] = self._left.get(self.used, 0) + 1
            self.used = good[0]
            return self.used
        if now - self._good_since[self.used] >= self.limits.longest_hold:
            self._left.pop(self.used, None)
        for name in good[: good.index(self.used)]:
            if name in ready and now - self._good_since[name] >= self.hold(name):
                self.used = name
                return name
        return None

    def hold(self, uplink: str) -> float:
        """Seconds that it must be good before it is used again."""
        left = self._left.get(uplink, 0)
        if not left:
            return 0.0
        return min(self.limits.hold * float(1 << min(20, left - 1)), self.limits.longest_hold)
