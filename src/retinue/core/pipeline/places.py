"""An index in little room: by the hash of a key, the numbers of those that have it.

A table of fixed width, eight bytes a place and no objects: a dictionary takes a hundred bytes for each entry,
of which there are 25 for a VM. Of the hash 40 bits are kept. So what is found may be somebody else's, and
whoever asks must look at what those really have.
"""

from array import array
from collections.abc import Collection, Iterator

_NUMBER_BITS = 24
_NUMBER = (1 << _NUMBER_BITS) - 1
_HASH = (1 << 40) - 1
_FREE, _GONE = 0, 1
"""What no word of ours is: a number is 2 at the least there."""
_SMALLEST = 8


class Places:
    """Numbers, of 24 bits, by hashes; a number may be at one hash several times."""

    __slots__ = ("_count", "_slots", "_used")

    def __init__(self) -> None:
        self._slots = array("Q", [_FREE]) * _SMALLEST
        self._count = 0
        self._used = 0
        """Slots that are not free: those too from which something has gone, for others may be behind them."""

    def __len__(self) -> int:
        return self._count

    def add(self, hashes: Collection[int], number: int) -> None:
        """The number is at each of these from now on, once more if it was already."""
        if 3 * (self._used + len(hashes)) > 2 * len(self._slots):
            self._make_anew(len(hashes))
        slots, mask, last = self._slots, len(self._slots) - 1, number + 2
        for hash in hashes:
            at = hash & mask
            while slots[at] > _GONE:
                at = at + 1 & mask
            if slots[at] == _FREE:
                self._used += 1
            slots[at] = (hash & _HASH) << _NUMBER_BITS | last
        self._count += len(hashes)

    def remove(self, hashes: Collection[int], number: int) -> None:
        """From each of these, once. Raises KeyError where it is not."""
        slots, mask, last = self._slots, len(self._slots) - 1, number + 2
        for hash in hashes:
            at, word = hash & mask, (hash & _HASH) << _NUMBER_BITS | last
            while (found := slots[at]) != word:
                if found == _FREE:
                    raise KeyError(hash)
                at = at + 1 & mask
            slots[at] = _GONE
            self._count -= 1

    def at(self, hash: int) -> list[int]:
        """The numbers at this hash, and perhaps others."""
        slots, mask, wanted = self._slots, len(self._slots) - 1, hash & _HASH
        at, numbers = hash & mask, []
        while (found := slots[at]) != _FREE:
            if found >> _NUMBER_BITS == wanted and found != _GONE:
                numbers.append((found & _NUMBER) - 2)
            at = at + 1 & mask
        return numbers

    def numbers(self) -> set[int]:
        """All that are anywhere."""
        return {(word & _NUMBER) - 2 for word in self._words()}

    def _words(self) -> Iterator[int]:
        return (word for word in self._slots if word > _GONE)

    def _make_anew(self, more: int) -> None:
        """With room for so many more, and nothing that has gone."""
        words, size = list(self._words()), _SMALLEST
        while size < 2 * (len(words) + more):
            size *= 2
        slots, mask = array("Q", [_FREE]) * size, size - 1
        for word in words:
            at = word >> _NUMBER_BITS & mask
            while slots[at]:
                at = at + 1 & mask
            slots[at] = word
        self._slots, self._used = slots, len(words)
