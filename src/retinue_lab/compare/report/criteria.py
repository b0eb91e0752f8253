"""The acceptance criteria of a comparison, and whether retinue meets them; a report added to another. Pure.

In every run nothing lost, doubled or reordered; for each direction, rate and size a longest gap whose median
is no worse than that of the best of the others; no TCP stream broken. With libvirt they are the same. A
migration typed by a person has to meet none of them.
"""

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from retinue_lab.compare.report.summary import (
    ComparisonReport,
    ComparisonSettings,
    Failure,
    Guest,
    Kind,
    MigrationRow,
    NoiseRow,
    TcpRow,
    kind_of,
    summaries,
)

OURS = ("retinue", "retinue-libvirt")
PEER = "ovn-multichassis-rarp"
"""The best of the others: the one whose gap is the measure."""


class Verdicts(NamedTuple):
    """A sentence each; see compare.report.summary.Report."""

    met: list[str]
    unmet: list[str]
    unjudged: list[str]


Judged = tuple[bool | None, str]
"""Whether a criterion is met, None where that cannot be judged, and the finding in words."""


def verdicts(
    moves: Sequence[MigrationRow], tcp: Sequence[TcpRow] = (), failures: Sequence[Failure] = ()
) -> Verdicts:
    found = [one for system in OURS for one in _of(system, moves, tcp, failures)]
    return Verdicts(
        met=[text for met, text in found if met],
        unmet=[text for met, text in found if met is False],
        unjudged=[text for met, text in found if met is None],
    )


def _of(
    system: str, moves: Sequence[MigrationRow], tcp: Sequence[TcpRow], failures: Sequence[Failure]
) -> Iterator[Judged]:
    for failure in failures:
        if failure.system == system:
            yield False, f"{system}: {failure.what} could not be carried out: {failure.reason}"
    rows = _by_kind(system, moves)
    peers = _by_kind(PEER, moves)
    for kind, having in rows.items():
        where = f"{system}, {kind.text}"
        yield _clean(where, having)
        yield _gap(where, having, peers.get(kind, []))
        if kind.guest == "writing":
            wrong = sum(row.content_right is not True for row in having)
            right = f"{len(having) - wrong} of {_moves(len(having))}"
            yield not wrong, f"{where}: the memory was right after {right}"
    moved = [row for row in tcp if row.system == system and row.run]
    if moved:
        survived = sum(row.tcp_survived for row in moved)
        yield survived == len(moved), f"{system}: the TCP stream survived {survived} of {_moves(len(moved))}"


def _by_kind(system: str, moves: Sequence[MigrationRow]) -> dict[Kind, list[MigrationRow]]:
    found: dict[Kind, list[MigrationRow]] = {}
    for row in moves:
        if row.system == system:
            found.setdefault(kind_of(row), []).append(row)
    return dict(sorted(found.items()))


def _clean(where: str, rows: Sequence[MigrationRow]) -> Judged:
    wrong = [row for row in rows if any(_counts([row]).values())]
    if not wrong:
        return True, f"{where}: nothing lost, doubled or reordered in {_moves(len(rows))}"
    counts = ", ".join(f"{count} {what}" for what, count in _counts(wrong).items() if count)
    sent = sum(row.traffic.sent for row in wrong)
    after = sum(row.traffic.lost_after_resume for row in wrong)
    dropped = sum(row.switch_drops for row in wrong)
    return False, (
        f"{where}: {counts} of {sent} in {len(wrong)} of {_moves(len(rows))} (run "
        f"{', '.join(str(row.run) for row in wrong)}); {after} lost after RESUME; the lab's own switches "
        f"dropped {dropped} frames in these"
    )


def _counts(rows: Sequence[MigrationRow]) -> dict[str, int]:
    return {
        "lost": sum(row.traffic.lost for row in rows),
        "replies lost": sum(row.traffic.answers_lost for row in rows),
        "doubled": sum(row.traffic.duplicated for row in rows),
        "reordered": sum(row.traffic.reordered for row in rows),
    }


def _gap(where: str, rows: Sequence[MigrationRow], peers: Sequence[MigrationRow]) -> Judged:
    own = statistics.median(row.traffic.longest_gap_ms for row in rows)
    finding = f"{where}: longest gap, median of {_moves(len(rows))}, {own:.1f} ms"
    if not peers:
        return None, f"{finding}: not compared, {PEER} was not measured so"
    allowed = statistics.median(row.traffic.longest_gap_ms for row in peers)
    worse = own > allowed
    than = f"{'worse' if worse else 'no worse'} than {PEER}'s {allowed:.1f} ms of {_moves(len(peers))}"
    return not worse, f"{finding}: {than}"


def _moves(count: int) -> str:
    return f"{count} move" if count == 1 else f"{count} moves"


# ---- adding to an earlier report ----


def merged(earlier: ComparisonReport, later: ComparisonReport, order: Sequence[str]) -> ComparisonReport:
    """Both, the systems in `order`.

    What the later one has measured of a system, rate, size and number of flows takes the place of the
    earlier's.
    """

    def place(system: str) -> int:
        return order.index(system) if system in order else len(order)

    def measured_as(row: MigrationRow) -> tuple[str, Guest, int, int, int]:
        return row.system, row.guest, row.traffic.pps, row.size, row.flows

    def noise_as(row: NoiseRow) -> tuple[str, int, int, int]:
        return row.system, row.traffic.pps, row.size, row.flows

    again = set(map(measured_as, later.moves))
    moves = [row for row in earlier.moves if measured_as(row) not in again] + later.moves
    noise_again = set(map(noise_as, later.noise))
    noise = [row for row in earlier.noise if noise_as(row) not in noise_again] + later.noise
    tcp_again = {row.system for row in later.tcp}
    tcp = [row for row in earlier.tcp if row.system not in tcp_again] + later.tcp
    systems = {row.name: row for row in earlier.systems}
    systems |= {r.name: r for r in later.systems if r.available or r.name not in systems}
    traced = {(trace.system, trace.flows) for trace in later.traces}
    traces = [trace for trace in earlier.traces if (trace.system, trace.flows) not in traced] + later.traces
    measured = {row.system for row in later.moves} | tcp_again
    failures = [f for f in earlier.failures if f.system not in measured] + later.failures
    moves.sort(key=lambda row: place(row.system))
    judged = verdicts(moves, tcp, failures)
    return ComparisonReport(
        schema=1,
        measured_at=later.measured_at,
        versions=earlier.versions | later.versions,
        processors=later.processors,
        settings=ComparisonSettings(
            runs=max((row.run for row in moves), default=later.settings.runs),
            pps=sorted({row.traffic.pps for row in moves} | set(later.settings.pps)),
            sizes=sorted({row.size for row in moves} | set(later.settings.sizes)),
        ),
        systems=sorted(systems.values(), key=lambda row: place(row.name)),
        moves=moves,
        noise=sorted(noise, key=lambda row: place(row.system)),
        tcp=sorted(tcp, key=lambda row: place(row.system)),
        summaries=summaries(moves),
        met=judged.met,
        unmet=judged.unmet,
        unjudged=judged.unjudged,
        failures=failures,
        traces=sorted(traces, key=lambda trace: place(trace.system)),
    )
