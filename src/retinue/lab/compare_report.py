"""What a comparison has measured: its form in build/compare.json, and its summaries. Pure."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from retinue.lab.compare_records import Dot, Figures

Direction = Literal["client-to-vm", "vm-to-client"]
DIRECTIONS: tuple[Direction, ...] = ("client-to-vm", "vm-to-client")
WAYS: dict[Direction, str] = {"client-to-vm": "to VM", "vm-to-client": "from VM"}
"""For people."""


class MoveRow(msgspec.Struct, frozen=True, rename={"source": "from", "target": "to"}):
    """One direction of one move, with the fields of demo_report.MoveFigures. None: the system has no such."""

    vm: str
    source: str
    target: str
    system: str
    direction: Direction
    size: int
    """Octets of payload in each datagram."""
    run: int
    """From 1; both directions of a move have the same number."""
    traffic: Figures
    guest_pause_ms: float
    """From STOP at the source to RESUME at the target."""
    gap_minus_pause_ms: float
    total_ms: float
    """From the order to move until the source was free."""
    idle_percent: float
    """Of this machine's processors, during the run."""
    switch_drops: int = 0
    """Frames that the lab's switches did not fetch from their ports in time, in the whole run; see
    compare_bench.drops. They are this machine's fault, not the system's."""
    flow_mods: int | None = None
    packet_ins: int | None = None
    control_ms: float | None = None
    bindings_before: list[dict[str, Any]] = []
    bindings_after: list[dict[str, Any]] = []
    switch: str | None = None
    port: int | None = None


class NoiseRow(msgspec.Struct, frozen=True):
    """The same traffic for the same time, and no move."""

    system: str
    direction: Direction
    size: int
    run: int
    traffic: Figures
    idle_percent: float


class TcpRow(msgspec.Struct, frozen=True, rename={"source": "from", "target": "to"}):
    """A move under one TCP bulk stream, client to VM. `run` 0 is without a move."""

    system: str
    source: str
    target: str
    run: int
    tcp_survived: bool
    longest_stall_ms: float
    """Longest time without an acknowledgement at the client."""
    megabits: float
    """Carried a second, on the average."""
    retransmits: int
    guest_pause_ms: float
    stall_minus_pause_ms: float
    idle_percent: float


class Failure(msgspec.Struct, frozen=True):
    """A run that could not be carried out; it is in no figure."""

    system: str
    what: str
    reason: str


class SystemRow(msgspec.Struct, frozen=True):
    name: str
    available: bool
    how: str
    """How it was set up."""
    reason: str = ""
    """Why it is not available."""
    versions: dict[str, str] = {}


class Trace(msgspec.Struct, frozen=True):
    """Requests of one run around the moment the VM ran on, for the picture."""

    system: str
    pps: int
    size: int
    run: int
    pause_ms: float
    dots: list[Dot]


class Spread(msgspec.Struct, frozen=True):
    median: float
    min: float
    max: float


NOTHING = Spread(0.0, 0.0, 0.0)


class Summary(msgspec.Struct, frozen=True):
    """Of all rows of a system, or of those of one direction, rate and size; those are None for "all"."""

    system: str
    direction: Direction | None
    pps: int | None
    size: int | None
    rows: int
    cut_off: int
    """Rows in which the client heard no more of the VM."""
    lost: Spread
    lost_after_resume: Spread
    duplicated: Spread
    reordered: Spread
    longest_gap_ms: Spread
    gap_minus_pause_ms: Spread
    guest_pause_ms: Spread
    answers_lost: Spread = NOTHING
    switch_drops: Spread = NOTHING
    idle_percent: Spread = NOTHING


class Settings(msgspec.Struct, frozen=True):
    runs: int
    pps: list[int]
    sizes: list[int]


class Report(msgspec.Struct, frozen=True):
    schema: Literal[1]
    measured_at: float
    versions: dict[str, str]
    processors: int
    settings: Settings
    systems: list[SystemRow]
    moves: list[MoveRow]
    noise: list[NoiseRow]
    tcp: list[TcpRow]
    summaries: list[Summary]
    unmet: list[str]
    """What retinue was to show and did not, a sentence each (compare_wanted)."""
    met: list[str] = []
    """What it did show."""
    unjudged: list[str] = []
    """What nobody can tell, as there is nothing to compare it with."""
    failures: list[Failure] = []
    traces: list[Trace] = []


def encode(report: Report) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report)) + b"\n"


def decode(data: bytes) -> Report:
    """Raises msgspec.ValidationError or DecodeError."""
    return msgspec.json.decode(data, type=Report)


# ---- summaries ----


def summaries(moves: Sequence[MoveRow]) -> list[Summary]:
    """For each system one of everything, then one for each direction, rate and size."""
    found = []
    for system in dict.fromkeys(row.system for row in moves):
        rows = [row for row in moves if row.system == system]
        found.append(_summary(system, None, None, None, rows))
        kinds = sorted({(row.traffic.pps, row.size, row.direction) for row in rows})
        for pps, size, direction in kinds:
            having = [
                row for row in rows if (row.traffic.pps, row.size, row.direction) == (pps, size, direction)
            ]
            found.append(_summary(system, direction, pps, size, having))
    return found


def _summary(
    system: str, direction: Direction | None, pps: int | None, size: int | None, rows: Sequence[MoveRow]
) -> Summary:
    return Summary(
        system=system,
        direction=direction,
        pps=pps,
        size=size,
        rows=len(rows),
        cut_off=sum(row.traffic.cut_off for row in rows),
        lost=spread(row.traffic.lost for row in rows),
        lost_after_resume=spread(row.traffic.lost_after_resume for row in rows),
        duplicated=spread(row.traffic.duplicated for row in rows),
        reordered=spread(row.traffic.reordered for row in rows),
        longest_gap_ms=spread(row.traffic.longest_gap_ms for row in rows),
        gap_minus_pause_ms=spread(row.gap_minus_pause_ms for row in rows),
        guest_pause_ms=spread(row.guest_pause_ms for row in rows),
        answers_lost=spread(row.traffic.answers_lost for row in rows),
        switch_drops=spread(row.switch_drops for row in rows),
        idle_percent=spread(row.idle_percent for row in rows),
    )


def spread(values: Iterable[float]) -> Spread:
    """`values` must not be empty."""
    found = list(values)
    return Spread(*(round(value, 2) for value in (statistics.median(found), min(found), max(found))))
