"""A comparison as tables of at most 100 columns, for somebody who has read nothing else."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from retinue_lab.compare.report.criteria import OURS
from retinue_lab.compare.report.summary import (
    WAYS,
    ComparisonReport,
    NoiseRow,
    Spread,
    Summary,
    TcpRow,
    flow_text,
    spread,
)
from retinue_lab.output import buffer, text_of

COLUMNS: tuple[tuple[str, Callable[[Summary], Spread]], ...] = (
    ("lost", lambda s: s.lost),
    ("after\nRESUME", lambda s: s.lost_after_resume),
    ("replies\nlost", lambda s: s.answers_lost),
    ("twice", lambda s: s.duplicated),
    ("swap-\nped", lambda s: s.reordered),
    ("longest\ngap, ms", lambda s: s.longest_gap_ms),
    ("less\npause", lambda s: s.gap_minus_pause_ms),
    ("VM's\npause", lambda s: s.guest_pause_ms),
    ("switches\ndropped", lambda s: s.switch_drops),
    ("idle\n%", lambda s: s.idle_percent),
)
Row = TypeVar("Row", NoiseRow, TcpRow)

ROOM = 7
"""Characters of a figure that fit; a range that does not is broken in two."""
INTRODUCTION = (
    "One VM moved under numbered traffic between an outside client and the VM. Each figure is the median of "
    "all moves; below it, where they differ, the least and the most."
)


def table(report: ComparisonReport, *, colour: bool = False, width: int = 100) -> str:
    console = buffer(colour=colour, width=width)
    console.print(Padding(INTRODUCTION, (1, 0)))
    for system in report.systems:
        rows = [row for row in report.summaries if row.system == system.name and row.direction is not None]
        if rows:
            console.print(Group(Text(system.name, "bold"), Text(system.how, "dim"), _moves(rows)))
    if report.noise:
        console.print(Group(Text("Without a move: of all runs the worst", "bold"), _noise(report.noise)))
    if report.tcp:
        console.print(Group(Text("Under one TCP bulk stream", "bold"), _tcp(report.tcp)))
    failed = {failure.system for failure in report.failures}
    for system in report.systems:
        if not system.available and system.name not in failed:
            console.print(Text(f"{system.name}: not available: {system.reason}"))
    console.print(_verdicts(report))
    return text_of(console)


def _moves(rows: Sequence[Summary]) -> Table:
    shown = _table("packets/s\nx bytes", ("moves", *(name for name, _ in COLUMNS)))
    for row in rows:
        kind = f"{WAYS[row.direction]} {row.pps}\nx {row.size}" if row.direction else ""
        kind += ", writing" if row.guest == "writing" else ""
        if row.family is not None and row.nic is not None and (row.flows or 0) > 1:
            kind += f"\n{flow_text(row.family, row.nic)}"
        shown.add_row(
            Text(kind) + Text(f"\ncut off {row.cut_off}" if row.cut_off else "", "red"),
            str(row.rows),
            *(_spread(of(row)) for _, of in COLUMNS),
        )
    return shown


def _noise(rows: Sequence[NoiseRow]) -> Table:
    names = ("runs", "lost", "twice", "swapped", "longest\ngap, ms", "sender's\ngap, ms", "idle\n%")
    shown = _table("system", names)
    for system, its in _by_system(rows):
        traffic = [row.traffic for row in its]
        shown.add_row(
            system,
            str(len(its)),
            *(str(max(of)) for of in ([t.lost for t in traffic], [t.duplicated for t in traffic])),
            str(max(t.reordered for t in traffic)),
            f"{max(t.longest_gap_ms for t in traffic):.0f}",
            f"{max(t.longest_send_gap_ms for t in traffic):.0f}",
            f"{min(row.idle_percent for row in its):.0f}",
        )
    return shown


def _tcp(rows: Sequence[TcpRow]) -> Table:
    names = (
        "moves",
        "survived",
        "longest\nstall, ms",
        "without\na move",
        "VM's\npause",
        "sent\nagain",
        "Mbit/s",
    )
    shown = _table("system", names)
    for system, its in _by_system(rows):
        moved, still = [row for row in its if row.run], [row for row in its if not row.run]
        shown.add_row(
            system,
            str(len(moved)),
            str(sum(row.tcp_survived for row in moved)),
            _of(row.longest_stall_ms for row in moved),
            _of(row.longest_stall_ms for row in still),
            _of(row.guest_pause_ms for row in moved),
            _of(row.retransmits for row in moved),
            f"{statistics.mean(row.megabits for row in its):.0f}",
        )
    return shown


def _verdicts(report: ComparisonReport) -> RenderableType:
    """The acceptance criteria and whether retinue meets them; its own failed runs are among those not met."""
    others = [f"{f.system}: {f.what}: {f.reason}" for f in report.failures if f.system not in OURS]
    return Group(
        _list("Not carried out:", "red", others),
        _list("Criteria met:", "green", report.met),
        _list("Criteria not met:", "red", report.unmet),
        _list("Not judged:", "yellow", report.unjudged),
    )


def _list(title: str, style: str, texts: Sequence[str]) -> RenderableType:
    if not texts:
        return Group()
    shown = Table.grid(padding=(0, 1))
    for text in texts:
        shown.add_row("  -", Text(text, style))
    return Group(Text(title, f"bold {style}"), shown)


def _table(left: str, right: Sequence[str]) -> Table:
    shown = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=0)
    shown.add_column(left, no_wrap=True)
    for name in right:
        least = max(map(len, name.split("\n"))) + 1
        shown.add_column(name, justify="right", overflow="fold", min_width=least)
    return shown


def _by_system(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for system in dict.fromkeys(row.system for row in rows):
        yield system, [row for row in rows if row.system == system]


def _of(values: Iterable[float]) -> str:
    found = list(values)
    return _spread(spread(found)) if found else ""


def _spread(found: Spread) -> str:
    median, least, most = (f"{value:.0f}" for value in (found.median, found.min, found.max))
    if least == most:
        return median
    hyphen = "-" if len(least) + len(most) < ROOM else "-\n"
    return f"{median}\n{least}{hyphen}{most}"
