"""A comparison as a table, for somebody who has read nothing else."""

import io
from collections.abc import Callable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from retinue.lab.compare_report import Report, Spread, Summary

COLUMNS: tuple[tuple[str, Callable[[Summary], Spread]], ...] = (
    ("lost", lambda s: s.lost),
    ("of these after\nRESUME", lambda s: s.lost_after_resume),
    ("replies\nlost", lambda s: s.answers_lost),
    ("twice", lambda s: s.duplicated),
    ("swapped", lambda s: s.reordered),
    ("longest gap\nms", lambda s: s.longest_gap_ms),
    ("gap less\npause, ms", lambda s: s.gap_minus_pause_ms),
    ("VM's pause\nms", lambda s: s.guest_pause_ms),
    ("switches\ndropped", lambda s: s.switch_drops),
    ("idle %", lambda s: s.idle_percent),
)


SHORT = {"client-to-vm": "to VM", "vm-to-client": "from VM"}
WIDEST = 180
"""Columns of text; a table cut short would hide what it is for."""


def table(report: Report, *, colour: bool = False, width: int = 100) -> str:
    console = Console(
        file=io.StringIO(),
        width=max(width, WIDEST),
        highlight=False,
        force_terminal=colour,
        color_system="standard" if colour else None,
    )
    console.print(
        "\nOne VM moved under numbered traffic, client to VM and VM to client at once. "
        "Each figure: median, then least and most, of all runs.\n"
    )
    console.print(_moves(report))
    console.print(_noise(report))
    if report.tcp:
        console.print(_tcp(report))
    for system in report.systems:
        if not system.available:
            console.print(Text(f"{system.name}: not available: {system.reason}"))
    for failure in report.failures:
        console.print(Text(f"{failure.system}: {failure.what} failed: {failure.reason}", "red"))
    if report.unmet:
        console.print(Text("retinue was not as wanted:", "bold red"))
        for text in report.unmet:
            console.print(Text(f"  {text}", "red"))
    elif any(row.system == "retinue" for row in report.moves):
        console.print(Text("retinue was as wanted in every run that was compared.", "bold green"))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip("\n").split("\n"))


def _moves(report: Report) -> Table:
    shown = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in ("system", "", "pps x octets", "runs"):
        shown.add_column(name, justify="right" if name == "runs" else "left", no_wrap=True)
    for name, _ in COLUMNS:
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("", no_wrap=True)
    before = ""
    for row in report.summaries:
        if row.direction is None:
            continue
        if before and before != row.system:
            shown.add_row()
        shown.add_row(
            row.system if before != row.system else "",
            SHORT[row.direction],
            f"{row.pps} x {row.size}",
            str(row.rows),
            *(_spread(of(row)) for _, of in COLUMNS),
            Text(f"cut off {row.cut_off}" if row.cut_off else "", "red"),
        )
        before = row.system
    return shown


def _noise(report: Report) -> Table:
    shown = Table(
        box=SIMPLE_HEAD, header_style="bold", pad_edge=False, title="Without a move", title_justify="left"
    )
    for name in ("system", "", "pps x octets"):
        shown.add_column(name, no_wrap=True)
    for name in ("lost", "twice", "swapped", "longest gap ms", "sender's gap ms", "idle %"):
        shown.add_column(name, justify="right")
    for row in report.noise:
        traffic = row.traffic
        shown.add_row(
            row.system,
            SHORT[row.direction],
            f"{traffic.pps} x {row.size}",
            *map(str, (traffic.lost, traffic.duplicated, traffic.reordered)),
            f"{traffic.longest_gap_ms:.1f}",
            f"{traffic.longest_send_gap_ms:.1f}",
            f"{row.idle_percent:.0f}",
        )
    return shown


def _tcp(report: Report) -> Table:
    shown = Table(
        box=SIMPLE_HEAD,
        header_style="bold",
        pad_edge=False,
        title="One TCP bulk stream",
        title_justify="left",
    )
    shown.add_column("system", no_wrap=True)
    for name in ("run", "survived", "longest stall ms", "VM's pause ms", "Mbit/s", "sent again"):
        shown.add_column(name, justify="right")
    for row in report.tcp:
        shown.add_row(
            row.system,
            str(row.run) if row.run else "no move",
            "yes" if row.tcp_survived else "no",
            f"{row.longest_stall_ms:.0f}",
            f"{row.guest_pause_ms:.0f}" if row.run else "",
            f"{row.megabits:.0f}",
            str(row.retransmits),
        )
    return shown


def _spread(spread: Spread) -> str:
    if spread.min == spread.max:
        return f"{spread.median:.0f}"
    return f"{spread.median:.0f} ({spread.min:.0f}-{spread.max:.0f})"
