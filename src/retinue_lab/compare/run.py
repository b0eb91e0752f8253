"""The comparison, as the host sees it: what is to be measured, the measuring (compare.labs), the report."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from retinue import __version__
from retinue_lab.compare import labs
from retinue_lab.compare.bench import DUAL
from retinue_lab.compare.inside import Task
from retinue_lab.compare.labs import Found, Say
from retinue_lab.compare.report import criteria, picture, summary
from retinue_lab.compare.report.summary import (
    DIRECTIONS,
    FAMILIES,
    ComparisonReport,
    ComparisonSettings,
    MigrationRow,
    Trace,
    kind_of,
)
from retinue_lab.compare.systems import registry
from retinue_lab.errors import LabError
from retinue_lab.guest import image

RUNS, PPS, SIZES = 10, (500, 2000), (64, 1400)
BOTH_WAYS = 1000
"""Packets a second, of all flows together, up to which both directions are measured in one migration; beyond,
each has its own. The VM answers each request, so both together are three times as many for the switches."""
ORDER = tuple(system.name for system in registry.SYSTEMS)
USUAL = tuple(system.name for system in registry.USUAL)
MECHANISMS = tuple(system.name for system in registry.MECHANISMS)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured; see the command `retinue lab compare`."""

    systems: Sequence[str] = USUAL
    runs: int = RUNS
    pps: Sequence[int] = PPS
    sizes: Sequence[int] = SIZES
    tcp_runs: int = 0
    """Moves under a TCP bulk stream."""
    write_mib_s: Sequence[int] = ()
    """What the guest writes a second in further moves, at the lowest rate and smallest size of traffic."""
    dual: bool = False
    """The VM has two NICs, each with an address of each family, and all traffic goes to and from each of
    these four at the same time."""


def run(plan: Plan, output: Path, say: Say, *, add: bool = False) -> tuple[ComparisonReport, bool]:
    """Measure, write `output` and the picture beside it; returns the report, and False if interrupted.

    `say` is given the progress. With `add`, what `output` holds of other systems, rates and sizes is kept.
    Acceptance criteria that retinue did not meet are in the report, but are no failure of the measuring.
    What was measured before an interrupt is written, too. Raises LabError when nothing can be measured.
    """
    chosen = [registry.by_name(name)(dual=plan.dual) for name in plan.systems]
    earlier = _earlier(output) if add else None
    output.parent.mkdir(parents=True, exist_ok=True)
    found = Found()
    complete = True
    try:
        with _interrupts():
            labs.measure(chosen, tasks(plan), _program(say), found, say)
    except KeyboardInterrupt:
        say("Interrupted: only what was measured till then is reported")
        complete = False
    report = _report(plan, found)
    if earlier is not None:
        report = criteria.merged(earlier, report, ORDER)
    output.write_bytes(summary.encode(report))
    picture_of(output).write_text(picture.drawn(report.traces))
    return report, complete


def picture_of(output: Path) -> Path:
    return output.with_suffix(".svg")


def tasks(plan: Plan) -> list[Task]:
    """A run without a migration for each kind of traffic, then migrations, the kinds in turn, then TCP, then
    migrations of a guest that writes."""
    flows: dict[str, Any] = {"families": FAMILIES, "nics": len(DUAL)} if plan.dual else {}
    most = BOTH_WAYS // (len(FAMILIES) * len(DUAL)) if plan.dual else BOTH_WAYS
    kinds = [
        (pps, size, directions)
        for pps in plan.pps
        for size in plan.sizes
        for directions in ([DIRECTIONS] if pps <= most else [(direction,) for direction in DIRECTIONS])
    ]
    quiet = [Task("noise", 1, *kind, **flows) for kind in kinds]
    moves = [Task("move", run, *kind, **flows) for run in range(1, plan.runs + 1) for kind in kinds]
    writing = [
        Task("move", run, min(plan.pps), min(plan.sizes), DIRECTIONS, rate, **flows)
        for rate in plan.write_mib_s
        for run in range(1, plan.runs + 1)
    ]
    tcp = [Task("tcp", run) for run in range(plan.tcp_runs + 1)] if plan.tcp_runs else []
    return [*quiet, *moves, *tcp, *writing]


def _earlier(output: Path) -> ComparisonReport | None:
    try:
        return summary.decode(output.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise LabError(f"{output} cannot be added to: {error}") from error


def _program(say: Say) -> Path:
    """The traffic program for this machine; the guest is built, too: inside a lab it cannot be."""
    try:
        image.ensure_guest(lambda step: say(f"  {step}"))
        return image.ensure_program("steady")
    except image.GuestError as error:
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


def _report(plan: Plan, found: Found) -> ComparisonReport:
    judged = criteria.verdicts(found.moves, found.tcp, found.failures)
    return ComparisonReport(
        schema=1,
        measured_at=time.time(),
        versions={"retinue": __version__, **found.versions},
        processors=os.cpu_count() or 0,
        settings=ComparisonSettings(plan.runs, list(plan.pps), list(plan.sizes)),
        systems=found.systems,
        moves=found.moves,
        noise=found.noise,
        tcp=found.tcp,
        summaries=summary.summaries(found.moves),
        met=judged.met,
        unmet=judged.unmet,
        unjudged=judged.unjudged,
        failures=found.failures,
        traces=_typical(found.traces, found.moves),
    )


def _typical(traces: Sequence[Trace], moves: Sequence[MigrationRow]) -> list[Trace]:
    """Of each system the run whose gap is in the middle, at the lowest rate and smallest size measured."""
    chosen = []
    for system in dict.fromkeys(trace.system for trace in traces):
        its = [trace for trace in traces if trace.system == system]
        pps, size = min((trace.pps, trace.size) for trace in its)
        gaps = {
            row.run: row.traffic.longest_gap_ms
            for row in moves
            if (row.system, *kind_of(row)[:6]) == (system, "idle", pps, size, "client-to-vm", "ipv4", 1)
        }
        having = sorted((t for t in its if (t.pps, t.size) == (pps, size)), key=lambda t: gaps[t.run])
        chosen.append(having[(len(having) - 1) // 2])
    return chosen
