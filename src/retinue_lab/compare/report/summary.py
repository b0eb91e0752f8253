"""What a comparison has measured: its form in build/compare.json, and its summaries. Pure."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from retinue_lab.compare.report.records import Dot, Figures

Direction = Literal["client-to-vm", "vm-to-client"]
DIRECTIONS: tuple[Direction, ...] = ("client-to-vm", "vm-to-client")
Guest = Literal["idle", "writing"]
Family = Literal["ipv4", "ipv6"]
FAMILIES: tuple[Family, ...] = ("ipv4", "ipv6")
WAYS: dict[Direction, str] = {"client-to-vm": "to VM", "vm-to-client": "from VM"}
"""For people."""


class MigrationRow(msgspec.Struct, frozen=True, rename={"source": "from", "target": "to"}):
    """One direction of one migration, with the fields of demo.report.MigrationFigures.

    None: the system has no such figure.
    """

    vm: str
    source: str
    target: str
    system: str
    direction: Direction
    size: int
    """Bytes of payload in each datagram."""
    run: int
    """From 1; both directions of a migration have the same number."""
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
    compare.bench.drops. They are this machine's fault, not the system's."""
    guest: Guest = "idle"
    """Whether it wrote to its memory all the time."""
    write_mib_s: int | None = None
    passes: int | None = None
    """Over the VM's memory, before it was paused."""
    content_right: bool | None = None
    """Each page that the guest looked at after the migration had what it had written last."""
    flow_mods: int | None = None
    packet_ins: int | None = None
    control_ms: float | None = None
    bindings_before: list[dict[str, Any]] = []
    bindings_after: list[dict[str, Any]] = []
    switch: str | None = None
    port: int | None = None
    family: Family = "ipv4"
    nic: int = 1
    """Which of the VM's, from 1."""
    flows: int = 1
    """How many streams of such traffic there were at the same time: one for each family and NIC."""


class NoiseRow(msgspec.Struct, frozen=True):
    """The same traffic for the same time, and no migration."""

    system: str
    direction: Direction
    size: int
    run: int
    traffic: Figures
    idle_percent: float
    family: Family = "ipv4"
    nic: int = 1
    flows: int = 1


class TcpRow(msgspec.Struct, frozen=True, rename={"source": "from", "target": "to"}):
    """A migration under one TCP bulk stream, client to VM. `run` 0 is without a migration."""

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
    """Requests of one run around the moment the VM was resumed, for the picture."""

    system: str
    pps: int
    size: int
    run: int
    pause_ms: float
    dots: list[Dot]
    flows: int = 1
    """Of which these are the first's: IPv4, by the VM's first NIC."""


class Spread(msgspec.Struct, frozen=True):
    median: float
    min: float
    max: float


NOTHING = Spread(0.0, 0.0, 0.0)


class Summary(msgspec.Struct, frozen=True):
    """Of all rows of a system, or of those of one direction, rate, size, kind of guest and flow; those are
    None for "all"."""

    system: str
    direction: Direction | None
    pps: int | None
    size: int | None
    rows: int
    cut_off: int
    """Rows in which the client received nothing more from the VM."""
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
    guest: Guest | None = None
    passes: Spread = NOTHING
    family: Family | None = None
    nic: int | None = None
    flows: int | None = None


class ComparisonSettings(msgspec.Struct, frozen=True):
    runs: int
    pps: list[int]
    sizes: list[int]


class ComparisonReport(msgspec.Struct, frozen=True):
    schema: Literal[1]
    measured_at: float
    versions: dict[str, str]
    processors: int
    settings: ComparisonSettings
    systems: list[SystemRow]
    moves: list[MigrationRow]
    noise: list[NoiseRow]
    tcp: list[TcpRow]
    summaries: list[Summary]
    unmet: list[str]
    """Acceptance criteria that retinue did not meet, a sentence each (criteria)."""
    met: list[str] = []
    """Those that it met."""
    unjudged: list[str] = []
    """Those that cannot be judged, as there is nothing to compare with."""
    failures: list[Failure] = []
    traces: list[Trace] = []


def encode(report: ComparisonReport) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report)) + b"\n"


def decode(data: bytes) -> ComparisonReport:
    """Raises msgspec.ValidationError or DecodeError."""
    return msgspec.json.decode(data, type=ComparisonReport)


# ---- summaries ----


def summaries(moves: Sequence[MigrationRow]) -> list[Summary]:
    """For each system one of everything, then one for each direction, rate, size, kind of guest and flow."""
    found = []
    for system in dict.fromkeys(row.system for row in moves):
        rows = [row for row in moves if row.system == system]
        found.append(_summary(system, None, rows))
        for kind in sorted(set(map(kind_of, rows))):
            found.append(_summary(system, kind, [row for row in rows if kind_of(row) == kind]))
    return found


class Kind(NamedTuple):
    """What the runs of one line of a report have in common."""

    guest: Guest
    pps: int
    size: int
    direction: Direction
    family: Family = "ipv4"
    nic: int = 1
    flows: int = 1

    @property
    def text(self) -> str:
        writing = ", the guest writing" if self.guest == "writing" else ""
        flow = f", {flow_text(self.family, self.nic)} of {self.flows} flows" if self.flows > 1 else ""
        return f"{WAYS[self.direction]}, {self.pps}/s of {self.size} bytes{flow}{writing}"


def kind_of(row: MigrationRow) -> Kind:
    kind = (row.guest, row.traffic.pps, row.size, row.direction)
    return Kind(*kind, row.family, row.nic, row.flows)


def flow_text(family: Family, nic: int) -> str:
    """For people: which of several flows."""
    return f"{family} at NIC {nic}"


def _summary(system: str, kind: Kind | None, rows: Sequence[MigrationRow]) -> Summary:
    return Summary(
        system=system,
        direction=kind and kind.direction,
        pps=kind and kind.pps,
        size=kind and kind.size,
        guest=kind and kind.guest,
        family=kind and kind.family,
        nic=kind and kind.nic,
        flows=kind and kind.flows,
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
        passes=spread(row.passes or 0 for row in rows),
    )


def spread(values: Iterable[float]) -> Spread:
    """`values` must not be empty."""
    found = list(values)
    return Spread(*(round(value, 2) for value in (statistics.median(found), min(found), max(found))))
