"""Prefixes, found by an address or by what overlaps them, however many there are."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from retinue.core.model.addresses import IP, Prefix

Entry = tuple[Prefix, str]
"""A prefix, and whose it is."""


@dataclass
class PrefixIndex:
    """The caller sees to it that no two overlap."""

    _entries: dict[tuple[int, int], Entry] = field(default_factory=dict)
    """By IP version and first address."""
    _firsts: dict[int, list[int]] = field(default_factory=dict)
    """By IP version: the first addresses, sorted."""

    def __bool__(self) -> bool:
        return bool(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        """In the order in which they were put there."""
        return iter(self._entries.values())

    def put(self, prefix: Prefix, whose: str) -> None:
        key = _key(prefix)
        if key not in self._entries:
            insort(self._firsts.setdefault(prefix.version, []), key[1])
        self._entries[key] = prefix, whose

    def discard(self, prefix: Prefix) -> None:
        """What is not there need not go."""
        version, first = _key(prefix)
        found = self._entries.get((version, first))
        if found is not None and found[0] == prefix:
            del self._entries[version, first]
            firsts = self._firsts[version]
            del firsts[bisect_left(firsts, first)]

    def at(self, ip: IP) -> Entry | None:
        """The one with this address."""
        return next(self._between(ip.version, int(ip), int(ip)), None)

    def overlapping(self, prefix: Prefix) -> Iterator[Entry]:
        """Those with an address of this prefix, by their addresses."""
        return self._between(prefix.version, _key(prefix)[1], int(prefix.broadcast_address))

    def _between(self, version: int, first: int, last: int) -> Iterator[Entry]:
        firsts = self._firsts.get(version, [])
        at = bisect_right(firsts, first)
        if at and int(self._entries[version, firsts[at - 1]][0].broadcast_address) >= first:
            at -= 1
        while at < len(firsts) and firsts[at] <= last:
            yield self._entries[version, firsts[at]]
            at += 1


@dataclass
class NestedPrefixes:
    """Prefixes of which some may be parts of others, each once."""

    _found: dict[tuple[int, int, int], Prefix] = field(default_factory=dict)
    """By IP version, first address and length."""
    _sorted: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """By IP version: first addresses and lengths, sorted."""

    def put(self, prefix: Prefix) -> None:
        key = (*_key(prefix), prefix.prefixlen)
        if key not in self._found:
            self._found[key] = prefix
            insort(self._sorted.setdefault(prefix.version, []), key[1:])

    def discard(self, prefix: Prefix) -> None:
        """What is not there need not go."""
        key = (*_key(prefix), prefix.prefixlen)
        if self._found.pop(key, None) is not None:
            known = self._sorted[prefix.version]
            del known[bisect_left(known, key[1:])]

    def inside(self, prefix: Prefix) -> Iterator[Prefix]:
        """Those that are part of this one, or the same, by their addresses."""
        version, first = _key(prefix)
        known, last = self._sorted.get(version, []), int(prefix.broadcast_address)
        at = bisect_left(known, (first, prefix.prefixlen))  # A larger one with this address is before.
        while at < len(known) and known[at][0] <= last:
            yield self._found[(version, *known[at])]
            at += 1


def _key(prefix: Prefix) -> tuple[int, int]:
    return prefix.version, int(prefix.network_address)
