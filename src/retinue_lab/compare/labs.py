"""One compared system after the other, as the host sees it: a lab for each, in it the work (compare.inside).

The lab ends with this process. A run that fails is reported and left out of the figures; as the state of the
lab is then unknown, the rest of that system's runs get a new one.
"""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from retinue_lab.compare import tcp as compare_tcp
from retinue_lab.compare.inside import Task
from retinue_lab.compare.progress import Progress
from retinue_lab.compare.report.summary import (
    WAYS,
    Failure,
    MigrationRow,
    NoiseRow,
    SystemRow,
    TcpRow,
    Trace,
    flow_text,
)
from retinue_lab.compare.systems.base import System
from retinue_lab.errors import LabError
from retinue_lab.sandbox import handle
from retinue_lab.sandbox.inside import last_lines, work_inside

Say = Callable[[str], None]

INSIDE = "retinue_lab.compare.inside"
LABS = 3
"""For one system: after so many failed runs the rest is given up."""
LAST_LINES = 10


@dataclass(slots=True)
class Found:
    """What has been measured so far, of all systems."""

    moves: list[MigrationRow] = field(default_factory=list)
    noise: list[NoiseRow] = field(default_factory=list)
    tcp: list[TcpRow] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    systems: list[SystemRow] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


def measure(systems: Sequence[System], tasks: Sequence[Task], program: Path, found: Found, say: Say) -> None:
    """Carry out the tasks for each available system; `found` always has all that was measured so far."""
    if any(task.kind == "tcp" for task in tasks) and (problem := compare_tcp.missing()):
        say(f"TCP is not measured: {problem}")
        found.failures.append(Failure("all", "TCP", problem))
        tasks = [task for task in tasks if task.kind != "tcp"]
    having = []
    for system in systems:
        if reason := system.unavailable():
            say(f"{system.name}: not available: {reason}")
            found.systems.append(SystemRow(system.name, False, system.how, reason))
        else:
            having.append(system)
    work = Work(program, found, say, Progress((system.name for system in having), tasks, time.monotonic()))
    for system in having:
        try:
            work.carry_out(system, list(tasks))
        finally:
            found.systems.append(_row(system, found))


def _row(system: System, found: Found) -> SystemRow:
    measured = system.name in {*(row.system for row in found.moves), *(row.system for row in found.tcp)}
    reasons = [f.reason for f in found.failures if f.system == system.name] or ["it was interrupted"]
    return SystemRow(system.name, measured, system.how, "" if measured else reasons[0], system.versions())


@dataclass(frozen=True, slots=True)
class Work:
    """What all systems' runs share."""

    program: Path
    found: Found
    say: Say
    progress: Progress

    def carry_out(self, system: System, left: list[Task]) -> None:
        for _ in range(LABS):
            self.say(f"{self.progress.text(time.monotonic())} {system.name}: building a lab")
            left, problem = self.in_a_lab(system, left)
            if not left:
                return
            self.say(f"{system.name}: {problem}")
            self.found.failures.append(Failure(system.name, left[0].text, problem))
            self.progress.given_up(left[:1])
            left = left[1:]
            if not left:
                return
        self.progress.given_up(left)
        given_up = f"given up after {LABS} labs in which a run failed"
        self.found.failures.append(Failure(system.name, f"the last {len(left)} runs", given_up))

    def in_a_lab(self, system: System, left: Sequence[Task]) -> tuple[list[Task], str]:
        """Carry out tasks in a new lab until one fails; returns what is left, the failed first, and why."""
        name = f"{os.environ.get('RETINUE_LAB', 'compare')}-{os.getpid()}"
        try:
            lab = handle.up(
                name,
                system.network(),
                start_controller=system.controlled,
                start_driver=system.managed,
                tie_to_parent=True,
            )
        except LabError as error:
            return list(left), str(error)
        try:
            self.found.versions.update(lab.status().versions)
            done, problem = self._inside(lab, system, left)
            return list(left[done:]), problem
        except LabError as error:
            return list(left), str(error)
        finally:
            with contextlib.suppress(LabError):
                handle.down(name)

    def _inside(self, lab: handle.LabHandle, system: System, left: Sequence[Task]) -> tuple[int, str]:
        """How many tasks were done, and why the next one was not."""
        log = lab.directory / "tmp" / "compare.log"
        encoded = msgspec.json.encode(list(left)).decode()
        done, problem = 0, ""
        with work_inside(lab, INSIDE, [system.name, str(self.program), encoded], log) as messages:
            for message in messages:
                done += self._on_message(system, left, message)
                problem = message.get("failed") or message.get("error") or problem
        if done < len(left) and not problem:
            last = " / ".join(last_lines(log, LAST_LINES))
            problem = f"the work inside the lab broke off: {last}"
        return done, problem

    def _on_message(self, system: System, left: Sequence[Task], message: dict[str, Any]) -> bool:
        """Whether a task is done."""
        if "begins" in message:
            self.progress.lab_is_up(system.name)
            text = left[message["begins"]].text
            self.say(f"{self.progress.text(time.monotonic())} {system.name}: {text}")
        done = "task" in message and "failed" not in message
        if done:
            self.progress.ended(left[message["task"]])
            self.say(f"    {_take(message, self.found)}")
        return done


def _take(message: dict[str, Any], found: Found) -> str:
    """Keep what a task has measured; in a few words what it was."""
    moves = msgspec.convert(message.get("move", []), list[MigrationRow])
    noise = msgspec.convert(message.get("noise", []), list[NoiseRow])
    tcp = msgspec.convert(message.get("tcp", []), list[TcpRow])
    found.moves += moves
    found.noise += noise
    found.tcp += tcp
    if "trace" in message:
        found.traces.append(msgspec.convert(message["trace"], Trace))
    rows: list[MigrationRow | NoiseRow] = [*moves, *noise]
    words = [
        f"{_flow(row)}{WAYS[row.direction]} {row.traffic.lost} lost, {row.traffic.duplicated} twice, "
        f"longest gap {row.traffic.longest_gap_ms:.0f} ms"
        for row in rows
    ]
    words += [f"longest stall {row.longest_stall_ms:.0f} ms at {row.megabits:.0f} Mbit/s" for row in tcp]
    moved: list[MigrationRow | TcpRow] = [*moves[:1], *(row for row in tcp if row.run)]
    words += [f"VM's pause {row.guest_pause_ms:.0f} ms" for row in moved]
    return "; ".join(words)


def _flow(row: MigrationRow | NoiseRow) -> str:
    """Which of several."""
    return f"{flow_text(row.family, row.nic)} " if row.flows > 1 else ""
