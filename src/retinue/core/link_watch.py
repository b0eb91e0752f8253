"""Whether a link of the fabric loses frames while both its ends have a carrier, by what becomes of probes.

A probe is sent by the link's lower end. The upper end tells that it has come in, if it is connected, and
sends it back. In each round so many go over the link. A round ends when they have had their time.

    state      goes on to       when
    well       lost             in the last `rounds` rounds nothing came back; or of a sample too little
    lost       returning        all of a round has come back
    returning  well             so it was in every round, for the hold time
    returning  lost             a probe is missing

The hold time doubles each time that the link is lost again soon: one that comes and goes costs packets each
time that it goes. A probe that is missing has the next rounds send many, so that a share is told from chance
within a second.

A round in which the switch at the lower end was slow says nothing of the link, and does not count. What comes
later than its round is still credited: late is not lost.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class LinkLimits:
    rounds: int = 3
    """Without any probe that comes back the link is lost."""
    burst: int = 20
    """Probes in a round, while one is missing of the rounds that are looked at."""
    looked_at: int = 5
    """Rounds of which a share is taken."""
    sample: int = 40
    """Probes in these, at the least, of which a share is told..."""
    least: int = 3
    """... and missing ones, at the least."""
    share: float = 0.05
    """If so many of them are missing the link is lost."""
    hold: float = 10.0
    """Seconds that a link must be well again before it is used..."""
    hold_rounds: int = 5
    """... and rounds, at the least: while the controller was stopped nobody has looked."""
    longest_hold: float = 300.0
    """The same, however often it was lost; and after so long without a loss it is as if it had never been."""


class LinkState(StrEnum):
    WELL = "well"
    LOST = "lost"
    RETURNING = "returning"


@dataclass(slots=True)
class _Round:
    number: int
    sent: int
    there: int = 0
    """Probes of which the upper end has told."""
    back: int = 0

    @property
    def is_complete(self) -> bool:
        return self.back >= self.sent


@dataclass(slots=True)
class WatchedLink:
    """One link, and what is concluded of it. `lower` and `upper` are the names of its ends, for words."""

    lower: str
    upper: str
    limits: LinkLimits
    state: LinkState = LinkState.WELL
    reason: str = ""
    """Why it is lost, or was."""
    elsewhere: str = ""
    """Where a probe has come in that was to come in at the upper end: the cable leads there."""
    _losses: int = 0
    """How often it was lost, one soon after the other."""
    _good: float = 0.0
    """Seconds without a missing probe, in this state."""
    _rounds: deque[_Round] = field(default_factory=deque)
    """Those that have ended and count."""
    _open: _Round | None = None
    _unknown: int = 0
    """Rounds, the last ones, that have told nothing."""

    @classmethod
    def lost_before(cls, lower: str, upper: str, limits: LinkLimits, reason: str) -> "WatchedLink":
        """One that was lost when the last controller ended."""
        return cls(lower, upper, limits, LinkState.LOST, reason, _losses=1)

    @property
    def usable(self) -> bool:
        return self.state is LinkState.WELL

    @property
    def is_looked_at(self) -> bool:
        """A round that counts has ended not long ago."""
        return bool(self._rounds) and self._unknown < self.limits.looked_at

    @property
    def is_suspect(self) -> bool:
        """A probe is missing, which may be chance."""
        return self.usable and any(not one.is_complete for one in self._rounds)

    # ---- events ----

    def begin(self, number: int, probes: int) -> None:
        """A round begins: so many probes are sent."""
        self._open = _Round(number, probes)

    def there(self, number: int) -> None:
        """A probe of this round has come in at the upper end; each one that was sent does so once at most."""
        self.elsewhere = ""
        if (one := self._round(number)) is not None:
            one.there += 1

    def back(self, number: int) -> None:
        """It has come back; as above."""
        if (one := self._round(number)) is not None and not self.elsewhere:
            one.back += 1

    def _round(self, number: int) -> _Round | None:
        return next((one for one in (*self._rounds, self._open) if one and one.number == number), None)

    def end(self, seconds: float, *, answered: bool) -> None:
        """The round has had its time. `answered`: the lower end's switch has shown that it was not slow.

        `seconds`: since the last one ended.
        """
        ended, self._open = self._open, None
        if ended is None or not answered:
            self._unknown += 1
            return
        self._unknown = 0
        self._rounds.append(ended)
        while len(self._rounds) > self.limits.looked_at:
            self._rounds.popleft()
        if self.usable:
            self._look(seconds)
        else:
            self._look_again(seconds)

    def forget(self) -> None:
        """It cannot be probed now: nothing is concluded from before."""
        self._rounds.clear()
        self.elsewhere = ""
        self._open = None
        self._good = 0.0
        if self.state is LinkState.RETURNING:
            self.state = LinkState.LOST

    # ---- conclusions ----

    def _look(self, seconds: float) -> None:
        """While it is used."""
        found = self._lost()
        if found:
            self.state, self.reason = LinkState.LOST, found
            self._losses, self._good = self._losses + 1, 0.0
            return
        self._good = 0.0 if self.is_suspect else self._good + seconds
        if self._good >= self.limits.longest_hold:
            self._losses = 0

    def _look_again(self, seconds: float) -> None:
        """While it is not used. The last round but one is looked at: what is late has come by now."""
        if len(self._rounds) < 2:
            return
        if not self._rounds[-2].is_complete:
            self.state, self._good = LinkState.LOST, 0.0
            return
        self._good += min(seconds, self.hold / self.limits.hold_rounds)
        self.state = LinkState.WELL if self._good >= self.hold else LinkState.RETURNING
        if self.usable:
            self._good = 0.0

    @property
    def hold(self) -> float:
        """Seconds that it must be well before it is used again."""
        return min(self.limits.hold * float(1 << min(20, max(0, self._losses - 1))), self.limits.longest_hold)

    def _lost(self) -> str:
        """Why it is lost, "" if it is not."""
        limits = self.limits
        last = list(self._rounds)[-limits.rounds :]
        if len(last) == limits.rounds and not any(one.back for one in last):
            if self.elsewhere:
                return f"what {self.lower} sends comes in at {self.elsewhere}, and not at {self.upper}"
            if not any(one.there for one in last):
                return f"nothing that {self.lower} sends comes in at {self.upper}"
            return f"nothing that {self.upper} sends comes in at {self.lower}"
        settled = list(self._rounds)[:-1]  # What is late by less than a round has come by now.
        sent = sum(one.sent for one in settled)
        missing = sent - sum(one.back for one in settled)
        if sent < limits.sample or missing < max(limits.least, limits.share * sent):
            return ""
        on_its_way_there = sent - sum(max(one.there, one.back) for one in settled)
        sender, receiver = self.lower, self.upper
        if 2 * on_its_way_there < missing:
            sender, receiver = self.upper, self.lower
        return f"of {sent} frames that {sender} has sent {missing} have not come in at {receiver}"
