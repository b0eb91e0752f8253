"""How good a server would be for a VM: each measure with its raw value, its points and its weight."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from retinue.core.placement.snapshot import WHOLE, ServerState, Snapshot, share

FARTHEST = 500
"""Hundredths of switches between two servers of a leaf-spine fabric: edge, leaf, spine, leaf, edge."""
UNKNOWN = WHOLE // 2
"""Points where a server does not say what others say: neither for it nor against it."""


class Measure(StrEnum):
    MEMORY = "memory"
    """The share of its memory that would not be promised to any VM; raw: in MiB."""
    CPU = "cpu"
    """The share of its processors' time that is idle, less the share in which something waits for one; raw:
    in hundredths of a per cent."""
    BANDWIDTH = "bandwidth"
    """The share of its uplink's bandwidth that would be free; raw: in Mbit/s."""
    DISTANCE = "distance"
    """How near it is to the VM's clients; raw: hundredths of switches on the way, on average."""
    IMAGE = "image"
    """Whether it holds the image of the VM; raw: 1 or 0."""


@dataclass(frozen=True, slots=True)
class Score:
    measure: Measure
    raw: int | None
    """See Measure; None where the server does not say."""
    points: int
    """0 to 10,000: shown as 0 to 100."""
    weight: int

    @property
    def counts(self) -> int:
        return self.points * self.weight


def meaningful(snapshot: Snapshot) -> frozenset[Measure]:
    """The measures that mean something for this VM among these servers, and that the operator has count."""
    need, weights, servers = snapshot.need, snapshot.policy.weights, snapshot.servers
    means = {
        Measure.MEMORY: True,
        Measure.CPU: True,
        Measure.BANDWIDTH: need.bandwidth_mbps > 0 or any(one.bandwidth_mbps for one in servers),
        Measure.DISTANCE: any(one.distance is not None for one in servers),
        Measure.IMAGE: bool(need.image),
    }
    return frozenset(measure for measure, so in means.items() if so and getattr(weights, measure) > 0)


def scores(server: ServerState, snapshot: Snapshot, wanted: frozenset[Measure]) -> tuple[Score, ...]:
    """A server's score by each measure that is wanted: the same ones for every server of a snapshot."""
    return tuple(score for score in _scores(server, snapshot) if score.measure in wanted)


def _scores(server: ServerState, snapshot: Snapshot) -> Iterator[Score]:
    need, weights = snapshot.need, snapshot.policy.weights
    # What its VMs are promised has the VM in question in it at the source, and nowhere else.
    more = 0 if server.server == snapshot.source else 1
    room = server.memory_mib * snapshot.policy.memory_percent // 100
    left = room - server.promised_mib - more * need.memory_mib
    points = share(left, room) if room else UNKNOWN
    yield Score(Measure.MEMORY, left if room else None, points, weights.memory)
    idle = None if server.cpu_used is None else WHOLE - server.cpu_used - server.cpu_pressure
    yield Score(Measure.CPU, idle, UNKNOWN if idle is None else share(idle, WHOLE), weights.cpu)
    free = server.bandwidth_mbps - server.bandwidth_used_mbps - more * need.bandwidth_mbps
    known = server.bandwidth_mbps > 0
    points = share(free, server.bandwidth_mbps) if known else UNKNOWN
    yield Score(Measure.BANDWIDTH, free if known else None, points, weights.bandwidth)
    far = server.distance
    points = UNKNOWN if far is None else share(FARTHEST - far, FARTHEST)
    yield Score(Measure.DISTANCE, far, points, weights.distance)
    held = int(need.image in server.images)
    yield Score(Measure.IMAGE, held, held * WHOLE, weights.image)


def total(found: tuple[Score, ...]) -> int:
    """The weighted mean of the points, 0 to 10,000; UNKNOWN where nothing counts."""
    weight = sum(score.weight for score in found)
    return UNKNOWN if not weight else sum(score.counts for score in found) // weight
