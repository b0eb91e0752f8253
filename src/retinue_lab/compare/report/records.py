"""What one run of numbered traffic shows, each direction by itself. Pure: from records to figures.

The client's record and the guest's report are those of guest/steady.c. All times of the client's side, and
the moments at which the VM was paused and resumed, are of one clock: they are on one machine.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from retinue_lab.measure.figures import NS_PER_MS, sort_out

CUT_OFF_MS = 1000.0
"""A receiver that received nothing for so long before the end of a run is cut off."""


class TrafficRecordError(Exception):
    """A record is not of the form agreed; the message shows where."""


class Reply(NamedTuple):
    number: int
    at: int
    counter: int
    """How many requests had reached the guest before this one."""


class Streamed(NamedTuple):
    """A datagram of the guest's own stream."""

    number: int
    at: int
    guest_time: int
    """By the guest's clock, which is paused when the guest is."""


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """What the client saw, in the order in which it happened."""

    sent: Sequence[int]
    """Time of each request, by number."""
    replies: Sequence[Reply]
    streamed: Sequence[Streamed]

    @classmethod
    def parse(cls, lines: Iterable[str]) -> "ClientRecord":
        """Raises RecordError."""
        sent: list[int] = []
        replies: list[Reply] = []
        streamed: list[Streamed] = []
        for line in lines:
            try:
                match line.split():
                    case ["S", at]:
                        sent.append(int(at))
                    case ["R", number, at, counter]:
                        replies.append(Reply(int(number), int(at), int(counter)))
                    case ["V", number, at, guest_time]:
                        streamed.append(Streamed(int(number), int(at), int(guest_time)))
                    case _:
                        raise ValueError
            except ValueError:
                raise TrafficRecordError(f"not a line of a record: {line.strip()[:80]!r}") from None
        return cls(sent, replies, streamed)


@dataclass(frozen=True, slots=True)
class GuestReport:
    """What the guest saw of the requests, and sent by itself."""

    received: int
    duplicated: int
    reordered: int
    sent: int
    widest_ms: float
    """Longest time between two datagrams of its own stream, by its own clock: how steady it is."""
    missing: Sequence[tuple[int, int]] = ()
    """Ranges of requests (first and last) that never came, below the highest that did."""

    @classmethod
    def parse(cls, text: str) -> "GuestReport":
        """Raises RecordError."""
        values: dict[str, int] = {}
        missing: list[tuple[int, int]] = []
        for line in text.splitlines():
            try:
                match line.split():
                    case ["missing", first, last]:
                        missing.append((int(first), int(last)))
                    case [name, value]:
                        values[name] = int(value)
                    case _:
                        raise ValueError
            except ValueError:
                raise TrafficRecordError(f"not a line of a guest's report: {line[:80]!r}") from None
        try:
            counts = (values["received"], values["duplicated"], values["reordered"], values["sent"])
            return cls(*counts, values["widest"] / NS_PER_MS, missing)
        except KeyError as error:
            raise TrafficRecordError(f"a guest's report without {error}: {text[:200]!r}") from None

    def reached(self, number: int) -> bool:
        """Whether this request came."""
        above = self.received + sum(last - first + 1 for first, last in self.missing)
        return number < above and not any(first <= number <= last for first, last in self.missing)


class Figures(msgspec.Struct, frozen=True):
    """One direction of one run. Counts are of datagrams."""

    pps: int
    sent: int
    received: int
    lost: int
    lost_after_resume: int
    """Of those sent after the VM was resumed at the target, how many were lost."""
    duplicated: int
    reordered: int
    longest_gap_ms: float
    """Longest silence at the client: between two arrivals, or from the last one to the end of sending."""
    tcp_survived: bool | None
    """None: no TCP connection was held in this run."""
    sent_after_resume: int
    cut_off: bool
    """The client received nothing any more."""
    answers_lost: int = 0
    """Requests that reached the VM and whose reply was lost on the way back; client to VM only."""
    longest_send_gap_ms: float = 0.0
    """Longest time between two datagrams at the sender: what is not the network's."""


