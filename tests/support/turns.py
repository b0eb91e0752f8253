"""Which process of `pytest -n` runs which test module, and which goes first.

A module marked `alone` counts packets, and its laboratory goes before all else: root makes its processes less
nice than those of other laboratories. One marked `patient` counts none, and what it waits for may take some
seconds: its laboratory comes after the others, and what only computes comes last. All modules marked `alone`
are one unit of work, so that one process runs them in turn.

At any time three laboratories run: two at the most that count packets, of which one may be `alone`. Three of
equal rank, on two processors, make switches and guests stand still for seconds. Where nobody may be preferred
(no root, or a container without that right) two run at the most, and beside a module that is `alone` no VMs;
the others do meanwhile what needs none.
"""

import contextlib
import fcntl
import functools
import os
import time
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import IO, Any

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

from support import cpu_group


class Kind(Enum):
    """Of a module, and how nice that is, where it may be. Agents add 5 to what their laboratory has, guests
    10 (retinue_lab.network.agents): all of one that is `alone` goes before all of the others."""

    ALONE = -15
    COUNTS = 0
    PATIENT = 5
    NO_VMS = 1
    COMPUTES = 19


LABS = "tests/lab/"
MOST_LABS, MOST_COUNTING = 3, 2
"""Modules with VMs that run at once; those of them that count packets, and are `alone` or not."""
TRY_AGAIN = 0.1


def kind_of(marks: Mapping[str, Any]) -> Kind:
    """That of a module with these marks, as far as each stands for something."""
    if not marks.get("lab"):
        return Kind.COMPUTES
    of = {"alone": Kind.ALONE, "no_vms": Kind.NO_VMS, "patient": Kind.PATIENT}
    return next((kind for mark, kind in of.items() if marks.get(mark)), Kind.COUNTS)


def rank(kind: Kind) -> None:
    """How nice this process is from now on, and what it starts."""
    if os.geteuid() == 0:
        only_last = kind if kind is Kind.COMPUTES else Kind.COUNTS
        os.setpriority(os.PRIO_PROCESS, 0, (kind if may_prefer() else only_last).value)


@functools.cache
def may_prefer() -> bool:
    """Whether this process may put another before others."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, Kind.ALONE.value)
        os.setpriority(os.PRIO_PROCESS, 0, before)
    except PermissionError:
        return False
    return cpu_group.nice_counts()


@contextlib.contextmanager
def turn(folder: Path, kind: Kind) -> Iterator[None]:
    """That of a module, among those of all processes that have this folder in common."""
    if kind in (Kind.NO_VMS, Kind.COMPUTES):
        yield
        return
    with contextlib.ExitStack() as stack:
        prefers = may_prefer()

        def take(name: str, places: int) -> None:
            _take_place([stack.enter_context((folder / f"{name}{n}").open("w")) for n in range(places)])

        if prefers or kind is not Kind.ALONE:
            if not prefers or kind is not Kind.PATIENT:
                take("counting", MOST_COUNTING)
            take("lab", MOST_LABS)
        queue, vms = (stack.enter_context((folder / name).open("w")) for name in ("queue", "vms"))
        fcntl.flock(queue, fcntl.LOCK_EX)  # Who waits for the others' end is not overtaken.
        fcntl.flock(vms, fcntl.LOCK_EX if kind is Kind.ALONE and not prefers else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        yield


def _take_place(places: list[IO[str]]) -> None:
    """The first of them that can be had; nothing tells which that will be, so all are tried again."""
    while True:
        for place in places:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
        time.sleep(TRY_AGAIN)


class Turns(LoadFileScheduling):  # type: ignore[misc]
    """A module at a time for each process. Who hands out the work has names only, no marks: it looks for them
    in the module's text.
    """

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        self._text = functools.cache(lambda module: (config.rootpath / module).read_text())

    def _split_scope(self, nodeid: str) -> str:
        module = str(super()._split_scope(nodeid))
        return Kind.ALONE.name if self._kind(module) is Kind.ALONE else module

    def _assign_work_unit(self, node: WorkerController) -> None:
        others = [self._under_way(work) for other, work in self.assigned_work.items() if other is not node]
        fits = next((unit for unit in self.workqueue if self._may_begin(self._kind(unit), others)), None)
        if fits is not None:
            self.workqueue.move_to_end(fits, last=False)
        super()._assign_work_unit(node)

    def _may_begin(self, kind: Kind, others: list[set[Kind]]) -> bool:
        """`others`: what the other processes have before them."""
        counting = sum(not kinds.isdisjoint((Kind.ALONE, Kind.COUNTS)) for kinds in others)
        labs = sum(not kinds.isdisjoint((Kind.ALONE, Kind.COUNTS, Kind.PATIENT)) for kinds in others)
        if kind in (Kind.NO_VMS, Kind.COMPUTES):
            return True
        if not may_prefer():
            return kind is Kind.ALONE or not (labs >= MOST_COUNTING or any(Kind.ALONE in of for of in others))
        return labs < MOST_LABS and (kind is Kind.PATIENT or counting < MOST_COUNTING)

    def _under_way(self, work: Mapping[str, Any]) -> set[Kind]:
        return {self._kind(unit) for unit, tests in work.items() if self._pending_of({unit: tests})}

    def _kind(self, unit: str) -> Kind:
        if unit == Kind.ALONE.name:
            return Kind.ALONE
        marks = {mark: f"pytest.mark.{mark}" in self._text(unit) for mark in ("alone", "no_vms", "patient")}
        return kind_of({**marks, "lab": unit.startswith(LABS)})
