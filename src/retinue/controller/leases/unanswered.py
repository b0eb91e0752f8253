"""VMs that ask by DHCP, and whom nobody answers: a pool is used up, or no server is there.

Nothing else tells of that: a server that has no address left says nothing, and a guest that asks is no fault.
"""

from dataclasses import dataclass

from retinue.core.packets.dhcp import MessageType

ASKS = frozenset({MessageType.DISCOVER, MessageType.REQUEST})
MANY = 3
"""Questions without an answer, from which on it is said: one or two get lost, or are answered late."""
OVER = 10.0
"""Seconds that they take at the least."""
STILL = 300.0
"""Seconds since the last one, after which it is believed to have given up, or to be off."""


@dataclass(slots=True)
class _Asked:
    first: float
    last: float
    times: int


class Unanswered:
    """By VM; of those alone that have asked since they were last answered, and not long ago."""

    def __init__(self) -> None:
        self._asked: dict[str, _Asked] = {}
        """Who has asked last comes last."""

    def asked(self, vm: str, kind: MessageType | None, now: float) -> None:
        if kind not in ASKS:
            return
        before = self._asked.pop(vm, None)
        if before is None or now - before.last > STILL:
            before = _Asked(now, now, 0)
        before.last, before.times = now, before.times + 1
        self._asked[vm] = before
        while now - self._asked[oldest := next(iter(self._asked))].last > STILL:
            del self._asked[oldest]

    def answered(self, vm: str) -> None:
        """By whichever server, whatever it said; or the VM is removed, and another of its name has asked
        nothing."""
        self._asked.pop(vm, None)

    def doubt(self, vm: str, now: float) -> str:
        """A sentence for people; "" where there is nothing to say."""
        asked = self._asked.get(vm)
        if asked is None or asked.times < MANY or asked.last - asked.first < OVER or now - asked.last > STILL:
            return ""
        return (
            f"it has asked by DHCP {asked.times} times in {asked.last - asked.first:.0f} s and "
            "got no answer: do DHCP servers run, are they registered, and have they an address left?"
        )
