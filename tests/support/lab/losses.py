"""When requests of a measurement got lost, or were overtaken."""

import itertools
from collections.abc import Iterable

from retinue_lab.measure.figures import Arrival, Record, as_received


def lost_spans(record: Record) -> list[tuple[float, float, int]]:
    """Runs of requests without reply: when the first and the last were sent (seconds), and how many."""
    seen = {arrival.sequence for arrival in record.arrivals}
    lost = [sequence for sequence in range(len(record.sent)) if sequence not in seen]
    spans = []
    for _, group in itertools.groupby(enumerate(lost), lambda item: item[1] - item[0]):
        run = [sequence for _, sequence in group]
        spans.append((record.sent[run[0]] / 1e9, record.sent[run[-1]] / 1e9, len(run)))
    return spans


def overtaken(record: Record) -> list[float]:
    """When the requests were sent (seconds) whose first reply came after the reply to a later request."""
    return [record.sent[sequence] / 1e9 for sequence in _late(record.arrivals)]


def overtaken_requests(record: Record) -> set[float]:
    """Those of them that the guest itself got after a later one; the others were overtaken as replies."""
    return {record.sent[sequence] / 1e9 for sequence in _late(as_received(record.arrivals))}


def _late(arrivals: Iterable[Arrival]) -> list[int]:
    highest, seen, late = -1, set[int](), []
    for sequence in (arrival.sequence for arrival in arrivals):
        if sequence not in seen and sequence < highest:
            late.append(sequence)
        seen.add(sequence)
        highest = max(highest, sequence)
    return late
