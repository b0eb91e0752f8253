"""Fetching an image's chunks from several holders at once: which chunk is asked of whom, and when.

    event                  what follows
    joined, gained         the holder is asked for what it has: the rarest first
    arrived, good          one chunk less is wanted, of all who were asked for it
    arrived, bad           HolderRejected; it is avoided for a long time, and others are asked
    absent                 others are asked
    left                   others are asked for what it was asked for
    tick, nothing came     a holder from which nothing needed has come for `deadline` is avoided for a while,
                           twice as long each time; others are asked. What it then still sends is welcome

*End game*: where nothing is left that nobody was asked for, a chunk that has been awaited for `patience` is
asked of a second holder, so that one holder that hangs does not hold up the end; of one that is farther away
only when nothing comes from the first any more.

*The origin is spared*: where the image was published is asked only for what no other holder in good standing
has, unless that one has sent nothing for `patience`. So while many fetch at once about one copy leaves the
origin, and the rest goes between them. Each time it is asked for more than that, it is counted (`fallbacks`).

*So is what is far*: a holder that is far is asked only for what none in good standing has that is near. One
that is near is waited for until its deadline: it may be a cache, which fetches what it is asked for itself.

Ties between chunks are broken by `seed`, so that two who fetch the same image begin with different chunks.
"""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice

from retinue.core.content.bitmap import Bitmap

SAMPLE = 64
"""Chunks among which the rarest is looked for: all of a small image, enough of a large one."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Times in seconds, and how many chunks one holder is asked for at once."""

    deadline: float = 5.0
    """For which a holder that was asked may send nothing."""
    patience: float = 1.0
    """After which, in the end game, a chunk is asked of a second holder, and the origin is spared no more."""
    avoided: float = 2.0
    """For which a silent holder is not asked, the first time."""
    longest_avoided: float = 60.0
    rejected: float = 600.0
    """For which a holder that sent something wrong is not asked."""
    window: int = 4


class Distance(IntEnum):
    """How far away a holder is: what a nearer one has is not asked of it."""

    NEAR = 0
    """At the same leaf."""
    FAR = 1
    ORIGIN = 2
    """Where the image was published, wherever that is."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask this holder for this chunk."""

    holder: str
    chunk: int


@dataclass(frozen=True, slots=True)
class HolderRejected:
    """This holder sent a chunk that is none: tell of it."""

    holder: str
    chunk: int


Effect = Ask | HolderRejected


@dataclass(slots=True)
class _Holder:
    name: str
    has: Bitmap
    distance: Distance
    here: bool = True
    asked: dict[int, float] = field(default_factory=dict)
    """Chunks that it is expected to send, and since when."""
    candidates: dict[int, None] = field(default_factory=dict)
    """Chunks that it may be asked for: wanted, asked of nobody, had by it."""
    heard: float = 0.0
    """When the last chunk that it was asked for, or that was still wanted, came from it."""
    avoided_until: float = 0.0
    silences: int = 0
    """In a row."""
    good: bool = False
    """Here, and not avoided."""
    spares: bool = False
    """Those that are farther away need not be asked for what this one has."""

    def silent_since(self, now: float) -> float:
        """Since when it has sent nothing of what it was asked for; `now` if it was asked for nothing."""
        return max(self.heard, min(self.asked.values())) if self.asked else now


