"""What agents have rejected, as they report it: the operator sees sums by server.

An agent counts from nothing when it starts. The sum of a server goes on from life to life of its agent, and
never down.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from retinue.controller.errors import no_server
from retinue.core.limits import LARGEST_COUNT
from retinue.core.model import Network
from retinue.security.listener.rejections import Rejection


@dataclass
class _Counts:
    since: float
    """When the agent's present life began, by its own clock; each life has another."""
    now: Counter[str] = field(default_factory=Counter)
    before: Counter[str] = field(default_factory=Counter)
    """Of its earlier lives."""


class AgentRejections:
    """Kept for registered servers, and in memory: agents report again to a controller that has restarted."""

    def __init__(self, net: Network) -> None:
        self._net = net
        self._counts: dict[str, _Counts] = {}

    def on_report(self, server: str, since: float, rejected: Mapping[Rejection, int]) -> None:
        """An agent's totals since it started. Raises RequestError for a server that is not there."""
        if server not in self._net.servers:
            raise no_server(server)
        self._counts = {id: counts for id, counts in self._counts.items() if id in self._net.servers}
        counts = self._counts.setdefault(server, _Counts(since))
        if counts.since != since:
            counts.since, counts.before, counts.now = since, _sum(counts), Counter()
        counts.now |= Counter({str(reason): count for reason, count in rejected.items()})

    def totals(self) -> dict[str, dict[str, int]]:
        """By server and reason; only what has happened."""
        found = {id: _sum(self._counts[id]) for id in sorted(self._counts) if id in self._net.servers}
        return {id: dict(sorted(counts.items())) for id, counts in found.items() if counts}


def _sum(counts: _Counts) -> Counter[str]:
    added = counts.before + counts.now
    return Counter({reason: min(count, LARGEST_COUNT) for reason, count in added.items()})
