"""What agents have refused at their own doors: each tells its counts, the operator sees sums by server. Pure.

An agent counts from nothing when it starts, and tells totals, so that one told twice does no harm. The sum of
a server goes on from life to life of its agent, and never down.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from retinue.model import ModelError, Network

MOST = (1 << 53) - 1
"""No count is higher: the largest integer that every reader of JSON reads exactly (RFC 8259, section 6)."""


class Refusal(StrEnum):
    """Why an agent did not let somebody in at the address where VMs are brought to it."""

    TLS = "tls"
    """The handshake failed, or took too long."""
    CROWDED = "crowded"
    """Too many newer connections were in the handshake."""
    IDENTITY = "identity"
    """The certificate is not an agent's."""
    SILENT = "silent"
    """Did not say in time which move it brings."""
    GONE = "gone"
    """Hung up before it had said so."""
    GARBAGE = "garbage"
    """Said what is not agreed."""
    NOT_EXPECTED = "not expected"
    """Brings a move that is not expected here, or has come in already."""
    WRONG_SERVER = "wrong server"
    """The move is expected, but from another server."""
    CALLED_OFF = "called off"
    """The move was called off as it came in."""


@dataclass
class _Counts:
    since: float
    """When the agent's present life began, by its own clock; each life has another."""
    now: Counter[str] = field(default_factory=Counter)
    before: Counter[str] = field(default_factory=Counter)
    """Of its earlier lives."""


class AgentRefusals:
    """Kept for servers that there are, and in memory: agents tell a controller that has started again."""

    def __init__(self, net: Network) -> None:
        self._net = net
        self._counts: dict[str, _Counts] = {}

    def says(self, server: str, since: float, refused: Mapping[Refusal, int]) -> None:
        """An agent's totals since it started. Raises ModelError for a server that is not there."""
        if server not in self._net.servers:
            raise ModelError(f"there is no server {server}; `retinue server list` shows those there are")
        self._counts = {id: counts for id, counts in self._counts.items() if id in self._net.servers}
        counts = self._counts.setdefault(server, _Counts(since))
        if counts.since != since:
            counts.since, counts.before, counts.now = since, _sum(counts), Counter()
        counts.now |= Counter({str(reason): count for reason, count in refused.items()})

    def totals(self) -> dict[str, dict[str, int]]:
        """By server and reason; only what has happened."""
        found = {id: _sum(self._counts[id]) for id in sorted(self._counts) if id in self._net.servers}
        return {id: dict(sorted(counts.items())) for id, counts in found.items() if counts}


def _sum(counts: _Counts) -> Counter[str]:
    added = counts.before + counts.now
    return Counter({reason: min(count, MOST) for reason, count in added.items()})
