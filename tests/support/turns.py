"""Which process of `pytest -n` runs which test module.

A module marked `alone` counts packets closely, and no VMs run beside it but its own and those of one module
marked `patient`, which counts none, and whose tests may wait for seconds. All that are `alone` are one unit
of work, so that one process runs them in turn; the others do meanwhile what is patient or needs no VMs.

At any time two modules with VMs run: with three of them, on two processors, switches and guests stand still
for seconds.
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

LABS = "tests/lab/"
MOST_LABS = 2
"""Modules with VMs that run at once."""
COMPUTING = 10
"""How nice a test without a laboratory is to those with one."""
TRY_AGAIN = 0.1


class Kind(Enum):
    """Of a module, in the order in which they begin."""

    ALONE = "alone"
    COUNTS = ""
    PATIENT = "patient"
    NO_VMS = "no_vms"
    COMPUTES = "no laboratory"

    @property
    def vms(self) -> bool:
        return self not in (Kind.NO_VMS, Kind.COMPUTES)


MARKS = ("lab", Kind.ALONE.value, Kind.PATIENT.value, Kind.NO_VMS.value)


def kind_of(marks: Mapping[str, Any]) -> Kind:
    """That of a module, by what it has of MARKS."""
    if not marks.get("lab"):
        return Kind.COMPUTES
    return next((kind for kind in Kind if marks.get(kind.value)), Kind.COUNTS)


def rank(kind: Kind) -> None:
    """What only computes lets laboratories' traffic and its counting go first."""
    if os.geteuid() == 0:
        os.setpriority(os.PRIO_PROCESS, 0, COMPUTING if kind is Kind.COMPUTES else 0)


@contextlib.contextmanager
def turn(folder: Path, kind: Kind) -> Iterator[None]:
    """That of a module, among those of all processes that have this folder in common."""
    with contextlib.ExitStack() as stack:

        def opened(name: str) -> IO[str]:
            return stack.enter_context((folder / name).open("w"))

        if kind in (Kind.ALONE, Kind.COUNTS):
            queue, counting = opened("queue"), opened("counting")
            fcntl.flock(queue, fcntl.LOCK_EX)  # Who waits for the others' end is not overtaken.
            fcntl.flock(counting, fcntl.LOCK_EX if kind is Kind.ALONE else fcntl.LOCK_SH)
            fcntl.flock(queue, fcntl.LOCK_UN)
        if kind.vms:
            _take_place([opened(f"lab{number}") for number in range(MOST_LABS)])
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
        labs = sum(any(one.vms for one in kinds) for kinds in others)
        alone = any(Kind.ALONE in kinds for kinds in others)
        return not kind.vms or (labs < MOST_LABS and not (alone and kind is Kind.COUNTS))

    def _under_way(self, work: Mapping[str, Any]) -> set[Kind]:
        return {self._kind(unit) for unit, tests in work.items() if self._pending_of({unit: tests})}

    def _kind(self, unit: str) -> Kind:
        if unit == Kind.ALONE.name:
            return Kind.ALONE
        marks = {mark: f"pytest.mark.{mark}" in self._text(unit) for mark in MARKS}
        return kind_of({**marks, "lab": unit.startswith(LABS)})
