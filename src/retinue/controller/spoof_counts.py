"""All frames dropped as spoofed, by switch and reason, from the switches' own counters.

Each switch is asked for one sum over all its entries that count. Only where it is another than the last time
are the entries read, each with its own count. While nobody sends spoofed frames nothing is read, however many
VMs there are.
"""

import asyncio
from collections import Counter

from retinue.controller.context import Context
from retinue.controller.counters import Count
from retinue.controller.flood_counts import FloodCounts
from retinue.controller.switches.readback import SwitchSession
from retinue.core.model import Role
from retinue.core.pipeline.cookies import SPOOFING_COOKIE, SPOOFING_COOKIE_MASK, Reason, reason_of
from retinue.core.pipeline.entry import FlowKey
from retinue.southbound.openflow.server import Rejected

ASKED_A_SECOND = 100
"""Switches that are asked within a second; where there are more they take turns."""


class SpoofCounts:
    """The sums; they never go down, though an entry that is made anew counts from nothing."""

    def __init__(self, context: Context, floods: FloodCounts) -> None:
        self.frames: Counter[tuple[str, Reason]] = Counter()
        self._context = context
        self._floods = floods
        self._sums: dict[str, int] = {}
        """By switch: what all its entries together had counted when they were read."""
        self._before: dict[str, dict[FlowKey, int]] = {}
        """By switch and entry: what was read last."""
        self._asking: set[str] = set()
        """Switches that have been asked, and have not answered."""
        self._turns: dict[str, int] = {}
        """By switch: how often it has been asked."""

    def begin(self) -> list[asyncio.Task[None]]:
        """To be called once a second. Each switch answers for itself: one that does not holds up no other."""
        switches = self._context.net.switches
        sessions = self._context.sessions()
        counting = (name for name in sessions if switches[name].role in (Role.LEAF, Role.EDGE))
        free = [name for name in counting if name not in self._asking]
        chosen = sorted(free, key=lambda name: self._turns.get(name, 0))[:ASKED_A_SECOND]
        for name in chosen:
            self._asking.add(name)
            self._turns[name] = self._turns.get(name, 0) + 1
        return [self._context.spawn(self._ask(one, sessions[one]), f"counts of {one}") for one in chosen]

    async def _ask(self, switch: str, session: SwitchSession) -> None:
        try:
            total = await session.read_packets(SPOOFING_COOKIE, SPOOFING_COOKIE_MASK)
            if total != self._sums.get(switch, 0):
                await self._read(switch, session)
                self._sums[switch] = total
            await self._floods.read(switch, session)
        except (ConnectionError, TimeoutError, Rejected):
            self._context.counters[Count.SPOOFED_NOT_COUNTED] += 1
        finally:
            self._asking.discard(switch)

    async def _read(self, switch: str, session: SwitchSession) -> None:
        found = await session.read_flows(SPOOFING_COOKIE, SPOOFING_COOKIE_MASK)
        before = self._before.get(switch, {})
        self._before[switch] = {stats.flow.key: stats.packets for stats in found if stats.packets}
        for stats in found:
            reason = reason_of(stats.flow.cookie)
            more = stats.packets - min(before.get(stats.flow.key, 0), stats.packets)
            if reason is Reason.UNROUTABLE:
                self._context.counters[Count.UNROUTABLE] += more
            elif reason is not None and more:
                self.frames[switch, reason] += more