class Fetch:
    """The state of one fetch. Every event returns what is to be done; `now` never goes back."""

    def __init__(self, wanted: Iterable[int], seed: int = 0, patience: Patience | None = None) -> None:
        """`wanted`: the chunks that are not held yet."""
        self._limits, self._seed = patience or Patience(), seed
        mixed = self._mixed(wanted)
        self.wanted: dict[int, None] = dict.fromkeys(mixed)
        """What has not arrived, in the order in which this fetch breaks ties."""
        self._holders: dict[str, _Holder] = {}
        self._askers: dict[int, set[str]] = {}
        """By chunk that is wanted: who is expected to send it."""
        self._count: dict[int, int] = dict.fromkeys(mixed, 0)
        """By chunk that is wanted: how many holders in good standing have it."""
        self._sparing: dict[int, list[int]] = {chunk: [0, 0] for chunk in mixed}
        """How many of them spare those that are farther away: near ones, and far ones."""
        self._expected: dict[str, float] = {}
        """Holders that are near and have not joined yet; until when they are waited for."""
        self.fallbacks = 0
        """Chunks that an origin was asked for although others have them."""

    def _mixed(self, chunks: Iterable[int]) -> list[int]:
        """In an order of this fetch's own."""
        key = b"%d %%d" % self._seed
        return sorted(chunks, key=lambda chunk: hashlib.blake2b(key % chunk).digest())

    @property
    def done(self) -> bool:
        return not self.wanted

    def standing(self, now: float) -> dict[str, str]:
        """By holder: "good", "avoided" or "gone"."""
        return {
            holder.name: "gone" if not holder.here else "avoided" if holder.avoided_until > now else "good"
            for holder in self._holders.values()
        }

    # ---- events ----

    def expected(self, holder: str, now: float) -> None:
        """A holder that is near is being reached, for the first time: those that are farther away are asked
        for nothing before it has joined, has failed, or `patience` is over."""
        if holder not in self._holders:
            self._expected.setdefault(holder, now + self._limits.patience)

    def want(self, chunks: Iterable[int], now: float) -> list[Effect]:
        """These are wanted, too."""
        for chunk in self._mixed(chunks):
            if chunk in self.wanted:
                continue
            self.wanted[chunk] = None
            self._count[chunk], self._sparing[chunk] = self._having(chunk)
            self._offer(chunk)
        return self._ask(now)

    def joined(self, holder: str, has: Bitmap, now: float, distance: Distance = Distance.FAR) -> list[Effect]:
        """A holder can be asked. One that was here before keeps its bad name."""
        self._came(holder)
        before = self._holders.get(holder)
        made = _Holder(holder, has, distance)
        if before is not None:
            self._release(before)
            made.avoided_until, made.silences = before.avoided_until, before.silences
        self._holders[holder] = made
        self._judge(now, anew=True)
        return self._ask(now)

    def gained(self, holder: str, chunks: Collection[int], now: float) -> list[Effect]:
        """A holder has more chunks than it had."""
        found = self._holders.get(holder)
        if found is None or not found.here:
            return []
        for chunk in chunks:
            if chunk in found.has:
                continue
            found.has.add(chunk)
            if chunk in self.wanted and found.good:
                self._count[chunk] += 1
                if found.spares:
                    self._sparing[chunk][found.distance] += 1
                self._offer(chunk)
        return self._ask(now)

    def left(self, holder: str, now: float) -> list[Effect]:
        """A holder has hung up, or could not be reached."""
        self._came(holder)
        found = self._holders.get(holder)
        if found is not None:
            found.here = False
            self._release(found)
        self._judge(now)
        return self._ask(now)

    def arrived(self, holder: str, chunk: int, now: float, *, good: bool) -> list[Effect]:
        """A holder has sent a chunk; `good`: it has been checked, and is kept."""
        found = self._holders.get(holder)
        effects: list[Effect] = []
        if found is not None:
            expected = found.asked.pop(chunk, None) is not None
            if expected or chunk in self.wanted:  # Whoever sends only what nobody needs is as good as silent.
                found.heard = now
            if good and expected:
                found.silences = 0
        if good:
            self._arrived(chunk)
        else:
            self._unasked(chunk, holder)
            effects.append(HolderRejected(holder, chunk))
            if found is not None:
                found.avoided_until = max(found.avoided_until, now + self._limits.rejected)
                self._release(found)
        self._judge(now)
        return effects + self._ask(now)

    def absent(self, holder: str, chunk: int, now: float) -> list[Effect]:
        """A holder has not what it was asked for."""
        found = self._holders.get(holder)
        if found is None:
            return []
        if found.asked.pop(chunk, None) is not None:
            found.heard = now
        if chunk in found.has:
            found.has.discard(chunk)
            if chunk in self.wanted and found.good:
                self._count[chunk] -= 1
                if found.spares:
                    self._sparing[chunk][found.distance] -= 1
            found.candidates.pop(chunk, None)
        self._unasked(chunk, holder)
        return self._ask(now)

    def tick(self, now: float) -> list[Effect]:
        """Time has passed; call it a few times in `patience`."""
        for holder in self._holders.values():
            if now - holder.silent_since(now) >= self._limits.deadline:
                wait = self._limits.avoided * 2 ** min(holder.silences, 16)
                holder.avoided_until = max(
                    holder.avoided_until, now + min(wait, self._limits.longest_avoided)
                )
                holder.silences += 1
                self._release(holder)
        self._judge(now)
        return self._ask(now)

    def _came(self, holder: str) -> None:
        """It is waited for no more, and never again."""
        if holder in self._expected:
            self._expected[holder] = 0.0

    # ---- who has what ----

    def _judge(self, now: float, *, anew: bool = False) -> None:
        """A holder whose standing has changed changes who may be asked for what."""
        for holder in self._holders.values():
            good = holder.here and holder.avoided_until <= now
            silent = now - holder.silent_since(now)
            slow = silent >= self._limits.patience and holder.distance is not Distance.NEAR
            spares = good and holder.distance is not Distance.ORIGIN and not slow
            anew = anew or (good, spares) != (holder.good, holder.spares)
            holder.good, holder.spares = good, spares
        if not anew:
            return
        for chunk in self.wanted:
            self._count[chunk], self._sparing[chunk] = self._having(chunk)
        for holder in self._holders.values():
            holder.candidates = {}
            if holder.good:
                holder.candidates = dict.fromkeys(c for c in self.wanted if self._may_be_asked(holder, c))

    def _having(self, chunk: int) -> tuple[int, list[int]]:
        """How many in good standing have a chunk; how many of these spare others, near ones and far ones."""
        having, sparing = 0, [0, 0]
        for holder in self._holders.values():
            if holder.good and chunk in holder.has:
                having += 1
                if holder.spares:
                    sparing[holder.distance] += 1
        return having, sparing

    def _may_be_asked(self, holder: _Holder, chunk: int) -> bool:
        if chunk not in holder.has or self._askers.get(chunk):
            return False
        return not any(self._sparing[chunk][: holder.distance])

    def _offer(self, chunk: int) -> None:
        """A chunk that is wanted: who may be asked for it, now."""
        for holder in self._holders.values():
            if holder.good and self._may_be_asked(holder, chunk):
                holder.candidates[chunk] = None
            else:
                holder.candidates.pop(chunk, None)

    def _release(self, holder: _Holder) -> None:
        """What it was asked for is not expected of it any more."""
        chunks, holder.asked = list(holder.asked), {}
        for chunk in chunks:
            self._unasked(chunk, holder.name)

    def _unasked(self, chunk: int, holder: str) -> None:
        self._askers.get(chunk, set()).discard(holder)
        if chunk in self.wanted:
            self._offer(chunk)

    def _arrived(self, chunk: int) -> None:
        self.wanted.pop(chunk, None)
        for holder in self._holders.values():
            holder.candidates.pop(chunk, None)
            holder.asked.pop(chunk, None)
        self._askers.pop(chunk, None)
        self._count.pop(chunk, None)
        self._sparing.pop(chunk, None)

    # ---- asking ----

    def _ask(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        # One chunk of each in turn, so that no holder takes what another could bring meanwhile.
        near_ones_come = any(until > now for until in self._expected.values())
        free = [
            holder
            for holder in self._holders.values()
            if holder.good and not (near_ones_come and holder.distance is not Distance.NEAR)
        ]
        while free := [holder for holder in free if self._ask_one(holder, now, effects)]:
            pass
        return effects

    def _ask_one(self, holder: _Holder, now: float, effects: list[Effect]) -> bool:
        if len(holder.asked) >= self._limits.window:
            return False
        chunk = self._rarest(holder)
        if chunk is None:
            chunk = self._awaited(holder, now)
        if chunk is None:
            return False
        holder.asked[chunk] = now
        self._askers.setdefault(chunk, set()).add(holder.name)
        for other in self._holders.values():
            other.candidates.pop(chunk, None)
        if holder.distance is Distance.ORIGIN and self._others_have(chunk):
            self.fallbacks += 1
        effects.append(Ask(holder.name, chunk))
        return True

    def _others_have(self, chunk: int) -> bool:
        return any(
            other.good and other.distance is not Distance.ORIGIN and chunk in other.has
            for other in self._holders.values()
        )

    def _rarest(self, holder: _Holder) -> int | None:
        sample = list(islice(holder.candidates, SAMPLE))
        return min(sample, key=self._count.__getitem__, default=None)

    def _awaited(self, holder: _Holder, now: float) -> int | None:
        """In the end game: what one other was asked for a while ago, and has not sent."""
        if any(other.candidates for other in self._holders.values()):
            return None
        for chunk, askers in self._askers.items():
            if len(askers) != 1 or holder.name in askers or chunk not in holder.has:
                continue
            asker = self._holders[next(iter(askers))]
            if asker.spares and asker.distance < holder.distance:
                continue  # It is slow, or fetches it itself: to ask further away would cost a second copy.
            if now - asker.asked.get(chunk, now) >= self._limits.patience:
                return chunk
        return None
