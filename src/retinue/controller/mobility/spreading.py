"""The domain spreads its VMs unasked: one move at a time, while its servers' loads are too far apart.

Off unless the operator says how far they may be apart (`placement.spread_percent`), all the time for how long
(`placement.spread_seconds`). Which move is the next is what `retinue domain rebalance` would do first; it is
judged as any other wish is, and kept with what was measured.
"""

import asyncio
import contextlib

from retinue.controller.context import Context
from retinue.controller.migrations.requests import MigrationError
from retinue.controller.mobility.manager import DOMAIN, MobilityManager
from retinue.core.placement import Metric, Reason, Wish

LOOK_SECONDS = 30.0
"""Between two looks: each makes a plan for the whole domain."""


class SpreadWatch:
    """Measures, again and again, how far the fullest server is above the emptiest, and has a VM moved."""

    def __init__(
        self, context: Context, mobility: MobilityManager, percent: int = 0, seconds: int = 300
    ) -> None:
        """`percent`: how far apart loads may be, by the memory that is promised; 0: off."""
        self._context = context
        self._mobility = mobility
        self._threshold, self._seconds = percent * 100, seconds
        self._since: float | None = None
        """Since when they have been farther apart, and a plan has something to mend."""
        self._looking: asyncio.Task[None] | None = None

    def look(self) -> asyncio.Task[None] | None:
        """Once, unless the last look is not over, or what came of it; None: there is nothing to do."""
        under_way = self._looking is not None and not self._looking.done()
        migrations = self._context.state.migrations.under_way()
        if not self._threshold or under_way or any(True for _ in migrations):
            return None
        self._looking = self._context.spawn(self._look(), "spreading VMs")
        return self._looking

    async def _look(self) -> None:
        plan = await self._mobility.plan(Metric.MEMORY, self._threshold)
        now = self._context.clock()
        if not plan.steps or plan.imbalance_before <= self._threshold:
            # A plan may also bring VMs apart that only should be: that alone was not asked for.
            self._since = None
            return
        since = self._since = now if self._since is None else self._since
        if now - since < self._seconds:
            return
        self._since, step = None, plan.steps[0]
        wish = Wish(Reason.UTILISATION, plan.imbalance_before, self._threshold, int(now - since))
        with contextlib.suppress(MigrationError):  # It was told, with the reason: the VM stays.
            await self._mobility.migrate(step.vm, wish, DOMAIN, named=step.target)