def client_to_vm(pps: int, client: ClientRecord, guest: GuestReport, resumed_at: float) -> Figures:
    """Requests: lost, doubled and reordered as the guest saw it; the gap is between replies.

    `resumed_at` is in seconds since the epoch; 0 where the VM did not move.
    """
    resumed = round(resumed_at * 1e9)
    replied = {reply.number for reply in client.replies}
    lost = [
        at for number, at in enumerate(client.sent) if number not in replied and not guest.reached(number)
    ]
    first: dict[int, int] = {}
    for reply in client.replies:
        first.setdefault(reply.number, reply.at)
    gap, cut_off = _silence(list(first.values()), client.sent[-1] if client.sent else 0)
    return Figures(
        pps=pps,
        sent=len(client.sent),
        received=len(client.sent) - len(lost),
        lost=len(lost),
        lost_after_resume=sum(at > resumed for at in lost) if resumed else 0,
        duplicated=guest.duplicated,
        reordered=guest.reordered,
        longest_gap_ms=gap,
        tcp_survived=None,
        sent_after_resume=sum(at > resumed for at in client.sent) if resumed else 0,
        cut_off=cut_off,
        answers_lost=len(client.sent) - len(lost) - len(replied),
        longest_send_gap_ms=_widest(client.sent),
    )


def vm_to_client(pps: int, client: ClientRecord, guest: GuestReport, resumed_at: float) -> Figures:
    """The VM's own stream: lost, doubled and reordered as the client saw it."""
    first, duplicated, reordered = sort_out((streamed.number, streamed) for streamed in client.streamed)
    lost = [number for number in range(guest.sent) if number not in first]
    end = client.sent[-1] if client.sent else 0
    gap, cut_off = _silence([streamed.at for streamed in first.values()], end)
    later = [streamed for streamed in first.values() if streamed.at > resumed_at * 1e9]
    lost_later = _sent_after(lost, first, pps, resumed_at)
    return Figures(
        pps=pps,
        sent=guest.sent,
        received=len(first),
        lost=len(lost),
        lost_after_resume=lost_later if resumed_at else 0,
        duplicated=duplicated,
        reordered=reordered,
        longest_gap_ms=gap,
        tcp_survived=None,
        sent_after_resume=len(later) + lost_later if resumed_at else 0,
        cut_off=cut_off,
        longest_send_gap_ms=guest.widest_ms,
    )


def _sent_after(lost: Sequence[int], first: dict[int, Streamed], pps: int, resumed_at: float) -> int:
    """How many of the lost numbers the VM sent after it was resumed.

    When it sent them was not observed. It sends evenly by a clock that is paused with it, so the time is
    reckoned back from the next datagram that came. When none came any more, all after the last that did are
    taken as sent afterwards, but for what fits between that one and the moment it was resumed.
    """
    resumed, step = resumed_at * 1e9, 1e9 / pps
    known = sorted(first)
    found = 0
    position = 0
    for number in lost:
        while position < len(known) and known[position] < number:
            position += 1
        if position < len(known):
            after = first[known[position]]
            found += after.at - (after.number - number) * step > resumed
        elif known:
            last = first[known[-1]]
            found += last.at + (number - last.number) * step > resumed
        else:
            found += 1
    return found


def _silence(times: Sequence[int], end: int) -> tuple[float, bool]:
    """The longest gap in ms, and whether the silence lasted to the end of sending."""
    if not times:
        return 0.0, True
    ordered = sorted(times)
    last = (end - ordered[-1]) / NS_PER_MS
    cut_off = last > CUT_OFF_MS
    return max(_widest(ordered), last if cut_off else 0.0), cut_off


def _widest(times: Sequence[int]) -> float:
    return max((b - a for a, b in itertools.pairwise(times)), default=0) / NS_PER_MS


class Dot(NamedTuple):
    """A request around the moment at which the VM was resumed."""

    at_ms: float
    answer_ms: float | None
    """How long its reply took; None: none came."""


def around(client: ClientRecord, resumed_at: float, before_ms: float, after_ms: float) -> list[Dot]:
    """The requests sent from `before_ms` before until `after_ms` after the VM was resumed."""
    resumed = round(resumed_at * 1e9)
    first: dict[int, int] = {}
    for reply in client.replies:
        first.setdefault(reply.number, reply.at)
    dots = []
    for number, sent in enumerate(client.sent):
        at = (sent - resumed) / NS_PER_MS
        if -before_ms <= at <= after_ms:
            answer = (first[number] - sent) / NS_PER_MS if number in first else None
            dots.append(Dot(round(at, 2), None if answer is None else round(answer, 2)))
    return dots
