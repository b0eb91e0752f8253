"""Which process of `pytest -n` runs which test module.

A module marked `alone` counts packets, and no VMs run beside it but its own. All such modules are one unit of
work, so that one process runs them in turn; the others do meanwhile what needs no VMs. Of the other modules
with VMs two run at once: with three of them, on two processors, switches and guests stand still for seconds.
"""

import contextlib
import fcntl
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

ALONE, NO_VMS = "alone", "no_vms"
LABS = "tests/lab/"
MOST_LABS = 2
"""Modules with VMs that run at once."""


@contextlib.contextmanager
def turn(folder: Path, *, alone: bool) -> Iterator[None]:
    """That of a module with VMs, among those of all processes that have this folder in common."""
    with contextlib.ExitStack() as stack:
        if not alone:
            _take_place(
                [stack.enter_context((folder / f"lab{number}").open("w")) for number in range(MOST_LABS)]
            )
        queue, vms = (stack.enter_context((folder / name).open("w")) for name in ("queue", "vms"))
        fcntl.flock(queue, fcntl.LOCK_EX)  # Who waits for the others' end is not overtaken.
        fcntl.flock(vms, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        yield


def _take_place(places: list[IO[str]]) -> None:
    for place in places[1:]:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
    fcntl.flock(places[0], fcntl.LOCK_EX)


class Turns(LoadFileScheduling):  # type: ignore[misc]
    """A module at a time for each process. Who hands out the work has names only, no marks: it looks for them
    in the module's text.
    """

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        self._text = functools.cache(lambda module: (config.rootpath / module).read_text())

    def _split_scope(self, nodeid: str) -> str:
        module = str(super()._split_scope(nodeid))
        return ALONE if self._has(module, ALONE) else module

    def _assign_work_unit(self, node: WorkerController) -> None:
        others = [self._under_way(work) for other, work in self.assigned_work.items() if other is not node]
        labs = sum(any(map(self._runs_vms, units)) for units in others)
        if labs >= MOST_LABS or any(ALONE in units for units in others):
            fits = next((unit for unit in self.workqueue if not self._runs_vms(unit)), None)
            if fits is not None:
                self.workqueue.move_to_end(fits, last=False)
        super()._assign_work_unit(node)

    def _under_way(self, work: Mapping[str, Any]) -> list[str]:
        return [unit for unit, tests in work.items() if self._pending_of({unit: tests})]

    def _runs_vms(self, unit: str) -> bool:
        return unit == ALONE or (unit.startswith(LABS) and not self._has(unit, NO_VMS))

    def _has(self, module: str, mark: str) -> bool:
        return f"pytest.mark.{mark}" in self._text(module)
