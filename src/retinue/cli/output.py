"""What people read: tables in 100 columns, times as they are spoken, JSON for programs.

Much of it others wrote: names of ports, reasons. Whatever a terminal would act upon is escaped here, and
nothing is printed but by this module.
"""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import typer

from retinue.core.text import printable

WIDE = 10_000
"""Columns when nobody looks: a row is then one line of any length, for grep and awk to read."""

STYLES = {
    **dict.fromkeys(
        ("ready", "running", "done", "matched", "active", "yes", "confirmed", "in order"), "green"
    ),
    **dict.fromkeys(
        ("registered", "given", "installing", "standby", "rolling back", "unknown", "mended", "pending"),
        "yellow",
    ),
    **dict.fromkeys(("missing", "mismatch", "undone", "no", "ended"), "red"),
}
"""Colour of a state."""


def say(text: str, *, err: bool = False) -> None:
    """One line, on standard output or standard error."""
    typer.echo(printable(text), err=err)


def status_line(text: str) -> None:
    """In the place of the last one, on standard error, at a terminal only; "" clears it."""
    if sys.stderr.isatty():
        typer.echo(f"\r\x1b[K{printable(text)[:100]}", err=True, nl=False)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def print_line(value: Any) -> None:
    """JSON on one line: for streams."""
    typer.echo(json.dumps(value))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], empty: str) -> None:
    """Columns whose name starts with ">" are numbers, written to the right. `empty` is said of no rows."""
    found = [[_cell(value) for value in row] for row in rows]
    if not found:
        say(empty)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(
            column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    for row in found:
        table.add_row(*(Text(printable(cell), style=STYLES.get(cell, "")) for cell in row))
    console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else WIDE)
    with console.capture() as captured:
        console.print(table)
    # The last column is filled up, too, which whoever copies a line, or looks for its end, does not want.
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def print_fields(fields: Iterable[tuple[str, Any]]) -> None:
    """One thing, a field a line; empty fields are left out."""
    shown = [(name, _cell(value, "")) for name, value in fields]
    shown = [(name, text) for name, text in shown if text]
    width = max((len(name) for name, _ in shown), default=0)
    for name, text in shown:
        say(f"{name:<{width}}  {text}")


def _cell(value: Any, nothing: str = "-") -> str:
    match value:
        case None | "" | [] | ():
            return nothing
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ", ".join(map(str, value))
        case _:
            return str(value)


def span(seconds: float) -> str:
    """ "0.013 s", "54 s", "5 min", "3 h", "2 d"."""
    if seconds < 10:
        return f"{seconds:.3f} s"
    for unit, size, limit in (("s", 1, 100), ("min", 60, 100 * 60), ("h", 3600, 48 * 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def left(until: float | None) -> str:
    """What is left of a lease: "54 s"; nothing for one without end."""
    if until is None:
        return ""
    seconds = until - time.time()
    return "over" if seconds <= 0 else f"{seconds:.0f} s" if seconds < 100 else span(seconds)


def clock(at: float) -> str:
    """Time of day, local, to the millisecond."""
    try:
        return time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at % 1 * 1000):03}"
    except (OverflowError, ValueError, OSError):
        return str(at)


def ago(at: float) -> str:
    return f"{span(max(10.0, time.time() - at))} ago" if time.time() - at >= 10 else "just now"
