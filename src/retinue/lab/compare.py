"""The comparison, as the host sees it: for each system a lab of its own, the work inside (compare_inside).

The lab ends with this process. A run that fails is told and left out of the figures; as nobody knows then how
the lab is, the rest of that system's runs get a new one.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from retinue import __version__
from retinue.lab import compare_all, compare_picture, compare_report, compare_table, guest, sandbox
from retinue.lab.compare_inside import Task
from retinue.lab.compare_report import (
    DIRECTIONS,
    Failure,
    MoveRow,
    NoiseRow,
    Report,
    Settings,
    SystemRow,
    TcpRow,
    Trace,
)
from retinue.lab.compare_systems import System
from retinue.lab.errors import LabError
from retinue.lab.topology import SANDBOX

Say = Callable[[str], None]

INSIDE = "retinue.lab.compare_inside"
RUNS, PPS, SIZES = 10, (500, 2000), (64, 1400)
BOTH_WAYS = 1000
"""Packets a second up to which both directions are measured in one move; beyond, each has its own. As the VM
answers each request, both together are three times as many for the switches."""
LABS = 3
"""For one system: after so many failed runs the rest is given up."""
LAST_LINES = 10
NARROW = 100


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be measured; see the command `retinue lab compare`."""

    systems: Sequence[str] = tuple(system.name for system in compare_all.SYSTEMS)
    runs: int = RUNS
    pps: Sequence[int] = PPS
    sizes: Sequence[int] = SIZES
    tcp_runs: int = 0
    """Moves under a TCP bulk stream."""


@dataclass(slots=True)
class Found:
    """What has come of one system, or of all."""

    moves: list[MoveRow] = field(default_factory=list)
    noise: list[NoiseRow] = field(default_factory=list)
    tcp: list[TcpRow] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    systems: list[SystemRow] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


def run(wanted: Wanted, output: Path, say: Say, *, add: bool = False, as_json: bool = False) -> int:
    """Measure, show, and write `output` and the picture beside it; returns 0, or 1 if it was interrupted.

    With `add` what `output` already holds of other systems, rates and sizes is kept. What retinue did not
    show as wanted is said, and is in the report, but is no failure of the measuring. What was measured before
    an interrupt is written, too. Raises LabError when nothing can be measured.
    """
    chosen = [compare_all.by_name(name) for name in wanted.systems]
    earlier = _earlier(output) if add else None
    output.parent.mkdir(parents=True, exist_ok=True)
    found = Found()
    code = 0
    try:
        with _interrupts():
            program = _program(say)
            for system in chosen:
                _measure(system(), wanted, program, found, say)
    except KeyboardInterrupt:
        say("Interrupted: here is what was measured till then")
        code = 1
    report = _report(wanted, found)
    if earlier is not None:
        report = compare_report.merged(earlier, report)
    output.write_bytes(compare_report.encode(report))
    picture = output.with_suffix(".svg")
    picture.write_text(compare_picture.drawn(report.traces))
    if as_json:
        say(compare_report.encode(report).decode().rstrip())
    else:
        say(compare_table.table(report, colour=sys.stdout.isatty(), width=_width()))
        say(f"All figures: {output}; the picture: {picture}")
    return code


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


# ---- one system ----


def _measure(system: System, wanted: Wanted, program: Path, found: Found, say: Say) -> None:
    reason = system.missing()
    if reason:
        say(f"{system.name}: not available: {reason}")
        found.systems.append(SystemRow(system.name, False, system.how, reason))
        return
    try:
        _carry_out(system, tasks(wanted), program, found, say)
    finally:
        names = {*(row.system for row in found.moves), *(row.system for row in found.tcp)}
        measured = system.name in names
        reasons = [f.reason for f in found.failures if f.system == system.name] or ["it was interrupted"]
        reason = "" if measured else reasons[0]
        found.systems.append(SystemRow(system.name, measured, system.how, reason, system.versions()))


def _carry_out(system: System, left: list[Task], program: Path, found: Found, say: Say) -> None:
    for _ in range(LABS):
        say(f"{system.name}: building a lab")
        left, problem = _in_a_lab(system, left, program, found, say)
        if not left:
            return
        say(f"{system.name}: {problem}")
        found.failures.append(Failure(system.name, left[0].text, problem))
        left = left[1:]
        if not left:
            return
    given_up = f"given up after {LABS} labs in which a run failed"
    found.failures.append(Failure(system.name, f"the last {len(left)} runs", given_up))


def _in_a_lab(
    system: System, left: Sequence[Task], program: Path, found: Found, say: Say
) -> tuple[list[Task], str]:
    """Carry out tasks in a new lab until one fails; returns what is left, the failed one first, and why."""
    name = f"{os.environ.get('RETINUE_LAB', 'compare')}-{os.getpid()}"
    try:
        lab = sandbox.up(
            name, start_controller=system.managed, start_driver=system.managed, tie_to_parent=True
        )
    except LabError as error:
        return list(left), str(error)
    try:
        found.versions |= lab.status().versions
        done, problem = _work(lab, system, left, program, found, say)
        return list(left[done:]), problem
    except LabError as error:
        return list(left), str(error)
    finally:
        with contextlib.suppress(LabError):
            sandbox.down(name)


def _work(
    lab: sandbox.LabHandle, system: System, left: Sequence[Task], program: Path, found: Found, say: Say
) -> tuple[int, str]:
    """How many tasks were done, and why the next one was not."""
    scratch = lab.directory / "tmp"
    scratch.mkdir()
    log = scratch / "compare.log"
    encoded = msgspec.json.encode(list(left)).decode()
    words = [str(lab.directory), system.name, str(program), encoded]
    argv = ["env", f"TMPDIR={scratch}", sys.executable, "-P", "-m", INSIDE, *words]
    done, problem = 0, ""
    with (
        log.open("wb") as sink,
        lab.popen(
            SANDBOX,
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sink,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                message = json.loads(line)
                if "task" in message and "failed" not in message:
                    done = message["task"] + 1
                    say(f"{system.name}: {left[message['task']].text}: {_take(message, found)}")
                problem = message.get("failed") or message.get("error") or problem
        except BaseException:
            process.terminate()
            raise
    if done < len(left) and not problem:
        last = " / ".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
        problem = f"the work inside the lab broke off: {last}"
    return done, problem


def _take(message: dict[str, Any], found: Found) -> str:
    """Keep what a task has measured; in a few words what it was."""
    moves = msgspec.convert(message.get("move", []), list[MoveRow])
    noise = msgspec.convert(message.get("noise", []), list[NoiseRow])
    tcp = msgspec.convert(message.get("tcp", []), list[TcpRow])
    found.moves += moves
    found.noise += noise
    found.tcp += tcp
    if "trace" in message:
        found.traces.append(msgspec.convert(message["trace"], Trace))
    rows: list[MoveRow | NoiseRow] = [*moves, *noise]
    words = [
        f"{row.direction} {row.traffic.lost} lost, {row.traffic.duplicated} twice, "
        f"gap {row.traffic.longest_gap_ms:.0f} ms"
        for row in rows
    ]
    words += [f"longest stall {row.longest_stall_ms:.0f} ms at {row.megabits:.0f} Mbit/s" for row in tcp]
    words += [f"pause {row.guest_pause_ms:.0f} ms" for row in moves[:1]]
    return "; ".join(words)


# ---- the result ----


def _report(wanted: Wanted, found: Found) -> Report:
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
        unmet=compare_report.unmet(found.moves, found.failures),
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


def _width() -> int:
    return max(NARROW, shutil.get_terminal_size((NARROW, 24)).columns)
