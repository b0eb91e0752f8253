"""The comparison, as the host sees it: what is to be measured, the measuring (compare_labs), the report."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import msgspec

from retinue import __version__
from retinue.lab import compare_all, compare_labs, compare_picture, compare_report, compare_wanted, guest
from retinue.lab.compare_inside import Task
from retinue.lab.compare_labs import Found, Say
from retinue.lab.compare_report import DIRECTIONS, MoveRow, Report, Settings, Trace
from retinue.lab.errors import LabError

RUNS, PPS, SIZES = 10, (500, 2000), (64, 1400)
BOTH_WAYS = 1000
"""Packets a second up to which both directions are measured in one move; beyond, each has its own. As the VM
answers each request, both together are three times as many for the switches."""
ORDER = tuple(system.name for system in compare_all.SYSTEMS)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be measured; see the command `retinue lab compare`."""

    systems: Sequence[str] = ORDER
    runs: int = RUNS
    pps: Sequence[int] = PPS
    sizes: Sequence[int] = SIZES
    tcp_runs: int = 0
    """Moves under a TCP bulk stream."""


def run(wanted: Wanted, output: Path, say: Say, *, add: bool = False) -> tuple[Report, bool]:
    """Measure, and write `output` and the picture beside it; returns the report, and False if interrupted.

    `say` hears how far it is. With `add` what `output` already holds of other systems, rates and sizes is
    kept. What retinue did not show as wanted is in the report, but is no failure of the measuring. What was
    measured before an interrupt is written, too. Raises LabError when nothing can be measured.
    """
    chosen = [compare_all.by_name(name)() for name in wanted.systems]
    earlier = _earlier(output) if add else None
    output.parent.mkdir(parents=True, exist_ok=True)
    found = Found()
    complete = True
    try:
        with _interrupts():
            compare_labs.measure(chosen, tasks(wanted), _program(say), found, say)
    except KeyboardInterrupt:
        say("Interrupted: only what was measured till then is reported")
        complete = False
    report = _report(wanted, found)
    if earlier is not None:
        report = compare_wanted.merged(earlier, report, ORDER)
    output.write_bytes(compare_report.encode(report))
    picture_of(output).write_text(compare_picture.drawn(report.traces))
    return report, complete


def picture_of(output: Path) -> Path:
    return output.with_suffix(".svg")


def tasks(wanted: Wanted) -> list[Task]:
    """One run without a move for each kind of traffic, then the moves, the kinds taking turns, then TCP."""
    kinds = [
        (pps, size, directions)
        for pps in wanted.pps
        for size in wanted.sizes
        for directions in ([DIRECTIONS] if pps <= BOTH_WAYS else [(direction,) for direction in DIRECTIONS])
    ]
    quiet = [Task("noise", 1, *kind) for kind in kinds]
    moves = [Task("move", run, *kind) for run in range(1, wanted.runs + 1) for kind in kinds]
    tcp = [Task("tcp", run) for run in range(wanted.tcp_runs + 1)] if wanted.tcp_runs else []
    return [*quiet, *moves, *tcp]


def _earlier(output: Path) -> Report | None:
    try:
        return compare_report.decode(output.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise LabError(f"{output} cannot be added to: {error}") from error


def _program(say: Say) -> Path:
    """The traffic program for this machine; the guest is built, too: inside a lab it cannot be."""
    try:
        guest.ensure_guest(lambda step: say(f"  {step}"))
        return guest.ensure_program("steady")
    except guest.GuestError as error:
        raise LabError(f"cannot make guest or traffic program: {error}") from error


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """SIGTERM ends the work as an interrupt from the terminal does, so that the lab is taken down."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # Not the main thread: there is nobody to interrupt.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- the result ----


def _report(wanted: Wanted, found: Found) -> Report:
    judged = compare_wanted.verdicts(found.moves, found.tcp, found.failures)
    return Report(
        schema=1,
        measured_at=time.time(),
        versions={"retinue": __version__, **found.versions},
        processors=os.cpu_count() or 0,
        settings=Settings(wanted.runs, list(wanted.pps), list(wanted.sizes)),
        systems=found.systems,
        moves=found.moves,
        noise=found.noise,
        tcp=found.tcp,
        summaries=compare_report.summaries(found.moves),
        met=judged.met,
        unmet=judged.unmet,
        unjudged=judged.unjudged,
        failures=found.failures,
        traces=_typical(found.traces, found.moves),
    )


def _typical(traces: Sequence[Trace], moves: Sequence[MoveRow]) -> list[Trace]:
    """Of each system the run whose gap is in the middle, at the lowest rate and smallest size measured."""
    chosen = []
    for system in dict.fromkeys(trace.system for trace in traces):
        its = [trace for trace in traces if trace.system == system]
        pps, size = min((trace.pps, trace.size) for trace in its)
        gaps = {
            row.run: row.traffic.longest_gap_ms
            for row in moves
            if (row.system, row.traffic.pps, row.size, row.direction) == (system, pps, size, "client-to-vm")
        }
        having = sorted((t for t in its if (t.pps, t.size) == (pps, size)), key=lambda t: gaps[t.run])
        chosen.append(having[(len(having) - 1) // 2])
    return chosen
