"""What a measurement of echo traffic shows. Pure: from what was sent and what came back, to figures.

All times are nanoseconds since the epoch, of one clock: the sender's and receiver's machine is the same.
"""

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

NS_PER_MS = 1_000_000

T = TypeVar("T")


class Arrival(NamedTuple):
    """One reply, in the order of arrival."""

    sequence: int
    at: int
    counter: int
    """How many datagrams of this run the guest had received before the one it answers."""


class StreamMessage(NamedTuple):
    """One message on the TCP stream and its echo; `answered` is 0 when none came."""

    sent: int
    answered: int


@dataclass(frozen=True, slots=True)
class Record:
    """Everything that was observed in one run."""

    pps: int
    sent: Sequence[int]
    """Time of sending, by sequence number."""
    arrivals: Sequence[Arrival]
    messages: Sequence[StreamMessage] = ()
    tcp_broken: str = ""
    """Why the TCP connection ended before its time; "" if it did not."""

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "Record":
        raw = json.loads(path.read_text())
        arrivals = [Arrival(*item) for item in raw["arrivals"]]
        messages = [StreamMessage(*item) for item in raw["messages"]]
        return cls(raw["pps"], raw["sent"], arrivals, messages, raw["tcp_broken"])

    def lost_after(self, at: float) -> int:
        """How many of the requests sent after `at` (seconds since the epoch) got no reply."""
        seen = {arrival.sequence for arrival in self.arrivals}
        return sum(sent > at * 1e9 and sequence not in seen for sequence, sent in enumerate(self.sent))


@dataclass(frozen=True, slots=True)
class Traffic:
    """The figures of one run. Counts are of datagrams."""

    pps: int
    sent: int
    received: int
    """Different requests that were answered."""
    lost: int
    lost_requests: int
    """Of the lost: those the guest never saw. The rest are replies that went missing."""
    duplicated: int
    """Replies beyond the first to the same request."""
    reordered: int
    """First replies that came after the reply to a later request."""
    reordered_requests: int
    """Requests that the guest got after a later one. What else is reordered was overtaken as a reply."""
    longest_gap_ms: float
    """Longest time without any reply, between two replies."""
    longest_answer_ms: float
    """Longest time from a request to its first reply."""
    achieved_pps: float
    """What the sender really sent a second."""
    tcp_messages: int
    tcp_survived: bool | None
    """None when no stream was held."""
    tcp_longest_stall_ms: float
    """Longest time from a message on the stream to its echo."""
    tcp_problem: str = ""


def analyse(record: Record) -> Traffic:
    first, duplicated, reordered = sort_out((arrival.sequence, arrival) for arrival in record.arrivals)
    lost = len(record.sent) - len(first)
    times = [arrival.at for arrival in first.values()]
    gaps = (later - earlier for earlier, later in itertools.pairwise(times))
    delays = (arrival.at - record.sent[sequence] for sequence, arrival in first.items())
    span = record.sent[-1] - record.sent[0] if len(record.sent) > 1 else 0
    answered = [m.answered - m.sent for m in record.messages if m.answered]
    return Traffic(
        pps=record.pps,
        sent=len(record.sent),
        received=len(first),
        lost=lost,
        lost_requests=max(0, lost - _lost_replies(record.arrivals)),
        duplicated=duplicated,
        reordered=reordered,
        reordered_requests=sort_out((arrival.sequence, arrival) for arrival in as_received(record.arrivals))[
            2
        ],
        longest_gap_ms=max(gaps, default=0) / NS_PER_MS,
        longest_answer_ms=max(delays, default=0) / NS_PER_MS,
        achieved_pps=(len(record.sent) - 1) / (span / 1e9) if span else 0.0,
        tcp_messages=len(record.messages),
        tcp_survived=_tcp_survived(record),
        tcp_longest_stall_ms=max(answered, default=0) / NS_PER_MS,
        tcp_problem=record.tcp_broken,
    )


def sort_out(arrivals: Iterable[tuple[int, T]]) -> tuple[dict[int, T], int, int]:
    """Of numbered arrivals the first of each number, how many came again, and how many after a later one."""
    first: dict[int, T] = {}
    reordered = duplicated = 0
    highest = -1
    for number, arrival in arrivals:
        if number in first:
            duplicated += 1
            continue
        first[number] = arrival
        reordered += number < highest
        highest = max(highest, number)
    return first, duplicated, reordered


def as_received(arrivals: Iterable[Arrival]) -> list[Arrival]:
    """In the order in which the guest got the requests that they answer."""
    return sorted(arrivals, key=lambda arrival: arrival.counter)


def _lost_replies(arrivals: Sequence[Arrival]) -> int:
    """Requests the guest counted of which no reply came. Those after the last reply are not known."""
    seen = {arrival.counter for arrival in arrivals}
    return max(seen) + 1 - len(seen) if seen else 0


def _tcp_survived(record: Record) -> bool | None:
    if not record.messages and not record.tcp_broken:
        return None
    return not record.tcp_broken and all(message.answered for message in record.messages)
